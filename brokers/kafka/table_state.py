"""The state machine of a table: what the records of its log make of it, the same for everybody who reads them.

Nothing here looks at a clock or draws a number. The time is that of the record, by the servers' clock, and never goes
back; what has expired is judged by it alone. A revision is the offset of its record times `STRIDE`, and a place in it.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from itertools import islice
from math import inf

import msgspec

from brokers.kafka.revision_log import RevisionLog, Stored
from brokers.kafka.sorted_paths import SortedPaths
from brokers.kafka.table_records import Operation
from brokers.table_arguments import MAX_COMMIT
from mesh.ports.tables import ABSENT

STRIDE = 1024
"""Revisions that belong to one record: those of keys that it found expired, then those of its changes."""
MAX_EXPIRED = STRIDE - MAX_COMMIT - 1
"""Keys that one record marks as expired; what is left over is for the next one."""
GONE_KEPT = 3600.0
"""Seconds for which a deletion can be watched after the fact."""
REPEATS_KNOWN = 60.0
"""Seconds for which the id of an operation is remembered: far longer than its writer sends it again."""
MAX_REPEATS_KNOWN = 100_000
ENTRY_OVERHEAD = 200
"""Bytes that an entry, or a record, is worth beside its path and its value when sizes are compared."""


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """What became of an operation."""

    revisions: list[int] = []
    conflict: str = ""
    """The path whose precondition did not hold."""


class Kept(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A promise to keep earlier values, and since when it holds."""

    revisions: int
    since_revision: int
    since_time: float


class State:
    """All keys of a table as of an offset of its log."""

    def __init__(self) -> None:
        self.position = 0
        """The offset of the next record."""
        self.time = 0.0
        """Of the last record, in seconds since the epoch."""
        self.size = 0
        """About how many bytes the entries take."""
        self.log_size = 0
        """About how many bytes of the log were read since the last snapshot."""
        self.newest: dict[str, Stored] = {}
        """By path: entries, and deletions not long ago."""
        self.paths = SortedPaths()
        """Of the entries, expired or not."""
        self.log = RevisionLog()
        self.kept: dict[str, Kept] = {}
        """Promises, by the path of the prefix."""
        self.histories: dict[str, deque[Stored]] = {}
        """By path, the present record included."""
        self.cut: set[str] = set()
        """Paths of which earlier values were dropped."""
        self.operations: OrderedDict[str, float] = OrderedDict()
        """The ids of the newest ones, and when they came. (The first of a plain dict is slow to find once many were
        removed before it.)"""
        self._expiries: list[tuple[float, int, str]] = []  # a heap
        self._gone: deque[Stored] = deque()
        self.changed: list[str] = []
        """Paths that were changed since somebody emptied this list."""

    @property
    def revision(self) -> int:
        """No change that was applied has a greater one."""
        return self.position * STRIDE + STRIDE - 1

    def get(self, path: str) -> Stored | None:
        """The entry, unless it has expired."""
        record = self.newest.get(path)
        if record is None or record.value is None or (record.expires is not None and record.expires <= self.time):
            return None
        return record

    def apply(self, offset: int, time: float, operation: Operation | None) -> Outcome | None:
        """Do what the record at `offset` asks for. `None` when it has been done before, or is nothing."""
        self.position = offset + 1
        self.time = max(self.time, time)
        base = self.position * STRIDE
        self._mark_expired(base)
        self._forget()
        if operation is None or operation.id in self.operations:
            return None
        self.operations[operation.id] = self.time
        for path, expected in operation.checks:
            if not self._is_as_expected(path, expected):
                return Outcome(conflict=path)
        for write in operation.writes:
            if write.expected is not None and not self._is_as_expected(write.path, write.expected):
                return Outcome(conflict=write.path)
        if operation.history is not None:
            self._keep(operation.history.path, operation.history.revisions, base)
        revisions = []
        for revision, write in enumerate(operation.writes, base + MAX_EXPIRED):
            expires = None if write.ttl is None or write.value is None else self.time + write.ttl
            self._set(Stored(write.path, revision, self.time, write.value, expires, write.content_type))
            revisions.append(revision)
        return Outcome(revisions)

    @property
    def next_expiry(self) -> float:
        """When an entry will have expired, and is not marked as such; infinite when none will."""
        while self._expiries:
            expires, revision, path = self._expiries[0]
            record = self.newest.get(path)
            if record is not None and record.revision == revision:
                return expires
            heapq.heappop(self._expiries)
        return inf

    def scan(self, low: str, high: str, limit: int) -> list[Stored]:
        """Entries whose paths are from `low` on and before `high`, in their order."""
        found = (self.get(path) for path in self.paths.between(low, high))
        return list(islice((record for record in found if record is not None), limit))

    # What a snapshot holds

    def restore(self, records: Iterable[Stored]) -> None:
        """Take the newest records of keys, in the order of their revisions."""
        for record in records:
            self._set(record)

    def restore_history(self, records: Iterable[Stored]) -> None:
        for record in records:
            self.histories.setdefault(record.path, deque()).append(record)

    def earlier(self) -> Iterator[Stored]:
        """What `restore_history` takes."""
        for records in self.histories.values():
            yield from records

    # Within

    def _is_as_expected(self, path: str, expected: int) -> bool:
        record = self.get(path)
        return expected == (ABSENT if record is None else record.revision)

    def _set(self, record: Stored) -> None:
        path = record.path
        old = self.newest.get(path)
        existed = old is not None and old.value is not None
        if old is not None:
            self.log.remove(old.revision)
            self.size -= _size(old)
        if record.value is None:
            self._gone.append(record)
            if existed:
                self.paths.remove(path)
        elif not existed:
            self.paths.add(path)
        if record.expires is not None:
            heapq.heappush(self._expiries, (record.expires, record.revision, path))
            if len(self._expiries) > 2 * len(self.paths) + STRIDE:  # mostly of leases that were renewed
                self._expiries = [one for one in self._expiries if self._is_newest(one[2], one[1])]
                heapq.heapify(self._expiries)
        self.newest[path] = record
        self.size += _size(record)
        self.log.append(record)
        self.changed.append(path)
        if self.kept:
            self._remember(record)

    def _is_newest(self, path: str, revision: int) -> bool:
        record = self.newest.get(path)
        return record is not None and record.revision == revision

    def _mark_expired(self, base: int) -> None:
        for revision in range(base, base + MAX_EXPIRED):
            expires = self.next_expiry
            if expires > self.time:
                return
            self._set(Stored(heapq.heappop(self._expiries)[2], revision, expires, None))

    def _forget(self) -> None:
        """What nobody can ask for any more."""
        while self._gone and self._gone[0].time <= self.time - GONE_KEPT:
            record = self._gone.popleft()
            if self.newest.get(record.path) is record:
                del self.newest[record.path]
                self.log.remove(record.revision)
                self.size -= _size(record)
        while self.operations:
            id, time = next(iter(self.operations.items()))
            if time > self.time - REPEATS_KNOWN and len(self.operations) < MAX_REPEATS_KNOWN:
                break
            del self.operations[id]

    # Histories

    def promises(self, path: str) -> list[Kept]:
        return [kept for prefix, kept in self.kept.items() if within(path, prefix)]

    def _keep(self, prefix: str, revisions: int, revision: int) -> None:
        known = self.kept.get(prefix)
        self.kept[prefix] = (
            Kept(revisions, revision, self.time)
            if known is None
            else Kept(revisions, known.since_revision, known.since_time)
        )
        for path, record in self.newest.items() if known is None else ():
            if within(path, prefix) and path not in self.histories:
                self.histories[path] = deque((record,))

    def _remember(self, record: Stored) -> None:
        revisions = max((kept.revisions for kept in self.promises(record.path)), default=0)
        if revisions:
            records = self.histories.setdefault(record.path, deque())
            records.append(record)
            while len(records) > revisions:
                records.popleft()
                self.cut.add(record.path)


def within(path: str, prefix: str) -> bool:
    """Whether the key of `path` begins with the parts of that of `prefix`."""
    return not prefix or path == prefix or path.startswith(f"{prefix}.")


def _size(record: Stored) -> int:
    return ENTRY_OVERHEAD + len(record.path) + len(record.value or b"")
