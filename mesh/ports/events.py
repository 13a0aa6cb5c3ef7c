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


class Record(Protocol):
    """One stored message."""

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
    def key(self) -> str | None:
        """What orders it (`Message.key`), or else the event's `partitionkey`; `None` where it has neither."""
        ...

    @property
    def position(self) -> str:
        """Where the message is stored, unique within the topic; the same at every attempt."""
        ...

    @property
    def topic(self) -> str:
        """The name of the topic that it is stored under: of a group with wildcards, the one that it came by."""
        ...

    @property
    def time(self) -> float:
        """When the broker stored it, in seconds since the epoch."""
        ...


class Delivery(Record, Protocol):
    """One stored message in the hands of one subscriber.

    Exactly one of `ack`, `retry` and `release` settles it; later calls do nothing. None waits: all are hints that the
    broker may lose with a connection, after which the message comes again.
    """

    @property
    def attempt(self) -> int:
        """1 at the first delivery of this message to this group, as far as the broker knows. A delivery that this
        member released is not counted; one that was released by a member that is gone may be."""
        ...

    def ack(self) -> None:
        """Handled: never deliver it to this group again."""
        ...

    def retry(self, delay: float) -> None:
        """Deliver again after `delay` seconds, to any member of the group. An attempt was made and failed."""
        ...

    def release(self) -> None:
        """Deliver again at once, to any member of the group. No attempt was made, or none that is to count."""
        ...


Handler = Callable[[Delivery], None]
"""Called in the event loop for each delivery. It must not block or raise; it settles the delivery sooner or
later. While it has not, the broker keeps the message from the group's other members."""


class Group(NamedTuple):
    """Competing consumers: each event of the topic goes to one member of the group."""

    app_id: str
    topic: Topic
    """Where the log declares `WILDCARDS`, `*` stands for one part of a name between dots, and `>` at the end for one
    or more."""
    name: str = ""
    """Tells apart several groups of an app for one topic; empty is the one of its subscription."""


class Order(Enum):
    """Which events of a group are handled one after another: each is delivered when those before it are settled by
    `ack`. *Order* means that the sequence of handled events, repeats removed, is the published one."""

    NONE = "none"
    KEY = "key"
    """Those with the same key; many keys at once, over all members. Events without a key are in no order."""
    STRICT = "strict"
    """All of the topic, by one member at a time."""


class Start(NamedTuple):
    """Where a group that is new begins, or reading does. At most one of the two is set."""

    position: str | None = None
    """At this position, or at the first one after it that is still stored."""
    time: float | None = None
    """At the first message stored at this moment or later; seconds since the epoch. 0 is the oldest."""


NOW = Start()
"""What is stored from this moment on."""
OLDEST = Start(time=0.0)


class Feature(Enum):
    """What an event log can do beyond the common contract. Undeclared means refused at load."""

    DEDUPE = "drops repeats of a caller's id within a window"
    DURABLE = "keeps events and groups over a restart of the broker"
    TTL = "forgets expired events by itself"
    KEY_ORDER = "handles events of one key in order, over all members of a group"
    STRICT_ORDER = "handles all events of a topic in order"
    READ = "reads stored events again, from a position or a time"
    BROADCAST = "delivers to every replica, by groups that end with their only member"
    WILDCARDS = "subscribes to many topics by a pattern"
    ANY_MEMBER = "gives each event to any member that has room, not to the one that has its part of the topic"


class Page(NamedTuple):
    """Stored messages in the order of the log."""

    records: list[Record]
    next: str | None
    """Where the next page begins; `None` when nothing more was stored at the moment of reading."""


class Backlog(NamedTuple):
    """What a group has yet to do."""

    waiting: int
    """Stored and not delivered yet."""
    unsettled: int
    """Delivered and not settled, or waiting for a retry."""


class Subscription(Protocol):
    def set_concurrency(self, concurrency: int) -> None:
        """From now on at most this many deliveries are unsettled at once. 0 takes no more until it is raised again;
        what is in hand stays there, and what was taken and waits for a place goes back to the group."""
        ...

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

    async def publish(self, topic: Topic, message: Message) -> str:
        """Returns after the broker has acknowledged that the message is stored: its position, or `""` where the log
        does not tell (for a repeat, say).

        Raises `MessageTooLarge` before anything is sent, `BrokerUnavailable` when no acknowledgement came in
        time, `BrokerError` when the broker refused. Cancelling leaves the outcome unknown.
        """
        ...

    async def subscribe(
        self,
        group: Group,
        handler: Handler,
        *,
        concurrency: int,
        order: Order = Order.KEY,
        start: Start = NOW,
        lasting: bool = True,
    ) -> Subscription:
        """Join `group`. A group that is new begins at `start`; from then on it misses nothing, also while it has no
        member. At most `concurrency` deliveries are unsettled at once. All members must ask for the same `order`;
        it changes when a member comes while there is no other.

        With `lasting=False` (`BROADCAST`) the group ends soon after its only member has gone or cannot be reached,
        with its position.

        Raises `BrokerError` when the broker refuses the group, or the log has not declared what is asked for;
        `BrokerUnavailable` when it does not answer.
        """
        ...

    async def read(self, topic: Topic, start: Start, *, limit: int) -> Page:
        """Up to `limit` messages of `topic` (`READ`), from `start` on, as they are stored at this moment. A page may
        be shorter though more follows: large messages make it so. Raises `BrokerError`, `BrokerUnavailable`."""
        ...

    async def backlog(self, group: Group) -> Backlog | None:
        """`None` when there is no such group. Raises `BrokerError`, `BrokerUnavailable`."""
        ...

    async def unsubscribe(self, group: Group) -> bool:
        """Forget the group and its position. False when there is no such group."""
        ...

    async def close(self) -> None:
        """Let go of everything. Publishes that wait fail with `BrokerUnavailable`."""
        ...
