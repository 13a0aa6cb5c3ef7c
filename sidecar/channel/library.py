"""Calls by a library (httpcore): to apps that speak https or h2c, and to servers outside the mesh.

Imported only when a configuration asks for it. Slower than the channel of our own; the same contracts.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterable, AsyncIterator, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from mesh.errors import AppError, AppUnreachable, ConfigurationError, clip
from mesh.invocation.headers import content_length
from mesh.ports import AppResponse, Body, BodyStream, HeaderLines, Request, Response
from sidecar.channel.connection import Limits
from sidecar.channel.guard import Text, header_lines, request_line, token_line
from sidecar.channel.http import NO_LENGTH_WHEN_EMPTY, app_host, until_listening
from sidecar.channel.streaming import WHOLE

try:
    import httpcore
except ImportError as error:
    raise ConfigurationError(
        "https and h2c apps and calls beyond the mesh need a library: pip install 'meshwire[http]'"
    ) from error

if TYPE_CHECKING:
    from asyncio import Future

CONNECT_TIME = 10.0
"""Seconds in which a connection must stand, TLS included."""

Pairs = list[tuple[bytes, bytes]]


class Url(NamedTuple):
    scheme: str
    host: str
    port: int
    target: str
    """Path and query."""

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        default = 443 if self.scheme == "https" else 80
        return host if self.port == default else f"{host}:{self.port}"


class ResponseStream:
    """The pieces of an answer, for one reader. Raises `AppError` where the other side broke off."""

    def __init__(self, response: httpcore.Response, name: str, slot: asyncio.Semaphore | None) -> None:
        self._response = response
        self._pieces = cast(AsyncIterable[bytes], response.stream).__aiter__()
        self._name = name
        self._slot = slot

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            return await anext(self._pieces)
        except StopAsyncIteration:
            await self.aclose()
            raise
        except _ERRORS as error:
            await self.aclose()
            raise AppError(f"{self._name}: the answer broke off: {_reason(error)}") from error

    async def aclose(self) -> None:
        slot, self._slot = self._slot, None
        if slot is not None:
            slot.release()
        await self._response.aclose()


async def exchange(
    pool: httpcore.AsyncConnectionPool,
    method: str,
    url: Url,
    headers: Pairs,
    body: Body,
    *,
    length: int | None = None,
    slot: asyncio.Semaphore | None = None,
) -> Response:
    """One call, without redirects. `headers` neither name the host nor frame the body: `length` says how long a
    streamed one will be, if that is known. A streamed `body` is closed.

    `slot` is held until the answer's body is read or closed. Raises `AppUnreachable` when no connection could be made,
    `AppError`.
    """
    name = clip(f"{method} {url.target.partition('?')[0]}")
    origin = f"{url.scheme}://{url.authority}"
    request = httpcore.Request(
        method.encode(),
        httpcore.URL(scheme=url.scheme.encode(), host=url.host.encode(), port=url.port, target=url.target.encode()),
        headers=[(b"host", url.authority.encode()), *_framing(method, body, length), *headers],
        content=body if isinstance(body, bytes) else cast(AsyncIterable[bytes], body),
        extensions={"timeout": {"connect": CONNECT_TIME, "pool": CONNECT_TIME}},
    )
    if slot is not None:
        await slot.acquire()
    stream: ResponseStream | None = None
    try:
        response = await pool.handle_async_request(request)
        stream, slot = ResponseStream(response, name, slot), None
        found = [(key.lower(), value) for key, value in response.headers]
        announced = content_length(found)
        whole: Body = stream
        if method == "HEAD" or response.status in (204, 304) or (announced is not None and announced <= WHOLE):
            whole = b"".join([piece async for piece in stream])
        return Response(status=response.status, headers=found, body=whole)
    except BaseException as error:
        if stream is not None:
            await stream.aclose()
        if isinstance(error, _UNREACHED):
            raise AppUnreachable(
                f"{name}: cannot connect to {url.scheme}://{url.authority}: {_reason(error)}"
            ) from error
        if isinstance(error, _ERRORS):
            raise AppError(f"{name}: {origin} gave no answer: {_reason(error)}") from error
        raise
    finally:
        if slot is not None:
            slot.release()
        if not isinstance(body, bytes):
            await body.aclose()


def _framing(method: str, body: Body, length: int | None) -> Pairs:
    if isinstance(body, bytes):
        if not body and method in NO_LENGTH_WHEN_EMPTY:
            return []
        return [(b"content-length", b"%d" % len(body))]
    return [(b"transfer-encoding", b"chunked") if length is None else (b"content-length", b"%d" % length)]


_UNREACHED = (httpcore.ConnectError, httpcore.ConnectTimeout, httpcore.PoolTimeout)
_ERRORS = (
    *_UNREACHED,
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.TimeoutException,
    httpcore.UnsupportedProtocol,
)


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__


def pairs(lines: HeaderLines) -> Pairs:
    return [(name, value) for name, _, value in (line.partition(b": ") for line in lines.split(b"\r\n")) if name]


class LibraryAppChannel:
    """`AppChannel` for an app that speaks `https` (any certificate will do: Dapr) or `h2c` (HTTP/2 in the clear).

    Construct it inside the event loop. The other arguments are those of `HttpAppChannel`.
    """

    def __init__(
        self,
        address: str,
        port: int,
        *,
        protocol: str,
        token: str | None = None,
        max_concurrency: int | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._address = address
        self._port = port
        self._protocol = protocol
        self._limits = limits or Limits()
        app_host(address)  # checks it
        self._token_line = token_line(token) if token else b""
        slots = self._limits.connections
        if max_concurrency is not None and max_concurrency > 0:
            slots = min(slots, max_concurrency)
        self._slots = asyncio.Semaphore(slots)
        self._pool = self._open_pool()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._loop = asyncio.get_running_loop()
        self._closed = False

    def _open_pool(self) -> httpcore.AsyncConnectionPool:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return httpcore.AsyncConnectionPool(
            ssl_context=context,
            max_connections=None,
            keepalive_expiry=self._limits.idle,
            http1=self._protocol == "https",
            http2=True,
        )

    # AppChannel

    def prepare(self, method: str, path: str, fixed_headers: Sequence[tuple[Text, Text]] = ()) -> LibraryRoute:
        request_line(method, path)
        lines = HeaderLines(self._token_line + header_lines(fixed_headers, own=True))
        return LibraryRoute(self, method, path, lines)

    def header_lines(self, headers: Sequence[tuple[Text, Text]]) -> HeaderLines:
        return header_lines(headers)

    def request(
        self,
        method: str,
        path: str,
        headers: Sequence[tuple[Text, Text]] = (),
        body: bytes = b"",
        *,
        timeout: float,
    ) -> Future[AppResponse]:
        return self.prepare(method, path).send(body, header_lines(headers), timeout=timeout)

    def call(
        self, request: Request, own_headers: Sequence[tuple[str, str]] = (), *, once: bool = False
    ) -> Future[Response]:
        """As `AppChannel.call`; nothing is ever sent again here."""
        request_line(request.method, request.path)
        lines = HeaderLines(self._token_line + header_lines(own_headers, own=True) + header_lines(request.headers))
        length = None if isinstance(request.body, bytes) else content_length(request.headers)
        return self._start(self._exchange(request.method, request.path, pairs(lines), request.body, length))

    async def probe(self, path: str, *, timeout: float) -> bool:
        async with self._open_pool() as fresh:
            try:
                async with asyncio.timeout(timeout):
                    response = await exchange(fresh, "GET", self._url(path), [], b"")
                    if not isinstance(response.body, bytes):
                        await response.body.aclose()
            except (AppError, TimeoutError):
                return False
        return 200 <= response.status < 300

    async def wait_until_listening(self) -> None:
        await until_listening(self._address, self._port, self._protocol)

    async def close(self) -> None:
        self._closed = True
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._pool.aclose()

    # From routes

    def send(
        self, method: str, path: str, lines: HeaderLines, body: bytes, *, timeout: float
    ) -> asyncio.Task[AppResponse]:
        return self._start(self._send(method, path, pairs(lines), body, timeout))

    # The rest

    def _url(self, path: str) -> Url:
        scheme = "https" if self._protocol == "https" else "http"
        return Url(scheme, self._address.partition("%")[0], self._port, path)

    def _start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = self._loop.create_task(work, name="call of the app")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _exchange(
        self, method: str, path: str, headers: Pairs, body: Body, length: int | None = None
    ) -> Response:
        if self._closed:
            raise AppError(f"{clip(method)}: the sidecar is shutting down")
        return await exchange(self._pool, method, self._url(path), headers, body, length=length, slot=self._slots)

    async def _send(self, method: str, path: str, headers: Pairs, body: bytes, timeout: float) -> AppResponse:
        name = clip(f"{method} {path.partition('?')[0]}")
        try:
            async with asyncio.timeout(timeout):
                response = await self._exchange(method, path, headers, body)
                whole = response.body if isinstance(response.body, bytes) else await self._read(response.body, name)
        except TimeoutError:
            raise AppError(f"{name}: the app did not answer in time") from None
        return AppResponse(response.status, response.headers, whole)

    async def _read(self, body: BodyStream, name: str) -> bytes:
        whole = bytearray()
        try:
            async for piece in body:
                whole += piece
                if len(whole) > self._limits.body_bytes:
                    raise AppError(
                        f"{name}: the app sent an answer of more than {self._limits.body_bytes} bytes, which is the "
                        "limit; let the app answer in smaller pieces"
                    )
        finally:
            await body.aclose()
        return bytes(whole)


class LibraryRoute:
    """`AppRoute`; made by `LibraryAppChannel.prepare`."""

    def __init__(self, channel: LibraryAppChannel, method: str, path: str, lines: HeaderLines) -> None:
        self._channel = channel
        self._method = method
        self._path = path
        self._lines = lines

    def send(
        self, body: bytes = b"", extra_headers: HeaderLines | None = None, *, timeout: float
    ) -> Future[AppResponse]:
        lines = HeaderLines(self._lines + (extra_headers or b""))
        return self._channel.send(self._method, self._path, lines, body, timeout=timeout)
