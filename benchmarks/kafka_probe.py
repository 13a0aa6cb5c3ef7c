"""How fast Apache Kafka is under aiokafka: the figures of docs/brokers.md, on one server of its own.

Run it as `python -P -m benchmarks.kafka_probe`, with nothing else beside it; `make kafka` first. What the mesh makes
of it is measured by the benchmark `kafka`.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aiokafka
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.structs import OffsetAndMetadata

from benchmarks.histogram import Histogram
from tests.servers import kafka_jars
from tests.servers.apache_kafka import ApacheKafka, cluster

EVENT = b"x" * 256
HEADERS = [
    ("ce_specversion", b"1.0"),
    ("ce_id", b"8a6d2f54-0000-4000-8000-000000000000"),
    ("ce_source", b"/benchmarks"),
    ("ce_type", b"io.meshwire.example.v1"),
    ("ce_time", b"2026-01-01T00:00:00Z"),
    ("content-type", b"application/json"),
]
IN_FLIGHT = 32
SECONDS = 4.0
WARM_UP = 1.0
LIMIT = 60.0
STEADY, RATE = 1500, 500
"""Events at a steady pace, and how many of them come in a second."""
UNKNOWN = {"leader": -1}
_numbers = itertools.count(1)


class Probe:
    """Clients of one server, or of a cluster."""

    def __init__(self, address: str, copies: int = 1) -> None:
        self._address, self._copies = address, copies
        self._ends: list[Callable[[], Awaitable[object]]] = []

    async def topic(self, partitions: int = 1) -> str:
        name = f"probe{next(_numbers)}"
        admin = AIOKafkaAdminClient(bootstrap_servers=self._address)
        await admin.start()
        try:
            await admin.create_topics([NewTopic(name, partitions, self._copies)])
            # a client that asks before all servers know it asks again in 5 minutes
            while any(
                part["leader"] < 0 for part in (await admin.describe_topics([name]))[0]["partitions"] or [UNKNOWN]
            ):
                await asyncio.sleep(0.01)
        finally:
            await admin.close()
        return name

    async def producer(self, **own: Any) -> AIOKafkaProducer:
        client = AIOKafkaProducer(bootstrap_servers=self._address, **{"enable_idempotence": True} | own)
        await client.start()
        self._ends.append(client.stop)
        return client

    async def consumer(self, *partitions: TopicPartition, **own: Any) -> AIOKafkaConsumer:
        given = {"enable_auto_commit": False, "auto_offset_reset": "earliest"}
        client = AIOKafkaConsumer(bootstrap_servers=self._address, **given | own)
        if partitions:
            client.assign(partitions)
        await client.start()
        self._ends.append(client.stop)
        return client

    async def close(self) -> None:
        while self._ends:
            await self._ends.pop()()


def show(what: str, figures: str) -> None:
    print(f"  {what:<66} {figures}", flush=True)


def quantiles(histogram: Histogram) -> str:
    p50, p99 = (histogram.quantile(share) / 1e6 for share in (0.5, 0.99))
    return f"p50 {p50:7.2f} ms   p99 {p99:7.2f} ms   ({histogram.count} times)"


async def timed(work: Callable[[], Awaitable[object]], seconds: float = SECONDS) -> Histogram:
    """How long `work` takes, one after another."""
    histogram = Histogram()
    begun = time.perf_counter()
    while (now := time.perf_counter()) < begun + WARM_UP + seconds:
        await work()
        if now > begun + WARM_UP:
            histogram.record(int((time.perf_counter() - now) * 1e9))
    return histogram


async def read_in(probe: Probe, topic: str) -> None:
    """Until the server's compiler has seen what is asked of it."""
    producer = await probe.producer()
    for _ in range(50):
        await asyncio.gather(*[await producer.send(topic, EVENT, headers=HEADERS) for _ in range(2000)])


async def publish(probe: Probe) -> None:
    topic = await probe.topic()
    await read_in(probe, topic)
    for name, own in (
        ("idempotent", {}),
        ("acks=all", {"enable_idempotence": False, "acks": "all"}),
        ("acks=1", {"enable_idempotence": False, "acks": 1}),
    ):
        producer = await probe.producer(**own)
        one = lambda producer=producer: producer.send_and_wait(topic, EVENT, headers=HEADERS)  # noqa: E731
        show(f"acked publish, {name}", quantiles(await timed(one)))
        histogram, stop = Histogram(), time.perf_counter() + WARM_UP + SECONDS
        cpu = 0.0

        async def worker(
            one: Callable[[], Awaitable[object]] = one, histogram: Histogram = histogram, stop: float = stop
        ) -> None:
            while (now := time.perf_counter()) < stop:
                await one()
                if now > stop - SECONDS:
                    histogram.record(int((time.perf_counter() - now) * 1e9))

        cpu -= time.process_time()
        await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))
        cpu += time.process_time()
        rate = histogram.count / SECONDS
        each = cpu / (rate * (SECONDS + WARM_UP)) * 1e6
        show(f"  {IN_FLIGHT} in flight", f"{rate:9,.0f}/s   {quantiles(histogram)}   {each:.0f} µs CPU")


async def consume(probe: Probe) -> None:
    topic = await probe.topic()
    producer = await probe.producer()
    number = 100_000
    sent = [await producer.send(topic, EVENT, headers=HEADERS) for _ in range(number)]
    await asyncio.gather(*sent)
    consumer = await probe.consumer(TopicPartition(topic, 0))
    begun, cpu, count = time.perf_counter(), time.process_time(), 0
    while count < number:
        count += sum(map(len, (await consumer.getmany(timeout_ms=1000)).values()))
    cpu = time.process_time() - cpu
    show("read what is stored", f"{number / (time.perf_counter() - begun):9,.0f}/s   {cpu / number * 1e6:.0f} µs CPU")


async def deliver(probe: Probe) -> None:
    """From the call of publish to the handler, and what another partition of the same server has to do with it."""
    for others, wait in ((0, 500), (1, 500), (1, 50)):
        topic = await probe.topic(1 + others)
        producer = await probe.producer()
        consumer = await probe.consumer(
            *(TopicPartition(topic, number) for number in range(1 + others)), fetch_max_wait_ms=wait
        )

        async def one(
            producer: AIOKafkaProducer = producer, consumer: AIOKafkaConsumer = consumer, topic: str = topic
        ) -> None:
            sending = asyncio.ensure_future(producer.send_and_wait(topic, EVENT, headers=HEADERS, partition=0))
            await consumer.getone()
            await sending

        beside = "alone" if not others else "beside an idle partition"
        show(f"publish → waiting consumer, {beside}, fetch waits {wait} ms", quantiles(await timed(one)))

        histogram = Histogram()

        async def steady(producer: AIOKafkaProducer = producer, topic: str = topic) -> None:
            begun = time.perf_counter()
            for index in range(STEADY):
                await asyncio.sleep(max(0.0, begun + index / RATE - time.perf_counter()))
                await producer.send(topic, b"%d" % time.perf_counter_ns(), headers=HEADERS, partition=0)

        sending = asyncio.create_task(steady())
        for _ in range(STEADY):
            record = await consumer.getone()
            histogram.record(time.perf_counter_ns() - int(record.value))
        await sending
        show(f"  at {RATE}/s", quantiles(histogram))
        await probe.close()


async def request(probe: Probe) -> None:
    """Both ends here: a record to the callee's own partition, one back to the caller's; nobody is in a group."""
    calls, replies = await probe.topic(), await probe.topic()
    caller, callee = await probe.producer(), await probe.producer()
    served = await probe.consumer(TopicPartition(calls, 0))
    answered = await probe.consumer(TopicPartition(replies, 0))
    waiting: dict[bytes, asyncio.Future[None]] = {}

    async def serve() -> None:
        while True:
            record = await served.getone()
            await callee.send(replies, record.value, key=record.key)

    async def receive() -> None:
        while True:
            record = await answered.getone()
            waiting.pop(record.key).set_result(None)

    async def call() -> None:
        key = b"%d" % next(_numbers)
        waiting[key] = asyncio.get_running_loop().create_future()
        await caller.send(calls, EVENT, key=key, headers=HEADERS)
        await waiting[key]

    tasks = [asyncio.create_task(serve()), asyncio.create_task(receive())]
    show("request and reply, partitions assigned by hand", quantiles(await timed(call)))
    histogram, stop = Histogram(), time.perf_counter() + SECONDS

    async def worker() -> None:
        while (now := time.perf_counter()) < stop:
            await call()
            histogram.record(int((time.perf_counter() - now) * 1e9))

    await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))
    show(f"  {IN_FLIGHT} in flight", f"{histogram.count / SECONDS:9,.0f}/s   {quantiles(histogram)}")
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def transact(probe: Probe) -> None:
    topic = await probe.topic()
    producer = await probe.producer(transactional_id=topic)

    async def one() -> None:
        async with producer.transaction():
            await producer.send_and_wait(topic, EVENT, headers=HEADERS)

    show("transaction of one record", quantiles(await timed(one)))


async def positions(probe: Probe) -> None:
    topic = await probe.topic()
    partition = TopicPartition(topic, 0)
    producer = await probe.producer()
    await asyncio.gather(*[await producer.send(topic, EVENT, timestamp_ms=1 + number) for number in range(10_000)])
    consumer = await probe.consumer(partition, group_id=topic)
    offsets = itertools.cycle(range(10_000))
    show("end offset of a partition", quantiles(await timed(lambda: consumer.end_offsets([partition]), 1.0)))
    by_time = lambda: consumer.offsets_for_times({partition: 1 + next(offsets)})  # noqa: E731
    show("offset by time", quantiles(await timed(by_time, 1.0)))
    commit = lambda: consumer.commit({partition: OffsetAndMetadata(next(offsets), "")})  # noqa: E731
    show("commit of an offset", quantiles(await timed(commit, 1.0)))


async def topics(probe: Probe) -> None:
    for partitions in (1, 16):
        histogram = Histogram()
        for _ in range(10):
            producer = await probe.producer()
            begun = time.perf_counter_ns()
            await producer.send_and_wait(await probe.topic(partitions), EVENT, partition=0)
            histogram.record(time.perf_counter_ns() - begun)
        show(f"new topic of {partitions} partitions, until its first record is stored", quantiles(histogram))
        await probe.close()


async def groups(probe: Probe, delay: str) -> None:
    """`delay` says how long the server holds back a group's first assignment."""
    topic = await probe.topic(4)
    wanted = {TopicPartition(topic, number) for number in range(4)}
    session = {"group_id": topic, "heartbeat_interval_ms": 1000, "session_timeout_ms": 6000}

    async def until(holds: Callable[[], bool]) -> str:
        begun = time.perf_counter()
        async with asyncio.timeout(LIMIT):
            while not holds():
                await asyncio.sleep(0.005)
        return f"{time.perf_counter() - begun:7.2f} s"

    begun = time.perf_counter()
    one = await probe.consumer(**session)
    one.subscribe([topic])
    await until(lambda: one.assignment() == wanted)
    show(f"first member of a group has its partitions ({delay})", f"{time.perf_counter() - begun:7.2f} s")
    code = (
        "import asyncio, sys\nfrom aiokafka import AIOKafkaConsumer\n"
        "async def main():\n"
        f"    c = AIOKafkaConsumer({topic!r}, bootstrap_servers={probe._address!r}, **{session!r})\n"
        "    await c.start(); print('started', flush=True)\n"
        "    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline); await c.stop()\n"
        "asyncio.run(main())\n"
    )

    async def second() -> asyncio.subprocess.Process:
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(sys.executable, "-P", "-c", code, stdin=pipe, stdout=pipe)
        assert process.stdout is not None
        show("  a second member joins (its process included)", await until(lambda: len(one.assignment()) == 2))
        await process.stdout.readline()
        return process

    process = await second()
    assert process.stdin is not None
    process.stdin.write(b"\n")
    show("  it leaves", await until(lambda: one.assignment() == wanted))
    await process.wait()
    process = await second()
    process.kill()
    show("  another is killed (session timeout 6 s)", await until(lambda: one.assignment() == wanted))
    await process.wait()


async def failover() -> None:
    servers = cluster(3)
    try:
        for server in servers:
            server.start(wait=False)
        for server in servers:
            server.wait_until_ready()
        addresses = ",".join(server.address for server in servers)
        probe = Probe(addresses, copies=3)
        topic = await probe.topic()
        producer = await probe.producer(request_timeout_ms=5000)

        async def one() -> None:
            await producer.send_and_wait(topic, EVENT, headers=HEADERS)

        show("three servers: acked publish, idempotent", quantiles(await timed(one)))
        leader = servers[producer.client.cluster.leader_for_partition(TopicPartition(topic, 0)) - 1]
        leader.kill()
        begun = time.perf_counter()
        async with asyncio.timeout(LIMIT):
            await one()
        show("  the partition's leader is killed: next acked publish", f"{time.perf_counter() - begun:7.2f} s")
        await probe.close()
    finally:
        for server in servers:
            server.remove()


async def main() -> None:
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    server = ApacheKafka(measured=True)
    try:
        begun = time.perf_counter()
        server.start()
        print(f"Apache Kafka {kafka_jars.VERSION}, aiokafka {aiokafka.__version__}", flush=True)
        show("a server formats its folder and starts", f"{time.perf_counter() - begun:7.2f} s")
        for measure in (publish, consume, deliver, request, transact, positions, topics):
            probe = Probe(server.address)
            await measure(probe)
            await probe.close()
        probe = Probe(server.address)
        await groups(probe, "as it comes: 3 s")
        await probe.close()
        server.configure(group_initial_rebalance_delay_ms=0)
        server.restart()
        probe = Probe(server.address)
        await groups(probe, "told not to wait")
        await probe.close()
    finally:
        server.remove()
    await failover()


if __name__ == "__main__":
    if reason := kafka_jars.missing():
        sys.exit(reason)
    asyncio.run(main())
