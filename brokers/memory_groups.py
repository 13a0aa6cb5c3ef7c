"""The groups of the log in memory: what each has yet to handle, its members, and what is in their hands."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping

from brokers.key_order import KeyOrder
from mesh.event import Attributes, AttributeValue
from mesh.ports import Backlog, Clock, Group, Handler, Message, Mode, Order, Topic


class MemoryRecord:
    """A `Record`, and what a group makes its deliveries of."""

    __slots__ = ("address", "expiry", "message", "number", "time")

    def __init__(self, number: int, topic: Topic, message: Message, now: float) -> None:
        self.number = number
        self.address = topic
        self.message = message
        self.time = now
        self.expiry = None if message.ttl is None else now + message.ttl

    @property
    def mode(self) -> Mode:
        return self.message.mode

    @property
    def attributes(self) -> Attributes:
        return {name: text(value) for name, value in self.message.attributes.items()}

    @property
    def payload(self) -> bytes | None:
        return self.message.payload

    @property
    def content_type(self) -> str | None:
        return self.message.content_type

    @property
    def headers(self) -> Mapping[str, str]:
        return {name.lower(): value for name, value in self.message.headers.items()}

    @property
    def key(self) -> str | None:
        key = self.message.key
        return self.attributes.get("partitionkey") if key is None else key  # type: ignore[return-value]

    @property
    def position(self) -> str:
        return str(self.number)

    @property
    def topic(self) -> str:
        return self.address.name


class MemorySubscription:
    """One member of a group."""

    def __init__(
        self, queue: MemoryGroup, handler: Handler, concurrency: int, deserted: Callable[[], object] | None
    ) -> None:
        """`deserted` is called when the last member has gone, of a group that does not last."""
        self.handler = handler
        self._queue = queue
        self._concurrency = concurrency
        self._deserted = deserted
        self.in_hand: set[MemoryDelivery] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        queue.members.append(self)
        queue.dispatch()

    @property
    def free(self) -> bool:
        return len(self.in_hand) < self._concurrency

    def set_concurrency(self, concurrency: int) -> None:
        self._concurrency = concurrency
        self._queue.dispatch()

    def take(self, delivery: MemoryDelivery) -> None:
        self.in_hand.add(delivery)
        self._idle.clear()
        # Not called from here: a handler that settles at once would come back in, as deep as the queue is long.
        asyncio.get_running_loop().call_soon(self._handle, delivery)

    def _handle(self, delivery: MemoryDelivery) -> None:
        if delivery in self.in_hand:
            self.handler(delivery)

    def let_go(self, delivery: MemoryDelivery) -> bool:
        """Whether `delivery` was in hand until now."""
        if delivery not in self.in_hand:
            return False
        self.in_hand.remove(delivery)
        if not self.in_hand:
            self._idle.set()
        return True

    async def close(self) -> None:
        self._concurrency = 0
        try:
            await self._idle.wait()
        finally:  # cancelled: what is left in hand goes to other members
            if self in self._queue.members:
                self._queue.members.remove(self)
            for delivery in list(self.in_hand):
                delivery.retry(0.0)
            if self._deserted is not None and not self._queue.members:
                self._deserted()


class MemoryDelivery:
    """A `Delivery` of `MemorySubscription`."""

    __slots__ = ("_entry", "_member", "_queue", "attempt")

    def __init__(self, queue: MemoryGroup, member: MemorySubscription, entry: _Entry) -> None:
        self._queue = queue
        self._member = member
        self._entry = entry
        self.attempt = entry.attempts

    @property
    def mode(self) -> Mode:
        return self._entry.record.mode

    @property
    def attributes(self) -> Attributes:
        return self._entry.record.attributes

    @property
    def payload(self) -> bytes | None:
        return self._entry.record.payload

    @property
    def content_type(self) -> str | None:
        return self._entry.record.content_type

    @property
    def headers(self) -> Mapping[str, str]:
        return self._entry.record.headers

    @property
    def key(self) -> str | None:
        return self._entry.record.key

    @property
    def position(self) -> str:
        return self._entry.record.position

    @property
    def topic(self) -> str:
        return self._entry.record.topic

    @property
    def time(self) -> float:
        return self._entry.record.time

    def ack(self) -> None:
        if self._member.let_go(self):
            self._queue.forget(self._entry)

    def retry(self, delay: float) -> None:
        if self._member.let_go(self):
            self._queue.put_back(self._entry, delay)

    def release(self) -> None:
        if self._member.let_go(self):
            self._entry.attempts -= 1
            self._queue.put_back(self._entry, 0.0)


class _Entry:
    """A message in the queue of one group."""

    __slots__ = ("attempts", "due", "record")

    def __init__(self, record: MemoryRecord, attempts: int) -> None:
        self.record = record
        self.attempts = attempts
        self.due = False
        """Its turn has come: nothing of its key is before it."""


class MemoryGroup:
    """What one group has yet to handle, and its members."""

    def __init__(self, group: Group, clock: Clock, limit: int, order: Order) -> None:
        self.group = group
        self.order = order
        self.members: list[MemorySubscription] = []
        self._clock = clock
        self._limit = limit
        self._unhandled: OrderedDict[int, _Entry] = OrderedDict()  # by position, oldest first
        self._due: OrderedDict[int, _Entry] = OrderedDict()  # those that wait for a free member, next one first
        self._keys = KeyOrder[_Entry](self._begin)

    def backlog(self) -> Backlog:
        waiting = sum(not entry.attempts for entry in self._unhandled.values())
        return Backlog(waiting, len(self._unhandled) - waiting)

    @property
    def entries(self) -> list[_Entry]:
        """What is yet to be handled, oldest first."""
        return list(self._unhandled.values())

    def put(self, record: MemoryRecord, attempts: int = 0) -> None:
        if len(self._unhandled) >= self._limit:
            self.forget(next(iter(self._unhandled.values())))
        entry = self._unhandled[record.number] = _Entry(record, attempts)
        key = self._key(entry)
        if key is None:
            self._begin(entry)
        else:
            self._keys.add(key, entry)
        self.dispatch()

    def _key(self, entry: _Entry) -> str | None:
        """What stands in a line with others of the same text; `None` stands in none."""
        if self.order is Order.STRICT:
            return ""
        return entry.record.message.key if self.order is Order.KEY else None

    def _begin(self, entry: _Entry) -> bool:
        """Its turn has come. False when it was forgotten meanwhile."""
        if entry.record.number not in self._unhandled:
            return False
        entry.due = True
        self._due[entry.record.number] = entry
        return True

    def put_back(self, entry: _Entry, delay: float) -> None:
        if delay > 0:
            self._clock.call_later(delay, lambda: self._make_due(entry))
        else:
            self._make_due(entry)
        self.dispatch()

    def forget(self, entry: _Entry) -> None:
        self._drop(entry)
        self.dispatch()

    def _drop(self, entry: _Entry) -> None:
        if self._unhandled.pop(entry.record.number, None) is not None:
            self._due.pop(entry.record.number, None)
            key = self._key(entry)
            if key is not None and entry.due:
                self._keys.done(key)

    def clear(self) -> None:
        self._unhandled.clear()
        self._due.clear()
        self.members.clear()

    def dispatch(self) -> None:
        """Hand what is due to members with a free place, in turn."""
        while self._due and (member := next((member for member in self.members if member.free), None)):
            self.members.remove(member)
            self.members.append(member)
            _, entry = self._due.popitem(last=False)
            expiry = entry.record.expiry
            if expiry is not None and expiry <= self._clock.now():
                self._drop(entry)
                continue
            entry.attempts += 1
            member.take(MemoryDelivery(self, member, entry))

    def _make_due(self, entry: _Entry) -> None:
        if entry.record.number in self._unhandled:
            self._due[entry.record.number] = entry
            self.dispatch()


def text(value: AttributeValue) -> str:
    """An attribute as a header carries it (CloudEvents core, "Type System")."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
