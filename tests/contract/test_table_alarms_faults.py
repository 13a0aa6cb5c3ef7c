"""What alarms over the tables of Apache Kafka promise when the server and a member are killed."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable

import pytest

from brokers.table_alarms import TableAlarmClocks
from mesh.clock import SystemClock
from mesh.ports.alarms import Alarm, Firing
from tests.contract.alarms import TTL, LoneTableAlarmClocks
from tests.contract.kafka_tables import LoneKafkaTables, kafka_tables
from tests.servers import kafka_jars
from tests.servers.apache_kafka import ApacheKafka

pytestmark = [
    pytest.mark.servers,
    pytest.mark.skipif(kafka_jars.missing() is not None, reason=kafka_jars.missing() or ""),
]

NUMBER = 3000
SPREAD = 6.0
"""Seconds over which they are due."""


async def test_none_is_forgotten_when_the_server_and_a_member_are_killed(
    record_property: Callable[[str, object], None],
) -> None:
    server = ApacheKafka(auto_create_topics_enable="false")
    server.start()
    handled: list[tuple[str, float]] = []

    def handle(firing: Firing) -> None:
        handled.append((firing.alarm.key[1], time.time()))
        firing.ack()

    async def member() -> tuple[LoneKafkaTables, TableAlarmClocks]:
        tables = await kafka_tables([server.address], "alarm-faults")
        return tables, LoneTableAlarmClocks(tables, SystemClock())

    async def until(number: int) -> None:
        async with asyncio.timeout(90):
            while len({name for name, _ in handled}) < number:
                await asyncio.sleep(0.05)

    try:
        first_tables, first = await member()
        _, second = await member()
        alarms = second.alarms("shop")
        await alarms.set(Alarm(key=("job", "0"), due=0.0))  # makes the topics
        began = time.time()
        dues = {str(n): began + 5 + SPREAD * n / NUMBER for n in range(NUMBER)} | {"0": 0.0}
        await asyncio.gather(*(alarms.set(Alarm(key=("job", name), due=due)) for name, due in dues.items()))
        record_property("set per second", round(NUMBER / (time.time() - began)))
        for clocks in (first, second):
            await clocks.alarms("shop").serve("job", handle, concurrency=200)
        await until(NUMBER // 5)
        await first_tables.connection.close()  # and nothing is said to anybody, nor stored
        before_the_end = len(handled)
        server.kill()
        await asyncio.sleep(TTL)
        server.start()
        back = time.time()
        await until(NUMBER)
        times = Counter(name for name, _ in handled)
        record_property("all fired, seconds after the server was back", round(time.time() - back, 1))
        record_property("fired before the end", before_the_end)
        record_property("fired more than once", sum(number > 1 for number in times.values()))
        assert min(seen - dues[name] for name, seen in handled) >= 0
        async with asyncio.timeout(30):
            while (await alarms.scan(("job",), limit=1)).alarms:
                await asyncio.sleep(0.1)
        await second.close()
        await first.close()
    finally:
        server.remove()


async def test_a_backlog_clears_a_thousand_a_second(record_property: Callable[[str, object], None]) -> None:
    number = 5000
    server = ApacheKafka(auto_create_topics_enable="false")
    server.start()
    try:
        clocks = LoneTableAlarmClocks(await kafka_tables([server.address], "alarm-rate"), SystemClock())
        alarms = clocks.alarms("shop")
        for begin in range(0, number, 1000):
            names = map(str, range(begin, begin + 1000))
            await asyncio.gather(*(alarms.set(Alarm(key=("job", name), due=0.0, payload=bytes(100))) for name in names))
        seen: list[float] = []

        def handle(firing: Firing) -> None:
            seen.append(time.time())
            firing.ack()

        await alarms.serve("job", handle, concurrency=200)
        async with asyncio.timeout(60):
            while len(seen) < number or (await alarms.scan(("job",), limit=1)).alarms:
                await asyncio.sleep(0.02)
        rate = number / (time.time() - seen[0])
        record_property("fired and settled per second", round(rate))
        assert len(seen) == number
        assert rate > 250  # a machine four times as slow
        await clocks.close()
    finally:
        server.remove()
