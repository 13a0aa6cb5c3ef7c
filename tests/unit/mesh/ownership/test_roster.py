"""What is known of a group, over watches that end and streams that are lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

import pytest

from brokers.memory_tables import MemoryTable, MemoryTables
from mesh.errors import BrokerError
from mesh.ownership import records
from mesh.ownership.roster import EMPTY, RETRY_PAUSE, Roster, Seat
from mesh.ports.tables import Current, Delete, Entry, Gone, Key, Put
from tests.virtual_clock import VirtualClock

GROUP = "orders"


class Refusing:
    """A table whose watches are refused from a moment on, as by a server that has no room for them."""

    def __init__(self, table: MemoryTable) -> None:
        self.table = table
        self.refused = False

    async def get(self, key: Key) -> Entry | None:
        return await self.table.get(key)

    async def watch(self, prefix: Key, *, after: int | None = None) -> AsyncGenerator[Entry | Gone | Current, None]:
        if not self.refused:
            changes = self.table.watch(prefix, after=after)
            try:
                async for change in changes:
                    if self.refused:
                        break
                    yield change
            finally:
                await changes.aclose()
        raise BrokerError("insufficient resources")


class Watched:
    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.tables = MemoryTables(self.clock)
        self.table = Refusing(self.tables.table("shop"))
        self.roster = Roster(self.table, GROUP, self.clock, self.clock.now)  # type: ignore[arg-type]
        self.following = asyncio.create_task(self.roster.follow())

    async def own(self, name: str, member: str) -> int:
        return await records.claim(self.table.table, GROUP, name, member)

    async def close(self) -> None:
        self.following.cancel()
        await asyncio.gather(self.following, return_exceptions=True)
        await self.tables.close()


@pytest.fixture
async def watched() -> AsyncIterator[Watched]:
    watched = Watched()
    yield watched
    await watched.close()


async def test_what_goes_while_there_is_no_watch_is_known_to_be_gone_afterwards(watched: Watched) -> None:
    await watched.own("0", "a")
    kept = await watched.own("1", "a")
    await watched.clock.settle()
    assert watched.roster.seat("0").member == "a"
    watched.table.refused = True
    await watched.table.table.commit([Delete(key=records.owner_key(GROUP, "0"))])
    await watched.clock.advance(3 * RETRY_PAUSE)
    watched.table.refused = False
    await watched.clock.advance(RETRY_PAUSE)
    assert watched.roster.seat("0") == EMPTY
    assert watched.roster.seat("1") == Seat("a", kept)


async def test_another_stream_counts_from_one_again(watched: Watched) -> None:
    for _ in range(20):
        await watched.table.table.commit([Put(key=("other",), value=b"")])
    await watched.own("0", "a")
    await watched.own("1", "a")
    await watched.clock.settle()
    watched.table.refused = True
    watched.table.table = MemoryTables(watched.clock).table("shop")
    await watched.tables.close()
    await watched.clock.advance(2 * RETRY_PAUSE)
    revision = await watched.own("0", "b")
    watched.table.refused = False
    await watched.clock.advance(2 * RETRY_PAUSE)
    assert watched.roster.seat("0") == Seat("b", revision)
    assert watched.roster.seat("1") == EMPTY
