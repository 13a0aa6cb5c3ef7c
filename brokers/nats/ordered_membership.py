"""A member's place among those that share the ordered lanes of a group: left while it takes nothing, and taken again.

A lane is worked by one member at a time. One that is paused, or whose app is dead, would keep from all others what is
for its lanes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from mesh.errors import BrokerError
from mesh.fencing import FenceToken
from mesh.ownership import Partitions
from mesh.ports import Clock, Timer

logger = logging.getLogger("meshwire.nats")

IDLE_LIMIT = 2.0
"""Seconds for which a member that takes nothing keeps its lanes."""
BREAK = 30.0
"""Seconds for which a member stays away that could hand nothing to its app, while another is there."""


class Membership:
    """`start`, then `close`. Each stay is one `Partitions`: it ends once what is in hand is settled, or after that
    one's limit, and the next begins after its end."""

    def __init__(
        self, join: Callable[[], Partitions], has_others: Callable[[], Awaitable[bool]], clock: Clock, limit: int
    ) -> None:
        """`join` makes the `Partitions` of one stay. `has_others` raises `BrokerError`. `limit` as in `set_limit`."""
        self._join = join
        self._has_others = has_others
        self._clock = clock
        self._limit = limit
        self._partitions: Partitions | None = None
        self._wanted = limit > 0
        self._closing = False
        self._changed = asyncio.Event()
        self._timer: Timer | None = None  # of the next change of `_wanted`
        self._attending: asyncio.Task[None] | None = None
        self._asking: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._attending = asyncio.get_running_loop().create_task(self._attend(), name="attend the ordered lanes")

    def token(self, partition: int) -> FenceToken | None:
        """See `Partitions.token`."""
        return None if self._partitions is None else self._partitions.token(partition)

    def set_limit(self, limit: int) -> None:
        """How many messages the member takes: soon after it is 0 others have the lanes, and from then on until it is
        more nobody if there are none."""
        stopped, was_stopped = not limit, not self._limit
        self._limit = limit
        if stopped and not was_stopped:
            self._want_later(IDLE_LIMIT, False)
        elif was_stopped and not stopped:
            self._want(True)

    def step_aside(self) -> None:
        """Leave for a while, unless there is no other member."""
        if self._wanted and not self._closing and (self._asking is None or self._asking.done()):
            self._asking = asyncio.get_running_loop().create_task(self._step_aside(), name="step aside")

    async def close(self) -> None:
        """Leave for good, as `Partitions.close`."""
        self._closing = True
        self._stop_timer()
        if self._asking is not None:
            self._asking.cancel()
        self._changed.set()
        if self._attending is not None:
            await self._attending

    async def _attend(self) -> None:
        while not self._closing:
            if self._stays():
                self._partitions = self._join()
                self._partitions.start()
                try:
                    while self._stays():
                        await self._change()
                finally:  # also when this is cancelled: then the lanes are lost, and the others told
                    await self._partitions.close()
                self._partitions = None
            else:
                await self._change()

    def _stays(self) -> bool:
        return self._wanted and not self._closing

    async def _change(self) -> None:
        await self._changed.wait()
        self._changed.clear()

    async def _step_aside(self) -> None:
        try:
            if not await self._has_others():
                return
        except BrokerError as error:
            logger.debug("the members of a group cannot be looked up: %s", error)
            return
        if self._limit:
            logger.warning("the app takes nothing of the events in order; others have them for %g s", BREAK)
            self._want(False)
            self._want_later(BREAK, True)

    def _want(self, wanted: bool) -> None:
        self._stop_timer()
        self._wanted = wanted
        self._changed.set()

    def _want_later(self, delay: float, wanted: bool) -> None:
        self._stop_timer()
        self._timer = self._clock.call_later(delay, lambda: self._want(wanted))

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
