"""The baseline of state: `put` and `get` of stock nats-py's key/value bucket, without any sidecar."""

from __future__ import annotations

import asyncio
import random
import time

import msgspec
import nats
from nats.js.kv import KeyValue

from benchmarks import worker
from benchmarks.events import DATA, Template
from benchmarks.stock import Result, Stopwatch

BUCKET = "bench"
KEY = "bench"
"""The key that is read."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """From so many `tasks` at once, for `seconds`: puts of the benchmarks' data under keys of their own, or gets of
    one key."""

    url: str
    gets: bool
    seconds: float = 3.0
    tasks: int = 32


async def _puts(bucket: KeyValue, plan: Plan) -> int:
    template = Template(DATA)
    number = random.randrange(10**12)
    first = number
    end = time.monotonic() + plan.seconds

    async def put() -> None:
        nonlocal number
        while time.monotonic() < end:
            number += 1
            await bucket.put(f"k{number}", template.render(number, 0))

    async with asyncio.TaskGroup() as group:
        for _ in range(plan.tasks):
            group.create_task(put())
    return number - first


async def _gets(bucket: KeyValue, plan: Plan) -> int:
    await bucket.put(KEY, DATA)
    count = 0
    end = time.monotonic() + plan.seconds

    async def get() -> None:
        nonlocal count
        while time.monotonic() < end:
            entry = await bucket.get(KEY)
            assert entry.value == DATA
            count += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(plan.tasks):
            group.create_task(get())
    return count


async def _main(plan: Plan) -> Result:
    client = await nats.connect(plan.url)
    try:
        bucket = await client.jetstream().create_key_value(bucket=BUCKET, direct=True)
        stopwatch = Stopwatch()
        return stopwatch.stop(await (_gets if plan.gets else _puts)(bucket, plan))
    finally:
        await client.close()


def run(plan: Plan) -> Result:
    """In a process of its own. Raises `RuntimeError` when it fails."""
    return worker.run("benchmarks.stock_kv", plan, Result)


if __name__ == "__main__":
    worker.serve(_main, Plan)
