"""Calls the app for its jobs that are due, side by side with the other replicas."""

from __future__ import annotations

import asyncio
import logging
from functools import partial

from mesh import addressing
from mesh.delivery.deliverer import Deliverer
from mesh.delivery.letters import Letter
from mesh.delivery.plan import CONCURRENCY, Plan
from mesh.jobs.block import KIND, Jobs
from mesh.jobs.target import TOPIC, JobDelivery, JobTarget
from mesh.persistence import persist
from mesh.ports import AppChannel, Clock, EventLog, Group, Topic
from mesh.ports.alarms import AlarmSubscription
from mesh.scheduling.scheduler import Tick
from mesh.telemetry import SILENCE, Telemetry

logger = logging.getLogger("meshwire.jobs")


class Dropped:
    """The `DeadLetters` of jobs: a tick whose attempts are exhausted is told of, and the series goes on (Dapr)."""

    async def keep(self, letter: Letter) -> None:
        logger.error("job %s is dropped after %d attempts: %s", letter.position, letter.attempts, letter.text)


class JobRunner:
    """Takes ticks while the app is healthy; those that become due meanwhile wait."""

    def __init__(
        self,
        app_id: str,
        jobs: Jobs,
        channel: AppChannel,
        clock: Clock,
        *,
        log: EventLog,
        telemetry: Telemetry = SILENCE,
    ) -> None:
        """`log` is that of the backbone; nothing of a job gets there."""
        self._jobs = jobs
        self._channel = channel
        self._clock = clock
        self._log = log
        self._telemetry = telemetry
        self._group = Group(app_id, Topic(addressing.JOBS, TOPIC))
        self._target = JobTarget(channel)
        self._working: _Turn | None = None
        self._stopped = False

    def app_is_healthy(self) -> None:
        """Take jobs, in the background. Does nothing when that is done already."""
        if self._working is None and not self._stopped:
            self._working = _Turn(self._jobs, self._deliverer(), self._clock)

    async def app_is_unhealthy(self, grace: float) -> None:
        """Take no more. Those in the app's hands get `grace` seconds; what is not settled by then comes again."""
        working, self._working = self._working, None
        if working is None:
            return
        try:
            async with asyncio.timeout(grace):
                await working.end()
        except TimeoutError:
            logger.warning("some jobs were still in the app's hands after %.0f s; they will come again", grace)

    async def stop(self, grace: float) -> None:
        self._stopped = True
        await self.app_is_unhealthy(grace)

    def _deliverer(self) -> Deliverer:
        return Deliverer(
            group=self._group,
            target=self._target,
            plan=Plan(),
            log=self._log,
            channel=self._channel,
            clock=self._clock,
            dead_letters=Dropped(),
            telemetry=self._telemetry,
        )


class _Turn:
    """From when the app is healthy until it is not."""

    def __init__(self, jobs: Jobs, deliverer: Deliverer, clock: Clock) -> None:
        self._jobs = jobs
        self._deliverer = deliverer
        self._clock = clock
        self._subscription: AlarmSubscription | None = None
        self._starting = asyncio.get_running_loop().create_task(self._serve(), name="take jobs")

    async def _serve(self) -> None:
        def handle(tick: Tick) -> None:
            self._deliverer.handle(JobDelivery(tick))

        serve = partial(self._jobs.scheduler.serve, KIND, handle, concurrency=CONCURRENCY)
        self._subscription = await persist(serve, self._clock, "jobs cannot be taken", logger)

    async def end(self) -> None:
        self._deliverer.drain()
        self._starting.cancel()
        await asyncio.gather(self._starting, return_exceptions=True)
        try:
            if self._subscription is not None:
                await self._subscription.close()
        except asyncio.CancelledError:
            self._deliverer.abandon()
            raise
        finally:
            await self._deliverer.close()
