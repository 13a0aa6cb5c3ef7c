"""One life of a member, and how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from brokers.memory_tables import MemoryTable, MemoryTables
from mesh.ownership.beat import MARGIN, Beat
from mesh.ports.tables import Change, Check, Delete
from tests.pausable import PausableTables, Pause
from tests.virtual_clock import VirtualClock

TTL = 9.0


class Member:
    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.skipped = 0.0
        self.table = MemoryTables(self.clock).table("shop")
        self.lost = 0

    def elapsed(self) -> float:
        return self.clock.now() + self.skipped

    def on_lost(self) -> None:
        self.lost += 1

    def beat(self, table: object = None, ttl: float = TTL) -> Beat:
        return Beat(
            table or self.table,  # type: ignore[arg-type]
            "orders",
            "node",
            ttl=ttl,
            clock=self.clock,
            elapsed=self.elapsed,
            lost=self.on_lost,
        )

    async def is_there(self, beat: Beat) -> bool:
        return await self.table.get(("lease", "orders", "member", beat.id)) is not None


class InFlight:
    """Once held up, commits arrive when they are let through, even if nobody waits for them any more."""

    def __init__(self, table: MemoryTable) -> None:
        self.get = table.get
        self.through = asyncio.Event()
        self.through.set()
        self._table = table
        self._flights: set[asyncio.Task[list[int]]] = set()

    async def commit(self, changes: Sequence[Change], checks: Sequence[Check] = ()) -> list[int]:
        async def fly() -> list[int]:
            await self.through.wait()
            return await self._table.commit(changes, checks)

        flight = asyncio.create_task(fly())
        self._flights.add(flight)
        return await asyncio.shield(flight)

    async def landed(self) -> list[object]:
        return list(await asyncio.gather(*self._flights, return_exceptions=True))


async def test_it_lives_as_long_as_it_is_renewed() -> None:
    member = Member()
    beat = member.beat()
    assert not beat.alive
    await beat.start()
    for _ in range(10):
        await member.clock.advance(TTL / 2)
        assert beat.alive
        assert await member.is_there(beat)
    await beat.stop()
    assert not beat.alive
    assert not await member.is_there(beat)
    await member.clock.advance(TTL)
    assert (member.lost, member.clock.pending) == (0, 0)


async def test_it_ends_before_the_broker_can_see_it() -> None:
    member = Member()
    pause = Pause()
    beat = member.beat(PausableTables(MemoryTables(member.clock), pause).table("shop"))
    await beat.start()
    pause.stop()
    await member.clock.advance(TTL - MARGIN - 0.01)
    assert (beat.alive, member.lost) == (True, 0)
    await member.clock.advance(0.02)
    assert (beat.alive, member.lost) == (False, 1)


async def test_it_counts_from_when_a_renewal_was_sent() -> None:
    member = Member()
    table = InFlight(member.table)
    beat = member.beat(table)
    await beat.start()
    table.through.clear()
    await member.clock.advance(TTL / 3)  # a renewal is sent …
    await member.clock.advance(TTL / 3)
    table.through.set()  # … and answered much later
    await member.clock.settle()
    table.through.clear()
    await member.clock.advance(TTL * 2 / 3 - MARGIN - 0.01)
    assert beat.alive
    await member.clock.advance(0.02)
    assert not beat.alive


async def test_a_renewal_that_arrives_too_late_does_not_bring_it_back() -> None:
    member = Member()
    table = InFlight(member.table)
    beat = member.beat(table)
    await beat.start()
    table.through.clear()
    await member.clock.advance(TTL + 1)
    assert member.lost == 1
    table.through.set()
    await table.landed()
    assert not await member.is_there(beat)


async def test_an_answer_after_a_pause_beyond_the_end_is_too_late() -> None:
    """The process was stopped between a renewal and its answer, which it then sees before any of its timers."""
    member = Member()
    table = InFlight(member.table)
    beat = member.beat(table)
    await beat.start()
    table.through.clear()
    await member.clock.advance(TTL / 3)
    member.skipped += TTL
    assert not beat.alive
    table.through.set()
    await member.clock.settle()
    assert (beat.alive, member.lost) == (False, 1)


async def test_a_renewal_whose_answer_was_lost() -> None:
    member = Member()
    tables = PausableTables(MemoryTables(member.clock), Pause())
    beat = member.beat(tables.table("shop"))
    await beat.start()
    tables.unanswered = 2
    await member.clock.advance(5 * TTL)
    assert (beat.alive, member.lost, tables.unanswered) == (True, 0, 0)


async def test_its_record_is_taken_away() -> None:
    member = Member()
    beat = member.beat()
    await beat.start()
    await member.table.commit([Delete(key=("lease", "orders", "member", beat.id))])
    await member.clock.advance(TTL / 3)
    assert (beat.alive, member.lost) == (False, 1)


@pytest.mark.parametrize("ttl", [0.0, 2.9, float("nan")])
def test_a_ttl_that_is_too_short(ttl: float) -> None:
    with pytest.raises(ValueError, match="at least 3 s"):
        Member().beat(ttl=ttl)
