"""The app channel: plain HTTP/1.1 to the one address of the app."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Sequence
from functools import lru_cache, partial
from math import inf

from mesh.errors import AppError, ConfigurationError, clip
from mesh.invocation.headers import content_length
from mesh.ports import AppResponse, HeaderLines, Request, Response
from sidecar.channel.call import Call, StreamedCall
from sidecar.channel.connection import Limits
from sidecar.channel.guard import Text, header_lines, request_line, token_line
from sidecar.channel.pool import ConnectionPool
from sidecar.channel.streaming import Upload

logger = logging.getLogger("meshwire.app")

DIAL_PAUSE = 0.1
DIAL_TIMEOUT = 0.5
_DIALS_PER_LOG_LINE = 100

_ROUTES_KEPT = 256
"""How many methods and paths `request` remembers in their encoded form."""

NO_LENGTH_WHEN_EMPTY = frozenset({"GET", "HEAD", "DELETE", "OPTIONS", "TRACE"})  # RFC 9110, 8.6
_IDEMPOTENT = NO_LENGTH_WHEN_EMPTY | {"PUT"}  # RFC 9110, 9.2.2

_own_lines = lru_cache(_ROUTES_KEPT)(partial(header_lines, own=True))


_HOST = re.compile(
    r"[0-9A-Fa-f]*:[0-9A-Fa-f:.]+(%[0-9A-Za-z._-]+)?|([0-9A-Za-z_-]{1,63}\.)*[0-9A-Za-z_-]{1,63}\.?"
).fullmatch


def app_host(address: str) -> str:
    """The address of the app as `Host` has it. Raises `ConfigurationError` for one that is none."""
    if not _HOST(address):
        raise ConfigurationError(f"the app channel address '{clip(address)}' is neither an IP address nor a host name")
    host = address.partition("%")[0]  # the zone of a link-local address is for this machine only
    return f"[{host}]" if ":" in host else host


async def until_listening(address: str, port: int, protocol: str) -> None:
    """Returns when the app's port accepts a connection. Waits for ever (Dapr), and says so now and then."""
    logger.info("application protocol: %s. waiting on port %d.", protocol, port)
    attempts = 0
    while not await _accepts(address, port):
        attempts += 1
        if attempts % _DIALS_PER_LOG_LINE == 0:
            logger.info("application protocol: %s. still waiting on port %d.", protocol, port)
        await asyncio.sleep(DIAL_PAUSE)
    logger.info("application discovered on port %d", port)


async def _accepts(address: str, port: int) -> bool:
    try:
        async with asyncio.timeout(DIAL_TIMEOUT):
            transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, address, port)
    except OSError:  # TimeoutError is one
        return False
    transport.abort()
    return True


class HttpAppChannel:
    """`AppChannel` for an app that speaks plain HTTP/1.1.

    Construct it inside the event loop. `address` is an IP address or a host name; `token` goes to the app with
    every call but probes (Dapr: `APP_API_TOKEN`); `max_concurrency` is Dapr's `--app-max-concurrency`, `None` or
    less than 1 is no limit but that of the connections. Raises `ConfigurationError` for an impossible address.

    A call holds its slot until the whole answer is read; calls without one wait in the order in which they came.
    """

    def __init__(
        self,
        address: str,
        port: int,
        *,
        token: str | None = None,
        max_concurrency: int | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.address = address
        self.port = port
        host = app_host(address)
        limits = limits or Limits()
        slots = limits.connections
        if max_concurrency is not None and max_concurrency > 0:
            slots = min(slots, max_concurrency)
        self._host_line = b"host: %b:%d\r\n" % (host.encode(), port)
        self._token_line = token_line(token) if token else b""
        self._route_to = lru_cache(_ROUTES_KEPT)(self.prepare)
        self._open_pool = partial(ConnectionPool, address, port, app=f"the app at http://{host}:{port}", limits=limits)
        self._pool = self._open_pool(slots=slots)
        self._probing: set[ConnectionPool] = set()
        self._closed = False

    @property
    def under_way(self) -> int:
        """Calls of the app that it has not answered yet."""
        return self._pool.under_way

    # AppChannel and PreparedCalls

    def request(
        self,
        method: str,
        path: str,
        headers: Sequence[tuple[Text, Text]] = (),
        body: bytes = b"",
        *,
        timeout: float,
        replay: bool = True,
    ) -> asyncio.Future[AppResponse]:
        """As `AppChannel.request`; `replay` as in `HttpRoute.send`. `headers` come from outside: those of the
        connection and `dapr-*` are left out. Raises `UnsafeRequest` before anything is sent.
        """
        return self._route_to(method, path).send(body, header_lines(headers), timeout=timeout, replay=replay)

    def prepare(self, method: str, path: str, fixed_headers: Sequence[tuple[Text, Text]] = ()) -> HttpRoute:
        """As `AppChannel.prepare`. `fixed_headers` may be `dapr-*`, but for the token. Raises `UnsafeRequest`."""
        fixed = header_lines(fixed_headers, own=True) if fixed_headers else b""
        lines = b"%b%b%b" % (self._host_line, self._token_line, fixed)
        return HttpRoute(self._pool, method, path, lines)

    def header_lines(self, headers: Sequence[tuple[Text, Text]]) -> HeaderLines:
        return header_lines(headers)

    def call(
        self, request: Request, own_headers: Sequence[tuple[str, str]] = (), *, once: bool = False
    ) -> asyncio.Future[Response]:
        """As `AppChannel.call`. Raises `UnsafeRequest` before anything is sent."""
        lines = HeaderLines(_own_lines(tuple(own_headers)) + header_lines(request.headers))
        return self._route_to(request.method, request.path).call(request, lines, once=once)

    async def probe(self, path: str, *, timeout: float) -> bool:
        """Over a connection of its own, so that a stale one proves nothing. Raises `UnsafeRequest`."""
        if self._closed:
            return False
        pool = self._open_pool(slots=1)
        self._probing.add(pool)
        try:
            route = HttpRoute(pool, "GET", path, self._host_line + b"connection: close\r\n")
            response = await route.send(timeout=timeout, replay=False)
        except AppError:
            return False
        finally:
            self._probing.discard(pool)
            await pool.close()
        return 200 <= response.status < 300

    async def wait_until_listening(self) -> None:
        await until_listening(self.address, self.port, "http")

    async def close(self) -> None:
        """Calls under way fail with `AppError`, as do later ones. Returns when all sockets are closed."""
        self._closed = True
        await asyncio.gather(*(pool.close() for pool in (self._pool, *self._probing)))


class HttpRoute:
    """`AppRoute`; made by `HttpAppChannel.prepare`. `lines` are the headers of all its calls."""

    __slots__ = ("_head", "_is_head", "_pool", "_says_length")

    def __init__(self, pool: ConnectionPool, method: str, path: str, lines: bytes) -> None:
        self._head = b"%b\r\n%b" % (request_line(method, path), lines)
        self._pool = pool
        self._is_head = method == "HEAD"
        self._says_length = method not in NO_LENGTH_WHEN_EMPTY

    def send(
        self,
        body: bytes = b"",
        extra_headers: HeaderLines | None = None,
        *,
        timeout: float,
        replay: bool = True,
    ) -> asyncio.Future[AppResponse]:
        """As `AppRoute.send`.

        `replay` permits a second sending when a kept connection turns out to be dead before any byte of the
        answer came. The app may then have worked on the call twice: pass False where that must not be.
        """
        pool = self._pool
        loop = pool.loop
        call = Call(loop=loop)
        if body or self._says_length:
            call.head = b"%bcontent-length: %d\r\n%b\r\n" % (self._head, len(body), extra_headers or b"")
        else:
            call.head = b"%b%b\r\n" % (self._head, extra_headers or b"")
        call.body = body
        call.deadline = loop.time() + timeout
        call.replay = replay
        call.without_body = self._is_head
        pool.start(call)
        return call

    def call(self, request: Request, extra_headers: HeaderLines, *, once: bool) -> asyncio.Future[Response]:
        """As `AppChannel.call`."""
        body = request.body
        call = StreamedCall(loop=self._pool.loop)
        call.answer = None
        if isinstance(body, bytes):
            call.upload = None
            call.body = body
            framing = b"content-length: %d\r\n" % len(body) if body or self._says_length else b""
        else:
            length = content_length(request.headers)
            call.upload = Upload(body, length)
            call.body = b""
            framing = b"transfer-encoding: chunked\r\n" if length is None else b"content-length: %d\r\n" % length
        call.head = b"%b%b%b\r\n" % (self._head, framing, extra_headers)
        call.deadline = inf
        # A kept connection that turns out to be dead does not tell whether the app has worked on the call.
        call.replay = not once and call.upload is None and request.method in _IDEMPOTENT
        call.without_body = self._is_head
        self._pool.start(call)
        return call
