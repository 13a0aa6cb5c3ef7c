"""Tables of a real nats-server, for tests."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import ClassVar

import pytest

from brokers.nats.connection import Connection, Lookup, Servers
from brokers.nats.tables import NatsTables
from mesh import addressing
from mesh.ports.tables import TableFeature, Tables
from tests.contract.nats_server import NatsServer

MAX_PAYLOAD = 256 * 1024


class NatsBacking:
    name = "nats"
    features = frozenset({TableFeature.DURABLE, TableFeature.HISTORY})
    marks: ClassVar[list[pytest.MarkDecorator]] = []

    def start(self, folder: Path) -> None:
        self._server = NatsServer(folder, max_payload=MAX_PAYLOAD)
        self._server.start()

    def stop(self) -> None:
        self._server.kill()

    @property
    def url(self) -> str:
        return self._server.url

    async def client(self, namespace: str) -> Tables:
        return await nats_tables([self._server.url], namespace)

    def now(self) -> float:
        return time.time()

    async def elapse(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def crash(self) -> None:
        self._server.kill()

    def recover(self) -> None:
        self._server.start()

    def freeze(self) -> None:
        self._server.freeze()

    def thaw(self) -> None:
        self._server.thaw()


class LoneTables(NatsTables):
    """With a connection of its own, which ends with it."""

    def __init__(self, connection: Connection, *, namespace: str, replicas: int) -> None:
        super().__init__(connection, namespace=namespace, prefix="mesh", replicas=replicas)
        self.connection = connection
        self.namespace = namespace

    async def close(self) -> None:
        await super().close()
        await self.connection.close()


async def nats_tables(urls: list[str], namespace: str, *, replicas: int = 1) -> LoneTables:
    connection = Connection(Lookup(lambda: Servers(urls)), name="contract")
    tables = LoneTables(connection, namespace=namespace, replicas=replicas)
    await asyncio.wait_for(connection.start(), 30)
    return tables


async def stream_leader(tables: LoneTables, scope: str) -> str:
    """The name of the server that leads the stream of a scope."""
    stream = addressing.state_stream("mesh", tables.namespace, scope)
    reply = await tables.connection.call(f"$JS.API.STREAM.INFO.{stream}", b"", b"", 5.0)
    return str(json.loads(reply.payload)["cluster"]["leader"])
