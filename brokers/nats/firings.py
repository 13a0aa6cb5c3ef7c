"""Members that take alarms that are due from NATS, and settle them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Protocol

from brokers.alarm_arguments import check_then
from brokers.nats.consumer import Consumer, NatsDelivery
from brokers.nats.event_log import NatsSubscription
from brokers.nats.retry import LAST_PAUSE
from mesh.errors import MeshError
from mesh.ports import Delivery
from mesh.ports.alarms import Alarm, FiringHandler

logger = logging.getLogger("meshwire.nats")


class Series(Protocol):
    """What a member asks of the alarms of its scope."""

    def decode_due(self, headers: Mapping[str, str], payload: bytes) -> Alarm | None: ...

    async def follow(self, sequence: int, then: Alarm) -> None: ...

    async def forget(self, sequence: int) -> None: ...


class NatsAlarmSubscription:
    """One member that takes alarms of a kind. See the `Subscription` port."""

    def __init__(
        self,
        alarms: Series,
        handler: FiringHandler,
        concurrency: int,
        on_closed: Callable[[NatsAlarmSubscription], None],
    ) -> None:
        self.alarms = alarms
        self._handler = handler
        self.members = NatsSubscription(self._take, concurrency, lambda _: on_closed(self))
        self._settling: set[asyncio.Task[None]] = set()

    async def start(self, consumer: Consumer) -> None:
        await self.members.start([consumer])

    def _take(self, delivery: Delivery) -> None:
        assert isinstance(delivery, NatsDelivery)  # noqa: S101 - what our own consumer offers
        alarm = self.alarms.decode_due(delivery.all_headers(), delivery.payload or b"")
        if alarm is None:
            logger.warning("a message that is no alarm (%s) is passed over", delivery.position)
            delivery.ack()
        else:
            self._handler(NatsFiring(self, delivery, alarm))

    def settle(self, delivery: NatsDelivery, then: Alarm | None) -> None:
        task = asyncio.get_running_loop().create_task(self._settle(delivery, then), name="settle an alarm")
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)

    async def _settle(self, delivery: NatsDelivery, then: Alarm | None) -> None:
        """What is next is stored before what was is deleted; until both is done, the server would send it again."""
        sequence = int(delivery.position)
        try:
            if then is not None:
                await self.alarms.follow(sequence, then)
            await self.alarms.forget(sequence)
        except MeshError as error:
            logger.warning("an alarm was handled, and comes again: %s", error)
            delivery.retry(LAST_PAUSE)
        else:
            delivery.ack()

    async def close(self) -> None:
        try:
            await self.members.close()
        finally:
            self.cut()

    def cut(self) -> None:
        """Let go at once, whatever is in hand."""
        self.members.cut()
        for task in self._settling:
            task.cancel()


class NatsFiring:
    """A `Firing` of `NatsAlarmSubscription`."""

    __slots__ = ("_delivery", "_member", "alarm", "attempt")

    def __init__(self, member: NatsAlarmSubscription, delivery: NatsDelivery, alarm: Alarm) -> None:
        self._member = member
        self._delivery: NatsDelivery | None = delivery
        self.alarm = alarm
        self.attempt = delivery.attempt

    def ack(self, then: Alarm | None = None) -> None:
        check_then(self.alarm, then)
        delivery, self._delivery = self._delivery, None
        if delivery is not None:
            self._member.settle(delivery, then)

    def retry(self, delay: float) -> None:
        delivery, self._delivery = self._delivery, None
        if delivery is not None:
            delivery.retry(delay)
