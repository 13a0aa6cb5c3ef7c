"""`meshwire doctor` on real patients: a healthy one, and one for each thing that can be wrong."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.nats_server import BINARY, NatsServer
from tests.e2e.mesh import MESHWIRE, App, Mesh, Process, subscription
from tests.ports import free_port
from tests.servers import kafka_jars
from tests.servers.apache_kafka import ApacheKafka


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    async with Mesh(tmp_path) as running:
        yield running


class Visit:
    """One run of the doctor."""

    def __init__(self, folder: Path, broker: str = "", **environment: str) -> None:
        self.folder = folder
        self.environment = {"MESHWIRE_HOME": str(folder / "home"), "MESHWIRE_BROKER": broker, **environment}

    async def tells(self, *flags: str) -> tuple[int, str]:
        name = f"doctor-{len(list(self.folder.glob('doctor-*')))}"
        process = Process(self.folder, name, [*MESHWIRE, "doctor", *flags], self.environment).start()
        code = await process.end(None)
        assert "Traceback" not in process.log
        return code, process.log

    async def culprit(self, *flags: str) -> tuple[str, str, str]:
        """The check that failed first, what it told and advised."""
        code, log = await self.tells("-o", "json", *flags)
        told: dict[str, Any] = json.loads(log)
        assert (code, told["healthy"]) == (1, False), log
        (first, *_) = (finding for finding in told["findings"] if finding["status"] == "failed")
        assert first["check"] == told["culprit"]
        return first["check"], first["told"], first["advice"]


async def test_a_healthy_mesh(mesh: Mesh, tmp_path: Path) -> None:
    async with App([subscription("A")]) as app:
        await mesh.sidecar("orders", app=app, topics=["A"])
        await mesh.sidecar("shell")
        code, log = await Visit(tmp_path, mesh.server.url).tells()
        assert code == 0, log
        checks = [re.sub(r" \d+ ms", " N ms", line) for line in log.splitlines()]
        expected = [
            r"✓ broker: nats://127.0.0.1:\d+ answers: NATS 2\.[\d.]+",
            r"✓ credentials: accepted",
            r"✓ streams: events of namespace 'default': 0 stored, 0 B, kept 7 d; no limit",
            r"✓ sidecar of orders: 127.0.0.1:\d+ is healthy",
            r"✓ sidecar of shell: 127.0.0.1:\d+ is healthy",
            r"✓ subscription of orders to A \(pubsub\): 0 waiting, 0 in hand, 0 delivered again",
            r"✓ app orders: 127.0.0.1:\d+ answers; it subscribes to A",
            r"✓ canary event: published, stored and received in N ms",
            r"✓ canary call: called and answered in N ms",
            r"✓ canary call through the sidecar of orders: answered in N ms",
            r"✓ canary call through the sidecar of shell: answered in N ms",
            r"✓ canary call to orders: answered 200 in N ms",
            r"",
            r"Nothing is wrong\.",
        ]
        assert len(checks) == len(expected), log
        for pattern, line in zip(expected, checks, strict=True):
            assert re.fullmatch(pattern, line), log
        assert not app.events  # no canary reached the user's topics
        code, log = await Visit(tmp_path, mesh.server.url).tells("--app-id", "shell")
        assert (code, "orders" in log) == (0, False)


async def test_the_doctor_leaves_no_subscription_behind(mesh: Mesh, tmp_path: Path) -> None:
    for _ in range(2):
        code, log = await Visit(tmp_path, mesh.server.url).tells()
        assert code == 0, log
    assert "– sidecars: none runs here in this mesh" in log
    assert "– subscriptions: the broker keeps none" in log


async def test_no_broker(tmp_path: Path) -> None:
    check, told, advice = await Visit(tmp_path).culprit()
    assert (check, "does not run" in told, "meshwire run" in advice) == ("broker", True, True)
    code, log = await Visit(tmp_path).tells("--broker", f"nats://me:secret@127.0.0.1:{free_port()}")
    assert (code, "secret" in log) == (1, False)
    assert re.search(r"✗ broker: nats://\*\*\*@127.0.0.1:\d+: Connection refused → start the broker", log)
    assert re.search(r"\nThe culprit: broker: .*\nWhat to do: start the broker", log)


async def test_something_else_listens(tmp_path: Path) -> None:
    async with App() as app:
        check, told, _ = await Visit(tmp_path, f"nats://127.0.0.1:{app.port}").culprit()
        assert check == "broker"
        assert "no greeting in time" in told


async def test_wrong_credentials(tmp_path: Path) -> None:
    with NatsServer(tmp_path / "nats", authorization={"token": "right"}) as server:
        wrong = server.url.replace("://", "://wrong-secret@")
        code, log = await Visit(tmp_path, wrong).tells()
        assert (code, "secret" in log) == (1, False)
        assert "✗ credentials: NATS refused our credentials" in log
        assert "The culprit: credentials" in log


async def test_app_that_is_down(mesh: Mesh, tmp_path: Path) -> None:
    async with App([subscription("A")]) as app:
        await mesh.sidecar("orders", app=app, topics=["A"])
    check, told, advice = await Visit(tmp_path, mesh.server.url).culprit()
    assert (check, told) == ("app orders", f"nothing listens at 127.0.0.1:{app.port}")
    assert "start the app" in advice


async def test_app_that_answers_nonsense_to_the_subscribe_route(mesh: Mesh, tmp_path: Path) -> None:
    async with App([]) as app:
        await mesh.sidecar("orders", app=app)
        app.subscribe = {"no": "list"}
        check, told, _ = await Visit(tmp_path, mesh.server.url).culprit()
        assert check == "app orders"
        assert "GET /dapr/subscribe: Expected `array" in told


async def test_events_that_nobody_takes(mesh: Mesh, tmp_path: Path) -> None:
    async with App([subscription("A")]) as app:
        orders = await mesh.sidecar("orders", app=app, topics=["A"])
        await orders.end()
    shell = await mesh.sidecar("shell")
    for _ in range(3):
        await shell.publish(b"{}")
    check, told, advice = await Visit(tmp_path, mesh.server.url).culprit()
    assert check == "subscription of orders to A (pubsub)"
    assert re.fullmatch(r"3 waiting, 0 in hand, .*, the oldest is \d+ s old; nobody takes them", told)
    assert "meshwire unsubscribe -a orders -t A -p pubsub" in advice


async def test_sidecar_that_is_stuck(mesh: Mesh, tmp_path: Path) -> None:
    orders = await mesh.sidecar("orders")
    orders.send(signal.SIGSTOP)
    try:
        check, told, advice = await Visit(tmp_path, mesh.server.url).culprit()
    finally:
        orders.send(signal.SIGCONT)
    assert check == "sidecar of orders"
    assert "no answer within 2 s" in told
    assert str(orders.pid) in advice


async def test_sidecar_in_another_namespace(mesh: Mesh, tmp_path: Path) -> None:
    await mesh.sidecar("orders", NAMESPACE="prod")
    check, told, advice = await Visit(tmp_path, mesh.server.url).culprit()
    assert check == "canary call through the sidecar of orders"
    assert "ERR_DIRECT_INVOKE" in told
    assert "namespace" in advice


async def test_sidecar_that_wants_a_token(mesh: Mesh, tmp_path: Path) -> None:
    await mesh.sidecar("orders", DAPR_API_TOKEN="t0ken")
    check, told, _ = await Visit(tmp_path, mesh.server.url).culprit()
    assert check == "canary call through the sidecar of orders"
    assert "set DAPR_API_TOKEN" in told
    code, log = await Visit(tmp_path, mesh.server.url, DAPR_API_TOKEN="t0ken").tells()
    assert (code, "t0ken" in log) == (0, False)


async def test_app_that_runs_nowhere(mesh: Mesh, tmp_path: Path) -> None:
    check, told, advice = await Visit(tmp_path, mesh.server.url).culprit("--app-id", "orders")
    assert (check, told) == ("canary call to orders", "no sidecar of this app takes calls")
    assert "meshwire run --app-id orders" in advice


async def test_server_without_jetstream(tmp_path: Path) -> None:
    port = free_port()
    process = Process(tmp_path, "nats", [str(BINARY), "-a", "127.0.0.1", "-p", str(port)], {}).start()
    try:
        await process.says("Server is ready")
        check, told, advice = await Visit(tmp_path, f"nats://127.0.0.1:{port}").culprit()
    finally:
        process.kill()
    assert check == "streams"
    assert "JetStream does not answer" in told
    assert "-js" in advice


async def test_an_address_that_is_none(tmp_path: Path) -> None:
    code, log = await Visit(tmp_path).tells("--broker", "http://x")
    assert code == 1
    assert log.startswith("meshwire doctor: MESHWIRE_BROKER: must be nats://host:port")


# on Kafka


@pytest.fixture(scope="module")
def kafka() -> Iterator[ApacheKafka]:
    if reason := kafka_jars.missing():
        pytest.skip(reason)
    server = ApacheKafka(auto_create_topics_enable="false", group_initial_rebalance_delay_ms=0)
    server.start()
    yield server
    server.remove()


@pytest.mark.servers
@pytest.mark.timeout(240)
async def test_a_mesh_on_kafka(tmp_path: Path, kafka: ApacheKafka) -> None:
    async with Mesh(tmp_path, kafka) as mesh, App([subscription("A")]) as app:
        orders = await mesh.sidecar("orders", app=app, topics=["A"])
        shell = await mesh.sidecar("shell")
        prefix = shell.environment["MESHWIRE_PREFIX"]
        visit = Visit(tmp_path, kafka.url, MESHWIRE_PREFIX=prefix)
        for _ in range(2):  # it leaves nothing that makes a second one fail
            code, log = await visit.tells()
            assert code == 0, log
        for pattern in (
            r"✓ broker: 127.0.0.1:\d+ answers",
            r"✓ credentials: accepted",
            r"✓ topics: events of namespace 'default': \d+ topics; 1 server",
            r"✓ sidecar of orders: 127.0.0.1:\d+ is healthy",
            r"✓ subscription of orders to A \(pubsub\): 0 waiting, 0 tried and not done",
            r"✓ app orders: 127.0.0.1:\d+ answers; it subscribes to A",
            r"✓ canary event: published, stored and received in \d+ ms",
            r"✓ canary call: called and answered in \d+ ms",
            r"✓ canary call through the sidecar of orders: answered in \d+ ms",
            r"✓ canary call to orders: answered 200 in \d+ ms",
        ):
            assert re.search(f"^{pattern}$", log, re.MULTILINE), log
        assert log.count("subscription of") == 1
        assert not app.events
        await orders.end()
        for _ in range(3):
            await shell.publish(b"{}")
        check, told, advice = await visit.culprit()
        assert check == "subscription of orders to A (pubsub)"
        assert told == "3 waiting, 0 tried and not done; nobody takes them"
        assert "meshwire unsubscribe -a orders -t A -p pubsub" in advice
        # which is what one does then
        environment = {**visit.environment, "MESHWIRE_PREFIX": prefix}
        command = [*MESHWIRE, "unsubscribe", "-a", "orders", "-t", "A"]
        process = Process(tmp_path, "unsubscribe", command, environment).start()
        assert await process.end(None) == 0, process.log
        code, log = await visit.tells("--app-id", "orders")
        assert "– subscriptions: the broker keeps none" in log


async def test_no_kafka(tmp_path: Path) -> None:
    code, log = await Visit(tmp_path).tells("--broker", f"kafka://me:secret@127.0.0.1:{free_port()}")
    assert (code, "secret" in log) == (1, False)
    assert re.search(r"✗ broker: 127.0.0.1:\d+: Connection refused → start the broker", log), log


async def test_something_that_is_no_kafka(tmp_path: Path) -> None:
    async with App() as app:
        check, told, _ = await Visit(tmp_path, f"kafka://127.0.0.1:{app.port}").culprit()
        assert check == "credentials"
        assert "no login within 5 s" in told
