"""`state.postgresql`: items in Dapr's tables, so that either can go on with the other's.

v1 keeps values as `jsonb`, which can be searched; v2 keeps their bytes.
"""

from __future__ import annotations

import base64
import binascii
import random
import re
import uuid
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import msgspec

from bindings import postgresql
from bindings.postgresql import Connections
from bindings.state import postgresql_schema as schema
from bindings.state.postgresql_query import translate
from bindings.state.sweep import Sweep
from mesh.components import ComponentSpec, Field, Kind, Setup
from mesh.errors import clip
from mesh.ports import Clock
from mesh.ports.stores import (
    EtagMismatch,
    Expired,
    InvalidEtag,
    InvalidStoreKey,
    QueryResult,
    SetState,
    StateChange,
    StateFeature,
    StateItem,
    StateQuery,
    StoreError,
    StoreUnavailable,
    ValueTooLarge,
)

if TYPE_CHECKING:
    from bindings.postgresql import Connection

T = TypeVar("T")

COMMON_FEATURES = frozenset({StateFeature.ETAG, StateFeature.TRANSACTIONAL, StateFeature.TTL, StateFeature.LIST})

ATTEMPTS = 6
"""To make a change that PostgreSQL undoes to resolve a deadlock or a conflict (SQLSTATE class 40)."""
FIRST_PAUSE = 0.01
"""Seconds, at random up to this, before the second attempt; up to twice as many before each further one."""
LONG_KEY = 2500
"""Bytes of a key from which the index may refuse it, if it cannot be compressed."""
SWEEP_LIMIT = 600.0
"""Seconds that making the tables, or removing expired items, may take (Dapr)."""

MAX_RESULTS = 10_000
"""Items of one query: they are in memory together."""

_Operation = tuple[bytes, Mapping[str, Any], bool]
"""SQL, its parameters, and whether it must find a row, or else fails."""

_SET = """
    INSERT INTO {table} AS it (key, {value_columns}, {expires})
    VALUES (%(key)s, {values}, {expiry})
    ON CONFLICT (key) DO UPDATE SET {assignments}, {updated} = now(), {expires} = excluded.{expires}"""
_STATEMENTS = {
    "get": "SELECT {columns} FROM {table} WHERE key = %s AND {alive}",
    "get_many": "SELECT {columns} FROM {table} WHERE key = ANY (%s) AND {alive}",
    "list": """
        SELECT {columns}, row_id FROM {table}
        WHERE starts_with(key, %s) AND row_id > %s AND {alive} ORDER BY row_id LIMIT %s""",
    "set": _SET,
    "create": _SET + " WHERE it.{expires} <= now()",
    "replace": """
        UPDATE {table} AS it SET {replacements}, {updated} = now(), {expires} = {expiry}
        WHERE key = %(key)s AND {same} AND {alive}""",
    "delete": "DELETE FROM {table} WHERE key = %(key)s",
    "delete_if": "DELETE FROM {table} AS it WHERE key = %(key)s AND {same} AND {alive}",
    "absent": "SELECT 1 WHERE NOT EXISTS (SELECT FROM {table} WHERE key = %(key)s AND {alive})",
    "sweep": "DELETE FROM {table} WHERE {expires} < now()",
    "claim_sweep": """
        INSERT INTO {metadata} AS it (key, value) VALUES (%s, now()::text)
        ON CONFLICT (key) DO UPDATE SET value = now()::text
        WHERE extract(epoch FROM now() - it.value::timestamptz) * 1000 > %s""",
}


class PostgresStateStore(ABC):
    """A `StateStore`, without what the versions of the component do not have in common."""

    features: ClassVar[frozenset[StateFeature]] = COMMON_FEATURES
    max_transaction = None

    _names: ClassVar[Mapping[str, str]]
    """What stands in `_STATEMENTS`."""
    _steps: ClassVar[Sequence[schema.Step]]

    def __init__(
        self,
        connections: Connections,
        clock: Clock,
        *,
        table: str,
        metadata_table: str,
        suffix: str = "",
        sweep_interval: float,
    ) -> None:
        """Names of tables stand in SQL as they are. `suffix` is that of the keys in the metadata table.

        `sweep_interval` in seconds; 0 or less is never.
        """
        fragments = {
            "alive": "({expires} IS NULL OR {expires} > now())",
            "expiry": "now() + %(ttl)s::float8 * interval '1 second'",
            **self._names,
        }
        names = {**fragments, "table": table, "metadata": metadata_table}
        names |= {name: text.format_map(names) for name, text in fragments.items()}
        self._sql = {name: text.format_map(names).encode() for name, text in _STATEMENTS.items()}
        self._select = "SELECT {columns} FROM {table} WHERE starts_with(key, %s) AND {alive}".format_map(names)
        self._connections = connections
        self._clock = clock
        self._table = table
        self._metadata_table = metadata_table
        self._suffix = suffix
        self._sweep_interval = sweep_interval
        self._sweep = Sweep(sweep_interval, self._remove_expired, clock, "state.postgresql")

    async def start(self) -> None:
        async def prepare(connection: Connection) -> None:
            await schema.prepare(
                connection,
                metadata=self._metadata_table,
                key=f"migrations{self._suffix}",
                table=self._table,
                steps=self._steps,
            )

        await self.ping()
        await self._connections.run(prepare, timeout=SWEEP_LIMIT)
        if self._sweep_interval > 0:
            self._sweep.start()

    async def ping(self) -> None:
        await self._rows(b"SELECT 1", ())

    async def close(self) -> None:
        await self._sweep.close()
        await self._connections.close()

    async def get(self, key: str, *, strong: bool = False, metadata: Mapping[str, str] = {}) -> StateItem | None:
        _check_key(key)
        rows = await self._rows(self._sql["get"], (key,))
        return self._item(rows[0]) if rows else None

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
        for row in await self._rows(self._sql["get_many"], (good,)) if good else ():
            try:
                found[row[0]] = self._item(row)
            except StoreError as error:
                found[row[0]] = error
        return [found.get(key) for key in keys]

    async def change(self, change: StateChange) -> None:
        operation = self._operation(change)

        async def make(connection: Connection) -> None:
            sql, parameters, must_hit = operation
            cursor = await connection.execute(sql, parameters)
            if must_hit and not cursor.rowcount:
                raise _mismatch(parameters)

        await self._write(make, [change])

    async def transact(self, changes: Sequence[StateChange], metadata: Mapping[str, str] = {}) -> None:
        operations = [self._operation(change) for change in changes]

        async def make(connection: Connection) -> None:
            async with connection.pipeline() as pipeline, connection.transaction():
                cursors = [await connection.execute(sql, parameters) for sql, parameters, _ in operations]
                await pipeline.sync()
                for cursor, (_, parameters, must_hit) in zip(cursors, operations, strict=True):
                    if must_hit and not cursor.rowcount:
                        raise _mismatch(parameters)

        await self._write(make, changes)

    async def list_items(
        self, key_prefix: str, *, limit: int, cursor: str | None = None
    ) -> tuple[Sequence[StateItem], str | None]:
        """In the order in which the items were made. The cursor is the number of the last row."""
        _check_text(key_prefix)
        rows = await self._rows(self._sql["list"], (key_prefix, _number(cursor, Expired), limit + 1))
        items = [self._item(row) for row in rows[:limit]]
        return items, str(rows[limit - 1][-1]) if len(rows) > limit else None

    @abstractmethod
    def _item(self, row: Sequence[Any]) -> StateItem:
        """Of a row of `columns`. Raises `StoreError` for one that is damaged."""

    @abstractmethod
    def _value(self, value: bytes) -> Mapping[str, Any]:
        """The parameters of `values`."""

    @abstractmethod
    def _etag(self, etag: str) -> str:
        """As it stands in `same`. Raises `InvalidEtag`, `EtagMismatch`."""

    def _operation(self, change: StateChange) -> _Operation:
        _check_key(change.key)
        parameters: dict[str, Any] = {"key": change.key}
        if change.etag:
            parameters["etag"] = self._etag(change.etag)
        if isinstance(change, SetState):
            parameters |= self._value(change.value)
            parameters["ttl"] = change.ttl if change.ttl is not None and change.ttl > 0 else None
            name = "replace" if change.etag else "create" if change.first_write else "set"
        else:
            name = "delete_if" if change.etag else "absent" if change.first_write else "delete"
        return self._sql[name], parameters, bool(change.etag) or change.first_write

    async def _rows(self, sql: bytes, parameters: Sequence[Any]) -> list[Any]:
        async def select(connection: Connection) -> list[Any]:
            cursor = connection.cursor(binary=True)
            await cursor.execute(sql, parameters)
            return await cursor.fetchall() if cursor.description else []

        return await self._connections.run(select)

    async def _write(self, make: Callable[[Connection], Awaitable[None]], changes: Sequence[StateChange]) -> None:
        pause = FIRST_PAUSE
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return await self._connections.run(make)
            except ValueTooLarge:
                if any(len(change.key.encode()) > LONG_KEY for change in changes):
                    raise InvalidStoreKey(f"the index of PostgreSQL takes no key of over {LONG_KEY} bytes") from None
                raise
            except StoreUnavailable as error:
                if attempt == ATTEMPTS or not (getattr(error.__cause__, "sqlstate", None) or "").startswith("40"):
                    raise
            await self._clock.sleep(random.uniform(0, pause))  # noqa: S311
            pause *= 2
        return None

    async def _remove_expired(self) -> None:
        """By one of the processes: the one that first notes the time in the metadata table (Dapr)."""
        claim = (f"last-cleanup{self._suffix}", self._sweep_interval * 1000 - 100)

        async def sweep(connection: Connection) -> None:
            async with connection.transaction():
                if (await connection.execute(self._sql["claim_sweep"], claim)).rowcount:
                    await connection.execute(self._sql["sweep"])

        await self._connections.run(sweep, timeout=SWEEP_LIMIT)


class JsonStateStore(PostgresStateStore):
    """v1: JSON as such, all else in base64 in a JSON string, which is marked.

    PostgreSQL keeps what JSON means, not its blanks nor the order of members. The ETag is the number of the
    transaction that wrote the row.
    """

    features = COMMON_FEATURES | {StateFeature.QUERY}

    _names: ClassVar = {
        "expires": "expiredate",
        "updated": "updatedate",
        "columns": "key, value::text, isbinary, xmin::text, extract(epoch FROM expiredate)::float8",
        "value_columns": "value, isbinary",
        "values": "%(value)s::jsonb, %(binary)s",
        "assignments": "value = excluded.value, isbinary = excluded.isbinary",
        "replacements": "value = %(value)s::jsonb, isbinary = %(binary)s",
        "same": "it.xmin = %(etag)s::xid",
    }
    _steps = schema.V1

    async def query(self, query: StateQuery, key_prefix: str, metadata: Mapping[str, str] = {}) -> QueryResult:
        """The token of a page is the number of items before it, as Dapr's. Raises `StoreError` for more than
        `MAX_RESULTS` in one."""
        _check_text(key_prefix)
        clauses = translate(query)
        skip = _number(query.token, StoreError)
        sql = f"{self._select} AND {clauses.where} ORDER BY {clauses.order} LIMIT %s OFFSET %s"
        limit = min(query.limit or MAX_RESULTS, MAX_RESULTS)
        rows = await self._rows(sql.encode(), (key_prefix, *clauses.parameters, limit + 1, skip))
        more = len(rows) > limit
        if more and limit != query.limit:
            raise StoreError(
                f"there are more than {MAX_RESULTS} items: ask for pages, by page.limit of at most so many"
            )
        return QueryResult([self._item(row) for row in rows[:limit]], str(skip + limit) if more else None)

    def _item(self, row: Sequence[Any]) -> StateItem:
        key, text, binary, etag, expires = row[:5]
        value = text.encode()
        if binary:
            try:
                value = base64.b64decode(msgspec.json.decode(value, type=str))
            except (msgspec.DecodeError, binascii.Error):
                raise StoreError(f"the value of {clip(key)} is damaged: it is not in base64") from None
        return StateItem(key=key, value=value, etag=etag, expires=expires)

    def _value(self, value: bytes) -> Mapping[str, Any]:
        if _is_json(value):
            return {"value": value.decode(), "binary": False}
        return {"value": f'"{base64.b64encode(value).decode()}"', "binary": True}

    def _etag(self, etag: str) -> str:
        if not re.fullmatch(r"[0-9]{1,10}", etag) or int(etag) >= 1 << 32:
            raise InvalidEtag(f"must be an unsigned integer of 32 bits (got '{clip(etag)}')")
        return etag


class BytesStateStore(PostgresStateStore):
    """v2: any bytes, as they are. The ETag is a random UUID."""

    _names: ClassVar = {
        "expires": "expires_at",
        "updated": "updated_at",
        "columns": "key, value, etag::text, extract(epoch FROM expires_at)::float8",
        "value_columns": "value, etag",
        "values": "%(value)b, gen_random_uuid()",
        "assignments": "value = excluded.value, etag = excluded.etag",
        "replacements": "value = %(value)b, etag = gen_random_uuid()",
        "same": "it.etag = %(etag)s::uuid",
    }
    _steps = schema.V2

    def _item(self, row: Sequence[Any]) -> StateItem:
        key, value, etag, expires = row[:4]
        return StateItem(key=key, value=value, etag=etag, expires=expires)

    def _value(self, value: bytes) -> Mapping[str, Any]:
        return {"value": value}

    def _etag(self, etag: str) -> str:
        """One that is no UUID is that of another value (Dapr)."""
        try:
            return str(uuid.UUID(etag))
        except ValueError:
            raise EtagMismatch(f"the ETag of the item is a UUID (got '{clip(etag)}')") from None


_BEYOND_JSONB = re.compile(rb"\\u0000|[0-9][eE][+-]?[0-9]{4}|[0-9]{1000}")
"""JSON that `jsonb` does not take, or takes and grows; some more is caught, which does no harm."""


def _is_json(value: bytes) -> bool:
    try:
        msgspec.json.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return _BEYOND_JSONB.search(value) is None


def _mismatch(parameters: Mapping[str, Any]) -> EtagMismatch:
    return EtagMismatch(
        "the item was changed meanwhile, or does not exist" if "etag" in parameters else "the item exists already"
    )


def _check_key(key: str) -> None:
    if not key:
        raise InvalidStoreKey("the key is empty")
    _check_text(key)


def _check_text(key: str) -> None:
    if "\0" in key:
        raise InvalidStoreKey(f"PostgreSQL knows no keys with a NUL character (got '{clip(key)}')")
    try:
        key.encode()
    except UnicodeEncodeError:
        raise InvalidStoreKey(f"the key '{clip(key)}' is no Unicode text") from None


def _number(token: str | None, error: type[StoreError]) -> int:
    """Of the row, or page, before; 0 without one."""
    if token is None:
        return 0
    if not re.fullmatch(r"[0-9]{1,18}", token):
        raise error(f"this token is not of this list; begin without one (got '{clip(token)}')")
    return int(token)


def _open_v1(setup: Setup) -> JsonStateStore:
    settings = setup.settings
    return JsonStateStore(
        postgresql.connections(settings),
        setup.clock,
        table=postgresql.table_name(settings, "tableName", settings["tableName"]),
        metadata_table=postgresql.table_name(settings, "metadataTableName", settings["metadataTableName"]),
        sweep_interval=settings["cleanupInterval"],
    )


def _open_v2(setup: Setup) -> BytesStateStore:
    settings = setup.settings
    prefix = settings["tablePrefix"]
    return BytesStateStore(
        postgresql.connections(settings),
        setup.clock,
        table=postgresql.table_name(settings, "tablePrefix", f"{prefix}state"),
        metadata_table=postgresql.table_name(settings, "metadataTableName", settings["metadataTableName"]),
        suffix=f"-state-v2-{prefix}",
        sweep_interval=settings["cleanupInterval"],
    )


_COMMON_FIELDS = (
    *postgresql.FIELDS,
    Field(
        "metadataTableName",
        "The table that says how the others were made, with a schema in front if it has one.",
        default="dapr_metadata",
    ),
    Field(
        "cleanupInterval",
        "How often expired items, which nobody sees any more, are removed; 0 or less is never.",
        Kind.DURATION,
        3600.0,
        aliases=("cleanupIntervalInSeconds",),
    ),
)
_EXAMPLE = """\
apiVersion: dapr.io/v1alpha1
kind: Component
metadata:
  name: statestore
spec:
  type: state.postgresql
  version: {version}
  metadata:
    - name: connectionString
      secretKeyRef:
        name: database
        key: connectionString
auth:
  secretStore: secrets
"""

SPECS = (
    ComponentSpec(
        type="state.postgresql",
        title="PostgreSQL",
        about=(
            "State in PostgreSQL 13 or later, in Dapr's tables: either can go on with the other's. This version keeps "
            "values as `jsonb`: they can be searched, and come back as JSON that means the same, with blanks and the "
            "order of members as PostgreSQL has them. What is no JSON is kept byte for byte."
        ),
        open=_open_v1,
        versions=("v1",),
        fields=(
            *_COMMON_FIELDS,
            Field("tableName", "The table of the items, with a schema in front if it has one.", default="state"),
        ),
        needs="postgresql",
        features=sorted(feature.value for feature in JsonStateStore.features),
        example=_EXAMPLE.format(version="v1"),
    ),
    ComponentSpec(
        type="state.postgresql",
        title="PostgreSQL",
        about=(
            "State in PostgreSQL 13 or later, in Dapr's tables: either can go on with the other's. This version keeps "
            "values byte for byte. Its tables are not those of v1."
        ),
        open=_open_v2,
        versions=("v2",),
        fields=(
            *_COMMON_FIELDS,
            Field(
                "tablePrefix",
                "What stands before `state` in the name of the table, such as `shop_`, or `schema.`",
                default="",
            ),
        ),
        needs="postgresql",
        features=sorted(feature.value for feature in BytesStateStore.features),
        example=_EXAMPLE.format(version="v2"),
    ),
)
