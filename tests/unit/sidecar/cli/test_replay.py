"""`meshwire replay` asks the sidecar what its flags say."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from sidecar.cli import main
from tests.unit.sidecar.cli.conftest import Api

pytestmark = pytest.mark.usefixtures("folder")

Running = Callable[..., object]

RUN = {"id": "abc", "state": "done", "pubsubname": "pubsub", "topic": "orders", "handled": 7}


@pytest.fixture
def sidecar(api: Api, running: Running) -> Api:
    running("orders", http_port=api.port)
    api.status = 200
    return api


def say(api: Api, content: Any) -> None:
    api.body = json.dumps(content).encode()


def test_of_the_last_hour(sidecar: Api, capsys: pytest.CaptureFixture[str]) -> None:
    say(sidecar, RUN)
    words = ["--to", "2026-05-04T12:30:00Z", "--to-app", "audit", "--route", "/again", "--rate", "5", "--wait"]
    assert main(["replay", "--topic", "orders", "--from", "1h", *words]) == 0
    [request] = sidecar.requests
    assert (request.method, request.path) == ("POST", "/mesh/v1/replays")
    order = json.loads(request.body)
    since = datetime.fromisoformat(order.pop("from")["time"])
    assert abs(datetime.now(UTC) - timedelta(hours=1) - since) < timedelta(minutes=1)
    assert order == {
        "pubsubname": "pubsub",
        "topic": "orders",
        "to": {"time": "2026-05-04T12:30:00Z"},
        "appId": "audit",
        "route": "/again",
        "rate": 5.0,
        "dryRun": False,
    }
    assert capsys.readouterr().out.splitlines()[1].split() == ["abc", "done", "pubsub", "orders", "7"]


def test_the_items_of_a_binding(sidecar: Api) -> None:
    say(sidecar, {**RUN, "id": "shop"})
    assert main(["replay", "--binding", "nightly", "--from", "1h"]) == 0
    asked, request = sidecar.requests
    assert (asked.method, asked.path) == ("GET", "/v1.0/metadata")
    order = json.loads(request.body)
    assert (order["pubsubname"], order["topic"]) == ("$bindings", "shop.nightly")


def test_from_a_position_counted_only(sidecar: Api, capsys: pytest.CaptureFixture[str]) -> None:
    say(sidecar, {"matching": 100_000, "complete": False})
    assert main(["replay", "-t", "orders", "--from", "position:42", "--dry-run"]) == 0
    order = json.loads(sidecar.requests[0].body)
    assert (order["from"], order["dryRun"]) == ({"position": "42"}, True)
    assert capsys.readouterr().out == "100000 or more events would be replayed\n"


def test_one_that_fails(sidecar: Api) -> None:
    say(sidecar, {**RUN, "state": "failed", "error": "the app does not subscribe"})
    assert main(["replay", "-t", "orders", "--from", "1h", "--wait", "--json"]) == 1


def test_list_and_cancel(sidecar: Api, capsys: pytest.CaptureFixture[str]) -> None:
    say(sidecar, {"replays": [RUN]})
    assert main(["replay", "--list", "--to-app", "a b"]) == 0
    assert sidecar.requests[0].path == "/mesh/v1/replays?appId=a+b"
    say(sidecar, {**RUN, "state": "cancelling"})
    assert main(["replay", "--cancel", "abc"]) == 0
    assert (sidecar.requests[1].method, sidecar.requests[1].path) == ("DELETE", "/mesh/v1/replays/abc")
    assert "cancelling" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "--topic (or --binding) and --from are required"),
        (["--topic", "a"], "--topic (or --binding) and --from are required"),
        (["--topic", "a", "--binding", "b", "--from", "1h"], "two ways to say one thing"),
        (["--list", "--cancel", "x"], "are two commands"),
        (["--topic", "a", "--from", "soon"], "--from must be a time such as"),
        (["--topic", "a", "--from", "1h", "--to", "later"], "--to must be a time such as"),
    ],
)
def test_wrong_use(sidecar: Api, capsys: pytest.CaptureFixture[str], words: list[str], told: str) -> None:
    assert main(["replay", *words]) == 2
    assert told in capsys.readouterr().err
    assert sidecar.requests == []
