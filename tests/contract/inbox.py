"""What the suites subscribe with."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from mesh.ports import Delivery


class Inbox:
    """A handler that keeps every delivery, and settles it as told."""

    def __init__(self, settle: Callable[[Delivery], None], now: Callable[[], float]) -> None:
        self.deliveries: list[Delivery] = []
        self.times: list[float] = []
        self._settle = settle
        self._now = now
        self._arrival = asyncio.Event()

    def __call__(self, delivery: Delivery) -> None:
        self.times.append(self._now())
        self.deliveries.append(delivery)
        self._arrival.set()
        self._settle(delivery)

    @property
    def payloads(self) -> list[bytes | None]:
        return [delivery.payload for delivery in self.deliveries]

    async def reaches(self, number: int, within: float = 30.0) -> list[Delivery]:
        """All deliveries, once there are `number` of them."""
        try:
            async with asyncio.timeout(within):
                while len(self.deliveries) < number:
                    self._arrival.clear()
                    await self._arrival.wait()
        except TimeoutError:
            pytest.fail(f"{len(self.deliveries)} of {number} deliveries after {within} s")
        return self.deliveries
