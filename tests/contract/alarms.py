"""The alarms that the contract suites run over. A new broker is one class and one line at the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import pytest

from brokers.memory_alarms import MemoryAlarmClocks
from brokers.memory_tables import MemoryTables
from brokers.nats.alarms import NatsAlarmClocks
from brokers.nats.connection import Connection, Lookup, Servers
from brokers.table_alarms import TableAlarmClocks
from mesh.clock import SystemClock
from mesh.ports import Clock
from mesh.ports.alarms import AlarmClocks
from mesh.ports.tables import Tables
from tests.contract.kafka_tables import kafka_tables
from tests.contract.nats_server import NatsServer
from tests.servers import kafka_jars
from tests.servers.apache_kafka import ApacheKafka
from tests.virtual_clock import VirtualClock

MAX_MESSAGE_SIZE = 64 * 1024
"""Bytes that each implementation here takes in one message."""


class Backing(Protocol):
    """An implementation of `AlarmClocks` under test, started once for the tests of a module.

    Each test has a namespace of its own.
    """

    name: str
    clock: Clock
    resolution: float
    """Seconds that it may be late."""

    def start(self, folder: Path) -> None: ...

    def stop(self) -> None: ...

    async def member(self, namespace: str) -> AlarmClocks:
        """One process's end, connected. Whoever asks closes it."""
        ...

    async def elapse(self, seconds: float) -> None:
        """Let time pass."""
        ...


class MemoryBacking:
    name = "memory"
    resolution = 0.0

    def start(self, folder: Path) -> None:
        self.clock = VirtualClock()
        self._namespaces: dict[str, MemoryAlarmClocks] = {}

    def stop(self) -> None:
        pass

    async def member(self, namespace: str) -> AlarmClocks:
        if namespace not in self._namespaces:
            self._namespaces[namespace] = MemoryAlarmClocks(self.clock, max_message_size=MAX_MESSAGE_SIZE)
        return self._namespaces[namespace]

    async def elapse(self, seconds: float) -> None:
        await self.clock.advance(seconds)


class NatsBacking:
    name = "nats"
    resolution = 5.0  # the server's quarter of a second, and a machine that is busy

    def start(self, folder: Path) -> None:
        self.clock = SystemClock()
        self._server = NatsServer(folder, max_payload=MAX_MESSAGE_SIZE)
        self._server.start()

    def stop(self) -> None:
        self._server.kill()

    async def member(self, namespace: str) -> AlarmClocks:
        return await nats_alarms([self._server.url], namespace)

    async def elapse(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class LoneAlarmClocks(NatsAlarmClocks):
    """With a connection of its own, which ends with it."""

    def __init__(self, connection: Connection, *, namespace: str, replicas: int) -> None:
        super().__init__(connection, namespace=namespace, replicas=replicas)
        self.connection = connection

    async def close(self) -> None:
        await super().close()
        await self.connection.close()


async def nats_alarms(urls: list[str], namespace: str, *, replicas: int = 1) -> LoneAlarmClocks:
    connection = Connection(Lookup(lambda: Servers(urls)), name="contract")
    await asyncio.wait_for(connection.start(), 10)
    return LoneAlarmClocks(connection, namespace=namespace, replicas=replicas)


TTL = 3.0
"""Seconds after which members of alarms over tables take each other for lost."""


class LoneTableAlarmClocks(TableAlarmClocks):
    """With tables of its own, which end with it."""

    def __init__(self, tables: Tables, clock: Clock) -> None:
        super().__init__(tables, node="member", clock=clock, ttl=TTL)
        self.tables = tables

    async def close(self) -> None:
        await super().close()
        await self.tables.close()


class MemoryTablesBacking:
    """Alarms over tables in memory, which all members share."""

    name = "memory-tables"
    resolution = 0.05

    def start(self, folder: Path) -> None:
        self.clock = VirtualClock()
        self._namespaces: dict[str, MemoryTables] = {}

    def stop(self) -> None:
        pass

    async def member(self, namespace: str) -> AlarmClocks:
        if namespace not in self._namespaces:
            self._namespaces[namespace] = MemoryTables(self.clock, max_message_size=MAX_MESSAGE_SIZE)
        return TableAlarmClocks(
            self._namespaces[namespace], node="member", clock=self.clock, ttl=TTL, elapsed=self.clock.now
        )

    async def elapse(self, seconds: float) -> None:
        await self.clock.advance(seconds)


class KafkaTablesBacking:
    name = "kafka-tables"
    resolution = 10.0

    def start(self, folder: Path) -> None:
        self.clock = SystemClock()
        if reason := kafka_jars.missing():
            pytest.skip(reason)
        self._server = ApacheKafka(auto_create_topics_enable="false")
        self._server.start()

    def stop(self) -> None:
        self._server.remove()

    async def member(self, namespace: str) -> AlarmClocks:
        tables = await kafka_tables([self._server.address], namespace, max_message=MAX_MESSAGE_SIZE)
        return LoneTableAlarmClocks(tables, self.clock)

    async def elapse(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


BACKINGS: list[Any] = [
    MemoryBacking,
    NatsBacking,
    MemoryTablesBacking,
    pytest.param(KafkaTablesBacking, marks=pytest.mark.servers),
]


T = TypeVar("T")


class Inbox(Generic[T]):
    """A handler that keeps everything it is handed, with the time, and settles it as told."""

    def __init__(self, backing: Backing, settle: Callable[[T], None]) -> None:
        self.items: list[T] = []
        self.times: list[float] = []
        self._backing = backing
        self._settle = settle
        self._arrival = asyncio.Event()

    def __call__(self, item: T) -> None:
        self.times.append(self._backing.clock.now())
        self.items.append(item)
        self._arrival.set()
        self._settle(item)

    async def reaches(self, number: int, within: float = 10.0) -> list[T]:
        """All items, once there are `number` of them. Time passes meanwhile, at most `within` seconds of it."""
        clock = self._backing.clock
        deadline = clock.now() + within
        while len(self.items) < number and clock.now() < deadline:
            if isinstance(clock, VirtualClock):
                await clock.advance(0.01)
            else:
                self._arrival.clear()
                try:
                    await asyncio.wait_for(self._arrival.wait(), deadline - time.time())
                except TimeoutError:
                    break
        if len(self.items) < number:
            pytest.fail(f"{len(self.items)} of {number} after {within} s")
        return self.items
