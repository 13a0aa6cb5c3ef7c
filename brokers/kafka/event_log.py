"""The EventLog port on Kafka (docs/adr/0012-kafka.md)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

import aiokafka.errors as errors
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.admin import DeleteGroupsRequest

from brokers.event_arguments import check_start
from brokers.kafka import codec
from brokers.kafka.connection import Connection, placed
from brokers.kafka.member import KafkaSubscription
from brokers.kafka.offsets import decode
from brokers.kafka.reading import Reader, Recalls
from brokers.kafka.refusals import translated
from mesh import addressing
from mesh.errors import BrokerError, BrokerUnavailable
from mesh.ports import NOW, Backlog, Feature, Group, Handler, Message, Order, Page, Start, Topic

T = TypeVar("T")

logger = logging.getLogger("meshwire.kafka")

PARTITIONS = 16
"""Of a topic that is made here: as many members of a group can share it."""
SETTINGS = {"message.timestamp.type": "LogAppendTime", "cleanup.policy": "delete"}
"""Of a topic that is made here: `Record.time`, and the positions, are the broker's."""
LOOK_AFTER = 2.0
"""Seconds without an acknowledgement after which it is looked whether the topic is there still."""
ASK_PAUSE = 0.1
"""Seconds until something is asked again that nobody could answer."""

_FEATURES = frozenset({Feature.DURABLE, Feature.TTL, Feature.KEY_ORDER, Feature.BROADCAST})


class KafkaEventLog:
    """Events in a Kafka topic for each topic, a consumer group for each group.

    Which attempt a delivery is, is counted in the process that has its partition, and stored with the committed offset:
    a crash forgets what was counted in the last tenth of a second, or more where very much is open at once.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        namespace: str = addressing.DEFAULT_NAMESPACE,
        prefix: str = addressing.DEFAULT_PREFIX,
        partitions: int = PARTITIONS,
    ) -> None:
        """`partitions` are those of topics that are made here. With one, a topic may be handled in strict order."""
        self._connection = connection
        self._namespace = namespace
        self._prefix = prefix
        self._partitions = partitions
        self._subscriptions: set[KafkaSubscription] = set()
        self._known: dict[str, int] = {}  # how many partitions topics have
        self._making: dict[str, asyncio.Task[int]] = {}
        self._reader = Reader(connection)
        self._recalls = Recalls(Reader(connection))

    @property
    def features(self) -> frozenset[Feature]:
        """Without those that the servers lack, once it has started."""
        found = _FEATURES
        if self._partitions == 1:
            found |= {Feature.STRICT_ORDER}
        try:
            offered = self._connection.offered
        except BrokerUnavailable:
            return found | {Feature.READ}
        if offered.offsets_by_time:
            found |= {Feature.READ}
        return found

    @property
    def problem(self) -> str | None:
        return self._connection.problem

    async def start(self) -> None:
        await self._connection.start()

    async def close(self) -> None:
        cut = list(self._subscriptions)
        for subscription in cut:
            subscription.cut()
        await asyncio.gather(*(subscription.left() for subscription in cut))
        for making in self._making.values():
            making.cancel()
        await asyncio.gather(
            self._recalls.close(), self._reader.close(), *self._making.values(), return_exceptions=True
        )
        await self._connection.close()

    async def publish(self, topic: Topic, message: Message) -> str:
        """See the port. Kafka knows no repeats: `dedupe_id` does nothing."""
        name = addressing.kafka_event_topic(self._prefix, self._namespace, topic)
        key, value, headers = codec.encode(message)
        await self._ensure(name)
        timer = asyncio.get_running_loop().call_later(LOOK_AFTER, self._look_after, name)
        try:
            stored = await self._connection.publish(name, value, key=key, headers=headers)
        finally:
            timer.cancel()
        return codec.position(stored.timestamp, stored.partition, stored.offset)

    async def _ensure(self, name: str) -> int:
        """Make the topic unless it is there, once for all who ask at the same time. How many partitions it has."""
        known = self._known.get(name)
        if known is not None:
            return known
        making = self._making.get(name) or self._make(name)
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            if making.cancelled():
                raise BrokerUnavailable("the log is closed") from None
            raise

    def _make(self, name: str) -> asyncio.Task[int]:
        making = self._making[name] = asyncio.get_running_loop().create_task(
            self._connection.topics.ensure(name, self._partitions, SETTINGS), name=f"make {name}"
        )
        making.add_done_callback(lambda done: self._made(name, done))
        return making

    def _made(self, name: str, making: asyncio.Task[int]) -> None:
        del self._making[name]
        if making.cancelled():
            return
        if (error := making.exception()) is None:
            self._known[name] = making.result()
        else:
            logger.warning("the topic %s is not there yet: %s", name, error)

    def _look_after(self, name: str) -> None:
        """What is published to a topic that somebody deleted waits until it is there again."""
        if name not in self._making and not self._connection.closed:
            self._forget(name)
            self._make(name)

    def _forget(self, name: str) -> None:
        self._known.pop(name, None)
        self._connection.topics.forget(name)

    async def subscribe(
        self,
        group: Group,
        handler: Handler,
        *,
        concurrency: int,
        order: Order = Order.KEY,
        start: Start = NOW,
        lasting: bool = True,
    ) -> KafkaSubscription:
        check_start(start, most_digits=codec.MAX_DIGITS)
        if order is Order.STRICT and self._partitions != 1:
            raise BrokerError("strict order needs topics of one partition; this log makes them with more")
        if start.position is not None or (start.time or 0) > 0:
            self._check_reads()
        name = addressing.kafka_event_topic(self._prefix, self._namespace, group.topic)
        self._check_open()
        partitions = await self._ensure(name)
        if order is Order.STRICT and partitions != 1:
            raise BrokerError(f"strict order needs a topic of one partition; {name} has {partitions}")
        subscription = KafkaSubscription(
            self._connection,
            handler,
            concurrency,
            kafka_topic=name,
            topic=group.topic.name,
            group=addressing.kafka_group(self._prefix, self._namespace, group) if lasting else None,
            order=order,
            recalls=self._recalls,
            restore_topic=lambda: self._restore(name),
            on_closed=self._subscriptions.discard,
        )
        self._subscriptions.add(subscription)
        await subscription.start(partitions, start)
        return subscription

    async def _restore(self, name: str) -> int:
        self._forget(name)
        return await self._ensure(name)

    def _check_open(self) -> None:
        if self._connection.closed:
            raise BrokerUnavailable("the log is closed")

    def _check_reads(self) -> None:
        if Feature.READ not in self.features:
            raise BrokerError("these servers do not find messages by time")

    async def read(self, topic: Topic, start: Start, *, limit: int) -> Page:
        """See the port. Messages of a topic are in the order of the times at which their servers stored them; where the
        clocks of servers differ, or one is set back, so does that order from the true one."""
        check_start(start, most_digits=codec.MAX_DIGITS)
        self._check_reads()
        name = addressing.kafka_event_topic(self._prefix, self._namespace, topic)
        partitions = await self._connection.topics.partitions(name)
        if partitions is None or start == NOW:
            return Page([], None)
        return await self._reader.page(placed(name, range(partitions)), start, limit, topic.name)

    async def backlog(self, group: Group) -> Backlog | None:
        self._check_open()
        name = addressing.kafka_event_topic(self._prefix, self._namespace, group.topic)
        count = await self._connection.topics.partitions(name)
        if count is None:
            return None
        partitions = placed(name, range(count))
        group_id = addressing.kafka_group(self._prefix, self._namespace, group)
        stored = await self._asked(lambda admin: admin.list_consumer_group_offsets(group_id, partitions=partitions))
        if not stored:  # a coordinator that is still loading
            raise BrokerUnavailable(f"the place of the group {group_id} is not known yet")
        if all(place.offset < 0 for place in stored.values()):
            return None
        ends = await self._reader.ends(partitions)
        left = unsettled = 0
        for partition, place in stored.items():
            low = max(0, place.offset)
            done, attempts = decode(low, place.metadata)
            left += max(0, ends[partition] - low - sum(end - beginning for beginning, end in done))
            unsettled += len(attempts)
        return Backlog(max(0, left - unsettled), unsettled)

    async def unsubscribe(self, group: Group) -> bool:
        """See the port. Raises `BrokerError` while the group has members: Kafka keeps it for them."""
        self._check_open()
        group_id = addressing.kafka_group(self._prefix, self._namespace, group)
        code = await self._asked(lambda admin: _delete_group(admin, group_id))
        if code == errors.NonEmptyGroup.errno:
            raise BrokerError(f"the group {group_id} has members; they have to end first")
        if code == errors.GroupIdNotFound.errno:
            return False
        if code:
            raise translated(errors.for_code(code)(group_id))
        return True

    async def _asked(self, ask: Callable[[AIOKafkaAdminClient], Awaitable[T]]) -> T:
        """What the servers say about a group, once one of them looks after it."""
        admin = await self._connection.admin()

        async def patiently() -> T:
            while True:
                try:
                    return await ask(admin)
                except errors.KafkaError as error:
                    if not error.retriable:
                        raise
                await asyncio.sleep(ASK_PAUSE)

        return await self._connection.within(patiently())


async def _delete_group(admin: AIOKafkaAdminClient, group_id: str) -> int:
    """aiokafka has the request, and no method for it."""
    node = await admin.find_coordinator(group_id)
    answer = await admin._send_request_to_node(node, DeleteGroupsRequest([group_id]))
    return int(answer.results[0][1])
