"""How the tables of `state.postgresql` are made, step by step, side by side with Dapr.

The metadata table has the number of steps that were made, and a row that whoever makes one holds locked.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bindings.postgresql import Connection

Step = Callable[["Connection", str], Awaitable[None]]
"""Called with the name of the table, as it stands in SQL."""

ATTEMPTS = 3
"""To make the metadata table: of two that do so at once one fails."""

_CREATE_METADATA = """
    CREATE TABLE IF NOT EXISTS {metadata} (
        key text NOT NULL PRIMARY KEY,
        value text NOT NULL
    )"""
_CREATE_V1 = """
    CREATE TABLE IF NOT EXISTS {table} (
        key text NOT NULL PRIMARY KEY,
        value jsonb NOT NULL,
        isbinary boolean NOT NULL,
        insertdate timestamp with time zone NOT NULL DEFAULT now(),
        updatedate timestamp with time zone NULL
    )"""
_ADD_EXPIRY_V1 = "ALTER TABLE {table} ADD COLUMN IF NOT EXISTS expiredate timestamp with time zone"
_CREATE_V2 = """
    CREATE TABLE IF NOT EXISTS {table} (
        key text NOT NULL PRIMARY KEY,
        value bytea NOT NULL,
        etag uuid NOT NULL DEFAULT gen_random_uuid(),
        created_at timestamp with time zone NOT NULL DEFAULT now(),
        updated_at timestamp with time zone,
        expires_at timestamp with time zone
    )"""
_ADD_EXPIRY_INDEX_V2 = "CREATE INDEX ON {table} (expires_at)"


async def prepare(connection: Connection, *, metadata: str, key: str, table: str, steps: Sequence[Step]) -> None:
    """Make the steps that were not made yet, as the metadata table says under `key`, all or none. Names stand in SQL
    as they are. Raises errors of the library. A table that is complete needs no right to make one.

    v1 has one key, whatever the table is named (Dapr): a second table beside one metadata table is made all the same.
    """
    from psycopg import errors

    for attempt in range(ATTEMPTS):
        if await _exists(connection, metadata):
            break
        try:
            await connection.execute(_sql(_CREATE_METADATA, metadata=metadata))
        except (errors.UniqueViolation, errors.DuplicateObject, errors.DuplicateTable):  # despite IF NOT EXISTS
            if attempt == ATTEMPTS - 1:
                raise
    if await _level(connection, metadata, key, table) >= len(steps):
        return
    await connection.execute(
        _sql("INSERT INTO {metadata} (key, value) VALUES ('lock', 'lock') ON CONFLICT DO NOTHING", metadata=metadata)
    )
    async with connection.transaction():
        await connection.execute(_sql("SELECT value FROM {metadata} WHERE key = 'lock' FOR UPDATE", metadata=metadata))
        done = await _level(connection, metadata, key, table)  # another may have been faster
        for step in steps[done:]:
            await step(connection, table)
        if done < len(steps):
            await connection.execute(
                _sql(
                    "INSERT INTO {metadata} (key, value) VALUES (%s, %s) "
                    "ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                    metadata=metadata,
                ),
                (key, str(len(steps))),
            )


def _sql(text: str, **names: str) -> bytes:
    return text.format_map(names).encode()


async def _exists(connection: Connection, table: str) -> bool:
    cursor = await connection.execute("SELECT 1 WHERE to_regclass(%s) IS NOT NULL", (table,))
    return await cursor.fetchone() is not None


async def _level(connection: Connection, metadata: str, key: str, table: str) -> int:
    if not await _exists(connection, table):
        return 0
    cursor = await connection.execute(_sql("SELECT value FROM {metadata} WHERE key = %s", metadata=metadata), (key,))
    row = await cursor.fetchone()
    return int(row[0]) if row else 0


def _statements(*statements: str) -> Step:
    async def step(connection: Connection, table: str) -> None:
        for statement in statements:
            await connection.execute(_sql(statement, table=table))

    return step


async def _number_rows(connection: Connection, table: str) -> None:
    """A number for each row, in which lists are paged. Dapr makes this step in several transactions: a column that is
    no identity is what was left when it did not come to the end."""
    cursor = await connection.execute(
        "SELECT c.relname, coalesce(a.attidentity, '-') FROM pg_class c LEFT JOIN pg_attribute a "
        "ON a.attrelid = c.oid AND a.attname = 'row_id' AND NOT a.attisdropped WHERE c.oid = to_regclass(%s)",
        (table,),
    )
    [(relation, identity)] = await cursor.fetchall()
    if identity == "":
        await connection.execute(_sql("ALTER TABLE {table} DROP COLUMN row_id", table=table))
    if identity in ("", "-"):
        await connection.execute(
            _sql("ALTER TABLE {table} ADD COLUMN row_id bigint GENERATED BY DEFAULT AS IDENTITY", table=table)
        )
    index = '"' + f"{relation}_row_id_uidx".replace('"', '""') + '"'
    await connection.execute(
        _sql("CREATE UNIQUE INDEX IF NOT EXISTS {index} ON {table} (row_id)", index=index, table=table)
    )


V1: Sequence[Step] = (_statements(_CREATE_V1), _statements(_ADD_EXPIRY_V1), _number_rows)
V2: Sequence[Step] = (_statements(_CREATE_V2, _ADD_EXPIRY_INDEX_V2), _number_rows)
"""Dapr's, in its order."""
