"""Publishing: the building block behind every API that takes events in."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

import msgspec

from mesh import addressing, envelope, ids, spans
from mesh.delayed.timing import InvalidTiming, Timing, timing
from mesh.delivery.settings import Statements
from mesh.envelope import Publication, hop_headers
from mesh.errors import ApiError, BrokerError, BrokerUnavailable, Code, MessageTooLarge
from mesh.event import CloudEvent
from mesh.ports import Clock, EventLog, Message, Mode, Topic
from mesh.resiliency.breaker import BreakerOpen
from mesh.resiliency.policy import Policy, TimedOut
from mesh.resiliency.retry import Failure
from mesh.resiliency.targets import Direction, Resiliency
from mesh.scopes import TopicScopes
from mesh.telemetry import SILENCE, Span, Telemetry
from mesh.trace import TraceContext

DEFAULT_COMPONENT = "pubsub"
"""The component that is there without any file: the backbone's own, under the name that `dapr init` uses."""

BULK_AT_ONCE = 1_000
"""Entries of a bulk request that are under way to the broker at the same time."""


class Component(msgspec.Struct, frozen=True, kw_only=True):
    """A configured pub/sub component."""

    name: str
    log: EventLog
    type: str = "pubsub.meshwire"
    version: str = "v1"
    scopes: TopicScopes = TopicScopes.from_metadata({})
    topic_prefix: str = ""
    """Put before each topic on the broker; the app never sees it (Dapr: `{namespace}` in a component)."""
    delivery: Statements = {}
    """What its manifest says of the delivery plan of each subscription."""

    def address(self, topic: str) -> Topic:
        return Topic(self.name, self.topic_prefix + topic)


class PublishWatch(Protocol):
    """Who wants to know what becomes of what is published. Must neither block nor raise; `began` is when the broker was
    asked, in seconds since the epoch."""

    def stored(self, topic: Topic, message: Message, position: str, began: float) -> None: ...

    def refused(self, topic: Topic, message: Message, error: BrokerError, began: float) -> None: ...


class Later(Protocol):
    """Who keeps events that are to be published later."""

    def check(self, message: Message, timing: Timing) -> None:
        """Raises `InvalidTiming` for what cannot be delivered then."""
        ...

    async def hold(self, topic: Topic, message: Message, timing: Timing, ttl: float | None = None) -> str:
        """Returns what the event is called once it is stored. `ttl` is that of the request, in seconds from the due
        time. To be called after `check`. Raises `BrokerError`."""
        ...


_Publish = Callable[[Topic, Message], Awaitable[str]]


class PubSub:
    """Publishes for one app, to the pub/sub components of its sidecar."""

    def __init__(
        self,
        app_id: str,
        components: Mapping[str, Component],
        clock: Clock,
        *,
        resiliency: Resiliency | None = None,
        telemetry: Telemetry = SILENCE,
        watch: PublishWatch | None = None,
        later: Later | None = None,
    ) -> None:
        """`components` by their names; they may change while this runs. Without `later`, whatever is asked to be
        delivered later is refused."""
        self._resiliency = resiliency
        self.app_id = app_id
        self.components = components
        self._clock = clock
        self._tracer = telemetry.tracer
        self._meter = telemetry.meter
        self._watch = watch
        self._later = later

    def component(self, name: str, metadata: Mapping[str, str] | None = None) -> Component:
        """Raises `ApiError` (Dapr's 404) for an unknown name."""
        component = self.components.get(name)
        if component is None:
            raise ApiError(Code.PUBSUB_NOT_FOUND, f"pubsub {name} is not found", metadata=metadata or {})
        return component

    def check(self, topic: Topic) -> None:
        """Raises `ApiError` when this app could publish nothing to `topic`, whatever the broker says."""
        component = self.component(topic.pubsub)
        self._address(component, topic.name)
        self._check_scope(component, topic.name)

    async def publish(self, publication: Publication) -> Sequence[str]:
        """Returns when everything is stored: what the events are called that are to be delivered later. Raises
        `ApiError` with Dapr's codes.

        Dapr's order of checks: component, topic, `rawPayload`, event, scope, broker.
        """
        component = self.component(publication.topic.pubsub, publication.metadata)
        name = publication.topic.name
        address = self._address(component, name)
        now = self._clock.now()
        when = self._timing(publication.topic, publication.metadata, now) if publication.metadata else None
        held: list[str] = []
        with spans.publishing(self._tracer, component.name, name, publication.trace) as span:
            if span.context is not publication.trace:
                publication = msgspec.structs.replace(publication, trace=span.context)
            messages = envelope.messages(publication, self.app_id, now if when is None else when.due)
            self._check_scope(component, name)
            if span.recording:
                spans.describe_published(span, messages)
            if when is None:
                failures = await self._store(component, name, address, messages)
            else:
                ttl = envelope.options(publication.metadata).ttl
                held, failures = await self._hold(publication.topic, [(one, when, ttl) for one in messages])
            if failures:
                index, error = next(iter(failures.items()))
                total = len(messages)
                cause = str(error) if total == 1 else f"{len(failures)} of {total} events, [{index}]: {error}"
                raise ApiError(
                    Code.PUBSUB_PUBLISH,
                    f"error when publishing to topic {name} in pubsub {component.name}: {cause}",
                    resource=("pubsub", component.name),
                    metadata={"topic": name, "error": cause},
                ) from error
        return held

    async def publish_many(self, topic: Topic, publications: Sequence[Publication]) -> dict[int, BrokerError]:
        """Publish the entries of a bulk request, each for itself, in their order; returns the failures by index.

        What all have in common, and every entry, is checked before the first is stored: raises `ApiError`, as
        `publish` does.
        """
        component = self.component(topic.pubsub)
        address = self._address(component, topic.name)
        now = self._clock.now()
        spans_of: list[Span] = []
        messages: list[Message] = []
        later: dict[int, tuple[Message, Timing, float | None]] = {}
        try:
            for publication in publications:
                span = spans.publishing(self._tracer, component.name, topic.name, publication.trace)
                spans_of.append(span)
                if span.context is not publication.trace:
                    publication = msgspec.structs.replace(publication, trace=span.context)
                when = self._timing(topic, publication.metadata, now) if publication.metadata else None
                entry = envelope.messages(publication, self.app_id, now if when is None else when.due)
                if when is not None:
                    later[len(messages)] = entry[0], when, envelope.options(publication.metadata).ttl
                messages += entry
                if span.recording:
                    spans.describe_published(span, entry)
            self._check_scope(component, topic.name)
            failures: dict[int, BrokerError] = {}
            for first in range(0, len(messages), BULK_AT_ONCE):
                indexes = range(first, min(first + BULK_AT_ONCE, len(messages)))
                at_once = [index for index in indexes if index not in later]
                if at_once:
                    window = [messages[index] for index in at_once]
                    failed = await self._store(component, topic.name, address, window)
                    failures |= {at_once[index]: error for index, error in failed.items()}
                put_off = [index for index in indexes if index in later]
                if put_off:
                    _, failed = await self._hold(topic, [later[index] for index in put_off])
                    failures |= {put_off[index]: error for index, error in failed.items()}
        except BaseException as error:
            for span in spans_of:
                span.end(str(error) or type(error).__name__)
            raise
        for index, span in enumerate(spans_of):
            span.end(str(failures[index]) if index in failures else None)
        return failures

    async def store_events(
        self,
        topic: Topic,
        events: Sequence[CloudEvent],
        mode: Mode,
        trace: TraceContext | None,
        baggage: str | None,
        asked: Mapping[str, str] = {},
    ) -> Sequence[str]:
        """Store valid events as they are (CloudEvents ingress): what those are called that are to be delivered later,
        as `asked`. Raises `ApiError` with the ingress' own codes."""
        component = self.component(topic.pubsub)
        address = self._address(component, topic.name)
        self._check_scope(component, topic.name)
        with spans.publishing(self._tracer, component.name, topic.name, trace) as span:
            now = self._clock.now()
            when = self._timing(topic, asked, now) if asked else None
            moment = now if when is None else when.due
            trace = span.context
            hop = hop_headers(trace, baggage)
            messages = [envelope.event_message(envelope.with_trace(one, trace), mode, hop, moment) for one in events]
            if span.recording:
                spans.describe_published(span, messages)
            held: list[str] = []
            if when is None:
                failures = await self._store(component, topic.name, address, messages)
            else:
                held, failures = await self._hold(topic, [(one, when, None) for one in messages])
            if failures:
                raise _not_stored(component.name, topic.name, len(messages), failures)
        return held

    async def send(self, topic: Topic, message: Message) -> None:
        """Store a message that was held until now. Raises `ApiError` where it cannot be any more, and `BrokerError`."""
        component = self.component(topic.pubsub)
        failures = await self._store(component, topic.name, self._address(component, topic.name), [message])
        if failures:
            raise failures[0]

    def _timing(self, topic: Topic, asked: Mapping[str, str], now: float) -> Timing | None:
        try:
            when = timing(asked, now)
            if when is not None and self._later is None:
                raise InvalidTiming("nothing that is published here can be delivered later")
        except InvalidTiming as error:
            raise _bad_timing(topic, error) from None
        return when

    async def _hold(
        self, topic: Topic, entries: Sequence[tuple[Message, Timing, float | None]]
    ) -> tuple[list[str], dict[int, BrokerError]]:
        """Names of what is held, and the failures by index. Raises `ApiError` for what can never be delivered."""
        assert self._later is not None  # noqa: S101 - else the timing was refused
        try:
            for message, when, _ in entries:
                self._later.check(message, when)
        except InvalidTiming as error:
            raise _bad_timing(topic, error) from None
        names: list[str] = []
        failures: dict[int, BrokerError] = {}
        holding = (self._later.hold(topic, *entry) for entry in entries)
        for index, outcome in enumerate(await asyncio.gather(*holding, return_exceptions=True)):
            if isinstance(outcome, BrokerError):
                failures[index] = outcome
            elif isinstance(outcome, BaseException):
                raise outcome
            else:
                names.append(outcome)
        return names, failures

    async def _store(
        self, component: Component, topic: str, address: Topic, messages: Sequence[Message]
    ) -> dict[int, BrokerError]:
        """Publish all; returns the failures by index."""
        publish: _Publish = (
            component.log.publish if self._watch is None else partial(self._watched, component.log, self._watch)
        )
        if self._resiliency is not None:
            policy = self._resiliency.for_component(component.name, Direction.OUTBOUND, "pubsub")
            if policy is not None:
                publish = partial(_under, policy, publish)
        publishes = self._meter.publishes(component.name, topic)
        begun = publishes.begin()
        failures: dict[int, BrokerError] = {}
        stored = False
        try:
            if len(messages) == 1:
                try:
                    await publish(address, messages[0])
                except BrokerError as error:
                    failures[0] = error
            else:
                publishing = (publish(address, message) for message in messages)
                for index, outcome in enumerate(await asyncio.gather(*publishing, return_exceptions=True)):
                    if isinstance(outcome, BrokerError):
                        failures[index] = outcome
                    elif isinstance(outcome, BaseException):
                        raise outcome
            stored = not failures
        finally:
            publishes.end(begun, stored)
        return failures

    async def _watched(self, log: EventLog, watch: PublishWatch, address: Topic, message: Message) -> str:
        began = self._clock.now()
        try:
            position = await log.publish(address, message)
        except BrokerError as error:
            watch.refused(address, message, error, began)
            raise
        watch.stored(address, message, position, began)
        return position

    def _address(self, component: Component, topic: str) -> Topic:
        address = component.address(topic)
        try:
            addressing.check_topic(address.name)
        except addressing.InvalidTopic as error:
            raise ApiError(
                Code.TOPIC_INVALID,
                str(error),
                resource=("pubsub", component.name),
                metadata={"topic": topic, "error": str(error)},
            ) from None
        return address

    def _check_scope(self, component: Component, topic: str) -> None:
        if not component.scopes.may_publish(self.app_id, topic):
            message = f"topic {topic} is not allowed for app id {self.app_id}"
            raise ApiError(
                Code.PUBSUB_FORBIDDEN,
                message,
                resource=("pubsub", component.name),
                metadata={"appID": self.app_id, "error": message},
            )


def _bad_timing(topic: Topic, error: InvalidTiming) -> ApiError:
    return ApiError(
        Code.DELIVERY_TIME,
        str(error),
        resource=("pubsub", topic.pubsub),
        metadata={"topic": topic.name, "error": str(error)},
    )


async def _under(policy: Policy, publish: _Publish, address: Topic, message: Message) -> str:
    """Publish as often as the policy says, under one id: what is repeated is stored once."""
    if policy.retry is not None and message.dedupe_id is None:
        message = msgspec.structs.replace(message, dedupe_id=ids.uuid4())
    try:
        return await policy.run(lambda: publish(address, message), failed=_failed)
    except (TimedOut, BreakerOpen) as error:
        raise BrokerUnavailable(str(error)) from error


def _failed(outcome: object) -> Failure | None:
    """What cannot be stored ever is the caller's fault; what the broker refuses, it refuses again."""
    if not isinstance(outcome, BrokerError | TimedOut) or isinstance(outcome, MessageTooLarge):
        return None
    return Failure(final=not isinstance(outcome, BrokerUnavailable | TimedOut))


def _not_stored(pubsub: str, topic: str, total: int, failures: Mapping[int, BrokerError]) -> ApiError:
    error = next(iter(failures.values()))
    code = Code.EVENT_TOO_LARGE if isinstance(error, MessageTooLarge) else Code.EVENT_NOT_STORED
    where = "" if total == 1 else f"{len(failures)} of {total} events: "
    return ApiError(
        code,
        f"topic {topic} in pubsub {pubsub}: {where}{error}",
        # Refused for good is the server's fault as little as ours: only waiting may help a 503.
        status=None if isinstance(error, MessageTooLarge | BrokerUnavailable) else 502,
        resource=("pubsub", pubsub),
        metadata={"topic": topic},
        extra={"notStored": sorted(failures)},
    )
