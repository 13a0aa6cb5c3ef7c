"""Jobs in virtual time: what fires when, over pauses and outages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import cast

import pytest

from brokers.memory import MemoryEventLog
from brokers.memory_alarms import MemoryAlarmClocks
from mesh.errors import AppError, AppUnreachable
from mesh.jobs.block import Jobs
from mesh.jobs.job import DROP, FailurePolicy, Job
from mesh.jobs.runner import JobRunner
from mesh.ports import AppChannel
from tests.unit.mesh.delivery.bench import App, answer
from tests.virtual_clock import VirtualClock

HOUR = 3600.0


class Bench:
    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.app = App(self.clock)
        self.clocks = MemoryAlarmClocks(self.clock)
        self.jobs = Jobs("shop", self.clocks, self.clock)
        self.log = MemoryEventLog(self.clock)
        self.runner = self.replica()
        self.began = self.clock.now()

    def replica(self) -> JobRunner:
        return JobRunner("shop", self.jobs, cast(AppChannel, self.app), self.clock, log=self.log)

    @property
    def times(self) -> list[float]:
        """Seconds from the beginning at which the app was called."""
        return [round(moment - self.began, 2) for moment, _, _ in self.app.calls]

    async def pass_hours(self, hours: int) -> None:
        for _ in range(hours):
            await self.clock.advance(HOUR)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    bench.runner.app_is_healthy()
    await bench.clock.advance(0.01)
    yield bench
    for call in bench.app.open:
        call.cancel()
    await bench.runner.stop(1)
    await bench.clocks.close()
    await bench.log.close()


async def test_attempts_are_as_far_apart_as_the_policy_says(bench: Bench) -> None:
    bench.app.answers = [answer(500), AppError("it broke off"), answer(302), answer(200)]
    policy = FailurePolicy(interval=7.0, retries=5)
    await bench.jobs.schedule("j", Job(due_time="10s", policy=policy), b'{"a":1}')
    await bench.clock.advance(60)
    assert bench.times == pytest.approx([10.01, 17.01, 24.01, 31.01], abs=0.02)
    assert {body for _, body, _ in bench.app.calls} == {b'{"a":1}'}
    assert await bench.jobs.get("j") is None


async def test_an_interval_of_hours_outlives_the_replica(bench: Bench) -> None:
    bench.app.answers = [answer(500)]
    await bench.jobs.schedule("j", Job(due_time="1s", policy=FailurePolicy(interval=5 * HOUR, retries=1)))
    await bench.clock.advance(10)
    await bench.runner.stop(1)
    await bench.pass_hours(3)
    other = bench.replica()
    other.app_is_healthy()
    await bench.pass_hours(3)
    assert bench.times == pytest.approx([1, 5 * HOUR + 1], abs=1)
    assert b"meshwire-attempt: 2\r\n" in bench.app.calls[1][2]
    assert await bench.jobs.get("j") is None
    await other.stop(1)


async def test_missed_ticks_are_one_and_the_series_goes_on_in_its_rhythm(bench: Bench) -> None:
    await bench.runner.app_is_unhealthy(1)
    await bench.jobs.schedule("hourly", Job(schedule="@every 1h", repeats=3))
    await bench.pass_hours(10)
    assert bench.app.calls == []
    await bench.clock.advance(600)
    bench.runner.app_is_healthy()
    await bench.pass_hours(5)
    assert bench.times == pytest.approx([10 * HOUR + 600, 11 * HOUR, 12 * HOUR], abs=1)


async def test_a_slow_turn_holds_up_its_own_series_only(bench: Bench) -> None:
    bench.app.answers = [None]
    await bench.jobs.schedule("slow", Job(schedule="@every 1s", due_time="0s"))
    await bench.clock.advance(5)
    await bench.jobs.schedule("other", Job(due_time="0s"), b"1")
    await bench.clock.advance(5)
    assert [body for _, body, _ in bench.app.calls] == [b"", b"1"]
    bench.app.open[0].set_result(answer(200))
    await bench.clock.advance(1.5)
    assert len(bench.app.calls) == 3


async def test_while_nobody_listens_no_attempt_is_spent(bench: Bench) -> None:
    bench.app.answers = [AppUnreachable("nobody listens")] * 200
    await bench.jobs.schedule("j", Job(due_time="0s", policy=DROP))
    await bench.clock.advance(30)
    assert len(bench.app.calls) > 25
    assert all(b"meshwire-attempt: 1\r\n" in lines for _, _, lines in bench.app.calls)
    bench.app.answers.clear()
    await bench.clock.advance(10)
    assert await bench.jobs.get("j") is None


async def test_ten_thousand_jobs_leave_nothing_behind(bench: Bench) -> None:
    for number in range(10_000):
        await bench.jobs.schedule(f"j{number}", Job(due_time="60s"))
    before = len(asyncio.all_tasks())
    await bench.clock.advance(59)
    assert (bench.app.calls, len(asyncio.all_tasks())) == ([], before)
    await bench.clock.advance(2)
    assert len(bench.app.calls) == 10_000
    assert len(asyncio.all_tasks()) == before
    page = await bench.jobs.scan(limit=10)
    assert page.jobs == []
