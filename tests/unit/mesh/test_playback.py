"""Stored events as deliveries with an end: order, attempts, bounds, and where it stands."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest

from brokers.memory import MemoryEventLog
from mesh.ports import OLDEST, Delivery, Message, Mode, Order, Start, Topic
from mesh.replay.playback import OPEN, PAGE, RELEASE_PAUSE, Playback, count
from tests.virtual_clock import VirtualClock

TOPIC = Topic("pubsub", "orders")
NO_END = Start()


class Bench:
    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.log = MemoryEventLog(self.clock)
        self.hands: list[Delivery] = []
        self.handled: list[str] = []
        self.acks = True
        self.playback: Playback
        self.running: asyncio.Task[None]

    async def publish(self, *keys: str | None, mode: Mode = Mode.BINARY) -> None:
        for number, key in enumerate(keys):
            named = {"specversion": "1.0", "id": f"{key or ''}{number}", "source": "/s", "type": "t"}
            named |= {} if key is None else {"partitionkey": key}
            if mode is Mode.BINARY:
                await self.log.publish(TOPIC, Message(mode=mode, payload=b"", attributes={**named}))
            else:
                await self.log.publish(TOPIC, Message(mode=mode, payload=msgspec.json.encode(named)))

    def handle(self, delivery: Delivery) -> None:
        if self.acks:
            self.handled.append(self.id(delivery))
            delivery.ack()
        else:
            self.hands.append(delivery)

    @staticmethod
    def id(delivery: Delivery) -> str:
        if delivery.mode is Mode.BINARY:
            return str(delivery.attributes["id"])
        return str(msgspec.json.decode(delivery.payload or b"")["id"])

    async def play(
        self,
        order: Order = Order.NONE,
        *,
        start: Start = OLDEST,
        end: Start = NO_END,
        concurrency: int = 64,
    ) -> None:
        self.playback = Playback(self.log, TOPIC, start, end, self.handle, order=order, clock=self.clock)
        self.playback.set_concurrency(concurrency)
        self.running = asyncio.ensure_future(self.playback.run())
        await self.clock.settle()

    @property
    def in_hand(self) -> list[str]:
        return [self.id(delivery) for delivery in self.hands]

    async def settle(self, how: str, event: str, *arguments: float) -> None:
        delivery = next(one for one in self.hands if self.id(one) == event)
        self.hands.remove(delivery)
        getattr(delivery, how)(*arguments)
        await self.clock.settle()


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    await bench.log.start()
    yield bench
    bench.running.cancel()
    await asyncio.gather(bench.running, return_exceptions=True)


async def test_all_over_several_pages(bench: Bench) -> None:
    await bench.publish(*[None] * (2 * PAGE + 7))
    await bench.play()
    await bench.running
    assert bench.handled == [str(number) for number in range(2 * PAGE + 7)]
    assert (bench.playback.done, bench.playback.handled, bench.playback.reached) == (True, 2 * PAGE + 7, None)


async def test_from_a_position_to_a_moment(bench: Bench) -> None:
    for _ in range(5):
        await bench.publish(None)
        await bench.clock.advance(10)
    records = (await bench.log.read(TOPIC, OLDEST, limit=10)).records
    await bench.play(start=Start(position=records[1].position), end=Start(time=records[3].time))
    await bench.running
    assert bench.playback.handled == 3
    assert await count(bench.log, TOPIC, OLDEST, Start(time=records[3].time), most=100) == (4, True)
    assert await count(bench.log, TOPIC, OLDEST, Start(position=records[2].position), most=100) == (3, True)
    assert await count(bench.log, TOPIC, OLDEST, NO_END, most=5) == (5, True)
    assert await count(bench.log, TOPIC, OLDEST, NO_END, most=4) == (4, False)


@pytest.mark.parametrize("mode", [Mode.BINARY, Mode.STRUCTURED])
async def test_keys_in_order_side_by_side(bench: Bench, mode: Mode) -> None:
    bench.acks = False
    await bench.publish("a", "a", "b", None, "b", mode=mode)
    await bench.play(Order.KEY)
    assert bench.in_hand == ["a0", "b2", "3"]
    await bench.settle("ack", "b2")
    assert bench.in_hand == ["a0", "3", "b4"]
    await bench.settle("retry", "a0", 5.0)
    assert bench.in_hand == ["3", "b4"]
    await bench.clock.advance(5)
    assert bench.in_hand == ["3", "b4", "a0"]
    await bench.settle("ack", "a0")
    assert bench.in_hand == ["3", "b4", "a1"]


async def test_one_after_another(bench: Bench) -> None:
    bench.acks = False
    await bench.publish(None, "a", None)
    await bench.play(Order.STRICT)
    for event in ("0", "a1", "2"):
        assert bench.in_hand == [event]
        await bench.settle("ack", event)
    await bench.running


async def test_attempts_are_counted_and_releases_are_not(bench: Bench) -> None:
    bench.acks = False
    await bench.publish(None)
    await bench.play()
    attempts = []
    for how, arguments, pause in (("retry", (3.0,), 3.0), ("release", (), RELEASE_PAUSE), ("retry", (0.0,), 0.0)):
        attempts.append(bench.hands[0].attempt)
        first = bench.hands[0]
        await bench.settle(how, "0", *arguments)
        first.ack()  # settled already
        await bench.clock.advance(pause)
    assert [*attempts, bench.hands[0].attempt] == [1, 2, 2, 3]
    assert not bench.playback.done


async def test_concurrency_and_what_is_read(bench: Bench) -> None:
    bench.acks = False
    await bench.publish(*[None] * (OPEN + 3 * PAGE))
    await bench.play(concurrency=3)
    assert len(bench.hands) == 3
    bench.playback.set_concurrency(5)
    assert len(bench.hands) == 5
    bench.playback.set_concurrency(0)
    await bench.settle("ack", "1")
    assert len(bench.hands) == 4
    assert OPEN - 1 <= len(bench.playback._open) < OPEN + PAGE  # and no more is read
    assert bench.playback.reached == bench.hands[0].position  # whatever was settled behind it


async def test_closing_waits_for_what_is_in_hand(bench: Bench) -> None:
    bench.acks = False
    await bench.publish(None, None, None)
    await bench.play(concurrency=2)
    closing = asyncio.ensure_future(bench.playback.close())
    await bench.clock.settle()
    await bench.settle("ack", "0")
    assert not closing.done()
    await bench.settle("release", "1")
    await closing
    assert bench.hands == []
    assert bench.playback.reached is not None


async def test_of_an_empty_topic(bench: Bench) -> None:
    await bench.play()
    await bench.running
    assert bench.playback.done
