"""Removal of expired items, in stores that only hide them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from mesh.ports import Clock
from mesh.ports.stores import StoreError

log = logging.getLogger("meshwire.state")

FIRST_RETRY = 1.0
"""Seconds after a failed sweep; doubled with each, up to the interval."""


class Sweep:
    """Calls `sweep` after each `interval` (seconds) until closed; sooner after it failed.

    That only one of the processes which share a store removes anything is up to `sweep`.
    """

    def __init__(self, interval: float, sweep: Callable[[], Awaitable[None]], clock: Clock, what: str) -> None:
        """`what` names the store in the log."""
        self._interval = interval
        self._sweep = sweep
        self._clock = clock
        self._what = what
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name=f"sweep {self._what}")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        pause, retry = self._interval, FIRST_RETRY
        while True:
            await self._clock.sleep(pause)
            try:
                await self._sweep()
            except StoreError as error:
                pause, retry = min(retry, self._interval), retry * 2
                log.warning(
                    "%s: expired items could not be removed, next attempt in %g s: %s", self._what, pause, error
                )
            else:
                pause, retry = self._interval, FIRST_RETRY
