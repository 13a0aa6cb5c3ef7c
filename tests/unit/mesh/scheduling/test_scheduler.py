"""What of the scheduler takes longer than a broker is waited for, or hangs on the very moment."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from brokers.memory_alarms import MemoryAlarmClocks
from mesh.actors.schedules import Times, of_reminder
from mesh.delayed.timing import timing
from mesh.jobs.job import Job
from mesh.scheduling.scheduler import LONGEST_PAUSE, Schedule, Scheduler, Tick
from tests.virtual_clock import VirtualClock


async def test_a_long_pause_is_an_alarm_of_its_own_and_outlives_its_member() -> None:
    clock = VirtualClock()
    clocks = MemoryAlarmClocks(clock)
    scheduler = Scheduler(clocks.alarms("shop"), clock)
    ticks: list[Tick] = []

    def handle(tick: Tick) -> None:
        ticks.append(tick)
        if tick.attempt == 1:
            tick.retry(LONGEST_PAUSE + 3600)
        else:
            tick.done()

    member = await scheduler.serve("job", handle, concurrency=1)
    due = clock.now() + 1
    await scheduler.schedule(("job", "nightly"), Schedule(first=due), overwrite=False)
    await clock.advance(2)
    waiting = await scheduler.get(("job", "nightly"))
    assert waiting is not None
    assert LONGEST_PAUSE + 3599 < waiting.due - due < LONGEST_PAUSE + 3602
    await member.close()
    await clock.advance(3000)
    await scheduler.serve("job", handle, concurrency=1)
    await clock.advance(600)
    assert len(ticks) == 1
    await clock.advance(60)
    assert [(tick.attempt, tick.number, tick.due) for tick in ticks] == [(1, 1, due), (2, 1, due)]
    assert await scheduler.get(("job", "nightly")) is None
    await clocks.close()


def of_event(now: float) -> Schedule | None:
    found = timing({"deliverEvery": "@every 1s", "deliverUntil": "3s"}, now)
    return found and found.schedule


def of_actor(now: float) -> Schedule | None:
    return of_reminder(Times(period="1s", ttl="3s"), now)


@pytest.mark.parametrize("worked_out", [Job(schedule="@every 1s", ttl="3s").timing, of_actor, of_event])
async def test_a_tick_at_the_very_end_of_a_series_is_one(worked_out: Callable[[float], Schedule | None]) -> None:
    """Three ticks, as with Dapr, though some time passes between a request and what comes of it."""
    clock = VirtualClock()
    clocks = MemoryAlarmClocks(clock)
    scheduler = Scheduler(clocks.alarms("shop"), clock)
    ticks: list[float] = []

    def handle(tick: Tick) -> None:
        ticks.append(tick.due)
        tick.done()

    await scheduler.serve("job", handle, concurrency=1)
    asked = clock.now()
    schedule = worked_out(asked)
    assert schedule is not None
    await clock.advance(0.01)
    await scheduler.schedule(("job", "short"), schedule, overwrite=False)
    await clock.advance(9)
    assert ticks == [asked + 1, asked + 2, asked + 3]
    await clocks.close()
