"""Order per key, and strict order, over replicas that are killed, stopped, sent away and added under load."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest

from brokers.nats.connection import Connection, Lookup, Servers
from brokers.nats.event_log import NatsEventLog
from brokers.nats.tables import NatsTables
from mesh.ports import Message, Mode, Order
from tests.chaos.order_replica import GROUP, LEASE_TTL
from tests.contract.nats_server import NatsServer

ROOT = Path(__file__).parents[2]
KEYS = 200
EVENTS = int(os.environ.get("ORDER_EVENTS", "6000"))
LOAD = 12.0
"""Seconds over which the events are published."""
ARRIVAL_LIMIT = 30.0
"""Seconds from the last event in which everything must have been handled."""

pytestmark = pytest.mark.timeout(90)


class Replicas:
    """Processes of one group, and the one file in which all of them note what they have handled."""

    def __init__(self, url: str, order: Order, file: Path) -> None:
        self._url = url
        self._order = order
        self._file = file
        self._file.touch()
        self.running: list[asyncio.subprocess.Process] = []
        self._started = 0

    async def add(self) -> None:
        self._started += 1
        arguments = [self._url, "chaos", self._order.value, str(self._file), str(self._started)]
        self.running.append(
            await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", "tests.chaos.order_replica", *arguments,
                cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
            )
        )  # fmt: skip

    async def kill(self) -> None:
        """The one that has been there for the longest time."""
        process = self.running.pop(0)
        process.kill()
        await process.wait()

    async def leave(self) -> None:
        process = self.running.pop(0)
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 20) == 0

    async def end(self) -> None:
        for process in self.running:
            process.kill()
            await process.wait()

    @property
    def handled(self) -> list[str]:
        return self._file.read_text().split()

    async def have_handled(self, number: int, within: float) -> list[str]:
        """What was handled, repeats included, once it is so many different events."""
        limit = time.monotonic() + within
        while len(set(handled := self.handled)) < number and time.monotonic() < limit:
            await asyncio.sleep(0.1)
        return handled


def by_key(events: Iterable[str]) -> dict[str, list[int]]:
    """The numbers of each key in the order of their first occurrence."""
    found: dict[str, dict[int, None]] = defaultdict(dict)
    for event in events:
        key, number = event.split(":")
        found[key][int(number)] = None
    return {key: list(numbers) for key, numbers in found.items()}


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    with NatsServer(tmp_path / "nats") as server:
        yield server


@pytest.fixture
async def log(server: NatsServer) -> AsyncIterator[NatsEventLog]:
    connection = Connection(Lookup(lambda: Servers([server.url])), name="publisher")
    log = NatsEventLog(connection, namespace="chaos", tables=NatsTables(connection, namespace="chaos"))
    await log.start()
    yield log
    await log.close()


async def publish(log: NatsEventLog, keys: int, events: int, seconds: float) -> list[str]:
    """In rounds of one event for each key: those of one key are stored in the order of their numbers."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    published: list[str] = []
    rounds = events // keys
    for number in range(rounds):
        texts = [f"key-{key}:{number}" for key in range(keys)]
        await asyncio.gather(
            *(
                log.publish(GROUP.topic, Message(mode=Mode.RAW, payload=text.encode(), key=text.partition(":")[0]))
                for text in texts
            )
        )
        published += texts
        await asyncio.sleep(max(0.0, start + seconds * (number + 1) / rounds - loop.time()))
    return published


@pytest.mark.parametrize(("order", "keys"), [(Order.KEY, KEYS), (Order.STRICT, 1)])
async def test_order_survives_replicas_that_come_and_go(
    server: NatsServer, log: NatsEventLog, tmp_path: Path, order: Order, keys: int
) -> None:
    await (await log.subscribe(GROUP, lambda delivery: delivery.release(), concurrency=1, order=order)).close()
    replicas = Replicas(server.url, order, tmp_path / "handled")
    try:
        for _ in range(3):
            await replicas.add()
        events = EVENTS if order is Order.KEY else EVENTS // 10
        load = asyncio.create_task(publish(log, keys, events, LOAD))
        await replicas.have_handled(keys, 10)
        await replicas.kill()
        await replicas.add()
        await asyncio.sleep(2.0)
        await replicas.leave()
        await replicas.add()
        await asyncio.sleep(1.0)
        sleeper = replicas.running[0]
        sleeper.send_signal(signal.SIGSTOP)
        await asyncio.sleep(LEASE_TTL + 3.0)
        sleeper.send_signal(signal.SIGCONT)
        published = await load
        handled = await replicas.have_handled(len(published), ARRIVAL_LIMIT)
    finally:
        await replicas.end()
    found, expected = by_key(handled), by_key(published)
    wrong = [key for key, numbers in expected.items() if found.get(key) != numbers]
    assert not wrong, f"{len(wrong)} of {keys} keys were handled out of order, or not at all, such as {wrong[:5]}"
    assert found.keys() == expected.keys()
    print(f"{order.value}: {len(published)} events, {len(handled) - len(published)} repeats")
