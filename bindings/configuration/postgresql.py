"""`configuration.postgresql`: items in a table of PostgreSQL, which sends a notification for each change (Dapr)."""

from __future__ import annotations

import asyncio
import os
import re
import socket
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any

import msgspec

from bindings import postgresql
from bindings.configuration.following import MAX_ITEMS, SILENCE, check_number, follow
from bindings.postgresql import Connections, table_name, translated
from mesh.components import ComponentSpec, Field, Setup
from mesh.errors import clip
from mesh.ports import Clock
from mesh.ports.stores import ConfigurationFeature, ConfigurationItem, InvalidStoreKey, StoreError, StoreUnavailable

if TYPE_CHECKING:
    from bindings.postgresql import Connection

CHANNEL = "pgnotifychannel"
"""Request metadata, in any letter case, that names the channel of notifications."""

_COLUMNS = "key, value, version, metadata"
_NEWEST = "CASE WHEN version ~ '^[0-9]{1,100}$' THEN version::numeric END DESC NULLS LAST"


class _Notification(msgspec.Struct):
    """What a trigger sends. Only whose row it is counts: the rest may be outdated, and is long."""

    data: _Row


class _Row(msgspec.Struct):
    key: str


_decode = msgspec.json.Decoder(_Notification).decode


class PostgresConfigurationStore:
    """A `ConfigurationStore`. Of several rows with one key that with the highest number as its version is the item."""

    features: frozenset[ConfigurationFeature] = frozenset()

    def __init__(self, connections: Connections, clock: Clock, table: str, channel: str) -> None:
        """`table` stands in SQL as it is. `channel` is that of notifications, unless a request names another."""
        self._connections = connections
        self._clock = clock
        self._table = table
        self._channel = channel
        self._listening: set[Connection] = set()
        self._closed = False

    async def start(self) -> None:
        async def look(connection: Connection) -> None:
            await connection.execute(f"SELECT {_COLUMNS} FROM {self._table} LIMIT 0".encode())  # noqa: S608

        await self._connections.run(look)

    async def ping(self) -> None:
        await self.start()

    async def close(self) -> None:
        self._closed = True
        for connection in self._listening:
            _hang_up(connection)
        await self._connections.close()

    async def get(self, keys: Sequence[str], metadata: Mapping[str, str] = {}) -> dict[str, ConfigurationItem]:
        """`metadata` must be part of the row's, but for the name of a channel."""
        conditions: list[str] = []
        parameters: list[Any] = []
        if keys:
            conditions.append("key = ANY(%s)")
            parameters.append(_checked(keys))
        for name, value in metadata.items():
            if name.lower() != CHANNEL:
                conditions.append("metadata->>%s = %s")
                parameters += _checked([name, value])
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        sql = (
            f"SELECT DISTINCT ON (key) {_COLUMNS} FROM {self._table}{where} "  # noqa: S608 - the name was checked
            f"ORDER BY key, {_NEWEST} LIMIT {MAX_ITEMS + 1}"
        )

        async def read(connection: Connection) -> list[Any]:
            cursor = await connection.execute(sql.encode(), parameters)
            return await cursor.fetchall()

        rows = await self._connections.run(read)
        check_number(len(rows))
        return {key: _item(value, version, more) for key, value, version, more in rows}

    def watch(
        self, keys: Sequence[str], metadata: Mapping[str, str] = {}
    ) -> AsyncGenerator[Mapping[str, ConfigurationItem], None]:
        asked = next((value for name, value in metadata.items() if name.lower() == CHANNEL and value), "")
        return follow(
            keys,
            listen=lambda: self._listen(asked or self._channel, frozenset(keys)),
            read=lambda some: self.get(some, metadata),
            is_closed=lambda: self._closed,
            clock=self._clock,
            store="PostgreSQL",
        )

    async def _listen(self, channel: str, wanted: frozenset[str]) -> AsyncGenerator[str | None, None]:
        import psycopg

        if not channel:
            raise StoreError(
                "there is no channel of notifications: set notifyChannel in the component, or pgNotifyChannel in the "
                "metadata of the request"
            )
        name = _folded(channel)
        try:
            async with asyncio.timeout(self._connections.timeout):
                connection = await self._connections.connect()
        except TimeoutError:
            raise StoreUnavailable("PostgreSQL did not answer in time") from None
        except psycopg.Error as error:
            raise translated(error) from error
        self._listening.add(connection)
        try:
            await self._within(connection.execute(f'LISTEN "{name}"'.encode()))
            yield None
            while not self._closed:
                async with aclosing(connection.notifies(timeout=SILENCE)) as notifications:
                    async for notification in notifications:
                        key = _key(notification.payload)
                        if key is None or not wanted or key in wanted:
                            yield key
                await self._within(connection.execute(b"SELECT 1"))
        except psycopg.Error as error:
            raise translated(error) from error
        finally:
            self._listening.discard(connection)
            await connection.close()

    async def _within(self, work: Any) -> None:
        try:
            async with asyncio.timeout(self._connections.timeout):
                await work
        except TimeoutError:
            raise StoreUnavailable("PostgreSQL did not answer in time") from None


def _hang_up(connection: Connection) -> None:
    """Whoever waits for a notification is told that there is no connection any more."""
    if not connection.closed:
        with socket.socket(fileno=os.dup(connection.pgconn.socket)) as line, suppress(OSError):
            line.shutdown(socket.SHUT_RDWR)


def _key(payload: str) -> str | None:
    """`None` where it does not say, so that everything may have changed."""
    try:
        return _decode(payload.encode()).data.key
    except (msgspec.DecodeError, UnicodeEncodeError):
        return None


def _item(value: str | None, version: str | None, metadata: Any) -> ConfigurationItem:
    """Whatever types the columns have; metadata that is no JSON object is none."""
    found = metadata if isinstance(metadata, dict) else {}
    return ConfigurationItem(
        value="" if value is None else str(value),
        version="" if version is None else str(version),
        metadata={
            name: member if isinstance(member, str) else msgspec.json.encode(member).decode()
            for name, member in found.items()
        },
    )


def _checked(texts: Sequence[str]) -> list[str]:
    for text in texts:
        if "\0" in text:
            raise InvalidStoreKey(f"PostgreSQL takes no text with a zero character (got '{clip(text)}')")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InvalidStoreKey(f"the key '{clip(text)}' is no valid Unicode text") from None
    return list(texts)


def _folded(channel: str) -> str:
    """As PostgreSQL reads a name without quotes (Dapr). Raises `StoreError`."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_$]{0,62}", channel):
        raise StoreError(f"'{clip(channel)}' is no name of a channel: letters, digits and _, at most 63")
    return channel.lower()


def _open(setup: Setup) -> PostgresConfigurationStore:
    settings = setup.settings
    channel = settings["notifyChannel"]
    if channel:
        try:
            _folded(channel)
        except StoreError as error:
            raise settings.fault("notifyChannel", str(error)) from None
    table = table_name(settings, "table", settings["table"])
    return PostgresConfigurationStore(postgresql.connections(settings), setup.clock, table, channel)


SPEC = ComponentSpec(
    type="configuration.postgresql",
    title="PostgreSQL",
    about=(
        "A table with the columns `key`, `value`, `version` and `metadata` (JSON). Of several rows with one key the "
        "one with the highest number as its version counts. Subscriptions need a trigger that sends notifications "
        "(see [the configuration API](../configuration-api.md#postgresql))."
    ),
    open=_open,
    fields=(
        *postgresql.FIELDS,
        Field("table", "The table, as `name` or `schema.name`.", required=True),
        Field(
            "notifyChannel",
            "The channel on which the table's trigger notifies; a request may name another as `pgNotifyChannel`.",
            default="",
        ),
    ),
    needs="postgresql",
    example="""\
apiVersion: dapr.io/v1alpha1
kind: Component
metadata:
  name: settings
spec:
  type: configuration.postgresql
  version: v1
  metadata:
    - name: connectionString
      value: host=localhost user=shop password=shop dbname=shop
    - name: table
      value: settings
    - name: notifyChannel
      value: settings
""",
)
