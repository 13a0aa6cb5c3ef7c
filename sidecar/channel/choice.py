"""Which channel a configuration asks for. The library behind some of them is imported only then."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mesh.http_endpoint import HttpEndpoint
from mesh.ports import AppChannel, Request, Response
from sidecar.channel.http import HttpAppChannel

if TYPE_CHECKING:
    from sidecar.channel.external import ExternalServers


def open_app_channel(
    protocol: str, address: str, port: int, *, token: str | None, max_concurrency: int | None
) -> AppChannel:
    """`protocol` is `http`, `https` or `h2c`. Raises `ConfigurationError`, also when the library is missing."""
    if protocol == "http":
        return HttpAppChannel(address, port, token=token, max_concurrency=max_concurrency)
    from sidecar.channel.library import LibraryAppChannel

    return LibraryAppChannel(address, port, protocol=protocol, token=token, max_concurrency=max_concurrency)


class OutsideWorld:
    """`mesh.invocation.External`: opened at once when there are HTTPEndpoints, else at the first call of a URL."""

    def __init__(self, endpoints: Sequence[HttpEndpoint] = ()) -> None:
        """Raises `ConfigurationError` for TLS material that is none, and when the library is missing."""
        self._endpoints: dict[str, HttpEndpoint] = {}
        self._servers: ExternalServers | None = None
        self.add(endpoints)

    def add(self, endpoints: Sequence[HttpEndpoint]) -> None:
        """Raises as the constructor."""
        if endpoints:
            self._opened().add(endpoints)
            self._endpoints |= {endpoint.name: endpoint for endpoint in endpoints}

    def has(self, target: str) -> bool:
        return target in self._endpoints

    async def call(self, target: str, request: Request) -> Response:
        return await self._opened().call(target, request)

    async def close(self) -> None:
        if self._servers is not None:
            await self._servers.close()

    def _opened(self) -> ExternalServers:
        if self._servers is None:
            from sidecar.channel.external import ExternalServers

            self._servers = ExternalServers()
        return self._servers
