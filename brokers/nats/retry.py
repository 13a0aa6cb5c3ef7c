"""How long, and how often, an operation that may be repeated is tried again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from brokers.nats.connection import Connection, Disconnected
from mesh.errors import BrokerUnavailable

OPERATION_TIMEOUT = 15.0
"""Seconds that an operation may take in all: longer than the restart of a server and than the election of a stream's
leader (4 to 10 s)."""
ATTEMPT_TIMEOUT = 2.0
"""Seconds after which a request without an answer is sent once more. What reaches a stream without a leader is lost in
silence, so this is also how late an election's end may be noticed."""
FIRST_PAUSE, LAST_PAUSE = 0.02, 0.5
"""Seconds between attempts; each pause is twice the one before."""

SILENT = "a nats-server whose disk is full is silent too: its log says so"


class Retry:
    """The patience of one operation, from its first failure on. It ends when `closed` says so."""

    def __init__(
        self, connection: Connection, first_pause: float = FIRST_PAUSE, *, closed: Callable[[], bool] = lambda: False
    ) -> None:
        self._connection = connection
        self._closed = closed
        self._loop = asyncio.get_running_loop()
        self._deadline = self._loop.time() + OPERATION_TIMEOUT
        self._pause = first_pause

    async def after(self, error: BrokerUnavailable) -> None:
        """Return when it is time for the next attempt, connected. Raises `error` when there is no time for one."""
        self._go_on(error)
        if self._deadline - self._loop.time() <= self._pause:
            if type(error) is BrokerUnavailable:  # connected, the stream is there, and not even an error comes
                raise BrokerUnavailable(f"{error}; {SILENT}") from error
            raise error
        await asyncio.sleep(self._pause)
        self._pause = min(2 * self._pause, LAST_PAUSE)
        while True:
            self._go_on(error)
            remaining = self._deadline - self._loop.time()
            try:
                return await self._connection.wait_connected(max(0.0, min(remaining, LAST_PAUSE)))
            except Disconnected:
                if remaining <= LAST_PAUSE:
                    raise

    def _go_on(self, error: BrokerUnavailable) -> None:
        if self._connection.closed or self._closed():
            raise error
