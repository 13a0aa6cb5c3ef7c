"""The durable log of events."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import NamedTuple, Protocol

import msgspec

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
