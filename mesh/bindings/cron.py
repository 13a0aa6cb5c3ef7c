"""`bindings.cron`: a trigger at the moments of a schedule, which the broker holds: each moment comes once for all
replicas of an app, and those that fell into a short interruption come late."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime

from mesh import addressing
from mesh.components import ComponentSpec, Field, Setup
from mesh.errors import MeshError
from mesh.ids import utc_time
from mesh.ports import Clock
from mesh.ports.alarms import AlarmClocks
from mesh.ports.bindings import Accept, Item
from mesh.scheduling.recurrence import Cron, Every, Recurrence, parse_recurrence
from mesh.scheduling.scheduler import SHORTEST_PERIOD, AlreadyScheduled, Schedule, Scheduler, Tick

logger = logging.getLogger("meshwire.bindings")

CATCH_UP = 60.0
"""Seconds. Moments that were missed since then all come, late; of those before them only the first does."""
LOOK_AGAIN = 30.0
"""Seconds after which a replica sees whether the schedule is still there: another one may have removed it."""
RETRY = 1.0
"""Seconds after which a moment that could not be stored is tried again."""
CLOSE_LIMIT = 5.0
"""Seconds that a moment which is being stored gets at the end."""


class CronBinding:
    """An `InputBinding`; every replica runs it, and each moment is handled by one of them."""

    exclusive = False

    def __init__(self, name: str, rule: Recurrence, *, app_id: str, alarms: AlarmClocks, clock: Clock) -> None:
        self._name = name
        self._rule = rule
        self._kind = f"cron-{name}"
        self._key = (self._kind, "schedule")
        self._scheduler = Scheduler(alarms.alarms(addressing.bindings_scope(app_id)), clock)
        self._clock = clock
        self._zone = (rule.zone if isinstance(rule, Cron) else "") or "UTC"

    async def start(self) -> None: ...

    async def ping(self) -> None: ...

    async def close(self) -> None: ...

    async def forget(self) -> None:
        await self._scheduler.cancel(self._key)

    async def run(self, accept: Accept) -> None:
        await self._hold()
        firing: set[asyncio.Task[None]] = set()

        def handle(tick: Tick) -> None:
            task = asyncio.get_running_loop().create_task(self._fire(tick, accept), name=f"cron {self._name}")
            firing.add(task)
            task.add_done_callback(firing.discard)

        subscription = await self._scheduler.serve(self._kind, handle, concurrency=1)
        try:
            while True:
                await self._clock.sleep(LOOK_AGAIN)
                await self._hold()
        finally:
            try:
                async with asyncio.timeout(CLOSE_LIMIT):
                    await subscription.close()
            except TimeoutError:
                for task in firing:
                    task.cancel()

    async def _hold(self) -> None:
        """Have the broker hold the schedule as the component has it now. Replicas that differ follow the last one."""
        found = await self._scheduler.get(self._key)
        if found is not None and found.schedule.recurrence == self._rule:
            return
        try:
            due = await self._scheduler.schedule(
                self._key, Schedule(recurrence=self._rule), overwrite=found is not None
            )
        except AlreadyScheduled:
            return  # by another replica, meanwhile
        logger.info("binding %s fires by '%s', first at %s", self._name, self._rule.text, utc_time(due))

    async def _fire(self, tick: Tick, accept: Accept) -> None:
        try:
            handled = await self._catch_up(tick, accept)
        except MeshError as error:
            logger.warning("binding %s fires again in %g s: %s", self._name, RETRY, error)
            tick.retry(RETRY)
        except BaseException:
            tick.retry(0)
            raise
        else:
            tick.done(up_to=handled)

    async def _catch_up(self, tick: Tick, accept: Accept) -> float:
        """The moment up to which all have been stored."""
        moment = tick.due
        while True:
            await accept(self._item(moment))
            now = self._clock.now()
            moment = max(moment, now - CATCH_UP)
            following = tick.following(moment)
            if following is None or following > now:
                return moment
            moment = following

    def _item(self, moment: float) -> Item:
        """The id is the moment, so that one that comes again, to whichever replica, is stored once."""
        now = datetime.fromtimestamp(self._clock.now(), UTC)
        return Item(
            data=b"",
            metadata={
                "timeZone": self._zone,
                "readTimeUTC": f"{now:%Y-%m-%d %H:%M:%S.%f} +0000 UTC",  # Dapr: as Go prints it
                "scheduledTime": utc_time(moment),
            },
            id=f"{moment:.3f}",
            time=moment,
        )


def _open(setup: Setup) -> CronBinding:
    settings = setup.settings
    try:
        rule = parse_recurrence(settings["schedule"])
    except ValueError as error:
        raise settings.fault("schedule", str(error)) from None
    if isinstance(rule, Every) and not rule.months and rule.seconds < SHORTEST_PERIOD:
        raise settings.fault(
            "schedule", f"must recur every {SHORTEST_PERIOD:g} s at most, not every {rule.seconds:g} s"
        )
    if setup.alarms is None:
        raise settings.fault("schedule", "only a sidecar, with a broker that holds schedules, can fire")
    return CronBinding(setup.name, rule, app_id=setup.app_id, alarms=setup.alarms, clock=setup.clock)


SPEC = ComponentSpec(
    type="bindings.cron",
    title="Cron",
    about=(
        "Calls the app at the moments of a schedule, with an empty body and the headers `timeZone`, `readTimeUTC` and "
        "`scheduledTime`. The broker holds the schedule: each moment is stored once for all replicas of the app, and "
        "one that falls into a restart comes late. After an interruption of more than a minute, of the moments before "
        "that minute only the first comes. Without a zone the schedule is in UTC, on every machine (Dapr: local time)."
    ),
    open=_open,
    fields=(
        Field(
            "schedule",
            "A cron pattern of five fields or, with seconds first, six; `@every 15m`, not below a second; `@daily` and "
            "its like; `CRON_TZ=Europe/Rome 0 8 * * *` for a zone.",
            required=True,
        ),
    ),
    example="""\
apiVersion: dapr.io/v1alpha1
kind: Component
metadata:
  name: nightly
spec:
  type: bindings.cron
  version: v1
  metadata:
  - name: schedule
    value: "CRON_TZ=Europe/Berlin 30 2 * * *"
  - name: direction
    value: input
""",
)
