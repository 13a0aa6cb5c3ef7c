"""The replays of an app: recorded for all its sidecars, carried out by one of them at a time.

One, under a lease, since only so the end is exact, the pace one number and nothing is left at the broker: whoever takes
over goes on from the position that was last noted. What was delivered since then is delivered again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

import msgspec

from mesh import addressing, ids
from mesh.control.gate import Gate
from mesh.delivery.compile import plan_of
from mesh.delivery.deliverer import Deliverer
from mesh.delivery.event_target import EventTarget
from mesh.delivery.letters import DeadLetters
from mesh.delivery.plan import Plan
from mesh.delivery.target import Target
from mesh.delivery.watch import DeliveryWatch
from mesh.errors import ApiError, BrokerError, BrokerUnavailable, Code, MeshError, clip
from mesh.ownership import Lease
from mesh.ownership.waits import end, within
from mesh.ports import AppChannel, Clock, Feature, Group, Start, Topic
from mesh.ports.tables import Check, Conflict, Tables
from mesh.pubsub import Component
from mesh.replay.playback import Playback, count
from mesh.resiliency.targets import Resiliency
from mesh.routing import Route
from mesh.runs import Followed, Run, Runs, State
from mesh.subscriptions import SubscriptionSpec, delivery_path
from mesh.telemetry import SILENCE, Telemetry

KIND = "replay"
LEAST_RATE, MOST_RATE = 0.01, 100_000.0
"""Events per second."""
MOST_COUNTED = 100_000
"""Events that a dry run counts."""
NOTE_EVERY = 1.0
"""Seconds between two notes of how far it is: what may be delivered again after a crash."""
DRAIN_LIMIT = 5.0
"""Seconds that events in the app's hands get to be settled when a replay has to stop."""

logger = logging.getLogger("meshwire.replay")


class Point(msgspec.Struct, frozen=True, omit_defaults=True):
    """A place in a topic: one of the two."""

    position: str | None = None
    time: float | None = None
    """Seconds since the epoch."""

    def start(self) -> Start:
        return Start(position=self.position, time=self.time)


class Replay(Run, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """One run."""

    pubsubname: str
    topic: str
    start: Point = msgspec.field(name="from")
    to: Point
    """Where it ends; at the moment in which it began at the latest."""
    route: str | None = None
    """The path of the app; `None` is by the rules of its subscription."""
    rate: float | None = None
    """Events per second."""
    reached: str | None = None
    """The position up to which all is done."""
    reached_time: float | None = None
    """When the newest event that was read was stored."""
    handled: int = 0
    """Events that are done with: those that came again after a crash are counted again."""


Items = Callable[[str, str | None, Sequence[tuple[str, str]]], tuple[Target, Plan]]
"""How the items of a topic of an input binding are delivered: to its own route unless a path is given, with these
headers beside. Raises `MeshError`."""


class Replays:
    """The replays of one app, and those that it starts for others."""

    def __init__(
        self,
        app_id: str,
        components: Mapping[str, Component],
        tables: Tables,
        clock: Clock,
        *,
        channel: AppChannel | None,
        subscriptions: Callable[[], Sequence[SubscriptionSpec] | None],
        resiliency: Resiliency,
        items: Items,
        dead_letters: DeadLetters | None = None,
        watch: Callable[[Group], DeliveryWatch] | None = None,
        telemetry: Telemetry = SILENCE,
    ) -> None:
        """`subscriptions` are those of the app beside this sidecar, `None` while it cannot take events. `items` are
        those of the component `addressing.BINDINGS`."""
        self.runs = Runs(tables, KIND, Replay, clock)
        self._app_id = app_id
        self._components = components
        self._tables = tables
        self._clock = clock
        self._channel = channel
        self._subscriptions = subscriptions
        self._resiliency = resiliency
        self._items = items
        self._dead_letters = dead_letters
        self._watch = watch
        self._telemetry = telemetry

    async def start(
        self,
        topic: Topic,
        start: Point,
        to: Point | None = None,
        *,
        app_id: str = "",
        route: str | None = None,
        rate: float | None = None,
    ) -> Replay:
        """Replay to `app_id`, this app unless it is named. Raises what `check` does, `TooManyRuns`, `BrokerError`."""
        target = app_id or self._app_id
        await self.check(topic, start, target, route)
        now = self._clock.now()
        run = Replay(
            id=ids.random_id()[:12],
            created=now,
            pubsubname=topic.pubsub,
            topic=topic.name,
            start=start,
            to=self._end(to, now),
            route=route,
            rate=rate,
        )
        await self.runs.add(target, run)
        return run

    async def count(self, topic: Topic, start: Point, to: Point | None, *, app_id: str = "") -> tuple[int, bool]:
        """How many events would be read, and whether those are all (`MOST_COUNTED`). Raises what `check` does."""
        component = await self.check(topic, start, app_id or self._app_id, "/")
        finish = self._end(to, self._clock.now()).start()
        return await count(component.log, component.address(topic.name), start.start(), finish, most=MOST_COUNTED)

    async def check(self, topic: Topic, start: Point, app_id: str, route: str | None) -> Component:
        """Raises `ApiError` when `app_id` cannot have the events of a topic, `BrokerError`."""
        component = self._components.get(topic.pubsub)
        if component is None:
            raise ApiError(Code.PUBSUB_NOT_FOUND, f"pubsub {clip(topic.pubsub)} is not found", metadata={})
        if not component.scopes.may_subscribe(app_id, topic.name):
            message = f"topic {clip(topic.name)} is not allowed for app id {clip(app_id)}"
            raise ApiError(Code.PUBSUB_FORBIDDEN, message, resource=("pubsub", component.name))
        if Feature.READ not in component.log.features:
            fact = f"the broker of pubsub {component.name} cannot: {Feature.READ.value}"
            raise ApiError(Code.REPLAY_UNSUPPORTED, fact)
        address = component.address(topic.name)
        try:
            if addressing.is_pattern(address.name):
                addressing.check_pattern(address.name)
            else:
                addressing.check_topic(address.name)
        except addressing.InvalidTopic as error:
            raise ApiError(Code.TOPIC_INVALID, str(error), resource=("pubsub", component.name)) from None
        specs = self._subscriptions()
        if topic.pubsub == addressing.BINDINGS:
            self._check_items(topic.name, app_id, route)
        elif route is None and app_id == self._app_id and specs is not None and _spec(specs, topic) is None:
            raise ApiError(Code.MALFORMED_REQUEST, _not_subscribed(topic))
        try:
            await component.log.read(address, start.start(), limit=1)
        except BrokerUnavailable:
            raise
        except BrokerError as error:  # it refuses this place
            raise ApiError(Code.MALFORMED_REQUEST, f"from: {error}") from None
        return component

    def _check_items(self, topic: str, app_id: str, route: str | None) -> None:
        """Raises `ApiError`."""
        if not topic.startswith(addressing.bindings_prefix(app_id)):
            message = f"topic {clip(topic)} has no items of app {clip(app_id)}: they are replayed to their own app only"
            raise ApiError(Code.MALFORMED_REQUEST, message)
        if app_id == self._app_id and self._available:
            try:
                self._items(topic, route, ())
            except MeshError as error:
                raise ApiError(Code.MALFORMED_REQUEST, str(error)) from None

    def _end(self, to: Point | None, now: float) -> Point:
        if to is None:
            return Point(time=now)
        return Point(position=to.position, time=now if to.time is None else min(now, to.time))

    async def work(self, followed: Followed[Replay]) -> None:
        """As `mesh.runs.Work`."""
        run_id = followed.run.id
        scope = addressing.runs_scope(self._app_id)
        lease = Lease(self._tables, scope, f"{KIND}-{run_id}", node=self._app_id, clock=self._clock)
        while not followed.run.over:
            if not followed.leaving and not self._available:
                await within(self._clock, NOTE_EVERY, followed.until_leaving())
                continue
            waiting = asyncio.ensure_future(_acquire(lease))
            over = asyncio.ensure_future(followed.until_over())
            try:
                await asyncio.wait({waiting, over}, return_when=asyncio.FIRST_COMPLETED)
                if over.done():
                    return
                waiting.result()
                await self._go_on(followed, lease)
            finally:
                await end(waiting, over)
                await lease.release()

    @property
    def _available(self) -> bool:
        return self._channel is not None and self._subscriptions() is not None

    async def _go_on(self, followed: Followed[Replay], lease: Lease) -> None:
        """As the holder of the lease, for as long as the app is there. Raises `BrokerError`, `Conflict`."""
        run = await self.runs.get(self._app_id, followed.run.id)
        if run is None or run.over:
            followed.saw(run)
            return
        if followed.leaving:
            await self._finish(followed, lease, State.CANCELLED)
            return
        specs = self._subscriptions()
        if self._channel is None or specs is None:
            return
        try:
            stage = self._stage(run, self._channel, specs)
        except MeshError as error:
            await self._finish(followed, lease, State.FAILED, str(error))
            return
        try:
            await stage.play(lambda: self._available and lease.held, followed, partial(self._note, run, stage, lease))
        except asyncio.CancelledError:
            await stage.close()
            with suppress(BrokerError, Conflict):  # the sidecar ends; what is not noted is delivered again
                await self._note(run, stage, lease)
            raise
        await stage.close()
        await self._note(run, stage, lease)
        if stage.playback.done or followed.leaving:
            await self._finish(followed, lease, State.DONE if stage.playback.done else State.CANCELLED)

    def _stage(self, run: Replay, channel: AppChannel, specs: Sequence[SubscriptionSpec]) -> _Stage:
        """Raises `MeshError` when there cannot be one."""
        topic = Topic(run.pubsubname, run.topic)
        component = self._components.get(topic.pubsub)
        if component is None:
            raise MeshError(f"there is no pub/sub component named {topic.pubsub}")
        if not component.scopes.may_subscribe(self._app_id, topic.name):
            raise MeshError(f"topic {topic.name} is not allowed for app id {self._app_id}")
        address = component.address(topic.name)
        headers = [(addressing.REPLAYED, run.id)]
        target: Target
        if topic.pubsub == addressing.BINDINGS:
            target, plan = self._items(topic.name, run.route, headers)
        else:
            spec = _routed(_spec(specs, topic), topic, run.route)
            policies = self._resiliency.inbound(component.name, "pubsub")
            plan = plan_of(spec, component, policies, self._app_id, component.log.features).plan
            target = EventTarget(
                address,
                spec.routing or spec.routes[0].path,
                channel,
                raw_payload=spec.raw_payload,
                headers=headers,
                app_id=self._app_id,
            )
        group = Group(self._app_id, address, f"{KIND}-{run.id}")
        gate = Gate(plan.concurrency, self._clock, lambda: deliverer.in_hand)
        deliverer = Deliverer(
            group=group,
            target=target,
            plan=plan,
            log=component.log,
            channel=channel,
            clock=self._clock,
            dead_letters=self._dead_letters,
            watch=None if self._watch is None else self._watch(group),
            telemetry=self._telemetry,
            gate=gate,
        )
        playback = Playback(
            component.log,
            address,
            run.start.start() if run.reached is None else Start(position=run.reached),
            run.to.start(),
            gate.around(deliverer.handle),
            order=plan.order,
            clock=self._clock,
            headers={addressing.REPLAYED: run.id},
        )
        gate.limit(run.rate)
        return _Stage(deliverer, gate, playback, self._clock)

    async def _note(self, run: Replay, stage: _Stage, lease: Lease) -> None:
        """How far it is. `run` is what the record said when `stage` began."""
        playback = stage.playback

        def add(record: Replay) -> Replay:
            return msgspec.structs.replace(
                record,
                reached=playback.reached or record.reached,
                reached_time=playback.time or record.reached_time,
                handled=run.handled + playback.handled,
            )

        await self.runs.change(self._app_id, run.id, add, checks=[_fence(lease, run.id)])

    async def _finish(self, followed: Followed[Replay], lease: Lease, state: State, error: str = "") -> None:
        run_id = followed.run.id
        ended = await self.runs.finish(self._app_id, run_id, state, error, checks=[_fence(lease, run_id)])
        followed.saw(ended)
        logger.info("replay %s is %s%s", run_id, state.value, f": {error}" if error else "")


class _Stage:
    """One tenure of a replay: the events, and the deliverer that takes them to the app."""

    def __init__(self, deliverer: Deliverer, gate: Gate, playback: Playback, clock: Clock) -> None:
        self.playback = playback
        self._deliverer = deliverer
        self._gate = gate
        self._clock = clock

    async def play(
        self, may_go_on: Callable[[], bool], followed: Followed[Replay], note: Callable[[], Awaitable[None]]
    ) -> None:
        """Returns when all is done, or something else is to be done first. Raises `BrokerError`, and what `note` does,
        which is called now and then."""
        self._gate.attach(self.playback)
        playing = asyncio.ensure_future(self.playback.run())
        leaving = asyncio.ensure_future(followed.until_leaving())
        try:
            while may_go_on() and not leaving.done():
                await within(self._clock, NOTE_EVERY, _first(playing, leaving))
                if playing.done():
                    playing.result()
                    return
                await note()
        finally:
            await end(playing, leaving)

    async def close(self) -> None:
        self._deliverer.drain()
        self._gate.detach()
        if not await within(self._clock, DRAIN_LIMIT, self.playback.close()):
            logger.warning("some events of a replay are still in the app's hands; they will come again")
        await self._deliverer.close()


async def _first(*futures: asyncio.Future[None]) -> None:
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)


async def _acquire(lease: Lease) -> None:
    await lease.acquire()


def _fence(lease: Lease, run_id: str) -> Check:
    """Raises `Conflict` when the lease is lost."""
    token = lease.token
    if token is None:
        raise Conflict(("lease", f"{KIND}-{run_id}"))
    return token.check()


def _spec(specs: Sequence[SubscriptionSpec], topic: Topic) -> SubscriptionSpec | None:
    return next((spec for spec in specs if (spec.pubsub, spec.topic) == topic), None)


def _routed(spec: SubscriptionSpec | None, topic: Topic, route: str | None) -> SubscriptionSpec:
    """The subscription whose plan and rules count; a `route` takes everything, whatever its filters say.

    Raises `MeshError`.
    """
    if route is None:
        if spec is None:
            raise MeshError(_not_subscribed(topic))
        return spec
    try:
        routes = (Route("", delivery_path(route)),)
    except ValueError as error:
        raise MeshError(f"the route cannot be called: {error}") from None
    if spec is None:
        origin = f"a replay to {route}"
        return SubscriptionSpec(
            pubsub=topic.pubsub, topic=topic.name, routes=routes, type="PROGRAMMATIC", origin=origin
        )
    return replace(spec, routes=routes, routing=None, filters=None)


def _not_subscribed(topic: Topic) -> str:
    return (
        f"the app does not subscribe to topic {clip(topic.name)} of {clip(topic.pubsub)}: "
        "name a route for the events to go to"
    )
