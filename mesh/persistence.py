"""Attempts that are made again for as long as the broker refuses, with pauses that grow."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from mesh.errors import BrokerError, MeshError
from mesh.ports import Clock

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds between the end of an attempt and the next."""

T = TypeVar("T")


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
