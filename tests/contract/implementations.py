"""The event logs that the contract suite runs over. A new broker is one class and one line at the end."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any, ClassVar, Protocol

import pytest

from brokers.kafka import connection as kafka
from brokers.kafka import member
from brokers.kafka.event_log import KafkaEventLog
from brokers.memory import MemoryEventLog
from brokers.memory_requests import MemoryExchange, MemoryRequests
from brokers.nats.connection import Connection, Lookup, Servers
from brokers.nats.event_log import NatsEventLog
from brokers.nats.requests import NatsRequests
from brokers.nats.tables import NatsTables
from mesh.ports import EventLog, Feature, Peer, Requests
from tests.contract.kafka_backbone import ApacheKafkaBackbone
from tests.contract.nats_server import NatsServer
from tests.servers import kafka_jars
from tests.servers.apache_kafka import ApacheKafka
from tests.virtual_clock import VirtualClock


class Implementation(Protocol):
    """A broker under test. It is started once for the tests of a module; each test has a namespace of its own."""

    name: str
    features: frozenset[Feature]
    marks: ClassVar[list[pytest.MarkDecorator]] = []

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


class Memory(Implementation):
    name = "memory"
    features = frozenset(Feature) - {Feature.DURABLE}

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


class Nats(Implementation):
    name = "nats"
    features = frozenset(Feature)

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
    tables = NatsTables(connection, namespace=namespace, replicas=replicas)
    return NatsEventLog(connection, namespace=namespace, replicas=replicas, tables=tables)


class Kafka(Implementation):
    """Apache Kafka."""

    name = "kafka"
    features = frozenset({Feature.DURABLE, Feature.TTL, Feature.KEY_ORDER, Feature.BROADCAST, Feature.READ})
    marks: ClassVar = [pytest.mark.servers]
    partitions = 4

    def start(self, folder: Path) -> None:
        if reason := kafka_jars.missing():
            pytest.skip(reason)
        self._server = ApacheKafka(auto_create_topics_enable="false", group_initial_rebalance_delay_ms=0)
        self._server.start()
        self._drain_limit, member.DRAIN_LIMIT = member.DRAIN_LIMIT, 2.0

    def stop(self) -> None:
        self._server.remove()
        member.DRAIN_LIMIT = self._drain_limit

    def event_log(self, namespace: str) -> EventLog:
        return kafka_event_log([self._server.address], namespace, partitions=self.partitions)

    def now(self) -> float:
        return time.time()

    async def elapse(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def quiet(self) -> None:
        await asyncio.sleep(0.5)


class KafkaInOnePartition(Kafka):
    """As strict order needs it."""

    name = "kafka-strict"
    features = Kafka.features | {Feature.STRICT_ORDER}
    partitions = 1


def kafka_event_log(servers: list[str], namespace: str, *, partitions: int = 4, replicas: int = 1) -> KafkaEventLog:
    """A log with a connection of its own, as one process has it. To be called in the event loop."""
    access = kafka.Access(servers=tuple(servers), replicas=replicas)
    return KafkaEventLog(kafka.Connection(access, name="contract"), namespace=namespace, partitions=partitions)


IMPLEMENTATIONS: list[type[Implementation]] = [Memory, Nats, Kafka]


BEAT = 0.1
"""Seconds between beats in the suite of `Requests`."""


class Backbone(Protocol):
    """An implementation of `Requests` under test, started once for the tests of a module."""

    name: str
    beat: float
    """Seconds between beats: a second shows what ten calls of two beats would."""

    def start(self, folder: Path) -> None: ...

    def stop(self) -> None: ...

    async def requests(self, peer: Peer) -> Requests:
        """One process's end, connected. Whoever asks closes it."""
        ...


class MemoryBackbone:
    name = "memory"
    beat = BEAT

    def start(self, folder: Path) -> None:
        self._exchange = MemoryExchange()

    def stop(self) -> None:
        pass

    async def requests(self, peer: Peer) -> Requests:
        return MemoryRequests(self._exchange, peer)


class NatsBackbone:
    name = "nats"
    beat = BEAT

    def start(self, folder: Path) -> None:
        self._server = NatsServer(folder)
        self._server.start()

    def stop(self) -> None:
        self._server.kill()

    async def requests(self, peer: Peer) -> Requests:
        return await nats_requests(self._server.url, peer, beat=BEAT)


class LoneRequests(NatsRequests):
    """With a connection of its own, which ends with it."""

    async def close(self) -> None:
        await super().close()
        await self.connection.close()


async def nats_requests(url: str, peer: Peer, *, beat: float = BEAT) -> LoneRequests:
    connection = Connection(Lookup(lambda: Servers([url])), name=peer.app_id)
    requests = LoneRequests(connection, peer, beat=beat)
    await asyncio.wait_for(connection.start(), 30)
    return requests


BACKBONES: list[Any] = [
    MemoryBackbone,
    NatsBackbone,
    pytest.param(ApacheKafkaBackbone, marks=pytest.mark.servers),
]
