"""Time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol


class Clock(Protocol):
    """Time. Virtual in tests, so that retries and delays take no wall time."""

    def now(self) -> float:
        """Seconds since the epoch."""
        ...

    def call_later(self, delay: float, callback: Callable[[], None]) -> asyncio.TimerHandle | object: ...

    async def sleep(self, delay: float) -> None: ...
