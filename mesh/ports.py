"""The ports: what the core asks of brokers, apps and clocks.

Each docstring is a contract; `tests/contract/` holds one suite per port, run over every implementation.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from enum import Enum
from typing import NamedTuple, NewType, Protocol

import msgspec

from mesh.errors import MeshError
from mesh.event import Attributes


class Topic(NamedTuple):
    """Where an event is published: a topic of a pub/sub component, within the mesh's namespace."""

    pubsub: str
    name: str


class Mode(Enum):
    """How an event is stored. It is the mode in which the event came (docs/adr/0001-events-on-nats.md)."""

    STRUCTURED = "structured"
    """The payload is the whole event as JSON."""
    BINARY = "binary"
    """The attributes are headers, the payload is the data."""
    RAW = "raw"
    """Not an event: the payload is the user's bytes and nothing else."""


class Message(msgspec.Struct, kw_only=True, gc=False):
    """What a broker is asked to store. Sizes in bytes, times in seconds."""

    mode: Mode
    payload: bytes | None
    """`None` is an event without data (binary mode only)."""
    attributes: Attributes = {}
    """Binary mode: all attributes of the event. Otherwise empty."""
    content_type: str | None = None
    """Raw mode: the media type that the publisher gave."""
    key: str | None = None
    """Orders events that share it (`partitionkey`); `None` where no order is asked for."""
    dedupe_id: str | None = None
    """Set when the caller named the event: a second publish with this id to the same topic within the
    broker's window is acknowledged and not stored again."""
    ttl: float | None = None
    """How long the event may be delivered; the broker may forget it afterwards."""
    headers: Mapping[str, str] = {}
    """Context of this hop: `traceparent`, `tracestate`, `baggage`."""


class Delivery(Protocol):
    """One stored message in the hands of one subscriber.

    Exactly one of `ack` and `retry` settles it; later calls do nothing. Neither waits: both are hints that the
    broker may lose with a connection, after which the message comes again.
    """

    @property
    def mode(self) -> Mode: ...

    @property
    def attributes(self) -> Attributes:
        """Binary mode: the event's attributes, all of them text, as headers carry them.

        Raises `InvalidEvent` when the stored headers are no event.
        """
        ...

    @property
    def payload(self) -> bytes | None: ...

    @property
    def content_type(self) -> str | None: ...

    @property
    def headers(self) -> Mapping[str, str]:
        """Names in lower case; without those of the event and those of the broker."""
        ...

    @property
    def position(self) -> str:
        """Where the message is stored, unique within the topic; the same at every attempt."""
        ...

    @property
    def attempt(self) -> int:
        """1 at the first delivery of this message to this group, as far as the broker knows."""
        ...

    def ack(self) -> None:
        """Handled: never deliver it to this group again."""
        ...

    def retry(self, delay: float) -> None:
        """Deliver again after `delay` seconds, to any member of the group."""
        ...


Handler = Callable[[Delivery], None]
"""Called in the event loop for each delivery. It must not block or raise; it settles the delivery sooner or
later. While it has not, the broker keeps the message from the group's other members."""


class Group(NamedTuple):
    """Competing consumers: each event of the topic goes to one member of the group."""

    app_id: str
    topic: Topic


class Feature(Enum):
    """What an event log can do beyond the common contract. Undeclared means refused at load."""

    DEDUPE = "drops repeats of a caller's id within a window"
    DURABLE = "keeps events and groups over a restart of the broker"
    TTL = "forgets expired events by itself"


class Subscription(Protocol):
    async def close(self) -> None:
        """Stop taking messages; return when all deliveries in hand are settled. Those that the caller does not
        settle within its own limit are to be cancelled by the caller: `close` may then be cancelled too, and the
        broker delivers them again. The group and its position stay."""
        ...


class EventLog(Protocol):
    """A durable log of events per topic, read by groups of competing consumers. Every broker has it."""

    @property
    def features(self) -> frozenset[Feature]: ...

    @property
    def problem(self) -> str | None:
        """Why the log cannot be used right now, in one line; `None` when it can."""
        ...

    async def start(self) -> None:
        """Connect. Returns when the first connection stands; later losses are mended in the background.

        Raises `ConfigurationError` when waiting cannot help (credentials refused, a stream of another kind).
        """
        ...

    async def publish(self, topic: Topic, message: Message) -> None:
        """Returns after the broker has acknowledged that the message is stored.

        Raises `MessageTooLarge` before anything is sent, `BrokerUnavailable` when no acknowledgement came in
        time, `BrokerError` when the broker refused. Cancelling leaves the outcome unknown.
        """
        ...

    async def subscribe(self, group: Group, handler: Handler, *, concurrency: int) -> Subscription:
        """Join `group`. A group that is new starts at the moment of its first `subscribe`; from then on it
        misses nothing, also while it has no member. At most `concurrency` deliveries are unsettled at once.

        Raises `BrokerError` when the broker refuses the group, `BrokerUnavailable` when it does not answer.
        """
        ...

    async def unsubscribe(self, group: Group) -> bool:
        """Forget the group and its position. False when there is no such group."""
        ...

    async def close(self) -> None:
        """Let go of everything. Publishes that wait fail with `BrokerUnavailable`."""
        ...


class AppResponse(msgspec.Struct, frozen=True, gc=False):
    status: int
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes


class Peer(NamedTuple):
    """An app that is called, or that calls."""

    namespace: str
    app_id: str


HeaderList = Sequence[tuple[bytes, bytes]]
"""Headers in their order, repeated names kept, names as they were sent."""


class BodyStream(Protocol):
    """A body piece by piece, for one reader; every async generator of bytes is one.

    When it raises, the body is cut short: whoever forwards it must not let it end as if it were whole.
    """

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    def __anext__(self) -> Awaitable[bytes]: ...

    async def aclose(self) -> None:
        """Let go of what was not read. Whoever takes a stream reads it to its end or closes it."""
        ...


Body = bytes | BodyStream
"""A whole body, or one that comes piece by piece."""


class Request(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What one app asks of another."""

    method: str
    path: str
    """In origin form, percent-encoded, with its query."""
    headers: HeaderList = ()
    body: Body = b""
    caller: Peer | None = None
    """At the callee: who calls, as the broker's address says."""


class Response(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    status: int
    headers: HeaderList = ()
    body: Body = b""
    trailers: HeaderList = ()
    """Of a whole body. Those of a streamed one are not carried."""


class NoResponder(MeshError):
    """No instance of the app takes the call: none serves, or the one that was asked has too many waiting already.
    Nothing was handed to a handler: trying again is safe."""


class PeerLost(MeshError):
    """The instance that took the call, or the connection to it, is gone. It may have done its work."""


RequestHandler = Callable[[Request], Awaitable[Response]]
"""Answers one call, in a task of its own. It is cancelled when the caller has gone away, and when its server's
`close` is cancelled. What it raises becomes `PeerLost` at the caller, with the error's text for a `MeshError`."""


class Server(Protocol):
    async def close(self) -> None:
        """Take no more calls; return when those that were taken are answered, streamed bodies included. Cancelling
        `close` cancels them."""
        ...


class Requests(Protocol):
    """Request and reply between apps, on an address named after the app id. Backbones only.

    Bodies of up to one chunk (128 KiB) travel with the message; longer or unknown ones are streamed, in order,
    with a window of credits, so that a slow reader slows the writer and nothing piles up. While a callee works it
    sends a beat every 2 s; two missed ones end the call with `PeerLost`.
    """

    async def serve(self, app_id: str, handler: RequestHandler, *, concurrency: int) -> Server:
        """Answer calls to `app_id`, side by side with its other instances: each call goes to one of them. At most
        `concurrency` handlers run at once; further calls wait, up to a bound, beyond which they get `NoResponder`.

        Raises `BrokerError` when the broker does not let us.
        """
        ...

    async def request(self, target: Peer, request: Request) -> Response:
        """Call `target`. Returns once status and headers are there; a streamed body goes on after that.

        Raises `NoResponder` at once when nobody serves the app, `PeerLost`, `MessageTooLarge` for headers beyond
        the limit, `BrokerError` when the broker does not let us call this app, `BrokerUnavailable` when nothing
        could be sent, and what the request's body raises, should it break off before the answer is there. There is
        no time limit here: cancel the task, which cancels the handler at the far end within a second. Closing a
        streamed response before its end does the same.
        """
        ...

    async def close(self) -> None:
        """Let go of everything at once. Calls under way fail with `PeerLost` at both ends."""
        ...


HeaderLines = NewType("HeaderLines", bytes)
"""Header lines that an `AppChannel` has checked and encoded."""


class AppRoute(Protocol):
    """One method and path of the app, checked and encoded once, for calls that are made often."""

    def send(
        self, body: bytes = b"", extra_headers: HeaderLines | None = None, *, timeout: float
    ) -> asyncio.Future[AppResponse]:
        """Call the app; the future is that of `AppChannel.request`. May be used from a callback; starts no task."""
        ...


class AppChannel(Protocol):
    """The way to the app beside this sidecar."""

    def prepare(self, method: str, path: str, fixed_headers: Sequence[tuple[str, str]] = ()) -> AppRoute:
        """`fixed_headers` speak for this sidecar: nothing that a message brought belongs here.

        Raises `MeshError` for a path or header that cannot be sent.
        """
        ...

    def header_lines(self, headers: Sequence[tuple[str, str]]) -> HeaderLines:
        """Headers that come from outside, for `AppRoute.send`. Those of the connection and `dapr-*` are left out.

        Raises `MeshError` for one that would break out of its line.
        """
        ...

    def request(
        self,
        method: str,
        path: str,
        headers: Sequence[tuple[str, str]] = (),
        body: bytes = b"",
        *,
        timeout: float,
    ) -> asyncio.Future[AppResponse]:
        """Call the app. The future fails with `AppError` when the app cannot be reached, breaks off, answers no
        HTTP, or takes longer than `timeout` seconds (waiting for a free slot included). Cancelling the future
        breaks the call off. Redirects are not followed. The app token is added; at most
        `--app-max-concurrency` calls are under way at once.
        """
        ...

    def call(self, request: Request, own_headers: Sequence[tuple[str, str]] = ()) -> asyncio.Future[Response]:
        """Call the app as another app asks, without a time limit: the future has its result once status and headers
        are there. A short body comes whole, a longer one, or one whose end is not known, in pieces: read it to its
        end or close it (`aclose`), since it holds a slot. Pieces are sent and read at the pace of the slower side.

        `own_headers` speak for this sidecar; of those of the request the ones that do not come from the caller
        itself are left out as in `header_lines`. `content-length` frames a request body that comes in pieces.
        Errors are those of `request`; a body that breaks off raises `AppError` where it is read.
        """
        ...

    async def probe(self, path: str, *, timeout: float) -> bool:
        """Whether `GET path` answers 2xx in time. No token, not counted as a call."""
        ...

    async def wait_until_listening(self) -> None:
        """Returns when the app's port accepts a connection. Waits for ever."""
        ...

    async def close(self) -> None: ...


class Clock(Protocol):
    """Time. Virtual in tests, so that retries and delays take no wall time."""

    def now(self) -> float:
        """Seconds since the epoch."""
        ...

    def call_later(self, delay: float, callback: Callable[[], None]) -> asyncio.TimerHandle | object: ...

    async def sleep(self, delay: float) -> None: ...
