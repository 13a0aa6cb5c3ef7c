"""The live subscriptions of this app: from their specifications to groups at the broker, and back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence

from mesh import addressing
from mesh.delivery import Deliverer, EventTarget, Plan
from mesh.delivery.plan import CONCURRENCY as CONCURRENCY
from mesh.errors import BrokerError, MeshError
from mesh.ports import AppChannel, Clock, Group, Subscription
from mesh.pubsub import Component
from mesh.subscriptions import SubscriptionSpec
from mesh.telemetry import SILENCE, Telemetry

logger = logging.getLogger("meshwire.pubsub")

END_LIMIT = 30.0
"""Seconds that a subscription waits for an earlier one to the same topic, whose events are in the app's hands."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds between attempts to start a subscription that the broker refuses; doubling."""

KNOWN_METADATA = frozenset({"rawpayload", "filters"})


class _Live:
    """What became of one specification: a subscription that runs, is being started, or cannot be."""

    def __init__(self, spec: SubscriptionSpec, component: Component | None) -> None:
        self.spec = spec
        self.component = component
        self.deliverer: Deliverer | None = None
        self.subscription: Subscription | None = None
        self.starting: asyncio.Task[None] | None = None

    async def end(self) -> None:
        """Take no more events. Returns when those in the app's hands are settled."""
        if self.starting is not None:
            self.starting.cancel()
            await asyncio.gather(self.starting, return_exceptions=True)
        if self.subscription is not None:
            await self.subscription.close()
        if self.deliverer is not None:
            await self.deliverer.close()


class Subscriber:
    """Starts and stops subscriptions. One that fails does not keep the others from starting."""

    def __init__(
        self,
        app_id: str,
        components: Mapping[str, Component],
        channel: AppChannel,
        clock: Clock,
        *,
        telemetry: Telemetry = SILENCE,
    ) -> None:
        """`components` by their names; call `refresh` when they have changed."""
        self._app_id = app_id
        self._components = components
        self._channel = channel
        self._clock = clock
        self._telemetry = telemetry
        self._specs: Sequence[SubscriptionSpec] | None = None
        self._live: dict[tuple[str, str], _Live] = {}
        self._ending: set[asyncio.Task[None]] = set()

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
        for key in self._live.keys() - wanted.keys():
            logger.info("app is no longer subscribed to topic %s through pubsub=%s", key[1], key[0])
            self._end(self._live.pop(key))
        for key, spec in wanted.items():
            earlier, component = self._live.get(key), self._components.get(spec.pubsub)
            if earlier is None or earlier.spec != spec or earlier.component is not component:
                self._begin(key, _Live(spec, component), None if earlier is None else self._end(earlier))

    def _begin(self, key: tuple[str, str], live: _Live, earlier: asyncio.Task[None] | None) -> None:
        """Once the earlier subscription of the same group has ended."""
        self._live[key] = live
        spec = live.spec
        try:
            component, group, live.deliverer = self._prepare(spec)
        except MeshError as error:
            logger.error("no subscription to topic %s (%s): %s", spec.topic, spec.origin, error)
            return
        subscribing = self._subscribe(live, component, group, live.deliverer, earlier)
        live.starting = asyncio.get_running_loop().create_task(subscribing)

    def _end(self, live: _Live) -> asyncio.Task[None]:
        if live.deliverer is not None:
            live.deliverer.drain()
        task = asyncio.get_running_loop().create_task(live.end())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        return task

    def _prepare(self, spec: SubscriptionSpec) -> tuple[Component, Group, Deliverer]:
        """Raises `MeshError` with what to change when the subscription cannot be."""
        component = self._components.get(spec.pubsub)
        if component is None:
            known = ", ".join(sorted(self._components)) or "none"
            raise MeshError(f"there is no pub/sub component named {spec.pubsub} (there is: {known})")
        if not component.scopes.may_subscribe(self._app_id, spec.topic):
            raise MeshError(f"topic {spec.topic} is not allowed for app id {self._app_id}")
        dead_letter = None
        if spec.dead_letter_topic:
            if not component.scopes.may_publish(self._app_id, spec.dead_letter_topic):
                raise MeshError(
                    f"its dead letter topic {spec.dead_letter_topic} is not allowed for app id {self._app_id}; "
                    "allow publishing to it in the component's scopes"
                )
            dead_letter = component.address(spec.dead_letter_topic)
            addressing.check_topic(dead_letter.name)
        unknown = sorted(name for name in spec.metadata if name.lower() not in KNOWN_METADATA)
        if unknown:
            logger.warning(
                "subscription to topic %s (%s): metadata without meaning for %s: %s",
                spec.topic,
                spec.origin,
                component.type,
                ", ".join(unknown),
            )
        address = component.address(spec.topic)
        addressing.check_topic(address.name)
        group = Group(self._app_id, address)
        deliverer = Deliverer(
            group=group,
            target=EventTarget(
                address,
                spec.routing or spec.routes[0].path,
                self._channel,
                raw_payload=spec.raw_payload,
                app_id=self._app_id,
            ),
            plan=Plan(attempts=None if dead_letter is None else 1, dead_letter=dead_letter),
            log=component.log,
            channel=self._channel,
            clock=self._clock,
            telemetry=self._telemetry,
        )
        return component, group, deliverer

    async def _subscribe(
        self,
        live: _Live,
        component: Component,
        group: Group,
        deliverer: Deliverer,
        earlier: asyncio.Task[None] | None,
    ) -> None:
        if earlier is not None:
            await asyncio.wait([earlier], timeout=END_LIMIT)
        pause = FIRST_PAUSE
        while True:
            try:
                live.subscription = await component.log.subscribe(group, deliverer.handle, concurrency=CONCURRENCY)
            except BrokerError as error:
                logger.warning(
                    "cannot subscribe to topic %s of %s, again in %.1f s: %s",
                    group.topic.name,
                    component.name,
                    pause,
                    error,
                )
            else:
                logger.info(
                    "app is subscribed to the following topics: [%s] through pubsub=%s",
                    group.topic.name,
                    component.name,
                )
                return
            await self._clock.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def stop(self, grace: float) -> None:
        """Take no more events, and give those in the app's hands `grace` seconds to be settled.

        What is not settled by then is delivered again, to whoever is there.
        """
        self._specs = None
        for live in self._live.values():
            self._end(live)
        self._live.clear()
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
