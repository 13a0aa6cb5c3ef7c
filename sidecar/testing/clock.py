"""Time that passes when the test says so."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Awaitable, Callable
from itertools import count

TURNS = 20
"""Turns of the event loop that `settle` gives to callbacks and tasks that are ready to run."""


class Timer:
    """A pending call; `cancel` takes it back."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None

    def cancelled(self) -> bool:
        return self.callback is None


class VirtualClock:
    """A `Clock` that stands still until `advance`.

    For code that waits on this clock only: waits on the network or on `asyncio.sleep` go on in wall time.
    """

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self._now = now
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = count()

    def now(self) -> float:
        return self._now

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        timer = Timer(callback)
        heapq.heappush(self._timers, (self._now + max(delay, 0.0), next(self._order), timer))
        return timer

    async def sleep(self, delay: float) -> None:
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        timer = self.call_later(delay, lambda: None if woken.done() else woken.set_result(None))
        try:
            await woken
        finally:
            timer.cancel()

    async def settle(self) -> None:
        """Let everything run that waits for nothing."""
        for _ in range(TURNS):
            await asyncio.sleep(0)

    async def advance(self, seconds: float, settle: Callable[[], Awaitable[None]] | None = None) -> None:
        """Let `seconds` pass: what falls due runs in order, each at its own moment, and so do the tasks it wakes.

        `settle` waits until all of that has happened, where turns of this event loop are not enough.
        """
        settle = settle or self.settle
        await settle()
        end = self._now + seconds
        while self._timers and self._timers[0][0] <= end:
            self._now, _, timer = heapq.heappop(self._timers)
            if timer.callback:
                timer.callback()
                await settle()
        self._now = end

    @property
    def pending(self) -> int:
        """How many timers are running."""
        return sum(not timer.cancelled() for _, _, timer in self._timers)
