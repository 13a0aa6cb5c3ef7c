"""The state stores that the contract suite runs over. A new store is one class and one line at the end."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import pytest

from bindings.state import aws_dynamodb, postgresql, redis, sqlite
from bindings.state.in_memory import MemoryStateStore
from brokers.memory_tables import MemoryTables
from mesh.clock import SystemClock
from mesh.ports import Clock
from mesh.ports.stores import StateStore
from mesh.ports.tables import Tables
from mesh.state.backbone import MeshStateStore
from tests.contract.kafka_tables import KafkaBacking
from tests.contract.nats_tables import NatsBacking
from tests.contract.tables import DurableBacking
from tests.opened import opened
from tests.servers.moto import moto
from tests.servers.postgres import postgres
from tests.servers.redis import RedisServer
from tests.virtual_clock import VirtualClock


class StateBacking(Protocol):
    """A store under test, its server started once for the tests of a module."""

    name: str

    def start(self, folder: Path) -> None:
        """Skips the tests (`pytest.skip`) where the server cannot be had on this machine."""
        ...

    def stop(self) -> None: ...

    async def store(self, name: str) -> StateStore:
        """One process's end of the store `name`, whose items are apart from those of all other names. Not started;
        whoever asks closes it."""
        ...

    async def elapse(self, seconds: float) -> None:
        """Let time pass."""
        ...


class InMemory:
    name = "in-memory"

    def start(self, folder: Path) -> None:
        self.clock = VirtualClock()

    def stop(self) -> None:
        pass

    async def store(self, name: str) -> StateStore:
        return MemoryStateStore(self.clock)

    async def elapse(self, seconds: float) -> None:
        await self.clock.advance(seconds)


class LoneMeshStateStore(MeshStateStore):
    """Keeps earlier values. With `lone` the tables are its own, and end with it."""

    def __init__(self, tables: Tables, component: str, clock: Clock, *, lone: bool) -> None:
        super().__init__(tables, component, clock, key_prefix="app1||", history=5)
        self.tables = tables
        self._lone = tables if lone else None

    async def close(self) -> None:
        await super().close()
        if self._lone is not None:
            await self._lone.close()


class MeshOverMemory(InMemory):
    name = "meshwire-memory"

    def start(self, folder: Path) -> None:
        super().start(folder)
        self._tables = MemoryTables(self.clock, max_message_size=256 * 1024)

    async def store(self, name: str) -> StateStore:
        return LoneMeshStateStore(self._tables, name, self.clock, lone=False)


class SqliteFile:
    """Each end has a connection to the file of its own, as other processes have."""

    name = "sqlite"

    def start(self, folder: Path) -> None:
        self._folder = folder

    def stop(self) -> None:
        pass

    def _database(self, name: str) -> dict[str, str]:
        return {"connectionString": str(self._folder / f"{name}.db")}

    async def store(self, name: str) -> StateStore:
        store: StateStore = opened(sqlite.SPEC, **self._database(name))
        return store

    async def elapse(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class SqliteWithoutLog(SqliteFile):
    name = "sqlite-without-wal"

    def _database(self, name: str) -> dict[str, str]:
        return super()._database(name) | {"disableWAL": "true"}


class PostgresV1:
    name = "postgresql-v1"

    def start(self, folder: Path) -> None:
        self._server = postgres()

    def stop(self) -> None:
        pass

    async def store(self, name: str) -> StateStore:
        table = f"v1_{name}"
        store: StateStore = opened(
            postgresql.SPECS[0], **self._server.settings, tableName=table, metadataTableName=f"{table}_metadata"
        )
        return store

    async def elapse(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class PostgresV2(PostgresV1):
    name = "postgresql-v2"

    async def store(self, name: str) -> StateStore:
        store: StateStore = opened(postgresql.SPECS[1], **self._server.settings, tablePrefix=f"v2_{name}_")
        return store


class Redis:
    """Each store is a database of a server of their own."""

    name = "redis"
    options: Mapping[str, str] = {"databases": "1000"}

    def start(self, folder: Path) -> None:
        self._server = RedisServer(**self.options)
        self._server.start()
        self._databases: dict[str, int] = {}

    def stop(self) -> None:
        self._server.remove()

    async def store(self, name: str) -> StateStore:
        number = self._databases.setdefault(name, len(self._databases))
        store: StateStore = opened(redis.SPEC, **self._server.settings, redisDB=str(number))
        return store

    async def elapse(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Dynamo:
    """Each store is a table."""

    name = "dynamodb"

    def start(self, folder: Path) -> None:
        self._server = moto()
        self._client = self._server.client("dynamodb")
        self._tables: set[str] = set()

    def stop(self) -> None:
        self._client.close()

    async def store(self, name: str) -> StateStore:
        if name not in self._tables:
            self._tables.add(name)
            self._client.create_table(
                TableName=name,
                KeySchema=[{"AttributeName": "key", "KeyType": "HASH"}],
                AttributeDefinitions=[{"AttributeName": "key", "AttributeType": "S"}],
                BillingMode="PAY_PER_REQUEST",
            )
        store: StateStore = opened(aws_dynamodb.SPEC, **self._server.settings, table=name, ttlAttributeName="expires")
        return store

    async def elapse(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class MeshOverNats:
    name = "meshwire-nats"

    def __init__(self, backing: DurableBacking | None = None) -> None:
        self._backing = backing or NatsBacking()

    def start(self, folder: Path) -> None:
        self._backing.start(folder)

    def stop(self) -> None:
        self._backing.stop()

    async def store(self, name: str) -> StateStore:
        return LoneMeshStateStore(await self._backing.client("state"), name, SystemClock(), lone=True)

    async def elapse(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class MeshOverKafka(MeshOverNats):
    name = "meshwire-kafka"

    def __init__(self) -> None:
        super().__init__(KafkaBacking())


STATE_BACKINGS: list[Any] = [
    *(InMemory, MeshOverMemory, MeshOverNats),
    *(SqliteFile, SqliteWithoutLog),
    *(PostgresV1, PostgresV2),
    *(Redis, Dynamo),
    pytest.param(MeshOverKafka, marks=pytest.mark.servers),
]
