"""Reading stored records: where something begins, pages of a topic, and records that are read again.

One client for it, without a group. Records of a topic are in the order of their times, partitions merged.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import aiokafka.errors as errors
from aiokafka import AIOKafkaConsumer, TopicPartition

from brokers.kafka.codec import OFFSET_DIGITS, KafkaRecord, is_expired, place
from brokers.kafka.connection import Connection
from brokers.kafka.ending import stop
from brokers.kafka.refusals import translated
from mesh.errors import BrokerError, BrokerUnavailable
from mesh.ports import Page, Record, Start

logger = logging.getLogger("meshwire.kafka")

RECALL_PAUSE = 1.0
"""Seconds before messages are asked for again that could not be read."""
PAGE_LIMIT = 10.0
"""Seconds for one page, or for one message that is read again."""
PAGE_BYTES = 8 * 1024 * 1024
POLL = 200
"""Milliseconds."""
FETCH_WAIT = 10
"""Milliseconds that a fetch waits where nothing is: the next request of this client waits for it."""
FETCH_BYTES = 256 * 1024
"""Of one partition at a time. One record that is larger comes all the same."""


class Reader:
    """A client that reads what it is asked for, one after the other."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = asyncio.Lock()
        self._consumer: AIOKafkaConsumer | None = None

    @asynccontextmanager
    async def at(self, partitions: Iterable[TopicPartition]) -> AsyncIterator[AIOKafkaConsumer]:
        """A consumer that has these. Raises `BrokerError`, `BrokerUnavailable`, and what its user raises."""
        async with self._lock:
            if self._connection.closed:
                raise BrokerUnavailable("the connection to Kafka is closed")
            consumer = self._consumer
            try:
                if consumer is None:
                    wait = min(FETCH_WAIT, self._connection.fetch_wait)
                    consumer = self._consumer = self._connection.consumer(
                        fetch_max_wait_ms=wait, max_partition_fetch_bytes=FETCH_BYTES
                    )
                    await self._connection.within(consumer.start())
                consumer.assign(list(partitions))
                yield consumer
                consumer.unsubscribe()  # else it goes on fetching
            except BaseException as error:
                self._consumer = None
                if consumer is not None:
                    await stop(consumer)
                if isinstance(error, errors.KafkaError):
                    raise translated(error) from error
                raise

    async def close(self) -> None:
        async with self._lock:
            consumer, self._consumer = self._consumer, None
            if consumer is not None:
                await stop(consumer)

    async def beginnings(self, partitions: Iterable[TopicPartition], start: Start) -> dict[TopicPartition, int]:
        """The offset in each partition at which `start` is. Raises `BrokerError`, `BrokerUnavailable`."""
        wanted = list(partitions)
        async with self.at(wanted) as consumer:
            return await self._connection.within(beginnings(consumer, wanted, start))

    async def ends(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        return await self.beginnings(partitions, Start())

    async def page(self, partitions: list[TopicPartition], start: Start, limit: int, topic: str) -> Page:
        """See the `EventLog` port."""
        try:
            async with asyncio.timeout(PAGE_LIMIT), self.at(partitions) as consumer:
                merge = _Merge(consumer, topic, start)
                await merge.begin(partitions)
                records: list[Record] = []
                size = 0
                while True:
                    following = await merge.first()
                    if following is None:
                        return Page(records, None)
                    if len(records) == limit or size > PAGE_BYTES:
                        return Page(records, following.position)
                    records.append(following)
                    size += len(following.stored.value or b"")
                    merge.pass_on(following)
        except TimeoutError:
            raise BrokerUnavailable("Kafka did not bring the page in time") from None

    async def again(self, partition: TopicPartition, offsets: list[int]) -> list[Any]:
        """What is still stored of these, which are in order. Raises `BrokerError`, `BrokerUnavailable`."""
        found: list[Any] = []
        async with self.at([partition]) as consumer:
            left = deque(offsets)
            while left:
                consumer.seek(partition, left[0])
                records = await self._connection.within(_some(consumer, partition), PAGE_LIMIT)
                if records is None:  # before the first one that is stored
                    left.popleft()
                    continue
                for record in records:
                    while left and left[0] < record.offset:
                        left.popleft()
                    if left and left[0] == record.offset:
                        found.append(record)
                        left.popleft()
        return found


async def _some(consumer: AIOKafkaConsumer, partition: TopicPartition) -> list[Any] | None:
    """Records at the consumer's position; `None` where that is out of range."""
    while True:
        try:
            fetched = await consumer.getmany(partition, timeout_ms=POLL)
        except errors.OffsetOutOfRangeError:
            return None
        if fetched.get(partition):
            return list(fetched[partition])


async def beginnings(
    consumer: AIOKafkaConsumer, partitions: list[TopicPartition], start: Start
) -> dict[TopicPartition, int]:
    """The offset in each partition at which `start` is: the end, where nothing is after it."""
    if start.position is None and start.time is None:
        return dict(await consumer.end_offsets(partitions))
    if start.time is not None and start.time <= 0:
        return dict(await consumer.beginning_offsets(partitions))
    if start.position is None:
        return await _at_time(consumer, partitions, int((start.time or 0.0) * 1000))
    moment, number, last_digits = place(start.position)
    found = await _at_time(consumer, partitions, moment)
    later = await _at_time(consumer, partitions, moment + 1)
    for partition in partitions:
        if partition.partition < number:
            found[partition] = later[partition]
        elif partition.partition == number:
            first = found[partition]
            exact = first + (last_digits - first) % 10**OFFSET_DIGITS
            found[partition] = min(exact, later[partition])
    return found


async def _at_time(
    consumer: AIOKafkaConsumer, partitions: list[TopicPartition], milliseconds: int
) -> dict[TopicPartition, int]:
    ends = await consumer.end_offsets(partitions)
    found = await consumer.offsets_for_times(dict.fromkeys(partitions, min(milliseconds, 2**62)))
    return {partition: ends[partition] if at is None else at.offset for partition, at in found.items()}


class _Merge:
    """The partitions of a topic as one sequence, up to what is stored at the beginning."""

    def __init__(self, consumer: AIOKafkaConsumer, topic: str, start: Start) -> None:
        self._consumer = consumer
        self._topic = topic
        self._start = start
        self._fetched: dict[TopicPartition, deque[KafkaRecord]] = {}
        self._ends: dict[TopicPartition, int] = {}

    async def begin(self, partitions: list[TopicPartition]) -> None:
        begin = await beginnings(self._consumer, partitions, self._start)
        ends = await self._consumer.end_offsets(partitions)
        for partition in partitions:
            self._consumer.seek(partition, begin[partition])
            if begin[partition] < ends[partition]:
                self._ends[partition] = ends[partition]
                self._fetched[partition] = deque()
            else:
                self._consumer.pause(partition)

    async def first(self) -> KafkaRecord | None:
        """What comes next; `None` at the end."""
        while needed := [partition for partition, records in self._fetched.items() if not records]:
            await self._fetch(needed)
        return min((records[0] for records in self._fetched.values()), key=_rank, default=None)

    def pass_on(self, record: KafkaRecord) -> None:
        partition = TopicPartition(record.stored.topic, record.stored.partition)
        self._fetched[partition].popleft()
        if not self._fetched[partition] and record.stored.offset + 1 >= self._ends[partition]:
            self._is_over(partition)

    async def _fetch(self, needed: list[TopicPartition]) -> None:
        try:
            fetched = await self._consumer.getmany(*needed, timeout_ms=POLL)
        except errors.OffsetOutOfRangeError as error:  # retention was faster
            for partition in error.args[0]:
                await self._consumer.seek_to_beginning(partition)
            return
        now = time.time()
        for partition in needed:
            end = self._ends[partition]
            for stored in fetched.get(partition, ()):
                if stored.offset < end and not is_expired(stored, now):
                    self._fetched[partition].append(KafkaRecord(stored, self._topic))
            if not self._fetched[partition] and await self._consumer.position(partition) >= end:
                self._is_over(partition)

    def _is_over(self, partition: TopicPartition) -> None:
        del self._fetched[partition], self._ends[partition]
        self._consumer.pause(partition)


def _rank(record: KafkaRecord) -> tuple[int, int, int]:
    return record.stored.timestamp, record.stored.partition, record.stored.offset


class Recalls:
    """Records that are read again for lanes, one request after the other."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._queue: asyncio.Queue[_Recall] = asyncio.Queue()  # bounded by those who ask: each key asks once at a time
        self._task: asyncio.Task[None] | None = None

    def ask(
        self,
        partition: TopicPartition,
        offsets: list[int],
        then: Callable[[list[Any]], None],
        wanted: Callable[[], bool],
    ) -> None:
        """`then` gets what is still stored of these, unless nobody wants it any more."""
        self._queue.put_nowait((partition, offsets, then, wanted))
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._work(), name="kafka recalls")

    async def _work(self) -> None:
        while True:
            partition, offsets, then, wanted = await self._queue.get()
            while wanted():
                try:
                    records = await self._reader.again(partition, offsets)
                except BrokerError as error:
                    logger.warning("%s: messages that wait are not read again yet: %s", partition.topic, error)
                    await asyncio.sleep(RECALL_PAUSE)
                else:
                    if wanted():
                        then(records)
                    break

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._reader.close()


_Recall = tuple[TopicPartition, list[int], Callable[[list[Any]], None], Callable[[], bool]]
