"""`meshwire subscriptions` and `meshwire where` ask the sidecar what their flags say, and show what it answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from sidecar.cli import main
from tests.unit.sidecar.cli.conftest import Api

pytestmark = pytest.mark.usefixtures("folder")

Running = Callable[..., object]

SUBSCRIPTION = {
    "pubsubname": "pubsub",
    "topic": "orders",
    "state": "running",
    "plan": {"concurrency": 64},
    "inHand": 2,
    "backlog": {"waiting": 17, "unsettled": 2},
    "replicas": [{"sidecar": "orders-1", "inHand": 2, "concurrency": 64}],
}


@pytest.fixture
def sidecar(api: Api, running: Running) -> Api:
    running("orders", http_port=api.port)
    api.status = 200
    return api


def say(api: Api, content: Any) -> None:
    api.body = json.dumps(content).encode()


def test_a_table_of_all(sidecar: Api, capsys: pytest.CaptureFixture[str]) -> None:
    say(sidecar, {"subscriptions": [SUBSCRIPTION], "silent": ["orders-2"]})
    assert main(["subscriptions"]) == 0
    assert (sidecar.requests[0].method, sidecar.requests[0].path) == ("GET", "/mesh/v1/subscriptions")
    shown = capsys.readouterr()
    assert shown.out.splitlines()[1].split() == ["pubsub", "orders", "running", "17", "2", "64", "1"]
    assert "orders-2 does not answer" in shown.err


@pytest.mark.parametrize(
    ("words", "path", "body"),
    [
        (["pause", "a/b"], "pubsub/a/b", {"action": "pause", "group": ""}),
        (["resume", "A", "-p", "other", "-g", "late"], "other/A", {"action": "resume", "group": "late"}),
        (["drain", "A"], "pubsub/A", {"action": "drain", "group": "", "waitSeconds": 30}),
        (["drain", "A", "--wait", "0"], "pubsub/A", {"action": "drain", "group": "", "waitSeconds": 0}),
        (["limit", "A", "--rate", "2.5"], "pubsub/A", {"action": "limit", "group": "", "rate": 2.5}),
        (
            ["limit", "A", "--rate", "none", "--concurrency", "3"],
            "pubsub/A",
            {"action": "limit", "group": "", "rate": None, "concurrency": 3},
        ),
    ],
)
def test_actions(sidecar: Api, words: list[str], path: str, body: dict[str, Any]) -> None:
    say(sidecar, SUBSCRIPTION)
    assert main(["subscriptions", *words]) == 0
    (request,) = sidecar.requests
    assert (request.method, request.path) == ("POST", f"/mesh/v1/subscriptions/{path}")
    assert json.loads(request.body) == body


def test_the_items_of_a_binding(sidecar: Api) -> None:
    say(sidecar, {**SUBSCRIPTION, "id": "my.shop"})
    assert main(["subscriptions", "pause", "--binding", "nightly/1"]) == 0
    asked, request = sidecar.requests
    assert (asked.method, asked.path) == ("GET", "/v1.0/metadata")
    assert (request.method, request.path) == ("POST", "/mesh/v1/subscriptions/%24bindings/my%252Eshop.nightly/1")


def test_a_drain_that_is_not_over_fails(sidecar: Api) -> None:
    say(sidecar, {**SUBSCRIPTION, "state": "draining"})
    assert main(["subscriptions", "drain", "A"]) == 1


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["list", "A"], "list takes no TOPIC"),
        (["list", "--binding", "b"], "list takes no TOPIC"),
        (["pause", "A", "--binding", "b"], "pause needs either a TOPIC or a --binding"),
        (["pause"], "pause needs either a TOPIC or a --binding"),
        (["limit", "A"], "limit needs --rate"),
        (["limit", "A", "--rate", "fast"], "--rate must be a number or none"),
        (["limit", "A", "--concurrency", "1.5"], "--concurrency must be a number"),
        (["pause", "A", "--rate", "1"], "--rate belongs to limit"),
        (["pause", "A", "--wait", "1"], "--wait belongs to drain"),
        (["drain", "A", "--wait", "61"], "up to 60"),
        (["stop", "A"], "invalid choice"),
    ],
)
def test_wrong_use(sidecar: Api, words: list[str], problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["subscriptions", *words]) == 2
    assert problem in capsys.readouterr().err
    assert sidecar.requests == []


STORY = {
    "source": "/shop",
    "id": "7",
    "complete": False,
    "gaps": ["sidecar billing-2 has a journal and did not answer"],
    "subscriptions": [{"app": "billing", "pubsubname": "pubsub", "topic": "orders", "state": "retry", "attempts": 1}],
    "steps": [
        {
            "time": "2026-05-04T12:30:00.123456Z",
            "what": "stored",
            "app": "shop",
            "sidecar": "shop-1",
            "pubsubname": "pubsub",
            "topic": "orders",
            "position": "42",
        },
        {
            "time": "2026-05-04T12:30:00.200000Z",
            "what": "attempt",
            "app": "billing",
            "sidecar": "billing-1",
            "pubsubname": "pubsub",
            "topic": "orders",
            "position": "42",
            "attempt": 1,
            "status": 503,
            "outcome": "retry",
            "reason": "the app answered 503",
            "durationMs": 4.2,
            "next": "2026-05-04T12:30:00.700000Z",
        },
    ],
}


def test_a_story_in_words(sidecar: Api, running: Running, capsys: pytest.CaptureFixture[str]) -> None:
    running("billing", http_port=sidecar.port)
    say(sidecar, STORY)
    assert main(["where", "/shop", "7"]) == 0
    assert sidecar.requests[0].path == "/mesh/v1/events/%2Fshop/7"
    shown = capsys.readouterr()
    assert shown.out.splitlines() == [
        "2026-05-04 12:30:00.123  shop pubsub/orders  stored at 42",
        "2026-05-04 12:30:00.200  billing pubsub/orders  attempt 1 failed after 4.2 ms, status 503: "
        "the app answered 503; again at 12:30:00.700",
        "→ billing pubsub/orders: retry, attempts: 1",
    ]
    assert shown.err == "not told: sidecar billing-2 has a journal and did not answer\n"


def test_a_story_for_programs(sidecar: Api, capsys: pytest.CaptureFixture[str]) -> None:
    say(sidecar, STORY)
    assert main(["where", "/shop", "7", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == STORY


def test_an_event_that_nobody_remembers(sidecar: Api, capsys: pytest.CaptureFixture[str]) -> None:
    sidecar.status = 404
    say(sidecar, {"errorCode": "ERR_EVENT_UNKNOWN", "message": "none of the 3 sidecars remembers it"})
    assert main(["where", "/shop", "8"]) == 1
    assert "none of the 3 sidecars remembers it" in capsys.readouterr().err
