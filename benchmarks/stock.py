"""The baseline: what stock nats-py does with the same server and the same stream, without any sidecar."""

from __future__ import annotations

import asyncio
import random
import time
from itertools import cycle

import msgspec
import nats
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig

from benchmarks import worker
from benchmarks.events import DATA, STORED_HEADERS, Template

BATCH = 100
"""Messages of one `fetch`."""
IN_FLIGHT = 256
"""Publishes under way at once while a topic is filled."""


class Publish(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """`await js.publish()` from `tasks` tasks, for `seconds`. `purge` names a stream to be emptied first."""

    url: str
    subject: str
    purge: str
    tasks: int = 32
    seconds: float = 3.0


class Fill(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Empty the stream `purge` and store `events` on `subject`.

    `keyed` has subjects by the keys of the events that are to be stored there in turns, in place of `subject`.
    """

    url: str
    subject: str
    purge: str
    events: int
    keyed: dict[str, str] = {}


class Consume(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """`fetch` and `ack` the `events` stored on `subject`."""

    url: str
    subject: str
    stream: str
    events: int


class Purge(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    url: str
    purge: str


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """Times in seconds, of the work alone."""

    events: int
    elapsed: float
    cpu: float


class Stopwatch:
    """Runs from its making."""

    def __init__(self) -> None:
        self._cpu = time.process_time()
        self._start = time.perf_counter()

    def stop(self, events: int) -> Result:
        elapsed = time.perf_counter() - self._start
        return Result(events=events, elapsed=elapsed, cpu=time.process_time() - self._cpu)


class Source:
    """Events with numbers of their own. Only id and data differ from one to the next."""

    def __init__(self) -> None:
        self._data = Template(DATA)
        self._number = random.randrange(10**13)

    def next(self) -> tuple[bytes, dict[str, str]]:
        self._number += 1
        return self._data.render(self._number, time.monotonic_ns()), STORED_HEADERS | {"ce-id": f"bench-{self._number}"}


async def _publish(js: JetStreamContext, plan: Publish) -> Result:
    await js.purge_stream(plan.purge)
    source = Source()
    watch = Stopwatch()
    end = time.perf_counter() + plan.seconds

    async def publish() -> int:
        count = 0
        while time.perf_counter() < end:
            data, headers = source.next()
            await js.publish(plan.subject, data, headers=headers)
            count += 1
        return count

    return watch.stop(sum(await asyncio.gather(*(publish() for _ in range(plan.tasks)))))


async def _fill(js: JetStreamContext, plan: Fill) -> Result:
    await js.purge_stream(plan.purge)
    source = Source()
    keys = cycle(plan.keyed.items())
    watch = Stopwatch()
    for start in range(0, plan.events, IN_FLIGHT):
        stored = []
        for _ in range(min(IN_FLIGHT, plan.events - start)):
            data, headers = source.next()
            subject = plan.subject
            if plan.keyed:
                key, subject = next(keys)
                headers["ce-partitionkey"] = key
            stored.append(await js.publish_async(subject, data, headers=headers))
        await asyncio.gather(*stored)
    return watch.stop(plan.events)


async def _consume(js: JetStreamContext, plan: Consume) -> Result:
    config = ConsumerConfig(ack_policy=AckPolicy.EXPLICIT, ack_wait=20, max_ack_pending=10_000)
    subscription = await js.pull_subscribe(plan.subject, durable="stock", stream=plan.stream, config=config)
    watch = Stopwatch()
    count = 0
    while count < plan.events:
        for message in await subscription.fetch(min(BATCH, plan.events - count)):
            assert message.headers is not None
            await message.ack()
            count += 1
    result = watch.stop(count)
    await js.delete_consumer(plan.stream, "stock")
    return result


async def _main(plan: Publish | Fill | Consume | Purge) -> Result:
    client = await nats.connect(plan.url)
    js = client.jetstream()
    try:
        match plan:
            case Publish():
                return await _publish(js, plan)
            case Fill():
                return await _fill(js, plan)
            case Consume():
                return await _consume(js, plan)
            case Purge():
                watch = Stopwatch()
                await js.purge_stream(plan.purge)
                return watch.stop(0)
    finally:
        await client.close()


def run(plan: Publish | Fill | Consume | Purge) -> Result:
    """In a process of its own. Raises `RuntimeError` when it fails."""
    return worker.run("benchmarks.stock", plan, Result)


if __name__ == "__main__":
    worker.serve(_main, Publish | Fill | Consume | Purge)
