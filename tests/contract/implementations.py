"""The event logs that the contract suite runs over. A new broker is one class and one line at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from brokers.memory import MemoryEventLog
from mesh.ports import EventLog, Feature
from tests.virtual_clock import VirtualClock


class Implementation(Protocol):
    """A broker under test. It is started once for the tests of a module; each test has a namespace of its own."""

    name: str
    features: frozenset[Feature]

    def start(self, folder: Path) -> None: ...

    def stop(self) -> None: ...

    def event_log(self, namespace: str) -> EventLog:
        """A new log, not started."""
        ...

    def now(self) -> float: ...

    async def elapse(self, seconds: float) -> None:
        """Let time pass."""
        ...

    async def quiet(self) -> None:
        """Let as much time pass as it takes for an unwanted delivery to show itself."""
        ...


class Memory:
    name = "memory"
    features = frozenset({Feature.DEDUPE, Feature.TTL})

    def start(self, folder: Path) -> None:
        self.clock = VirtualClock()

    def stop(self) -> None:
        pass

    def event_log(self, namespace: str) -> EventLog:
        return MemoryEventLog(self.clock)

    def now(self) -> float:
        return self.clock.now()

    async def elapse(self, seconds: float) -> None:
        await self.clock.advance(seconds)

    async def quiet(self) -> None:
        await self.elapse(3600)


IMPLEMENTATIONS: list[type[Implementation]] = [Memory]
