"""FastStream services beside sidecars, on a real Kafka: what holds on NATS, too, and what differs."""

# ruff: noqa: F401, F811 -- what is imported is run

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import datetime
from itertools import count

import pytest
from cloudevents.core.v1.event import CloudEvent
from faststream.kafka import KafkaBroker
from faststream.kafka.annotations import KafkaMessage
from faststream.security import SASLPlaintext

from brokers.faststream.kafka import Event, Mesh, MeshBroker, MeshRouter
from brokers.kafka.event_log import KafkaEventLog
from mesh.errors import MeshError
from mesh.ports import Group, Message, Mode
from tests.contract.faststream_events import ATTRIBUTES, Got, Order, binary, simple, structured, topic
from tests.contract.implementations import kafka_event_log
from tests.contract.inbox import Inbox
from tests.contract.test_faststream_peers import (
    inbox,
    test_a_bad_event_is_refused,
    test_a_broker_may_start_again,
    test_a_handler_may_be_a_plain_function,
    test_a_handler_reads_and_writes_attributes,
    test_a_service_and_a_sidecar_keep_the_order_of_a_key,
    test_a_slow_handler_keeps_nobody_waiting,
    test_an_event_is_not_done_before_its_answer_is_stored,
    test_an_expired_event_is_not_handled,
    test_data_is_decoded_by_its_type,
    test_peers_pass_an_event_on,
    test_plain_data_becomes_an_event,
    test_stopping_waits_for_handlers_and_gives_back_the_rest,
    test_structured_data_without_a_type_is_json,
    test_the_handler_may_drop_and_delay,
    test_the_trace_goes_on,
    test_what_fails_comes_again_after_the_pause_of_the_mesh,
    test_what_fails_goes_to_the_dead_letter_topic,
    test_what_is_no_order_goes_to_the_dead_letter_topic,
)
from tests.servers import kafka_jars
from tests.servers.apache_kafka import ADMIN, ApacheKafka

pytestmark = pytest.mark.servers
namespaces = (f"peers{number}" for number in count(1))


@pytest.fixture(scope="module")
def server() -> Iterator[ApacheKafka]:
    if reason := kafka_jars.missing():
        pytest.skip(reason)
    server = ApacheKafka(auto_create_topics_enable="false", group_initial_rebalance_delay_ms=0)
    server.start()
    yield server
    server.remove()


@pytest.fixture
def mesh() -> Mesh:
    return Mesh("warehouse", namespace=next(namespaces))


@pytest.fixture
async def log(server: ApacheKafka, mesh: Mesh) -> AsyncIterator[KafkaEventLog]:
    """What a sidecar publishes and subscribes with."""
    log = kafka_event_log([server.address], mesh.namespace)
    await log.start()
    yield log
    await asyncio.wait_for(log.close(), 30)


@pytest.fixture
async def broker(server: ApacheKafka, mesh: Mesh) -> AsyncIterator[MeshBroker]:
    """Not started: a test adds its handlers first."""
    broker = MeshBroker(mesh, server.address, partitions=4, logger=None)
    yield broker
    await asyncio.wait_for(broker.stop(), 60)


@pytest.mark.parametrize("stored", [binary, structured])
async def test_a_handler_gets_what_a_sidecar_published(
    broker: MeshBroker, mesh: Mesh, log: KafkaEventLog, stored: Callable[..., Message]
) -> None:
    got = Got()

    @broker.subscriber(**mesh.topic("shop/orders.v1"))
    async def handle(order: Order, event: Event, message: KafkaMessage) -> None:
        got.put_nowait((order, event, message))

    await broker.start()
    await log.publish(topic("shop/orders.v1"), stored(ATTRIBUTES, b'{"number": 7}'))

    order, event, message = await got.next()
    assert order == Order(number=7)
    assert isinstance(event, CloudEvent)
    assert event.get_attributes() == ATTRIBUTES | {"time": datetime.fromisoformat(str(ATTRIBUTES["time"]))}
    assert message.headers["ce-subject"] == 'with "quotes"'
    assert message.raw_message.key == b"customer 7"


async def test_a_sidecar_gets_what_a_service_published(
    broker: MeshBroker, mesh: Mesh, log: KafkaEventLog, inbox: Inbox
) -> None:
    await log.subscribe(Group("shop", topic("A")), inbox, concurrency=8)
    await broker.start()
    event = CloudEvent({**ATTRIBUTES, "time": datetime.fromisoformat(str(ATTRIBUTES["time"]))}, {"number": 7})
    await broker.publish(event, mesh.subject("A"))
    await broker.publish(None, mesh.subject("A"))
    await broker.publish(b"", mesh.subject("A"))

    # in no order: they may be in different partitions
    came = await inbox.reaches(3)
    [first] = (delivery for delivery in came if delivery.attributes["id"] == ATTRIBUTES["id"])
    assert first.mode is Mode.BINARY
    assert first.attributes == ATTRIBUTES
    assert first.key == "customer 7"
    assert json.loads(first.payload or b"") == {"number": 7}
    assert {delivery.payload for delivery in came if delivery is not first} == {None, b""}


async def test_what_not_even_fast_stream_can_read_fails(
    server: ApacheKafka, broker: MeshBroker, mesh: Mesh, log: KafkaEventLog, inbox: Inbox
) -> None:
    @broker.subscriber(**mesh.topic("A", dead_letter="dead"))
    async def handle(order: Order) -> None:
        raise AssertionError

    await log.subscribe(Group("warehouse", topic("dead")), inbox, concurrency=8)
    await broker.start()
    headers = [("ce_specversion", b"1.0"), ("ce_id", b"\xff")]
    await log._connection.publish(mesh.subject("A"), b"not UTF-8", headers=headers)
    [letter] = await inbox.reaches(1)
    assert letter.payload == b"not UTF-8"


async def test_a_service_takes_the_place_of_a_sidecar(
    broker: MeshBroker, mesh: Mesh, log: KafkaEventLog, inbox: Inbox
) -> None:
    sidecar = await log.subscribe(Group(mesh.app_id, topic("A")), inbox, concurrency=8)
    for number in range(3):
        await log.publish(topic("A"), simple(number))
    await inbox.reaches(3)
    await sidecar.close()
    for number in range(3, 6):
        await log.publish(topic("A"), simple(number))

    got = Got()

    @broker.subscriber(**mesh.topic("A"))
    async def handle(order: Order) -> None:
        got.put_nowait(order.number)

    await broker.start()
    assert sorted([await got.next() for _ in range(3)]) == [3, 4, 5]
    await broker.stop()
    await log.publish(topic("A"), simple(6))
    await log.subscribe(Group(mesh.app_id, topic("A")), inbox, concurrency=8)
    assert [delivery.attributes["id"] for delivery in await inbox.reaches(4)][3:] == ["6"]


async def test_other_topics_and_routers_are_stock(
    broker: MeshBroker, mesh: Mesh, log: KafkaEventLog, inbox: Inbox
) -> None:
    router, got = MeshRouter(), Got()

    @router.subscriber("stock", group_id="stock", auto_offset_reset="earliest")
    async def handle(text: str) -> None:
        got.put_nowait(text)

    @router.subscriber(**mesh.topic("A"))
    async def handle_event(order: Order) -> None:
        got.put_nowait(order.number)

    broker.include_router(router)
    await broker.start()
    await broker.publish("plain", "stock", key=b"k")
    assert await got.next() == "plain"
    await log.publish(topic("A"), simple(1))
    assert await got.next() == 1


async def test_what_events_do_not_have_is_refused(broker: MeshBroker, mesh: Mesh) -> None:
    await broker.start()
    subject = mesh.subject("A")
    with pytest.raises(MeshError, match="takes no key"):
        await broker.publish({}, subject, key=b"k")
    with pytest.raises(MeshError, match="one by one"):
        await broker.publish_batch({}, {}, topic=subject)


async def test_a_topic_needs_a_mesh_broker(server: ApacheKafka, mesh: Mesh) -> None:
    stock, router = KafkaBroker(server.address, logger=None), MeshRouter()

    @router.subscriber(**mesh.topic("A"))
    async def handle(order: Order) -> None: ...

    stock.include_router(router)
    with pytest.raises(TypeError, match="membership"):
        await stock.start()
    await stock.stop()


async def test_credentials_go_with_all_connections(mesh: Mesh) -> None:
    if reason := kafka_jars.missing():
        pytest.skip(reason)
    server = ApacheKafka(users={ADMIN: "open sesame"}, group_initial_rebalance_delay_ms=0)
    await asyncio.to_thread(server.start)
    try:
        security = SASLPlaintext(username=ADMIN, password="open sesame")
        broker, got = MeshBroker(mesh, server.address, security=security, logger=None), Got()

        @broker.subscriber(**mesh.topic("A"))
        async def handle(order: Order) -> None:
            got.put_nowait(order.number)

        await broker.start()
        await broker.publish(Order(number=7), mesh.subject("A"))
        assert await got.next() == 7
        await broker.stop()
    finally:
        await asyncio.to_thread(server.remove)
