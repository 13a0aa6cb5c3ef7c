"""The event logs that the contract suite runs over. A new broker is one class and one line at the end."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Protocol

from brokers.memory import MemoryEventLog
from brokers.nats.connection import Connection, Lookup, Servers
from brokers.nats.event_log import NatsEventLog
from mesh.ports import EventLog, Feature
from tests.contract.nats_server import NatsServer
from tests.virtual_clock import VirtualClock


class Implementation(Protocol):
    """A broker under test. It is started once for the tests of a module; each test has a namespace of its own."""

    name: str
    features: frozenset[Feature]

    def start(self, folder: Path) -> None: ...

    def stop(self) -> None: ...

    def event_log(self, namespace: str) -> EventLog:
        """A new log, not started."""
        ...

    def now(self) -> float: ...

    async def elapse(self, seconds: float) -> None:
        """Let time pass."""
        ...

    async def quiet(self) -> None:
        """Let as much time pass as it takes for an unwanted delivery to show itself."""
        ...


class Memory:
    name = "memory"
    features = frozenset({Feature.DEDUPE, Feature.TTL})

    def start(self, folder: Path) -> None:
        self.clock = VirtualClock()

    def stop(self) -> None:
        pass

    def event_log(self, namespace: str) -> EventLog:
        return MemoryEventLog(self.clock)

    def now(self) -> float:
        return self.clock.now()

    async def elapse(self, seconds: float) -> None:
        await self.clock.advance(seconds)

    async def quiet(self) -> None:
        await self.elapse(3600)


class Nats:
    name = "nats"
    features = frozenset({Feature.DEDUPE, Feature.DURABLE, Feature.TTL})

    def start(self, folder: Path) -> None:
        self._server = NatsServer(folder)
        self._server.start()

    def stop(self) -> None:
        self._server.kill()

    def event_log(self, namespace: str) -> EventLog:
        return nats_event_log([self._server.url], namespace)

    def now(self) -> float:
        return time.time()

    async def elapse(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def quiet(self) -> None:
        await asyncio.sleep(0.25)


def nats_event_log(urls: list[str], namespace: str, *, replicas: int = 1) -> NatsEventLog:
    """A log with a connection of its own, as one process has it. To be called in the event loop."""
    connection = Connection(Lookup(lambda: Servers(urls)), name="contract")
    return NatsEventLog(connection, namespace=namespace, replicas=replicas)


IMPLEMENTATIONS: list[type[Implementation]] = [Memory, Nats]
