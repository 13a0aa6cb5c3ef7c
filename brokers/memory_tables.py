"""The reference tables: the contract of `Table` in one process, with nothing behind it.

Like the stream of a broker, a table is a log that keeps the newest record of each key. Watches read along in it, at
their own pace, so none has a queue that could grow.
"""

from __future__ import annotations

import asyncio
import heapq
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from math import inf
from typing import NamedTuple

from brokers import scan_cursor
from brokers.table_arguments import check_commit, check_key, check_prefix
from mesh.clock import SystemClock
from mesh.errors import BrokerUnavailable, MessageTooLarge
from mesh.ports import Clock
from mesh.ports.tables import (
    ABSENT,
    Change,
    Check,
    Conflict,
    Current,
    Entry,
    Gone,
    HistoryNotKept,
    Key,
    Page,
    Put,
    TableFeature,
)

GONE_KEPT = 3600.0
"""Seconds for which a deletion can be watched after the fact."""

COMPACT_FROM = 64
"""Records that the log of a table may have without being worth the trouble of compacting it."""

MAX_HISTORY = 64


class MemoryTables:
    """`Tables` in memory. All clients share this one object.

    `max_message_size` bounds the bytes of one change: key, content type and value.
    """

    def __init__(self, clock: Clock | None = None, *, max_message_size: int = 1 << 20) -> None:
        self._clock = clock or SystemClock()
        self._max_message_size = max_message_size
        self._tables: dict[str, MemoryTable] = {}
        self._closed = False

    def table(self, scope: str) -> MemoryTable:
        table = self._tables.get(scope)
        if table is None:
            table = self._tables[scope] = MemoryTable(self._clock, self._max_message_size)
            if self._closed:
                table.close()
        return table

    async def close(self) -> None:
        self._closed = True
        for table in self._tables.values():
            table.close()


class MemoryTable:
    """A `Table` of `MemoryTables`."""

    features = frozenset({TableFeature.HISTORY})

    def __init__(self, clock: Clock, max_message_size: int) -> None:
        self._clock = clock
        self._max_message_size = max_message_size
        self._revision = 0
        self._newest: dict[Key, Entry | Gone] = {}
        self._keys: list[Key] = []  # of the entries, in order
        self._log: list[Entry | Gone] = []  # by revision; what is not in `_newest` has been superseded
        self._histories = _Histories()
        self._expiries: list[tuple[float, int, Key]] = []  # a heap
        self._alarm = inf  # when the timer will go off
        self._watches: set[_Watch] = set()
        self._closed = False

    async def get(self, key: Key) -> Entry | None:
        check_key(key)
        self._bring_up_to_date()
        return self._entry(key)

    async def get_many(self, keys: Sequence[Key]) -> list[Entry | None]:
        return [await self.get(key) for key in keys]

    async def commit(self, changes: Sequence[Change], checks: Sequence[Check] = ()) -> list[int]:
        check_commit(changes, checks)
        for change in changes:
            self._check_size(change)
        self._bring_up_to_date()
        for key, expected in [*((change.key, change.expected) for change in changes), *checks]:
            entry = self._entry(key)
            if expected is not None and expected != (ABSENT if entry is None else entry.revision):
                raise Conflict(key)
        now = self._clock.now()
        revisions = [self._apply(change, now) for change in changes]
        self._wake_watches()
        return revisions

    async def scan(self, prefix: Key, *, starts_with: str = "", limit: int, cursor: str | None = None) -> Page:
        check_prefix(prefix)
        if limit < 1:
            raise ValueError(f"a page of {limit} entries")
        self._bring_up_to_date()
        if cursor is None:
            first = bisect_left(self._keys, (*prefix, starts_with))
        else:
            first = bisect_right(self._keys, scan_cursor.read(cursor, prefix, starts_with, tuple[str, ...]))
        entries: list[Entry] = []
        for index in range(first, len(self._keys)):
            key = self._keys[index]
            if not (_within(key, prefix) and key[len(prefix)].startswith(starts_with)):
                break
            if len(entries) == limit:
                return Page(entries, scan_cursor.write(prefix, starts_with, entries[-1].key))
            record = self._newest[key]
            if isinstance(record, Entry):
                entries.append(record)
        return Page(entries, None)

    async def watch(
        self, prefix: Key, *, after: int | None = None, lost: Callable[[], None] | None = None
    ) -> AsyncGenerator[Entry | Gone | Current, None]:
        check_prefix(prefix)
        self._bring_up_to_date()
        beginning = self._revision
        watch = _Watch(beginning if after is None else after)
        self._watches.add(watch)
        self._set_timer()
        is_current = False
        try:
            while not self._closed:
                record = self._next(watch, prefix)
                if not is_current and (record is None or record.revision > beginning):
                    is_current = True
                    yield Current(beginning)
                elif record is None:
                    watch.woken.clear()
                    await watch.woken.wait()
                else:
                    watch.position = record.revision
                    if isinstance(record, Entry) or after != ABSENT or is_current:
                        yield record
        finally:
            self._watches.discard(watch)

    async def keep_history(self, prefix: Key, revisions: int) -> None:
        check_prefix(prefix)
        if not 1 <= revisions <= MAX_HISTORY:
            raise ValueError(f"a history of {revisions} values; 1 to {MAX_HISTORY} can be kept")
        self._bring_up_to_date()
        self._histories.keep(prefix, revisions, self._revision, self._clock.now(), self._newest.values())

    async def history(self, key: Key, *, limit: int) -> list[Entry | Gone]:
        check_key(key)
        if limit < 1:
            raise ValueError(f"a history of {limit} values")
        self._bring_up_to_date()
        return self._histories.newest_first(key)[:limit]

    async def as_of(self, key: Key, *, revision: int | None = None, time: float | None = None) -> Entry | None:
        check_key(key)
        if (revision is None) == (time is None):
            raise ValueError("give a revision or a time")
        self._bring_up_to_date()
        return self._histories.as_of(key, inf if revision is None else revision, inf if time is None else time)

    def close(self) -> None:
        self._closed = True
        self._wake_watches()

    def _entry(self, key: Key) -> Entry | None:
        record = self._newest.get(key)
        return record if isinstance(record, Entry) else None

    def _check_size(self, change: Change) -> None:
        size = sum(len(part.encode()) for part in change.key)
        if isinstance(change, Put):
            size += len(change.value) + len(change.content_type.encode())
        if size > self._max_message_size:
            raise MessageTooLarge(size, self._max_message_size)

    def _apply(self, change: Change, now: float) -> int:
        revision = self._revision + 1
        if isinstance(change, Put):
            expires = None if change.ttl is None else now + change.ttl
            if expires is not None:
                heapq.heappush(self._expiries, (expires, revision, change.key))
            self._append(
                Entry(
                    key=change.key,
                    value=change.value,
                    revision=revision,
                    time=now,
                    expires=expires,
                    content_type=change.content_type,
                )
            )
        else:
            self._append(Gone(key=change.key, revision=revision, time=now))
        return revision

    def _append(self, record: Entry | Gone) -> None:
        key = record.key
        existed = self._entry(key) is not None
        if existed and isinstance(record, Gone):
            del self._keys[bisect_left(self._keys, key)]
        elif not existed and isinstance(record, Entry):
            insort(self._keys, key)
        self._revision = record.revision
        self._newest[key] = record
        self._log.append(record)
        self._histories.append(record)
        if len(self._log) > max(2 * len(self._newest), COMPACT_FROM):
            self._compact()

    def _compact(self) -> None:
        """Drop what has been superseded, and deletions that nobody can ask for any more."""
        forgotten = self._clock.now() - GONE_KEPT
        seen_by_all = min((watch.position for watch in self._watches), default=self._revision)
        self._newest = {
            key: record
            for key, record in self._newest.items()
            if isinstance(record, Entry) or record.time > forgotten or record.revision > seen_by_all
        }
        self._log = sorted(self._newest.values(), key=_revision)
        self._expiries = [expiry for expiry in self._expiries if self._is_pending(expiry)]
        heapq.heapify(self._expiries)

    def _is_pending(self, expiry: tuple[float, int, Key]) -> bool:
        _, revision, key = expiry
        entry = self._entry(key)
        return entry is not None and entry.revision == revision

    def _bring_up_to_date(self) -> None:
        """Let go of what has expired by now."""
        if self._closed:
            raise BrokerUnavailable("the tables are closed")
        now = self._clock.now()
        if not self._expiries or self._expiries[0][0] > now:
            return
        while self._expiries and self._expiries[0][0] <= now:
            expiry = heapq.heappop(self._expiries)
            if self._is_pending(expiry):
                self._append(Gone(key=expiry[2], revision=self._revision + 1, time=expiry[0]))
        self._wake_watches()

    def _next(self, watch: _Watch, prefix: Key) -> Entry | Gone | None:
        """The oldest change that `watch` has not seen."""
        first = bisect_right(self._log, watch.position, key=_revision)
        for index in range(first, len(self._log)):  # `islice` would go through all before `first`
            record = self._log[index]
            if _within(record.key, prefix) and self._newest[record.key] is record:
                return record
            watch.position = record.revision
        return None

    def _wake_watches(self) -> None:
        for watch in self._watches:
            watch.woken.set()
        self._set_timer()

    def _set_timer(self) -> None:
        """Watches hear of an expiry at once; for all others it is enough to look at the clock."""
        if not self._watches or not self._expiries or self._closed:
            return
        due = self._expiries[0][0]
        if due < self._alarm:
            self._alarm = due
            self._clock.call_later(due - self._clock.now(), self._on_timer)

    def _on_timer(self) -> None:
        self._alarm = inf
        if not self._closed:
            self._bring_up_to_date()
            self._set_timer()


class _Watch:
    """How far a watch has come in the log."""

    __slots__ = ("position", "woken")

    def __init__(self, position: int) -> None:
        self.position = position
        self.woken = asyncio.Event()


class _Kept(NamedTuple):
    """A promise to keep earlier values, and since when it holds."""

    revisions: int
    since_revision: int
    since_time: float


class _Histories:
    """Earlier values of the keys for which they are kept."""

    def __init__(self) -> None:
        self._kept: dict[Key, _Kept] = {}  # by prefix
        self._records: dict[Key, deque[Entry | Gone]] = {}
        self._cut: set[Key] = set()  # those of which records have been dropped

    def keep(self, prefix: Key, revisions: int, revision: int, time: float, records: Iterable[Entry | Gone]) -> None:
        kept = self._kept.get(prefix) or _Kept(revisions, revision, time)
        self._kept[prefix] = kept._replace(revisions=revisions)
        for record in records:
            if _within(record.key, prefix) and record.key not in self._records:
                self._records[record.key] = deque([record])

    def append(self, record: Entry | Gone) -> None:
        revisions = max((kept.revisions for kept in self._promises(record.key)), default=0)
        if not revisions:
            return
        records = self._records.setdefault(record.key, deque())
        records.append(record)
        while len(records) > revisions:
            records.popleft()
            self._cut.add(record.key)

    def newest_first(self, key: Key) -> list[Entry | Gone]:
        if not self._promises(key):
            raise _not_kept(key)
        return list(reversed(self._records.get(key, ())))

    def as_of(self, key: Key, revision: float, time: float) -> Entry | None:
        """One of `revision` and `time` is infinite."""
        for record in self.newest_first(key):
            if record.revision <= revision and record.time <= time:
                if isinstance(record, Gone) or (record.expires is not None and record.expires <= time < inf):
                    return None
                return record
        known = any(kept.since_revision <= revision and kept.since_time <= time for kept in self._promises(key))
        if key in self._cut or not known:
            raise _not_kept(key)
        return None

    def _promises(self, key: Key) -> list[_Kept]:
        return [kept for prefix, kept in self._kept.items() if _within(key, prefix)]


def _not_kept(key: Key) -> HistoryNotKept:
    return HistoryNotKept(f"the earlier values of {'/'.join(key)} are not kept, or not from so long ago")


def _revision(record: Entry | Gone) -> int:
    return record.revision


def _within(key: Key, prefix: Key) -> bool:
    return key[: len(prefix)] == prefix
