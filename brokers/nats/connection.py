"""A connection to NATS that mends itself, and calls over it.

nats-py's own reconnect loses requests in flight without a word, gives up for good on most server errors and
cannot look up a new address. So each connection is used once: this module makes the next one, restores the
subscriptions and tells whoever waits.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
from collections.abc import Callable, Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

import nats.errors

from brokers.nats.client import DirectCallback, MeshClient
from mesh import addressing
from mesh.errors import BrokerError, BrokerUnavailable, ConfigurationError, MessageTooLarge, clip

logger = logging.getLogger("meshwire.nats")

CONNECT_TIMEOUT = 2.0
"""Seconds for one attempt to connect to one server."""
ROUND_TRIP_TIMEOUT = 1.0
RETRY_PAUSES = (0.02, 0.05, 0.1, 0.2, 0.5)
"""Seconds between attempts to connect; the last one is repeated."""
PING_INTERVAL = 2.0
"""Seconds. A frozen server is noticed after three of them."""
DEFAULT_PORT = 4222
SWEEP_INTERVAL = 0.25
"""Seconds between looks for calls that are overdue."""
MAX_CALLS = 16_384
MAX_CALL_BYTES = 64 * 1024 * 1024
"""Bounds on the calls in flight; one more is refused as unavailable."""


class Servers(NamedTuple):
    """Where to connect. The URLs may hold credentials: they are never logged."""

    urls: Sequence[str]
    token: str | None = None


class Lookup(NamedTuple):
    """Where the servers are: asked before every attempt, since an embedded server may have moved."""

    servers: Callable[[], Servers | None]
    """`None` while there is no server yet."""
    failure: Callable[[], str | None] = lambda: None
    """Why there will never be one, if that is known."""


class Reply(NamedTuple):
    headers: bytes
    payload: bytes

    @property
    def no_responders(self) -> bool:
        return self.headers.startswith(b"NATS/1.0 503")


class Disconnected(BrokerUnavailable):
    """The connection is not there, or was lost while the call was under way."""


class _Call(NamedTuple):
    future: asyncio.Future[Reply]
    deadline: float
    subject: str
    size: int


class _Listener:
    __slots__ = ("callback", "queue", "sid", "subject")

    def __init__(self, subject: str, callback: DirectCallback, queue: str) -> None:
        self.subject = subject
        self.callback = callback
        self.queue = queue
        self.sid = 0

    def subscribe(self, client: MeshClient) -> None:
        self.sid = client.subscribe_direct(self.subject, self.callback, self.queue)


class Connection:
    """The one connection of a process to NATS, for publishes, calls and deliveries alike."""

    def __init__(self, lookup: Lookup, *, name: str, purpose: str = "") -> None:
        """`name` is the app's, and is in all its inboxes; `purpose` tells its connections apart for whoever looks."""
        self._lookup = lookup
        self._name = name
        self._title = f"{name} {purpose}".rstrip()
        self._loop = asyncio.get_running_loop()
        self._client: MeshClient | None = None
        self._task: asyncio.Task[None] | None = None
        self._connected = asyncio.Event()
        self._lost = asyncio.Event()
        self._problem: str | None = "not connected yet"
        self._deaf: str | None = None
        self._listeners: list[_Listener] = []
        self._reconnected: list[Callable[[], None]] = []
        self._on_loss: list[Callable[[str], None]] = []
        self._on_denial: list[Callable[[str], bool]] = []
        self._numbers = itertools.count(1)
        self._calls: dict[int, _Call] = {}
        self._call_bytes = 0
        self._sweeper: asyncio.TimerHandle | None = None
        self.closed = False
        self.inbox = self.new_inbox()
        """Prefix of every subject on which this connection takes replies: an app's replies stay its own."""
        self._reply_to = f"{self.inbox}.r.".encode()
        self.max_payload = 0
        """Most bytes that the server takes in one message, headers included."""
        self.has_jetstream = False
        """Whether the server that we are connected to runs JetStream itself."""

    def another(self, purpose: str) -> Connection:
        """A second connection to the same servers, not started. The server's list of clients shows its purpose."""
        return Connection(self._lookup, name=self._name, purpose=purpose)

    def new_inbox(self) -> str:
        """Prefix of subjects of this app's own. Who learns `inbox` from a reply subject cannot guess this one."""
        return f"{addressing.inbox(self._name)}.{secrets.token_hex(8)}"

    @property
    def problem(self) -> str | None:
        """Why there is no connection, or none that answers can come by, in one line; `None` when there is one."""
        return self._problem or self._deaf

    async def start(self) -> None:
        """Returns when the first connection stands. Raises `ConfigurationError` when waiting cannot help."""
        self.listen(f"{self.inbox}.r.*", self._on_reply)
        self._task = self._loop.create_task(self._keep_connected(), name="nats connection")
        connected = self._loop.create_task(self._connected.wait())
        try:
            await asyncio.wait({self._task, connected}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            connected.cancel()
        if self._task.done():
            await self._task

    async def close(self) -> None:
        """Calls that wait fail with `Disconnected`, and so do those who wait for a connection."""
        self.closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        client = self._client
        self._disconnect("closed")
        self._connected.set()
        if client is not None:
            client.abandon()
            # The transport is cut already: this only lets nats-py end its own tasks.
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await client.close()

    async def wait_connected(self, timeout: float) -> None:
        """Raises `Disconnected` after `timeout` seconds without a connection, or when this one is closed."""
        try:
            async with asyncio.timeout(timeout):
                while self._client is None and not self.closed:
                    await self._connected.wait()
        except TimeoutError:
            pass
        if self._client is None:
            raise Disconnected(f"no connection to NATS: {self._problem}")

    def on_reconnected(self, callback: Callable[[], None]) -> Callable[[], None]:
        """`callback` runs each time a new connection stands, its subscriptions restored. Returns the way to stop."""
        self._reconnected.append(callback)
        return lambda: self._reconnected.remove(callback)

    def on_lost(self, callback: Callable[[str], None]) -> Callable[[], None]:
        """`callback` runs with the reason each time a connection is lost or closed. Returns the way to stop."""
        self._on_loss.append(callback)
        return lambda: self._on_loss.remove(callback)

    def on_denied(self, callback: Callable[[str], bool]) -> Callable[[], None]:
        """`callback` gets the server's text (in lower case) when a permission is missing, and says whether it was
        about one of its own subjects. Returns the way to stop."""
        self._on_denial.append(callback)
        return lambda: self._on_denial.remove(callback)

    def listen(self, subject: str, callback: DirectCallback, queue: str = "") -> Callable[[], None]:
        """Subscribe, on this connection and every later one. Of the members of a group `queue`, one gets each
        message. Returns the way to stop."""
        listener = _Listener(subject, callback, queue)
        self._listeners.append(listener)
        if self._client is not None:
            listener.subscribe(self._client)

        def stop() -> None:
            self._listeners.remove(listener)
            if self._client is not None:
                self._client.unsubscribe_direct(listener.sid)

        return stop

    async def round_trip(self) -> None:
        """Returns when the server has read all that was sent, and all that it sent before has come.

        Without a connection at once, and after `ROUND_TRIP_TIMEOUT` when the server is silent.
        """
        client = self._client
        if client is not None:
            await asyncio.sleep(0)  # what this turn of the loop sends goes first
            try:
                async with asyncio.timeout(ROUND_TRIP_TIMEOUT):
                    await client.flush()
            except (OSError, TimeoutError, nats.errors.Error) as error:
                logger.debug("no round trip: %s", _reason(error))

    def send(self, subject: bytes, payload: bytes, reply: bytes = b"") -> None:
        """Publish without any acknowledgement; lost when there is no connection."""
        if self._client is not None:
            self._client.send(b"PUB %b %b %d\r\n%b\r\n" % (subject, reply, len(payload), payload))

    def publish(self, subject: bytes, reply: bytes, headers: bytes, payload: bytes) -> None:
        """Publish with a header block, without any acknowledgement; what a lost connection had yet to send is lost.

        Raises, having sent nothing: `Disconnected`, `MessageTooLarge`.
        """
        if self._client is None:
            raise Disconnected(f"no connection to NATS: {self._problem}")
        size = len(headers) + len(payload)
        if size > self.max_payload:
            raise MessageTooLarge(size, self.max_payload)
        self._client.send(b"HPUB %b %b %d %d\r\n%b%b\r\n" % (subject, reply, len(headers), size, headers, payload))

    def call(self, subject: str, headers: bytes, payload: bytes, timeout: float) -> asyncio.Future[Reply]:
        """Send a message and get the one answer to it.

        `headers` is a whole header block or empty. The future fails with `BrokerUnavailable` after `timeout`
        seconds, with `Disconnected` when the connection is lost meanwhile (the message may have arrived), with
        `BrokerError` when the server forbids the subject. Raises at once, having sent nothing: `Disconnected`,
        `MessageTooLarge`, and `BrokerUnavailable` when too many calls are under way.
        """
        client = self._client
        if client is None:
            raise Disconnected(f"no connection to NATS: {self._problem}")
        if self._deaf is not None:
            raise BrokerUnavailable(self._deaf)
        size = len(headers) + len(payload)
        if size > self.max_payload:
            # nats-py compares the payload alone; the server counts both, and answers by closing the connection.
            raise MessageTooLarge(size, self.max_payload)
        if len(self._calls) >= MAX_CALLS or self._call_bytes + size > MAX_CALL_BYTES:
            raise BrokerUnavailable("too many messages wait for the broker's acknowledgement; slow down and try again")
        number = next(self._numbers)
        if headers:
            client.send(
                b"HPUB %b %b%d %d %d\r\n%b%b\r\n"
                % (subject.encode(), self._reply_to, number, len(headers), size, headers, payload)
            )
        else:
            client.send(b"PUB %b %b%d %d\r\n%b\r\n" % (subject.encode(), self._reply_to, number, size, payload))
        future: asyncio.Future[Reply] = self._loop.create_future()
        self._calls[number] = _Call(future, self._loop.time() + timeout, subject, size)
        self._call_bytes += size
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(SWEEP_INTERVAL, self._sweep)
        return future

    def _take(self, number: int) -> asyncio.Future[Reply] | None:
        """The future of a call that ends now, unless its caller has gone."""
        call = self._calls.pop(number, None)
        if call is None:
            return None
        self._call_bytes -= call.size
        return None if call.future.done() else call.future

    def _on_reply(self, subject: bytes, _reply: bytes, headers: bytes, payload: bytes) -> None:
        future = self._take(int(subject[len(self._reply_to) :]))
        if future is not None:
            future.set_result(Reply(headers, payload))

    def _sweep(self) -> None:
        now = self._loop.time()
        overdue = [number for number, call in self._calls.items() if call.deadline <= now]
        for number in overdue:
            future = self._take(number)
            if future is not None:
                future.set_exception(BrokerUnavailable("the broker did not answer in time"))
        self._sweeper = self._loop.call_later(SWEEP_INTERVAL, self._sweep) if self._calls else None

    def _on_denied(self, text: str) -> None:
        """Fail the calls to a subject that the server forbids; it answers them by this error line only. Without our
        inbox no call has an answer."""
        if f'"{self.inbox.lower()}.r.*"' in text:
            self._deaf = f"NATS refused: {text}; grant this user the permission"
            for number in list(self._calls):
                future = self._take(number)
                if future is not None:
                    future.set_exception(BrokerUnavailable(self._deaf))
        denied = [number for number, call in self._calls.items() if f'"{call.subject.lower()}"' in text]
        for number in denied:
            future = self._take(number)
            if future is not None:
                future.set_exception(BrokerError(f"NATS refused: {text}; grant this user the permission"))
        known = [callback(text) for callback in self._on_denial]
        if not denied and not any(known):
            logger.warning("NATS refused: %s", text)

    def _disconnect(self, reason: str) -> None:
        self._client = None
        self._deaf = None
        self._problem = reason
        self._connected.clear()
        self._lost.set()
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for number in list(self._calls):
            future = self._take(number)
            if future is not None:
                future.set_exception(Disconnected(f"the connection to NATS was lost: {reason}"))
        for callback in list(self._on_loss):
            callback(reason)

    async def _keep_connected(self) -> None:
        """Connect, and connect again, until cancelled. Raises `ConfigurationError` before the first connection only."""
        ever_connected = False
        pauses = itertools.chain(RETRY_PAUSES, itertools.repeat(RETRY_PAUSES[-1]))
        rotation = 0
        while True:
            servers = self._lookup.servers()
            if servers is None or not servers.urls:
                problem = self._lookup.failure()
                if problem and not ever_connected:
                    raise ConfigurationError(problem)
                self._note(problem or "the NATS server has not started yet")
            else:
                url = servers.urls[rotation % len(servers.urls)]
                rotation += 1
                try:
                    client = await self._connect(url, servers.token)
                except Exception as error:  # what listens there need not be NATS, and nats-py trusts what it reads
                    reason = _reason(error)
                    if "authorization violation" in reason.lower() and not ever_connected:
                        raise ConfigurationError(
                            "NATS refused our credentials; check the user, password or token in MESHWIRE_BROKER"
                        ) from None
                    self._note(f"cannot connect to {_address(url)}: {reason}")
                else:
                    logger.info(
                        "%s is connected to NATS at %s%s",
                        self._title,
                        _address(url),
                        " again" if ever_connected else "",
                    )
                    ever_connected = True
                    self._use(client)
                    pauses = itertools.chain(RETRY_PAUSES, itertools.repeat(RETRY_PAUSES[-1]))
                    await self._lost.wait()
                    logger.warning("the connection to NATS was lost: %s", self._problem)
            await asyncio.sleep(next(pauses))

    def _note(self, problem: str) -> None:
        if problem != self._problem:
            logger.warning("no connection to NATS: %s", problem)
            self._problem = problem

    async def _connect(self, url: str, token: str | None) -> MeshClient:
        client: MeshClient

        def on_lost(reason: str) -> None:
            if self._client is client:
                self._disconnect(reason)
            client.abandon()

        cause: Exception | None = None

        async def on_error(error: Exception) -> None:
            """Errors of a connection that stands come by `on_lost`; without this nats-py would log tracebacks."""
            nonlocal cause
            cause = error

        client = MeshClient(on_lost, self._on_denied)
        try:
            async with asyncio.timeout(2 * CONNECT_TIMEOUT):
                await client.connect(
                    servers=[url],
                    token=token,
                    name=self._title,
                    allow_reconnect=False,
                    connect_timeout=int(CONNECT_TIMEOUT),
                    max_reconnect_attempts=1,
                    reconnect_time_wait=0,
                    ping_interval=int(PING_INTERVAL),
                    max_outstanding_pings=2,
                    error_cb=on_error,
                )
        except nats.errors.NoServersError as error:
            raise cause or error from None
        except BaseException:
            client.abandon()
            raise
        return client

    def _use(self, client: MeshClient) -> None:
        self.max_payload = client._max_payload
        self.has_jetstream = bool(client._server_info.get("jetstream"))
        self._client = client
        self._problem = None
        self._lost.clear()
        for listener in self._listeners:
            listener.subscribe(client)
        self._connected.set()
        for callback in list(self._reconnected):
            callback()


def _address(url: str) -> str:
    """Host and port, without the credentials."""
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port or DEFAULT_PORT}"


def _reason(error: Exception) -> str:
    return clip(str(error).removeprefix("nats: ").strip("'\" ") or type(error).__name__)
