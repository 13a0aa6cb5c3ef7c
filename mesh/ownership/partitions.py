"""Partitions of a group, shared among its members: each is owned by at most one, and by one before long."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Protocol

from mesh.errors import BrokerError, MeshError
from mesh.fencing import FenceToken
from mesh.ownership import records
from mesh.ownership.beat import Beat
from mesh.ownership.lease import TTL
from mesh.ownership.roster import Roster
from mesh.ownership.shares import shares
from mesh.ownership.waits import elapsed, end, within
from mesh.persistence import Trouble
from mesh.ports.clock import Clock
from mesh.ports.tables import Conflict, Key, Tables

logger = logging.getLogger("meshwire.ownership")

MAX_PARTITIONS = 1024
REVOKE_LIMIT = 10.0
"""Seconds that the work on a partition has for its end before it is given to another member."""
AT_ONCE = 16
"""Commits of one member under way at the same time."""
CONFLICT_PAUSE = 0.05
"""Seconds after a commit that was refused because the roster was behind."""
RETRY_PAUSE = 0.5
"""Seconds after an operation that failed."""


class PartitionHandler(Protocol):
    """What a member does with partitions. For each one `gained` comes first, then `revoke` or `lost` or one after the
    other, then perhaps `gained` again."""

    def gained(self, partition: int, token: FenceToken) -> None:
        """It is owned from now on. What depends on that is written with `token.check()` as a precondition. Called in
        the event loop; it must not raise."""
        ...

    async def revoke(self, partition: int) -> None:
        """End the work on it: another member is to have it, or this one leaves. It is still owned meanwhile, and given
        up on return. After a limit, or when the partition is lost, it is cancelled and `lost` is called."""
        ...

    def lost(self, partition: int) -> None:
        """It is not owned any more, and what is still written with its token may be refused. Called as `gained`."""
        ...


class Partitions:
    """One member of the group `group` in the table of `scope`, which shares out the partitions 0 to `count` - 1.

    Members that come or go move no more partitions than they must, and nobody has more than one more than another. All
    members must give the same `count`. What a member does costs one message for each third of the TTL, however many
    partitions it owns.
    """

    def __init__(
        self,
        tables: Tables,
        scope: str,
        group: str,
        count: int,
        handler: PartitionHandler,
        *,
        node: str,
        clock: Clock,
        ttl: float = TTL,
        revoke_limit: float = REVOKE_LIMIT,
        elapsed: Callable[[], float] = elapsed,
    ) -> None:
        """`node` names this member for people. `ttl`: seconds after which one that is gone without a word is
        replaced. `elapsed` counts seconds and never stands still. Raises `ValueError` for a count out of range."""
        if not 1 <= count <= MAX_PARTITIONS:
            raise ValueError(f"{count} partitions; there can be 1 to {MAX_PARTITIONS}")
        self._table = tables.table(scope)
        self._scope = scope
        self._group = group
        self._count = count
        self._handler = handler
        self._node = node
        self._clock = clock
        self._trouble = Trouble(clock, logger)
        self._ttl = ttl
        self._revoke_limit = revoke_limit
        self._elapsed = elapsed
        self._roster = Roster(self._table, group, clock, elapsed)
        self._woken = asyncio.Event()
        self._roster.changed = self._woken.set
        self._beat: Beat | None = None
        self._tokens: dict[int, FenceToken] = {}
        self._moves: dict[int, asyncio.Task[None]] = {}  # at most one for each partition
        self._overdue: dict[int, float] = {}  # when to ask whether an owner has given up what is this member's share
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._running: list[asyncio.Task[None]] = []

    def token(self, partition: int) -> FenceToken | None:
        """The token of a partition that is owned, judged at this moment; `None` of any other."""
        beat = self._beat
        return self._tokens.get(partition) if beat is not None and beat.alive else None

    @property
    def owned(self) -> list[int]:
        """The partitions that are owned at this moment."""
        return sorted(self._tokens) if self._beat is not None and self._beat.alive else []

    def start(self) -> None:
        """Join. Trouble with the broker is waited out."""
        if self._running:
            raise RuntimeError(f"this member of {self._group} has joined already")
        create_task = asyncio.get_running_loop().create_task
        self._running = [
            create_task(self._roster.follow(), name=f"watch the group {self._group}"),
            create_task(self._take_part(), name=f"partitions of {self._group}"),
        ]
        for task in self._running:
            task.add_done_callback(self._ended)

    async def close(self) -> None:
        """Leave: others have the partitions once `revoke` has returned for all. When it is cancelled, they are lost."""
        try:
            await end(*self._running[1:])
            if self._beat is not None and self._beat.alive:
                await end(*(move for partition, move in self._moves.items() if partition not in self._tokens))
                for partition in self._tokens:
                    self._start(partition, self._hand_over)
                await asyncio.gather(*self._moves.values(), return_exceptions=True)
        finally:
            beat, self._beat = self._beat, None
            self._lose_all()
            await end(*self._running, *self._moves.values())
            if beat is not None:
                await beat.stop()  # from here on, others have them

    async def _take_part(self) -> None:
        while True:
            self._woken.clear()
            if self._beat is None:
                await self._begin()
            elif self._roster.current:
                self._move(self._beat)
            await within(self._clock, self._ttl / 3, _wait_for(self._woken))

    async def _begin(self) -> None:
        """A life of this member: it ends when it could not be renewed, and the next one begins with nothing."""
        beat = Beat(
            self._table,
            self._group,
            self._node,
            ttl=self._ttl,
            clock=self._clock,
            elapsed=self._elapsed,
            lost=self._die,
        )
        try:
            await beat.start()
            self._beat = beat
        except MeshError as error:
            self._trouble.say(f"{self._node} cannot join {self._group} yet", error)
        finally:
            if self._beat is None:
                await beat.stop()  # perhaps only the answer was lost, and others would keep a share for it
        if self._beat is None:
            await self._clock.sleep(RETRY_PAUSE)
        self._woken.set()

    def _move(self, beat: Beat) -> None:
        """Begin what brings the partitions to those that should own them."""
        seats = [self._roster.seat(str(partition)) for partition in range(self._count)]
        owners = {partition: seat.member for partition, seat in enumerate(seats)}
        plan = shares(self._count, self._roster.members | {beat.id}, owners)
        for partition, seat in enumerate(seats):
            if partition in self._moves or str(partition) in self._roster.unreadable:
                continue
            is_mine = plan[partition] == beat.id
            waits = is_mine and seat.member != beat.id and self._roster.is_member(seat.member)
            if not waits:
                self._overdue.pop(partition, None)
            token = self._tokens.get(partition)
            if token is not None and seat != (beat.id, token.revision):
                # Somebody else has removed the record: what is written with the token is refused from now on.
                logger.error("partition %d of %s was taken from %s", partition, self._group, self._node)
                del self._tokens[partition]
                self._handler.lost(partition)
            if partition in self._tokens:
                if not is_mine:
                    self._start(partition, self._hand_over)
            elif seat.member == beat.id and not is_mine:
                self._start(partition, self._disown)
            elif waits:
                if self._elapsed() >= self._overdue.setdefault(partition, self._elapsed() + self._ttl):
                    del self._overdue[partition]
                    self._start(partition, self._ask)
            elif is_mine:
                self._start(partition, self._claim)

    def _start(self, partition: int, move: Callable[[int, Beat], Coroutine[None, None, None]]) -> None:
        beat = self._beat
        if beat is None or partition in self._moves:
            return

        def ended(task: asyncio.Task[None]) -> None:
            del self._moves[partition]
            if not task.cancelled() and (error := task.exception()) is not None:
                logger.error("partition %d of %s: %s", partition, self._group, error, exc_info=error)
            self._woken.set()

        task = asyncio.get_running_loop().create_task(
            move(partition, beat), name=f"{move.__name__} {self._group} {partition}"
        )
        self._moves[partition] = task
        task.add_done_callback(ended)

    async def _ask(self, partition: int, _beat: Beat) -> None:
        """Whether the word of a watch was missed."""
        await self._look(records.owner_key(self._group, str(partition)))

    async def _claim(self, partition: int, beat: Beat) -> None:
        name = str(partition)
        async with self._slots:
            seat = self._roster.seat(name)
            if seat.member != beat.id and self._roster.is_member(seat.member):
                return  # while this waited for a slot
            try:
                revision = await records.claim(
                    self._table, self._group, name, beat.id, owner=seat.member, revision=seat.revision
                )
            except Conflict as conflict:
                await self._look(conflict.key)
                return
            except BrokerError as error:
                logger.debug("partition %d of %s cannot be had yet: %s", partition, self._group, error)
                await self._clock.sleep(RETRY_PAUSE)
                return
        self._roster.note_seat(name, beat.id, revision)
        token = FenceToken(self._scope, records.owner_key(self._group, name), revision)
        self._tokens[partition] = token
        self._handler.gained(partition, token)

    async def _hand_over(self, partition: int, beat: Beat) -> None:
        try:
            in_time = await within(self._clock, self._revoke_limit, self._handler.revoke(partition))
        except Exception as error:
            logger.error("partition %d of %s: revoke: %s", partition, self._group, error, exc_info=error)
            in_time = False
        if self._tokens.pop(partition, None) is not None and not in_time:
            logger.warning("partition %d of %s is given up while it is in use", partition, self._group)
            self._handler.lost(partition)
        await self._disown(partition, beat)

    async def _disown(self, partition: int, beat: Beat) -> None:
        """Remove this member's name from the owner record."""
        name = str(partition)
        while beat.alive and (seat := self._roster.seat(name)).member == beat.id:
            async with self._slots:
                try:
                    revision = await records.give_up(self._table, self._group, name, seat.revision)
                except BrokerError as error:
                    logger.debug("partition %d of %s is not given up yet: %s", partition, self._group, error)
                    await self._clock.sleep(RETRY_PAUSE)
                    continue
            if revision is None:
                await self._look(records.owner_key(self._group, name))
            else:
                self._roster.note_seat(name, "", revision)

    async def _look(self, key: Key) -> None:
        try:
            await self._roster.look(key)
        except BrokerError as error:
            logger.debug("%s cannot be read: %s", "/".join(key), error)
        await self._clock.sleep(CONFLICT_PAUSE)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            logger.error("%s takes no part any more: %s", self._node, task.exception(), exc_info=task.exception())

    def _die(self) -> None:
        self._beat = None
        self._lose_all()
        self._woken.set()

    def _lose_all(self) -> None:
        for move in self._moves.values():
            move.cancel()
        lost = list(self._tokens)
        self._tokens.clear()
        for partition in lost:
            self._handler.lost(partition)


async def _wait_for(event: asyncio.Event) -> None:
    await event.wait()
