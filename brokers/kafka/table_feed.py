"""Reading the logs of tables, one consumer for all of a process, and asking where they end."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TypeAlias

import aiokafka.errors as errors
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.protocol.offset import OffsetRequest

from brokers.kafka.connection import Connection
from brokers.kafka.ending import stop
from brokers.kafka.refusals import translated
from mesh.errors import BrokerError, BrokerUnavailable

logger = logging.getLogger("meshwire.kafka")

Record: TypeAlias = "ConsumerRecord[bytes, bytes]"

ATTEMPT_TIMEOUT = 2.0
"""Seconds that a server has to say where logs end."""
SLICE = 128
"""Records that are handed on at once: so many take about a millisecond."""
POLL = 1000
"""Milliseconds after which a read that found nothing begins anew."""
FETCH_WAIT = 100
"""Milliseconds that a fetch may wait for the first record, and so the first one of a log that is added."""
PAUSE = 0.1
"""Seconds between reads that fail."""
_READ_UNCOMMITTED = 0
_LATEST, _EARLIEST = -1, -2

_Wanted: TypeAlias = tuple[str, int]
"""A topic, and which end of it."""


class Ends:
    """Where logs end, and begin. One request at a time serves all who wait for it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._client: AIOKafkaConsumer | None = None  # it reads nothing: a read that waits would delay the answers
        self._wanted: dict[_Wanted, asyncio.Future[int]] = {}
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    async def close(self) -> None:
        self._closed = True
        task, client = self._task, self._client
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        self._fail(BrokerUnavailable("the tables are closed"))
        if client is not None:
            await stop(client)

    async def end(self, topic: str) -> int:
        """The offset behind the last record that was stored before this was called.

        Raises `BrokerUnavailable`, `BrokerError`.
        """
        return await self._offset((topic, _LATEST))

    async def begin(self, topic: str) -> int:
        """The offset of the first record that is left. Raises `BrokerUnavailable`, `BrokerError`."""
        return await self._offset((topic, _EARLIEST))

    async def _offset(self, wanted: _Wanted) -> int:
        if self._closed:
            raise BrokerUnavailable("the tables are closed")
        future = self._wanted.get(wanted)
        if future is None:
            future = self._wanted[wanted] = asyncio.get_running_loop().create_future()
            future.add_done_callback(_retrieved)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._answer(), name="ends of logs")
        return await asyncio.shield(future)

    async def _answer(self) -> None:
        while self._wanted:
            wanted, self._wanted = self._wanted, {}
            offsets: dict[_Wanted, int | BrokerError]
            try:
                offsets = await self._connection.within(self._ask(list(wanted)), ATTEMPT_TIMEOUT)
            except BrokerError as error:
                offsets = dict.fromkeys(wanted, error)
            except OSError as error:
                offsets = dict.fromkeys(wanted, BrokerUnavailable(f"Kafka: {error}"))
            except asyncio.CancelledError:
                self._wanted |= wanted
                raise
            for one, future in wanted.items():
                offset = offsets.get(one, BrokerUnavailable(f"Kafka did not say where {one[0]} ends"))
                if isinstance(offset, BrokerError):
                    future.set_exception(offset)
                else:
                    future.set_result(offset)

    async def _ask(self, wanted: list[_Wanted]) -> dict[_Wanted, int | BrokerError]:
        if self._client is None:
            client = self._connection.consumer()
            try:
                await client.start()
            except BaseException:
                await stop(client)
                raise
            self._client = client
        requests: dict[tuple[int, int], list[str]] = defaultdict(list)
        for topic, which in wanted:
            requests[await self._leader(topic), which].append(topic)
        offsets: dict[_Wanted, int | BrokerError] = {}
        answers = (self._ask_node(node, which, topics) for (node, which), topics in requests.items())
        for answer in await asyncio.gather(*answers):
            offsets |= answer
        return offsets

    async def _leader(self, topic: str) -> int:
        """Raises `KafkaError` when there is none."""
        client = self._client._client  # type: ignore[union-attr]
        partition = TopicPartition(topic, 0)
        leader = client.cluster.leader_for_partition(partition)
        if leader is None or leader < 0:
            await client.add_topic(topic)
            await client.force_metadata_update()
            leader = client.cluster.leader_for_partition(partition)
        if leader is None or leader < 0:
            raise errors.LeaderNotAvailableError(topic)
        return int(leader)

    async def _ask_node(self, node: int, which: int, topics: list[str]) -> dict[_Wanted, int | BrokerError]:
        client = self._client._client  # type: ignore[union-attr]
        offsets: dict[_Wanted, int | BrokerError] = {}
        try:
            request = OffsetRequest(-1, _READ_UNCOMMITTED, [(topic, [(0, which)]) for topic in topics])
            answer = await client.send(node, request)
        except errors.KafkaError:
            client.force_metadata_update()
            raise
        for topic, partitions in answer.topics:
            for _, code, *_, offset in partitions:
                if code:
                    client.force_metadata_update()
                    offsets[topic, which] = translated(errors.for_code(code)(topic))
                else:
                    offsets[topic, which] = offset
        return offsets

    def _fail(self, error: BrokerError) -> None:
        wanted, self._wanted = self._wanted, {}
        for future in wanted.values():
            if not future.done():
                future.set_exception(error)


class Follower:
    """Somebody who follows a log."""

    def __init__(
        self,
        topic: str,
        on_records: Callable[[Sequence[Record]], None],
        on_broken: Callable[[BrokerError], None],
    ) -> None:
        """`on_broken` is called, and nothing more comes, when the log is not there as it was, or may not be read."""
        self.partition = TopicPartition(topic, 0)
        self.on_records = on_records
        self.on_broken = on_broken


class Feed:
    """The logs that this process follows."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._consumer: AIOKafkaConsumer | None = None
        self._starting = asyncio.Lock()
        self._followers: dict[TopicPartition, Follower] = {}
        self._positions: dict[TopicPartition, int] = {}
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    async def close(self) -> None:
        self._closed = True
        task, consumer = self._task, self._consumer
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if consumer is not None:
            await stop(consumer)

    async def follow(self, follower: Follower, offset: int) -> None:
        """Hand on all records from `offset` on. Raises `BrokerError`."""
        async with self._starting:
            if self._closed:
                raise BrokerUnavailable("the tables are closed")
            if self._consumer is None:
                consumer = self._connection.consumer(
                    isolation_level="read_uncommitted",
                    fetch_max_wait_ms=min(FETCH_WAIT, self._connection.fetch_wait),
                )
                try:
                    await self._connection.within(consumer.start())
                except BaseException:
                    await stop(consumer)
                    raise
                self._consumer = consumer
        self._followers[follower.partition] = follower
        self._positions[follower.partition] = offset
        self._assign()
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._read(self._consumer), name="logs of tables")

    def leave(self, follower: Follower) -> None:
        if self._followers.get(follower.partition) is follower:
            del self._followers[follower.partition], self._positions[follower.partition]
            self._assign()

    def _assign(self) -> None:
        """aiokafka forgets all positions when the partitions change."""
        assert self._consumer is not None  # noqa: S101 - for mypy
        self._consumer.assign(list(self._positions))
        for partition, offset in self._positions.items():
            self._consumer.seek(partition, offset)

    async def _read(self, consumer: AIOKafkaConsumer) -> None:
        while True:
            if not self._positions:
                await asyncio.sleep(PAUSE)
                continue
            try:
                found = await consumer.getmany(timeout_ms=POLL, max_records=SLICE)
            except errors.OffsetOutOfRangeError as error:
                for partition in error.args[0]:
                    self._break(partition, BrokerUnavailable(f"records of {partition.topic} are gone"))
            except errors.TopicAuthorizationFailedError as error:
                for partition in [one for one in self._positions if one.topic in str(error)]:
                    self._break(partition, BrokerError(f"Kafka refused: this user may not read {partition.topic}"))
            except errors.KafkaError as error:
                logger.warning("reading the logs of tables: %s", error)
                await asyncio.sleep(PAUSE)
            else:
                for partition, records in found.items():
                    follower = self._followers.get(partition)
                    if follower is not None:
                        self._positions[partition] = records[-1].offset + 1
                        follower.on_records(records)
                await asyncio.sleep(0)

    def _break(self, partition: TopicPartition, error: BrokerError) -> None:
        follower = self._followers.get(partition)
        if follower is not None:
            self.leave(follower)
            follower.on_broken(error)


def _retrieved(future: asyncio.Future[int]) -> None:
    """Whoever waited may have given up."""
    if not future.cancelled():
        future.exception()
