"""FastStream services beside sidecars, on a real Kafka: what differs from NATS (see test_faststream_peers)."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from itertools import count
from typing import Any

import pytest
from cloudevents.core.v1.event import CloudEvent
from faststream.exceptions import NackMessage, RejectMessage
from faststream.kafka import KafkaBroker, TestKafkaBroker
from faststream.kafka.annotations import KafkaMessage
from faststream.security import SASLGSSAPI, SASLOAuthBearer, SASLPlaintext
from faststream.specification.asyncapi import AsyncAPI

from brokers.faststream.kafka import Event, Mesh, MeshBroker, MeshRouter
from brokers.kafka.event_log import KafkaEventLog
from mesh.delivery import Plan
from mesh.errors import ConfigurationError, InvalidEvent, MeshError
from mesh.ports import Delivery, Group, Message, Mode, Topic
from tests.contract.faststream_events import ATTRIBUTES, Got, Order, binary, simple, structured, topic
from tests.contract.implementations import kafka_event_log
from tests.contract.inbox import Inbox
from tests.servers import kafka_jars
from tests.servers.apache_kafka import ADMIN, ApacheKafka

on_a_server = pytest.mark.servers
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


@pytest.fixture
def inbox() -> Inbox:
    return Inbox(lambda delivery: delivery.ack(), asyncio.get_event_loop().time)


async def settled(log: KafkaEventLog, mesh: Mesh, name: str) -> None:
    async with asyncio.timeout(30):
        while await log.backlog(Group(mesh.app_id, topic(name))) != (0, 0):
            await asyncio.sleep(0.05)


@on_a_server
async def test_peers_pass_an_event_on(broker: MeshBroker, mesh: Mesh) -> None:
    got = Got()

    @broker.subscriber(**mesh.topic("orders"))
    @broker.publisher(mesh.subject("shipments"), headers={"ce-type": "shipment.sent"})
    async def ship(order: Order) -> dict[str, int]:
        return {"shipped": order.number}

    @broker.subscriber(**mesh.topic("shipments"))
    async def shipped(body: dict[str, int], event: Event) -> None:
        got.put_nowait((body, event))

    await broker.start()
    started = datetime.now(UTC).replace(microsecond=0)
    await broker.publish(Order(number=7), mesh.subject("orders"))

    body, event = await got.next()
    assert body == event.get_data() == {"shipped": 7}
    assert event.get_type() == "shipment.sent"
    assert event.get_source() == "warehouse"
    assert started <= event.get_time() <= datetime.now(UTC)


@on_a_server
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


@on_a_server
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


@on_a_server
async def test_what_fails_comes_again_after_the_pause_of_the_mesh(
    broker: MeshBroker, mesh: Mesh, log: KafkaEventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    got, times, pauses = Got(), [], {1: 0.2, 2: 0.4}
    monkeypatch.setattr(Plan, "pause", lambda plan, attempt: pauses[attempt])

    @broker.subscriber(**mesh.topic("A"))
    async def handle(order: Order) -> None:
        times.append(asyncio.get_running_loop().time())
        if len(times) < 3:
            raise ValueError("not yet")
        got.put_nowait(order)

    await broker.start()
    await log.publish(topic("A"), simple(1))
    assert await got.next() == Order(number=1)
    first, second, third = times
    assert second - first >= 0.2
    assert third - second >= 0.4
    await settled(log, mesh, "A")


@on_a_server
async def test_what_is_no_order_goes_to_the_dead_letter_topic(
    broker: MeshBroker, mesh: Mesh, log: KafkaEventLog, inbox: Inbox
) -> None:
    @broker.subscriber(**mesh.topic("A", dead_letter="dead"))
    async def handle(order: Order) -> None:
        if order.number:
            raise RejectMessage
        raise ValueError("broken")

    await log.subscribe(Group("warehouse", topic("dead")), inbox, concurrency=8)
    await broker.start()
    letters = [
        binary(simple(1).attributes, b'{"number": "seven"}'),
        Message(mode=Mode.RAW, payload=b"no event", content_type="text/plain"),
        binary({"specversion": "1.0", "id": "1"}, b"no source, no type"),
        simple(0),
        simple(1),
    ]
    for letter in letters:
        await log.publish(topic("A"), letter)

    deliveries = await inbox.reaches(5)
    assert {delivery.payload: delivery.mode for delivery in deliveries} == {
        b'{"number": "seven"}': Mode.BINARY,
        b"no event": Mode.RAW,
        b"no source, no type": Mode.RAW,
        b'{"number": 0}': Mode.BINARY,
        b'{"number": 1}': Mode.BINARY,
    }
    await settled(log, mesh, "A")


@on_a_server
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


@on_a_server
async def test_the_handler_may_drop_and_delay(
    broker: MeshBroker, mesh: Mesh, log: KafkaEventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Plan, "pause", lambda plan, attempt: 60.0)  # longer than `next` waits
    got = Got()

    @broker.subscriber(**mesh.topic("A"))
    async def handle(order: Order) -> None:
        got.put_nowait((order.number, asyncio.get_running_loop().time()))
        if order.number == 1:
            raise RejectMessage
        if got.calls == 2:
            raise NackMessage(delay=0.3)

    await broker.start()
    await log.publish(topic("A"), simple(1))
    assert (await got.next())[0] == 1
    await settled(log, mesh, "A")
    await log.publish(topic("A"), simple(2))
    (_, first), (_, second) = await got.next(), await got.next()
    assert second - first >= 0.3
    await settled(log, mesh, "A")


@on_a_server
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


@on_a_server
async def test_a_service_and_a_sidecar_keep_the_order_of_a_key(
    broker: MeshBroker, mesh: Mesh, log: KafkaEventLog
) -> None:
    handled: dict[str, list[int]] = defaultdict(list)

    def take(delivery: Delivery) -> None:
        handled[str(delivery.attributes["partitionkey"])].append(int(str(delivery.attributes["id"])))
        delivery.ack()

    @broker.subscriber(**mesh.topic("A"))
    async def handle(order: Order, event: Event) -> None:
        await asyncio.sleep(0.001 * (order.number % 3))
        handled[event.get_extension("partitionkey")].append(order.number)

    await log.subscribe(Group(mesh.app_id, topic("A")), take, concurrency=8)
    await broker.start()
    keys = [f"key-{number}" for number in range(10)]
    for number in range(20):
        await asyncio.gather(*(log.publish(topic("A"), simple(number, partitionkey=key)) for key in keys))
    async with asyncio.timeout(60):
        while sum(map(len, handled.values())) < 200:
            await asyncio.sleep(0.01)
    for key in keys:
        assert list(dict.fromkeys(handled[key])) == list(range(20))


@on_a_server
async def test_a_slow_handler_keeps_nobody_waiting(broker: MeshBroker, mesh: Mesh, log: KafkaEventLog) -> None:
    got, release = Got(), asyncio.Event()

    @broker.subscriber(**mesh.topic("A"))
    async def handle(order: Order) -> None:
        if order.number == 0:
            await release.wait()
        got.put_nowait(order.number)

    await broker.start()
    for number in range(20):
        await log.publish(topic("A"), simple(number))
    assert sorted([await got.next() for _ in range(19)]) == list(range(1, 20))
    release.set()
    assert await got.next() == 0


@on_a_server
async def test_stopping_waits_for_handlers_and_gives_back_the_rest(
    broker: MeshBroker, mesh: Mesh, log: KafkaEventLog, inbox: Inbox
) -> None:
    got, started = Got(), asyncio.Event()

    @broker.subscriber(**mesh.topic("A", concurrency=1))
    async def handle(order: Order) -> None:
        started.set()
        await asyncio.sleep(0.2)
        got.put_nowait(order.number)

    await broker.start()
    for number in range(4):
        await log.publish(topic("A"), simple(number))
    await started.wait()
    await asyncio.wait_for(broker.stop(), 30)
    assert [got.get_nowait() for _ in range(got.qsize())] == [0]

    await log.subscribe(Group(mesh.app_id, topic("A")), inbox, concurrency=8)
    rest = await inbox.reaches(3, within=30)
    assert sorted(str(delivery.attributes["id"]) for delivery in rest) == ["1", "2", "3"]


@on_a_server
async def test_a_broker_may_start_again(broker: MeshBroker, mesh: Mesh, log: KafkaEventLog) -> None:
    got = Got()

    @broker.subscriber(**mesh.topic("A"))
    async def handle(order: Order) -> None:
        got.put_nowait(order.number)

    for number in range(2):
        await broker.start()
        await log.publish(topic("A"), simple(number))
        assert await got.next() == number
        await broker.stop()


@on_a_server
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


@on_a_server
async def test_a_bad_event_is_refused(broker: MeshBroker, mesh: Mesh) -> None:
    await broker.start()
    subject = mesh.subject("A")
    with pytest.raises(InvalidEvent):
        await broker.publish({}, subject, headers={"ce-time": "yesterday"})
    with pytest.raises(MeshError, match="no header"):
        await broker.publish({}, subject, headers={"x-mine": "1"})
    with pytest.raises(MeshError, match="takes no key"):
        await broker.publish({}, subject, key=b"k")
    with pytest.raises(MeshError, match="one by one"):
        await broker.publish_batch({}, {}, topic=subject)


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


@on_a_server
async def test_a_topic_needs_a_mesh_broker(server: ApacheKafka, mesh: Mesh) -> None:
    stock, router = KafkaBroker(server.address, logger=None), MeshRouter()

    @router.subscriber(**mesh.topic("A"))
    async def handle(order: Order) -> None: ...

    stock.include_router(router)
    with pytest.raises(TypeError, match="membership"):
        await stock.start()
    await stock.stop()


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


@on_a_server
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
