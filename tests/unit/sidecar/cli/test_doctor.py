from __future__ import annotations

import pytest

from brokers.nats.inspection import Lane
from sidecar.cli import main
from sidecar.doctor_nats import _bytes, _subscription
from sidecar.findings import Status


def lane(**state: object) -> Lane:
    quiet = {"waiting": 0, "unacked": 0, "redelivered": 0, "pulls": 1, "oldest": None}
    return Lane("orders", "pubsub", "A", "name", **{**quiet, **state})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("lanes", "status", "told"),
    [
        ([lane(), lane(pulls=0)], Status.OK, "0 waiting, 0 in hand, 0 delivered again"),
        (
            [lane(waiting=2, unacked=3, oldest=7.2), lane(waiting=1, oldest=150.0)],
            Status.OK,
            "3 waiting, 3 in hand, 0 delivered again, the oldest is 2 min old",
        ),
        # a backlog is no fault while somebody works on it
        ([lane(waiting=9, unacked=5, pulls=0, oldest=9e4)], Status.OK, "the oldest is 1 d old"),
        ([lane(waiting=1, pulls=0, oldest=1.0), lane()], Status.FAILED, "nobody takes them"),
        ([lane(unacked=1, redelivered=1, oldest=59.0)], Status.OK, "1 delivered again"),
        ([lane(unacked=1, redelivered=1, oldest=61.0)], Status.FAILED, "the app fails on them"),
        ([lane(waiting=1, unacked=1, redelivered=1, pulls=0, oldest=61.0)], Status.FAILED, "the app fails on them"),
    ],
)
def test_what_a_subscription_suffers_from(lanes: list[Lane], status: Status, told: str) -> None:
    found = _subscription("orders", "pubsub", "A", lanes)
    assert found.check == "subscription of orders to A (pubsub)"
    assert (found.status, bool(found.advice)) == (status, status is Status.FAILED)
    assert told in found.told


@pytest.mark.parametrize(
    ("count", "told"), [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (5 << 20, "5 MiB"), (3 << 29, "1.5 GiB")]
)
def test_sizes(count: int, told: str) -> None:
    assert _bytes(count) == told


@pytest.mark.usefixtures("folder")
def test_a_mesh_that_does_not_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line[0] for line in lines[:3]] == ["✗", "–", "–"]
    assert lines[-2].startswith("The culprit: broker: the embedded broker in ")
    assert lines[-1] == "What to do: start an app (meshwire run), or say which broker with --broker"


@pytest.mark.usefixtures("folder")
def test_a_broker_in_memory_is_no_patient(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--broker", "memory"]) == 0
    assert capsys.readouterr().out.startswith("– broker: a broker in memory lives inside one sidecar")
