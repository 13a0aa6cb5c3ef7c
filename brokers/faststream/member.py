"""A FastStream subscriber as a member of a group: what its handlers make of deliveries, settled by the mesh's rules."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import NamedTuple

from mesh.delivery import Plan, dead_letter
from mesh.errors import BrokerError
from mesh.ports import Delivery, EventLog, Group, Subscription

logger = logging.getLogger("meshwire.faststream")


class Membership(NamedTuple):
    """What a subscriber asks for."""

    group: Group
    plan: Plan
    concurrency: int


class Member:
    """One FastStream subscriber as a member of a group."""

    def __init__(self, log: EventLog, membership: Membership, consume: Callable[[Held], Awaitable[object]]) -> None:
        """`consume` hands over to FastStream, which settles what it is given."""
        self._log = log
        self._group = membership.group
        self._plan = membership.plan
        self._concurrency = membership.concurrency
        self._consume = consume
        self._subscription: Subscription | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._unsettled: set[Held] = set()
        self._started = asyncio.Event()
        self._stopping = False

    async def start(self) -> None:
        try:
            self._subscription = await self._log.subscribe(
                self._group, self._take, concurrency=self._concurrency, order=self._plan.order
            )
        except BaseException:
            for task in self._tasks:  # what came before it failed goes to other members
                task.cancel()
            raise
        # FastStream takes messages from the moment this returns, and ignores those that come before.
        self._started.set()

    async def stop(self) -> None:
        """Called by FastStream when its handlers have ended, or have had their time to."""
        self._stopping = True
        current = asyncio.current_task()
        for task in self._tasks:
            if task is not current:  # a handler that stops its own subscriber
                task.cancel()
        for held in list(self._unsettled):
            held.release()
        if self._subscription is not None:
            await self._subscription.close()

    def _take(self, delivery: Delivery) -> None:
        if self._stopping:
            delivery.release()
            return
        held = Held(self, delivery)
        self._unsettled.add(held)
        task = asyncio.get_running_loop().create_task(self._handle(held))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _handle(self, held: Held) -> None:
        await self._started.wait()
        try:
            async with asyncio.timeout(self._plan.timeout):
                # Returns without a verdict when FastStream is stopping: `stop` gives those back.
                await self._consume(held)
        except TimeoutError:
            logger.warning("the handler of topic %s took more than %.0f s", self._group.topic.name, self._plan.timeout)
            await held.fail()

    def settled(self, held: Held) -> None:
        self._unsettled.discard(held)

    async def fail(self, held: Held) -> None:
        """To the dead letter topic, or once more after a pause."""
        target = self._plan.dead_letter
        if target is not None and not self._stopping:
            try:
                await self._log.publish(target, dead_letter(held.delivery, self._group))
            except BrokerError as error:
                logger.warning("the dead letter topic %s did not take an event: %s", target.name, error)
            else:
                held.done()
                return
        if self._stopping:
            held.release()
        else:
            held.give_back(self._plan.pause(held.delivery.attempt))

    async def drop(self, held: Held) -> None:
        if self._plan.dead_letter is not None:
            await self.fail(held)
        else:
            logger.info("event %s of topic %s dropped", held.delivery.position, self._group.topic.name)
            held.done()


class Held:
    """A delivery that a handler has. The broker is kept waiting meanwhile."""

    __slots__ = ("_member", "delivery", "settled")

    def __init__(self, member: Member, delivery: Delivery) -> None:
        self._member = member
        self.delivery = delivery
        self.settled = False
        """From then on every verdict is ignored."""

    def done(self) -> None:
        self._settle(self.delivery.ack)

    def give_back(self, delay: float) -> None:
        """It comes again after `delay` seconds."""
        self._settle(partial(self.delivery.retry, delay))

    def release(self) -> None:
        """Others get it, as if it had never come."""
        self._settle(self.delivery.release)

    async def fail(self, delay: float | None = None) -> None:
        """It comes again after `delay` seconds; without `delay` the plan says what becomes of it."""
        if self.settled:
            return
        if delay is None:
            await self._member.fail(self)
        else:
            self.give_back(delay)

    async def drop(self) -> None:
        if not self.settled:
            await self._member.drop(self)

    def _settle(self, verdict: Callable[[], None]) -> None:
        if not self.settled:
            self.settled = True
            self._member.settled(self)
            verdict()
