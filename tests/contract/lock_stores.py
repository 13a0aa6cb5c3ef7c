"""The lock stores that the contract suite runs over. A new store is one class and one line at the end."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Protocol

import pytest

from bindings.lock import redis
from brokers.memory_tables import MemoryTables
from mesh.locks.backbone import MeshLockStore
from mesh.ports.stores import LockStore
from mesh.ports.tables import Tables
from tests.contract.kafka_tables import KafkaBacking
from tests.contract.nats_tables import NatsBacking
from tests.contract.tables import DurableBacking
from tests.opened import opened
from tests.servers.redis import redis_server
from tests.virtual_clock import VirtualClock


class LockBacking(Protocol):
    """A store under test, its server started once for the tests of a module."""

    name: str
    fences: bool
    """Whether locks have fencing tokens."""

    def start(self, folder: Path) -> None: ...

    def stop(self) -> None: ...

    async def store(self) -> LockStore:
        """One process's end. Not started; whoever asks closes it."""
        ...

    async def elapse(self, seconds: float) -> None:
        """Let time pass."""
        ...


class MeshOverMemory:
    name = "meshwire-memory"
    fences = True

    def start(self, folder: Path) -> None:
        self.clock = VirtualClock()
        self._tables = MemoryTables(self.clock)

    def stop(self) -> None:
        pass

    async def store(self) -> LockStore:
        return MeshLockStore(self._tables, "lockstore", scope="app1")

    async def elapse(self, seconds: float) -> None:
        await self.clock.advance(seconds)


class LoneMeshLockStore(MeshLockStore):
    """The tables are its own, and end with it."""

    def __init__(self, tables: Tables) -> None:
        super().__init__(tables, "lockstore", scope="app1")
        self._own = tables

    async def close(self) -> None:
        await self._own.close()


class MeshOverNats:
    name = "meshwire-nats"
    fences = True

    def __init__(self, backing: DurableBacking | None = None) -> None:
        self._backing = backing or NatsBacking()

    def start(self, folder: Path) -> None:
        self._backing.start(folder)

    def stop(self) -> None:
        self._backing.stop()

    async def store(self) -> LockStore:
        return LoneMeshLockStore(await self._backing.client("locks"))

    async def elapse(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class MeshOverKafka(MeshOverNats):
    name = "meshwire-kafka"

    def __init__(self) -> None:
        super().__init__(KafkaBacking())


class Redis:
    name = "redis"
    fences = False

    def start(self, folder: Path) -> None:
        self._server = redis_server()

    def stop(self) -> None:
        pass

    async def store(self) -> LockStore:
        store: LockStore = opened(redis.SPEC, **self._server.settings)
        return store

    async def elapse(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


LOCK_BACKINGS: list[Any] = [MeshOverMemory, MeshOverNats, Redis, pytest.param(MeshOverKafka, marks=pytest.mark.servers)]
