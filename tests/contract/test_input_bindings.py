"""The contract of `InputBinding`, on every implementation."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress

import pytest

from mesh.errors import BrokerUnavailable
from mesh.ports.bindings import Accept, Item
from tests.contract.bindings import INPUTS, InputBacking, Source

LIMIT = 30.0
"""Seconds for anything."""


@pytest.fixture(scope="module", params=INPUTS, ids=lambda backing: backing.name)
def backing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[InputBacking]:
    started = request.param()
    started.start(tmp_path_factory.mktemp(started.name))
    yield started
    started.stop()


@pytest.fixture
async def source(backing: InputBacking) -> Source:
    return await backing.source()


class Inbox:
    """Accepts, and notes what. `settle` is called with each item before it is accepted."""

    def __init__(self, settle: Callable[[Item], Awaitable[None]] | None = None) -> None:
        self.items: list[Item] = []
        self.under_way = 0
        self.most = 0
        self._settle = settle
        self._changed = asyncio.Event()

    async def __call__(self, item: Item) -> None:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            self._note()
            if self._settle is not None:
                await self._settle(item)
            self.items.append(item)
        finally:
            self.under_way -= 1
            self._note()

    def _note(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def until(self, satisfied: Callable[[], bool]) -> None:
        async with asyncio.timeout(LIMIT):
            while not satisfied():
                await self._changed.wait()

    async def holds(self, *data: bytes) -> None:
        await self.until(lambda: {item.data for item in self.items} >= set(data))


@asynccontextmanager
async def running(source: Source, accept: Accept) -> AsyncIterator[None]:
    """A replica, which runs its binding again when it fails."""
    binding = source.binding()

    async def run() -> None:
        while True:
            with suppress(Exception):
                await binding.run(accept)
            await asyncio.sleep(0.05)

    await asyncio.wait_for(binding.start(), LIMIT)
    task = asyncio.create_task(run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.wait_for(task, LIMIT)
        await asyncio.wait_for(binding.close(), LIMIT)


async def test_an_item_arrives_as_it_is(source: Source) -> None:
    inbox = Inbox()
    before = await source.offer(1)
    async with running(source, inbox):
        await inbox.holds(before)
        while_it_runs = await source.offer(2)
        await inbox.holds(before, while_it_runs)
    assert Counter(item.data for item in inbox.items) == {before: 1, while_it_runs: 1}
    assert all(item.content_type for item in inbox.items)


async def test_it_is_not_acknowledged_before_it_is_stored(source: Source, backing: InputBacking) -> None:
    async def forever(item: Item) -> None:
        seen.append(item)
        await asyncio.Event().wait()

    seen: list[Item] = []
    inbox, later = Inbox(forever), Inbox()
    data = await source.offer(1)
    async with running(source, inbox):
        await inbox.until(lambda: bool(seen))
    assert not inbox.items
    async with running(source, later):
        await later.holds(data)
    assert seen[0].data == later.items[0].data
    if backing.has_ids:
        assert seen[0].id is not None
        assert seen[0].id == later.items[0].id


async def test_what_is_not_stored_is_offered_again(source: Source, backing: InputBacking) -> None:
    seen: list[Item] = []

    async def fail_twice(item: Item) -> None:
        seen.append(item)
        if len(seen) <= 2:
            raise BrokerUnavailable("no broker")

    inbox = Inbox(fail_twice)
    data = await source.offer(1)
    async with running(source, inbox):
        await inbox.holds(data)
        other = await source.offer(2)
        await inbox.holds(data, other)
    assert len(seen) >= 4
    if backing.has_ids:
        assert len({item.id for item in seen if item.data == data}) == 1
        assert len({item.id for item in seen}) == 2


async def test_what_was_acknowledged_does_not_come_again(source: Source) -> None:
    inbox, later = Inbox(), Inbox()
    first = [await source.offer(number) for number in range(5)]
    async with running(source, inbox):
        await inbox.holds(*first)
        last = await source.offer(5)
        await inbox.holds(last)
        await asyncio.sleep(0.3)  # until the source knows
    async with running(source, later):
        fresh = await source.offer(6)
        await later.holds(fresh)
    assert [item.data for item in later.items] == [fresh]


async def test_replicas_that_come_and_go_lose_nothing(source: Source) -> None:
    stored: list[Item] = []
    wanted: set[bytes] = set()
    for round_ in range(4):
        wanted |= {await source.offer(number) for number in range(round_ * 10, round_ * 10 + 10)}
        inbox = Inbox(lambda item: asyncio.sleep(0.01))
        async with running(source, inbox):
            await inbox.until(lambda inbox=inbox: len(inbox.items) >= 3)
        stored += inbox.items
    inbox = Inbox()
    async with running(source, inbox):
        await inbox.until(lambda: wanted <= {item.data for item in (*stored, *inbox.items)})


async def test_a_bounded_number_is_under_way(source: Source, backing: InputBacking) -> None:
    gate = asyncio.Event()

    async def wait(item: Item) -> None:
        await gate.wait()

    inbox = Inbox(wait)
    wanted = [await source.offer(number) for number in range(backing.bound + 20)]
    async with running(source, inbox):
        await inbox.until(lambda: inbox.under_way > 0)
        await asyncio.sleep(0.3)  # in which more could come
        assert inbox.most <= backing.bound
        gate.set()
        await inbox.holds(*wanted)
        assert inbox.most <= backing.bound


async def test_it_goes_on_when_the_server_was_away(source: Source, backing: InputBacking) -> None:
    inbox = Inbox()
    async with running(source, inbox):
        before = await source.offer(1)
        await inbox.holds(before)
        await asyncio.sleep(0.3)  # until the source knows
        await backing.restart(source)
        after = await source.offer(2)
        await inbox.holds(before, after)


async def test_closing_is_safe_twice_and_before_the_start(source: Source) -> None:
    binding = source.binding()
    await binding.close()
    binding = source.binding()
    await binding.start()
    await binding.ping()
    await asyncio.wait_for(binding.close(), LIMIT)
    await asyncio.wait_for(binding.close(), LIMIT)
