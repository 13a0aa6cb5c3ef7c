"""Calls to servers outside the mesh: HTTPEndpoints by their name, and URLs (Dapr: external invocation).

No token of the app and no word about the caller goes there. A client chooses the address, so some are refused
(`mesh.guarded_addresses`).
"""

from __future__ import annotations

import os
import ssl
import tempfile
from collections.abc import Sequence
from urllib.parse import urljoin, urlsplit

import httpcore

from bindings.guarded_connections import GuardedBackend
from mesh.errors import ConfigurationError, MeshError
from mesh.http_endpoint import ClientTls, HttpEndpoint
from mesh.invocation.headers import content_length
from mesh.ports import Request, Response
from sidecar.channel.library import Pairs, Url, exchange

REDIRECTS = 10
"""How many an HTTPEndpoint is followed through (Go's client)."""
CONNECTIONS = 256

_SAME_AGAIN = (307, 308)
_AS_GET = (301, 302, 303)
_SECRET = frozenset((b"authorization", b"cookie", b"www-authenticate"))


class ExternalServers:
    """`mesh.invocation.External`."""

    def __init__(self, endpoints: Sequence[HttpEndpoint] = ()) -> None:
        """Raises `ConfigurationError` for TLS material that is none."""
        self._endpoints: dict[str, HttpEndpoint] = {}
        self._pool = _pool(ssl.create_default_context())
        self._pools: dict[str, httpcore.AsyncConnectionPool] = {}
        self.add(endpoints)

    def add(self, endpoints: Sequence[HttpEndpoint]) -> None:
        """Raises `ConfigurationError` for TLS material that is none."""
        self._endpoints |= {endpoint.name: endpoint for endpoint in endpoints}
        self._pools |= {endpoint.name: _pool(_tls(endpoint)) for endpoint in endpoints if endpoint.tls != ClientTls()}

    def has(self, target: str) -> bool:
        return target in self._endpoints

    async def call(self, target: str, request: Request) -> Response:
        endpoint = self._endpoints.get(target)
        if endpoint is None:
            return await self._call(self._pool, _url(target + request.path), request, list(request.headers))
        return await self._call_endpoint(endpoint, request)

    async def close(self) -> None:
        for pool in (self._pool, *self._pools.values()):
            await pool.aclose()

    async def _call(self, pool: httpcore.AsyncConnectionPool, url: Url, request: Request, headers: Pairs) -> Response:
        length = None if isinstance(request.body, bytes) else content_length(headers)
        headers = [header for header in headers if header[0] != b"content-length"]
        return await exchange(pool, request.method, url, headers, request.body, length=length)

    async def _call_endpoint(self, endpoint: HttpEndpoint, request: Request) -> Response:
        own = [(name.lower().encode(), value.encode()) for name, value in endpoint.headers]
        names = {name for name, _ in own}
        headers = [header for header in request.headers if header[0] not in names] + own
        pool = self._pools.get(endpoint.name, self._pool)
        location = endpoint.base_url + request.path
        url = _url(location)
        for _ in range(REDIRECTS):
            response = await self._call(pool, url, request, headers)
            target = _redirected(request, response)
            if target is None:
                return response
            if not isinstance(response.body, bytes):
                await response.body.aclose()
            if response.status not in _SAME_AGAIN:
                request = Request(method="HEAD" if request.method == "HEAD" else "GET", path=request.path)
                headers = [header for header in headers if not header[0].startswith(b"content-")]
            location = urljoin(location, target)
            origin, url = url[:3], _url(location)
            if url[:3] != origin:
                # What was meant for that server is not for this one.
                pool = self._pool
                headers = [header for header in headers if header[0] not in _SECRET and header[0] not in names]
        raise MeshError(f"stopped after {REDIRECTS} redirects")


def _redirected(request: Request, response: Response) -> str | None:
    """Where a redirect points that can be followed (RFC 9110, 15.4; Go's client)."""
    if response.status in _SAME_AGAIN:
        if not isinstance(request.body, bytes):
            return None
    elif response.status not in _AS_GET:
        return None
    return next((value.decode("latin-1") for name, value in response.headers if name == b"location" and value), None)


def _url(text: str) -> Url:
    """Raises `MeshError`."""
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise MeshError(f"the URL cannot be called: {error}") from None
    if parts.scheme not in ("http", "https") or not host or not text.isascii() or not text.isprintable() or " " in text:
        raise MeshError("only http:// and https:// URLs can be called")
    target = (parts.path or "/") + (f"?{parts.query}" if "?" in text else "")
    return Url(parts.scheme, host, port or (443 if parts.scheme == "https" else 80), target)


def _pool(context: ssl.SSLContext) -> httpcore.AsyncConnectionPool:
    return httpcore.AsyncConnectionPool(
        ssl_context=context,
        max_connections=CONNECTIONS,
        keepalive_expiry=60.0,
        http2=True,
        network_backend=GuardedBackend(),
    )


def _tls(endpoint: HttpEndpoint) -> ssl.SSLContext:
    tls = endpoint.tls
    try:
        context = ssl.create_default_context(cadata=tls.root_ca or None)
        if tls.certificate:
            # The ssl module reads certificates from files only.
            descriptor, path = tempfile.mkstemp()
            try:
                with os.fdopen(descriptor, "w") as file:
                    file.write(f"{tls.certificate}\n{tls.private_key}\n")
                context.load_cert_chain(path)
            finally:
                os.unlink(path)  # noqa: PTH108
    except (ssl.SSLError, ValueError) as error:
        raise ConfigurationError(f"{endpoint.origin}: spec.clientTLS cannot be used: {error}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if not tls.may_renegotiate:
        context.options |= ssl.OP_NO_RENEGOTIATION
    return context
