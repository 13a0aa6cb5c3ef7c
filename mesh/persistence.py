"""Attempts that are made again for as long as the broker refuses, with pauses that grow."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from mesh.errors import BrokerError, MeshError
from mesh.ports import Clock

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds between the end of an attempt and the next."""

SAY_AGAIN = 60.0
"""Seconds after which the log is told anew of a trouble that goes on."""

T = TypeVar("T")


class Trouble:
    """What fails several times a second, for as long as the broker refuses, is one line in the log a minute."""

    def __init__(self, clock: Clock, log: logging.Logger) -> None:
        self._clock = clock
        self._log = log
        self._said = ""
        self._when = 0.0

    def say(self, complaint: str, error: BaseException) -> None:
        """As a warning, unless just that was said less than `SAY_AGAIN` seconds ago."""
        text, now = f"{complaint}: {error}", self._clock.now()
        if text != self._said or not 0 <= now - self._when < SAY_AGAIN:
            self._said, self._when = text, now
            self._log.warning("%s", text)


async def persist(
    attempt: Callable[[], Awaitable[T]],
    clock: Clock,
    complaint: str,
    log: logging.Logger,
    *,
    passing: type[MeshError] = BrokerError,
) -> T:
    """What `attempt` returns, however often it has to be made. An error that is `passing` is logged behind
    `complaint`, as a warning; any other is raised."""
    pause = FIRST_PAUSE
    while True:
        try:
            return await attempt()
        except passing as error:
            log.warning("%s, again in %g s: %s", complaint, pause, error)
        await clock.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)
