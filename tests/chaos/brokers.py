"""Apache Kafka for tests that end it and start it again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.servers import kafka_jars
from tests.servers.apache_kafka import ApacheKafka


@contextmanager
def kafka() -> Iterator[ApacheKafka]:
    """One of its own, started. Skips the test where there is none."""
    if reason := kafka_jars.missing():
        pytest.skip(reason)
    server = ApacheKafka()
    server.start()
    try:
        yield server
    finally:
        server.remove()
