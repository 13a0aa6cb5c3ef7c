"""The bindings that the contract suites run over, against the real systems. A new one is one class and one line in a
list at the end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import pytest

from mesh.ports.bindings import InputBinding, Invocation, OutputBinding, Result
from tests.contract.aws_bindings import S3, DynamoDb, Sqs, SqsOutput
from tests.contract.file_bindings import Files, FilesDeleted, FilesMoved, LocalStorage, Sqlite
from tests.contract.kafka_bindings import ApacheKafkaRecords, KafkaRecords
from tests.contract.mqtt_bindings import MqttMessages
from tests.contract.nats_bindings import NatsStream
from tests.contract.postgresql_bindings import PostgresRows, PostgresStatements
from tests.contract.redis_bindings import RedisKeys
from tests.contract.web_bindings import Http, Smtp
from tests.contract.webhook_bindings import Webhook

Invoke = Callable[..., Awaitable[Result]]
"""`invoke(operation, data=b"", **metadata)`."""


class Source(Protocol):
    """A queue, folder, topic or table of its own, for one test."""

    def binding(self) -> InputBinding:
        """One replica's end. Not started; whoever asks closes it."""
        ...

    async def offer(self, number: int) -> bytes:
        """Something arises in the source; `number` tells it from others. Returns the data of the item that it must
        become. The source keeps it from now on, whether a binding runs or not."""
        ...


class InputBacking(Protocol):
    """A kind of source, its server started once for the tests of a module."""

    name: str
    bound: int
    """How many items the binding may have under way at once."""
    has_ids: bool
    """An item that comes again has the id that it had, by which the broker stores it once."""

    def start(self, folder: Path) -> None:
        """Skips the tests (`pytest.skip`) where the server cannot be had on this machine."""
        ...

    def stop(self) -> None: ...

    async def source(self) -> Source: ...

    async def restart(self, source: Source) -> None:
        """End the server and start it again at its address; `source` is there as before, be it empty. Skips the test
        where there is no server that could end."""
        ...


class OutputBacking(Protocol):
    """A system that is called, its server started once for the tests of a module."""

    name: str
    refused: Sequence[Invocation]
    """Requests that can never be carried out: metadata is missing, wrong or unknown, data is no such thing or too
    large."""

    def start(self, folder: Path) -> None:
        """Skips the tests (`pytest.skip`) where the server cannot be had on this machine."""
        ...

    def stop(self) -> None: ...

    async def binding(self) -> OutputBinding:
        """On what no other test uses. Not started; whoever asks closes it."""
        ...

    async def use(self, invoke: Invoke) -> None:
        """Call every operation of the binding that `binding` returned last, and see by means of the test's own that
        the system did it."""
        ...

    def unreachable(self) -> OutputBinding:
        """One whose system nobody answers for. Skips the test where there is no such thing."""
        ...


APACHE_KAFKA: Any = pytest.param(ApacheKafkaRecords, marks=pytest.mark.servers)
INPUTS: list[Callable[[], InputBacking]] = [
    *(Files, FilesDeleted, FilesMoved, KafkaRecords, MqttMessages, NatsStream, PostgresRows, Sqs),
    Webhook,
    APACHE_KAFKA,
]
OUTPUTS: list[Callable[[], OutputBacking]] = [
    *(DynamoDb, Http, KafkaRecords, LocalStorage, MqttMessages, NatsStream, PostgresStatements, RedisKeys),
    *(S3, Smtp, Sqlite, SqsOutput),
    APACHE_KAFKA,
]
