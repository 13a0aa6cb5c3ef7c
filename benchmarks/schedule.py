"""Schedules stored by the scheduler, from 32 tasks, beside acknowledged publishes through the sidecar.

Same server, same 1 KiB of data, under keys of their own. No route sets schedules yet, so the scheduler is in a process
of its own and is called there: what HTTP will add is not in its row, but is in that of the publishes.
"""

from __future__ import annotations

import asyncio
import random
import time

import msgspec

from benchmarks import load, stock, worker
from benchmarks.conditions import STREAM, Options, place
from benchmarks.events import DATA, HTTP_HEADERS, TOPIC, Template, request
from benchmarks.processes import Sidecar
from benchmarks.report import Cost, Row, Target, compare
from benchmarks.stock import Result, Stopwatch
from brokers.nats.alarms import NatsAlarmClocks
from brokers.nats.connection import Connection, Lookup, Servers
from mesh.clock import SystemClock
from mesh.scheduling.recurrence import parse_recurrence
from mesh.scheduling.scheduler import Schedule, Scheduler

NAME = "schedule"
CONCURRENCY = 32
WARM_UP = 0.5
NIGHTLY = Schedule(recurrence=parse_recurrence("0 0 3 * * *", "Europe/Rome"), first=time.time() + 30 * 86_400)


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Schedules from so many `tasks` at once, for `seconds`."""

    url: str
    seconds: float
    tasks: int = CONCURRENCY


def run(options: Options) -> list[Row]:
    with place(options) as here, Sidecar(here.kinds[0], here.folder / "publish.log") as sidecar:
        sidecar.wait_until_accepting()
        schedules = Row(benchmark=NAME, name="schedules stored", unit="/s", target=Target(0.5))
        publishes = Row(benchmark=NAME, name="acked publishes through the sidecar", unit="/s")
        for seconds in [WARM_UP] + [options.seconds] * options.runs:
            before = here.server.cpu()
            stored = worker.run("benchmarks.schedule", Plan(url=here.server.url, seconds=seconds), Result)
            _note(schedules, stored.events, stored.elapsed, stored.cpu, None, here.server.cpu() - before)
            stock.run(stock.Purge(url=here.server.url, purge=STREAM))
            before, sidecar_before = here.server.cpu(), sidecar.cpu()
            plan = load.Plan(
                port=sidecar.port,
                request=request(sidecar.publish_path(TOPIC), HTTP_HEADERS),
                connections=CONCURRENCY,
                seconds=seconds,
            )
            result = worker.run("benchmarks.load", plan, load.Result)
            result.check()
            cost = sidecar.cpu() - sidecar_before
            _note(publishes, result.requests, result.elapsed, result.cpu, cost, here.server.cpu() - before)
        for row in (schedules, publishes):
            del row.values[0], row.costs[0]  # the warm-up
        compare([schedules], publishes)
        return [schedules, publishes]


def _note(row: Row, count: int, elapsed: float, client: float, sidecar: float | None, server: float) -> None:
    each = 1e6 / count
    row.values.append(count / elapsed)
    row.costs.append(
        Cost(client=client * each, sidecar=None if sidecar is None else sidecar * each, server=server * each)
    )


async def _schedule(plan: Plan) -> Result:
    connection = Connection(Lookup(lambda: Servers([plan.url])), name="bench")
    await connection.start()
    clocks = NatsAlarmClocks(connection)
    scheduler = Scheduler(clocks.alarms("bench"), SystemClock())
    data = Template(DATA)
    first = number = random.randrange(10**12)
    try:
        await scheduler.schedule(("job", "first"), NIGHTLY, overwrite=True)
        stopwatch = Stopwatch()
        end = time.monotonic() + plan.seconds

        async def schedule() -> None:
            nonlocal number
            while time.monotonic() < end:
                number += 1
                await scheduler.schedule(("job", f"j{number}"), NIGHTLY, data.render(number, 0), overwrite=True)

        async with asyncio.TaskGroup() as group:
            for _ in range(plan.tasks):
                group.create_task(schedule())
        return stopwatch.stop(number - first)
    finally:
        await clocks.close()
        await connection.close()


if __name__ == "__main__":
    worker.serve(_schedule, Plan)
