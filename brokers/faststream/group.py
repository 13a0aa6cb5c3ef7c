"""A FastStream subscriber as a member of a group: what FastStream asks of JetStream, answered by the event log."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig

from mesh.delivery import Plan, dead_letter
from mesh.errors import BrokerError, ConfigurationError
from mesh.ports import Delivery, EventLog, Group, Subscription

logger = logging.getLogger("meshwire.faststream")


class Membership(ConsumerConfig):
    """Travels through FastStream as the configuration of a consumer, to `JetStream.subscribe`."""

    def __init__(self, group: Group, plan: Plan, concurrency: int) -> None:
        super().__init__()
        self.group = group
        self.plan = plan
        self.concurrency = concurrency

    def evolve(self, **_: object) -> Membership:
        """Called by nats-py to make a consumer of its own, as on a stock broker."""
        raise ConfigurationError(f"topic {self.group.topic.name} can only be subscribed to on a MeshBroker")


class JetStream(JetStreamContext):
    def __init__(self, connection: Client, log: EventLog, **options: Any) -> None:
        super().__init__(connection, **options)
        self._log = log

    async def subscribe(self, subject: str, *args: Any, **options: Any) -> Any:
        membership = options.get("config")
        if not isinstance(membership, Membership):
            return await super().subscribe(subject, *args, **options)
        member = _Member(self._log, membership, options["cb"], subject)
        await member.start()
        return member


class _Member:
    """One FastStream subscriber as a member of a group: the subscription that FastStream holds."""

    def __init__(
        self, log: EventLog, membership: Membership, consume: Callable[[Msg], Awaitable[object]], subject: str
    ) -> None:
        self._log = log
        self._group = membership.group
        self._plan = membership.plan
        self._concurrency = membership.concurrency
        self._consume = consume
        self._subject = subject
        self._subscription: Subscription | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._unsettled: set[Received] = set()
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

    async def unsubscribe(self) -> None:
        """Called by FastStream when its handlers have ended, or have had their time to."""
        self._stopping = True
        current = asyncio.current_task()
        for task in self._tasks:
            if task is not current:  # a handler that stops its own subscriber
                task.cancel()
        for received in list(self._unsettled):
            received.release()
        if self._subscription is not None:
            await self._subscription.close()

    def _take(self, delivery: Delivery) -> None:
        if self._stopping:
            delivery.release()
            return
        received = Received(self, delivery, self._subject)
        self._unsettled.add(received)
        task = asyncio.get_running_loop().create_task(self._handle(received))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _handle(self, received: Received) -> None:
        await self._started.wait()
        try:
            async with asyncio.timeout(self._plan.timeout):
                # Returns without a verdict when FastStream is stopping: `unsubscribe` gives those back.
                await self._consume(received)
        except TimeoutError:
            logger.warning("the handler of topic %s took more than %.0f s", self._group.topic.name, self._plan.timeout)
            await received.nak()

    def settled(self, received: Received) -> None:
        self._unsettled.discard(received)

    async def fail(self, received: Received, delivery: Delivery) -> None:
        """To the dead letter topic, or once more after a pause."""
        target = self._plan.dead_letter
        if target is not None and not self._stopping:
            try:
                await self._log.publish(target, dead_letter(delivery, self._group))
            except BrokerError as error:
                logger.warning("the dead letter topic %s did not take an event: %s", target.name, error)
            else:
                received.done()
                return
        if self._stopping:
            received.release()
        else:
            received.give_back(self._plan.pause(delivery.attempt))

    async def drop(self, received: Received, delivery: Delivery) -> None:
        if self._plan.dead_letter is not None:
            await self.fail(received, delivery)
        else:
            logger.info("event %s of topic %s dropped", delivery.position, self._group.topic.name)
            received.done()


class Received(Msg):
    """A delivery as nats-py's message, which FastStream settles. The broker is kept waiting meanwhile."""

    def __init__(self, member: _Member, delivery: Delivery, subject: str) -> None:
        super().__init__(_client=None, subject=subject, data=delivery.payload or b"")  # type: ignore[arg-type]
        self.delivery = delivery
        self._member = member

    __hash__ = object.__hash__
    __eq__ = object.__eq__

    def done(self) -> None:
        self._settle(self.delivery.ack)

    def give_back(self, delay: float) -> None:
        self._settle(partial(self.delivery.retry, delay))

    def release(self) -> None:
        self._settle(self.delivery.release)

    def _settle(self, verdict: Callable[[], None]) -> None:
        self._ackd = True
        self._member.settled(self)
        verdict()

    async def ack(self) -> None:
        self.done()

    async def nak(self, delay: float | None = None) -> None:
        if delay is None:
            await self._member.fail(self, self.delivery)
        else:
            self.give_back(delay)

    async def term(self) -> None:
        await self._member.drop(self, self.delivery)

    async def in_progress(self) -> None:
        """Nothing to do: the pull loop tells the server as long as the message is held."""
