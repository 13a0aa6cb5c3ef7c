"""The outbox of a store that keeps events in the same atomic batch as the items, and the relay that forwards them.

Every replica runs the relay. The one that made a transaction forwards its events at once; what lies longer than
`GRACE`, because that replica is gone or in trouble, is forwarded by all the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from typing import cast

from mesh.ports import Clock
from mesh.ports.stores import OutboxRecord, OutboxStateStore, StateChange
from mesh.pubsub import PubSub
from mesh.state.component import OutboxSettings, StateComponent
from mesh.state.forwarding import IN_HAND, Forwarder, Tasks

GRACE = 3.0
"""Seconds that the replica which made a transaction has before others forward its events."""
MOST_POSTPONED = 10_000
"""Events of others that a replica remembers meanwhile; the watch waits when there are more."""


class StoredOutbox:
    """An `Outbox` of a store that declares `OUTBOX`."""

    def __init__(self, component: StateComponent, settings: OutboxSettings, pubsub: PubSub, clock: Clock) -> None:
        self.settings = settings
        self._store = cast(OutboxStateStore, component.store)
        self._prefix = component.key_prefix
        self._what = f"outbox of {component.name}"
        self._clock = clock
        self._forwarder = Forwarder(settings, pubsub, clock)
        self._tasks = Tasks(IN_HAND)
        self._own: set[str] = set()
        """Of transactions that this process makes."""
        self._postponed: asyncio.Queue[tuple[float, str]] = asyncio.Queue(MOST_POSTPONED)
        """When to forward which event of others. None is in hand before: own ones would have to wait for it."""
        self._background: list[asyncio.Task[None]] = []

    async def transact(
        self, changes: Sequence[StateChange], records: Sequence[OutboxRecord], metadata: Mapping[str, str]
    ) -> None:
        own = [record.id for record in records]
        self._own.update(own)
        try:
            await self._store.transact_with(changes, records, metadata)
        except BaseException:  # should it have happened all the same, the relay takes them as it does another's
            self._own.difference_update(own)
            raise
        for record_id in own:
            if not self._tasks.full:  # else the watch brings them in its own time
                await self._take(record_id)

    def withdraw(self, records: Sequence[OutboxRecord]) -> None:
        pass  # they were refused with it

    def start(self) -> None:
        if not self._background:
            works = (self._forwarder.persist(self._watch, self._what), self._forward_postponed())
            self._background = [asyncio.create_task(work, name=self._what) for work in works]

    def pubsub_changed(self, name: str) -> None:
        pass  # it is asked for with each event

    async def close(self) -> None:
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self._tasks.close()

    async def _watch(self) -> None:
        async with aclosing(self._store.pending(self._prefix)) as pending:
            async for record_id in pending:
                if record_id in self._own:
                    await self._take(record_id)
                elif record_id not in self._tasks:
                    await self._postponed.put((self._clock.now() + GRACE, record_id))

    async def _forward_postponed(self) -> None:
        while True:
            due, record_id = await self._postponed.get()
            await self._clock.sleep(max(0.0, due - self._clock.now()))
            await self._take(record_id)

    async def _take(self, record_id: str) -> None:
        await self._tasks.start(record_id, lambda: self._forward(record_id))

    async def _forward(self, record_id: str) -> None:
        self._own.discard(record_id)
        await self._forwarder.persist(lambda: self._attempt(record_id), f"{self._what}: event {record_id}")

    async def _attempt(self, record_id: str) -> None:
        record = await self._store.record(self._prefix, record_id)
        if record is not None:
            await self._forwarder.publish(record.event)
            await self._store.remove_record(self._prefix, record_id)
