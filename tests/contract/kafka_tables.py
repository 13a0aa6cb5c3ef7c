"""Tables of a real Apache Kafka, for tests."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import ClassVar

import pytest

from brokers.kafka.connection import Access, Connection
from brokers.kafka.tables import KafkaTables
from mesh import addressing
from mesh.ports.tables import TableFeature, Tables
from tests.servers import kafka_jars
from tests.servers.apache_kafka import ApacheKafka

MAX_MESSAGE = 256 * 1024


class KafkaBacking:
    """Apache Kafka."""

    name = "kafka"
    features = frozenset({TableFeature.DURABLE, TableFeature.HISTORY})
    marks: ClassVar = [pytest.mark.servers]

    def start(self, folder: Path) -> None:
        if reason := kafka_jars.missing():
            pytest.skip(reason)
        self._server = ApacheKafka(auto_create_topics_enable="false")
        self._server.start()

    def stop(self) -> None:
        self._server.remove()

    @property
    def url(self) -> str:
        return self._server.url

    async def client(self, namespace: str) -> Tables:
        return await kafka_tables([self._server.address], namespace, max_message=MAX_MESSAGE)

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


class LoneKafkaTables(KafkaTables):
    """With a connection of its own, which ends with it."""

    def __init__(self, connection: Connection, *, namespace: str, max_message: int) -> None:
        super().__init__(connection, namespace=namespace, prefix="mesh", max_message=max_message)
        self.connection = connection
        self.namespace = namespace

    async def close(self) -> None:
        await super().close()
        await self.connection.close()

    async def leader(self, scope: str) -> int:
        """The number of the server that leads the log of a scope."""
        admin = await self.connection.admin()
        topic = addressing.kafka_state_topic("mesh", self.namespace, scope)
        return int((await admin.describe_topics([topic]))[0]["partitions"][0]["leader"])


async def kafka_tables(
    servers: list[str], namespace: str, *, replicas: int = 1, max_message: int = MAX_MESSAGE
) -> LoneKafkaTables:
    connection = Connection(Access(servers=tuple(servers), replicas=replicas), name="contract")
    await asyncio.wait_for(connection.start(), 30)
    return LoneKafkaTables(connection, namespace=namespace, max_message=max_message)
