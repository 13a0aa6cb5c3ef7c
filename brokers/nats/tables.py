"""The Table port on NATS JetStream (docs/adr/0006-state-on-nats.md): one stream for each scope."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from functools import lru_cache
from math import inf

from brokers import scan_cursor
from brokers.nats import table_records
from brokers.nats.connection import Connection
from brokers.nats.scopes import ScopeStream
from brokers.nats.table_commit import Committer
from brokers.nats.table_history import Histories
from brokers.nats.table_reads import Reader
from brokers.nats.table_records import Stored, record, record_of
from brokers.nats.table_watch import Watches
from brokers.table_arguments import check_commit, check_key, check_prefix
from mesh import addressing
from mesh.errors import BrokerUnavailable, clip
from mesh.ports.tables import Change, Check, Current, Entry, Gone, InvalidKey, Key, Page, TableFeature

MAX_LOOKS = 4096
"""Messages that one page looks at: a scan for few among many takes several pages."""
MAX_PAGE_BYTES = 4 * 1024 * 1024
"""Bytes of values, wanted or not, after which a page ends early."""
STRIDE = 256
"""Messages fetched at once for a page."""

KNOWN_PATHS = 2048
"""Keys whose addresses are remembered: reading one often is common."""


class NatsTables:
    """`Tables` over a connection, which stays open when they are closed."""

    def __init__(
        self,
        connection: Connection,
        *,
        namespace: str = addressing.DEFAULT_NAMESPACE,
        prefix: str = addressing.DEFAULT_PREFIX,
        replicas: int = 1,
    ) -> None:
        self._connection = connection
        self._namespace = namespace
        self._prefix = prefix
        self._replicas = replicas
        self._tables: dict[str, NatsTable] = {}
        self._closed = False

    def table(self, scope: str) -> NatsTable:
        table = self._tables.get(scope)
        if table is None:
            table = NatsTable(
                self._connection,
                prefix=self._prefix,
                namespace=self._namespace,
                scope=scope,
                replicas=self._replicas,
            )
            self._tables[scope] = table
            if self._closed:
                table.close()
        return table

    async def close(self) -> None:
        self._closed = True
        for table in self._tables.values():
            table.close()


class NatsTable:
    """A `Table` of `NatsTables`. `InvalidKey` is raised for a scope that cannot be named, too."""

    features = frozenset({TableFeature.DURABLE, TableFeature.HISTORY})

    def __init__(self, connection: Connection, *, prefix: str, namespace: str, scope: str, replicas: int) -> None:
        self.stream = ScopeStream(connection, prefix=prefix, namespace=namespace, scope=scope, replicas=replicas)
        self._reader = Reader(connection, self.stream)
        self._histories = Histories(
            connection,
            self.stream,
            self._reader,
            prefix=prefix,
            namespace=namespace,
            scope=scope,
            replicas=replicas,
        )
        source = table_records.source(prefix, namespace, scope)
        self._committer = Committer(connection, self.stream, self._reader, self._histories, source)
        self._watches = Watches(connection, self.stream)
        self._root_length = len(self.stream.root)
        self._closed = False

    async def get(self, key: Key) -> Entry | None:
        stored = await self._reader.last(self._path(key))
        return None if stored is None else self._entry(key, stored)

    async def get_many(self, keys: Sequence[Key]) -> list[Entry | None]:
        paths = [self._path(key) for key in keys]
        found = await self._reader.last_of_each(paths)
        return [stored and self._entry(key, stored) for key, stored in zip(keys, found, strict=True)]

    async def commit(self, changes: Sequence[Change], checks: Sequence[Check] = ()) -> list[int]:
        check_commit(changes, checks)
        self._check_open()
        return await self._committer.commit(changes, checks)

    async def scan(self, prefix: Key, *, starts_with: str = "", limit: int, cursor: str | None = None) -> Page:
        check_prefix(prefix)
        if limit < 1:
            raise ValueError(f"a page of {limit} entries")
        path = self._prefix_path(prefix)
        sequence = 1 if cursor is None else max(1, scan_cursor.read(cursor, prefix, starts_with, int))
        entries: list[Entry] = []
        looks = size = 0
        while len(entries) < limit and looks < MAX_LOOKS and size < MAX_PAGE_BYTES:
            # At most as many as there is room for: none is read in vain.
            stored, ended = await self._reader.following(
                sequence, f"{path}.>" if path else ">", min(STRIDE, limit - len(entries)), MAX_PAGE_BYTES - size
            )
            looks += len(stored)
            size += sum(len(message.payload) for message in stored)
            for message in stored:
                entry = record(message)
                if isinstance(entry, Entry) and entry.key[len(prefix)].startswith(starts_with):
                    entries.append(entry)
            if ended:
                return Page(entries, None)
            sequence = stored[-1].sequence + 1
        return Page(entries, scan_cursor.write(prefix, starts_with, sequence))

    async def watch(
        self, prefix: Key, *, after: int | None = None, lost: Callable[[], None] | None = None
    ) -> AsyncGenerator[Entry | Gone | Current, None]:
        check_prefix(prefix)
        path = self._prefix_path(prefix)
        watch = self._watches.watch(path, after, lost or _nobody_asks)
        try:
            async for change in watch:
                yield change
        finally:
            await watch.aclose()

    async def keep_history(self, prefix: Key, revisions: int) -> None:
        check_prefix(prefix)
        self._prefix_path(prefix)
        await self._histories.keep(prefix, revisions)

    async def history(self, key: Key, *, limit: int) -> list[Entry | Gone]:
        self._path(key)
        if limit < 1:
            raise ValueError(f"a history of {limit} values")
        return (await self._histories.newest_first(key))[:limit]

    async def as_of(self, key: Key, *, revision: int | None = None, time: float | None = None) -> Entry | None:
        self._path(key)
        if (revision is None) == (time is None):
            raise ValueError("give a revision or a time")
        return await self._histories.as_of(key, inf if revision is None else revision, inf if time is None else time)

    def close(self) -> None:
        self._closed = self.stream.closed = True
        self._histories.close()
        self._watches.close()

    def _check_open(self) -> None:
        if self._closed:
            raise BrokerUnavailable("the tables are closed")

    def _path(self, key: Key) -> str:
        self._check_open()
        path = _checked_path(key)
        self._check_length(key, path)
        return path

    def _prefix_path(self, prefix: Key) -> str:
        self._check_open()
        path = addressing.key_path(prefix)
        self._check_length(prefix, path)
        return path

    def _check_length(self, prefix: Key, path: str) -> None:
        if self._root_length + len(path) > addressing.MAX_STATE_SUBJECT:
            raise InvalidKey(f"the key '{clip('/'.join(prefix))}' is too long for an address in this scope")

    def _entry(self, key: Key, stored: Stored) -> Entry | None:
        entry = record_of(key, stored)
        if not isinstance(entry, Entry):
            return None
        self._committer.note(entry.revision)
        return entry


def _nobody_asks() -> None:
    pass


@lru_cache(maxsize=KNOWN_PATHS)
def _checked_path(key: Key) -> str:
    """Raises `InvalidKey`."""
    check_key(key)
    return addressing.key_path(key)
