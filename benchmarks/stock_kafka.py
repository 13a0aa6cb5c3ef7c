"""The baselines on Kafka: what stock aiokafka does with the same server, without any sidecar."""

from __future__ import annotations

import asyncio
import time

import msgspec
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from benchmarks import worker
from benchmarks.histogram import Histogram
from benchmarks.stock import Result, Source, Stopwatch


class Publish(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """`await producer.send_and_wait()` from `tasks` tasks, for `seconds`: idempotent, acknowledged by all replicas."""

    address: str
    topic: str
    tasks: int = 32
    seconds: float = 3.0


class Hop(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """One record after another to a consumer that waits for it, `rate` a second, for `seconds`."""

    address: str
    topic: str
    rate: float
    seconds: float = 3.0


class Hops(msgspec.Struct, frozen=True, kw_only=True):
    latencies: list[tuple[int, int]]
    """A `Histogram`'s pairs: from the call to the record's arrival, acknowledged meanwhile."""


def _headers(source: Source) -> tuple[bytes, list[tuple[str, bytes]]]:
    data, headers = source.next()
    return data, [(name.replace("ce-", "ce_"), text.encode()) for name, text in headers.items()]


async def _publish(producer: AIOKafkaProducer, plan: Publish) -> Result:
    source = Source()
    watch = Stopwatch()
    end = time.perf_counter() + plan.seconds

    async def publish() -> int:
        count = 0
        while time.perf_counter() < end:
            data, headers = _headers(source)
            await producer.send_and_wait(plan.topic, data, headers=headers)
            count += 1
        return count

    return watch.stop(sum(await asyncio.gather(*(publish() for _ in range(plan.tasks)))))


async def _hop(producer: AIOKafkaProducer, plan: Hop) -> Hops:
    source, histogram = Source(), Histogram()
    consumer = AIOKafkaConsumer(bootstrap_servers=plan.address, enable_auto_commit=False)
    await consumer.start()
    try:
        place = TopicPartition(plan.topic, 0)
        consumer.assign([place])
        await consumer.seek_to_end(place)
        start = time.perf_counter()
        for number in range(int(plan.seconds * plan.rate)):
            await asyncio.sleep(start + number / plan.rate - time.perf_counter())
            data, headers = _headers(source)
            begun = time.perf_counter_ns()
            arrival = asyncio.ensure_future(consumer.getone())
            await producer.send_and_wait(plan.topic, data, partition=0, headers=headers)
            await arrival
            histogram.record(time.perf_counter_ns() - begun)
    finally:
        await consumer.stop()
    return Hops(latencies=histogram.pairs())


async def _main(plan: Publish | Hop) -> Result | Hops:
    producer = AIOKafkaProducer(bootstrap_servers=plan.address, enable_idempotence=True)
    await producer.start()
    try:
        await producer.send_and_wait(plan.topic, b"first", partition=0)
        return await (_publish(producer, plan) if isinstance(plan, Publish) else _hop(producer, plan))
    finally:
        await producer.stop()


def publish(plan: Publish) -> Result:
    """In a process of its own. Raises `RuntimeError` when it fails."""
    return worker.run("benchmarks.stock_kafka", plan, Result)


def hop(plan: Hop) -> Hops:
    """As `publish`."""
    return worker.run("benchmarks.stock_kafka", plan, Hops)


if __name__ == "__main__":
    worker.serve(_main, Publish | Hop)
