"""`state.sqlite`: items in a SQLite file, in Dapr's tables, so that either can go on with the other's."""

from __future__ import annotations

import base64
import binascii
import sqlite3
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from bindings import sqlite
from bindings.sqlite import Database, Worker
from bindings.state.sweep import Sweep
from mesh import ids
from mesh.components import ComponentSpec, Field, Kind, Setup
from mesh.errors import clip
from mesh.ports import Clock
from mesh.ports.stores import (
    DeleteState,
    EtagMismatch,
    Expired,
    InvalidStoreKey,
    StateChange,
    StateFeature,
    StateItem,
    StoreError,
)

FEATURES = frozenset({StateFeature.ETAG, StateFeature.TRANSACTIONAL, StateFeature.TTL, StateFeature.LIST})

MAX_KEYS = 500
"""Keys in one SELECT: SQLite takes so many parameters in every version."""
SWEPT_AT_ONCE = 1000
"""Expired items that are removed in one transaction, so that other writers need not wait for long."""

_Operation = tuple[str, dict[str, Any], bool]
"""SQL, its parameters, and whether it must find a row, or else fails."""

_FRAGMENTS = {
    "now": "strftime('%Y-%m-%d %H:%M:%f', 'now')",
    "alive": "(expiration_time IS NULL OR expiration_time > strftime('%Y-%m-%d %H:%M:%f', 'now'))",
    # Dapr writes whole seconds. With a fraction the text still compares right with its own, and no life is cut short.
    "expiry": "strftime('%Y-%m-%d %H:%M:%f', 'now', :lifetime)",
    "columns": "key, CAST(value AS BLOB), is_binary, etag, expiration_time",
    "keys": "{keys}",
    "batch": str(SWEPT_AT_ONCE),
}
_SET = """
    INSERT INTO {table} AS it (key, value, is_binary, etag, update_time, expiration_time)
    VALUES (:key, :value, :binary, :new, CURRENT_TIMESTAMP, {expiry})
    ON CONFLICT (key) DO UPDATE SET
        value = excluded.value, is_binary = excluded.is_binary, etag = excluded.etag,
        update_time = excluded.update_time, expiration_time = excluded.expiration_time"""
_STATEMENTS = {
    "get": "SELECT {columns} FROM {table} WHERE key = ? AND {alive}",
    "get_many": "SELECT {columns} FROM {table} WHERE key IN ({keys}) AND {alive}",
    "list": "SELECT {columns} FROM {table} WHERE key >= ? AND key > ? AND {alive} ORDER BY key LIMIT ?",
    "set": _SET,
    "create": _SET + " WHERE it.expiration_time <= {now}",
    "replace": """
        UPDATE {table} SET value = :value, is_binary = :binary, etag = :new,
            update_time = CURRENT_TIMESTAMP, expiration_time = {expiry}
        WHERE key = :key AND etag = :etag AND {alive}""",
    "delete": "DELETE FROM {table} WHERE key = :key",
    "delete_if": "DELETE FROM {table} WHERE key = :key AND etag = :etag AND {alive}",
    "absent": "SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM {table} WHERE key = :key AND {alive})",
    "sweep": "DELETE FROM {table} WHERE key IN (SELECT key FROM {table} WHERE NOT {alive} LIMIT {batch})",
    "claim_sweep": """
        INSERT INTO {metadata} (key, value) VALUES ('last-cleanup', CURRENT_TIMESTAMP)
        ON CONFLICT (key) DO UPDATE SET value = CURRENT_TIMESTAMP
        WHERE (strftime('%s', 'now') - strftime('%s', value)) * 1000 > ?""",
    "metadata": "CREATE TABLE IF NOT EXISTS {metadata} (key text NOT NULL PRIMARY KEY, value text NOT NULL)",
    "exists": "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = '{table}'",
    "level": "SELECT value FROM {metadata} WHERE key = 'migrations'",
    "set_level": "REPLACE INTO {metadata} (key, value) VALUES ('migrations', ?)",
}
_MIGRATIONS = (
    """CREATE TABLE IF NOT EXISTS {table} (
        key TEXT NOT NULL PRIMARY KEY,
        value TEXT NOT NULL,
        is_binary BOOLEAN NOT NULL,
        etag TEXT NOT NULL,
        expiration_time TIMESTAMP DEFAULT NULL,
        update_time TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP
    )""",
)
"""Dapr's, in its order: the level in the metadata table counts those that were made."""


class SqliteStateStore:
    """A `StateStore` in a file, which processes of one machine may share."""

    features = FEATURES
    max_transaction = None

    def __init__(
        self,
        database: Database,
        clock: Clock,
        *,
        table: str,
        metadata_table: str,
        timeout: float,
        sweep_interval: float,
    ) -> None:
        """The tables' names stand in SQL as they are. `sweep_interval` in seconds; 0 or less is never."""
        names = {**_FRAGMENTS, "table": table, "metadata": metadata_table}
        self._sql = {name: text.format_map(names) for name, text in _STATEMENTS.items()}
        self._migrations = [text.format_map(names) for text in _MIGRATIONS]
        self._writer = Worker(database, grouped=True, timeout=timeout)
        # Beside a write-ahead log readers wait for no writer; without one they would be in its way.
        self._reader = Worker(database, grouped=False, timeout=timeout) if database.wal else self._writer
        self._sweep_interval = sweep_interval
        self._sweep = Sweep(sweep_interval, self._remove_expired, clock, "state.sqlite")

    async def start(self) -> None:
        await self._writer.start()
        await self._writer.run(self._migrate)
        if self._reader is not self._writer:
            await self._reader.start()
        if self._sweep_interval > 0:
            self._sweep.start()

    async def ping(self) -> None:
        await self._reader.run(lambda connection: connection.execute("SELECT 1").fetchall())

    async def close(self) -> None:
        await self._sweep.close()
        await self._reader.close()
        await self._writer.close()

    async def get(self, key: str, *, strong: bool = False, metadata: Mapping[str, str] = {}) -> StateItem | None:
        _check_key(key)
        row = await self._reader.run(lambda connection: connection.execute(self._sql["get"], (key,)).fetchone())
        return None if row is None else _item(row)

    async def get_many(
        self, keys: Sequence[str], *, strong: bool = False, metadata: Mapping[str, str] = {}
    ) -> list[StateItem | StoreError | None]:
        found: dict[str, StateItem | StoreError] = {}
        good: list[str] = []
        for key in dict.fromkeys(keys):
            try:
                _check_key(key)
            except InvalidStoreKey as error:
                found[key] = error
            else:
                good.append(key)
        for row in await self._reader.run(lambda connection: self._select_many(connection, good)) if good else ():
            try:
                found[row[0]] = _item(row)
            except StoreError as error:
                found[row[0]] = error
        return [found.get(key) for key in keys]

    async def change(self, change: StateChange) -> None:
        operation = self._operation(change)
        await self._writer.run(lambda connection: _do(connection, operation))

    async def transact(self, changes: Sequence[StateChange], metadata: Mapping[str, str] = {}) -> None:
        operations = [self._operation(change) for change in changes]
        await self._writer.run(lambda connection: _do_all(connection, operations))

    async def list_items(
        self, key_prefix: str, *, limit: int, cursor: str | None = None
    ) -> tuple[Sequence[StateItem], str | None]:
        """In the order of the keys. The cursor is the last key of the page before."""
        if cursor is not None and not cursor.startswith(key_prefix):
            raise Expired("this cursor is not of this list; begin without a cursor")
        parameters = (key_prefix, cursor or "", limit + 1)
        rows = await self._reader.run(lambda connection: connection.execute(self._sql["list"], parameters).fetchall())
        items = [_item(row) for row in rows if row[0].startswith(key_prefix)]
        return items[:limit], items[limit - 1].key if len(items) > limit else None

    def _operation(self, change: StateChange) -> _Operation:
        _check_key(change.key)
        parameters: dict[str, Any] = {"key": change.key, "etag": change.etag}
        if isinstance(change, DeleteState):
            if change.etag:
                return self._sql["delete_if"], parameters, True
            return self._sql["absent" if change.first_write else "delete"], parameters, change.first_write
        text, binary = _encode(change.value)
        lifetime = f"+{change.ttl} seconds" if change.ttl is not None and change.ttl > 0 else None
        parameters |= {"value": text, "binary": binary, "new": ids.uuid4(), "lifetime": lifetime}
        if change.etag:
            return self._sql["replace"], parameters, True
        return self._sql["create" if change.first_write else "set"], parameters, change.first_write

    def _select_many(self, connection: sqlite3.Connection, keys: Sequence[str]) -> list[Any]:
        rows = []
        for first in range(0, len(keys), MAX_KEYS):
            some = keys[first : first + MAX_KEYS]
            sql = self._sql["get_many"].format(keys=",".join("?" * len(some)))
            rows += connection.execute(sql, some).fetchall()
        return rows

    def _migrate(self, connection: sqlite3.Connection) -> None:
        """Dapr counts for one table, whatever it is named: a second one beside it is made all the same."""
        connection.execute(self._sql["metadata"])
        row = connection.execute(self._sql["level"]).fetchone()
        done = int(row[0]) if row and connection.execute(self._sql["exists"]).fetchone() else 0
        for level, migration in enumerate(self._migrations[done:], done + 1):
            connection.execute(migration)
            connection.execute(self._sql["set_level"], (str(level),))

    async def _remove_expired(self) -> None:
        """By one of the processes: the one that first notes the time in the metadata table (Dapr)."""
        interval = self._sweep_interval * 1000 - 100

        def begin(connection: sqlite3.Connection) -> int:
            return sweep(connection) if connection.execute(self._sql["claim_sweep"], (interval,)).rowcount else 0

        def sweep(connection: sqlite3.Connection) -> int:
            return connection.execute(self._sql["sweep"]).rowcount

        removed = await self._writer.run(begin)
        while removed == SWEPT_AT_ONCE:
            removed = await self._writer.run(sweep)


def _do(connection: sqlite3.Connection, operation: _Operation) -> None:
    sql, parameters, must_hit = operation
    cursor = connection.execute(sql, parameters)
    if must_hit and not (cursor.rowcount if cursor.description is None else cursor.fetchone()):
        raise EtagMismatch(
            "the item was changed meanwhile, or does not exist" if parameters["etag"] else "the item exists already"
        )


def _do_all(connection: sqlite3.Connection, operations: Sequence[_Operation]) -> None:
    connection.execute("SAVEPOINT one")  # in the transaction of the group
    try:
        for operation in operations:
            _do(connection, operation)
    except Exception:
        if connection.in_transaction:
            connection.execute("ROLLBACK TO one")
        raise
    connection.execute("RELEASE one")


def _check_key(key: str) -> None:
    if not key:
        raise InvalidStoreKey("the key is empty")
    try:
        key.encode()
    except UnicodeEncodeError:
        raise InvalidStoreKey(f"the key {clip(key)} is no Unicode text") from None


def _encode(value: bytes) -> tuple[str, bool]:
    """As it is if it is text, else in base64, which is marked."""
    try:
        if 0 not in value:
            return value.decode(), False
    except UnicodeDecodeError:
        pass
    return base64.b64encode(value).decode(), True


def _item(row: Sequence[Any]) -> StateItem:
    key, value, binary, etag, expiration = row
    if binary:
        try:
            value = base64.b64decode(value)
        except binascii.Error:
            raise StoreError(f"the value of {clip(key)} is damaged: it is not in base64") from None
    expires = None if expiration is None else _epoch(expiration)
    return StateItem(key=key, value=value, etag=etag, expires=expires)


def _epoch(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def _open(setup: Setup) -> SqliteStateStore:
    settings = setup.settings
    return SqliteStateStore(
        sqlite.database(settings),
        setup.clock,
        table=sqlite.table_name(settings, "tableName"),
        metadata_table=sqlite.table_name(settings, "metadataTableName"),
        timeout=settings["timeout"],
        sweep_interval=settings["cleanupInterval"],
    )


SPEC = ComponentSpec(
    type="state.sqlite",
    title="SQLite",
    about=(
        "State in a file, which the processes of one machine may share. What was acknowledged is on the disk. The "
        "tables are Dapr's: either can go on with the other's file."
    ),
    open=_open,
    fields=(
        *sqlite.FIELDS,
        Field("tableName", "The table of the items.", default="state"),
        Field("metadataTableName", "The table that says how the other one was made.", default="metadata"),
        Field(
            "cleanupInterval",
            "How often expired items, which nobody sees any more, are removed from the file; 0 is never.",
            Kind.DURATION,
            0.0,
            aliases=("cleanupIntervalInSeconds",),
        ),
    ),
    features=sorted(feature.value for feature in FEATURES),
    example="""\
apiVersion: dapr.io/v1alpha1
kind: Component
metadata:
  name: statestore
spec:
  type: state.sqlite
  version: v1
  metadata:
    - name: connectionString
      value: data.db
    - name: cleanupInterval
      value: 1h
""",
)
