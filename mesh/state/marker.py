"""The outbox of a store that has transactions, and no outbox of its own: Dapr's protocol.

Before the commit the event goes to an internal topic, and the transaction brings a marker, an item under the id of the
event. Whoever takes the event from the topic publishes it once the marker is seen, and removes the marker.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence

import msgspec

from mesh.codec import json as json_codec
from mesh.errors import InvalidEvent, MeshError
from mesh.ports import Clock, Delivery, Group, Message, Mode, Order, Subscription, Topic
from mesh.ports.stores import DeleteState, OutboxRecord, SetState, StateChange
from mesh.pubsub import PubSub
from mesh.state.component import OutboxSettings, StateComponent
from mesh.state.forwarding import IN_HAND, Forwarder, OutboxFailed

log = logging.getLogger("meshwire.state")

VALUE = b"0"
PAUSES = (1.0, 0.5, 1.5, 3.0, 3.0, 2.0)
"""Seconds before each look for a marker (Dapr: one second, then again for up to ten)."""
RETRY = 10.0
"""Seconds until an event whose marker was not seen is looked at again."""
MOST_SEARCHES = 60
"""Deliveries of an event whose marker is not seen, after which its transaction has not happened: some 20 minutes."""
MOST_WITHDRAWN = 10_000
"""Events of refused transactions that this replica knows. Each that it did not would be looked for all that while."""
CLOSE_LIMIT = 5.0
"""Seconds for giving back what is in hand."""

_text = msgspec.json.Decoder(str).decode


class MarkedOutbox:
    """An `Outbox` of any store with transactions."""

    def __init__(
        self, component: StateComponent, settings: OutboxSettings, pubsub: PubSub, clock: Clock, namespace: str
    ) -> None:
        self.settings = settings
        self._store = component.store
        self._what = f"outbox of {component.name}"
        self._pubsub = pubsub
        self._clock = clock
        self._internal = Topic(settings.internal_pubsub, f"{namespace}{pubsub.app_id}{settings.topic}outbox")
        self._forwarder = Forwarder(settings, pubsub, clock)
        self._running: set[asyncio.Task[None]] = set()
        self._withdrawn: dict[str, None] = {}
        """The ids of events that are not to be published, the oldest first."""
        self._joining: asyncio.Task[None] | None = None
        self._subscription: Subscription | None = None

    async def transact(
        self, changes: Sequence[StateChange], records: Sequence[OutboxRecord], metadata: Mapping[str, str]
    ) -> None:
        try:
            for start in range(0, len(records), IN_HAND):
                await self._announce(records[start : start + IN_HAND])
        except MeshError as error:
            raise OutboxFailed(str(error)) from error
        markers = [SetState(key=record.id, value=VALUE) for record in records]
        await self._store.transact([*changes, *markers], metadata)

    async def _announce(self, records: Sequence[OutboxRecord]) -> None:
        component = self._pubsub.component(self._internal.pubsub)
        address = component.address(self._internal.name)
        messages = [Message(mode=Mode.STRUCTURED, payload=record.event, dedupe_id=record.id) for record in records]
        publishing = (component.log.publish(address, message) for message in messages)
        for outcome in await asyncio.gather(*publishing, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome

    def withdraw(self, records: Sequence[OutboxRecord]) -> None:
        self._withdrawn |= dict.fromkeys(record.id for record in records)
        while len(self._withdrawn) > MOST_WITHDRAWN:
            del self._withdrawn[next(iter(self._withdrawn))]

    def start(self) -> None:
        if self._joining is None:
            self._joining = asyncio.create_task(self._forwarder.persist(self._join, self._what), name=self._what)

    def pubsub_changed(self, name: str) -> None:
        if name == self._internal.pubsub and self._joining is not None:
            self._joining = asyncio.create_task(self._rejoin(self._joining), name=self._what)

    async def close(self) -> None:
        if self._joining is not None:
            self._joining.cancel()
            await asyncio.gather(self._joining, return_exceptions=True)
        await self._leave()

    async def _rejoin(self, joining: asyncio.Task[None]) -> None:
        joining.cancel()
        await asyncio.gather(joining, return_exceptions=True)
        await self._leave()
        await self._forwarder.persist(self._join, self._what)

    async def _leave(self) -> None:
        if self._subscription is None:
            return
        closing = asyncio.ensure_future(asyncio.wait_for(self._subscription.close(), CLOSE_LIMIT))
        await asyncio.sleep(0)  # it takes no more; what is given back now goes to another replica
        for task in self._running:
            task.cancel()
        await asyncio.gather(closing, return_exceptions=True)
        self._subscription = None

    async def _join(self) -> None:
        component = self._pubsub.component(self._internal.pubsub)
        group = Group(self._pubsub.app_id, component.address(self._internal.name))
        self._subscription = await component.log.subscribe(group, self._take, concurrency=IN_HAND, order=Order.NONE)

    def _take(self, delivery: Delivery) -> None:
        task = asyncio.create_task(self._forward(delivery), name=self._what)
        self._running.add(task)
        task.add_done_callback(lambda _: self._ended(task, delivery))

    def _ended(self, task: asyncio.Task[None], delivery: Delivery) -> None:
        self._running.discard(task)
        if task.cancelled():
            delivery.retry(0)
        elif (error := task.exception()) is not None:
            log.error("%s failed", self._what, exc_info=error)
            delivery.retry(RETRY)

    async def _forward(self, delivery: Delivery) -> None:
        event = delivery.payload or b""
        try:
            marker = _text(json_codec.members(event)["id"])
        except (InvalidEvent, KeyError, msgspec.DecodeError):
            log.error("%s: what lies in topic %s is no event of an outbox; dropped", self._what, self._internal.name)
            delivery.ack()
            return
        try:
            if not await self._is_marked(marker):
                self._not_found(delivery, marker)
                return
            await self._forwarder.publish(event)
        except MeshError as error:
            log.warning("%s: event %s: %s; trying again in %gs", self._what, marker, error, RETRY)
            delivery.retry(RETRY)
        else:
            delivery.ack()  # before the marker goes: an event that comes again without one is looked for in vain
            await self._forget(marker)

    async def _forget(self, marker: str) -> None:
        try:
            await self._store.change(DeleteState(key=marker))
        except MeshError as error:
            log.warning("%s: the item '%s' is left in the store: %s", self._what, marker, error)

    async def _is_marked(self, marker: str) -> bool:
        for pause in PAUSES:
            if marker in self._withdrawn:
                return False
            await self._clock.sleep(pause)
            if await self._store.get(marker, strong=True) is not None:
                return True
        return False

    def _not_found(self, delivery: Delivery, marker: str) -> None:
        if marker in self._withdrawn:
            del self._withdrawn[marker]
            delivery.ack()
        elif self.settings.discard_when_missing:
            delivery.ack()
        elif delivery.attempt >= MOST_SEARCHES:
            log.error("%s: the transaction of event %s was not seen; it is dropped", self._what, marker)
            delivery.ack()
        else:
            delivery.retry(RETRY)
