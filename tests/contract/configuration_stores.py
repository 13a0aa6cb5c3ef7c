"""The configuration stores that the contract suite runs over. A new store is one class and one line at the end."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import psycopg
import pytest
from psycopg.types.json import Jsonb

from bindings.configuration import postgresql, redis
from brokers.memory_tables import MemoryTables
from mesh.appconfig.backbone import MeshConfigurationStore
from mesh.ports.stores import ConfigurationStore
from mesh.ports.tables import Tables
from tests.contract.kafka_tables import KafkaBacking
from tests.contract.nats_tables import NatsBacking
from tests.contract.tables import DurableBacking
from tests.opened import opened
from tests.servers.postgres import PASSWORD, PostgresServer
from tests.servers.redis import RedisServer

versions = count(1)


class ConfigurationBacking(Protocol):
    """A store under test, its server started once for the tests of a module, and its own."""

    name: str
    metadata: bool
    """Whether items have metadata."""
    durable: bool

    def start(self, folder: Path) -> None: ...

    def stop(self) -> None: ...

    async def store(self, name: str) -> ConfigurationStore:
        """One process's end of the store `name`, whose items are apart from those of all other names. Not started;
        whoever asks closes it."""
        ...

    async def write(self, name: str, key: str, value: str, metadata: Mapping[str, str] = {}) -> None:
        """As somebody else, with the store's own tools."""
        ...

    async def remove(self, name: str, key: str) -> None: ...

    def crash(self) -> None:
        """End the server without a warning; where `durable`."""
        ...

    def recover(self) -> None: ...


class MeshOverMemory:
    name = "meshwire-memory"
    metadata = True
    durable = False

    def start(self, folder: Path) -> None:
        self._tables = MemoryTables(max_message_size=256 * 1024)

    def stop(self) -> None:
        pass

    async def store(self, name: str) -> ConfigurationStore:
        return MeshConfigurationStore(self._tables, name)

    async def write(self, name: str, key: str, value: str, metadata: Mapping[str, str] = {}) -> None:
        await MeshConfigurationStore(self._tables, name).put(key, value, metadata)

    async def remove(self, name: str, key: str) -> None:
        await MeshConfigurationStore(self._tables, name).delete(key)

    def crash(self) -> None:
        raise AssertionError("there is no server that could crash")

    recover = crash


class LoneMeshConfigurationStore(MeshConfigurationStore):
    """The tables are its own, and end with it."""

    def __init__(self, tables: Tables, component: str) -> None:
        super().__init__(tables, component)
        self._own = tables

    async def close(self) -> None:
        await self._own.close()


class MeshOverNats:
    name = "meshwire-nats"
    metadata = True
    durable = True

    def __init__(self, backing: DurableBacking | None = None) -> None:
        self._backing = backing or NatsBacking()

    def start(self, folder: Path) -> None:
        self._backing.start(folder)

    def stop(self) -> None:
        self._backing.stop()

    async def store(self, name: str) -> ConfigurationStore:
        return LoneMeshConfigurationStore(await self._backing.client("configuration"), name)

    async def write(self, name: str, key: str, value: str, metadata: Mapping[str, str] = {}) -> None:
        tables = await self._backing.client("configuration")
        try:
            await MeshConfigurationStore(tables, name).put(key, value, metadata)
        finally:
            await tables.close()

    async def remove(self, name: str, key: str) -> None:
        tables = await self._backing.client("configuration")
        try:
            await MeshConfigurationStore(tables, name).delete(key)
        finally:
            await tables.close()

    def crash(self) -> None:
        self._backing.crash()

    def recover(self) -> None:
        self._backing.recover()


class MeshOverKafka(MeshOverNats):
    name = "meshwire-kafka"

    def __init__(self) -> None:
        super().__init__(KafkaBacking())


class Redis:
    """Each name has a database of its own. The server sends no notifications until it is told to."""

    name = "redis"
    metadata = False
    durable = True

    def start(self, folder: Path) -> None:
        self._databases: dict[str, int] = {}
        self.server = RedisServer(appendonly="yes", appendfsync="always", databases="64", notify_keyspace_events='""')
        self.server.start()

    def stop(self) -> None:
        self.server.remove()

    def database(self, name: str) -> int:
        return self._databases.setdefault(name, len(self._databases))

    async def store(self, name: str) -> ConfigurationStore:
        store: ConfigurationStore = opened(redis.SPEC, **self.server.settings, redisDB=str(self.database(name)))
        return store

    def run(self, name: str, *command: str | bytes) -> None:
        script = "redis.call('SELECT', ARGV[1]); return redis.call(unpack(ARGV, 2))"
        self.server.run("EVAL", script, "0", str(self.database(name)), *command)

    async def write(self, name: str, key: str, value: str, metadata: Mapping[str, str] = {}) -> None:
        self.run(name, "SET", key, f"{value}||{next(versions)}")

    async def remove(self, name: str, key: str) -> None:
        self.run(name, "DEL", key)

    def crash(self) -> None:
        self.server.kill()

    def recover(self) -> None:
        self.server.start()


TRIGGER = """
CREATE TABLE {table} (key VARCHAR NOT NULL, value VARCHAR NOT NULL, version VARCHAR NOT NULL, metadata JSON);
CREATE OR REPLACE FUNCTION notify_event() RETURNS TRIGGER AS $$
    DECLARE data json; notification json;
    BEGIN
        IF (TG_OP = 'DELETE') THEN data = row_to_json(OLD); ELSE data = row_to_json(NEW); END IF;
        notification = json_build_object('table', TG_TABLE_NAME, 'action', TG_OP, 'data', data);
        PERFORM pg_notify('config', notification::text);
        RETURN NULL;
    END;
$$ LANGUAGE plpgsql;
CREATE TRIGGER config AFTER INSERT OR UPDATE OR DELETE ON {table} FOR EACH ROW EXECUTE PROCEDURE notify_event();
"""
"""Table and trigger as Dapr documents them."""


class Postgres:
    name = "postgresql"
    metadata = True
    durable = True

    def start(self, folder: Path) -> None:
        self.server = PostgresServer()
        self.server.start()
        self._tables: set[str] = set()

    def stop(self) -> None:
        self.server.remove()

    def execute(self, name: str, sql: str, *parameters: object) -> None:
        with psycopg.connect(
            host="127.0.0.1", port=self.server.port, user="postgres", password=PASSWORD, autocommit=True
        ) as connection:
            if name not in self._tables:
                self._tables.add(name)
                connection.execute(TRIGGER.format(table=name).encode())
            if sql:
                connection.execute(sql.format(table=name).encode(), parameters)

    async def store(self, name: str) -> ConfigurationStore:
        self.execute(name, "")
        store: ConfigurationStore = opened(postgresql.SPEC, **self.server.settings, table=name, notifyChannel="Config")
        return store

    async def write(self, name: str, key: str, value: str, metadata: Mapping[str, str] = {}) -> None:
        """A row more for each version: the newest is the one that counts."""
        row: list[Any] = [key, value, str(next(versions)), Jsonb(dict(metadata))]
        self.execute(name, "INSERT INTO {table} VALUES (%s, %s, %s, %s)", *row)

    async def remove(self, name: str, key: str) -> None:
        self.execute(name, "DELETE FROM {table} WHERE key = %s", key)

    def crash(self) -> None:
        self.server.stop()

    def recover(self) -> None:
        self.server.start()


CONFIGURATION_BACKINGS: list[Any] = [
    *(MeshOverMemory, MeshOverNats, Redis, Postgres),
    pytest.param(MeshOverKafka, marks=pytest.mark.servers),
]
