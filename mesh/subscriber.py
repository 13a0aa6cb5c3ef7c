"""The live subscriptions of this app: from their specifications to groups at the broker, and back at shutdown."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping

from mesh import addressing
from mesh.delivery import Deliverer, Plan
from mesh.errors import BrokerError, MeshError
from mesh.ports import AppChannel, Clock, Group, Subscription
from mesh.pubsub import Component
from mesh.subscriptions import SubscriptionSpec
from mesh.telemetry import SILENCE, Telemetry

logger = logging.getLogger("meshwire.pubsub")

CONCURRENCY = 64
"""Events of one subscription in the hands of the app at once."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds between attempts to start a subscription that the broker refuses; doubling."""

KNOWN_METADATA = frozenset({"rawpayload"})


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
        self._app_id = app_id
        self._components = components
        self._channel = channel
        self._clock = clock
        self._telemetry = telemetry
        self._starting: set[asyncio.Task[None]] = set()
        self._running: list[tuple[Deliverer, Subscription]] = []

    def start(self, specs: Iterable[SubscriptionSpec]) -> None:
        """Begin to subscribe, in the background: what the broker refuses is tried again for ever."""
        for spec in specs:
            try:
                component, group, deliverer = self._prepare(spec)
            except MeshError as error:
                logger.error("no subscription to topic %s (%s): %s", spec.topic, spec.origin, error)
                continue
            task = asyncio.get_running_loop().create_task(self._subscribe(component, group, deliverer))
            self._starting.add(task)
            task.add_done_callback(self._starting.discard)

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
            group,
            spec.routes[0].path,
            Plan(dead_letter=dead_letter),
            log=component.log,
            channel=self._channel,
            clock=self._clock,
            raw_payload=spec.raw_payload,
            telemetry=self._telemetry,
        )
        return component, group, deliverer

    async def _subscribe(self, component: Component, group: Group, deliverer: Deliverer) -> None:
        pause = FIRST_PAUSE
        while True:
            try:
                subscription = await component.log.subscribe(group, deliverer.handle, concurrency=CONCURRENCY)
            except BrokerError as error:
                logger.warning(
                    "cannot subscribe to topic %s of %s, again in %.1f s: %s",
                    group.topic.name,
                    component.name,
                    pause,
                    error,
                )
            else:
                self._running.append((deliverer, subscription))
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
        for task in self._starting:
            task.cancel()
        running, self._running = self._running, []
        for deliverer, _ in running:
            deliverer.drain()
        try:
            async with asyncio.timeout(grace):
                await asyncio.gather(*self._starting, return_exceptions=True)
                await asyncio.gather(*(subscription.close() for _, subscription in running))
                await asyncio.gather(*(deliverer.close() for deliverer, _ in running))
        except TimeoutError:
            logger.warning(
                "some events were still in the app's hands after %.0f s; they will be delivered again", grace
            )
