"""`bindings.sqlite`: SQL on a file, with the operations of Dapr's `bindings.postgresql`. Dapr has no such type."""

from __future__ import annotations

import base64
import math
import sqlite3
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from bindings import sqlite
from bindings.invocations import check_metadata, required
from mesh.components import ComponentSpec, Setup
from mesh.errors import clip
from mesh.ports.bindings import BindingError, InvalidOperation, Invocation, Result

OPERATIONS = ("exec", "query")
MAX_ROWS = 100_000
MAX_ANSWER = 64 << 20
"""Bytes, about."""
MAX_PARAMETERS = 32_766
"""SQLite's own limit."""

_PRAGMAS = frozenset(
    ("table_info", "table_xinfo", "table_list", "index_list", "index_info", "index_xinfo", "foreign_key_list")
)
"""Those that an app may use: they show what there is."""
_NOT_ALLOWED = frozenset(
    (sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH, sqlite3.SQLITE_TRANSACTION, sqlite3.SQLITE_SAVEPOINT)
)
_WRONG = frozenset((sqlite3.SQLITE_ERROR, sqlite3.SQLITE_AUTH, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_RANGE))


class ConfinedDatabase(sqlite.Database):
    """Statements reach no other file, and leave no transaction behind."""

    def connect(self) -> sqlite3.Connection:
        connection = super().connect()
        connection.set_authorizer(_authorize)
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_ANSWER)
        return connection


def _authorize(action: int, first: str | None, second: str | None, *_names: str | None) -> int:
    if action in _NOT_ALLOWED or (action == sqlite3.SQLITE_PRAGMA and str(first).lower() not in _PRAGMAS):
        return sqlite3.SQLITE_DENY
    if action == sqlite3.SQLITE_FUNCTION and second == "load_extension":
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK


class SqliteBinding:
    """An `OutputBinding`. Each statement is a transaction of its own."""

    operations = OPERATIONS

    def __init__(self, database: ConfinedDatabase, *, timeout: float) -> None:
        self._worker = sqlite.Worker(database, grouped=False, timeout=timeout)

    async def start(self) -> None:
        await self._worker.start()

    async def ping(self) -> None:
        await self._worker.run(lambda connection: connection.execute("SELECT 1").fetchall())

    async def close(self) -> None:
        await self._worker.close()

    async def invoke(self, invocation: Invocation) -> Result:
        check_metadata(invocation, ("sql", "params"))
        sql = required(invocation, "sql")
        parameters = _parameters(invocation.text("params"))
        started, begun = datetime.now(UTC), time.perf_counter()
        job = _query if invocation.operation == "query" else _exec
        data, changed = await self._worker.run(lambda connection: _judged(lambda: job(connection, sql, parameters)))
        metadata = {
            "operation": invocation.operation,
            "sql": sql,
            "start-time": started.isoformat(),
            "end-time": datetime.now(UTC).isoformat(),
            "duration": f"{(time.perf_counter() - begun) * 1000:.3f}ms",
        }
        if changed is not None:
            metadata["rows-affected"] = str(changed)
        return Result(data=data, metadata=metadata)


def _exec(connection: sqlite3.Connection, sql: str, parameters: Sequence[Any]) -> tuple[None, int]:
    cursor = connection.execute(sql, parameters)
    for _ in cursor:  # the rows of a RETURNING: without them the statement has not ended
        pass
    return None, max(cursor.rowcount, 0)


def _query(connection: sqlite3.Connection, sql: str, parameters: Sequence[Any]) -> tuple[bytes, int | None]:
    rows: list[bytes] = []
    size = 0
    cursor = connection.execute(sql, parameters)
    try:
        for row in cursor:
            rows.append(msgspec.json.encode([_shown(value) for value in row]))
            size += len(rows[-1])
            if len(rows) > MAX_ROWS or size > MAX_ANSWER:
                raise BindingError(f"there are over {MAX_ROWS} rows, or {MAX_ANSWER >> 20} MiB: use LIMIT")
    finally:
        cursor.close()
    return b"[%s]" % b",".join(rows), cursor.rowcount if cursor.rowcount >= 0 else None


def _shown(value: Any) -> Any:
    """As JSON can have it."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _judged(job: Callable[[], Any]) -> Any:
    """Tells what is wrong with the statement from what is wrong with the database."""
    try:
        return job()
    except (sqlite3.ProgrammingError, sqlite3.Warning, OverflowError, UnicodeError) as error:
        raise InvalidOperation(f"the statement cannot be run: {_line(error)}") from error
    except sqlite3.IntegrityError as error:
        raise BindingError(f"the statement was refused: {_line(error)}") from error
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in _WRONG:
            raise InvalidOperation(f"the statement cannot be run: {_line(error)}") from error
        raise


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _parameters(text: str) -> list[Any]:
    """Raises `InvalidOperation` for what SQLite has no type for."""
    if not text:
        return []
    try:
        values = msgspec.json.decode(text, type=list)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
        raise InvalidOperation(f"the metadata params is no JSON array: {clip(str(error))}") from None
    if len(values) > MAX_PARAMETERS:
        raise InvalidOperation(f"the metadata params has over {MAX_PARAMETERS} values")
    for number, value in enumerate(values, 1):
        if isinstance(value, list | dict):
            raise InvalidOperation(f"parameter {number} is an array or an object: give a text, a number, true or null")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise InvalidOperation(f"parameter {number} is a number of over 64 bits")
    return values


def _open(setup: Setup) -> SqliteBinding:
    return SqliteBinding(ConfinedDatabase(*sqlite.database(setup.settings)), timeout=setup.settings["timeout"])


SPEC = ComponentSpec(
    type="bindings.sqlite",
    title="SQLite",
    about=(
        "Output: SQL on a file; Meshwire's own, with the operations of `bindings.postgresql`. `query` answers with an "
        "array of rows, each an array of values, with BLOBs in base64; `exec` with nothing. The metadata `sql` is one "
        "statement, a transaction of its own; `params` is a JSON array with the values for its `?`. The answer's "
        "metadata has `operation`, `sql`, `start-time`, `end-time`, `duration`, `rows-affected`. Statements cannot "
        "open other files (ATTACH), begin transactions, or change how the database works (PRAGMA). At most 100,000 "
        "rows come back."
    ),
    open=_open,
    fields=sqlite.FIELDS,
    example="""\
apiVersion: dapr.io/v1alpha1
kind: Component
metadata:
  name: reports
spec:
  type: bindings.sqlite
  version: v1
  metadata:
    - name: connectionString
      value: reports.db
""",
)
