"""Calls over Kafka under test."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from brokers.kafka.connection import Access, Connection
from brokers.kafka.requests import KafkaRequests
from mesh.errors import BrokerUnavailable
from mesh.ports import Peer
from tests.servers import kafka_jars
from tests.servers.apache_kafka import ApacheKafka
from tests.servers.kafka import BINARY, KafkaServer

BEAT = 0.5
"""Seconds between beats: a JVM that shares two cores may be late by some tenths."""


class LoneKafkaRequests(KafkaRequests):
    """With a connection of its own, which ends with it."""

    async def close(self) -> None:
        await super().close()
        await self.connection.close()


async def kafka_requests(
    address: str | tuple[str, ...],
    peer: Peer,
    *,
    beat: float = BEAT,
    callers_verified: bool = False,
    replicas: int = 1,
    **options: object,
) -> LoneKafkaRequests:
    """`options` are those of aiokafka for signing in."""
    servers = (address,) if isinstance(address, str) else address
    connection = Connection(Access(servers=servers, options=options, replicas=replicas), name=peer.app_id)
    requests = LoneKafkaRequests(connection, peer, beat=beat, callers_verified=callers_verified)
    try:
        async with asyncio.timeout(60):
            await connection.start()
            await _started(requests)
    except BaseException:
        await requests.close()
        raise
    return requests


async def _started(requests: KafkaRequests) -> None:
    """A server that was frozen, or restarted, knows no servers for a moment."""
    while True:
        try:
            return await requests.start()
        except BrokerUnavailable:
            await asyncio.sleep(0.1)


class ApacheKafkaBackbone:
    name = "apache-kafka"
    beat = BEAT

    def start(self, folder: Path) -> None:
        if reason := kafka_jars.missing():
            pytest.skip(reason)
        self._server = ApacheKafka(auto_create_topics_enable="false")
        self._server.start()

    def stop(self) -> None:
        self._server.remove()

    async def requests(self, peer: Peer) -> KafkaRequests:
        return await kafka_requests(self._server.address, peer)


class TansuBackbone:
    name = "tansu"
    beat = BEAT

    def start(self, folder: Path) -> None:
        if BINARY is None or not BINARY.exists():
            pytest.skip("tansu is not installed")
        self._server = KafkaServer()
        self._server.start()

    def stop(self) -> None:
        self._server.remove()

    async def requests(self, peer: Peer) -> KafkaRequests:
        return await kafka_requests(self._server.address, peer)
