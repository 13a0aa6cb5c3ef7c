"""The reference event log: the contract of `EventLog` in one process, with nothing behind it.

It is what the contract suite is first written against, and what tests of the core run on. What was published is kept
for reading; each group is a queue of its own besides.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Mapping
from itertools import count

from brokers.event_arguments import check_start
from brokers.key_order import KeyOrder
from mesh import addressing
from mesh.clock import SystemClock
from mesh.errors import BrokerError, BrokerUnavailable, MessageTooLarge
from mesh.event import Attributes, AttributeValue
from mesh.ports import NOW, Backlog, Clock, Feature, Group, Handler, Message, Mode, Order, Page, Record, Start, Topic

DEDUPE_WINDOW = 120.0
"""Seconds for which a caller's id is remembered."""
KEPT_BYTES = 64 << 20
"""Bytes of messages that are kept for reading."""
PAGE_BYTES = 8 << 20


class MemoryEventLog:
    """An `EventLog` in memory. All members of all groups subscribe on this one object.

    `max_message_size` bounds the bytes of one message, headers included. `max_messages` bounds what is kept, what one
    group has yet to handle, in hand or waiting, and the ids that are remembered: the oldest goes first.
    """

    features = frozenset(Feature) - {Feature.DURABLE}

    def __init__(
        self, clock: Clock | None = None, *, max_message_size: int = 1 << 20, max_messages: int = 100_000
    ) -> None:
        self._clock = clock or SystemClock()
        self._max_message_size = max_message_size
        self._max_messages = max_messages
        self._kept: dict[Topic, deque[MemoryRecord]] = {}
        self._kept_order: deque[tuple[Topic, int]] = deque()  # with sizes
        self._kept_bytes = 0
        self._queues: dict[Group, _GroupQueue] = {}
        self._by_topic: dict[Topic, list[_GroupQueue]] = {}  # those without wildcards
        self._by_pattern: list[_GroupQueue] = []
        self._seen: OrderedDict[tuple[Topic, str], float] = OrderedDict()
        self._positions = count(1)
        self.problem: str | None = "the log is not started"

    async def start(self) -> None:
        self.problem = None

    async def publish(self, topic: Topic, message: Message) -> str:
        self._check_open()
        size = _size(message)
        if size > self._max_message_size:
            raise MessageTooLarge(size, self._max_message_size)
        now = self._clock.now()
        if message.dedupe_id is not None and self._is_repeat((topic, message.dedupe_id), now):
            return ""
        record = MemoryRecord(next(self._positions), topic, message, now)
        self._keep(record, size)
        for queue in self._by_topic.get(topic, ()):
            queue.put(record)
        for queue in self._by_pattern:
            if _covers(queue.group.topic, topic):
                queue.put(record)
        return record.position

    def _keep(self, record: MemoryRecord, size: int) -> None:
        self._kept.setdefault(record.address, deque()).append(record)
        self._kept_order.append((record.address, size))
        self._kept_bytes += size
        while len(self._kept_order) > self._max_messages or self._kept_bytes > KEPT_BYTES:
            topic, size = self._kept_order.popleft()
            self._kept_bytes -= size
            records = self._kept[topic]
            records.popleft()
            if not records:
                del self._kept[topic]

    async def subscribe(
        self,
        group: Group,
        handler: Handler,
        *,
        concurrency: int,
        order: Order = Order.KEY,
        start: Start = NOW,
        lasting: bool = True,
    ) -> MemorySubscription:
        self._check_open()
        addressing.check_pattern(group.topic.name)
        check_start(start)
        queue = self._queues.get(group)
        if queue is None:
            queue = self._found(group, order)
            for record in self._from(group.topic, start):
                queue.put(record)
        elif queue.order is not order:
            if queue.members:
                raise BrokerError(
                    f"the group of {group.app_id} for the topic {group.topic.name} has members with another order than "
                    f"'{order.value}'; they have to end first"
                )
            entries = queue.entries
            self.forget_group(group)
            queue = self._found(group, order)
            for entry in entries:
                queue.put(entry.record, entry.attempts)
        return MemorySubscription(self, queue, handler, concurrency, lasting)

    def _found(self, group: Group, order: Order) -> _GroupQueue:
        queue = self._queues[group] = _GroupQueue(group, self._clock, self._max_messages, order)
        if addressing.is_pattern(group.topic.name):
            self._by_pattern.append(queue)
        else:
            self._by_topic.setdefault(group.topic, []).append(queue)
        return queue

    async def unsubscribe(self, group: Group) -> bool:
        self._check_open()
        return self.forget_group(group)

    def forget_group(self, group: Group) -> bool:
        """False when there is none."""
        queue = self._queues.pop(group, None)
        if queue is None:
            return False
        if queue in self._by_pattern:
            self._by_pattern.remove(queue)
        else:
            queues = self._by_topic[group.topic]
            queues.remove(queue)
            if not queues:
                del self._by_topic[group.topic]
        queue.clear()
        return True

    async def read(self, topic: Topic, start: Start, *, limit: int) -> Page:
        self._check_open()
        records: list[Record] = []
        size = 0
        for record in self._from(topic, check_start(start)):
            if len(records) == limit or size > PAGE_BYTES:
                return Page(records, record.position)
            records.append(record)
            size += len(record.payload or b"")
        return Page(records, None)

    def _from(self, topic: Topic, start: Start) -> list[MemoryRecord]:
        """What is kept of a topic, or of those that a pattern covers, and has not expired."""
        now = self._clock.now()
        if addressing.is_pattern(topic.name):
            found = [record for at, records in self._kept.items() if _covers(topic, at) for record in records]
            found.sort(key=lambda record: record.number)
        else:
            found = list(self._kept.get(topic, ()))
        if start.position is not None:
            first = int(start.position)
            found = [record for record in found if record.number >= first]
        elif start.time is not None:
            since = start.time
            found = [record for record in found if record.time >= since]
        else:
            return []
        return [record for record in found if record.expiry is None or record.expiry > now]

    async def backlog(self, group: Group) -> Backlog | None:
        self._check_open()
        queue = self._queues.get(group)
        return None if queue is None else queue.backlog()

    async def close(self) -> None:
        self.problem = "the log is closed"
        for queue in self._queues.values():
            queue.clear()
        for kept in (self._queues, self._by_topic, self._by_pattern, self._kept, self._kept_order, self._seen):
            kept.clear()
        self._kept_bytes = 0

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
        return {name: _text(value) for name, value in self.message.attributes.items()}

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
    def position(self) -> str:
        return str(self.number)

    @property
    def topic(self) -> str:
        return self.address.name


class MemorySubscription:
    """One member of a group."""

    def __init__(
        self, log: MemoryEventLog, queue: _GroupQueue, handler: Handler, concurrency: int, lasting: bool
    ) -> None:
        self.handler = handler
        self._log = log
        self._queue = queue
        self._concurrency = concurrency
        self._lasting = lasting
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
            if not self._lasting and not self._queue.members:
                self._log.forget_group(self._queue.group)


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


class _GroupQueue:
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


def _covers(pattern: Topic, topic: Topic) -> bool:
    return pattern.pubsub == topic.pubsub and addressing.covers(pattern.name, topic.name)


def _text(value: AttributeValue) -> str:
    """An attribute as a header carries it (CloudEvents core, "Type System")."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _size(message: Message) -> int:
    size = len(message.payload or b"") + len(message.content_type or "")
    size += sum(len(name) + len(_text(value).encode()) for name, value in message.attributes.items())
    return size + sum(len(name) + len(value.encode()) for name, value in message.headers.items())
