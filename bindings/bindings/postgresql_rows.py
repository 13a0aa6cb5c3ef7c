"""Rows that transactions changed, from a logical replication slot.

The slot is read by functions (`pg_logical_slot_peek_binary_changes`), which leave it where it is, and is advanced to
the end of a transaction when all rows of it, and of those before it, are stored. So it never runs ahead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import msgspec

from bindings.bindings import pgoutput
from bindings.bindings.lanes import accept_all
from bindings.bindings.pgoutput import UNCHANGED, Begin, Change, Commit, Message, Relation, Row, Truncate
from bindings.bindings.postgresql_values import SESSION, value
from bindings.postgresql import Connections, translated
from mesh.ports import Clock
from mesh.ports.bindings import Accept, Item
from mesh.ports.stores import StoreError, StoreUnavailable

if TYPE_CHECKING:
    from bindings.postgresql import Connection

T = TypeVar("T")

MOST_CHANGES = 10_000
"""Changes after which the server ends a reading, at the end of a transaction."""
CHUNK = 500
"""Changes that are in our memory at once: a transaction may be of any length."""
WAL_STEP = 256 << 20
"""Bytes of the server's log that one reading goes through, at most."""
READING = 300.0
"""Seconds that it may take the server."""
ADVANCE_INTERVAL = 1.0
"""Seconds between advances of the slot while a reading is worked through; each costs the server some work."""
MAX_KEY = 200
OPERATIONS = ("insert", "update", "delete", "truncate")


@dataclass(frozen=True, kw_only=True, slots=True)
class RowSettings:
    slot: str
    publication: str
    tables: Sequence[tuple[str, str]]
    """Schema and name; none is all of the publication."""
    operations: frozenset[str]
    interval: float
    """Seconds between looks at a server where nothing has happened."""


class Table(NamedTuple):
    relation: Relation
    key: Sequence[int]
    """Places of the columns of the primary key; none when there is none."""


class Transactions:
    """Makes items from the messages of `pgoutput`, in their order."""

    def __init__(self, settings: RowSettings) -> None:
        self._settings = settings
        self._tables: dict[int, Table] = {}
        self._begin = Begin(0, 0.0, 0)
        self._number = 0
        self.end = 0
        """LSN behind the last transaction that was seen whole."""

    def know(self, table: Table) -> None:
        self._tables[table.relation.oid] = table

    def items(self, message: Message | None) -> Iterator[Item]:
        """Those of one message. Its table must be known."""
        match message:
            case Begin():
                self._begin, self._number = message, 0
            case Commit():
                self.end = message.end
            case Change():
                yield from self._item(self._tables[message.oid], message.operation, message)
            case Truncate():
                for oid in message.oids:
                    yield from self._item(self._tables[oid], "truncate", None)

    def _item(self, table: Table, operation: str, change: Change | None) -> Iterator[Item]:
        self._number += 1  # of every row, so that other settings do not change the ids
        relation, wanted = table.relation, self._settings.tables
        if operation not in self._settings.operations or (wanted and (relation.schema, relation.table) not in wanted):
            return
        lsn = pgoutput.lsn_text(self._begin.lsn)
        new, old = (None, None) if change is None else _rows_of(relation, change)
        row = () if change is None else change.new or change.old or ()
        yield Item(
            data=msgspec.json.encode(
                {
                    "operation": operation,
                    "schema": relation.schema,
                    "table": relation.table,
                    "new": new,
                    "old": old,
                }
            ),
            metadata={"lsn": lsn, "xid": str(self._begin.xid)},
            id=f"{lsn}-{self._begin.xid}-{self._number}",
            key=_key(table, row),
            time=self._begin.time,
        )


def _rows_of(relation: Relation, change: Change) -> tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]:
    """The new row and the old one, by the names of their columns. What an update left as it was, and the server did
    not tell, is missing."""
    new = None if change.new is None else _members(relation, change.new, whole=True)
    old = None if change.old is None else _members(relation, change.old, whole=change.whole)
    if new is not None and old is not None and change.whole:
        new = {column.name: new.get(column.name, old.get(column.name)) for column in relation.columns}
    return new, old


def _members(relation: Relation, row: Row, *, whole: bool) -> dict[str, Any]:
    return {
        column.name: value(text, column.type) if isinstance(text, str) else None
        for column, text in zip(relation.columns, row, strict=True)
        if text is not UNCHANGED and (whole or column.is_identity)
    }


def _key(table: Table, row: Row) -> str:
    """The same for all states of a row; where that cannot be known, for all rows of the table."""
    name = f"{table.relation.schema}.{table.relation.table}"
    values = [row[place] for place in table.key] if row else []
    texts = [text for text in values if isinstance(text, str)]
    if not texts or len(texts) < len(values):
        return name
    return f"{name}:{','.join(texts)}"[:MAX_KEY]


class RowChanges:
    """What comes out of a slot."""

    def __init__(self, connections: Connections, clock: Clock, settings: RowSettings) -> None:
        self._connections = connections
        self._clock = clock
        self._settings = settings
        self._keys: dict[tuple[int, tuple[str, ...]], Sequence[int]] = {}

    async def prepare(self, connection: Connection) -> None:
        """Make the publication, and then the slot, where they are missing: rows count from then on.

        Raises `StoreError`, errors of the library.
        """
        import psycopg

        name = self._settings.slot
        await self._publish(connection)
        found = await _ask(connection, "SELECT plugin FROM pg_replication_slots WHERE slot_name = %s", name)
        if found and found[0][0] != "pgoutput":
            raise StoreError(f"PostgreSQL: the slot {name} is not one of pgoutput: use another, or drop it")
        if not found:
            try:
                await _ask(connection, "SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", name)
            except psycopg.errors.DuplicateObject:
                pass  # another replica was faster

    async def _publish(self, connection: Connection) -> None:
        import psycopg
        from psycopg import sql

        name, wanted = self._settings.publication, self._settings.tables
        if not await _ask(connection, "SELECT 1 FROM pg_publication WHERE pubname = %s", name):
            if not wanted:
                raise StoreError(f"PostgreSQL: there is no publication {name}: create it, or set tables")
            tables = sql.SQL(", ").join([sql.Identifier(*table) for table in wanted])
            create = sql.SQL("CREATE PUBLICATION {} FOR TABLE {}").format(sql.Identifier(name), tables)
            try:
                await connection.execute(create)
            except (psycopg.errors.DuplicateObject, psycopg.errors.UniqueViolation):
                pass
        published = await _ask(
            connection, "SELECT schemaname, tablename FROM pg_publication_tables WHERE pubname = %s", name
        )
        missing = [".".join(table) for table in wanted if table not in published]
        if missing:
            raise StoreError(
                f"PostgreSQL: the publication {name} lacks {', '.join(missing)}: ALTER PUBLICATION {name} ADD TABLE …"
            )

    async def run(self, accept: Accept) -> None:
        """As `InputBinding.run`. Raises `StoreError`, and what `accept` does."""
        import psycopg

        connection: Connection | None = None
        try:
            connection = await self._within(self._connections.connect())
            await self._within(connection.execute(SESSION))
            confirmed = await self._confirmed(connection)
            seen = 0
            while True:
                [(text,)] = await self._within(_ask(connection, "SELECT pg_current_wal_flush_lsn()::text"))
                flushed = pgoutput.lsn_number(text)
                if flushed <= max(seen, confirmed):
                    await self._clock.sleep(self._settings.interval)
                else:
                    seen = min(flushed, confirmed + WAL_STEP)
                    confirmed = await self._read(connection, accept, confirmed, seen)
                    seen = min(seen, confirmed)
        except psycopg.Error as error:
            raise translated(error) from error
        finally:
            if connection is not None:
                await connection.close()

    async def _confirmed(self, connection: Connection) -> int:
        """How far the slot was advanced. Raises `StoreError` when there is none."""
        name = self._settings.slot
        found = await self._within(
            _ask(connection, "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = %s", name)
        )
        if not found:
            raise StoreError(
                f"PostgreSQL: the slot {name} is gone, and with it what was not read yet; it is made anew when the "
                "sidecar starts"
            )
        return pgoutput.lsn_number(found[0][0])

    async def _read(self, connection: Connection, accept: Accept, confirmed: int, end: int) -> int:
        """Work through what was committed before `end`, or the first part of it; returns how far the slot is then."""
        from psycopg import sql

        declare = sql.SQL(
            "DECLARE changes NO SCROLL CURSOR WITH HOLD FOR SELECT data FROM pg_logical_slot_peek_binary_changes("
            "{}, {}::pg_lsn, {}, 'proto_version', '1', 'publication_names', {})"
        ).format(
            self._settings.slot,
            pgoutput.lsn_text(end),
            MOST_CHANGES,
            f'"{self._settings.publication}"',
        )
        # The server keeps it outside of any transaction: one that waits for us would hold up its cleaning.
        await self._within(connection.execute(declare), READING)
        transactions = Transactions(self._settings)
        number = 0
        advanced_at = asyncio.get_running_loop().time()
        while chunk := await self._within(_ask(connection, f"FETCH {CHUNK} FROM changes")):
            number += len(chunk)
            items: list[Item] = []
            for (data,) in chunk:
                message = pgoutput.decode(data)
                if isinstance(message, Relation):
                    transactions.know(await self._table(connection, message))
                else:
                    items += transactions.items(message)
            await accept_all(accept, items)
            now = asyncio.get_running_loop().time()
            if transactions.end > confirmed and now - advanced_at >= ADVANCE_INTERVAL:
                confirmed, advanced_at = await self._advance(connection, transactions.end), now
        await self._within(connection.execute(b"CLOSE changes"))
        # Where it gave less than it may there is nothing more before the end.
        reached = end if number < MOST_CHANGES else transactions.end
        return await self._advance(connection, reached) if reached > confirmed else confirmed

    async def _advance(self, connection: Connection, end: int) -> int:
        to = pgoutput.lsn_text(end)
        advance = _ask(connection, "SELECT pg_replication_slot_advance(%s, %s::pg_lsn)", self._settings.slot, to)
        await self._within(advance, READING)
        return end

    async def _table(self, connection: Connection, relation: Relation) -> Table:
        if relation.identity not in "nf":
            return Table(relation, [place for place, column in enumerate(relation.columns) if column.is_identity])
        # The log does not say which columns are the primary key: take that of now.
        names = tuple(column.name for column in relation.columns)
        if (relation.oid, names) not in self._keys:
            found = await self._within(
                _ask(
                    connection,
                    "SELECT attname FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attnum = ANY(indkey) "
                    "WHERE indisprimary AND indrelid = %s",
                    relation.oid,
                )
            )
            self._keys[relation.oid, names] = [place for place, name in enumerate(names) if (name,) in found]
        return Table(relation, self._keys[relation.oid, names])

    async def _within(self, work: Awaitable[T], limit: float | None = None) -> T:
        """Raises `StoreUnavailable` after `limit` seconds, else those of the component."""
        try:
            async with asyncio.timeout(limit or self._connections.timeout):
                return await work
        except TimeoutError:
            raise StoreUnavailable("PostgreSQL did not answer in time") from None


async def _ask(connection: Connection, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
    cursor = await connection.execute(statement.encode(), parameters or None)
    return await cursor.fetchall()
