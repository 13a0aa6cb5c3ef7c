"""Partitions that one process reads by itself, without a group: one consumer for all of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import aiokafka.errors as errors
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from brokers.kafka.connection import Connection
from brokers.kafka.ending import stop
from mesh.errors import BrokerError

logger = logging.getLogger("meshwire.kafka")

OnRecord = Callable[["ConsumerRecord[bytes, bytes]"], None]

POLL = 1000
"""Milliseconds after which a read that found nothing looks for partitions that were added."""
PAUSE = 0.1
"""Seconds between reads that fail."""


class Reader:
    def __init__(self, connection: Connection, on_refused: Callable[[str], None]) -> None:
        """`on_refused` gets the name of a topic that we may not read; it is read no more."""
        self._connection = connection
        self._on_refused = on_refused
        self._consumer: AIOKafkaConsumer | None = None
        self._callbacks: dict[TopicPartition, OnRecord] = {}
        self._waiting: dict[TopicPartition, list[tuple[int, asyncio.Future[None]]]] = {}
        self._task: asyncio.Task[None] | None = None
        self.positions: dict[TopicPartition, int] = {}
        """The next record of each partition that is read."""

    async def start(self) -> None:
        """Raises `BrokerError`. Once more, it begins anew where it has come to."""
        await self.pause()
        consumer = self._connection.consumer(
            auto_offset_reset="earliest",  # of a topic that was made again; what is not for us is skipped
            isolation_level="read_uncommitted",
        )
        try:
            await self._connection.within(consumer.start())
        except BaseException:
            await stop(consumer)
            raise
        old, self._consumer = self._consumer, consumer
        if self.positions:
            self._assign()
        self._task = asyncio.get_running_loop().create_task(self._read(consumer), name="kafka calls")
        if old is not None:
            await stop(old)

    async def pause(self) -> None:
        """Read no more: `positions` are final."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def close(self) -> None:
        await self.pause()
        for waiting in self._waiting.values():
            for _, future in waiting:
                future.cancel()
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await stop(consumer)

    def follow(self, partition: TopicPartition, offset: int, on_record: OnRecord) -> None:
        """Read on from `offset`. Does nothing when the partition is read already."""
        if partition in self._callbacks:
            return
        self._callbacks[partition] = on_record
        self.positions[partition] = offset
        self._assign()

    def rewind(self, topic: str) -> None:
        """The topic was made again."""
        for partition in self.positions:
            if partition.topic == topic:
                self.positions[partition] = 0
        self._assign()

    def _assign(self) -> None:
        """aiokafka forgets the positions of all partitions when one is added."""
        assert self._consumer is not None  # noqa: S101 - for mypy
        self._consumer.assign(list(self.positions))
        for partition, position in self.positions.items():
            self._consumer.seek(partition, position)

    async def passed(self, partition: TopicPartition, offset: int) -> None:
        """Returns when all records before `offset` were read."""
        if partition not in self.positions:
            raise BrokerError(f"Kafka refused: this user may not read the topic {partition.topic}")
        if self.positions[partition] < offset:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.setdefault(partition, []).append((offset, future))
            await future

    async def _read(self, consumer: AIOKafkaConsumer) -> None:
        while True:
            try:
                found = await consumer.getmany(timeout_ms=POLL)
            except errors.TopicAuthorizationFailedError as error:
                self._drop(str(error.args[0]))
            except errors.KafkaError as error:
                logger.debug("reading calls from Kafka: %s", error)
                await asyncio.sleep(PAUSE)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                await asyncio.sleep(PAUSE)  # aiokafka cancels what waits for a connection that it closes
            else:
                for partition, records in found.items():
                    self._take(partition, records)

    def _take(self, partition: TopicPartition, records: list[ConsumerRecord[bytes, bytes]]) -> None:
        on_record = self._callbacks[partition]
        for record in records:
            self.positions[partition] = record.offset + 1
            try:
                on_record(record)
            except Exception:
                logger.exception("a record of %s cannot be handled", partition.topic)
        waiting = self._waiting.get(partition)
        if waiting:
            position = self.positions[partition]
            for offset, future in waiting:
                if offset <= position and not future.done():
                    future.set_result(None)
            self._waiting[partition] = [pair for pair in waiting if not pair[1].done()]

    def _drop(self, topic: str) -> None:
        for partition in [partition for partition in self.positions if partition.topic == topic]:
            del self.positions[partition], self._callbacks[partition]
            for _, future in self._waiting.pop(partition, ()):
                if not future.done():
                    future.set_exception(BrokerError(f"Kafka refused: this user may not read the topic {topic}"))
        self._assign()
        logger.warning("Kafka refused: this user may not read the topic %s", topic)
        self._on_refused(topic)
