"""`meshwire dead` asks the sidecar what its flags say, and shows the answers to people and to programs."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from sidecar.cli import main
from tests.unit.sidecar.cli.conftest import Api

pytestmark = pytest.mark.usefixtures("folder")

Running = Callable[..., object]

LETTER = {
    "id": "pubsub/orders/42",
    "lastFailure": "2026-05-04T12:30:00.000Z",
    "reason": "attempts",
    "status": 500,
    "attempts": 3,
    "text": "the app answered 500\x1b",
    "event": {"type": "placed"},
}
RUN = {"id": "abc", "state": "running", "created": "2026-05-04T12:30:00.000Z", "matched": 2, "sent": 1}


@pytest.fixture
def sidecar(api: Api, running: Running) -> Api:
    running("orders", http_port=api.port)
    api.status = 200
    return api


def say(api: Api, content: Any) -> None:
    api.body = json.dumps(content).encode()


def asked(api: Api) -> dict[str, Any]:
    return json.loads(api.requests[-1].body)  # type: ignore[no-any-return]


def test_a_table(sidecar: Api, capsys: pytest.CaptureFixture[str]) -> None:
    say(sidecar, {"deadLetters": [LETTER, {**LETTER, "id": "pubsub/orders/7", "status": None}]})
    assert main(["dead", "list", "-t", "orders", "--status", "500", "--text", "a&b", "--oldest", "--limit", "2"]) == 0
    url = urlsplit(sidecar.requests[0].path)
    assert url.path == "/mesh/v1/dead-letters"
    assert parse_qs(url.query) == {
        "topic": ["orders"],
        "status": ["500"],
        "text": ["a&b"],
        "order": ["oldest"],
        "limit": ["2"],
    }
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.split("  ")[0] == "ID"
    assert first.split()[:6] == ["pubsub/orders/42", "2026-05-04", "12:30:00", "attempts", "500", "3"]
    assert "\x1b" not in first
    assert second.startswith("pubsub/orders/7 ")


def test_as_json_over_pages(sidecar: Api, capsys: pytest.CaptureFixture[str]) -> None:
    say(sidecar, {"deadLetters": [LETTER] * 2, "cursor": "next"})
    assert main(["dead", "list", "--json", "--limit", "4"]) == 0
    assert [parse_qs(urlsplit(one.path).query).get("cursor") for one in sidecar.requests] == [None, ["next"]]
    assert json.loads(capsys.readouterr().out) == [LETTER] * 4


def test_since_is_a_time_or_how_long_ago(sidecar: Api) -> None:
    say(sidecar, {"deadLetters": []})
    assert main(["dead", "list", "--since", "90m", "--until", "2026-05-04T12:30:00Z"]) == 0
    query = parse_qs(urlsplit(sidecar.requests[0].path).query)
    assert query["before"] == ["2026-05-04T12:30:00Z"]
    since = datetime.fromisoformat(query["after"][0])
    assert abs(datetime.now(UTC) - timedelta(minutes=90) - since) < timedelta(minutes=1)


def test_show(sidecar: Api, capsys: pytest.CaptureFixture[str]) -> None:
    say(sidecar, {**LETTER, "headers": {"traceparent": "x"}})
    assert main(["dead", "show", "pubsub/orders/42"]) == 0
    assert sidecar.requests[0].path == "/mesh/v1/dead-letters/pubsub/orders/42"
    out = capsys.readouterr().out
    assert "reason        attempts" in out
    assert '"type": "placed"' in out


def test_the_payload_alone(sidecar: Api, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    sidecar.body = b"\xff\x00"
    assert main(["dead", "show", "pubsub/orders/42", "--raw"]) == 0
    assert capfdbinary.readouterr().out == b"\xff\x00"
    assert sidecar.requests[0].path.endswith("?raw=true")


def test_redrive_of_some(sidecar: Api, capsys: pytest.CaptureFixture[str]) -> None:
    say(sidecar, RUN)
    assert main(["dead", "redrive", "pubsub/a/b/42", "--rate", "500", "--to-topic", "x"]) == 0
    assert [one.path for one in sidecar.requests] == [
        "/mesh/v1/dead-letters/pubsub/a/b/42",
        "/mesh/v1/dead-letters:redrive",
    ]
    assert asked(sidecar) == {
        "filter": {"pubsubname": "pubsub", "topic": "a/b", "position": "42"},
        "to": {"pubsubname": "pubsub", "topic": "x"},
        "rate": 500.0,
        "everyone": False,
        "dryRun": False,
    }
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["abc", "running"]


def test_redrive_that_is_waited_for(sidecar: Api, capsys: pytest.CaptureFixture[str]) -> None:
    say(sidecar, {**RUN, "state": "done", "failed": 1})
    assert main(["dead", "redrive", "--all", "--wait", "--json"]) == 1
    assert asked(sidecar)["filter"] == {}
    assert json.loads(capsys.readouterr().out)[0]["state"] == "done"


def test_counts_only(sidecar: Api, capsys: pytest.CaptureFixture[str]) -> None:
    say(sidecar, {"matching": 7})
    for action, what in (("redrive", "sent again"), ("purge", "removed")):
        assert main(["dead", action, "--reason", "attempts", "--dry-run"]) == 0
        assert asked(sidecar)["dryRun"] is True
        assert capsys.readouterr().out == f"7 dead letters would be {what}\n"


def test_purge(sidecar: Api, capsys: pytest.CaptureFixture[str]) -> None:
    say(sidecar, {"purged": 1})
    assert main(["dead", "purge", "pubsub/orders/1", "pubsub/orders/2"]) == 0
    assert [json.loads(one.body)["filter"]["position"] for one in sidecar.requests[2:]] == ["1", "2"]
    assert capsys.readouterr().out == "✅ 2 dead letters removed\n"


def test_runs(sidecar: Api, capsys: pytest.CaptureFixture[str]) -> None:
    say(sidecar, {"redrives": [RUN]})
    assert main(["dead", "runs"]) == 0
    assert "abc" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "the following arguments are required: ACTION"),
        (["bury"], "invalid choice"),
        (["show"], "show needs one ID"),
        (["list", "x"], "list takes no ID"),
        (["purge"], "purge needs IDs or a filter; --all is for all dead letters"),
        (["redrive", "x", "--all"], "give IDs or a filter, not both"),
        (["redrive", "x"], "looks like pubsub/topic/position"),
        (["list", "--since", "soon"], "--since must be a time such as"),
        (["list", "--status", "5xx"], "--status must be an HTTP status"),
        (["list", "--limit", "0"], "must be from 1 to 1000000"),
    ],
)
def test_wrong_use(sidecar: Api, capsys: pytest.CaptureFixture[str], words: list[str], told: str) -> None:
    assert main(["dead", *words]) == 2
    assert told in capsys.readouterr().err
    assert sidecar.requests == []


@pytest.mark.parametrize("action", ["show", "redrive", "purge"])
def test_a_letter_that_is_not_there(sidecar: Api, capsys: pytest.CaptureFixture[str], action: str) -> None:
    sidecar.status = 404
    say(sidecar, {"errorCode": "ERR_DEAD_LETTER_NOT_FOUND", "message": "there is no dead letter"})
    assert main(["dead", action, "pubsub/orders/1"]) == 1
    assert len(sidecar.requests) == 1
    assert capsys.readouterr().err == "meshwire dead: there is no dead letter (404 ERR_DEAD_LETTER_NOT_FOUND)\n"
