"""Sidecars on a cluster of three Apache Kafkas, whoever of them is killed or restarted; and what holds up whom.

Two cores, which three servers, three sidecars, an app and its load share, bear the default rate; most of the time goes
into the starts of servers, half a minute each when the machine is full. For more:

    KAFKA_CHAOS_RATE=1000 KAFKA_CHAOS_CALM=3 KAFKA_CHAOS_SLOW=60 KAFKA_CHAOS_NEIGHBOURS=500 \\
        python -P -m pytest -s tests/chaos/test_kafka.py
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from mesh import addressing
from mesh.ports import Group, Topic
from tests.e2e.mesh import SINK, App, Load, Mesh, Process, Request, _Lane, subscription, until
from tests.ports import free_port
from tests.servers import kafka_jars
from tests.servers.apache_kafka import ApacheKafka, cluster

RATE = float(os.environ.get("KAFKA_CHAOS_RATE", "300"))
"""Events per second while sidecars and servers end."""
CALM = float(os.environ.get("KAFKA_CHAOS_CALM", "0.5"))
"""Seconds of load before each of these ends."""
ARRIVAL_LIMIT = 60.0
"""Seconds from the last restart in which everything must have arrived."""
SLOW = float(os.environ.get("KAFKA_CHAOS_SLOW", "10"))
"""Seconds that one handler takes."""
NEIGHBOURS = float(os.environ.get("KAFKA_CHAOS_NEIGHBOURS", "250"))
"""Events per second in its partition meanwhile."""
KEYS = 64
MOST_AT_ONCE = 100
"""Events in one request."""
TOPIC = Topic("pubsub", "A")

pytestmark = [
    pytest.mark.servers,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(kafka_jars.missing()), reason=str(kafka_jars.missing())),
]


class KeyedLoad(Load):
    """Each connection has a key of its own, and makes its next events, all at once that are due by then, when those
    before are answered: events of a key are in the order of their numbers. What is late is made, too."""

    def __init__(self, port: int, rate: float) -> None:
        super().__init__(port, rate, lanes=KEYS, target="/v1.0/publish/bulk/pubsub/A?metadata.partitionKey=key-")
        self.keys: dict[int, list[int]] = defaultdict(list)
        """The accepted ones of each key, in order."""
        self.sent: dict[int, float] = {}
        self._key = dict[_Lane, int]()
        self._asked: dict[_Lane, range] = {}

    async def _pace(self) -> None:
        started = time.monotonic()
        while True:
            due = int((time.monotonic() - started) * self._rate) - self.made
            share = min(MOST_AT_ONCE, 1 + due // KEYS)
            while due > 0 and (lane := await self._lane()) is not None:
                self._publish(lane, min(due, share))
                due -= share
            await asyncio.sleep(0.002)

    async def _lane(self) -> _Lane | None:
        """All of them in turn."""
        if len(self._idle) + len(self._busy) >= KEYS:
            return self._idle.pop(0) if self._idle else None
        idle, self._idle = self._idle, []
        lane = await super()._lane()
        self._idle = idle
        return lane

    def _publish(self, lane: _Lane, count: int) -> None:
        key = self._key.setdefault(lane, len(self._key))
        numbers = self._asked[lane] = range(self.made, self.made + count)
        self.made += count
        self.sent |= dict.fromkeys(numbers, time.monotonic())
        lane.number = numbers[-1]
        self._busy.add(lane)
        entry = '{"entryId": "%d", "contentType": "application/json", "event": {"n":%d}}'
        body = f"[{','.join(entry % (number, number) for number in numbers)}]".encode()
        head = self._head.replace(b" HTTP/", b"%d HTTP/" % key, 1)
        lane.transport.write(b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body))

    def answered(self, lane: _Lane, status: bytes) -> None:
        if status == b"204":
            self.accepted |= set(self._asked[lane])
            self.keys[self._key[lane]] += self._asked[lane]
        super().answered(lane, status)


def out_of_order(arrived: Iterable[int], load: KeyedLoad) -> list[tuple[int, int]]:
    """Neighbours of one key that came the wrong way round, as they first came."""
    first = {number: place for place, number in reversed(list(enumerate(arrived)))}
    return [
        (earlier, later)
        for numbers in load.keys.values()
        for earlier, later in itertools.pairwise(numbers)
        if first[earlier] > first[later]
    ]


@asynccontextmanager
async def admin_of(server: ApacheKafka) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(bootstrap_servers=server.address)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


async def in_sync(server: ApacheKafka, servers: int) -> None:
    """Returns when every partition has all its copies: until then nobody would restart the next server."""
    async with asyncio.timeout(60):
        while True:
            try:
                async with admin_of(server) as admin:
                    topics = await admin.describe_topics()
            except Exception as error:  # whatever aiokafka says of servers that come and go
                print("not in sync:", error)
            else:
                partitions = [partition for topic in topics for partition in topic["partitions"]]
                if partitions and all(len(partition["isr"]) == servers for partition in partitions):
                    return
            await asyncio.sleep(0.2)


async def test_sidecars_and_servers_are_killed_and_restarted_under_load(tmp_path: Path) -> None:
    """Every event that was accepted arrives, those of a key in order."""
    servers = cluster(3, auto_create_topics_enable="false", group_initial_rebalance_delay_ms=0)
    seen, port = tmp_path / "seen", free_port()
    seen.touch()

    def arrived() -> list[int]:
        return [int(line) for line in seen.read_bytes().split()]

    async def flows() -> None:
        before = len(arrived())
        await until(lambda: len(arrived()) > before + 20, lambda: "nothing arrives any more")
        await asyncio.sleep(CALM)

    try:
        for server in servers:
            server.start(wait=False)
        for server in servers:
            await asyncio.to_thread(server.wait_until_ready)
        async with Mesh(tmp_path, servers[0]) as mesh:
            options = {
                "broker": f"kafka://{','.join(server.address for server in servers)}",
                "MESHWIRE_REPLICAS": "3",
            }
            app = Process(tmp_path, "app", [*SINK, str(port), str(seen)], {}).start()
            mesh.processes.append(app)
            victim = await mesh.sidecar("sub", app=port, topics=["A"], name="victim", **options)
            await mesh.sidecar("sub", app=port, topics=["A"], name="other", **options)
            pub = await mesh.sidecar("pub", **options)
            began = time.monotonic()
            async with KeyedLoad(pub.port, RATE) as load:
                await flows()
                victim.kill()
                await flows()
                victim.start()
                await flows()
                servers[1].kill()
                await flows()
                await asyncio.to_thread(servers[1].start)
                for server in servers:
                    await in_sync(server, 3)
                    await flows()
                    await asyncio.to_thread(server.restart)
                restarted = time.monotonic()
                await flows()
            lasted = time.monotonic() - began
            while missing := load.accepted - set(arrived()):
                assert time.monotonic() < restarted + ARRIVAL_LIMIT, f"{len(missing)} lost: {sorted(missing)[:20]}"
                await asyncio.sleep(0.1)
            late = time.monotonic() - restarted
            numbers = arrived()
            print(
                f"{len(load.accepted)} of {load.made} accepted in {lasted:.0f} s, {len(load.accepted) / lasted:.0f}/s "
                f"(requests that were not: {dict(load.refused)}), all seen "
                f"{late:.1f} s after the last restart, {len(numbers) - len(set(numbers))} repeats"
            )
            assert len(load.accepted) > 0.5 * RATE * lasted
            assert not out_of_order(numbers, load)
    finally:
        for server in servers:
            server.remove()


# What holds up whom


class Handled:
    """An app in this process that one event keeps busy, another one harms, and all others pass at once."""

    def __init__(self) -> None:
        self.arrived: dict[Any, float] = {}
        """When each event's number came first."""
        self.finished: dict[Any, float] = {}
        """When the app had said its last word on it."""
        self.letters: list[Any] = []

    async def __call__(self, request: Request) -> int:
        number = request.event["data"]["n"]
        if request.path == "/dead":
            self.letters.append(number)
            return 200
        self.arrived.setdefault(number, time.monotonic())
        if number == "slow":
            await asyncio.sleep(SLOW)
        self.finished[number] = time.monotonic()
        return 500 if number == "poison" else 200


class Watch:
    """What a client that has nothing to do with the mesh sees of a group's committed offset."""

    def __init__(self, server: ApacheKafka, group: str, partition: TopicPartition) -> None:
        self.seen: list[tuple[float, int]] = []
        """An answer's moment, and the offset."""
        self._server, self._group, self._partition = server, group, partition

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _watch(self) -> None:
        async with admin_of(self._server) as admin:
            while True:
                stored = await admin.list_consumer_group_offsets(self._group, partitions=[self._partition])
                self.seen.append((time.monotonic(), stored[self._partition].offset))
                await asyncio.sleep(0.05)

    async def stored(self) -> list[Any]:
        """What each event in the partition is a number of, by its offset."""
        consumer = AIOKafkaConsumer(bootstrap_servers=self._server.address)
        await consumer.start()
        try:
            consumer.assign([self._partition])
            await consumer.seek_to_beginning()
            end = (await consumer.end_offsets([self._partition]))[self._partition]
            found: list[Any] = []
            while await consumer.position(self._partition) < end:
                for record in (await consumer.getmany(timeout_ms=1000)).get(self._partition, []):
                    assert record.offset == len(found)
                    found.append(json.loads(record.value)["data"]["n"])
            return found
        finally:
            await consumer.stop()


def p99(delays: Sequence[float]) -> float:
    return sorted(delays)[len(delays) * 99 // 100]


async def test_one_slow_event_and_one_that_fails_hold_up_no_other_key_of_their_partition(tmp_path: Path) -> None:
    """And no committed offset ever passes an event that is not done."""
    server = ApacheKafka(auto_create_topics_enable="false", group_initial_rebalance_delay_ms=0)
    handled = Handled()
    wanted = subscription(deadLetterTopic="dead", metadata={"maxAttempts": "3", "backOffDuration": "500ms"})
    try:
        server.start()
        async with App([wanted, subscription("dead")], handled) as app, Mesh(tmp_path, server) as mesh:
            sub = mesh.add("sub", app=app)
            prefix = sub.environment["MESHWIRE_PREFIX"]
            topic = addressing.kafka_event_topic(prefix, addressing.DEFAULT_NAMESPACE, TOPIC)
            async with admin_of(server) as admin:
                await admin.create_topics([NewTopic(topic, 1, 1)])
            await sub.start().ready("A", "dead")
            pub = await mesh.sidecar("pub")
            group = addressing.kafka_group(prefix, addressing.DEFAULT_NAMESPACE, Group("sub", TOPIC))
            watch = Watch(server, group, TopicPartition(topic, 0))
            async with watch.watching():
                async with KeyedLoad(pub.port, NEIGHBOURS) as load:
                    await until(lambda: len(handled.arrived) > NEIGHBOURS, lambda: "nothing arrives")
                    began = time.monotonic()
                    await asyncio.sleep(3)
                    disturbed = time.monotonic()
                    for number, key in (("slow", "slow"), ("after slow", "slow"), ("poison", "poison")):
                        await pub.publish(b'{"n":"%b"}' % number.encode(), query=f"?metadata.partitionKey={key}")
                    await until(lambda: "slow" in handled.finished, lambda: sub.log, SLOW + 30)
                    over = time.monotonic()
                done = load.accepted | {"slow", "after slow", "poison"}
                await until(lambda: handled.finished.keys() >= done, lambda: sub.log)
                stored = await watch.stored()
                await until(lambda: watch.seen[-1][1] == len(stored), lambda: f"{watch.seen[-1]} of {len(stored)}")
            assert handled.letters == ["poison"]
            assert handled.finished["after slow"] > handled.finished["slow"]

            finished = list(itertools.accumulate((handled.finished[number] for number in stored), max))
            passed = [(moment, offset) for moment, offset in watch.seen if offset > 0 and finished[offset - 1] > moment]
            assert not passed, "an offset was committed beyond an event that was not done"
            assert stored.index("slow") in {offset for _, offset in watch.seen}

            def delays(since: float, before: float) -> list[float]:
                return [
                    handled.arrived[number] - load.sent[number]
                    for number in load.accepted
                    if since < load.sent[number] < before
                ]

            calm, meanwhile = delays(began, disturbed), delays(disturbed, over)
            print(
                f"{len(meanwhile) / (over - disturbed):.0f} events/s beside a handler of {SLOW:.0f} s: "
                f"p99 {1e3 * p99(meanwhile):.0f} ms, longest {1e3 * max(meanwhile):.0f} ms; "
                f"p99 before {1e3 * p99(calm):.0f} ms; {len(watch.seen)} offsets seen, none beyond what was done"
            )
            assert max(meanwhile) < SLOW / 2
    finally:
        server.remove()
