"""Whether the app is well enough to be given work (Dapr: app health checks)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from mesh.errors import MeshError
from mesh.ports import AppChannel, Clock

logger = logging.getLogger("meshwire.app")

Callback = Callable[[], Awaitable[None]]


class AppHealth:
    """Probes the app and tells its owner of each change. Times in seconds; the defaults are Dapr's.

    When `enabled` the app starts as unhealthy. `threshold` probes must fail in a row until a healthy app counts
    as unhealthy; one success restores it. When not `enabled` the app is always healthy, and never probed.
    """

    def __init__(
        self,
        channel: AppChannel,
        clock: Clock,
        *,
        enabled: bool,
        path: str = "/healthz",
        interval: float = 5.0,
        timeout: float = 0.5,
        threshold: int = 3,
    ) -> None:
        self.enabled = enabled
        self.healthy = not enabled
        self._channel = channel
        self._clock = clock
        self._path = path
        self._interval = interval
        self._timeout = timeout
        self._threshold = threshold
        self._changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, on_healthy: Callback, on_unhealthy: Callback) -> None:
        """Begin to probe, at once and then at every interval.

        The callbacks are called in turn, `on_healthy` first, never both at once. What they raise is logged. A
        change that is undone while a callback runs is not told.

        When not enabled, returns when `on_healthy` has, and passes on what it raises.
        """
        if self.enabled:
            self._tasks = [
                asyncio.create_task(self._watch(), name="app health"),
                asyncio.create_task(self._tell(on_healthy, on_unhealthy), name="app health callbacks"),
            ]
        else:
            await on_healthy()

    async def stop(self) -> None:
        """Probe no more. A callback that is running is cancelled."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self) -> None:
        failures = 0
        while True:
            if await self._probe():
                failures = 0
                self._set(True)
            else:
                failures += 1
                if failures == self._threshold:
                    self._set(False)
            await self._clock.sleep(self._interval)

    async def _probe(self) -> bool:
        try:
            return await self._channel.probe(self._path, timeout=self._timeout)
        except MeshError as exc:
            logger.error("cannot probe the health of the app: %s", exc)
            return False

    def _set(self, healthy: bool) -> None:
        if healthy != self.healthy:
            self.healthy = healthy
            logger.info("the app is %s", _word(healthy))
            self._changed.set()

    async def _tell(self, on_healthy: Callback, on_unhealthy: Callback) -> None:
        """In a task of its own, so that a slow callback does not hold up the probes."""
        told = False
        while True:
            await self._changed.wait()
            self._changed.clear()
            if told != self.healthy:
                told = self.healthy
                try:
                    await (on_healthy if told else on_unhealthy)()
                except Exception:
                    logger.exception("what was to follow on the app being %s failed", _word(told))


def _word(healthy: bool) -> str:
    return "healthy" if healthy else "unhealthy"
