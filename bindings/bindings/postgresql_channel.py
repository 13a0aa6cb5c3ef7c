"""Notifications of PostgreSQL (`NOTIFY`): quick, and lost while nobody listens."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import msgspec

from bindings.postgresql import Connections, translated
from mesh.ports.bindings import Accept, Item
from mesh.ports.stores import StoreUnavailable

if TYPE_CHECKING:
    from bindings.postgresql import Connection

SILENCE = 10.0
"""Seconds without a notification after which the server is asked whether it is there."""


class Notifications:
    """What is sent to a channel."""

    def __init__(self, connections: Connections, channel: str) -> None:
        """`channel` as the server knows it."""
        self._connections = connections
        self._channel = channel

    async def prepare(self, connection: Connection) -> None:
        """Nothing: a channel needs not be made."""

    async def run(self, accept: Accept) -> None:
        """As `InputBinding.run`. Raises `StoreError`, and what `accept` does."""
        import psycopg
        from psycopg import sql

        connection: Connection | None = None
        try:
            connection = await self._within(self._connections.connect())
            await self._within(connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(self._channel))))
            while True:
                async with aclosing(connection.notifies(timeout=SILENCE)) as notifications:
                    async for notification in notifications:
                        await accept(_item(notification.channel, notification.payload))
                await self._within(connection.execute(b"SELECT 1"))
        except psycopg.Error as error:
            raise translated(error) from error
        finally:
            if connection is not None:
                await connection.close()

    async def _within(self, work: Any) -> Any:
        try:
            async with asyncio.timeout(self._connections.timeout):
                return await work
        except TimeoutError:
            raise StoreUnavailable("PostgreSQL did not answer in time") from None


def _item(channel: str, payload: str) -> Item:
    """The payload as it is if it is JSON, else as text."""
    data = payload.encode()
    try:
        msgspec.json.decode(data)
    except msgspec.DecodeError:
        return Item(data=data, key=channel, content_type="text/plain", metadata={"channel": channel})
    return Item(data=data, key=channel, metadata={"channel": channel})
