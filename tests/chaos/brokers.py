"""Brokers for tests that end them and start them again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.mesh import Mesh
from tests.servers import kafka_jars
from tests.servers.apache_kafka import ApacheKafka

BROKERS: list[Any] = ["nats", pytest.param("kafka", marks=pytest.mark.servers)]
"""What `mesh_on` takes, as parameters."""


@asynccontextmanager
async def mesh_on(broker: str, folder: Path) -> AsyncIterator[Mesh]:
    with ExitStack() as stack:
        server = stack.enter_context(kafka()) if broker == "kafka" else None
        async with Mesh(folder, server) as mesh:
            yield mesh


@contextmanager
def kafka() -> Iterator[ApacheKafka]:
    """An Apache Kafka of its own, started. Skips the test where there is none."""
    if reason := kafka_jars.missing():
        pytest.skip(reason)
    server = ApacheKafka()
    server.start()
    try:
        yield server
    finally:
        server.remove()
