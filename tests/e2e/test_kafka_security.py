"""Whole sidecars that sign in to Apache Kafka over TLS, with calls that go over NATS."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.nats_server import NatsServer
from tests.contract.test_kafka_connection import USERS, Guarded
from tests.e2e.mesh import LIMIT, App, Mesh, subscription, until
from tests.servers import kafka_jars
from tests.servers.apache_kafka import ADMIN

pytestmark = [pytest.mark.servers, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    if reason := kafka_jars.missing():
        pytest.skip(reason)
    guarded = Guarded(tmp_path_factory.mktemp("guarded"))
    yield guarded
    guarded.server.remove()


@pytest.fixture
def environment(guarded: Guarded, tmp_path: Path) -> dict[str, str]:
    secret = tmp_path / "password"
    secret.write_text(USERS[ADMIN])
    return {
        "broker": guarded.server.url.replace("kafka://", "kafka+tls://"),
        "MESHWIRE_KAFKA_TLS_CA": str(guarded.authority.path),
        "MESHWIRE_KAFKA_SASL": "SCRAM-SHA-512",
        "MESHWIRE_KAFKA_USER": ADMIN,
        "MESHWIRE_KAFKA_PASSWORD_FILE": str(secret),
        "MESHWIRE_KAFKA_PARTITIONS": "2",
    }


async def test_events_over_kafka_and_calls_over_nats(
    tmp_path: Path, guarded: Guarded, environment: dict[str, str]
) -> None:
    with NatsServer(tmp_path / "nats") as nats:
        options = environment | {"MESHWIRE_REQUESTS": nats.url}
        async with Mesh(tmp_path, guarded.server) as mesh, App([subscription("A")]) as app:
            orders = await mesh.sidecar("orders", app=app, topics=["A"], **options)
            shell = await mesh.sidecar("shell", **options)
            await shell.publish(b'{"n": 1}')
            await until(lambda: len(app.events) == 1, lambda: orders.log)
            called = await shell.call("GET", "/v1.0/invoke/orders/method/dapr/subscribe")
            assert called.status == 200, called
            # calls have a broker of their own: it is the only one that is missed
            nats.kill()
            async with asyncio.timeout(LIMIT):
                while (health := await shell.call("GET", "/v1.0/healthz/outbound")).status == 204:
                    await asyncio.sleep(0.05)
            assert b"for calls between apps: " in health.body
            nats.start()
            async with asyncio.timeout(LIMIT):
                while (await shell.call("GET", "/v1.0/healthz/outbound")).status != 204:
                    await asyncio.sleep(0.05)
            async with asyncio.timeout(LIMIT):
                while (await shell.call("GET", "/v1.0/invoke/orders/method/dapr/subscribe")).status != 200:
                    await asyncio.sleep(0.05)
            assert USERS[ADMIN] not in orders.log + shell.log


async def test_a_wrong_password_ends_the_start(tmp_path: Path, guarded: Guarded, environment: dict[str, str]) -> None:
    (tmp_path / "password").write_text("S3CRET")
    async with Mesh(tmp_path, guarded.server) as mesh:
        sidecar = mesh.add("shell", **environment).start()
        assert await sidecar.end(None) == 1
        assert "Kafka refused: " in sidecar.log
        assert "S3CRET" not in sidecar.log
