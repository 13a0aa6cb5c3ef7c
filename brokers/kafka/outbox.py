"""Records on their way: sent at once, in order for each topic, nobody waiting for them.

The producer is not the one of events. A call that is not stored within seconds is of no use, so this one gives up; what
it could not send is told. `acks=1`: a call that the leader loses is found out by silence, as one that its callee loses.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

import aiokafka.errors as errors
from aiokafka import AIOKafkaProducer
from aiokafka.structs import RecordMetadata

from brokers.kafka.connection import Connection, Headers, record_size
from brokers.kafka.ending import stop
from brokers.kafka.refusals import translated
from mesh.errors import BrokerError, BrokerUnavailable

MAX_WAITING_BYTES = 64 * 1024 * 1024
"""Bytes of records that wait for their acknowledgement at once."""

OnStored = Callable[[RecordMetadata], None]
OnFailed = Callable[[BrokerError], None]


class _Record(NamedTuple):
    partition: int
    key: bytes | None
    value: bytes
    headers: Headers
    size: int
    on_stored: OnStored | None
    on_failed: OnFailed | None


class Outbox:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._producer: AIOKafkaProducer | None = None
        self._lanes: dict[str, deque[_Record]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting = 0
        self._waiting_bytes = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def start(self) -> None:
        """Raises `BrokerError`."""
        producer = self._connection.producer(acks=1, linger_ms=0, max_batch_size=256 * 1024)
        try:
            await self._connection.within(producer.start())
        except BaseException:
            await stop(producer)
            raise
        self._producer = producer

    async def flush(self, limit: float) -> None:
        """Returns when everything is stored, or given up, or after `limit` seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(limit):
                await self._idle.wait()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        producer, self._producer = self._producer, None
        if producer is not None:
            await stop(producer)

    def send(
        self,
        topic: str,
        partition: int,
        headers: Headers,
        value: bytes,
        on_stored: OnStored | None = None,
        on_failed: OnFailed | None = None,
        key: bytes | None = None,
    ) -> None:
        """`on_stored` gets where the record stands, `on_failed` why there is none.

        Raises `BrokerUnavailable` when nothing can be sent.
        """
        size = record_size(value, key, headers)
        if self._producer is None:
            raise BrokerUnavailable("the connection to Kafka is closed")
        if self._waiting_bytes + size > MAX_WAITING_BYTES:
            raise BrokerUnavailable("too many messages wait for the broker's acknowledgement; slow down and try again")
        self._waiting += 1
        self._waiting_bytes += size
        self._idle.clear()
        record = _Record(partition, key, value, headers, size, on_stored, on_failed)
        lane = self._lanes.get(topic)
        if lane is not None:
            lane.append(record)
            return
        self._lanes[topic] = lane = deque([record])
        task = self._loop.create_task(self._send_all(topic, lane, self._producer), name="kafka outbox")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send_all(self, topic: str, lane: deque[_Record], producer: AIOKafkaProducer) -> None:
        try:
            while lane:
                record = lane[0]
                try:
                    stored = await producer.send(
                        topic, record.value, record.key, record.partition, headers=record.headers or None
                    )
                except errors.KafkaError as error:
                    self._fail(lane.popleft(), translated(error))
                except AssertionError:  # aiokafka's way to say so
                    self._fail(lane.popleft(), BrokerError(f"the topic {topic} has no partition {record.partition}"))
                else:
                    lane.popleft()
                    stored.add_done_callback(lambda outcome, record=record: self._on_outcome(record, outcome))
        finally:  # aiokafka may have cancelled this, too
            del self._lanes[topic]
            for record in lane:
                self._fail(record, BrokerUnavailable("the connection to Kafka was lost"))

    def _on_outcome(self, record: _Record, outcome: asyncio.Future[RecordMetadata]) -> None:
        error = BrokerUnavailable("closed") if outcome.cancelled() else outcome.exception()
        if error is not None:
            self._fail(record, error if isinstance(error, BrokerError) else translated(error))  # type: ignore[arg-type]
            return
        self._done(record)
        if record.on_stored is not None:
            record.on_stored(outcome.result())

    def _fail(self, record: _Record, error: BrokerError) -> None:
        self._done(record)
        if record.on_failed is not None:
            record.on_failed(error)

    def _done(self, record: _Record) -> None:
        self._waiting -= 1
        self._waiting_bytes -= record.size
        if not self._waiting:
            self._idle.set()
