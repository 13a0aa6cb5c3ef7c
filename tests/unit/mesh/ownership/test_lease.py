"""A lease whose holder was paused: its end is known by the time, before anything that waits can have noticed."""

from __future__ import annotations

from brokers.memory_tables import MemoryTables
from mesh.ownership import Lease
from mesh.ports.tables import Delete
from tests.virtual_clock import VirtualClock

TTL = 9.0


async def test_one_that_acquires_again_before_it_has_noticed_the_end_keeps_the_new_tenure() -> None:
    clock, slept = VirtualClock(), 0.0
    tables = MemoryTables(clock)
    lost: list[str] = []
    lease = Lease(
        tables,
        "shop",
        "leader",
        node="a",
        clock=clock,
        ttl=TTL,
        elapsed=lambda: clock.now() + slept,
        lost=lambda: lost.append("a"),
    )
    first = await lease.acquire(limit=0)
    assert first is not None
    slept = 2 * TTL  # the machine was suspended: the broker's time went on, and no timer of ours
    [member] = (await tables.table("shop").scan(("lease", "leader", "member"), limit=9)).entries
    await tables.table("shop").commit([Delete(key=member.key)])
    assert not lease.held
    second = await lease.acquire(limit=0)
    assert second is not None
    assert second.revision > first.revision
    await clock.advance(2 * TTL)
    assert lease.token == second
    assert lost == ["a"], "the end of the first tenure is told once"
    await lease.release()
    assert (await tables.table("shop").scan(("lease", "leader"), limit=9)).entries == []
    assert clock.pending == 0
    await tables.close()
