"""Many dead letters on a real broker: listed, filtered, sent again; and a sender that is cut off while it does so."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from itertools import count

import msgspec
import pytest

from brokers.nats.connection import Connection, Lookup, Servers
from brokers.nats.event_log import NatsEventLog
from brokers.nats.tables import NatsTables
from mesh import addressing
from mesh.clock import SystemClock
from mesh.dead_letters.inbox import Inbox
from mesh.dead_letters.redrive import Redrive, Redrives
from mesh.dead_letters.selection import Filter
from mesh.dead_letters.store import LetterStore
from mesh.delivery import Letter, Reason
from mesh.ports import Delivery, Group, Message, Mode, Order, Topic
from mesh.pubsub import Component, PubSub
from mesh.runs import Crew
from tests.contract.nats_server import NatsServer

TOPICS = [Topic("pubsub", f"orders.{number}") for number in range(4)]
ALL = Filter()
namespaces = (f"dead{number}" for number in count())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    with NatsServer(tmp_path_factory.mktemp("nats"), max_payload=64 * 1024) as server:
        yield server


class Sidecar:
    """As much of one as this is about, with a connection of its own."""

    def __init__(self, server: NatsServer, namespace: str) -> None:
        self.clock = SystemClock()
        self.connection = Connection(Lookup(lambda: Servers([server.url])), name="dead")
        self.log = NatsEventLog(self.connection, namespace=namespace)
        self.tables = NatsTables(self.connection, namespace=namespace)
        components = {"pubsub": Component(name="pubsub", log=self.log)}
        self.store = LetterStore(self.tables, "app1")
        self.inbox = Inbox(self.store, components, self.clock)
        self.redrives = Redrives(PubSub("app1", components, self.clock), self.inbox, self.tables, self.clock)
        self.crew = Crew(self.tables, "app1", self.clock)
        self.crew.works_on(self.redrives.runs, self.redrives.work)

    async def start(self) -> Sidecar:
        async with asyncio.timeout(30):
            await self.log.start()
        return self

    async def close(self) -> None:
        async with asyncio.timeout(20):
            await self.crew.close()
            await self.inbox.close()
            await self.tables.close()
            await self.log.close()

    async def over(self, run: Redrive, limit: float) -> Redrive:
        async with asyncio.timeout(limit):
            while (found := await self.redrives.runs.get("app1", run.id)) is None or not found.over:
                await asyncio.sleep(0.1)
            return found


class Arrivals:
    """What the subscriptions of the app get: how often each event, at which topic, in which trace."""

    def __init__(self) -> None:
        self.events: Counter[tuple[str, str, str]] = Counter()
        self.marks: set[tuple[str, str]] = set()

    def take(self, delivery: Delivery) -> None:
        event = msgspec.json.decode(delivery.payload or b"")
        headers = delivery.headers
        self.events[delivery.topic, event["id"], headers["traceparent"]] += 1
        assert event[addressing.REDRIVEN] == headers[addressing.REDRIVEN]
        self.marks.add((headers[addressing.REDRIVEN], headers[addressing.ONLY_FOR]))
        delivery.ack()

    async def subscribe(self, sidecar: Sidecar) -> None:
        for topic in TOPICS:
            await sidecar.log.subscribe(Group("app1", topic), self.take, concurrency=256, order=Order.NONE)

    async def number(self, expected: int, limit: float = 10) -> None:
        async with asyncio.timeout(limit):
            while self.events.total() < expected:
                await asyncio.sleep(0.05)


@pytest.fixture
async def sidecars(server: NatsServer) -> AsyncIterator[list[Sidecar]]:
    namespace = next(namespaces)
    started = [await Sidecar(server, namespace).start() for _ in range(2)]
    yield started
    for sidecar in started:
        await sidecar.close()


def trace(number: int) -> str:
    return f"00-{number + 1:032x}-00f067aa0ba902b7-01"


def expected(total: int) -> Counter[tuple[str, str, str]]:
    return Counter({(TOPICS[number % 4].name, str(number), trace(number)): 1 for number in range(total)})


async def keep(store: LetterStore, total: int) -> None:
    died = time.time() - 3600

    def letter(number: int) -> Letter:
        topic = TOPICS[number % 4]
        named = {"specversion": "1.0", "id": str(number), "source": "/shop", "type": f"t{number % 10}"}
        payload = msgspec.json.encode({**named, "data": {"number": number, "filling": "x" * 200}})
        return Letter(
            group=Group("app1", topic),
            topic=topic,
            position=str(number + 1),
            stored=died,
            message=Message(mode=Mode.STRUCTURED, payload=payload, headers={"traceparent": trace(number)}),
            reason=Reason.ATTEMPTS if number % 2 else Reason.DROPPED,
            text="the app answered 500",
            status=500,
            attempts=3,
            first_failure=died + number,
            last_failure=died + number / 10,
        )

    for start in range(0, total, 200):
        await asyncio.gather(*(store.keep(letter(number)) for number in range(start, min(total, start + 200))))


async def listed(inbox: Inbox, wanted: Filter, *, newest: bool = True) -> list[str]:
    found: list[str] = []
    cursor: str | None = None
    while True:
        page = await inbox.page(wanted, newest=newest, limit=1000, cursor=cursor)
        found += [shown.row.id for shown in page.letters]
        cursor = page.cursor
        if cursor is None:
            return found


async def all_of_it(sidecars: list[Sidecar], total: int, rate: float) -> None:
    one, other = sidecars
    await keep(one.store, total)
    assert await listed(other.inbox, ALL) == [str(number) for number in reversed(range(total))]
    assert await listed(one.inbox, Filter(topic="orders.1"), newest=False) == [str(n) for n in range(1, total, 4)]
    assert len(await listed(one.inbox, Filter(type="t3", reason=Reason.ATTEMPTS))) == total // 10
    assert await listed(one.inbox, Filter(text='"number":77,')) == ["77"]
    assert sum((await one.inbox.count(ALL)).values()) == total

    arrivals = Arrivals()
    await arrivals.subscribe(one)
    for sidecar in sidecars:
        sidecar.crew.start()
    began = time.monotonic()
    run = await one.redrives.start(ALL, rate=rate)
    done = await other.over(run, limit=3 * total / rate + 20)
    took = time.monotonic() - began
    assert (done.matched, done.sent, done.failed, done.error) == (total, total, 0, "")
    await arrivals.number(total)
    assert arrivals.events == expected(total)
    assert arrivals.marks == {(run.id, "app1")}
    assert took >= 0.9 * total / rate
    assert await listed(one.inbox, ALL) == []


async def test_letters_are_listed_filtered_and_sent_again(sidecars: list[Sidecar]) -> None:
    await all_of_it(sidecars, 600, 500)


@pytest.mark.quiet
async def test_ten_thousand_at_five_hundred_a_second(sidecars: list[Sidecar]) -> None:
    began = time.monotonic()
    await all_of_it(sidecars, 10_000, 500)
    assert time.monotonic() - began < 60


async def test_another_sidecar_goes_on_when_one_is_cut_off(sidecars: list[Sidecar]) -> None:
    one, other = sidecars
    await keep(one.store, 400)
    arrivals = Arrivals()
    await arrivals.subscribe(other)
    one.crew.start()
    run = await one.redrives.start(ALL, rate=200)
    await arrivals.number(100)
    await one.connection.close()  # as by kill -9: it can say nothing any more
    other.crew.start()
    done = await other.over(run, limit=40)
    assert done.state.value == "done"
    await arrivals.number(400)
    assert arrivals.events == expected(400)
    assert await listed(other.inbox, ALL) == []


async def test_the_largest_message_has_a_place(sidecars: list[Sidecar]) -> None:
    """One that fits the log fits the store, with all that is known of its death."""
    one, other = sidecars
    topic = TOPICS[0]
    message = Message(mode=Mode.RAW, payload=b"\xff" * (63 * 1024), headers={"traceparent": trace(1)})
    await one.log.publish(topic, message)
    died = Letter(
        group=Group("app1", topic),
        topic=topic,
        position="1",
        stored=0.0,
        message=message,
        reason=Reason.ATTEMPTS,
        text="x" * 300,
        excerpt=b"y" * 1024,
        first_failure=0.0,
        last_failure=0.0,
    )
    await one.store.keep(died)
    kept = await other.inbox.get("pubsub/orders.0/1")
    assert kept is not None and kept.letter == died and kept.parts > 1
    assert await other.inbox.remove("pubsub/orders.0/1")
