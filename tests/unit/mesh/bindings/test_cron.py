"""The cron binding over schedules in memory, by a virtual clock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from brokers.memory_alarms import MemoryAlarmClocks
from mesh.bindings.cron import CATCH_UP, SPEC, CronBinding
from mesh.errors import BrokerUnavailable, ConfigurationError
from mesh.ports.bindings import Item
from mesh.scheduling.recurrence import parse_recurrence
from tests.opened import opened
from tests.virtual_clock import VirtualClock


@pytest.mark.parametrize(
    ("schedule", "rule"),
    [
        ("@every 10ms", "must recur every 1 s at most, not every 0.01 s"),
        ("often", r"test\.yaml.*metadata\.schedule: must have six fields"),
        ("0 0 31 2 *", "must be a cron pattern"),
        ("CRON_TZ=Nowhere 0 0 * * *", "must be the name of a time zone"),
        ("0 0 * * *", "only a sidecar"),
    ],
)
def test_a_schedule_that_cannot_be(schedule: str, rule: str) -> None:
    with pytest.raises(ConfigurationError, match=rule):
        opened(SPEC, schedule=schedule)


class Replica:
    """One that runs the binding, and what it has stored."""

    def __init__(self, alarms: MemoryAlarmClocks, clock: VirtualClock, schedule: str) -> None:
        rule = parse_recurrence(schedule)
        self.binding = CronBinding("tick", rule, app_id="app1", alarms=alarms, clock=clock)
        self.items: list[Item] = []
        self.broken = False
        self._task = asyncio.create_task(self.binding.run(self.accept))

    async def accept(self, item: Item) -> None:
        if self.broken:
            raise BrokerUnavailable("gone")
        self.items.append(item)

    @property
    def times(self) -> list[float | None]:
        return [item.time for item in self.items]

    async def end(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


Runs = Callable[..., Replica]


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def runs(clock: VirtualClock) -> Runs:
    alarms = MemoryAlarmClocks(clock)

    def run(schedule: str = "* * * * * *") -> Replica:
        return Replica(alarms, clock, schedule)

    return run


async def seconds(clock: VirtualClock, count: int) -> None:
    for _ in range(count * 4):
        await clock.advance(0.25)


async def test_each_moment_goes_to_one_replica(runs: Runs, clock: VirtualClock) -> None:
    replicas = [runs() for _ in range(3)]
    await seconds(clock, 10)
    times = sorted(time for replica in replicas for time in replica.times if time is not None)
    assert len(times) in (9, 10)
    assert times == [times[0] + second for second in range(len(times))]
    for replica in replicas:
        await replica.end()


async def test_moments_of_an_interruption_come_late(runs: Runs, clock: VirtualClock) -> None:
    before = runs()
    await seconds(clock, 3)
    await before.end()
    await seconds(clock, 20)
    after = runs()
    await seconds(clock, 1)
    times = before.times + after.times
    assert times == [times[0] + second for second in range(len(times))]
    assert len(times) >= 23
    await after.end()


async def test_of_a_long_interruption_the_last_minute_comes(runs: Runs, clock: VirtualClock) -> None:
    before = runs()
    await seconds(clock, 3)
    await before.end()
    await clock.advance(3600)
    after = runs()
    await seconds(clock, 1)
    first, *rest = after.times
    assert first == before.times[-1] + 1
    assert len(rest) in (CATCH_UP, CATCH_UP + 1)
    assert rest == [rest[0] + second for second in range(len(rest))]
    await after.end()


async def test_a_moment_that_cannot_be_stored_comes_again(runs: Runs, clock: VirtualClock) -> None:
    replica = runs()
    await seconds(clock, 2)
    replica.broken = True
    await seconds(clock, 3)
    replica.broken = False
    await seconds(clock, 3)
    assert replica.times == [replica.times[0] + second for second in range(len(replica.times))]
    assert len(replica.times) >= 7
    assert len({item.id for item in replica.items}) == len(replica.items)
    await replica.end()


async def test_a_schedule_that_is_changed(runs: Runs, clock: VirtualClock) -> None:
    before = runs("@every 1s")
    await seconds(clock, 2)
    await before.end()
    after = runs("@every 5s")
    await seconds(clock, 11)
    assert len(after.times) == 2
    assert after.times[1] - after.times[0] == 5
    await after.end()


async def test_a_component_that_is_gone_leaves_no_schedule(runs: Runs, clock: VirtualClock) -> None:
    replica = runs()
    await seconds(clock, 2)
    await replica.end()
    await replica.binding.forget()
    await clock.advance(100)
    again = runs()
    await seconds(clock, 1)
    assert len(again.times) <= 1, "nothing comes late of a schedule that was given up"
    await again.end()


async def test_a_schedule_that_another_has_removed_comes_back(runs: Runs, clock: VirtualClock) -> None:
    replica = runs()
    await seconds(clock, 2)
    await replica.binding.forget()
    count = len(replica.times)
    await seconds(clock, 40)
    assert len(replica.times) > count
    await replica.end()
