"""A group over tables in memory, in virtual time, whose members can be paused as SIGSTOP pauses a process."""

from __future__ import annotations

import asyncio

from brokers.memory_tables import MemoryTables
from mesh.fencing import FenceToken
from mesh.ownership import Partitions
from mesh.ports.tables import Conflict, Put
from tests.pausable import PausableTables, Pause
from tests.virtual_clock import VirtualClock

SCOPE = "shop"
GROUP = "orders"
TTL = 9.0


class PausableClock:
    def __init__(self, clock: VirtualClock, pause: Pause) -> None:
        self.now = clock.now
        self.call_later = clock.call_later  # nothing of ownership uses it
        self._clock = clock
        self._pause = pause

    async def sleep(self, delay: float) -> None:
        await self._clock.sleep(delay)
        await self._pause.running.wait()


class Member:
    """A member that never believes to have lost anything: it goes on to write with each token that it ever had."""

    def __init__(self, group: Group, node: str, *, revoking: float = 0.0, count: int) -> None:
        self.node = node
        self.pause = Pause()
        self.stopped = False
        self.tables = PausableTables(group.tables, self.pause)
        self.slow_ones: dict[int, float] = {}
        self.tokens: list[tuple[int, FenceToken]] = []
        self.believed: dict[int, FenceToken] = {}
        self.lost_ones = 0
        self._group = group
        self._revoking = revoking
        self.partitions = Partitions(
            self.tables,
            SCOPE,
            GROUP,
            count,
            self,
            node=node,
            clock=PausableClock(group.clock, self.pause),
            ttl=TTL,
            revoke_limit=4.0,
            elapsed=group.clock.now,
        )

    def gained(self, partition: int, token: FenceToken) -> None:
        assert partition not in self.believed, "gained twice"
        assert token.revision > self._group.newest.get(partition, 0), "tokens of a partition grow"
        self._group.newest[partition] = token.revision
        self._group.moves += 1
        self.believed[partition] = token
        self.tokens.append((partition, token))

    async def revoke(self, partition: int) -> None:
        assert partition in self.believed
        assert self.partitions.token(partition) is not None
        await self._group.clock.sleep(self.slow_ones.get(partition, self._revoking))
        await self.pause.running.wait()
        del self.believed[partition]

    def lost(self, partition: int) -> None:
        self.lost_ones += 1
        del self.believed[partition]

    async def write_with_all_tokens(self) -> None:
        """Past the pause, as a write that was on its way."""
        for partition, token in self.tokens:
            put = Put(key=("written", str(partition)), value=str(token.revision).encode())
            try:
                await self._group.tables.table(SCOPE).commit([put], [token.check()])
            except Conflict:
                self._group.refused += 1
            else:
                assert token.revision == self._group.newest[partition], "only the newest token's writes are stored"
                self._group.written += 1

    def stop(self) -> None:
        self.stopped = True
        self.pause.stop()

    def resume(self) -> None:
        self.stopped = False
        self.pause.resume()


class Group:
    def __init__(self, count: int) -> None:
        self.clock = VirtualClock()
        self.tables = MemoryTables(self.clock)
        self.count = count
        self.members: list[Member] = []
        self.newest: dict[int, int] = {}
        self.moves = 0
        self.refused = 0
        self.written = 0

    def join(self, node: str, *, revoking: float = 0.0) -> Member:
        member = Member(self, node, revoking=revoking, count=self.count)
        self.members.append(member)
        member.partitions.start()
        return member

    async def leave(self, member: Member) -> None:
        self.members.remove(member)
        leaving = asyncio.create_task(member.partitions.close())
        for _ in range(100):
            await self.clock.settle()
            if leaving.done():
                break
            await self.clock.advance(0.25)
        await asyncio.wait_for(leaving, 1)

    @property
    def live(self) -> list[Member]:
        return [member for member in self.members if not member.stopped]

    def owners(self) -> dict[int, Member]:
        """Who owns what at this moment. At most one member may say so."""
        owners: dict[int, Member] = {}
        for member in self.members:
            for partition in member.partitions.owned:
                assert partition not in owners, f"{partition}: {owners[partition].node} and {member.node}"
                owners[partition] = member
        return owners

    async def pass_time(self, seconds: float) -> None:
        """At most one owner at any full second of it."""
        while seconds > 0:
            await self.clock.advance(min(seconds, 1.0))
            self.owners()
            seconds -= 1.0

    def assert_settled(self) -> None:
        owners = self.owners()
        assert set(owners) == set(range(self.count)), f"not owned: {set(range(self.count)) - set(owners)}"
        assert {id(owner) for owner in owners.values()} <= {id(member) for member in self.live}
        sizes = [len(member.partitions.owned) for member in self.live]
        assert max(sizes) - min(sizes) <= 1, sizes
        for member in self.live:
            assert sorted(member.believed) == member.partitions.owned

    async def close(self) -> None:
        for member in list(self.members):
            member.resume()
            await self.leave(member)
        await self.tables.close()
