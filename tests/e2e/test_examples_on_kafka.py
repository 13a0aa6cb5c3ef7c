"""Examples that depend on no broker do on Apache Kafka what their READMEs say: `MESHWIRE_BROKER` is all that differs.

One of each kind: events, state, one with actors, calls and events, and a service without a sidecar.
"""

# ruff: noqa: F401, F811 -- what is imported is run

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path

import pytest

from tests.e2e.collectors import HttpCollector
from tests.e2e.test_actor_examples import check_shop, example, one_trace
from tests.e2e.test_examples import Start, check_faststream, test_node
from tests.e2e.test_examples import start as start_anywhere
from tests.e2e.test_state import check_the_example
from tests.servers import kafka_jars
from tests.servers.apache_kafka import ApacheKafka

pytestmark = [pytest.mark.servers, pytest.mark.timeout(240)]
prefixes = (f"example{number}" for number in count(1))


@pytest.fixture(scope="module")
def server() -> Iterator[ApacheKafka]:
    if reason := kafka_jars.missing():
        pytest.skip(reason)
    server = ApacheKafka(auto_create_topics_enable="false", group_initial_rebalance_delay_ms=0)
    server.start()
    yield server
    server.remove()


@pytest.fixture
def broker(server: ApacheKafka) -> dict[str, str]:
    return {"MESHWIRE_BROKER": server.url, "MESHWIRE_PREFIX": next(prefixes)}


@pytest.fixture
def start(start_anywhere: Start, broker: dict[str, str]) -> Start:
    return partial(start_anywhere, **broker)


async def test_counters(tmp_path: Path, broker: dict[str, str]) -> None:
    await check_the_example(tmp_path, **broker)


async def test_shop(tmp_path: Path, broker: dict[str, str]) -> None:
    with HttpCollector() as collector:
        async with example(tmp_path, "shop", broker, **{"9411": collector.port}) as shop:
            await check_shop(shop)
            await one_trace(collector)


async def test_faststream(start_anywhere: Start, server: ApacheKafka, tmp_path: Path) -> None:
    await check_faststream(start_anywhere, tmp_path, server.url)
