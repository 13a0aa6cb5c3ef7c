"""The real clock. Tests use `tests/virtual_clock.py`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


class SystemClock:
    """The `Clock` of the machine and of the running event loop."""

    def now(self) -> float:
        return time.time()

    def call_later(self, delay: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(delay, callback)

    async def sleep(self, delay: float) -> None:
        await asyncio.sleep(delay)
