"""Jobs of one app: made, looked at, removed and fired by hand; who calls the app for them is the runner."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import NamedTuple

from mesh.jobs.job import InvalidJob, Job, check_name, from_notes, to_notes
from mesh.ports import Clock
from mesh.ports.alarms import AlarmClocks
from mesh.scheduling.scheduler import Schedule, Scheduled, Scheduler

KIND = "job"
BY_HAND = "now"
"""The third part of the key of a tick that somebody asked for."""
REMOVED_AT_ONCE = 32
_PAGE = 1000


class Found(NamedTuple):
    """A job that has yet to fire, or whose tick waits for the app."""

    name: str
    job: Job
    data: bytes
    """JSON; empty when it has none."""
    due: float
    """When it fires next; seconds since the epoch."""
    number: int
    """Of that tick, from 1."""


class FoundPage(NamedTuple):
    jobs: list[Found]
    cursor: str | None


class Jobs:
    """Every method raises `InvalidJob` for a name that no job can have, `BrokerError`, `BrokerUnavailable`."""

    def __init__(self, app_id: str, alarms: AlarmClocks, clock: Clock) -> None:
        self._clock = clock
        self.scheduler = Scheduler(alarms.alarms(app_id), clock)

    async def schedule(
        self, name: str, job: Job, data: bytes = b"", *, overwrite: bool = False, trace: Mapping[str, str] = {}
    ) -> float:
        """When it fires first; returns once the broker holds it. `trace` is the one that its ticks go on with.

        Raises `AlreadyScheduled`, `MessageTooLarge`, `InvalidJob`.
        """
        check_name(name)
        job.check_policy()
        timing = job.timing(self._clock.now())
        try:
            return await self.scheduler.schedule(
                (KIND, name), timing, data, notes=to_notes(job, trace), overwrite=overwrite
            )
        except ValueError as error:
            raise InvalidJob(str(error)) from None

    async def get(self, name: str) -> Found | None:
        check_name(name)
        try:
            found = await self.scheduler.get((KIND, name))
        except ValueError as error:
            raise InvalidJob(str(error)) from None
        return None if found is None else _found(found)

    async def scan(self, prefix: str = "", *, limit: int, cursor: str | None = None) -> FoundPage:
        """Jobs whose name begins so. A page may be shorter, even empty, though more follow. Raises `ValueError` for a
        cursor of something else."""
        page = await self.scheduler.scan((KIND,), limit=limit, cursor=cursor)
        wanted = [one for one in page.schedules if len(one.key) == 2 and one.key[1].startswith(prefix)]
        return FoundPage([_found(one) for one in wanted], page.cursor)

    async def delete(self, name: str) -> bool:
        """False when there is none. A tick that is due does not come again."""
        check_name(name)
        return await self.scheduler.cancel((KIND, name))

    async def delete_all(self, prefix: str) -> int:
        """Those that were there when it began and whose name begins so; how many."""
        removed, cursor = 0, None
        while True:
            page = await self.scheduler.scan((KIND,), limit=_PAGE, cursor=cursor)
            keys = [one.key for one in page.schedules if one.key[1].startswith(prefix)]
            for start in range(0, len(keys), REMOVED_AT_ONCE):
                some = keys[start : start + REMOVED_AT_ONCE]
                cancelled = await asyncio.gather(*map(self.scheduler.cancel, some))
                removed += sum(gone for key, gone in zip(some, cancelled, strict=True) if len(key) == 2)
            cursor = page.cursor
            if cursor is None:
                return removed

    async def run(self, name: str) -> bool:
        """Have it fire at once, beside its schedule, which goes on. False when there is no such job. Who asks again
        before the app was called has asked once."""
        check_name(name)
        found = await self.scheduler.get((KIND, name))
        if found is None:
            return False
        at_once = Schedule(first=self._clock.now())
        await self.scheduler.schedule((KIND, name, BY_HAND), at_once, found.payload, notes=found.notes, overwrite=True)
        return True


def _found(one: Scheduled) -> Found:
    return Found(one.key[1], from_notes(one.notes), one.payload, one.due, one.number)
