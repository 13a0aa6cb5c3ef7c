"""Waits that end, in the time of a clock that tests can turn."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import Any

from mesh.ports.clock import Clock


def elapsed() -> float:
    """Seconds that have passed since some moment: never set back, and counted also while this process, or the whole
    machine, was stopped."""
    return time.clock_gettime(_CLOCK)


_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


async def within(clock: Clock, limit: float, work: Awaitable[None]) -> bool:
    """Whether `work` ended within `limit` seconds; it is cancelled when not. Raises what `work` does."""
    working = asyncio.ensure_future(work)
    limiting = asyncio.ensure_future(clock.sleep(limit))
    try:
        await asyncio.wait((working, limiting), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
            return True
        return False
    finally:
        await end(working, limiting)


async def end(*tasks: asyncio.Future[Any]) -> None:
    """Cancel them, and return when they have ended, in whatever way."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
