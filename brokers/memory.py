"""The reference event log: the contract of `EventLog` in one process, with nothing behind it.

It is what the contract suite is first written against, and what tests of the core run on. What was published is kept
for reading; each group is a queue of its own besides.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from functools import partial
from itertools import count

from brokers.event_arguments import check_start
from brokers.memory_groups import MemoryGroup, MemoryRecord, MemorySubscription, text
from mesh import addressing
from mesh.clock import SystemClock
from mesh.errors import BrokerError, BrokerUnavailable, MessageTooLarge
from mesh.ports import NOW, Backlog, Clock, Feature, Group, Handler, Message, Order, Page, Record, Start, Topic

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
        self._queues: dict[Group, MemoryGroup] = {}
        self._by_topic: dict[Topic, list[MemoryGroup]] = {}  # those without wildcards
        self._by_pattern: list[MemoryGroup] = []
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
            self._forget(group)
            queue = self._found(group, order)
            for entry in entries:
                queue.put(entry.record, entry.attempts)
        deserted = None if lasting else partial(self._forget, group)
        return MemorySubscription(queue, handler, concurrency, deserted)

    def _found(self, group: Group, order: Order) -> MemoryGroup:
        queue = self._queues[group] = MemoryGroup(group, self._clock, self._max_messages, order)
        if addressing.is_pattern(group.topic.name):
            self._by_pattern.append(queue)
        else:
            self._by_topic.setdefault(group.topic, []).append(queue)
        return queue

    async def unsubscribe(self, group: Group) -> bool:
        self._check_open()
        return self._forget(group)

    def _forget(self, group: Group) -> bool:
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


def _covers(pattern: Topic, topic: Topic) -> bool:
    return pattern.pubsub == topic.pubsub and addressing.covers(pattern.name, topic.name)


def _size(message: Message) -> int:
    size = len(message.payload or b"") + len(message.content_type or "")
    size += sum(len(name) + len(text(value).encode()) for name, value in message.attributes.items())
    return size + sum(len(name) + len(value.encode()) for name, value in message.headers.items())
