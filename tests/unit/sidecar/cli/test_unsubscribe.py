from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from brokers.nats.embedded import ensure_keeper, hold, mesh_folder
from mesh.addressing import DEFAULT_PREFIX
from mesh.ports import Group, Topic
from sidecar.backbone import open_event_log
from sidecar.cli import main, unsubscribe
from sidecar.settings import parse_broker
from tests.contract.nats_server import NatsServer
from tests.ports import free_port

GROUP = Group("orders", Topic("pubsub", "A"))


def subscribe(broker: str, namespace: str, group: Group = GROUP) -> None:
    """Have a durable subscription of an app that is gone."""

    async def join_and_leave() -> None:
        log = open_event_log(parse_broker(broker, {}), name="test", namespace=namespace, prefix=DEFAULT_PREFIX)
        await log.start()
        await (await log.subscribe(group, lambda delivery: delivery.ack(), concurrency=1)).close()
        await log.close()

    asyncio.run(asyncio.wait_for(join_and_leave(), 30))


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = NatsServer(tmp_path_factory.mktemp("nats"))
    server.start()
    yield server.url
    server.kill()


def test_forgets_once(broker: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MESHWIRE_BROKER", broker)
    subscribe(broker, "default")
    assert main(["unsubscribe", "--app-id", "orders", "--topic", "A"]) == 0
    assert capsys.readouterr() == ("✅ orders no longer subscribes to A of pubsub\n", "")
    assert main(["unsubscribe", "--app-id", "orders", "--topic", "A"]) == 1
    assert capsys.readouterr().err == (
        "meshwire unsubscribe: orders does not subscribe to A of pubsub in namespace 'default'; nothing was forgotten\n"
    )


def test_forgets_a_binding(broker: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MESHWIRE_BROKER", broker)
    subscribe(broker, "default", Group("orders", Topic("$bindings", "orders.hook")))
    assert main(["unsubscribe", "--app-id", "orders", "--binding", "hook"]) == 0
    assert capsys.readouterr().out == "✅ orders no longer subscribes to orders.hook of $bindings\n"
    assert main(["unsubscribe", "--app-id", "orders", "--binding", "hook"]) == 1
    assert main(["unsubscribe", "--app-id", "orders", "--binding", "hook", "--topic", "A"]) == 2


def test_forgets_only_what_is_named(broker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESHWIRE_BROKER", broker)
    monkeypatch.setenv("NAMESPACE", "prod")
    other = Group("orders", Topic("other", "A/b"))
    subscribe(broker, "prod")
    subscribe(broker, "prod", other)
    for words in (["-t", "A", "-n", "default"], ["-t", "a"], ["-t", "A", "-p", "other"]):
        assert main(["unsubscribe", "-a", "orders", *words]) == 1
    assert main(["unsubscribe", "-a", "orders", "-t", "A/b", "-p", "other"]) == 0
    assert main(["unsubscribe", "-a", "orders", "-t", "A", "--namespace", "prod"]) == 0


def test_the_embedded_broker(folder: Path) -> None:
    held = hold(mesh_folder())
    try:
        ensure_keeper(folder)
        subscribe(f"embedded:{folder}", "default")
        assert main(["unsubscribe", "-a", "orders", "-t", "A"]) == 0
        assert main(["unsubscribe", "-a", "orders", "-t", "A"]) == 1
    finally:
        held.close()


def test_no_broker(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(unsubscribe, "TIMEOUT", 0.3)
    monkeypatch.setenv("MESHWIRE_BROKER", f"nats://127.0.0.1:{free_port()}")
    assert main(["unsubscribe", "-a", "orders", "-t", "A"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("meshwire unsubscribe: the broker did not answer within 0.3 s: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize("words", [[], ["-a", "x"], ["-t", "x"], ["-a", "x", "-t", "y", "--no"]])
def test_wrong_use(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["unsubscribe", *words]) == 2
    assert capsys.readouterr().err.count("\n") == 1
