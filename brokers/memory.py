"""The reference event log: the contract of `EventLog` in one process, with nothing behind it.

It is what the contract suite is first written against, and what tests of the core run on. Each group is a queue of
its own, so that a topic without groups keeps nothing.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping
from itertools import count

from mesh.clock import SystemClock
from mesh.errors import BrokerUnavailable, MessageTooLarge
from mesh.event import Attributes, AttributeValue
from mesh.ports import Clock, Feature, Group, Handler, Message, Mode, Topic

DEDUPE_WINDOW = 120.0
"""Seconds for which a caller's id is remembered."""


class MemoryEventLog:
    """An `EventLog` in memory. All members of all groups subscribe on this one object.

    `max_message_size` bounds the bytes of one message, headers included. `max_messages` bounds what one group has
    yet to handle, in hand or waiting, and the ids that are remembered: the oldest goes first.
    """

    features = frozenset({Feature.DEDUPE, Feature.TTL})

    def __init__(
        self, clock: Clock | None = None, *, max_message_size: int = 1 << 20, max_messages: int = 100_000
    ) -> None:
        self._clock = clock or SystemClock()
        self._max_message_size = max_message_size
        self._max_messages = max_messages
        self._groups: dict[Topic, dict[Group, _GroupQueue]] = {}
        self._seen: OrderedDict[tuple[Topic, str], float] = OrderedDict()
        self._positions = count(1)
        self.problem: str | None = "the log is not started"

    async def start(self) -> None:
        self.problem = None

    async def publish(self, topic: Topic, message: Message) -> None:
        self._check_open()
        size = _size(message)
        if size > self._max_message_size:
            raise MessageTooLarge(size, self._max_message_size)
        now = self._clock.now()
        if message.dedupe_id is not None and self._is_repeat((topic, message.dedupe_id), now):
            return
        expiry = None if message.ttl is None else now + message.ttl
        position = next(self._positions)
        for queue in self._groups.get(topic, {}).values():
            queue.put(_Entry(position, message, expiry))

    async def subscribe(self, group: Group, handler: Handler, *, concurrency: int) -> MemorySubscription:
        self._check_open()
        groups = self._groups.setdefault(group.topic, {})
        queue = groups.get(group) or groups.setdefault(group, _GroupQueue(self._clock, self._max_messages))
        return MemorySubscription(queue, handler, concurrency)

    async def unsubscribe(self, group: Group) -> bool:
        self._check_open()
        groups = self._groups.get(group.topic, {})
        queue = groups.pop(group, None)
        if not groups:
            self._groups.pop(group.topic, None)
        if queue is None:
            return False
        queue.clear()
        return True

    async def close(self) -> None:
        self.problem = "the log is closed"
        for groups in self._groups.values():
            for queue in groups.values():
                queue.clear()
        self._groups.clear()
        self._seen.clear()

    def _check_open(self) -> None:
        if self.problem:
            raise BrokerUnavailable(self.problem)

    def _is_repeat(self, key: tuple[Topic, str], now: float) -> bool:
        while self._seen:
            oldest = next(iter(self._seen))
            if self._seen[oldest] > now and len(self._seen) < self._max_messages:
                break
            del self._seen[oldest]
        if key in self._seen:
            return True
        self._seen[key] = now + DEDUPE_WINDOW
        return False


class MemorySubscription:
    """One member of a group."""

    def __init__(self, queue: _GroupQueue, handler: Handler, concurrency: int) -> None:
        self.handler = handler
        self._queue = queue
        self._concurrency = concurrency
        self._in_hand: set[MemoryDelivery] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        queue.members.append(self)
        queue.dispatch()

    @property
    def free(self) -> bool:
        return len(self._in_hand) < self._concurrency

    def take(self, delivery: MemoryDelivery) -> None:
        self._in_hand.add(delivery)
        self._idle.clear()
        # Not called from here: a handler that settles at once would come back in, as deep as the queue is long.
        asyncio.get_running_loop().call_soon(self._handle, delivery)

    def _handle(self, delivery: MemoryDelivery) -> None:
        if delivery in self._in_hand:
            self.handler(delivery)

    def let_go(self, delivery: MemoryDelivery) -> bool:
        """Whether `delivery` was in hand until now."""
        if delivery not in self._in_hand:
            return False
        self._in_hand.remove(delivery)
        if not self._in_hand:
            self._idle.set()
        return True

    async def close(self) -> None:
        if self in self._queue.members:
            self._queue.members.remove(self)
        try:
            await self._idle.wait()
        finally:  # cancelled: what is left in hand goes to other members
            for delivery in list(self._in_hand):
                delivery.retry(0.0)


class MemoryDelivery:
    """A `Delivery` of `MemorySubscription`."""

    __slots__ = ("_entry", "_member", "_queue", "attempt")

    def __init__(self, queue: _GroupQueue, member: MemorySubscription, entry: _Entry) -> None:
        self._queue = queue
        self._member = member
        self._entry = entry
        self.attempt = entry.attempts

    @property
    def mode(self) -> Mode:
        return self._entry.message.mode

    @property
    def attributes(self) -> Attributes:
        return {name: _text(value) for name, value in self._entry.message.attributes.items()}

    @property
    def payload(self) -> bytes | None:
        return self._entry.message.payload

    @property
    def content_type(self) -> str | None:
        return self._entry.message.content_type

    @property
    def headers(self) -> Mapping[str, str]:
        return {name.lower(): value for name, value in self._entry.message.headers.items()}

    @property
    def position(self) -> str:
        return str(self._entry.position)

    def ack(self) -> None:
        if self._member.let_go(self):
            self._queue.forget(self._entry)

    def retry(self, delay: float) -> None:
        if self._member.let_go(self):
            self._queue.put_back(self._entry, delay)


class _Entry:
    """A message in the queue of one group."""

    __slots__ = ("attempts", "expiry", "message", "position")

    def __init__(self, position: int, message: Message, expiry: float | None) -> None:
        self.position = position
        self.message = message
        self.expiry = expiry
        self.attempts = 0


class _GroupQueue:
    """What one group has yet to handle, and its members."""

    def __init__(self, clock: Clock, limit: int) -> None:
        self.members: list[MemorySubscription] = []
        self._clock = clock
        self._limit = limit
        self._unhandled: OrderedDict[int, _Entry] = OrderedDict()  # by position, oldest first
        self._due: OrderedDict[int, _Entry] = OrderedDict()  # those that wait for a free member, next one first

    def put(self, entry: _Entry) -> None:
        if len(self._unhandled) >= self._limit:
            self.forget(next(iter(self._unhandled.values())))
        self._unhandled[entry.position] = self._due[entry.position] = entry
        self.dispatch()

    def put_back(self, entry: _Entry, delay: float) -> None:
        if delay > 0:
            self._clock.call_later(delay, lambda: self._make_due(entry))
        else:
            self._make_due(entry)
        self.dispatch()

    def forget(self, entry: _Entry) -> None:
        self._unhandled.pop(entry.position, None)
        self._due.pop(entry.position, None)
        self.dispatch()

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
            if entry.expiry is not None and entry.expiry <= self._clock.now():
                del self._unhandled[entry.position]
                continue
            entry.attempts += 1
            member.take(MemoryDelivery(self, member, entry))

    def _make_due(self, entry: _Entry) -> None:
        if entry.position in self._unhandled:
            self._due[entry.position] = entry
            self.dispatch()


def _text(value: AttributeValue) -> str:
    """An attribute as a header carries it (CloudEvents core, "Type System")."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _size(message: Message) -> int:
    size = len(message.payload or b"") + len(message.content_type or "")
    size += sum(len(name) + len(_text(value).encode()) for name, value in message.attributes.items())
    return size + sum(len(name) + len(value.encode()) for name, value in message.headers.items())
