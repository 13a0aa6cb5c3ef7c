"""`MESHWIRE_REQUESTS`: events over Apache Kafka, and calls between apps over a NATS server without JetStream."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.nats_server import NatsServer
from tests.e2e.mesh import LIMIT, App, Mesh, Sidecar, subscription, until
from tests.servers import kafka_jars
from tests.servers.apache_kafka import ApacheKafka

pytestmark = [pytest.mark.servers, pytest.mark.timeout(240)]


@pytest.fixture
def kafka() -> Iterator[ApacheKafka]:
    if reason := kafka_jars.missing():
        pytest.skip(reason)
    server = ApacheKafka(auto_create_topics_enable="false", group_initial_rebalance_delay_ms=0)
    server.start()
    yield server
    server.remove()


async def call_orders(shop: Sidecar) -> int:
    return (await shop.call("GET", "/v1.0/invoke/orders/method/hello")).status


async def health(sidecar: Sidecar, status: int) -> str:
    """What it says of its health, once that has this status."""
    async with asyncio.timeout(LIMIT):
        while (answer := await sidecar.call("GET", "/v1.0/healthz/outbound")).status != status:
            await asyncio.sleep(0.05)
    return answer.body.decode()


async def test_calls_go_over_nats_and_events_over_kafka(tmp_path: Path, kafka: ApacheKafka) -> None:
    nats = NatsServer(tmp_path / "nats", jetstream=False)
    nats.start()
    try:
        async with Mesh(tmp_path, kafka) as mesh, App([subscription("A")]) as app:
            settings = {"MESHWIRE_REQUESTS": nats.url}
            await mesh.sidecar("orders", app=app, topics=["A"], **settings)
            shop = await mesh.sidecar("shop", **settings)
            assert await call_orders(shop) == 200
            nats.kill()
            told = await health(shop, 500)
            assert "for calls between apps" in told
            assert await call_orders(shop) >= 500  # as Kafka is still there, it does not go that way
            await shop.publish(b"{}")
            await until(lambda: len(app.events) == 1, lambda: f"{app.events} arrived")
            nats.start()
            await health(shop, 204)
            assert await call_orders(shop) == 200
    finally:
        nats.kill()
