"""What both kinds of outbox have in common: publishing an event until it is published, and owning tasks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, Protocol

from mesh.envelope import Publication
from mesh.errors import MeshError
from mesh.persistence import persist
from mesh.ports import Clock, Topic
from mesh.ports.stores import OutboxRecord, StateChange
from mesh.pubsub import PubSub
from mesh.state.component import OutboxSettings

log = logging.getLogger("meshwire.state")

IN_HAND = 256
"""Events that one replica works on at the same time; further ones stay where they are."""


class OutboxFailed(MeshError):
    """The events could not be put where they wait for the transaction. Nothing was changed."""


class Outbox(Protocol):
    """The outbox of one component, and what empties it."""

    @property
    def settings(self) -> OutboxSettings: ...

    async def transact(
        self, changes: Sequence[StateChange], records: Sequence[OutboxRecord], metadata: Mapping[str, str]
    ) -> None:
        """As `StateStore.transact`, and the records are published if and only if it happens. Raises `OutboxFailed`."""
        ...

    def withdraw(self, records: Sequence[OutboxRecord]) -> None:
        """Their transaction was refused: it has not happened, nor will it."""
        ...

    def start(self) -> None:
        """Empty it in the background, what was left before all else."""
        ...

    def pubsub_changed(self, name: str) -> None:
        """Another pub/sub component has this name now."""
        ...

    async def close(self) -> None:
        """Stop. What is left waits for another replica, or for the next start."""
        ...


class Forwarder:
    """Publishes what comes out of an outbox, under the id that it has: a broker that drops repeats drops those of two
    replicas."""

    def __init__(self, settings: OutboxSettings, pubsub: PubSub, clock: Clock) -> None:
        self._topic = Topic(settings.pubsub, settings.topic)
        self._pubsub = pubsub
        self._clock = clock

    async def publish(self, event: bytes) -> None:
        """Raises `MeshError`."""
        event_type = "application/cloudevents+json"
        await self._pubsub.publish(Publication(topic=self._topic, body=event, content_type=event_type))

    async def persist(self, attempt: Callable[[], Awaitable[None]], what: str) -> None:
        """Make attempts, with pauses that grow, until one raises no `MeshError`."""
        await persist(attempt, self._clock, what, log, passing=MeshError)


class Tasks:
    """Tasks by name, at most `limit` of them, which end with their owner."""

    def __init__(self, limit: int) -> None:
        self._slots = asyncio.Semaphore(limit)
        self._running: dict[str, asyncio.Task[None]] = {}
        self._closed = False

    def __contains__(self, name: str) -> bool:
        return name in self._running

    @property
    def full(self) -> bool:
        return self._slots.locked()

    async def start(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Waits for room. Does nothing when one of this name runs already."""
        if name in self._running:
            return
        await self._slots.acquire()
        if name in self._running or self._closed:
            self._slots.release()
            return
        task = self._running[name] = asyncio.create_task(work(), name=name)
        task.add_done_callback(lambda _: self._ended(name))

    def _ended(self, name: str) -> None:
        task = self._running.pop(name)
        self._slots.release()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("forwarding %s failed", name, exc_info=error)

    async def close(self) -> None:
        self._closed = True
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
