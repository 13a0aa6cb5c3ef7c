from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from itertools import count

import pytest
from _pytest.mark import ParameterSet

from mesh.ports import EventLog, Feature
from mesh.ports.tables import Table, Tables
from tests.contract.implementations import IMPLEMENTATIONS, Implementation
from tests.contract.inbox import Inbox
from tests.contract.tables import BACKINGS, Backing

namespaces = (f"test{number}" for number in count(1))


def parameters(implementations: Sequence[type[Implementation]]) -> list[ParameterSet]:
    return [pytest.param(one, id=one.name, marks=one.marks) for one in implementations]


def started(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Implementation]:
    started = request.param()
    started.start(tmp_path_factory.mktemp(started.name))
    yield started
    started.stop()


@pytest.fixture(scope="module", params=parameters(IMPLEMENTATIONS))
def implementation(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Implementation]:
    yield from started(request, tmp_path_factory)


@pytest.fixture
def needs(implementation: Implementation) -> Callable[[Feature], None]:
    """Skips the test of a feature that the implementation does not declare."""

    def check(feature: Feature) -> None:
        if feature not in implementation.features:
            pytest.skip(f"{implementation.name} does not declare {feature.name}")

    return check


@pytest.fixture
async def log(implementation: Implementation) -> AsyncIterator[EventLog]:
    log = implementation.event_log(next(namespaces))
    await asyncio.wait_for(log.start(), 30)
    yield log
    await asyncio.wait_for(log.close(), 10)


@pytest.fixture
def inbox(implementation: Implementation) -> Callable[..., Inbox]:
    """Makes an `Inbox` that notes the times of its deliveries."""
    return lambda settle=None: Inbox(settle or (lambda delivery: delivery.ack()), implementation.now)


@pytest.fixture(scope="module", params=[pytest.param(one, id=one.name, marks=one.marks) for one in BACKINGS])
def backing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backing]:
    """What tables are kept in."""
    started = request.param()
    started.start(tmp_path_factory.mktemp(started.name))
    yield started
    started.stop()


@pytest.fixture
async def connect(backing: Backing) -> AsyncIterator[Callable[[], Awaitable[Tables]]]:
    """Makes one more client of the test's namespace."""
    namespace = next(namespaces)
    clients: list[Tables] = []

    async def connect() -> Tables:
        clients.append(await backing.client(namespace))
        return clients[-1]

    yield connect
    for client in clients:
        await asyncio.wait_for(client.close(), 10)


@pytest.fixture
async def table(connect: Callable[[], Awaitable[Tables]]) -> Table:
    return (await connect()).table("orders")
