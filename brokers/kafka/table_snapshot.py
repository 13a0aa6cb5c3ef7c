"""Snapshots of a table: what its state was at some offset of its log, so that nobody has to read all of that.

A snapshot is a run of parts in a topic of its own; the last of them says that it is whole, and from where to read on
in the log. Every part names the end of the whole snapshot before it, so that the last record of the topic leads to one
whatever it is. Those of two writers may be mixed: each part names its snapshot.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from itertools import islice

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import RecordsToDelete

from brokers.kafka.connection import Connection
from brokers.kafka.ending import stop
from brokers.kafka.revision_log import Stored
from brokers.kafka.table_feed import Ends, Record
from brokers.kafka.table_records import MESSAGEPACK
from brokers.kafka.table_state import Kept, State
from brokers.kafka.topics import MAX_REQUEST
from mesh import addressing
from mesh.errors import BrokerError, BrokerUnavailable
from mesh.ids import random_id

logger = logging.getLogger("meshwire.kafka")

TOPIC = {
    "cleanup.policy": "delete",
    "retention.ms": "-1",
    "retention.bytes": "-1",
    "message.timestamp.type": "LogAppendTime",
    "segment.bytes": str(64 * 1024 * 1024),  # what is deleted frees whole segments
}
"""Of the log, and of its snapshots."""
PART_BYTES = 256 * 1024
"""Bytes of records of a part, but for one that is larger by itself."""
PART_ITEMS = 2000
SLICE = 256
"""Records that are taken up before others have their turn."""
READ_LIMIT = 10.0
"""Seconds for which nothing may come while a snapshot is read."""
_LOOKS = (1, 100, 10_000)
"""Records from the end among which one is looked for that is ours."""


class End(msgspec.Struct, frozen=True):
    first: int
    """The offset of the first part."""
    position: int
    """The offset of the log at which to read on."""
    time: float
    """That of the log there."""


class Part(msgspec.Struct, frozen=True, omit_defaults=True):
    snapshot: str
    previous: int = -1
    """The offset of the last part of the whole snapshot before; -1 when there is none."""
    records: list[Stored] = []
    earlier: list[Stored] = []
    """Earlier values of keys for which they are kept, the newest ones included, in the order of their revisions."""
    kept: dict[str, Kept] = {}
    cut: list[str] = []
    operations: dict[str, float] = {}
    end: End | None = None


class Manifest(msgspec.Struct, frozen=True):
    """Where the newest whole snapshot is: what the table itself knows of it."""

    first: int
    last: int
    """The offsets of its first and of its last part."""
    position: int
    """The offset of the log at which to read on."""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Part).decode
encode_manifest = msgspec.json.Encoder().encode
decode_manifest = msgspec.json.Decoder(Manifest).decode


class Snapshots:
    """Those of one table."""

    def __init__(self, connection: Connection, ends: Ends, topic: str, log: str, source: bytes) -> None:
        self._connection = connection
        self._ends = ends
        self.topic = topic
        self._log = log
        self._source = source

    async def write(self, state: State, previous: Manifest | None, goes_on: Callable[[], Awaitable[None]]) -> Manifest:
        """Write what `state` is now. `goes_on` is awaited between parts: it may raise.

        Raises `BrokerError`, `BrokerUnavailable`.
        """
        await self._connection.topics.ensure(self.topic, 1, TOPIC)
        snapshot = random_id()
        end = End(0, state.position, state.time)
        parts = _parts(state, snapshot, -1 if previous is None else previous.last)
        first = -1
        for part in parts:
            offset = await self._publish(part)
            first = offset if first < 0 else first
            await goes_on()
        end = msgspec.structs.replace(end, first=first)
        last = await self._publish(Part(snapshot, -1 if previous is None else previous.last, end=end))
        return Manifest(first if first >= 0 else last, last, end.position)

    async def _publish(self, part: Part) -> int:
        headers = [
            ("ce_specversion", b"1.0"),
            ("ce_id", random_id().encode()),
            ("ce_source", self._source),
            ("ce_type", addressing.STATE_SNAPSHOT.encode()),
            ("content-type", MESSAGEPACK),
        ]
        stored = await self._connection.publish(self.topic, _encode(part), headers=headers, partition=0)
        return int(stored.offset)

    async def forget_before(self, manifest: Manifest) -> None:
        """Delete what nobody needs who knows this snapshot or a newer one. Raises `BrokerError`."""
        if not self._connection.offered.delete_records:
            return
        admin = await self._connection.admin()
        for topic, offset in ((self._log, manifest.position), (self.topic, manifest.first)):
            records = {TopicPartition(topic, 0): RecordsToDelete(before_offset=offset)}
            await self._connection.within(admin.delete_records(records))

    async def load(self) -> State:
        """As of the newest whole snapshot; as of the beginning of the log when there is none.

        Raises `BrokerError` when the log does not go on from there, `BrokerUnavailable`.
        """
        state = State()
        if await self._connection.topics.partitions(self.topic) is not None:
            begin, end = await asyncio.gather(self._ends.begin(self.topic), self._ends.end(self.topic))
            if begin < end:
                await self._load(state, begin, end)
        begin, end = await asyncio.gather(self._ends.begin(self._log), self._ends.end(self._log))
        if not begin <= state.position <= end:
            raise BrokerError(
                f"the topic {self._log} has records {begin} to {end}, and {self.topic} tells what was there before"
                f" {state.position}: one of the two was deleted or cut; restore it, or delete both"
            )
        return state

    async def _load(self, state: State, begin: int, end: int) -> None:
        consumer = self._connection.consumer(isolation_level="read_uncommitted", max_partition_fetch_bytes=MAX_REQUEST)
        partition = TopicPartition(self.topic, 0)
        try:
            await self._connection.within(consumer.start())
            consumer.assign([partition])
            last = await self._last(consumer, partition, begin, end)
            if last is not None:
                await self._read(consumer, partition, last, state)
        finally:
            await stop(consumer)

    async def _last(self, consumer: AIOKafkaConsumer, topic: TopicPartition, begin: int, end: int) -> Part | None:
        """The end of the newest whole snapshot."""
        for look in _LOOKS:
            found: Part | None = None
            first = max(begin, end - look)
            async for record in self._records(consumer, topic, first, end):
                found = _read(record) or found
            if found is not None:
                if found.end is not None:
                    return found
                if found.previous < begin:
                    return None
                async for record in self._records(consumer, topic, found.previous, found.previous + 1):
                    return _read(record)
            if first == begin:
                break
        return None

    async def _read(self, consumer: AIOKafkaConsumer, topic: TopicPartition, last: Part, state: State) -> None:
        end = last.end
        assert end is not None  # noqa: S101 - for mypy
        state.position, state.time = end.position, end.time
        if end.first < 0:
            return
        async for record in self._records(consumer, topic, end.first, None):
            part = _read(record)
            if part is None or part.snapshot != last.snapshot:
                continue
            if part.end is not None:
                break
            records = iter(part.records)
            while some := list(islice(records, SLICE)):
                state.restore(some)
                await asyncio.sleep(0)
            state.restore_history(part.earlier)
            state.kept |= part.kept
            state.cut.update(part.cut)
            state.operations |= part.operations
        state.changed.clear()

    async def _records(
        self, consumer: AIOKafkaConsumer, topic: TopicPartition, first: int, end: int | None
    ) -> AsyncIterator[Record]:
        consumer.seek(topic, first)
        position = first
        while end is None or position < end:
            found = await self._connection.within(
                consumer.getmany(topic, timeout_ms=int(READ_LIMIT * 1000), max_records=SLICE), 2 * READ_LIMIT
            )
            if not found:
                raise BrokerUnavailable(f"nothing comes from {topic.topic}")
            for record in found[topic]:
                position = record.offset + 1
                if end is None or record.offset < end:
                    yield record


def _read(record: Record) -> Part | None:
    if dict(record.headers).get("ce_type") != addressing.STATE_SNAPSHOT.encode():
        return None
    try:
        return _decode(record.value or b"")
    except (ValueError, msgspec.DecodeError):
        logger.warning("record %d of %s is no part of a snapshot", record.offset, record.topic)
        return None


def _parts(state: State, snapshot: str, previous: int) -> Iterator[Part]:
    """What is copied here is small beside what it refers to, so that the state may go on changing."""
    kept, cut, operations = dict(state.kept), list(state.cut), list(state.operations.items())
    records, earlier = state.log.copy(), list(state.earlier())

    def parts() -> Iterator[Part]:
        for some in _portions(records):
            yield Part(snapshot, previous, records=some)
        for some in _portions(earlier):
            yield Part(snapshot, previous, earlier=some)
        if kept:
            yield Part(snapshot, previous, kept=kept)
        for start in range(0, len(cut), PART_ITEMS):
            yield Part(snapshot, previous, cut=cut[start : start + PART_ITEMS])
        for start in range(0, len(operations), PART_ITEMS):
            yield Part(snapshot, previous, operations=dict(operations[start : start + PART_ITEMS]))

    return parts()


def _portions(records: Iterable[Stored]) -> Iterator[list[Stored]]:
    portion: list[Stored] = []
    size = 0
    for record in records:
        length = len(record.path) + len(record.value or b"")
        if portion and (size + length > PART_BYTES or len(portion) >= PART_ITEMS):
            yield portion
            portion, size = [], 0
        portion.append(record)
        size += length
    if portion:
        yield portion
