"""FastStream services beside sidecars, on a real nats-server: the same events, the same groups, the same rules."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Annotated, Any

import pytest
from cloudevents.core.v1.event import CloudEvent
from faststream import Header, Response
from faststream._internal.parser import DefaultCodec
from faststream.exceptions import NackMessage, RejectMessage
from faststream.nats import NatsBroker, NatsRouter, TestNatsBroker
from faststream.nats.annotations import NatsMessage
from faststream.nats.security import NatsToken, NatsUserPassword
from faststream.security import BaseSecurity
from faststream.specification.asyncapi import AsyncAPI

from brokers.faststream import Event, Mesh, MeshBroker, MeshMessage
from brokers.nats import jetstream
from brokers.nats.connection import Connection, Lookup, Servers
from brokers.nats.event_log import NatsEventLog
from brokers.nats.ordered import KEYED_LANES
from mesh import addressing
from mesh.delivery import Plan
from mesh.errors import BrokerError, ConfigurationError, InvalidEvent, MeshError
from mesh.event import DataForm
from mesh.ports import Delivery, Group, Message, Mode, Topic
from tests.contract.faststream_events import ATTRIBUTES, Got, Order, binary, simple, structured, topic
from tests.contract.implementations import nats_event_log
from tests.contract.inbox import Inbox
from tests.contract.nats_server import NatsServer

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
namespaces = (f"peers{number}" for number in count(1))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    with NatsServer(tmp_path_factory.mktemp("nats")) as server:
        yield server


@pytest.fixture
def mesh() -> Mesh:
    return Mesh("warehouse", namespace=next(namespaces))


@pytest.fixture
async def log(server: NatsServer, mesh: Mesh) -> AsyncIterator[NatsEventLog]:
    """What a sidecar publishes and subscribes with."""
    log = nats_event_log([server.url], mesh.namespace)
    await log.start()
    yield log
    await asyncio.wait_for(log.close(), 10)


@pytest.fixture
async def broker(server: NatsServer, mesh: Mesh) -> AsyncIterator[MeshBroker]:
    """Not started: a test adds its handlers first."""
    broker = MeshBroker(mesh, server.url, logger=None)
    yield broker
    await asyncio.wait_for(broker.stop(), 30)


@pytest.fixture
def inbox() -> Inbox:
    return Inbox(lambda delivery: delivery.ack(), asyncio.get_event_loop().time)


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
    assert event.get_datacontenttype() == "application/json"
    assert started <= event.get_time() <= datetime.now(UTC)


@pytest.mark.parametrize("stored", [binary, structured])
async def test_a_handler_gets_what_a_sidecar_published(
    broker: MeshBroker, mesh: Mesh, log: NatsEventLog, stored: Callable[..., Message]
) -> None:
    got = Got()

    @broker.subscriber(**mesh.topic("shop/orders.v1"))
    async def handle(order: Order, event: Event, message: NatsMessage) -> None:
        got.put_nowait((order, event, message))

    await broker.start()
    await log.publish(topic("shop/orders.v1"), stored(ATTRIBUTES, b'{"number": 7}'))

    order, event, message = await got.next()
    assert order == Order(number=7)
    assert isinstance(event, CloudEvent)
    moment = datetime.fromisoformat(str(ATTRIBUTES["time"]))
    assert event.get_attributes() == ATTRIBUTES | {"time": moment}
    assert event.get_data() == {"number": 7}
    assert message.body == b'{"number": 7}'
    assert message.headers["ce-subject"] == 'with "quotes"'


@pytest.mark.parametrize(
    ("content_type", "data", "expected"),
    [
        ("application/json", b"[1, 2]", [1, 2]),
        ("application/vnd.order+json", b'"text"', "text"),
        ("application/json", b"{broken", b"{broken"),
        ("text/plain", "grün".encode(), "grün"),
        ("text/plain; charset=latin-1", "grün".encode("latin-1"), "grün"),
        ("text/plain", b"\xff", b"\xff"),
        ("application/octet-stream", b"\0\xff", b"\0\xff"),
        (None, b'{"n": 1}', b'{"n": 1}'),
        ("application/json", b"", b""),
        ("application/json", None, None),
    ],
)
async def test_data_is_decoded_by_its_type(
    broker: MeshBroker, mesh: Mesh, log: NatsEventLog, content_type: str | None, data: bytes | None, expected: object
) -> None:
    got = Got()

    @broker.subscriber(**mesh.topic("A"))
    async def handle(body: Any, event: Event) -> None:
        got.put_nowait((body, event))

    await broker.start()
    attributes = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t"}
    if content_type is not None:
        attributes["datacontenttype"] = content_type
    await log.publish(topic("A"), binary(attributes, data))

    body, event = await got.next()
    assert body == event.get_data() == expected
    assert event.get_attributes() == attributes  # the SDK would add a time


async def test_structured_data_without_a_type_is_json(broker: MeshBroker, mesh: Mesh, log: NatsEventLog) -> None:
    got = Got()

    @broker.subscriber(**mesh.topic("A", concurrency=1))
    async def handle(event: Event) -> None:
        got.put_nowait(event)

    await broker.start()
    attributes = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t"}
    await log.publish(topic("A"), structured(attributes, b'{"n": 1}'))
    await log.publish(topic("A"), structured(attributes | {"datacontenttype": "image/png"}, b"\x89", DataForm.BINARY))

    assert (await got.next()).get_data() == {"n": 1}
    assert (await got.next()).get_data() == b"\x89"


@pytest.mark.parametrize("options", [{}, {"stream": "any"}])
async def test_a_sidecar_gets_what_a_service_published(
    broker: MeshBroker, mesh: Mesh, log: NatsEventLog, inbox: Inbox, options: dict[str, str]
) -> None:
    await log.subscribe(Group("other", topic("orders")), inbox, concurrency=8)
    await broker.start()
    event = CloudEvent(
        {
            "id": "öne",
            "source": "/shop",
            "type": "order.placed",
            "time": datetime(2026, 5, 1, 12, 34, 56, tzinfo=UTC),
            "datacontenttype": "application/json",
            "partitionkey": "customer 7",
            "count": 3,
        },
        {"number": 7},
    )
    await broker.publish(event, mesh.subject("orders"), **options)

    [delivery] = await inbox.reaches(1)
    assert delivery.mode is Mode.BINARY
    assert delivery.attributes == {
        "specversion": "1.0",
        "id": "öne",
        "source": "/shop",
        "type": "order.placed",
        "time": "2026-05-01T12:34:56Z",
        "datacontenttype": "application/json",
        "partitionkey": "customer 7",
        "count": "3",
    }
    assert json.loads(delivery.payload or b"") == {"number": 7}
    assert delivery.headers == {}  # nothing of FastStream's


@pytest.mark.parametrize(
    ("body", "headers", "data", "content_type"),
    [
        ({"n": 1}, {}, b'{"n":1}', "application/json"),
        ("grün", {}, "grün".encode(), "text/plain"),
        ("grün", {"ce-datacontenttype": "application/json"}, '"grün"'.encode(), "application/json"),
        (b"\xff", {"ce-datacontenttype": "image/png"}, b"\xff", "image/png"),
        (b"", {}, b"", None),
        (None, {}, None, None),
    ],
)
async def test_plain_data_becomes_an_event(
    broker: MeshBroker,
    mesh: Mesh,
    log: NatsEventLog,
    inbox: Inbox,
    body: object,
    headers: dict[str, str],
    data: bytes | None,
    content_type: str | None,
) -> None:
    await log.subscribe(Group("other", topic("A")), inbox, concurrency=8)
    await broker.start()
    await broker.publish(body, mesh.subject("A"), headers={"ce-type": "order.paid", **headers})

    [delivery] = await inbox.reaches(1)
    assert delivery.payload == data
    assert delivery.attributes.get("datacontenttype") == content_type
    assert delivery.attributes["type"] == "order.paid"


async def test_a_handler_may_be_a_plain_function(broker: MeshBroker, mesh: Mesh, log: NatsEventLog) -> None:
    got, loop = Got(), asyncio.get_running_loop()

    @broker.subscriber(**mesh.topic("A"))
    def handle(order: Order, event: Event) -> None:
        loop.call_soon_threadsafe(got.put_nowait, (order.number, event.get_id()))

    await broker.start()
    await log.publish(topic("A"), simple(7))
    assert await got.next() == (7, "7")


async def test_only_topics_have_an_event(broker: MeshBroker, mesh: Mesh) -> None:
    @broker.subscriber("plain")
    async def handle(body: str, event: Event) -> None: ...

    with pytest.raises(MeshError, match="only the topics"):
        async with TestNatsBroker(broker):
            await broker.publish("x", "plain")


async def test_a_handler_reads_and_writes_attributes(broker: MeshBroker, mesh: Mesh, log: NatsEventLog) -> None:
    got = Got()

    @broker.subscriber(**mesh.topic("A"))
    @broker.publisher(mesh.subject("B"), headers={"ce-type": "unused"})
    async def reply(order: Order, tier: Annotated[str, Header("ce-tier")]) -> Response:
        return Response({"n": order.number}, headers={"ce-type": f"{tier}.order", "ce-id": "reply"})

    @broker.subscriber(**mesh.topic("B"))
    async def handle(event: Event) -> None:
        got.put_nowait(event)

    await broker.start()
    await log.publish(topic("A"), simple(1, tier="gold"))
    event = await got.next()
    assert (event.get_type(), event.get_id(), event.get_data()) == ("gold.order", "reply", {"n": 1})


async def test_an_event_is_not_done_before_its_answer_is_stored(
    broker: MeshBroker, mesh: Mesh, log: NatsEventLog
) -> None:
    got = Got()

    @broker.subscriber(**mesh.topic("A"))
    @broker.publisher(mesh.subject("B"))
    async def reply(order: Order) -> Response:
        got.put_nowait(order.number)
        return Response("x", headers={"ce-time": "never"} if got.calls == 1 else {})

    await broker.start()
    await log.publish(topic("A"), simple(1))
    assert [await got.next(), await got.next()] == [1, 1]
    await settled(log, mesh, "A")


async def test_the_trace_goes_on(broker: MeshBroker, mesh: Mesh, log: NatsEventLog, inbox: Inbox) -> None:
    @broker.subscriber(**mesh.topic("A"))
    @broker.publisher(mesh.subject("B"))
    async def reply(number: dict[str, int]) -> str:
        await broker.publish("aside", mesh.subject("C"))
        return "reply"

    for name in ("B", "C"):
        await log.subscribe(Group("other", topic(name)), inbox, concurrency=8)
    await broker.start()
    hop = {"traceparent": TRACEPARENT, "tracestate": "vendor=1", "baggage": "user=7"}
    attributes = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t", "datacontenttype": "application/json"}
    await log.publish(topic("A"), binary(attributes, b'{"n": 1}', headers=hop))

    for delivery in await inbox.reaches(2):
        assert delivery.headers == hop
        assert delivery.attributes["traceparent"] == TRACEPARENT


async def test_what_fails_comes_again_after_the_pause_of_the_mesh(
    broker: MeshBroker, mesh: Mesh, log: NatsEventLog, monkeypatch: pytest.MonkeyPatch
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
    await got.nothing_more()


@pytest.mark.parametrize("reason", [ValueError("broken"), RejectMessage()])
async def test_what_fails_goes_to_the_dead_letter_topic(
    broker: MeshBroker, mesh: Mesh, log: NatsEventLog, inbox: Inbox, reason: Exception
) -> None:
    @broker.subscriber(**mesh.topic("A", dead_letter="dead"))
    async def handle(order: Order) -> None:
        raise reason

    await log.subscribe(Group("warehouse", topic("dead")), inbox, concurrency=8)
    await broker.start()
    letter = simple(1, partitionkey="k")
    await log.publish(topic("A"), letter)

    [delivery] = await inbox.reaches(1)
    assert (delivery.attributes, delivery.payload) == (letter.attributes, letter.payload)
    await settled(log, mesh, "A")


async def test_what_is_no_order_goes_to_the_dead_letter_topic(
    broker: MeshBroker, mesh: Mesh, log: NatsEventLog, inbox: Inbox
) -> None:
    @broker.subscriber(**mesh.topic("A", dead_letter="dead"))
    async def handle(order: Order) -> None:
        raise AssertionError

    await log.subscribe(Group("warehouse", topic("dead")), inbox, concurrency=8)
    await broker.start()
    letters = [
        binary(simple(1).attributes, b'{"number": "seven"}'),
        Message(mode=Mode.RAW, payload=b"no event", content_type="text/plain"),
        binary({"specversion": "1.0", "id": "1"}, b"no source, no type"),
    ]
    for letter in letters:
        await log.publish(topic("A"), letter)

    deliveries = await inbox.reaches(3)
    assert {delivery.payload: delivery.mode for delivery in deliveries} == {
        b'{"number": "seven"}': Mode.BINARY,
        b"no event": Mode.RAW,
        b"no source, no type": Mode.RAW,
    }


async def test_the_handler_may_drop_and_delay(
    broker: MeshBroker, mesh: Mesh, log: NatsEventLog, monkeypatch: pytest.MonkeyPatch
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
    await got.nothing_more(0.1)


async def test_an_expired_event_is_not_handled(broker: MeshBroker, mesh: Mesh, log: NatsEventLog) -> None:
    got = Got()

    @broker.subscriber(**mesh.topic("A"))
    async def handle(order: Order) -> None:
        got.put_nowait(order.number)

    await broker.start()
    await log.publish(topic("A"), simple(1, expirytime="2020-01-01T00:00:00Z"))
    await log.publish(topic("A"), simple(2, expirytime="2999-01-01T00:00:00Z"))
    assert await got.next() == 2
    await settled(log, mesh, "A")


async def settled(log: NatsEventLog, mesh: Mesh, name: str) -> None:
    """Returns when the group has nothing left to handle."""
    async with asyncio.timeout(30):
        while await log.backlog(Group(mesh.app_id, topic(name))) != (0, 0):
            await asyncio.sleep(0.01)


async def test_a_service_takes_the_place_of_a_sidecar(
    server: NatsServer, broker: MeshBroker, mesh: Mesh, log: NatsEventLog, inbox: Inbox
) -> None:
    sidecar = await log.subscribe(Group(mesh.app_id, topic("A")), inbox, concurrency=8)
    for number in range(3):
        await log.publish(topic("A"), simple(number, **({"partitionkey": "k"} if number else {})))
    await inbox.reaches(3)
    await sidecar.close()
    before = [await config(log, mesh, lane) for lane in ("u", *KEYED_LANES)]
    for number in range(3, 6):
        await log.publish(topic("A"), simple(number, **({"partitionkey": "k"} if number > 3 else {})))

    got = Got()

    @broker.subscriber(**mesh.topic("A"))
    async def handle(order: Order) -> None:
        got.put_nowait(order.number)

    await broker.start()
    assert sorted([await got.next() for _ in range(3)]) == [3, 4, 5]
    await got.nothing_more()
    assert [await config(log, mesh, lane) for lane in ("u", *KEYED_LANES)] == before

    await broker.stop()
    await log.publish(topic("A"), simple(6))
    await log.subscribe(Group(mesh.app_id, topic("A")), inbox, concurrency=8)
    assert [delivery.attributes["id"] for delivery in await inbox.reaches(4)][3:] == ["6"]


async def config(log: NatsEventLog, mesh: Mesh, lane: str) -> Any:
    stream = addressing.event_stream(mesh.prefix, mesh.namespace)
    durable = addressing.durable(Group(mesh.app_id, topic("A")), lane)
    return (await jetstream.call(log._connection, f"CONSUMER.INFO.{stream}.{durable}"))["config"]


async def test_replicas_share_the_events(server: NatsServer, mesh: Mesh, log: NatsEventLog) -> None:
    got = Got()
    brokers = [MeshBroker(mesh, server.url, logger=None) for _ in range(2)]
    for broker in brokers:

        @broker.subscriber(**mesh.topic("A", concurrency=2))
        async def handle(order: Order) -> None:
            got.put_nowait(order.number)
            await asyncio.sleep(0.01)

        await broker.start()
    await asyncio.gather(*(log.publish(topic("A"), simple(number)) for number in range(40)))
    seen = [await got.next() for _ in range(40)]
    assert sorted(seen) == list(range(40))
    await got.nothing_more()
    for broker in brokers:
        await broker.stop()


async def test_a_service_and_a_sidecar_keep_the_order_of_a_key(
    broker: MeshBroker, mesh: Mesh, log: NatsEventLog
) -> None:
    handled: dict[str, list[int]] = defaultdict(list)

    def note(key: str, number: int) -> None:
        handled[key].append(number)

    def take(delivery: Delivery) -> None:
        note(str(delivery.attributes["partitionkey"]), int(str(delivery.attributes["id"])))
        delivery.ack()

    @broker.subscriber(**mesh.topic("A"))
    async def handle(order: Order, event: Event) -> None:
        await asyncio.sleep(0.001 * (order.number % 3))
        note(event.get_extension("partitionkey"), order.number)

    await log.subscribe(Group(mesh.app_id, topic("A")), take, concurrency=8)
    await broker.start()
    keys = [f"key-{number}" for number in range(10)]
    for number in range(20):
        await asyncio.gather(*(log.publish(topic("A"), simple(number, partitionkey=key)) for key in keys))
    async with asyncio.timeout(30):
        while sum(map(len, handled.values())) < 200:
            await asyncio.sleep(0.01)
    for key in keys:
        assert list(dict.fromkeys(handled[key])) == list(range(20))


def test_an_order_that_is_none_is_refused(mesh: Mesh) -> None:
    with pytest.raises(ConfigurationError, match="order must be one of none, key, strict"):
        mesh.topic("A", order="keys")  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{}, {"concurrency": 2}])
async def test_a_slow_handler_keeps_nobody_waiting(
    broker: MeshBroker, mesh: Mesh, log: NatsEventLog, options: dict[str, int]
) -> None:
    got, release = Got(), asyncio.Event()

    @broker.subscriber(**mesh.topic("A", **options))
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


async def test_stopping_waits_for_handlers_and_gives_back_the_rest(
    server: NatsServer, broker: MeshBroker, mesh: Mesh, log: NatsEventLog, inbox: Inbox
) -> None:
    got, started = Got(), asyncio.Event()

    @broker.subscriber(**mesh.topic("A", concurrency=1))
    async def handle(order: Order) -> None:
        started.set()
        await asyncio.sleep(0.2)
        got.put_nowait(order.number)

    await broker.start()
    for number in range(4):
        await log.publish(topic("A"), simple(number, **({"partitionkey": "k"} if number % 2 else {})))
    await started.wait()
    await asyncio.wait_for(broker.stop(), 30)
    assert [got.get_nowait() for _ in range(got.qsize())] == [0]

    await log.subscribe(Group(mesh.app_id, topic("A")), inbox, concurrency=8)
    rest = await inbox.reaches(3, within=30)
    assert sorted(str(delivery.attributes["id"]) for delivery in rest) == ["1", "2", "3"]


async def test_a_handler_that_does_not_end_is_cancelled(
    server: NatsServer, mesh: Mesh, log: NatsEventLog, inbox: Inbox
) -> None:
    broker = MeshBroker(mesh, server.url, logger=None, graceful_timeout=0.1)
    started, cancelled = asyncio.Event(), asyncio.Event()

    @broker.subscriber(**mesh.topic("A", concurrency=1))
    async def handle(order: Order) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    await broker.start()
    await log.publish(topic("A"), simple(1))
    await log.publish(topic("A"), simple(2, partitionkey="k"))
    await started.wait()
    async with asyncio.timeout(30):
        while await log.backlog(Group(mesh.app_id, topic("A"))) != (0, 2):
            await asyncio.sleep(0.01)
    await asyncio.wait_for(broker.stop(), 30)
    assert cancelled.is_set()
    await log.subscribe(Group(mesh.app_id, topic("A")), inbox, concurrency=8)
    await inbox.reaches(2, within=30)


async def test_a_restarted_server_loses_nothing(tmp_path: Path, mesh: Mesh) -> None:
    got = Got()
    with NatsServer(tmp_path / "own") as own:
        broker = MeshBroker(mesh, own.url, logger=None, reconnect_time_wait=0)

        @broker.subscriber(**mesh.topic("A"))
        async def handle(order: Order) -> None:
            got.put_nowait(order.number)

        await broker.start()
        await broker.publish(Order(number=1), mesh.subject("A"))
        assert await got.next() == 1
        own.kill()
        publishing = asyncio.create_task(broker.publish(Order(number=2), mesh.subject("A")))
        own.start()
        await publishing
        assert await got.next() == 2
        await broker.stop()


async def test_a_broker_may_start_again(broker: MeshBroker, mesh: Mesh, log: NatsEventLog) -> None:
    got = Got()

    @broker.subscriber(**mesh.topic("A"))
    async def handle(order: Order) -> None:
        got.put_nowait(order.number)

    await broker.start()
    await broker.stop()
    await log.publish(topic("A"), simple(1))
    with pytest.raises(MeshError, match="start it"):
        await broker.publish("x", mesh.subject("A"))
    await broker.start()
    assert await got.next() == 1


@pytest.mark.parametrize("authorization", [{"token": "s3cret"}, {"user": "me", "password": "s3cret"}])
async def test_credentials_go_with_both_connections(tmp_path: Path, mesh: Mesh, authorization: dict[str, str]) -> None:
    got = Got()
    with NatsServer(tmp_path / "own", authorization=authorization) as own:
        if "token" in authorization:
            broker = MeshBroker(mesh, own.url, security=NatsToken("s3cret"), logger=None)
        else:
            broker = MeshBroker(mesh, own.url.replace("://", "://me:s3cret@"), logger=None)

        @broker.subscriber(**mesh.topic("A"))
        async def handle(order: Order) -> None:
            got.put_nowait(order.number)

        await broker.start()
        await broker.publish(Order(number=1), mesh.subject("A"))
        assert await got.next() == 1
        await broker.stop()


def test_options_that_the_mesh_cannot_obey_are_refused(mesh: Mesh) -> None:
    with pytest.raises(ConfigurationError, match="the option user:"):
        MeshBroker(mesh, security=NatsUserPassword("me", "s3cret"))
    with pytest.raises(ConfigurationError, match="the option tls:"):
        MeshBroker(mesh, security=BaseSecurity(ssl_context=ssl.create_default_context()))
    with pytest.raises(ConfigurationError, match="no codec"):
        MeshBroker(mesh, codec=DefaultCodec())


async def test_the_id_that_a_caller_gave_is_stored_once(
    broker: MeshBroker, mesh: Mesh, log: NatsEventLog, inbox: Inbox
) -> None:
    await log.subscribe(Group("other", topic("A")), inbox, concurrency=8)
    await broker.start()
    for number in (1, 1, 2):
        await broker.publish("x", mesh.subject("A"), headers={"ce-id": str(number)})
    assert [delivery.attributes["id"] for delivery in await inbox.reaches(2)] == ["1", "2"]


async def test_publishing_is_acknowledged_or_fails(broker: MeshBroker, mesh: Mesh, log: NatsEventLog) -> None:
    publisher = broker.publisher(mesh.subject("A"))
    await broker.start()
    stream = addressing.event_stream(mesh.prefix, mesh.namespace)
    found = (await jetstream.call(log._connection, f"STREAM.INFO.{stream}"))["config"]
    await jetstream.call(log._connection, f"STREAM.UPDATE.{stream}", found | {"max_msg_size": 100})
    with pytest.raises(BrokerError, match="size"):
        await broker.publish("x" * 200, mesh.subject("A"))
    with pytest.raises(BrokerError, match="size"):
        await publisher.publish("x" * 200)


@pytest.mark.parametrize(
    ("body", "options", "message"),
    [
        ("x", {"headers": {"ce-id": ""}}, "id: must not be empty"),
        ("x", {"headers": {"ce-time": "now"}}, "time: must be an RFC 3339 timestamp"),
        ("x", {"headers": {"ce-Bad-Name": "x"}}, "bad-name: an attribute name consists"),
        ("x", {"headers": {"Nats-Rollup": "all"}}, "no header nats-rollup"),
        ("x", {"reply_to": "somewhere"}, "no reply"),
        (CloudEvent({"type": "t", "source": "/s", "weight": 1.5}), {}, "weight: must be a string"),
    ],
)
async def test_a_bad_event_is_refused(
    broker: MeshBroker, mesh: Mesh, log: NatsEventLog, inbox: Inbox, body: Any, options: dict[str, Any], message: str
) -> None:
    await log.subscribe(Group("other", topic("A")), inbox, concurrency=8)
    await broker.start()
    with pytest.raises(MeshError, match=message):
        await broker.publish(body, mesh.subject("A"), **options)
    await broker.publish("last", mesh.subject("A"))
    assert [delivery.payload for delivery in await inbox.reaches(1)] == [b"last"]


async def test_an_event_is_not_a_request(broker: MeshBroker, mesh: Mesh) -> None:
    await broker.start()
    with pytest.raises(MeshError, match="no reply"):
        await broker.request("x", mesh.subject("A"))


async def test_other_subjects_are_stock(broker: MeshBroker, mesh: Mesh) -> None:
    got = Got()

    @broker.subscriber("plain.core")
    async def core(body: str, message: NatsMessage) -> str:
        got.put_nowait((body, message))
        return "answer"

    @broker.subscriber("plain.stream", stream="PLAIN")
    async def stream(body: str) -> None:
        got.put_nowait(body)

    await broker.start()
    answer = await broker.request("question", "plain.core")
    assert answer.body == b"answer"
    body, message = await got.next()
    assert body == "question" and not isinstance(message, MeshMessage)
    acknowledged = await broker.publish("stored", "plain.stream", stream="PLAIN")
    assert acknowledged is not None and acknowledged.stream == "PLAIN"
    assert await got.next() == "stored"


async def test_routers_take_topics(broker: MeshBroker, mesh: Mesh, log: NatsEventLog) -> None:
    got, router = Got(), NatsRouter()

    @router.subscriber(**mesh.topic("A"))
    async def handle(order: Order) -> None:
        got.put_nowait(order.number)

    broker.include_router(router)
    await broker.start()
    await log.publish(topic("A"), simple(1))
    assert await got.next() == 1


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

    async with TestNatsBroker(broker):
        await broker.publish(Order(number=7), mesh.subject("orders"), headers={"ce-type": "order.placed"})
    assert await got.next() == "order.placed"
    assert await got.next() == ({"shipped": 7}, "shipment.sent")


async def test_topics_stand_in_the_asyncapi_document(broker: MeshBroker, mesh: Mesh) -> None:
    @broker.subscriber(**mesh.topic("orders"), title="orders")
    @broker.publisher(mesh.subject("shipments"), title="shipments")
    async def ship(order: Order, event: Event) -> dict[str, int]:
        return {}

    document = json.loads(AsyncAPI(broker).to_specification().to_json())
    assert {name: channel["address"] for name, channel in document["channels"].items()} == {
        "orders": f"mesh.{mesh.namespace}.event.pubsub.orders.*",
        "shipments": f"mesh.{mesh.namespace}.event.pubsub.shipments.u",
    }
    assert document["components"]["schemas"]["Order"]["required"] == ["number"]


async def test_a_topic_needs_a_mesh_broker(server: NatsServer, mesh: Mesh, log: NatsEventLog) -> None:
    stock = NatsBroker(server.url, logger=None)

    @stock.subscriber(**mesh.topic("A"))
    async def handle(order: Order) -> None: ...

    with pytest.raises(ConfigurationError, match="MeshBroker"):
        await stock.start()
    await stock.stop()


async def test_a_stream_that_cannot_serve_is_refused(server: NatsServer) -> None:
    connection = Connection(Lookup(lambda: Servers([server.url])), name="operator")
    await connection.start()
    stream = {"name": "mesh-taken-events", "subjects": ["mesh.taken.event.>"], "allow_rollup_hdrs": True}
    await jetstream.call(connection, "STREAM.CREATE.mesh-taken-events", stream)
    broker = MeshBroker(Mesh("warehouse", namespace="taken"), server.url, logger=None)
    with pytest.raises(ConfigurationError, match="allow_rollup_hdrs"):
        await broker.start()
    await broker.stop()
    await connection.close()


@pytest.mark.parametrize("name", ["", "a.b", "a*", "ö", "x" * 65])
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="letters, digits"):
        Mesh(name)
    with pytest.raises(ConfigurationError, match="namespace"):
        Mesh("app", namespace=name)


def test_bad_options_are_refused(mesh: Mesh) -> None:
    for name in ("", "*", "a.>", "a\nb", "x" * 257):
        with pytest.raises(addressing.InvalidTopic):
            mesh.topic(name)
        with pytest.raises(addressing.InvalidTopic):
            mesh.subject(name)
        with pytest.raises(addressing.InvalidTopic):
            mesh.topic("A", dead_letter=name)
    with pytest.raises(ConfigurationError, match="concurrency"):
        mesh.topic("A", concurrency=0)


@pytest.mark.parametrize("name", ["orders", "shop/orders.v1", "a..b", ".", "%", "ö ~*"])
def test_a_subject_leads_back_to_its_topic(mesh: Mesh, name: str) -> None:
    assert mesh.find(mesh.subject(name, pubsub="my.pubsub")) == Topic("my.pubsub", name)
    assert Mesh("warehouse", namespace="other").find(mesh.subject(name)) is None


async def test_a_leap_second_and_a_year_beyond_datetime(broker: MeshBroker, mesh: Mesh, log: NatsEventLog) -> None:
    got = Got()

    @broker.subscriber(**mesh.topic("A"))
    async def handle(message: NatsMessage) -> None:
        assert isinstance(message, MeshMessage)
        try:
            got.put_nowait(message.event.get_time())
        except InvalidEvent as error:
            got.put_nowait(str(error))

    await broker.start()
    await log.publish(topic("A"), simple(1, time="2016-12-31t23:59:60z"))
    assert await got.next() == datetime(2017, 1, 1, tzinfo=UTC)
    await log.publish(topic("A"), simple(2, time="0000-01-01T00:00:00Z"))
    assert "years 1 to 9999" in await got.next()
