"""What the core tells of its work: spans of a trace, and counts and times of what it did.

Small ports; `sidecar/telemetry/` implements them. `NO_TRACER` and `NO_METER` are what is used when nobody listens:
they cost a call each. Times are measured by the implementation: the core hands back what `begin` gave it.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import TracebackType
from typing import NamedTuple, Protocol, Self

from mesh.trace import TraceContext

Attribute = str | int


class Kind(Enum):
    """Which side of which conversation a span is (OpenTelemetry: SpanKind, with its numbers in OTLP)."""

    SERVER = 2
    CLIENT = 3
    PRODUCER = 4
    CONSUMER = 5


class Span(Protocol):
    """One piece of work in a trace. As a context manager it ends with the block, in error if the block raises."""

    @property
    def context(self) -> TraceContext | None:
        """What the next hop is told. `None`: nothing, there is no trace."""
        ...

    @property
    def recording(self) -> bool:
        """Whether anybody will see it: if not, spare yourself the attributes."""
        ...

    def set(self, attributes: Mapping[str, Attribute]) -> None: ...

    def link(self, context: TraceContext) -> None:
        """Point to a span that is not the parent, such as the one that created an event."""
        ...

    def end(self, error: str | None = None) -> None:
        """The work is done, or failed with `error`, in words without secrets. Later calls do nothing."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Tracer(Protocol):
    def start(self, kind: Kind, name: str, parent: TraceContext | None) -> Span:
        """Begin a span below `parent`, or a new trace. `parent` must be valid, as `mesh.trace` makes them.

        Whether it is sampled is decided first (Dapr: yes below a sampled parent, else by the ratio of trace ids).
        An unsampled span records nothing, but has a context of its own.
        """
        ...


class PassedOn:
    """The span of a hop that leaves no trace of itself: the caller's context goes on as it came."""

    __slots__ = ("context",)

    recording = False

    def __init__(self, context: TraceContext | None) -> None:
        self.context = context

    def set(self, attributes: Mapping[str, Attribute]) -> None:
        pass

    def link(self, context: TraceContext) -> None:
        pass

    def end(self, error: str | None = None) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


UNTRACED: Span = PassedOn(None)
"""There is no trace."""


class NoTracer:
    def start(self, kind: Kind, name: str, parent: TraceContext | None) -> Span:
        return UNTRACED if parent is None else PassedOn(parent)


NO_TRACER: Tracer = NoTracer()


class Publishes(Protocol):
    """Publishing to one topic."""

    def begin(self) -> float: ...

    def end(self, begun: float, stored: bool) -> None:
        """To be called once for each `begin`."""
        ...


class Deliveries(Protocol):
    """Delivering from one topic."""

    def begin(self) -> float: ...

    def end(self, begun: float, verdict: str, status: str) -> None:
        """The app has answered or failed. `verdict` is `success`, `retry` or `drop`; `status` what the app said in
        so many words, else empty."""
        ...

    def retried(self) -> None:
        """The message goes back to the broker, to come again."""
        ...

    def dead_lettered(self) -> None: ...

    def expired(self) -> None:
        """The message ended before it could be delivered."""
        ...

    def skipped(self, reason: str) -> None:
        """The message is not for the app: `filter` or `rules` did not let it through."""
        ...


class Calls(Protocol):
    """Service invocation. Application ids are those of the other side; `kind` is `unary` or `streaming`."""

    def sent(self, target: str, kind: str) -> float:
        """At the caller, before each call. Returns what `answered` wants."""
        ...

    def answered(self, begun: float, target: str, status: int, kind: str) -> None:
        """At the caller: the answer is there."""
        ...

    def received(self, caller: str) -> None:
        """At the callee, before its app is called."""
        ...

    def replied(self, caller: str, status: int) -> None:
        """At the callee: the answer is on its way."""
        ...


class ActorWork(Protocol):
    """The actors of one type that the app beside this sidecar hosts."""

    def pending(self, change: int) -> None:
        """So many more, or fewer, calls wait for their turn or have it."""
        ...

    def timers(self, change: int) -> None:
        """So many more, or fewer, timers."""
        ...

    def fired(self, kind: str, success: bool) -> None:
        """A tick has had its turn, or has failed. `kind` is `timers` or `reminders`."""
        ...

    def moved(self) -> None:
        """An active actor goes, because its partition does."""
        ...

    def deactivated(self, told: bool) -> None:
        """Whether the app has heard of it and agreed."""
        ...


class Meter(Protocol):
    """Counts and times. What `publishes` and `deliveries` return is meant to be kept."""

    @property
    def calls(self) -> Calls: ...

    def publishes(self, pubsub: str, topic: str) -> Publishes: ...

    def deliveries(self, pubsub: str, topic: str) -> Deliveries: ...

    def actors(self, actor_type: str) -> ActorWork: ...

    def component_loaded(self, type_: str) -> None: ...

    def component_failed(self, type_: str, name: str, reason: str) -> None:
        """`reason` is one of a few words (Dapr: `init`, `creation`)."""
        ...


class _Nothing:
    """Publishes, deliveries, calls and actors that nobody counts."""

    def begin(self) -> float:
        return 0.0

    def end(self, *_: object) -> None:
        pass

    def sent(self, *_: object) -> float:
        return 0.0

    retried = dead_lettered = expired = skipped = answered = received = replied = end
    pending = timers = fired = moved = deactivated = end


_NOTHING = _Nothing()


class NoMeter:
    calls: Calls = _NOTHING

    def publishes(self, pubsub: str, topic: str) -> Publishes:
        return _NOTHING

    def deliveries(self, pubsub: str, topic: str) -> Deliveries:
        return _NOTHING

    def actors(self, actor_type: str) -> ActorWork:
        return _NOTHING

    def component_loaded(self, type_: str) -> None:
        pass

    def component_failed(self, type_: str, name: str, reason: str) -> None:
        pass


NO_METER: Meter = NoMeter()


class Telemetry(NamedTuple):
    """Whom the core tells of its work."""

    tracer: Tracer = NO_TRACER
    meter: Meter = NO_METER
    below_creation: bool = False
    """Deliveries are traced below what created the event, not below the hop that brought it here."""


SILENCE = Telemetry()
