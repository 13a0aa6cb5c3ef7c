"""Leases and partitions on every implementation of tables; with processes and faults: `test_ownership_faults.py`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

import pytest

from mesh.clock import SystemClock
from mesh.fencing import FenceToken
from mesh.ownership import Lease, Partitions, records
from mesh.ownership.waits import elapsed
from mesh.ports import Clock
from mesh.ports.tables import Conflict, Put, Tables
from tests.contract.tables import Backing
from tests.pausable import PausableTables, Pause

Connect = Callable[[], Awaitable[Tables]]

SCOPE = "shop"
TTL = 3.0
AT_ONCE = 2.0
"""Seconds that are enough for what takes no waiting, on a machine that is busy."""
TAKEOVER = TTL + 3.0


class Nodes:
    """Processes that want leases and partitions, each with a connection of its own, which can be cut off."""

    def __init__(self, backing: Backing, connect: Connect) -> None:
        virtual = getattr(backing, "clock", None)
        self.clock: Clock = virtual or SystemClock()
        self.elapsed: Callable[[], float] = elapsed if virtual is None else virtual.now
        self.turn = 0.0001 if virtual is None else 0.0
        """Seconds in which a little happens."""
        self._backing = backing
        self._connect = connect
        self.pauses: dict[object, Pause] = {}
        self.leases: list[Lease] = []
        self.members: list[Member] = []

    async def lease(self, name: str = "leader", *, ttl: float = TTL) -> Lease:
        pause = Pause()
        node = f"node{len(self.leases)}"
        tables = PausableTables(await self._connect(), pause)
        lost: list[str] = []
        lease = Lease(
            tables,
            SCOPE,
            name,
            node=node,
            clock=self.clock,
            ttl=ttl,
            elapsed=self.elapsed,
            lost=lambda: lost.append(node),
        )
        self.pauses[lease] = pause
        self.lost = lost
        self.leases.append(lease)
        return lease

    async def member(self, count: int) -> Member:
        member = Member(self, await self._connect(), f"node{len(self.members)}", count)
        self.members.append(member)
        member.partitions.start()
        return member

    async def run(self, work: Coroutine[Any, Any, Any], limit: float = AT_ONCE) -> Any:
        """What it returns; it must end within `limit` seconds."""
        task = asyncio.ensure_future(work)
        await self.until(task.done, limit)
        return await task

    async def until(self, condition: Callable[[], bool], limit: float = AT_ONCE) -> float:
        """How long it took."""
        began = self.elapsed()
        while not condition():
            assert self.elapsed() - began <= limit, "it takes too long"
            await self._backing.elapse(0.02)
        return self.elapsed() - began

    async def elapse(self, seconds: float) -> None:
        await self._backing.elapse(seconds)

    async def close(self) -> None:
        for pause in self.pauses.values():
            pause.resume()
        for lease in self.leases:
            await self.run(lease.release(), 5)
        for member in self.members:
            member.pause.resume()
            await self.run(member.partitions.close(), 5)


class Member:
    def __init__(self, nodes: Nodes, tables: Tables, node: str, count: int) -> None:
        self.pause = Pause()
        self.tables = PausableTables(tables, self.pause)
        self.tokens: dict[int, FenceToken] = {}
        self.lost_ones: list[int] = []
        self.partitions = Partitions(
            self.tables, SCOPE, "orders", count, self, node=node, clock=nodes.clock, ttl=TTL, elapsed=nodes.elapsed
        )

    def gained(self, partition: int, token: FenceToken) -> None:
        self.tokens[partition] = token

    async def revoke(self, partition: int) -> None:
        await asyncio.sleep(0)

    def lost(self, partition: int) -> None:
        self.lost_ones.append(partition)


@pytest.fixture
async def nodes(backing: Backing, connect: Connect) -> AsyncIterator[Nodes]:
    nodes = Nodes(backing, connect)
    yield nodes
    await nodes.close()


@pytest.fixture
async def tables(connect: Connect) -> Tables:
    return await connect()


async def written(tables: Tables, token: FenceToken) -> bool:
    """Whether a write with the token is stored."""
    try:
        await tables.table(SCOPE).commit([Put(key=("written",), value=b"")], [token.check()])
    except Conflict:
        return False
    return True


# Leases


async def test_a_lease_has_one_holder(nodes: Nodes) -> None:
    first, second, other = await nodes.lease(), await nodes.lease(), await nodes.lease("other")
    token = await nodes.run(first.acquire(limit=0))
    assert token is not None
    assert (first.held, first.token) == (True, token)
    assert await nodes.run(second.acquire(limit=0)) is None
    assert (second.held, second.token) == (False, None)
    assert await nodes.run(other.acquire(limit=0)) is not None


async def test_the_token_stays_the_same_while_the_lease_is_renewed(nodes: Nodes, tables: Tables) -> None:
    lease, other = await nodes.lease(), await nodes.lease()
    token = await nodes.run(lease.acquire())
    await nodes.elapse(2 * TTL)
    assert lease.token == token
    assert await nodes.run(other.acquire(limit=0)) is None
    assert await written(tables, token)


async def test_a_waiter_has_a_lease_as_soon_as_it_is_released(nodes: Nodes, tables: Tables) -> None:
    first, second = await nodes.lease(ttl=60), await nodes.lease(ttl=60)
    token = await nodes.run(first.acquire())
    waiting = asyncio.ensure_future(second.acquire())
    await nodes.elapse(0.5)
    assert not waiting.done()
    await nodes.run(first.release())
    assert not first.held
    await nodes.until(waiting.done, AT_ONCE)
    newer = await waiting
    assert newer is not None and newer.revision > token.revision
    assert not await written(tables, token)
    assert await written(tables, newer)


async def test_a_waiter_has_the_lease_of_one_that_is_cut_off_after_its_ttl(nodes: Nodes, tables: Tables) -> None:
    first = await nodes.lease()
    lost = nodes.lost
    second = await nodes.lease()
    token = await nodes.run(first.acquire())
    waiting = asyncio.ensure_future(second.acquire())
    nodes.pauses[first].stop()
    await nodes.elapse(0.2)
    while not waiting.done():
        assert first.held != bool(lost)
        assert not (first.held and second.held)
        await nodes.until(lambda: waiting.done() or bool(lost), TAKEOVER)
        if not waiting.done():
            assert not first.held, "the holder knows before anybody can take over"
            await nodes.until(waiting.done, TAKEOVER)
    assert lost == ["node0"]
    newer = await waiting
    assert newer is not None and newer.revision > token.revision
    assert not await written(tables, token)


async def test_a_renewal_that_was_under_way_does_not_bring_a_lost_lease_back(nodes: Nodes) -> None:
    first, second = await nodes.lease(), await nodes.lease()
    await nodes.run(first.acquire())
    nodes.pauses[first].stop()
    assert await nodes.run(second.acquire(), TAKEOVER) is not None
    nodes.pauses[first].resume()
    await nodes.elapse(TTL)
    assert (first.held, second.held) == (False, True)
    assert await nodes.run(first.acquire(limit=0)) is None
    await nodes.run(second.release())
    assert await nodes.run(first.acquire(limit=0)) is not None


async def test_a_wait_has_its_limit(nodes: Nodes) -> None:
    first, second = await nodes.lease(), await nodes.lease()
    await nodes.run(first.acquire())
    waiting = asyncio.ensure_future(second.acquire(limit=0.5))
    assert await nodes.until(waiting.done, 2.0) >= 0.4
    assert await waiting is None


async def test_of_many_that_wait_each_has_it_once(nodes: Nodes, tables: Tables) -> None:
    leases = [await nodes.lease() for _ in range(4)]
    holders = most = 0

    async def work(lease: Lease) -> int:
        nonlocal holders, most
        token = await lease.acquire()
        assert token is not None
        holders += 1
        most = max(most, holders)
        await asyncio.sleep(0)
        holders -= 1
        await lease.release()
        return token.revision

    tokens = await nodes.run(asyncio.wait_for(asyncio.gather(*map(work, leases)), 20), 20)
    assert len(set(tokens)) == 4
    assert most == 1
    assert (await tables.table(SCOPE).scan(("lease",), limit=10)).entries == [], "losers leave nothing behind"


async def test_a_wait_that_is_cancelled_leaves_nothing_behind(nodes: Nodes) -> None:
    first, second, third = [await nodes.lease() for _ in range(3)]
    await nodes.run(first.acquire())
    waiting = asyncio.ensure_future(second.acquire())
    await nodes.elapse(0.1)
    waiting.cancel()
    await nodes.until(waiting.done)
    await nodes.run(first.release())
    assert await nodes.run(third.acquire(limit=0)) is not None


@pytest.mark.parametrize("turns", range(0, 50, 2))
async def test_an_acquisition_that_is_cancelled_at_any_moment(nodes: Nodes, turns: int) -> None:
    first, second = await nodes.lease(), await nodes.lease()
    acquiring = asyncio.ensure_future(first.acquire())
    for _ in range(turns):
        await asyncio.sleep(nodes.turn)
    acquiring.cancel()
    await nodes.until(acquiring.done)
    if not acquiring.cancelled():
        await nodes.run(first.release())
    assert not first.held
    assert await nodes.run(second.acquire(), TAKEOVER) is not None


async def test_one_acquisition_at_a_time(nodes: Nodes) -> None:
    lease = await nodes.lease()
    await nodes.run(lease.acquire())
    with pytest.raises(RuntimeError, match="is held, or being acquired"):
        await lease.acquire()
    await nodes.run(lease.release())
    await nodes.run(lease.release())
    assert await nodes.run(lease.acquire()) is not None


async def test_a_release_leaves_nothing_behind(nodes: Nodes, tables: Tables) -> None:
    lease = await nodes.lease()
    await nodes.run(lease.acquire())
    assert len((await tables.table(SCOPE).scan(("lease",), limit=10)).entries) == 2
    await nodes.run(lease.release())
    await nodes.elapse(TTL / 2)
    assert (await tables.table(SCOPE).scan(("lease",), limit=10)).entries == []


# Partitions


async def test_members_share_partitions(nodes: Nodes, tables: Tables) -> None:
    first = await nodes.member(16)
    await nodes.until(lambda: len(first.partitions.owned) == 16)
    second = await nodes.member(16)
    await nodes.until(lambda: len(second.partitions.owned) == 8)
    assert sorted(first.partitions.owned + second.partitions.owned) == list(range(16))
    for partition, token in first.tokens.items():
        assert await written(tables, token) == (partition in first.partitions.owned)
    assert first.lost_ones == second.lost_ones == []


async def test_a_member_that_leaves_is_replaced_at_once(nodes: Nodes) -> None:
    first, second = await nodes.member(16), await nodes.member(16)
    await nodes.until(lambda: len(first.partitions.owned) == len(second.partitions.owned) == 8, 2.0)
    await nodes.run(first.partitions.close(), 2.0)
    await nodes.until(lambda: len(second.partitions.owned) == 16)
    assert first.lost_ones == []
    assert first.partitions.owned == []


async def test_a_member_that_is_cut_off_is_replaced_after_its_ttl(nodes: Nodes, tables: Tables) -> None:
    first, second = await nodes.member(16), await nodes.member(16)
    await nodes.until(lambda: len(first.partitions.owned) == len(second.partitions.owned) == 8, 2.0)
    owned = first.partitions.owned
    first.pause.stop()
    await nodes.until(lambda: not first.partitions.owned, TTL)
    assert len(second.partitions.owned) == 8, "it knows before anybody can take over"
    await nodes.until(lambda: len(second.partitions.owned) == 16, TAKEOVER)
    assert sorted(first.lost_ones) == owned
    assert not any([await written(tables, first.tokens[partition]) for partition in owned])
    first.pause.resume()
    await nodes.until(lambda: len(first.partitions.owned) == len(second.partitions.owned) == 8, 3.0)


async def test_what_renewals_cost(nodes: Nodes) -> None:
    """One message each third of the TTL, not one for each partition."""
    member = await nodes.member(64)
    await nodes.until(lambda: len(member.partitions.owned) == 64)
    before = member.tables.commits
    await nodes.elapse(2 * TTL)
    assert member.tables.commits - before in (5, 6)
    assert len(member.partitions.owned) == 64


async def test_what_a_living_member_owns_cannot_be_claimed(nodes: Nodes, tables: Tables) -> None:
    """Whatever one believes about it."""
    member = await nodes.member(1)
    await nodes.until(lambda: member.partitions.owned == [0])
    token = member.tokens[0]
    [sign] = (await tables.table(SCOPE).scan(("lease", "orders", "member"), limit=10)).entries
    with pytest.raises(Conflict) as refused:
        await records.claim(tables.table(SCOPE), "orders", "0", "me", owner=sign.key[-1], revision=token.revision)
    assert refused.value.key == sign.key
    assert await written(tables, token)


@pytest.mark.parametrize("count", [0, -1, 1025])
async def test_a_number_of_partitions_that_cannot_be(nodes: Nodes, count: int) -> None:
    with pytest.raises(ValueError, match="there can be 1 to 1024"):
        await nodes.member(count)
