"""`bindings.postgresql`: statements for a PostgreSQL (Dapr), and its changed rows or notifications as events (ours)."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakSet

import msgspec

from bindings import postgresql
from bindings.bindings.postgresql_channel import Notifications
from bindings.bindings.postgresql_rows import OPERATIONS, RowChanges, RowSettings
from bindings.bindings.postgresql_values import SESSION, parameter, value
from bindings.postgresql import Connections, table_name, translated
from mesh.components import ComponentSpec, Field, Kind, Settings, Setup
from mesh.ports.bindings import Accept, BindingError, InvalidOperation, Invocation, Result
from mesh.ports.stores import StoreError, StoreUnavailable

if TYPE_CHECKING:
    import psycopg

    from bindings.postgresql import Connection

MAX_PARAMETERS = 65_535
"""More the protocol cannot say."""


class PostgresBinding:
    """An `OutputBinding`."""

    operations: Sequence[str] = ("exec", "query", "close")

    def __init__(self, settings: Settings) -> None:
        """Raises `ConfigurationError`, `ImportError`."""
        self._settings = settings
        self.connections = postgresql.connections(settings)
        self._prepared: WeakSet[Connection] = WeakSet()
        self._closed = False

    async def start(self) -> None:
        await self.ping()

    async def ping(self) -> None:
        async def look(connection: Connection) -> None:
            await connection.execute(b"SELECT 1")

        await self.connections.run(look)

    async def close(self) -> None:
        self._closed = True
        await self.connections.close()

    async def invoke(self, invocation: Invocation) -> Result:
        """Dapr: `sql` and `params` (a JSON array, for $1 and so on) in the metadata; `close` needs neither."""
        if invocation.operation == "close":
            await self._reconnect()
            return Result()
        sql = invocation.text("sql")
        if not sql:
            raise InvalidOperation("required metadata not set: sql")
        parameters = _parameters(invocation.text("params"))
        started = time.time()
        count, rows = await self._execute(sql, parameters)
        ended = time.time()
        metadata = {
            "operation": invocation.operation,
            "sql": sql,
            "start-time": _time(started),
            "end-time": _time(ended),
            "duration": f"{max(ended - started, 0.0) * 1000:.3f}ms",
        }
        if invocation.operation == "exec":
            return Result(metadata=metadata | {"rows-affected": str(count)})
        return Result(data=rows, metadata=metadata)

    async def _reconnect(self) -> None:
        """The connections go; the next statement opens others. (Dapr: the component is of no use from then on.)"""
        before = self.connections
        if not self._closed:
            self.connections = postgresql.connections(self._settings)
        await before.close()

    async def _execute(self, sql: str, parameters: Sequence[Any]) -> tuple[int, bytes]:
        """The number of rows, and their values as an array of arrays."""
        import psycopg

        async def work(connection: Connection) -> tuple[int, bytes]:
            try:
                if connection not in self._prepared:
                    await connection.execute(SESSION)
                    self._prepared.add(connection)
                texts = [parameter(given, None) for given in parameters]
                if any(isinstance(given, list) for given in parameters):
                    types = await _types(connection, sql)
                    texts = [parameter(given, type_) for given, type_ in zip(parameters, types, strict=False)]
                    texts += [None] * (len(parameters) - len(types))  # which the server will refuse
                cursor = psycopg.AsyncRawCursor(connection)
                await cursor.execute(sql.encode(), texts or None)
            except psycopg.Error as error:
                raise _refused(error) from error
            result = cursor.pgresult
            return max(cursor.rowcount, 0), b"[]" if result is None else _table(result)

        return await self.connections.run(work)


class Source(Protocol):
    async def prepare(self, connection: Connection) -> None: ...

    async def run(self, accept: Accept) -> None: ...


class PostgresInput(PostgresBinding):
    """An `InputBinding` too."""

    exclusive = True

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup.settings)
        # of its own: `close` is not for them
        self._listening = postgresql.connections(setup.settings)
        self._source = _source(setup, self._listening)

    async def start(self) -> None:
        await self._listening.run(self._source.prepare)

    async def run(self, accept: Accept) -> None:
        await self._source.run(accept)

    async def close(self) -> None:
        await self._listening.close()
        await super().close()


def _parameters(text: str) -> list[Any]:
    if not text:
        return []
    try:
        found = msgspec.json.decode(text.encode(), type=list[Any])
    except (msgspec.DecodeError, UnicodeEncodeError):
        raise InvalidOperation("params must be a JSON array") from None
    if len(found) > MAX_PARAMETERS:
        raise InvalidOperation(f"params has {len(found)} values, and there may be {MAX_PARAMETERS}")
    for number, given in enumerate(found):
        if isinstance(given, str) and "\0" in given:
            raise InvalidOperation(f"params[{number}]: PostgreSQL takes no text with a zero character")
    return found


async def _types(connection: Connection, sql: str) -> list[int]:
    """Of the parameters, as the server sees them: an array may be meant as JSON."""
    from psycopg import generators
    from psycopg.errors import error_from_result

    pgconn = connection.pgconn
    pgconn.send_prepare(b"", sql.encode())
    [prepared] = await connection.wait(generators.execute(pgconn))
    if prepared.error_message:
        raise error_from_result(prepared)
    pgconn.send_describe_prepared(b"")
    [described] = await connection.wait(generators.execute(pgconn))
    return [described.param_type(number) for number in range(described.nparams)]


def _table(result: psycopg.pq.abc.PGresult) -> bytes:
    types = [result.ftype(column) for column in range(result.nfields)]
    rows = [
        [_value(result.get_value(row, column), type_) for column, type_ in enumerate(types)]
        for row in range(result.ntuples)
    ]
    return msgspec.json.encode(rows)


def _value(raw: bytes | None, type_: int) -> Any:
    return None if raw is None else value(bytes(raw).decode(), type_)


def _refused(error: psycopg.Error) -> StoreError:
    """What the server says to a statement; where a parameter is wrong, to which."""
    state = error.sqlstate or ""
    place = re.search(r"parameter \$(\d+)", error.diag.context or "")
    text = f"{error.diag.message_primary} (SQLSTATE {state})"
    if place is not None:
        return InvalidOperation(f"params[{int(place[1]) - 1}], which is ${place[1]}: {text}")
    if state.startswith(("22", "42", "0A")) or state == "08P01":  # data, syntax, unsupported, number of parameters
        return InvalidOperation(f"PostgreSQL: {text}")
    found = translated(error)
    return found if isinstance(found, StoreUnavailable) else BindingError(str(found))


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def _source(setup: Setup, connections: Connections) -> Source:
    settings = setup.settings
    if settings["channel"]:
        return Notifications(connections, _identifier(settings, "channel", settings["channel"]))
    tables = [_table_of(settings, name) for name in settings["tables"]]
    publication = settings["publication"] or settings["slot"]
    if not tables and not settings["publication"]:
        raise settings.fault("tables", "it is needed, or else publication: which rows are meant")
    if not re.fullmatch(r"[a-z0-9_]{1,63}", settings["slot"]):
        raise settings.fault("slot", "the name of a slot has small letters, digits and _, at most 63")
    operations = frozenset(name.lower() for name in settings["changes"])
    if not operations or operations - set(OPERATIONS):
        raise settings.fault("changes", f"must be some of {', '.join(OPERATIONS)}")
    return RowChanges(
        connections,
        setup.clock,
        RowSettings(
            slot=settings["slot"],
            publication=_identifier(settings, "publication", publication),
            tables=tables,
            operations=operations,
            interval=settings["pollInterval"],
        ),
    )


def _table_of(settings: Settings, name: str) -> tuple[str, str]:
    """Schema and table as the server knows them."""
    parts = re.findall(r'"(?:[^"]|"")+"|[^".]+', table_name(settings, "tables", name))
    plain = [part[1:-1].replace('""', '"') if part.startswith('"') else part.lower() for part in parts]
    return (plain[0], plain[1]) if len(plain) == 2 else ("public", plain[0])


def _identifier(settings: Settings, field: str, name: str) -> str:
    """As the server reads a name without quotes."""
    if not re.fullmatch(r"[A-Za-z_0-9][A-Za-z0-9_$]{0,62}", name):
        raise settings.fault(field, "letters, digits and _, at most 63")
    return name.lower()


def _open(setup: Setup) -> PostgresBinding:
    settings = setup.settings
    if settings["slot"] and settings["channel"]:
        raise settings.fault("channel", "slot is given too: one component listens to one of them")
    if not settings["slot"]:
        for name in ("tables", "publication"):
            if settings.given(name):
                raise settings.fault(name, "it needs slot")
    return PostgresInput(setup) if settings["slot"] or settings["channel"] else PostgresBinding(settings)


SPEC = ComponentSpec(
    type="bindings.postgresql",
    title="PostgreSQL",
    about=(
        "Output: `exec` and `query` with `sql` and `params` in the metadata, and `close`. Input, with `slot`: each row "
        "that is inserted, updated or deleted becomes an event, none is lost, and those of a row come in the order of "
        "their commits; or, with `channel`: what `NOTIFY` sends, which is lost while nobody listens "
        "(see [Rows](../rows.md))."
    ),
    open=_open,
    fields=(
        *postgresql.FIELDS,
        Field(
            "slot",
            "A logical replication slot to take changed rows from; it is made if it is missing. The server needs "
            "`wal_level = logical`, the user the right of `REPLICATION`. It keeps its log until the rows are "
            "stored: drop a slot that is not used any more.",
            default="",
        ),
        Field(
            "tables",
            "The tables whose rows are meant, as `name` (in `public`) or `schema.name`; all of the publication, if "
            "not given.",
            Kind.LIST,
            (),
        ),
        Field(
            "publication",
            "A publication that has the tables; made for `tables` if it is missing. Named as the slot, if not given.",
            default="",
        ),
        Field("changes", "Which changes are meant.", Kind.LIST, OPERATIONS),
        Field("pollInterval", "How often a quiet server is asked for news.", Kind.DURATION, 0.5, minimum=0.01),
        Field("channel", "A channel of notifications to listen to, in place of a slot.", default=""),
    ),
    needs="postgresql",
    example="""\
apiVersion: dapr.io/v1alpha1
kind: Component
metadata:
  name: new-orders
spec:
  type: bindings.postgresql
  version: v1
  metadata:
  - name: connectionString
    secretKeyRef:
      name: database
      key: url
  - name: slot
    value: meshwire_orders
  - name: tables
    value: orders
  - name: changes
    value: insert
  - name: direction
    value: input, output
auth:
  secretStore: secrets
""",
)
