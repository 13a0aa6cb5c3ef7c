"""`bindings.kafka` for the contract suites of bindings, against a real server."""

from __future__ import annotations

import itertools
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from bindings.bindings.kafka import SPEC
from bindings.bindings.lanes import LANES
from mesh.ports.bindings import Invocation, Result
from tests.opened import opened
from tests.ports import free_port
from tests.servers import kafka_jars
from tests.servers.apache_kafka import ApacheKafka
from tests.servers.kafka import BINARY, KafkaServer

Invoke = Callable[..., Awaitable[Result]]

_numbers = itertools.count(1)


class Topic:
    """A topic of its own, with a group of its own."""

    def __init__(self, server: KafkaServer | ApacheKafka) -> None:
        self.server = server
        self.name = f"topic{next(_numbers)}"

    def binding(self, **settings: str) -> Any:
        given = {"brokers": self.server.address, "topics": self.name, "authType": "none"} | settings
        group = {"consumerGroup": self.name, "initialOffset": "oldest", "readTimeout": "10s"}
        # a member that has gone is noticed by its silence
        group |= {"heartbeatInterval": "100ms", "sessionTimeout": "1s"}
        return opened(SPEC, **group | given)

    async def offer(self, number: int) -> bytes:
        data = json.dumps({"number": number}).encode()
        producer = AIOKafkaProducer(bootstrap_servers=self.server.address)
        await producer.start()
        try:
            await producer.send_and_wait(self.name, data, key=b"key %d" % (number % 7), headers=[("origin", b"test")])
        finally:
            await producer.stop()
        return data


class KafkaRecords:
    name = "kafka"
    bound = LANES
    has_ids = True

    server: KafkaServer | ApacheKafka

    def start(self, folder: Path) -> None:
        if BINARY is None or not BINARY.exists():
            pytest.skip("no tansu for this machine")
        self.server = KafkaServer()
        self.server.start()

    def stop(self) -> None:
        self.server.remove()

    async def source(self) -> Topic:
        return Topic(self.server)

    async def restart(self, source: Topic) -> None:
        self.server.stop()
        self.server.start()

    # as an output

    refused = (
        Invocation(operation="create", metadata={"partitionNumber": "x"}),
        Invocation(operation="create", metadata={"partitionNumber": "99"}),
        Invocation(operation="create", data=b"x" * (2 << 20)),
    )

    async def binding(self) -> Any:
        self._topic = f"topic{next(_numbers)}"
        return opened(SPEC, brokers=self.server.address, publishTopic=self._topic, authType="none")

    async def use(self, invoke: Invoke) -> None:
        assert await invoke("create", b'"as it is"', partitionKey="k", other="ä") == Result()
        consumer = AIOKafkaConsumer(
            self._topic, bootstrap_servers=self.server.address, auto_offset_reset="earliest", fetch_max_wait_ms=50
        )
        await consumer.start()
        try:
            record = await consumer.getone()
        finally:
            await consumer.stop()
        assert (record.key, record.value) == (b"k", b'"as it is"')
        assert {("partitionKey", b"k"), ("other", "ä".encode())} <= set(record.headers)

    def unreachable(self) -> Any:
        return opened(
            SPEC,
            brokers=f"127.0.0.1:{free_port()}",
            publishTopic="a",
            authType="password",
            saslUsername="a",
            saslPassword="open-sesame",
            disableTls="true",
            readTimeout="2s",
        )


class ApacheKafkaRecords(KafkaRecords):
    name = "apache-kafka"

    def start(self, folder: Path) -> None:
        if reason := kafka_jars.missing():
            pytest.skip(reason)
        self.server = ApacheKafka(group_initial_rebalance_delay_ms=0, group_min_session_timeout_ms=1000)
        self.server.start()
