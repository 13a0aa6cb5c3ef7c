"""What of the scheduler takes longer than a broker is waited for."""

from __future__ import annotations

from brokers.memory_alarms import MemoryAlarmClocks
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
