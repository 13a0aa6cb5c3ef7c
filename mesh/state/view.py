"""Reads of a table that are answered from memory."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from mesh.errors import MeshError
from mesh.ports import Clock
from mesh.ports.tables import Change, Check, Current, Entry, Gone, Key, Put, Table

MAX_BYTES = 16 * 1024 * 1024
IDLE_LIMIT = 60.0
"""Seconds without a read after which a view lets go of all it has."""
IDLE_LOOKS = 4
"""How often it looks whether it is idle within that time, which may so become a quarter longer."""
MEND_LIMIT = 5.0
"""Seconds for which memory is shown while the watch is being taken up anew: long enough for a broker that restarts."""
RETRY_PAUSE = 1.0
"""Seconds from the loss of the watch to the next one."""
WORTH = 4
"""Changes that a watch may show for each read; a read of the broker costs four times what a change does."""
IN_VAIN = 1000
"""Changes from one look to the next that are too few to care."""
OVERHEAD = 640
"""Bytes that an entry takes in memory beside its key, value and media type, with a margin: 440 to 480 were measured."""
ATTEMPTS = 3
"""How often a read asks the broker, at most, when the key is being created and deleted under its hands."""

_UNDATED = 0
"""Revision of the `Gone` that stands for a key found absent: the broker does not say since when."""

logger = logging.getLogger("meshwire.state")


class LocalView:
    """The entries below `prefix`, as this process sees them: those in use are in memory, kept current by one watch.

    All commits of the process go through it. Then, of one key, no read shows an older value than what a read or
    commit had shown when it began, and what this process has written is seen at once. Memory lags behind the commits
    of other processes as the watch does; when that is lost, and not back within `MEND_LIMIT`, reads go to the broker.

    The watch begins with the first read and ends after `IDLE_LIMIT` without one. While there is none, and until it
    is current, reads go to the broker. Nor is there one for `IDLE_LIMIT` when far more was written than read: it would
    cost more than it saves. At most `max_bytes` are kept; the least recently used goes first. Errors are
    those of `Table`. `get` is a hot function, which `tests/unit/mesh/state/test_view.py` holds to 1 µs.
    """

    # An answer of the broker may be overtaken by news of the same key while it is in flight. So whatever is learnt of
    # a key, from the watch or from another answer, is noted in its flights, and the newest is what lands. An absence
    # has no revision to compare: where one meets an entry in the same flight, the broker is asked again.

    def __init__(self, table: Table, prefix: Key, clock: Clock, *, max_bytes: int = MAX_BYTES) -> None:
        self._table = table
        self._prefix = prefix
        self._clock = clock
        self._max_bytes = max_bytes
        self._kept: OrderedDict[Key, Entry | Gone] = OrderedDict()
        self._bytes = 0
        self._flights: dict[Key, list[_Flight]] = {}
        self._watching: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()  # those that end, too
        self._is_current = False
        self._epoch = 0  # of the watch: from one to the next, changes may have been missed
        self._retry_at = 0.0
        self._reads = 0  # since the last look
        self._changes = 0
        self._closed = False

    async def get(self, key: Key, *, strong: bool = False) -> Entry | None:
        """As `Table.get`; from memory where `strong` does not ask for the broker's answer."""
        if not strong:
            record = self._kept.get(key)
            if record is not None:
                self._reads += 1
                self._kept.move_to_end(key)
                if not isinstance(record, Entry):
                    return None
                if record.expires is None or record.expires > self._clock.now():
                    return record
        return await self._read(key)

    async def get_many(self, keys: Sequence[Key], *, strong: bool = False) -> list[Entry | None]:
        """As `Table.get_many`; what is in memory comes from there, unless `strong`."""
        entries: dict[Key, Entry | None] = {}
        now = self._clock.now()
        for key in () if strong else keys:
            record = self._kept.get(key)
            if isinstance(record, Gone):
                entries[key] = None
            elif record is not None and (record.expires is None or record.expires > now):
                entries[key] = record
            else:
                continue
            self._reads += 1
            self._kept.move_to_end(key)
        missing = [key for key in dict.fromkeys(keys) if key not in entries]
        if missing:
            entries |= zip(missing, await self._read_many(missing), strict=True)
        return [entries[key] for key in keys]

    async def commit(self, changes: Sequence[Change], checks: Sequence[Check] = ()) -> list[int]:
        """As `Table.commit`."""
        with self._flying([change.key for change in changes]) as flights:
            try:
                revisions = await self._table.commit(changes, checks)
            except BaseException:
                # It may have happened; or it has not, because of what is in memory.
                for key in [*(change.key for change in changes), *(check.key for check in checks)]:
                    self._drop(key)
                raise
            now = self._clock.now()
            for flight, change, revision in zip(flights, changes, revisions, strict=True):
                self._land(flight, _record(change, revision, now))
        return revisions

    async def close(self) -> None:
        """Let go of everything; reads go to the broker from now on."""
        self._closed = True
        self._stop()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _read(self, key: Key) -> Entry | None:
        self._watch()
        for _ in range(ATTEMPTS):
            with self._flying([key]) as [flight]:
                entry = await self._table.get(key)
                newest = self._land(flight, entry or _absence(key))
            if newest is not None:
                return newest if isinstance(newest, Entry) else None
        return entry

    async def _read_many(self, keys: Sequence[Key]) -> list[Entry | None]:
        self._watch()
        entries: list[Entry | None] = []
        with self._flying(keys) as flights:
            answers = await self._table.get_many(keys)
            landed = [
                self._land(flight, entry or _absence(flight.key))
                for flight, entry in zip(flights, answers, strict=True)
            ]
        for key, newest in zip(keys, landed, strict=True):
            if newest is None:
                entries.append(await self._read(key))
            else:
                entries.append(newest if isinstance(newest, Entry) else None)
        return entries

    # Flights

    @contextmanager
    def _flying(self, keys: Sequence[Key]) -> Iterator[list[_Flight]]:
        """While the broker is asked about `keys`."""
        flights = [_Flight(key, self._epoch) for key in keys]
        for flight in flights:
            self._flights.setdefault(flight.key, []).append(flight)
        try:
            yield flights
        finally:
            for flight in flights:
                others = self._flights[flight.key]
                others.remove(flight)
                if not others:
                    del self._flights[flight.key]

    def _note(self, record: Entry | Gone) -> None:
        for flight in self._flights.get(record.key, ()):
            flight.note(record)

    def _land(self, flight: _Flight, record: Entry | Gone) -> Entry | Gone | None:
        """Take in an answer of the broker. Returns the newest of what the flight has learnt; `None` if nobody knows."""
        self._note(record)
        newest = flight.newest
        if newest is None:
            self._drop(flight.key)
        elif flight.key in self._kept or (self._is_current and flight.epoch == self._epoch):
            self._keep(newest)
        return newest

    # What is in memory

    def _keep(self, record: Entry | Gone) -> None:
        key = record.key
        if key[: len(self._prefix)] != self._prefix:
            return
        old = self._kept.get(key)
        self._kept[key] = record
        self._bytes += _size(record) - (0 if old is None else _size(old))
        while self._bytes > self._max_bytes:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= _size(oldest)

    def _drop(self, key: Key) -> None:
        record = self._kept.pop(key, None)
        if record is not None:
            self._bytes -= _size(record)

    def _forget_all(self) -> None:
        self._epoch += 1
        self._kept.clear()
        self._bytes = 0

    # The watch

    def _watch(self) -> None:
        self._reads += 1
        if self._watching is not None or self._closed or self._clock.now() < self._retry_at:
            return
        task = asyncio.get_running_loop().create_task(self._follow(), name="local view")
        self._watching = task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._look_again(task, IDLE_LOOKS)

    def _look_again(self, task: asyncio.Task[None], looks_left: int) -> None:
        def look() -> None:
            if self._watching is not task:
                return
            reads, self._reads = self._reads, 0
            changes, self._changes = self._changes, 0
            if changes > WORTH * reads + IN_VAIN:
                self._stop()
                self._retry_at = self._clock.now() + IDLE_LIMIT
            elif reads:
                self._look_again(task, IDLE_LOOKS)
            elif looks_left > 1:
                self._look_again(task, looks_left - 1)
            else:
                self._stop()

        self._clock.call_later(IDLE_LIMIT / IDLE_LOOKS, look)

    def _stop(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
        self._lose()

    def _lose(self) -> None:
        self._watching = None
        self._is_current = False
        self._forget_all()

    async def _follow(self) -> None:
        watch = self._table.watch(self._prefix, lost=self._on_lost)
        task = asyncio.current_task()
        try:
            async for change in watch:
                if self._watching is not task:
                    break
                if isinstance(change, Current):
                    self._forget_all()
                    self._is_current = True
                else:
                    self._take(change)
        except MeshError as error:
            logger.warning("the watch of %s was lost, reads go to the broker: %s", "/".join(self._prefix), error)
        except Exception:
            logger.exception("the watch of %s failed, reads go to the broker", "/".join(self._prefix))
        finally:
            if self._watching is task:
                self._lose()
                self._retry_at = self._clock.now() + RETRY_PAUSE
            await watch.aclose()

    def _on_lost(self) -> None:
        epoch = self._epoch

        def give_up() -> None:
            if self._epoch == epoch:
                self._is_current = False
                self._forget_all()

        self._clock.call_later(MEND_LIMIT, give_up)

    def _take(self, change: Entry | Gone) -> None:
        self._changes += 1
        self._note(change)
        kept = self._kept.get(change.key)
        if kept is None:
            return
        if kept.revision == _UNDATED:
            self._drop(change.key)  # the change may be older than the absence, or not
        elif change.revision > kept.revision:
            self._keep(change)
        elif change.revision == kept.revision:
            self._kept[change.key] = change  # our own, with the broker's times


class _Flight:
    """A read or commit of one key that is under way, and what is learnt of the key meanwhile."""

    __slots__ = ("_absent", "_dated", "epoch", "key")

    def __init__(self, key: Key, epoch: int) -> None:
        self.key = key
        self.epoch = epoch
        self._absent: Gone | None = None
        self._dated: Entry | Gone | None = None

    def note(self, record: Entry | Gone) -> None:
        if record.revision == _UNDATED and isinstance(record, Gone):
            self._absent = record
        elif self._dated is None or record.revision >= self._dated.revision:
            self._dated = record

    @property
    def newest(self) -> Entry | Gone | None:
        if self._absent is None:
            return self._dated
        return None if isinstance(self._dated, Entry) else self._absent


def _absence(key: Key) -> Gone:
    return Gone(key=key, revision=_UNDATED, time=0.0)


def _record(change: Change, revision: int, now: float) -> Entry | Gone:
    if not isinstance(change, Put):
        return Gone(key=change.key, revision=revision, time=now)
    return Entry(
        key=change.key,
        value=change.value,
        revision=revision,
        time=now,
        expires=None if change.ttl is None else now + change.ttl,
        content_type=change.content_type,
    )


def _size(record: Entry | Gone) -> int:
    size = OVERHEAD + sum(map(len, record.key))
    return size + len(record.value) + len(record.content_type) if isinstance(record, Entry) else size
