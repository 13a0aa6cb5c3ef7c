"""The tables that the contract suite runs over. A new broker is one class and one line at the end."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Protocol

import pytest

from brokers.memory_tables import MemoryTables
from mesh.ports.tables import TableFeature, Tables
from tests.contract.kafka_tables import KafkaBacking, kafka_tables
from tests.contract.nats_tables import MAX_PAYLOAD, NatsBacking, nats_tables
from tests.virtual_clock import VirtualClock

MAX_MESSAGE_SIZE = MAX_PAYLOAD
"""Bytes that each implementation here takes in one message."""

KAFKA = "kafka://"


class Backing(Protocol):
    """An implementation of `Tables` under test, started once for the tests of a module.

    Each test has a namespace of its own.
    """

    name: str
    features: frozenset[TableFeature]
    marks: ClassVar[list[pytest.MarkDecorator]]

    def start(self, folder: Path) -> None: ...

    def stop(self) -> None: ...

    async def client(self, namespace: str) -> Tables:
        """One process's end, connected. Whoever asks closes it."""
        ...

    def now(self) -> float: ...

    async def elapse(self, seconds: float) -> None:
        """Let time pass."""
        ...


class DurableBacking(Backing, Protocol):
    """Declares `DURABLE`."""

    @property
    def url(self) -> str:
        """By which another process connects to it, with `connected`."""
        ...

    def crash(self) -> None:
        """The broker is killed."""
        ...

    def recover(self) -> None:
        """The broker that was killed is there again, with what it had stored."""
        ...

    def freeze(self) -> None: ...

    def thaw(self) -> None: ...


class MemoryBacking:
    """A `client` is a `MemoryTables` of its own when all others of the namespace are closed."""

    name = "memory"
    features = frozenset({TableFeature.HISTORY})
    marks: ClassVar[list[pytest.MarkDecorator]] = []

    def start(self, folder: Path) -> None:
        self.clock = VirtualClock()
        self._namespaces: dict[str, MemoryTables] = {}

    def stop(self) -> None:
        pass

    async def client(self, namespace: str) -> Tables:
        if namespace not in self._namespaces:
            self._namespaces[namespace] = MemoryTables(self.clock, max_message_size=MAX_MESSAGE_SIZE)
        return self._namespaces[namespace]

    def now(self) -> float:
        return self.clock.now()

    async def elapse(self, seconds: float) -> None:
        await self.clock.advance(seconds)


async def connected(url: str, namespace: str) -> Tables:
    """The tables of a `DurableBacking` in another process. Whoever asks closes them."""
    if url.startswith(KAFKA):
        return await kafka_tables([url.removeprefix(KAFKA)], namespace)
    return await nats_tables([url], namespace)


BACKINGS: list[type[Backing]] = [MemoryBacking, NatsBacking, KafkaBacking]
