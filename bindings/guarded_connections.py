"""Connections of httpcore to addresses that `mesh.guarded_addresses` lets pass. Imported when a component asks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import httpcore
from httpcore import AsyncNetworkBackend, AsyncNetworkStream

from mesh.guarded_addresses import resolve


class GuardedBackend(AsyncNetworkBackend):
    """Raises `Forbidden` for the others."""

    def __init__(self) -> None:
        self._inner = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> AsyncNetworkStream:
        problem: Exception = httpcore.ConnectError(f"the name '{host}' has no address")
        try:
            addresses = await resolve(host, port, timeout)
        except (OSError, UnicodeError) as error:  # TimeoutError is an OSError
            raise httpcore.ConnectError(f"the name '{host}' cannot be resolved ({error})") from error
        for address in addresses:
            try:
                return await self._inner.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                problem = error
        raise problem

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
