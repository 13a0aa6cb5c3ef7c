"""The Table port on Kafka (docs/adr/0012-kafka.md): a state machine over one log for each scope.

A write is one record in the topic of its scope. Whoever follows the topic comes to the same state, and so knows which
writes have won; whoever wrote waits until its own record was taken up.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from math import inf

from brokers import scan_cursor
from brokers.kafka import table_records
from brokers.kafka.connection import Connection, record_size
from brokers.kafka.revision_log import Stored
from brokers.kafka.table_feed import Ends, Feed
from brokers.kafka.table_records import Message, Write
from brokers.kafka.table_replica import Replica
from brokers.kafka.table_snapshot import Snapshots, decode_manifest, encode_manifest
from brokers.kafka.table_state import Outcome, State
from brokers.kafka.table_watch import Watches, told
from brokers.kafka.topics import MAX_REQUEST
from brokers.table_arguments import check_commit, check_key, check_prefix
from mesh import addressing
from mesh.errors import BrokerError, BrokerUnavailable, MessageTooLarge, clip
from mesh.ports.tables import (
    ABSENT,
    Change,
    Check,
    Conflict,
    Current,
    Entry,
    Gone,
    HistoryNotKept,
    InvalidKey,
    Key,
    Page,
    TableFeature,
)

logger = logging.getLogger("meshwire.kafka")

BEAT = 0.25
"""Seconds between looks at whether an entry has expired that somebody watches."""
PULSE = 1.0
"""Seconds between questions where the logs end: whether changes arrive."""
SNAPSHOT_FROM = 16 * 1024 * 1024
"""Bytes of a log that are never worth a snapshot."""
SNAPSHOT_TTL = 60.0
"""Seconds after which a snapshot is left to somebody else."""
SNAPSHOT_JITTER = 2.0
MAX_PAGE_BYTES = 4 * 1024 * 1024
"""Bytes of values after which a page ends early."""
RESERVED = 4096
"""Bytes of a record that a snapshot may add to an entry."""
_SNAPSHOT, _SNAPSHOTTER = f"{addressing.CHECK}.snapshot", f"{addressing.CHECK}.snapshotter"


class KafkaTables:
    """`Tables` over a connection, which stays open when they are closed.

    `max_message` bounds the bytes of a commit: one record, with all that it changes.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        namespace: str = addressing.DEFAULT_NAMESPACE,
        prefix: str = addressing.DEFAULT_PREFIX,
        max_message: int = MAX_REQUEST - RESERVED,
    ) -> None:
        self._connection = connection
        self._namespace = namespace
        self._prefix = prefix
        self._max_message = max_message
        self._tables: dict[str, KafkaTable] = {}
        self._ends = Ends(connection)
        self._feed = Feed(connection)
        self._beat: asyncio.Task[None] | None = None
        self._closed = False

    def table(self, scope: str) -> KafkaTable:
        """Raises `InvalidKey` for a scope that cannot be named."""
        table = self._tables.get(scope)
        if table is None:
            table = KafkaTable(
                self._connection,
                self._feed,
                self._ends,
                prefix=self._prefix,
                namespace=self._namespace,
                scope=scope,
                max_message=self._max_message,
                on_used=self._on_used,
            )
            self._tables[scope] = table
            if self._closed:
                table.close()
        return table

    def _on_used(self) -> None:
        if self._beat is None and not self._closed:
            self._beat = asyncio.get_running_loop().create_task(self._keep_watch(), name="tables")

    async def close(self) -> None:
        self._closed = True
        beat, self._beat = self._beat, None
        if beat is not None:
            beat.cancel()
            await asyncio.gather(beat, return_exceptions=True)
        for table in self._tables.values():
            table.close()
        await asyncio.gather(*(table.ended() for table in self._tables.values()))
        await asyncio.gather(self._feed.close(), self._ends.close())

    async def _keep_watch(self) -> None:
        pulse: asyncio.Task[None] | None = None
        last = 0.0
        loop = asyncio.get_running_loop()
        try:
            while True:
                await asyncio.sleep(BEAT)
                for table in list(self._tables.values()):
                    table.on_beat()
                if loop.time() - last >= PULSE and (pulse is None or pulse.done()):
                    last = loop.time()
                    pulse = loop.create_task(self._feel_pulse(), name="pulse of tables")
        finally:
            if pulse is not None:
                pulse.cancel()
                await asyncio.gather(pulse, return_exceptions=True)

    async def _feel_pulse(self) -> None:
        await asyncio.gather(*(table.feel_pulse() for table in list(self._tables.values())))


class KafkaTable:
    """A `Table` of `KafkaTables`."""

    features = frozenset({TableFeature.DURABLE, TableFeature.HISTORY})

    def __init__(
        self,
        connection: Connection,
        feed: Feed,
        ends: Ends,
        *,
        prefix: str,
        namespace: str,
        scope: str,
        max_message: int,
        on_used: Callable[[], None],
    ) -> None:
        self._connection = connection
        self._ends = ends
        self._max_message = max_message
        try:
            self._source = table_records.source(prefix, namespace, scope)
            self._log = addressing.kafka_state_topic(prefix, namespace, scope)
        except UnicodeEncodeError:
            raise InvalidKey(f"the scope '{clip(scope)}' is no valid Unicode text") from None
        snapshot_topic = addressing.kafka_snapshot_topic(prefix, namespace, scope)
        self._watches = Watches()
        self._snapshots = Snapshots(connection, ends, snapshot_topic, self._log, self._source)
        self._replica = Replica(
            connection,
            feed,
            ends,
            self._snapshots,
            log=self._log,
            source=self._source,
            on_used=on_used,
            on_applied=self._on_applied,
            on_broken=self._watches.on_lost,
        )
        self._snapshotting: asyncio.Task[None] | None = None
        self._ticking: asyncio.Task[None] | None = None
        self._pulse_position = -1

    # The port

    async def get(self, key: Key) -> Entry | None:
        path = self._path(key)
        state = await self._replica.current()
        return _entry(state.get(path))

    async def get_many(self, keys: Sequence[Key]) -> list[Entry | None]:
        paths = [self._path(key) for key in keys]
        state = await self._replica.current()
        return [_entry(state.get(path)) for path in paths]

    async def commit(self, changes: Sequence[Change], checks: Sequence[Check] = ()) -> list[int]:
        check_commit(changes, checks)
        outcome = await self._submit(table_records.commit(self._source, changes, checks))
        return outcome.revisions

    async def scan(self, prefix: Key, *, starts_with: str = "", limit: int, cursor: str | None = None) -> Page:
        path = self._prefix_path(prefix)
        if limit < 1:
            raise ValueError(f"a page of {limit} entries")
        low, high = _span(path, starts_with)
        if cursor is not None:
            low = scan_cursor.read(cursor, prefix, starts_with, str) + "\0"
        state = await self._replica.current()
        entries: list[Entry] = []
        size, last = 0, ""
        for record in state.scan(low, high, limit + 1):
            if len(entries) == limit or size > MAX_PAGE_BYTES:
                return Page(entries, scan_cursor.write(prefix, starts_with, last))
            last = record.path
            entry = _entry(record)
            if entry is not None:
                entries.append(entry)
                size += len(entry.value)
        return Page(entries, None)

    async def watch(
        self, prefix: Key, *, after: int | None = None, lost: Callable[[], None] | None = None
    ) -> AsyncGenerator[Entry | Gone | Current, None]:
        path = self._prefix_path(prefix)
        while True:
            try:
                state = await self._replica.current()
                break
            except BrokerUnavailable as error:
                if self._replica.closed or self._connection.closed:
                    return
                logger.debug("watch of %s: %s", self._log, error)
        watch = self._watches.watch(state, path, after, lost or _nobody_asks)
        try:
            async for change in watch:
                yield change
        finally:
            await watch.aclose()

    async def keep_history(self, prefix: Key, revisions: int) -> None:
        path = self._prefix_path(prefix)
        if not 1 <= revisions <= table_records.MAX_HISTORY:
            raise ValueError(f"a history of {revisions} values; 1 to {table_records.MAX_HISTORY} can be kept")
        await self._replica.current()
        kept = self._replica.state.kept.get(path)
        if kept is None or kept.revisions != revisions:
            await self._submit(table_records.keep_history(self._source, path, revisions))

    async def history(self, key: Key, *, limit: int) -> list[Entry | Gone]:
        path = self._path(key)
        if limit < 1:
            raise ValueError(f"a history of {limit} values")
        records = (await self._past(key, path))[:limit]
        return [change for change in map(told, records) if change is not None]

    async def as_of(self, key: Key, *, revision: int | None = None, time: float | None = None) -> Entry | None:
        path = self._path(key)
        if (revision is None) == (time is None):
            raise ValueError("give a revision or a time")
        when, moment = inf if revision is None else revision, inf if time is None else time
        for record in await self._past(key, path):
            if record.revision <= when and record.time <= moment:
                if record.expires is not None and record.expires <= moment < inf:
                    return None
                return _entry(record)
        state = self._replica.state
        promises = state.promises(path)
        if path in state.cut or not any(kept.since_revision <= when and kept.since_time <= moment for kept in promises):
            raise _not_kept(key)
        return None

    def close(self) -> None:
        self._watches.close()
        self._replica.close()

    async def ended(self) -> None:
        """Once `close` has been called."""
        await self._replica.ended()

    # What others drive

    def on_beat(self) -> None:
        """Mark what has expired, for those who watch."""
        if self._watches and self._replica.is_overdue() and (self._ticking is None or self._ticking.done()):
            self._ticking = self._replica.own(self._tick_quietly(), "tick")

    async def feel_pulse(self) -> None:
        """Find out whether changes arrive."""
        if not self._watches:
            return
        replica, before = self._replica, self._pulse_position
        try:
            await replica.ready()
            position = replica.state.position  # others may write while the answer is on its way
            end = await self._ends.end(self._log)
        except BrokerError as error:
            logger.debug("%s: %s", self._log, error)
            self._watches.on_lost()
            if isinstance(error, BrokerUnavailable):
                await replica.look_after_topic()
            else:
                self._watches.on_refused(error)
            return
        self._pulse_position = end
        if end < position and replica.follower is not None and self._connection.offered.ends:
            replica.break_off(BrokerUnavailable(f"the topic {self._log} ends at {end}, and had {position}"))
        elif replica.state.position >= end:
            self._watches.on_found(replica.state)
        elif 0 <= position < before and position == replica.state.position:
            self._watches.on_lost()  # there were records a pulse ago already, and none has come
            await self._tick_quietly()  # see `ARRIVAL` of replicas

    def _on_applied(self, state: State) -> None:
        if state.changed:
            if self._watches:
                self._watches.on_changed(state.changed)
            if _SNAPSHOT in state.changed:
                state.log_size = 0
            state.changed.clear()
        if state.log_size > max(SNAPSHOT_FROM, 2 * state.size) and self._snapshotting is None:
            self._snapshotting = self._replica.own(self._take_snapshot(), "snapshot")

    # Writing

    async def _submit(self, message: Message) -> Outcome:
        size = record_size(message.value, message.key, message.headers)
        if size > self._max_message:
            raise MessageTooLarge(size, self._max_message, None)
        outcome = await self._replica.submit(message)
        if outcome.conflict:
            raise Conflict(addressing.parse_key_path(outcome.conflict) or tuple(outcome.conflict.split(".")))
        return outcome

    async def _tick_quietly(self) -> None:
        with suppress(BrokerError):
            await self._submit(table_records.tick(self._source))

    # Snapshots

    async def _take_snapshot(self) -> None:
        """One process at a time, as far as that can be had: two of them do no harm."""
        try:
            await asyncio.sleep(random.uniform(0, SNAPSHOT_JITTER))  # noqa: S311 - no secret
            if self._replica.state.log_size > SNAPSHOT_FROM:
                await self.take_snapshot()
        except Conflict:
            logger.debug("somebody else takes a snapshot of %s", self._log)
        except BrokerError as error:
            logger.warning("no snapshot of %s: %s", self._log, error)
        finally:
            self._snapshotting = None

    async def take_snapshot(self) -> None:
        """Write down what there is, and let go of what nobody needs then.

        Raises `Conflict` when somebody else does, `BrokerError`, `BrokerUnavailable`.
        """
        lease = await self._hold(ABSENT)
        renewed = asyncio.get_running_loop().time()

        async def go_on() -> None:
            nonlocal lease, renewed
            if asyncio.get_running_loop().time() - renewed > SNAPSHOT_TTL / 3:
                lease = await self._hold(lease)
                renewed = asyncio.get_running_loop().time()

        while self._replica.state.next_expiry <= self._replica.state.time:  # what has expired is not written down
            await self._submit(table_records.tick(self._source))
        entry = self._replica.state.get(_SNAPSHOT)
        previous = None if entry is None or entry.value is None else decode_manifest(entry.value)
        manifest = await self._snapshots.write(self._replica.state, previous, go_on)
        await self._put(
            [Write(_SNAPSHOT, encode_manifest(manifest)), Write(_SNAPSHOTTER, None)], [(_SNAPSHOTTER, lease)]
        )
        if previous is not None:
            await self._snapshots.forget_before(previous)

    async def _hold(self, expected: int) -> int:
        outcome = await self._put([Write(_SNAPSHOTTER, b"", ttl=SNAPSHOT_TTL, expected=expected)], [])
        return outcome.revisions[0]

    async def _put(self, writes: list[Write], checks: list[tuple[str, int]]) -> Outcome:
        return await self._submit(table_records.message(self._source, writes, checks))

    # Arguments

    def _path(self, key: Key) -> str:
        check_key(key)
        self._replica.check_open()
        return table_records.path_of(key)

    def _prefix_path(self, prefix: Key) -> str:
        check_prefix(prefix)
        self._replica.check_open()
        return table_records.path_of(prefix)

    async def _past(self, key: Key, path: str) -> list[Stored]:
        """The newest first."""
        state = await self._replica.current()
        if not state.promises(path):
            raise _not_kept(key)
        return list(reversed(state.histories.get(path, ())))


def _entry(record: Stored | None) -> Entry | None:
    change = None if record is None else told(record)
    return change if isinstance(change, Entry) else None


def _not_kept(key: Key) -> HistoryNotKept:
    return HistoryNotKept(f"the earlier values of {'/'.join(key)} are not kept, or not from so long ago")


def _nobody_asks() -> None:
    pass


def _span(path: str, starts_with: str) -> tuple[str, str]:
    """The paths within a prefix, the next part of which begins with a text: from the first on, before the second."""
    try:
        low = (f"{path}." if path else "") + (addressing.token(starts_with) if starts_with else "")
    except UnicodeEncodeError:
        return "", ""
    return low, low + "\x7f"
