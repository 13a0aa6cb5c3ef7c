"""FastStream on Kafka, as far as no server is needed."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from faststream.kafka import TestKafkaBroker
from faststream.security import SASLGSSAPI, SASLOAuthBearer
from faststream.specification.asyncapi import AsyncAPI

from brokers.faststream.kafka import Event, Mesh, MeshBroker
from mesh.errors import ConfigurationError
from mesh.ports import Topic
from tests.contract.faststream_events import Got, Order


@pytest.fixture
def mesh() -> Mesh:
    return Mesh("warehouse")


async def test_fast_streams_test_broker_runs_handlers(mesh: Mesh) -> None:
    broker = MeshBroker(mesh)
    got = Got()

    @broker.subscriber(**mesh.topic("orders"))
    @broker.publisher(mesh.subject("shipments"), headers={"ce-type": "shipment.sent"})
    async def ship(order: Order, event: Event) -> dict[str, int]:
        got.put_nowait(event.get_type())
        return {"shipped": order.number}

    @broker.subscriber(**mesh.topic("shipments"))
    async def shipped(body: dict[str, int], event: Event) -> None:
        got.put_nowait((body, event.get_type()))

    @broker.subscriber(**mesh.topic("anything"))
    async def handle(body: Any) -> None:
        got.put_nowait(body)

    async with TestKafkaBroker(broker):
        await broker.publish(Order(number=7), mesh.subject("orders"), headers={"ce-type": "order.placed"})
        await broker.publish(None, mesh.subject("anything"))
        await broker.publish(b"bytes", mesh.subject("anything"))
    assert await got.next() == "order.placed"
    assert await got.next() == ({"shipped": 7}, "shipment.sent")
    assert [await got.next(), await got.next()] == [None, b"bytes"]


async def test_topics_stand_in_the_asyncapi_document(mesh: Mesh) -> None:
    broker = MeshBroker(mesh, logger=None)

    @broker.subscriber(**mesh.topic("order_lines"), title="orders")
    @broker.publisher(mesh.subject("shipments"), title="shipments")
    async def ship(order: Order, event: Event) -> dict[str, int]:
        return {}

    document = json.loads(AsyncAPI(broker).to_specification().to_json())
    assert {name: channel["address"] for name, channel in document["channels"].items()} == {
        "orders": f"mesh.{mesh.namespace}.event.pubsub.order__lines",
        "shipments": f"mesh.{mesh.namespace}.event.pubsub.shipments",
    }


@pytest.mark.parametrize("name", ["orders", "shop/orders.v1", "a_b.c__d", "grün", "x" * 250, "a%2Eb"])
def test_a_subject_leads_back_to_its_topic(mesh: Mesh, name: str) -> None:
    assert mesh.find(mesh.subject(name, pubsub="my_pubsub")) == Topic("my_pubsub", name)
    assert mesh.find("stock") is None
    assert mesh.find(f"mesh.{mesh.namespace}.event.a_zz") is None


@pytest.mark.parametrize(
    ("module", "other"), [("brokers.faststream.kafka", "nats"), ("brokers.faststream.nats", "aiokafka")]
)
def test_only_the_broker_that_is_used_is_loaded(module: str, other: str) -> None:
    program = f"import sys, {module}; sys.exit({other!r} in sys.modules)"
    subprocess.run([sys.executable, "-P", "-c", program], check=True, timeout=60)


@pytest.mark.parametrize("option", ["batch", "max_workers", "auto_offset_reset", "listener"])
def test_options_of_consumers_are_refused_beside_a_topic(mesh: Mesh, option: str) -> None:
    with pytest.raises(ConfigurationError, match=option):
        MeshBroker(mesh, logger=None).subscriber(**mesh.topic("A"), **{option: 2})


@pytest.mark.parametrize(
    "options",
    [
        {"security": SASLGSSAPI()},
        {"security": SASLOAuthBearer()},
        {"consumer_only": True},
    ],
)
def test_options_that_the_mesh_cannot_obey_are_refused(mesh: Mesh, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="mesh"):
        MeshBroker(mesh, logger=None, **options)
