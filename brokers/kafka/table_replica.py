"""The state of one table in this process: read from the log of its scope, kept up to date, changed by appends."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from aiokafka.structs import RecordMetadata

from brokers.kafka import table_records
from brokers.kafka.connection import Connection
from brokers.kafka.table_feed import Ends, Feed, Follower, Record
from brokers.kafka.table_records import Message
from brokers.kafka.table_snapshot import TOPIC, Snapshots
from brokers.kafka.table_state import Outcome, State
from mesh.errors import BrokerError, BrokerUnavailable

logger = logging.getLogger("meshwire.kafka")

T = TypeVar("T")

OPERATION_TIMEOUT = 15.0
"""Seconds that an operation may take in all: longer than the restart of a server and than the election of a leader."""
PAUSES = (0.02, 0.1, 0.5)
"""Seconds between attempts; the last one is repeated."""
ARRIVAL = 2.0
"""Seconds that what is stored may take to arrive. After them it may be what never will: the end of somebody's
transaction takes an offset, too. One more record shows that everything before it is there."""
_LOG_APPEND_TIME = 1


class Replica:
    """Follows the log once somebody needs the state. Two processes that have read as far have the same."""

    def __init__(
        self,
        connection: Connection,
        feed: Feed,
        ends: Ends,
        snapshots: Snapshots,
        *,
        log: str,
        source: bytes,
        on_used: Callable[[], None],
        on_applied: Callable[[State], None],
        on_broken: Callable[[], None],
    ) -> None:
        """`log` is the topic, `source` that of the events in it. `on_used` is called before the state is loaded,
        `on_applied` when it has changed, `on_broken` when it is not followed any more and has to be loaded anew."""
        self.log = log
        self.state = State()
        self.follower: Follower | None = None
        """Once the state is there."""
        self.closed = False
        self._connection = connection
        self._feed = feed
        self._ends = ends
        self._snapshots = snapshots
        self._source = source
        self._on_used = on_used
        self._on_applied = on_applied
        self._on_broken = on_broken
        self._loading: asyncio.Future[None] | None = None
        self._pending: dict[str, asyncio.Future[Outcome]] = {}  # by the id of the operation
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []  # for a position
        self._limits: set[asyncio.Timeout] = set()  # of operations under way
        self._tasks: set[asyncio.Task[None]] = set()
        self._ahead = 0.0  # seconds by which the servers' clock is ahead of ours, at least

    def close(self) -> None:
        self.closed = True
        now = asyncio.get_running_loop().time()
        for limit in self._limits:
            limit.reschedule(now)
        if self.follower is not None:
            self._feed.leave(self.follower)
        for task in self._tasks:
            task.cancel()

    async def ended(self) -> None:
        """Once `close` has been called."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def current(self) -> State:
        """The state with every write that was acknowledged before this was called.

        Raises `BrokerUnavailable` after `OPERATION_TIMEOUT`, `BrokerError`.
        """
        return await self._patiently(self._attempt_current)

    async def submit(self, message: Message) -> Outcome:
        """What became of the operation, which is done once, however often it is sent. Raises as `current`; the outcome
        is unknown then."""
        self.check_open()
        id = message.operation.id
        self._pending[id] = asyncio.get_running_loop().create_future()
        try:
            return await self._patiently(lambda: self._attempt(message))
        finally:
            del self._pending[id]

    async def _attempt_current(self) -> State:
        await self.ready()
        if self.is_overdue() or not self._connection.offered.ends:
            await self._attempt(table_records.tick(self._source))
        else:
            end = await self._ends.end(self.log)
            if self.state.position < end:
                try:
                    async with asyncio.timeout(ARRIVAL):
                        await self._reach(end)
                except TimeoutError:
                    await self._attempt(table_records.tick(self._source))
        return self.state

    async def _reach(self, position: int) -> None:
        if self.state.position < position:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((position, future))
            try:
                await future
            finally:
                if not future.done() or future.cancelled():
                    self._waiting = [pair for pair in self._waiting if pair[1] is not future]

    def is_overdue(self) -> bool:
        return self.state.next_expiry <= time.time() + self._ahead

    async def ready(self) -> None:
        """Once the state is there and followed. Raises `BrokerError`."""
        if self.follower is None:
            if self._loading is None:
                self._loading = self.own(self._load(), "load")
                self._loading.add_done_callback(self._on_loaded)
            await asyncio.shield(self._loading)

    async def _load(self) -> None:
        self._on_used()
        await self._connection.topics.ensure(self.log, 1, TOPIC)
        state = await self._snapshots.load()
        follower = Follower(self.log, self._on_records, self.break_off)
        self.state, self.follower = state, follower
        try:
            await self._feed.follow(follower, state.position)
        except BaseException:
            self.follower = None
            raise

    def _on_loaded(self, loading: asyncio.Future[None]) -> None:
        self._loading = None
        if not loading.cancelled():
            loading.exception()

    def break_off(self, error: BrokerError) -> None:
        """The log is not what it was."""
        logger.warning("%s is read anew: %s", self.log, error)
        if self.follower is not None:
            self._feed.leave(self.follower)
            self.follower = None
        self._on_broken()

    async def look_after_topic(self) -> None:
        """Make it anew if somebody has deleted it."""
        with suppress(BrokerError):
            if self.log in await self._connection.topics.missing([self.log]):
                self._connection.topics.forget(self.log)
                self._connection.topics.forget(self._snapshots.topic)
                self.break_off(BrokerUnavailable("the topic was deleted"))

    def _on_records(self, records: Sequence[Record]) -> None:
        state = self.state
        for record in records:
            if record.offset >= state.position:
                operation = table_records.read(record.key, record.value, record.headers)
                if operation is None:
                    logger.warning("record %d of %s is none of a table; it is passed over", record.offset, self.log)
                state.log_size += len(record.value or b"")
                self._apply(record.offset, record.timestamp / 1000, operation)
        self._after_applying()

    def _on_stored(self, message: Message, stored: RecordMetadata) -> None:
        """What we wrote ourselves need not be read, unless others wrote before it."""
        if stored.timestamp_type == _LOG_APPEND_TIME and stored.timestamp is not None:
            self._ahead = stored.timestamp / 1000 - time.time()
            if stored.offset == self.state.position and self.follower is not None:
                self.state.log_size += len(message.value or b"")
                self._apply(stored.offset, stored.timestamp / 1000, message.operation)
                self._after_applying()

    def _apply(self, offset: int, when: float, operation: table_records.Operation | None) -> None:
        outcome = self.state.apply(offset, when, operation)
        self.state.log_size += 200
        if operation is not None and outcome is not None:
            future = self._pending.get(operation.id)
            if future is not None and not future.done():
                future.set_result(outcome)

    def _after_applying(self) -> None:
        state = self.state
        if self._waiting:
            left = []
            for pair in self._waiting:
                if pair[0] > state.position:
                    left.append(pair)
                elif not pair[1].done():
                    pair[1].set_result(None)
            self._waiting = left
        self._on_applied(state)

    async def _attempt(self, message: Message) -> Outcome:
        """Whoever tries again uses the same message: it is done once."""
        await self.ready()
        id = message.operation.id
        future = self._pending.get(id)
        is_ours = future is None
        if future is None:
            future = self._pending[id] = asyncio.get_running_loop().create_future()
        try:
            if not future.done():
                stored = await self._connection.publish(
                    self.log, message.value, key=message.key, headers=message.headers, partition=0
                )
                self._on_stored(message, stored)
            return await asyncio.shield(future)
        finally:
            if is_ours:
                del self._pending[id]

    async def _patiently(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Try until it works, for `OPERATION_TIMEOUT`. Raises `BrokerUnavailable`, `BrokerError`."""
        self.check_open()
        limit = asyncio.timeout(OPERATION_TIMEOUT)
        failures = 0
        failure = BrokerUnavailable("Kafka did not answer in time")
        self._limits.add(limit)
        try:
            async with limit:
                while True:
                    try:
                        return await attempt()
                    except BrokerUnavailable as error:
                        if self.closed or self._connection.closed:
                            raise
                        failure = error
                        pause = PAUSES[min(failures, len(PAUSES) - 1)]
                        failures += 1
                        await asyncio.sleep(pause)
        except TimeoutError:
            self.check_open()
            raise failure from None
        finally:
            self._limits.discard(limit)

    def check_open(self) -> None:
        if self.closed:
            raise BrokerUnavailable("the tables are closed")

    def own(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name=f"{name} of {self.log}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
