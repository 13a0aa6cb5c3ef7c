"""The live subscriptions of this app: from their specifications to groups at the broker, and back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from mesh import ids
from mesh.delivery.bulk import Bulk, BulkRoute
from mesh.delivery.compile import plan_of
from mesh.delivery.event_target import EventTarget
from mesh.delivery.letters import DeadLetters
from mesh.delivery.live import Live
from mesh.delivery.plan import Plan
from mesh.delivery.settings import NAMES
from mesh.delivery.watch import DeliveryWatch
from mesh.errors import MeshError
from mesh.ports import AppChannel, AppRoute, Clock, Group, Topic
from mesh.pubsub import Component
from mesh.resiliency.targets import Resiliency
from mesh.subscriptions import SubscriptionSpec
from mesh.telemetry import SILENCE, Telemetry

logger = logging.getLogger("meshwire.pubsub")

KNOWN_METADATA = frozenset({"rawpayload", "filters", *NAMES})

Name = tuple[str, str]
"""Pub/sub component and topic, as the app names them."""


class Running(NamedTuple):
    """A subscription that runs, or waits for the broker to take it."""

    spec: SubscriptionSpec
    live: Live
    origins: Mapping[str, str]
    """Where each value of its plan was said."""


class _Held(NamedTuple):
    """What became of one specification; `running` is `None` when it cannot be."""

    spec: SubscriptionSpec
    component: Component | None
    running: Running | None


class Subscriber:
    """Starts and stops subscriptions. One that fails does not keep the others from starting."""

    def __init__(
        self,
        app_id: str,
        components: Mapping[str, Component],
        channel: AppChannel,
        clock: Clock,
        *,
        resiliency: Resiliency | None = None,
        dead_letters: DeadLetters | None = None,
        watch: Callable[[Group], DeliveryWatch] | None = None,
        telemetry: Telemetry = SILENCE,
    ) -> None:
        """`components` by their names; call `refresh` when they have changed. `watch` is asked once for each group."""
        self._app_id = app_id
        self._components = components
        self._channel = channel
        self._clock = clock
        self._resiliency = resiliency or Resiliency(clock=clock)
        self._dead_letters = dead_letters
        self._watch = watch
        self._telemetry = telemetry
        self._replica = ids.uuid4()
        self._specs: Sequence[SubscriptionSpec] | None = None
        self._held: dict[Name, _Held] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self.began: list[Callable[[Running], None]] = []
        """Each called before a subscription asks the broker for events."""
        self.ended: list[Callable[[Running], None]] = []
        """Each called when a subscription begins to end."""

    def running(self) -> Mapping[Name, Running]:
        """Those of this moment."""
        return {name: held.running for name, held in self._held.items() if held.running is not None}

    @property
    def stands(self) -> bool:
        """Whether the broker has taken all that run."""
        return all(running.live.subscription is not None for running in self.running().values())

    def start(self, specs: Iterable[SubscriptionSpec]) -> None:
        """Subscribe to exactly these, in the background: what the broker refuses is tried again for ever.

        A subscription that runs already, and is among them unchanged, goes on.
        """
        self._specs = list(specs)
        self.refresh()

    def refresh(self) -> None:
        """Begin anew what depends on a component that has changed. Between `stop` and `start` this does nothing."""
        if self._specs is None:
            return
        wanted = {(spec.pubsub, spec.topic): spec for spec in self._specs}
        for name in self._held.keys() - wanted.keys():
            logger.info("app is no longer subscribed to topic %s through pubsub=%s", name[1], name[0])
            self._end(self._held.pop(name))
        for name, spec in wanted.items():
            earlier, component = self._held.get(name), self._components.get(spec.pubsub)
            if earlier is None or earlier.spec != spec or earlier.component is not component:
                after = None if earlier is None else self._end(earlier)
                self._held[name] = self._begin(spec, component, after)

    def _begin(self, spec: SubscriptionSpec, component: Component | None, after: asyncio.Task[None] | None) -> _Held:
        """Once the earlier subscription of the same group has ended."""
        try:
            running = self._prepare(spec, component)
        except MeshError as error:
            logger.error("no subscription to topic %s (%s): %s", spec.topic, spec.origin, error)
            return _Held(spec, component, None)
        for tell in self.began:
            tell(running)
        running.live.begin(after)
        return _Held(spec, component, running)

    def _end(self, held: _Held) -> asyncio.Task[None] | None:
        running = held.running
        if running is None:
            return None
        running.live.drain()
        for tell in self.ended:
            tell(running)
        task = asyncio.get_running_loop().create_task(running.live.end())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        return task

    def _prepare(self, spec: SubscriptionSpec, component: Component | None) -> Running:
        """Raises `MeshError` with what to change when the subscription cannot be."""
        if component is None:
            known = ", ".join(sorted(self._components)) or "none"
            raise MeshError(f"there is no pub/sub component named {spec.pubsub} (there is: {known})")
        if not component.scopes.may_subscribe(self._app_id, spec.topic):
            raise MeshError(f"topic {spec.topic} is not allowed for app id {self._app_id}")
        unknown = sorted(name for name in spec.metadata if name.lower() not in KNOWN_METADATA)
        if unknown:
            logger.warning(
                "subscription to topic %s (%s): metadata without meaning for %s: %s",
                spec.topic,
                spec.origin,
                component.type,
                ", ".join(unknown),
            )
        compiled = plan_of(
            spec, component, self._resiliency.inbound(component.name, "pubsub"), self._app_id, component.log.features
        )
        topic = component.address(spec.topic)
        group = Group(self._app_id, topic, self._replica if compiled.plan.broadcast else "")
        live = Live(
            group=group,
            target=EventTarget(
                topic,
                spec.routing or spec.routes[0].path,
                self._channel,
                raw_payload=spec.raw_payload,
                app_id=self._app_id,
                together=None if spec.bulk is None else partial(self._together, spec, spec.bulk, compiled.plan),
            ),
            plan=compiled.plan,
            log=component.log,
            channel=self._channel,
            clock=self._clock,
            dead_letters=self._dead_letters,
            watch=None if self._watch is None else self._watch(group),
            telemetry=self._telemetry,
        )
        return Running(spec, live, compiled.origins)

    def _together(self, spec: SubscriptionSpec, bulk: Bulk, plan: Plan, route: AppRoute) -> AppRoute:
        """`route`, for several events in one call."""
        content_type = "application/octet-stream" if spec.raw_payload else "application/cloudevents+json"
        at_once = bulk._replace(events=min(bulk.events, plan.concurrency))
        return BulkRoute(route, Topic(spec.pubsub, spec.topic), at_once, content_type, self._clock)

    async def stop(self, grace: float) -> None:
        """Take no more events, and give those in the app's hands `grace` seconds to be settled.

        What is not settled by then is delivered again, to whoever is there.
        """
        self._specs = None
        for held in self._held.values():
            self._end(held)
        self._held.clear()
        ending = list(self._ending)
        if not ending:
            return
        _, late = await asyncio.wait(ending, timeout=grace)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late)
            logger.warning(
                "some events were still in the app's hands after %.0f s; they will be delivered again", grace
            )
