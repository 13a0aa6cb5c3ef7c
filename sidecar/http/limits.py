"""What one listener bears, and the timer that sees to it."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Limits:
    """What one listener bears. Sizes in bytes, times in seconds."""

    head: int = 8192
    """Request line and headers together; beyond it 431. Dapr: `--read-buffer-size` (4 KiB) plus 4 KiB of slack.
    Trailers and chunk extensions without any body between them are held to it too."""
    headers: int = 100
    """Header lines of a request; beyond it 431."""
    connections: int = 4096
    """Open connections of the listener; those beyond it are answered 503."""
    pipeline: int = 64
    """Requests of one connection that wait behind one in progress; beyond it 503."""
    head_time: float = 10.0
    """From the first byte of a request (or the start of the connection) to the end of its headers."""
    body_idle: float = 30.0
    """Between two pieces of a body, while we are willing to read."""
    keep_alive: float = 75.0
    """Between an answer and the next request."""
    write_idle: float = 30.0
    """How long a client may refuse to take any of an answer that fills our buffers."""
    linger: float = 1.0
    """How long we discard what still comes after a refusal, so that the client can read our answer."""
    discard: int = 65536
    """A body that the app did not read is read to its end when it is declared to be no longer than this; else the
    connection is closed."""


class Watched(Protocol):
    """A connection that may take too long."""

    deadline: float
    """When the client must have gone on, by the clock of the loop."""
    write_deadline: float
    """When it must have read on."""

    def expire(self, now: float) -> None:
        """A deadline has passed."""
        ...


class Sweeper:
    """One timer for all connections of a listener. Armed only while there are any."""

    def __init__(self, limits: Limits) -> None:
        times = (limits.head_time, limits.body_idle, limits.keep_alive, limits.write_idle, limits.linger)
        self.period = min(1.0, max(0.02, min(times) / 4))
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, loop: asyncio.AbstractEventLoop, connections: Collection[Watched]) -> None:
        """See to it that `connections`, a collection that lives on, is looked at every `period`."""
        if self._timer is None:
            self._timer = loop.call_later(self.period, self._sweep, loop, connections)

    def _sweep(self, loop: asyncio.AbstractEventLoop, connections: Collection[Watched]) -> None:
        self._timer = None
        now = loop.time()
        for connection in [each for each in connections if min(each.deadline, each.write_deadline) <= now]:
            connection.expire(now)
        if connections:
            self.watch(loop, connections)
