"""A member's sign of life: a record with a TTL, renewed as long as the member is there."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from mesh.errors import BrokerError
from mesh.ids import random_id
from mesh.ownership import records
from mesh.ownership.waits import within
from mesh.ports.clock import Clock
from mesh.ports.tables import ABSENT, Conflict, Delete, Put, Table

logger = logging.getLogger("meshwire.ownership")

MIN_TTL = 3.0
"""Seconds. A third passes between renewals, and one is kept as the margin."""
MARGIN = 1.0
"""Seconds by which a member takes itself for lost before the broker can: tables keep a TTL to within a second."""
RETRY_PAUSE = 0.25
"""Seconds from a renewal that failed to the next try."""
STOP_LIMIT = 2.0
"""Seconds that the farewell may take; without it the record expires."""


class Beat:
    """One life of a member: it begins with `start`, and ends with `stop` or when it could not be renewed in time.

    A life that has ended never comes back: its id is its own, and a renewal depends on the one before. The member
    knows of its end before the broker can see it, by the time since it *sent* the last renewal that succeeded.
    """

    def __init__(
        self,
        table: Table,
        group: str,
        node: str,
        *,
        ttl: float,
        clock: Clock,
        elapsed: Callable[[], float],
        lost: Callable[[], None],
    ) -> None:
        """`node` names the member for people. `lost` is called once, in the event loop, when the life ends without
        `stop`; it must not raise. `ttl` in seconds, at least `MIN_TTL` (`ValueError`)."""
        if not ttl >= MIN_TTL:
            raise ValueError(f"a ttl of {ttl:g} s; it is at least {MIN_TTL:g} s")
        self.id = f"{node}.{random_id()}"
        self._table = table
        self._group = group
        self._ttl = ttl
        self._clock = clock
        self._elapsed = elapsed
        self._lost = lost
        self._revision = ABSENT
        self._deadline = 0.0
        self._ended = False
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def alive(self) -> bool:
        """Whether the broker cannot have let the record expire yet. Also right in the moment after a pause of this
        process, before anything else had a chance to notice it."""
        return not self._ended and self._elapsed() < self._deadline

    async def start(self) -> None:
        """Returns when the broker has the record. Raises errors of `Table`."""
        sent = self._elapsed()
        [self._revision] = await self._table.commit([self._record()])
        self._deadline = sent + self._ttl - MARGIN
        create_task = asyncio.get_running_loop().create_task
        self._tasks = [
            create_task(self._renew(), name=f"renew {self.id}"),
            create_task(self._watch(), name=f"watch over {self.id}"),
        ]

    async def stop(self) -> None:
        """The member leaves: others see it at once, or after the TTL when the broker cannot be told. Never raises."""
        self._end()
        await within(self._clock, STOP_LIMIT, self._say_farewell())

    async def _say_farewell(self) -> None:
        try:
            await self._table.commit([Delete(key=records.member_key(self._group, self.id))])
        except BrokerError as error:
            logger.debug("%s left without a word: %s", self.id, error)

    def _record(self) -> Put:
        return records.sign(self._group, self.id, self._ttl, self._revision)

    async def _renew(self) -> None:
        while True:
            await self._clock.sleep(self._ttl / 3)
            while not await self._renewed():
                await self._clock.sleep(RETRY_PAUSE)

    async def _renewed(self) -> bool:
        """Whether there is nothing to try again."""
        sent = self._elapsed()
        if sent >= self._deadline:
            self.die()
            return True
        try:
            [self._revision] = await self._table.commit([self._record()])
        except Conflict:
            return await self._caught_up()
        except BrokerError as error:
            logger.debug("%s is not renewed yet: %s", self.id, error)
            return False
        # An answer that comes too late changes nothing: others know of the end by now, or will.
        if self._elapsed() >= self._deadline:
            self.die()
            return True
        self._deadline = sent + self._ttl - MARGIN
        return True

    async def _caught_up(self) -> bool:
        """An earlier renewal happened though its answer was lost, or the record has expired."""
        try:
            entry = await self._table.get(records.member_key(self._group, self.id))
        except BrokerError:
            return False
        if entry is None:
            self.die()
            return True
        self._revision = entry.revision
        return await self._renewed()

    async def _watch(self) -> None:
        """The end must be noticed also while a renewal hangs."""
        while (left := self._deadline - self._elapsed()) > 0:
            await self._clock.sleep(left)
        self.die()

    def die(self) -> None:
        """End it, as one that could not be renewed; nothing happens when it has ended already."""
        if not self._ended:
            logger.warning("%s could not be renewed within %g s: it has lost all it owned", self.id, self._ttl)
            self._end()
            self._lost()

    def _end(self) -> None:
        self._ended = True
        for task in self._tasks:
            task.cancel()  # perhaps the one that runs: it ends at its next wait
