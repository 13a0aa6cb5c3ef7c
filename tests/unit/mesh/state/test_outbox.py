"""The events of a transaction, and the ways they take to their topic."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from bindings.state.in_memory import MemoryStateStore
from brokers.memory import MemoryEventLog
from brokers.memory_tables import MemoryTables
from mesh.errors import ApiError, BrokerUnavailable
from mesh.ports import Delivery, Group, Message, Mode, Topic
from mesh.ports.stores import SetState, StateStore
from mesh.pubsub import Component, PubSub
from mesh.resiliency.targets import Resiliency
from mesh.scopes import TopicScopes
from mesh.state.backbone import MeshStateStore
from mesh.state.block import State
from mesh.state.component import OutboxSettings, StateComponent
from mesh.state.forwarding import IN_HAND
from mesh.state.outbox import plan
from mesh.state.relay import GRACE
from mesh.state.requests import BadRequest, Write
from mesh.trace import TraceContext
from tests.virtual_clock import VirtualClock

SETTINGS = OutboxSettings(pubsub="pubsub", topic="orders", internal_pubsub="pubsub")
SCOPES = TopicScopes.from_metadata({"publishingScopes": "app1=orders"})
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def events(*writes: Write, trace: TraceContext | None = None) -> list[dict[str, Any]]:
    return [json.loads(record.event) for record in plan(SETTINGS, writes, "app1", trace, 0.0).records]


# The plan


def test_each_upsert_is_an_event() -> None:
    planned = plan(
        SETTINGS, [Write(key="a", value=b'{"n":1}'), Write(key="b"), Write(key="c", value=b"2")], "app1", None, 0
    )
    assert [write.key for write in planned.writes] == ["a", "b", "c"]
    first, second = [json.loads(record.event) for record in planned.records]
    assert [record.id for record in planned.records] == [first["id"], second["id"]]
    assert first["id"].startswith("outbox-")
    assert first["id"] != second["id"]
    assert {name: first[name] for name in ("source", "type", "specversion", "topic", "pubsubname", "data")} == {
        "source": "app1", "type": "com.dapr.event.sent", "specversion": "1.0", "topic": "orders",
        "pubsubname": "pubsub", "data": '{"n":1}',
    }  # fmt: skip
    assert first["datacontenttype"] == "text/plain"


@pytest.mark.parametrize(
    "more", [{"content_type": "application/json"}, {"metadata": {"contentType": "application/json"}}]
)
def test_data_is_json_where_the_item_says_so(more: dict[str, Any]) -> None:
    [event] = events(Write(key="a", value=b'{"n":1.50}', **more))
    assert (event["data"], event["datacontenttype"]) == ({"n": 1.5}, "application/json")


def test_metadata_are_attributes_except_what_says_how_to_store() -> None:
    metadata = {
        "type": "order.placed", "datacontenttype": "application/vnd.order", "custom": "x", "id": "7", "data": "8",
        "ttlInSeconds": "5", "outbox.projection": "false", "partitionKey": "p",
    }  # fmt: skip
    [event] = events(Write(key="a", value=b"1", metadata=metadata))
    assert (event["type"], event["datacontenttype"], event["custom"], event["data"]) == (
        "order.placed", "application/vnd.order", "x", "1",
    )  # fmt: skip
    assert event["id"].startswith("outbox-")
    assert not event.keys() & {"ttlInSeconds", "outbox.projection", "partitionKey", "contentType"}


def test_the_trace_of_the_request_goes_along() -> None:
    [event] = events(Write(key="a", value=b"1"), trace=TraceContext(TRACEPARENT, ""))
    assert event["traceparent"] == TRACEPARENT


def test_a_projection_is_published_and_not_stored() -> None:
    shown = Write(key="a", value=b'"shown"', metadata={"outbox.projection": "true", "lost": "x"})
    stored = Write(key="a", value=b'"stored"', metadata={"kept": "y"}, content_type="application/json")
    for writes in ([shown, stored], [stored, shown]):
        planned = plan(SETTINGS, writes, "app1", None, 0)
        assert list(planned.writes) == [stored]
        [record] = planned.records
        event = json.loads(record.event)
        assert (event["data"], event["kept"], "lost" in event) == ("shown", "y", False)


@pytest.mark.parametrize(
    ("writes", "message"),
    [
        ([Write(key="a", value=b"1", metadata={"outbox.projection": "true"})], "no other upsert .* has the key 'a'"),
        ([Write(key="a"), Write(key="a", value=b"1", metadata={"outbox.projection": "true"})], "has the key 'a'"),
        ([Write(key="a", value=b"{}", content_type="application/cloudevents+json")], "not events into events"),
    ],
)
def test_what_cannot_be_planned(writes: list[Write], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        plan(SETTINGS, writes, "app1", None, 0)


# The ways


class World:
    """One broker; each replica is a `State` of the same app."""

    def __init__(self, kind: str) -> None:
        self.clock = VirtualClock()
        self.kind = kind
        self.log = MemoryEventLog(self.clock)
        self.tables = MemoryTables(self.clock)
        self.memory = MemoryStateStore(self.clock)
        self.pubsubs = {"pubsub": Component(name="pubsub", log=self.log, scopes=SCOPES)}
        self.published: list[dict[str, Any]] = []
        self.replicas: list[tuple[State, StateComponent]] = []

    async def start(self) -> None:
        await self.log.start()
        await self.log.subscribe(Group("reader", Topic("pubsub", "orders")), self._on_event, concurrency=100)

    def _on_event(self, delivery: Delivery) -> None:
        self.published.append(json.loads(delivery.payload or b""))
        delivery.ack()

    async def replica(self, settings: OutboxSettings = SETTINGS) -> State:
        store: StateStore = self.memory
        if self.kind == "stored":
            store = MeshStateStore(self.tables, "statestore", self.clock, key_prefix="app1||")
        component = StateComponent(name="statestore", store=store, key_prefix="app1||", outbox=settings)
        state = State(
            "app1",
            {"statestore": component},
            resiliency=Resiliency(clock=self.clock),
            pubsub=PubSub("app1", self.pubsubs, self.clock),
            clock=self.clock,
            namespace="default",
        )
        state.attach(component)
        self.replicas.append((state, component))
        await self.clock.settle()
        return state

    async def transact(self, state: State, *writes: Write) -> None:
        await state.transact(state.component("statestore"), writes)
        await self.clock.settle()

    async def close(self) -> None:
        for state, component in self.replicas:
            await state.detach(component)
            if component.store is not self.memory:
                await component.store.close()
        await self.log.close()


@pytest.fixture(params=["stored", "marked"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    world = World(request.param)
    await world.start()
    yield world
    await asyncio.wait_for(world.close(), 10)


async def left_behind(world: World) -> int:
    if world.kind == "stored":
        page = await world.tables.table("app1").scan(("outbox",), limit=100)
        return len(page.entries)
    items, _ = await world.memory.list_items("outbox-", limit=100)
    return len(items)


async def test_what_is_committed_is_published_once(world: World) -> None:
    state = await world.replica()
    await world.transact(state, Write(key="a", value=b"1"), Write(key="b", value=b"2"), Write(key="c"))
    await world.clock.advance(30)
    assert sorted(event["data"] for event in world.published) == ["1", "2"]
    assert await left_behind(world) == 0
    item = await state.get(state.component("statestore"), "a")
    assert item is not None
    assert item.value == b"1"


async def test_what_is_not_committed_is_not_published(world: World) -> None:
    state = await world.replica()
    await world.transact(state, Write(key="a", value=b"1"))
    with pytest.raises(ApiError, match="etag"):
        await world.transact(state, Write(key="b", value=b"2"), Write(key="a", value=b"3", etag="4711"))
    await world.clock.advance(30)
    assert [event["data"] for event in world.published] == ["1"]


async def test_a_transaction_of_deletions_publishes_nothing(world: World) -> None:
    state = await world.replica()
    await world.transact(state, Write(key="a"))
    await world.clock.advance(30)
    assert world.published == []


async def test_two_replicas_publish_one_event_once(world: World) -> None:
    first = await world.replica()
    await world.replica()
    await world.transact(first, Write(key="a", value=b"1"))
    await world.clock.advance(60)
    assert [event["data"] for event in world.published] == ["1"]


async def test_nothing_is_stored_that_could_never_be_published(world: World) -> None:
    unknown = OutboxSettings(pubsub="nobody", topic="orders", internal_pubsub="pubsub")
    state = await world.replica(unknown)
    with pytest.raises(ApiError) as caught:
        await world.transact(state, Write(key="a", value=b"1"))
    assert caught.value.code.error_code == "ERR_PUBLISH_OUTBOX"
    assert caught.value.message == "error while publishing outbox message: pubsub nobody is not found"
    assert await state.get(state.component("statestore"), "a") is None


@pytest.mark.parametrize(
    ("topic", "message"),
    [("secret", "topic secret is not allowed for app id app1"), ("a.>", "wildcard"), ("a" * 3000, "is longer than")],
)
async def test_nothing_is_stored_for_a_topic_that_takes_no_events_of_this_app(
    world: World, topic: str, message: str
) -> None:
    state = await world.replica(OutboxSettings(pubsub="pubsub", topic=topic, internal_pubsub="pubsub"))
    with pytest.raises(ApiError, match=message) as caught:
        await world.transact(state, Write(key="a", value=b"1"))
    assert caught.value.code.error_code == "ERR_PUBLISH_OUTBOX"
    assert await state.get(state.component("statestore"), "a") is None
    assert await left_behind(world) == 0


async def test_what_a_replica_left_behind_is_published_by_another() -> None:
    world = World("stored")
    await world.start()
    gone = MeshStateStore(world.tables, "statestore", world.clock, key_prefix="app1||")
    planned = plan(SETTINGS, [Write(key="a", value=b"1")], "app1", None, 0)
    await gone.transact_with([SetState(key="app1||a", value=b"1")], planned.records)
    await world.replica()
    await world.clock.advance(GRACE - 0.1)
    assert world.published == []  # its maker may be about to
    await world.clock.advance(0.2)
    assert [event["id"] for event in world.published] == [planned.records[0].id]
    assert await left_behind(world) == 0
    await gone.close()
    await world.close()


async def test_a_relay_goes_on_until_the_broker_is_back(world: World) -> None:
    state = await world.replica()
    publish = world.log.publish
    failures = 3

    async def failing(topic: Topic, message: Any) -> None:
        nonlocal failures
        if topic.name == "orders" and failures:
            failures -= 1
            raise BrokerUnavailable("no broker")
        await publish(topic, message)

    world.log.publish = failing  # type: ignore[method-assign]
    await world.transact(state, Write(key="a", value=b"1"))
    await world.clock.advance(120)
    assert failures == 0
    assert [event["data"] for event in world.published] == ["1"]
    assert await left_behind(world) == 0


async def test_a_transaction_whose_events_have_nowhere_to_wait_leaves_nothing_running() -> None:
    world = World("marked")
    await world.start()
    state = await world.replica()
    at_once = most = 0

    async def failing(topic: Topic, message: Any) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await world.clock.sleep(1 if at_once == 1 else 2)
        at_once -= 1
        raise BrokerUnavailable("no broker")

    world.log.publish = failing  # type: ignore[method-assign]
    component = state.component("statestore")
    writes = [Write(key=str(number), value=b"1") for number in range(IN_HAND + 1)]
    transacting = asyncio.create_task(state.transact(component, writes))
    while not transacting.done():
        await world.clock.advance(1)
    with pytest.raises(ApiError, match="no broker"):
        await transacting
    assert at_once == 0
    assert most == IN_HAND
    assert await state.get(component, "0") is None
    await world.close()


async def test_conflicts_are_not_in_the_way_of_what_is_committed(world: World) -> None:
    state = await world.replica()
    component = state.component("statestore")
    for _ in range(2 * IN_HAND):
        with pytest.raises(ApiError, match="etag"):
            await state.transact(component, [Write(key="a", value=b"1", etag="4711")])
    await world.transact(state, Write(key="b", value=b"2"))
    await world.clock.advance(10)
    assert [event["data"] for event in world.published] == ["2"]
    assert await left_behind(world) == 0


async def test_events_of_others_are_not_in_the_way_of_our_own() -> None:
    world = World("stored")
    await world.start()
    first, second = await world.replica(), await world.replica()
    for number in range(2 * IN_HAND):
        await second.transact(second.component("statestore"), [Write(key=str(number), value=b"1")])
    await world.clock.settle()
    await world.transact(first, Write(key="a", value=b"2"))
    assert [event["data"] for event in world.published].count("2") == 1
    await world.clock.advance(2 * GRACE)
    assert len(world.published) == 2 * IN_HAND + 1
    assert await left_behind(world) == 0
    await world.close()


async def test_the_pubsub_component_is_exchanged(world: World) -> None:
    state = await world.replica()
    await world.transact(state, Write(key="a", value=b"1"))
    await world.clock.advance(5)
    await world.log.close()
    world.log = MemoryEventLog(world.clock)
    await world.start()
    world.pubsubs["pubsub"] = Component(name="pubsub", log=world.log)
    state.pubsub_changed("other")
    state.pubsub_changed("pubsub")
    await world.clock.settle()
    await world.transact(state, Write(key="b", value=b"2"))
    await world.clock.advance(5)
    assert [event["data"] for event in world.published] == ["1", "2"]
    assert await left_behind(world) == 0


async def test_events_without_their_transaction_are_kept_or_dropped(caplog: pytest.LogCaptureFixture) -> None:
    for discard in (True, False):
        world = World("marked")
        await world.start()
        settings = OutboxSettings(
            pubsub="pubsub", topic="orders", internal_pubsub="pubsub", discard_when_missing=discard
        )
        state = await world.replica(settings)
        [record] = plan(SETTINGS, [Write(key="a", value=b"1")], "app1", None, 0).records
        internal = Topic("pubsub", "defaultapp1ordersoutbox")
        await world.log.publish(internal, Message(mode=Mode.STRUCTURED, payload=record.event))
        await world.clock.advance(30)
        assert world.published == []
        await state.component("statestore").store.change(SetState(key=record.id, value=b"0"))  # the commit was slow
        await world.clock.advance(60)
        assert len(world.published) == (0 if discard else 1)
        await world.close()
