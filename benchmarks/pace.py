"""Things that are due at fixed moments, whatever else happens: the open loop of the load generators."""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
import time
from collections.abc import Callable

FASTEST_TICK = 100_000
"""Nanoseconds between two looks at what is due, at the least."""


async def keep_pace(
    rate: float, total: int, start: int, send: Callable[[int], None], done: asyncio.Future[None]
) -> None:
    """Call `send` `total` times, `rate` times a second from `start` on, each time with the moment (nanoseconds of the
    monotonic clock) at which it was due. Returns, or raises, with `done`."""
    pause = 1e9 / rate
    sent = 0
    loop = asyncio.get_running_loop()
    ticks = _ticks(max(int(pause), FASTEST_TICK))

    def send_what_is_due() -> None:
        nonlocal sent
        os.read(ticks, 8)
        now = time.monotonic_ns()
        while sent != total and (due := start + int(sent * pause)) <= now:
            sent += 1
            send(due)

    loop.add_reader(ticks, send_what_is_due)
    try:
        await done
    finally:
        loop.remove_reader(ticks)
        os.close(ticks)


def _ticks(nanoseconds: int) -> int:
    """A descriptor that becomes readable every so often (timerfd_create(2); in `os` from Python 3.13 on).

    The timers of event loops count milliseconds, which is more than most of the latencies to be measured.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = int(libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_CLOEXEC))
    seconds, rest = divmod(nanoseconds, 10**9)
    interval = struct.pack("llll", seconds, rest, seconds, rest)
    if descriptor < 0 or libc.timerfd_settime(descriptor, 0, interval, None) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return descriptor
