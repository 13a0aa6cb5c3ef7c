"""Publishes events that have become due, side by side with the other sidecars of the app."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial

import msgspec

from mesh.delayed.events import KIND, DelayedEvents, decode, occurrence
from mesh.errors import MeshError
from mesh.persistence import persist
from mesh.ports import Clock, Message, Topic
from mesh.ports.alarms import AlarmSubscription
from mesh.scheduling.scheduler import Tick

logger = logging.getLogger("meshwire.delayed")

CONCURRENCY = 256
"""Events under way to the broker at once."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0
"""Seconds between attempts; doubling."""
CLOSE_LIMIT = 10.0
"""Seconds that what is under way gets at the end; what is not settled by then comes again."""


class DelayedPublisher:
    """Works from `start` to `close`, whether there is an app or not."""

    def __init__(
        self, events: DelayedEvents, publish: Callable[[Topic, Message], Awaitable[None]], clock: Clock
    ) -> None:
        """`publish` raises `MeshError`."""
        self._events = events
        self._publish = publish
        self._clock = clock
        self._starting: asyncio.Task[None] | None = None
        self._subscription: AlarmSubscription | None = None
        self._under_way: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        self._starting = asyncio.get_running_loop().create_task(self._serve(), name="take delayed events")

    async def close(self) -> None:
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
        try:
            if self._subscription is not None:
                async with asyncio.timeout(CLOSE_LIMIT):
                    await self._subscription.close()
        except TimeoutError:
            logger.warning("some delayed events were not published in %.0f s; they come again", CLOSE_LIMIT)
        finally:
            for task in self._under_way:
                task.cancel()
            await asyncio.gather(*self._under_way, return_exceptions=True)

    async def _serve(self) -> None:
        serve = partial(self._events.scheduler.serve, KIND, self._take, concurrency=CONCURRENCY)
        self._subscription = await persist(serve, self._clock, "delayed events cannot be taken", logger)

    def _take(self, tick: Tick) -> None:
        task = asyncio.get_running_loop().create_task(self._fire(tick), name="publish a delayed event")
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _fire(self, tick: Tick) -> None:
        _, pubsub, topic, event_id, _ = tick.key
        try:
            message = occurrence(decode(tick.payload), tick.key, tick.due, recurring=tick.recurs)
            await self._publish(Topic(pubsub, topic), message)
        except (MeshError, msgspec.DecodeError) as error:
            pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(tick.attempt - 1, 10))
            logger.warning("event %s is due for topic %s, again in %g s: %s", event_id, topic, pause, error)
            tick.retry(pause)
        except BaseException:
            tick.retry(0)
            raise
        else:
            tick.done()
