"""The app channel: plain HTTP/1.1 to the one address of the app."""

from __future__ import annotations

import asyncio
import logging
import re
from collections import OrderedDict, deque
from collections.abc import Sequence
from functools import lru_cache, partial
from math import inf

from mesh.errors import AppError, AppUnreachable, ConfigurationError, clip
from mesh.invocation.headers import content_length
from mesh.ports import AppResponse, HeaderLines, Request, Response
from sidecar.channel.connection import Call, Connection, Limits
from sidecar.channel.guard import Text, header_lines, request_line, token_line
from sidecar.channel.streaming import StreamedCall, Upload

logger = logging.getLogger("meshwire.app")

DIAL_PAUSE = 0.1
DIAL_TIMEOUT = 0.5
_DIALS_PER_LOG_LINE = 100

_SWEEP_PAUSE = 0.01
"""Least time between two sweeps, in seconds: how late a call may time out."""

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

    A call holds its slot until the whole answer is read;
    calls without one wait in the order in which they came.

    Hot: guarded by benchmarks/app_channel.py.
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
        self.limits = limits or Limits()
        self.loop = asyncio.get_running_loop()
        self._host = app_host(address)
        self._fixed_lines = b"host: %b:%d\r\n" % (self._host.encode(), port)
        self._token_line = token_line(token) if token else b""
        self._route_to = lru_cache(_ROUTES_KEPT)(self.prepare)
        self._slots = self.limits.connections
        if max_concurrency is not None and max_concurrency > 0:
            self._slots = min(self._slots, max_concurrency)
        self._taken = 0
        self._waiting: OrderedDict[Call, None] = OrderedDict()
        self._connections: set[Connection] = set()  # until the socket is closed
        self._idle: deque[Connection] = deque()  # longest unused first
        self._sweep_at = inf
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._all_gone = asyncio.Event()

    @property
    def app(self) -> str:
        return f"the app at http://{self._host}:{self.port}"

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
        return HttpRoute(self, method, path, self._token_line + header_lines(fixed_headers, own=True))

    def header_lines(self, headers: Sequence[tuple[Text, Text]]) -> HeaderLines:
        return header_lines(headers)

    def call(self, request: Request, own_headers: Sequence[tuple[str, str]] = ()) -> asyncio.Future[Response]:
        """As `AppChannel.call`. Raises `UnsafeRequest` before anything is sent."""
        lines = HeaderLines(_own_lines(tuple(own_headers)) + header_lines(request.headers))
        return self._route_to(request.method, request.path).call(request, lines)

    async def probe(self, path: str, *, timeout: float) -> bool:
        """Over a connection of its own, so that a stale one proves nothing. Raises `UnsafeRequest`."""
        route = HttpRoute(self, "GET", path, b"connection: close\r\n")
        try:
            response = await route.send(timeout=timeout, replay=False, is_probe=True)
        except AppError:
            return False
        return 200 <= response.status < 300

    async def wait_until_listening(self) -> None:
        await until_listening(self.address, self.port, "http")

    async def close(self) -> None:
        """Calls under way fail with `AppError`, as do later ones. Returns when all sockets are closed."""
        self._closed = True
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        while self._waiting:
            self._waiting.popitem()[0].fail("the sidecar is shutting down")
        for connection in tuple(self._connections):
            connection.fail("the sidecar is shutting down")
        if self._connections:
            await self._all_gone.wait()

    # From routes

    def start(self, call: Call) -> None:
        """Send the call now, or when it is its turn."""
        if self._closed:
            call.fail("the sidecar is shutting down")
            return
        if call.is_probe:
            self._dial(call)
        elif self._taken < self._slots:
            self._taken += 1
            self._dispatch(call)
        elif len(self._waiting) < self.limits.waiting:
            self._waiting[call] = None
        else:
            call.fail(
                f"{self.app} works on {self._taken} calls and {len(self._waiting)} are waiting, which is the limit; "
                "make the app faster, or run more of it",
                AppUnreachable,
            )
            return
        if call.deadline < self._sweep_at:
            self._sweep_no_later_than(call.deadline)

    # From calls and connections (`CallOwner`)

    def call_off(self, call: Call) -> None:
        connection = call.connection
        if connection is None:
            self._waiting.pop(call, None)
            return
        connection.give_up()
        self.settled(connection, call, reusable=False)

    def settled(self, connection: Connection, call: Call, *, reusable: bool) -> None:
        if call.is_probe:
            connection.give_up()  # it was made for this probe only
            return
        if reusable:
            self._keep(connection)
        else:
            self.finished(connection)
        if self._waiting:
            self._dispatch(self._waiting.popitem(last=False)[0])
        else:
            self._taken -= 1

    def try_again(self, call: Call) -> None:
        self._dial(call)

    def finished(self, connection: Connection) -> None:
        if connection in self._idle:
            self._idle.remove(connection)

    def gone(self, connection: Connection) -> None:
        self._connections.discard(connection)
        if self._closed and not self._connections:
            self._all_gone.set()

    # The rest

    def _dispatch(self, call: Call) -> None:
        if self._idle:
            self._idle.pop().carry(call)
        else:
            self._dial(call)

    def _dial(self, call: Call) -> None:
        connection = Connection(self, self.limits, call)
        self._connections.add(connection)
        task = connection.dialling = self.loop.create_task(self._connect(connection))
        task.add_done_callback(lambda _: self._dialled(connection))

    async def _connect(self, connection: Connection) -> None:
        try:
            await self.loop.create_connection(lambda: connection, self.address, self.port)
        except OSError as exc:
            connection.dialling = None
            connection.fail(
                f"cannot connect to {self.app} ({exc.strerror or exc}); is it running, and listening on this port?",
                AppUnreachable,
            )

    def _dialled(self, connection: Connection) -> None:
        connection.dialling = None
        if not connection.is_open:
            self.gone(connection)

    def _keep(self, connection: Connection) -> None:
        connection.idle_since = self.loop.time()
        self._idle.append(connection)
        if (end := connection.idle_since + self.limits.idle) < self._sweep_at:
            self._sweep_no_later_than(end)

    def _sweep_no_later_than(self, moment: float) -> None:
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        self._sweep_at = moment
        self._sweep_timer = self.loop.call_at(moment, self._sweep)

    def _sweep(self) -> None:
        """One timer for all: fail the calls and close the idle connections whose time is over."""
        now = self.loop.time()
        for call in [call for call in self._waiting if call.deadline <= now]:
            del self._waiting[call]
            call.fail(
                f"{self.app} still worked on {self._taken} other calls when the time for this one was over; "
                "make the app faster, raise --app-max-concurrency, or allow the call more time",
                AppUnreachable,
            )
        for connection in tuple(self._connections):
            if connection.call is not None and connection.call.deadline <= now:
                connection.fail(f"{connection.describe()} in time")
        while self._idle and self._idle[0].idle_since + self.limits.idle <= now:
            self._idle.popleft().give_up()

        self._sweep_at = inf
        self._sweep_timer = None
        ends = [call.deadline for call in self._waiting]
        ends += [connection.call.deadline for connection in self._connections if connection.call is not None]
        if self._idle:
            ends.append(self._idle[0].idle_since + self.limits.idle)
        following = min(ends, default=inf)
        if following < inf:
            self._sweep_no_later_than(max(following, now + _SWEEP_PAUSE))


class HttpRoute:
    """`AppRoute`; made by `HttpAppChannel.prepare`."""

    __slots__ = ("_channel", "_head", "_is_head", "_name", "_says_length")

    def __init__(self, channel: HttpAppChannel, method: str, path: str, lines: bytes) -> None:
        self._head = b"%b\r\n%b%b" % (request_line(method, path), channel._fixed_lines, lines)
        self._channel = channel
        self._name = clip(f"{method} {path.partition('?')[0]}")
        self._is_head = method == "HEAD"
        self._says_length = method not in NO_LENGTH_WHEN_EMPTY

    def send(
        self,
        body: bytes = b"",
        extra_headers: HeaderLines | None = None,
        *,
        timeout: float,
        replay: bool = True,
        is_probe: bool = False,
    ) -> asyncio.Future[AppResponse]:
        """As `AppRoute.send`.

        `replay` permits a second sending when a kept connection turns out to be dead before any byte of the
        answer came. The app may then have worked on the call twice: pass False where that must not be.
        """
        channel = self._channel
        loop = channel.loop
        call = Call(loop=loop)
        call.owner = channel
        call.name = self._name
        if body or self._says_length:
            call.head = b"%bcontent-length: %d\r\n%b\r\n" % (self._head, len(body), extra_headers or b"")
        else:
            call.head = b"%b%b\r\n" % (self._head, extra_headers or b"")
        call.body = body
        call.deadline = loop.time() + timeout
        call.replay = replay
        call.without_body = self._is_head
        call.is_probe = is_probe
        call.connection = None
        channel.start(call)
        return call

    def call(self, request: Request, extra_headers: HeaderLines) -> asyncio.Future[Response]:
        """As `AppChannel.call`."""
        channel = self._channel
        body = request.body
        call = StreamedCall(loop=channel.loop)
        call.owner = channel
        call.name = self._name
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
        call.replay = call.upload is None and request.method in _IDEMPOTENT
        call.without_body = self._is_head
        call.is_probe = False
        call.connection = None
        channel.start(call)
        return call
