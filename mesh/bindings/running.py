"""One input binding in use: its source, the store between, and the delivery to the app."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from hashlib import blake2b

import msgspec

from mesh import addressing, spans
from mesh.bindings import item as items
from mesh.bindings.component import BindingComponent
from mesh.bindings.reply import Follow
from mesh.bindings.source import Source
from mesh.bindings.target import BindingTarget
from mesh.delivery import DeadLetters, DeliveryWatch, Plan
from mesh.delivery.compile import compile_plan
from mesh.delivery.letters import Letter, Reason
from mesh.delivery.live import Live
from mesh.envelope import hop_headers
from mesh.errors import AppError, BrokerError, MeshError, MessageTooLarge, clip
from mesh.ports import OLDEST, AppChannel, Clock, EventLog, Feature, Group, Message
from mesh.ports.bindings import InputBinding, Item
from mesh.ports.tables import Tables
from mesh.pubsub import PublishWatch
from mesh.resiliency.targets import Resiliency
from mesh.telemetry import SILENCE, Telemetry

logger = logging.getLogger("meshwire.bindings")

ASK_TIMEOUT = 3.0
"""Seconds that the app has to say whether it wants an input (Dapr)."""
FORGET_LIMIT = 5.0
"""Seconds."""


class Surroundings(msgspec.Struct, frozen=True, kw_only=True):
    """What all input bindings of a sidecar have in common."""

    app_id: str
    log: EventLog
    tables: Tables
    clock: Clock
    channel: AppChannel | None
    """`None`: there is no app here. What is accepted waits for a replica that has one."""
    resiliency: Resiliency
    follow: Follow
    dead_letters: DeadLetters | None = None
    watch: Callable[[Group], DeliveryWatch] | None = None
    """Makes the watch of a group."""
    accepted: PublishWatch | None = None
    """Who wants to know which items are stored."""
    telemetry: Telemetry = SILENCE
    began: Callable[[Live], None] = lambda live: None
    """Told of each delivery to the app before it begins,"""
    ended: Callable[[Live], None] = lambda live: None
    """and when it ends."""


def plan_of(component: BindingComponent, resiliency: Resiliency, features: frozenset[Feature]) -> Plan:
    """By which the items of an input are delivered. `features` are those of the backbone's log.

    Raises `ConfigurationError`, with the place.
    """
    policies = resiliency.inbound(component.name, "bindings")
    return compile_plan(component.statements, {}, policies, features=features).plan


class RunningInput:
    def __init__(self, component: BindingComponent, binding: InputBinding, around: Surroundings) -> None:
        """Raises `MeshError` for what can be no input of this app."""
        self.component = component
        self._around = around
        self._topic = addressing.binding_topic(around.app_id, component.name)
        self._group = Group(around.app_id, self._topic)
        self._target: BindingTarget | None = None
        self._plan = plan_of(component, around.resiliency, around.log.features)
        if around.channel is not None:
            self._target = BindingTarget(component, around.channel, around.app_id, around.follow)
        refuses = around.dead_letters is None or getattr(binding, "refuses", False)
        accept = self.store if refuses else self.accept
        self._source = Source(around.app_id, component.name, binding, accept, tables=around.tables, clock=around.clock)
        self._why_not = ""
        """Why the source does not run."""
        self._delivering: asyncio.Task[None] | None = None
        self.live: Live | None = None
        """The delivery to the app, while there is one."""

    @property
    def source(self) -> str:
        """What its source does, in one line, for people."""
        return self._why_not or self._source.status

    @property
    def delivery(self) -> str:
        if self.live is not None and self.live.subscription is not None:
            return "running" if self.live.gate.allowed else "paused"
        return "starting" if self._delivering is not None and not self._why_not else "not running"

    async def accept(self, item: Item) -> None:
        """Store the item, or keep it as a dead letter when it is too large for the broker: its source would offer it
        for ever, and nothing behind it. Raises `BrokerError`."""
        message = self._message(item)
        try:
            await self._publish(message)
        except MessageTooLarge as error:
            await self._bury(message, error)

    async def store(self, item: Item) -> None:
        """Raises `BrokerError`; `MessageTooLarge` for an item that will never be stored."""
        await self._publish(self._message(item))

    def _message(self, item: Item) -> Message:
        return items.message(self.component.name, item, self._around.clock.now())

    async def _publish(self, message: Message) -> None:
        items.check(message)
        topic, tracer = self._topic, self._around.telemetry.tracer
        with spans.publishing(tracer, topic.pubsub, topic.name, None) as span:
            if span.context is not None:
                message = msgspec.structs.replace(message, headers=hop_headers(span.context, None))
            began, accepted = self._around.clock.now(), self._around.accepted
            try:
                position = await self._around.log.publish(topic, message)
            except BrokerError as error:
                if accepted is not None:
                    accepted.refused(topic, message, error, began)
                raise
            if accepted is not None:
                accepted.stored(topic, message, position, began)

    async def _bury(self, message: Message, error: MessageTooLarge) -> None:
        letters, now, name = self._around.dead_letters, self._around.clock.now(), str(message.attributes["id"])
        assert letters is not None  # noqa: S101 - else nobody calls this
        # The broker gives it no position. The same item must become the same letter.
        position = f"oversized-{blake2b(name.encode(), digest_size=8).hexdigest()}"
        await letters.keep(
            Letter(
                group=self._group,
                topic=self._topic,
                position=position,
                stored=now,
                message=message,
                reason=Reason.OVERSIZED,
                text=str(error),
                first_failure=now,
                last_failure=now,
            )
        )
        logger.error("item %s of binding %s became a dead letter: %s", clip(name), self.component.name, error)

    def begin(self) -> None:
        """Run the source, unless the app has to be asked first."""
        if not self.component.ask:
            self._source.begin()
        elif self._target is None:
            self._why_not = "not started: there is no app to ask whether it wants it; set its direction"
            logger.warning("binding %s is %s", self.component.name, self._why_not)
        else:
            self._why_not = "not started: the app was not asked yet whether it wants it"

    def begin_delivery(self) -> None:
        """In the background: ask the app, if it has to be asked; if it wants the binding, run its source, and deliver.
        Does nothing when it is done already."""
        if self._delivering is None and self._target is not None:
            work = self._ask_and_deliver(self._target)
            self._delivering = asyncio.get_running_loop().create_task(work, name=f"deliver {self.component.name}")

    async def end(self) -> None:
        """The source first, then the delivery. Returns when nothing is under way any more."""
        await self._source.end()
        await self.end_delivery()

    async def forget(self) -> None:
        """The component is gone for good. To be called after `end`."""
        forget = getattr(self.component.input, "forget", None)
        if forget is None:
            return
        try:
            async with asyncio.timeout(FORGET_LIMIT):
                await forget()
        except (MeshError, TimeoutError) as error:
            logger.warning("what binding %s kept could not be removed: %s", self.component.name, error or "no answer")

    async def end_delivery(self) -> None:
        """Take no more items to the app. Returns when those in its hands are settled."""
        task, self._delivering = self._delivering, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        live, self.live = self.live, None
        if live is not None:
            self._around.ended(live)
            await live.end()

    async def _ask_and_deliver(self, target: BindingTarget) -> None:
        if self.component.ask:
            self._why_not = await self._refusal()
            if self._why_not:
                logger.info("binding %s is %s", self.component.name, self._why_not)
                await self._source.end()
                return
        self._source.begin()
        around = self._around
        self.live = Live(
            group=self._group,
            target=target,
            plan=self._plan,
            log=around.log,
            channel=target.channel,
            clock=around.clock,
            dead_letters=around.dead_letters,
            watch=None if around.watch is None else around.watch(self._group),
            telemetry=around.telemetry,
            start=OLDEST,  # what was accepted before there was a group waits for it
        )
        around.began(self.live)
        self.live.begin()

    async def _refusal(self) -> str:
        """Why the app does not get the binding; empty when it wants it (Dapr: 2xx and 405)."""
        assert self._around.channel is not None  # noqa: S101 - there is a target
        try:
            answer = await self._around.channel.request("OPTIONS", self.component.route, timeout=ASK_TIMEOUT)
        except (AppError, MeshError) as error:
            return f"not started: the app was asked whether it wants it: {error}"
        if 200 <= answer.status < 300 or answer.status == 405:
            return ""
        return f"not started: the app answered {answer.status} to OPTIONS {self.component.route}: it does not want it"
