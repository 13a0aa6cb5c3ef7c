"""One group of an app at work: the broker's subscription, the gate in front of it, and the deliverer behind it."""

from __future__ import annotations

import asyncio
import logging

from mesh.control.gate import Gate
from mesh.delivery.deliverer import Deliverer
from mesh.delivery.letters import DeadLetters
from mesh.delivery.plan import Plan
from mesh.delivery.target import HeaderEncoder, Target
from mesh.delivery.watch import DeliveryWatch
from mesh.errors import BrokerError
from mesh.ports import NOW, Clock, EventLog, Group, Start, Subscription
from mesh.telemetry import SILENCE, Telemetry

logger = logging.getLogger("meshwire.pubsub")

END_LIMIT = 30.0
"""Seconds that a subscription waits for an earlier one of the same group, whose events are in the app's hands."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds between attempts to start a subscription that the broker refuses; doubling."""


class Live:
    """`begin`, then `end`; each once."""

    def __init__(
        self,
        *,
        group: Group,
        target: Target,
        plan: Plan,
        log: EventLog,
        channel: HeaderEncoder,
        clock: Clock,
        dead_letters: DeadLetters | None = None,
        watch: DeliveryWatch | None = None,
        telemetry: Telemetry = SILENCE,
        start: Start = NOW,
        lasting: bool | None = None,
    ) -> None:
        """`start` is where a group that is new begins. `lasting` as in `EventLog.subscribe`; that of a broadcast is
        not, unless said otherwise."""
        self.group = group
        self.plan = plan
        self.subscription: Subscription | None = None
        """`None` until the broker has taken it."""
        self._log = log
        self._clock = clock
        self._start = start
        self._lasting = not plan.broadcast if lasting is None else lasting
        self.gate = Gate(plan.concurrency, clock, lambda: self.deliverer.in_hand)
        self.deliverer = Deliverer(
            group=group,
            target=target,
            plan=plan,
            log=log,
            channel=channel,
            clock=clock,
            dead_letters=dead_letters,
            watch=watch,
            telemetry=telemetry,
            gate=self.gate,
        )
        self._starting: asyncio.Task[None] | None = None

    def begin(self, after: asyncio.Task[None] | None = None) -> None:
        """Subscribe, in the background: what the broker refuses is tried again for ever. `after` is the end of an
        earlier one of the same group."""
        self._starting = asyncio.get_running_loop().create_task(self._subscribe(after))

    async def _subscribe(self, after: asyncio.Task[None] | None) -> None:
        if after is not None:
            await asyncio.wait([after], timeout=END_LIMIT)
        await self.gate.known.wait()
        topic, pause = self.group.topic, FIRST_PAUSE
        handler = self.gate.around(self.deliverer.handle)
        while True:
            try:
                self.subscription = await self._log.subscribe(
                    self.group,
                    handler,
                    concurrency=self.gate.allowed,
                    order=self.plan.order,
                    start=self._start,
                    lasting=self._lasting,
                )
            except Exception as error:
                logger.warning(
                    "cannot subscribe to topic %s of %s, again in %.1f s: %s",
                    topic.name,
                    topic.pubsub,
                    pause,
                    str(error) or type(error).__name__,
                    exc_info=None if isinstance(error, BrokerError) else error,
                )
            else:
                self.gate.attach(self.subscription)
                logger.info(
                    "app is subscribed to the following topics: [%s] through pubsub=%s", topic.name, topic.pubsub
                )
                return
            await self._clock.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def stands(self, within: float) -> bool:
        """Whether the broker has taken the subscription, or does so `within` seconds."""
        if self.subscription is None and self._starting is not None:
            await asyncio.wait([self._starting], timeout=within)
        return self.subscription is not None

    def give_up(self) -> None:
        """Subscribe no more, where the broker has not taken it yet."""
        if self._starting is not None:
            self._starting.cancel()

    def drain(self) -> None:
        """It will end soon: what fails from now on is tried again by whoever comes after."""
        self.deliverer.drain()

    async def end(self) -> None:
        """Take no more. Returns when what is in the app's hands is settled; cancelled, what is not comes again."""
        self.drain()
        self.give_up()
        if self._starting is not None:
            await asyncio.gather(self._starting, return_exceptions=True)
        self.gate.detach()
        try:
            if self.subscription is not None:
                await self.subscription.close()
        except asyncio.CancelledError:
            self.deliverer.abandon()
            raise
        finally:
            await self.deliverer.close()
