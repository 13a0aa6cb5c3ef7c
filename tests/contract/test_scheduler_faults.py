"""What the Scheduler promises when everything ends without a word, and comes back."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

import pytest

from brokers.kafka import ending
from brokers.table_alarms.member import MAX_UNSTORED
from mesh.clock import SystemClock
from mesh.ports.alarms import AlarmClocks
from mesh.scheduling.scheduler import Schedule, Scheduler, Tick
from tests.contract.alarms import LoneTableAlarmClocks, nats_alarms
from tests.contract.kafka_tables import kafka_tables
from tests.contract.nats_server import NatsServer
from tests.servers import kafka_jars
from tests.servers.apache_kafka import ApacheKafka

NUMBER = 10_000
CONCURRENCY = 200
LIMIT = 90.0


Member = tuple[AlarmClocks, Callable[[], Awaitable[None]]]
"""Whose connection ends as by a crash of its process, before it is closed: nothing is settled or given back."""


class Broker(Protocol):
    twice: int
    """How many may be handled twice: those that are in hand, or settled and not yet stored, when everything ends."""

    def start(self) -> None: ...

    def kill(self) -> None: ...

    def remove(self) -> None: ...

    async def member(self) -> Member: ...


class Nats:
    twice = 2 * CONCURRENCY

    def __init__(self, folder: Path) -> None:
        self._server = NatsServer(folder)
        self.start, self.kill, self.remove = self._server.start, self._server.kill, self._server.kill

    async def member(self) -> Member:
        clocks = await nats_alarms([self._server.url], "restart")
        return clocks, clocks.connection.close


class Kafka:
    twice = CONCURRENCY + MAX_UNSTORED

    def __init__(self, folder: Path) -> None:
        if reason := kafka_jars.missing():
            pytest.skip(reason)
        self._server = ApacheKafka(auto_create_topics_enable="false")
        self.start, self.kill, self.remove = self._server.start, self._server.kill, self._server.remove

    async def member(self) -> Member:
        tables = await kafka_tables([self._server.address], "restart")
        return LoneTableAlarmClocks(tables, SystemClock()), tables.connection.close


BROKERS: list[Any] = [
    pytest.param(Nats, id="nats"),
    pytest.param(Kafka, id="kafka", marks=[pytest.mark.servers, pytest.mark.timeout(300)]),
]


@pytest.mark.parametrize("make", BROKERS)
async def test_of_ten_thousand_schedules_none_is_forgotten_when_everything_is_killed(
    make: Callable[[Path], Broker],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    monkeypatch.setattr(ending, "END_LIMIT", 0.1)  # clients of Kafka that are killed wait for nothing
    broker = make(tmp_path)
    broker.start()
    try:
        before, cut = await broker.member()
        scheduler = Scheduler(before.alarms("shop"), SystemClock())
        began = time.time()
        dues: dict[tuple[str, ...], float] = {}

        async def schedule(index: int) -> None:
            key = ("job", str(index))
            dues[key] = time.time() + 2 + 3 * (7 * index % NUMBER) / NUMBER
            await scheduler.schedule(key, Schedule(first=dues[key]), b"x" * 100, overwrite=True)

        for begin in range(0, NUMBER, 1000):
            await asyncio.gather(*map(schedule, range(begin, begin + 1000)))
        stored = time.time()
        # A member works for a while; then it, and the server, end without a word.
        handled: list[tuple[tuple[str, ...], float]] = []

        def handle(tick: Tick) -> None:
            handled.append((tick.key, time.time()))
            tick.done()

        await scheduler.serve("job", handle, concurrency=CONCURRENCY)
        async with asyncio.timeout(LIMIT):
            while len(handled) < NUMBER // 20:
                await asyncio.sleep(0.01)
        broker.kill()
        await cut()
        await before.close()
        by_the_first = len(handled)
        await asyncio.sleep(1.0)
        broker.start()
        back = time.time()
        after, _ = await broker.member()
        await Scheduler(after.alarms("shop"), SystemClock()).serve("job", handle, concurrency=CONCURRENCY)
        async with asyncio.timeout(LIMIT):
            while len({key for key, _ in handled}) < NUMBER:
                await asyncio.sleep(0.05)
        times = Counter(key for key, _ in handled)
        late = sorted(seen - max(dues[key], back) for key, seen in handled[by_the_first:])
        record_property("stored per second", round(NUMBER / (stored - began)))
        record_property("handled before the end", by_the_first)
        record_property("handled twice", sum(seen > 1 for seen in times.values()))
        record_property("lateness p50, max", (late[len(late) // 2], late[-1]))
        assert set(times) == set(dues)
        assert min(seen - dues[key] for key, seen in handled) >= 0
        assert sum(seen > 1 for seen in times.values()) <= broker.twice
        assert all(seen <= 2 for seen in times.values())
        assert 0 < by_the_first < NUMBER
        await after.close()
    finally:
        broker.remove()
