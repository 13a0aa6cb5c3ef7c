"""What the event log on Kafka promises when its server fails, its topics change, or members die."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from itertools import count

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import RecordsToDelete

from brokers.kafka import event_log, lane, member
from brokers.kafka.connection import Connection
from brokers.kafka.event_log import KafkaEventLog
from brokers.kafka.offsets import decode
from mesh import addressing
from mesh.errors import BrokerError, BrokerUnavailable, InvalidEvent, MessageTooLarge
from mesh.ports import OLDEST, Delivery, EventLog, Group, Message, Mode, Order, Topic
from tests.contract.implementations import kafka_event_log
from tests.contract.inbox import Inbox
from tests.servers import kafka_jars
from tests.servers.apache_kafka import ApacheKafka

pytestmark = pytest.mark.servers

ORDERS = Topic("pubsub", "orders")
SHIPPING = Group("shipping", ORDERS)
LIMIT = 60.0
"""Seconds for anything that should happen."""

namespaces = (f"faults{number}" for number in count(1))


def raw(payload: str | bytes, **options: object) -> Message:
    data = payload.encode() if isinstance(payload, str) else payload
    return Message(mode=Mode.RAW, payload=data, **options)  # type: ignore[arg-type]


def keep(delivery: Delivery) -> None:
    """Leave it unsettled."""


def inbox(settle: Callable[[Delivery], None] = lambda delivery: delivery.ack()) -> Inbox:
    return Inbox(settle, time.monotonic)


async def until(condition: Callable[[], object], within: float = LIMIT) -> None:
    async with asyncio.timeout(within):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture(scope="module")
def server() -> Iterator[ApacheKafka]:
    """One for all tests here; each leaves it running."""
    if reason := kafka_jars.missing():
        pytest.skip(reason)
    server = ApacheKafka(auto_create_topics_enable="false", group_initial_rebalance_delay_ms=0)
    server.start()
    yield server
    server.remove()


@pytest.fixture
def namespace() -> str:
    return next(namespaces)


@pytest.fixture
def topic(namespace: str) -> str:
    return addressing.kafka_event_topic(addressing.DEFAULT_PREFIX, namespace, ORDERS)


@asynccontextmanager
async def connected(server: ApacheKafka, namespace: str) -> AsyncIterator[KafkaEventLog]:
    log = kafka_event_log([server.address], namespace)
    try:
        await asyncio.wait_for(log.start(), LIMIT)
        yield log
    finally:
        await asyncio.wait_for(log.close(), LIMIT)


@pytest.fixture
async def log(server: ApacheKafka, namespace: str) -> AsyncIterator[KafkaEventLog]:
    async with connected(server, namespace) as log:
        yield log


def connection_of(log: KafkaEventLog) -> Connection:
    return log._connection


async def committed(log: KafkaEventLog, namespace: str) -> dict[TopicPartition, tuple[int, str]]:
    admin = await connection_of(log).admin()
    group = addressing.kafka_group(addressing.DEFAULT_PREFIX, namespace, SHIPPING)
    return {partition: tuple(place) for partition, place in (await admin.list_consumer_group_offsets(group)).items()}


# The server goes away, and comes back


async def publish_for_ever(log: EventLog, worker: int, acknowledged: list[bytes]) -> None:
    for number in count():
        payload = b"%d-%d" % (worker, number)
        try:
            await log.publish(ORDERS, raw(payload, key=f"{worker}" if worker % 2 else None))
        except BrokerUnavailable:
            await asyncio.sleep(0.1)
        else:
            acknowledged.append(payload)


@pytest.mark.parametrize("end", ["kill", "stop"])
async def test_nothing_acknowledged_is_lost_when_the_server_restarts_under_load(
    log: KafkaEventLog, server: ApacheKafka, end: str, record_property: Callable[[str, object], None]
) -> None:
    arrivals = inbox()
    await log.subscribe(SHIPPING, arrivals, concurrency=64)
    acknowledged: list[bytes] = []
    async with asyncio.TaskGroup() as group:
        publishers = [group.create_task(publish_for_ever(log, worker, acknowledged)) for worker in range(16)]
        before = 500
        await until(lambda: len(acknowledged) > before)
        await asyncio.to_thread(getattr(server, end))
        await until(lambda: log.problem)
        await asyncio.to_thread(server.start)
        after = len(acknowledged) + 500
        await until(lambda: len(acknowledged) > after)
        for publisher in publishers:
            publisher.cancel()
    await until(lambda: set(acknowledged) <= set(arrivals.payloads))
    await until(lambda: log.problem is None)
    copies = Counter(payload for payload, _ in {(d.payload, d.position) for d in arrivals.deliveries})
    assert max(copies.values()) == 1, "a publish was stored twice"
    record_property("repeated deliveries", len(arrivals.payloads) - len(copies))
    for worker in range(1, 16, 2):
        own = dict.fromkeys(p for p in arrivals.payloads if p and p.startswith(b"%d-" % worker))
        numbers = [int(payload.split(b"-")[1]) for payload in own]
        assert numbers == sorted(numbers), "the order of a key"


async def test_a_frozen_server_is_noticed_and_survived(log: KafkaEventLog, server: ApacheKafka) -> None:
    arrivals = inbox()
    await log.subscribe(SHIPPING, arrivals, concurrency=8)
    await log.publish(ORDERS, raw("before"))
    await arrivals.reaches(1)
    server.freeze()
    try:
        await until(lambda: log.problem)
    finally:
        server.thaw()
    await until(lambda: log.problem is None)
    await log.publish(ORDERS, raw("after"))
    await until(lambda: {b"before", b"after"} <= set(arrivals.payloads))


async def test_start_waits_for_the_first_server(namespace: str) -> None:
    if reason := kafka_jars.missing():
        pytest.skip(reason)
    server = ApacheKafka(auto_create_topics_enable="false", group_initial_rebalance_delay_ms=0)
    log = kafka_event_log([server.address], namespace)
    try:
        starting = asyncio.create_task(log.start())
        await until(lambda: "onnect" in (log.problem or ""))
        assert not starting.done()
        with pytest.raises(BrokerUnavailable):
            await log.publish(ORDERS, raw("early"))
        await asyncio.to_thread(server.start)
        await asyncio.wait_for(starting, LIMIT)
        await log.publish(ORDERS, raw("one"))
        await asyncio.wait_for(log.close(), LIMIT)
    finally:
        server.remove()


async def test_a_delivery_in_hand_may_be_settled_after_a_restart(log: KafkaEventLog, server: ApacheKafka) -> None:
    arrivals = inbox(keep)
    await log.subscribe(SHIPPING, arrivals, concurrency=1)
    await log.publish(ORDERS, raw("one", key="k"))
    await log.publish(ORDERS, raw("two", key="k"))
    (delivery,) = await arrivals.reaches(1)
    await asyncio.to_thread(server.restart)
    delivery.ack()
    await until(lambda: b"two" in arrivals.payloads)
    arrivals.deliveries[-1].ack()


# Topics that change under us


async def test_a_topic_that_somebody_deleted_is_made_again(log: KafkaEventLog, topic: str) -> None:
    arrivals = inbox()
    await log.subscribe(SHIPPING, arrivals, concurrency=8)
    await log.publish(ORDERS, raw("before"))
    await arrivals.reaches(1)
    admin = await connection_of(log).admin()
    await admin.delete_topics([topic])
    async with asyncio.timeout(LIMIT):
        while True:
            try:
                await log.publish(ORDERS, raw("after"))
            except BrokerError:
                await asyncio.sleep(0.1)
            else:
                break
    await until(lambda: b"after" in arrivals.payloads)


async def test_what_retention_took_is_passed_over_with_a_warning(
    log: KafkaEventLog, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    await (await log.subscribe(SHIPPING, inbox(), concurrency=8)).close()
    for number in range(10):
        await log.publish(ORDERS, raw(f"{number}", key="k"))
    admin = await connection_of(log).admin()
    (page, _) = await log.read(ORDERS, OLDEST, limit=1)
    partition = TopicPartition(topic, page[0].stored.partition)  # type: ignore[attr-defined]
    await admin.delete_records({partition: RecordsToDelete(before_offset=6)})
    arrivals = inbox()
    await log.subscribe(SHIPPING, arrivals, concurrency=8)
    await until(lambda: len(arrivals.payloads) == 4)
    assert arrivals.payloads == [b"6", b"7", b"8", b"9"]
    assert "going on with the oldest message, at 6" in caplog.text
    await log.publish(ORDERS, raw("10", key="k"))
    await until(lambda: arrivals.payloads[-1] == b"10")


async def test_a_message_over_the_servers_limit_is_refused_and_the_connection_lives_on(
    log: KafkaEventLog, topic: str
) -> None:
    await connection_of(log).topics.ensure(topic, 1, {"max.message.bytes": "2000"})
    arrivals = inbox()
    await log.subscribe(SHIPPING, arrivals, concurrency=8)
    with pytest.raises(MessageTooLarge):
        await log.publish(ORDERS, raw(b"x" * 3000))
    async with asyncio.timeout(LIMIT):
        while True:
            try:
                await log.publish(ORDERS, raw("small"))
            except BrokerUnavailable:
                await asyncio.sleep(0.05)
            else:
                break
    await until(lambda: arrivals.payloads == [b"small"])


# Members


async def test_what_a_killed_process_held_goes_to_another(
    log: KafkaEventLog, server: ApacheKafka, namespace: str
) -> None:
    await (await log.subscribe(SHIPPING, inbox(), concurrency=8)).close()
    for number in range(40):
        await log.publish(ORDERS, raw(f"{number}"))
    dying = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "tests.contract.kafka_member", server.address, namespace, "5"),
        stdout=asyncio.subprocess.PIPE,
        env={"PYTHONPATH": "."},
    )
    try:
        assert dying.stdout is not None
        async with asyncio.timeout(LIMIT):
            held = {(await dying.stdout.readline()).strip() for _ in range(5)}
        living = inbox()
        await asyncio.sleep(0.5)  # until it has committed that they were tried
        subscribing = asyncio.create_task(log.subscribe(SHIPPING, living, concurrency=64))
        dying.kill()
        died = time.monotonic()
        await until(lambda: len(set(living.payloads)) == 40)
        assert time.monotonic() - died < 20
        await subscribing
    finally:
        if dying.returncode is None:
            dying.kill()
        await dying.wait()
    attempts = {delivery.payload: delivery.attempt for delivery in living.deliveries}
    assert {payload for payload, attempt in attempts.items() if attempt == 2} == held


async def test_a_hand_over_under_load_repeats_nothing(log: KafkaEventLog, server: ApacheKafka, namespace: str) -> None:
    def later(delivery: Delivery) -> None:
        asyncio.get_running_loop().call_later(0.01, delivery.ack)

    first, second = inbox(later), inbox(later)
    one = await log.subscribe(SHIPPING, first, concurrency=16)
    async with connected(server, namespace) as other:
        publishing = asyncio.create_task(publish_all(other, 3000))
        await until(lambda: len(first.payloads) > 200)
        await other.subscribe(SHIPPING, second, concurrency=16)
        await until(lambda: len(second.payloads) > 200)
        await one.close()
        await publishing
        await until(lambda: len(set(first.payloads + second.payloads)) == 3000)
        assert len(first.payloads + second.payloads) == 3000
        by_key: dict[bytes, list[int]] = {}
        for payload in first.payloads + second.payloads:
            key, number = (payload or b"").split(b":")
            by_key.setdefault(key, []).append(int(number))
        assert all(numbers == sorted(numbers) for numbers in by_key.values())


async def publish_all(log: EventLog, number: int) -> None:
    for first in range(0, number, 20):
        await asyncio.gather(*(log.publish(ORDERS, raw(f"{key}:{first}", key=f"{key}")) for key in range(20)))


async def test_a_long_handler_delays_its_key_and_no_other_and_keeps_its_message(
    log: KafkaEventLog, server: ApacheKafka, namespace: str
) -> None:
    """Though it lasts for longer than a session, and a member comes meanwhile."""
    held: list[Delivery] = []
    arrivals = inbox(lambda delivery: held.append(delivery) if delivery.payload == b"slow:0" else delivery.ack())
    await log.subscribe(SHIPPING, arrivals, concurrency=4)
    await log.publish(ORDERS, raw("slow:0", key="slow"))
    await log.publish(ORDERS, raw("slow:1", key="slow"))
    await until(lambda: held)
    async with connected(server, namespace) as other:
        others = inbox()
        await other.subscribe(SHIPPING, others, concurrency=4)
        for number in range(60):
            await log.publish(ORDERS, raw(f"{number}", key=f"{number}"))
            await asyncio.sleep(0.12)
        await until(lambda: len(set(arrivals.payloads + others.payloads)) == 61)
        assert b"slow:1" not in arrivals.payloads + others.payloads
        held[0].ack()
        await until(lambda: b"slow:1" in arrivals.payloads + others.payloads)
        assert (arrivals.payloads + others.payloads).count(b"slow:0") == 1


async def test_a_verdict_after_the_hand_over_does_nothing(
    log: KafkaEventLog, server: ApacheKafka, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(member, "DRAIN_LIMIT", 0.5)
    held, taken = inbox(keep), inbox(keep)
    one = await log.subscribe(SHIPPING, held, concurrency=8)
    await log.publish(ORDERS, raw("one"))
    (delivery,) = await held.reaches(1)
    one.set_concurrency(0)
    async with connected(server, namespace) as other:
        await other.subscribe(SHIPPING, taken, concurrency=8)
        (again,) = await taken.reaches(1)
        assert again.attempt == 2
        delivery.ack()
        await asyncio.sleep(0.5)
        assert sum(await log.backlog(SHIPPING) or ()) == 1, "who has it now has not settled it"
        again.ack()
        async with asyncio.timeout(LIMIT):
            while sum(await log.backlog(SHIPPING) or (1,)):
                await asyncio.sleep(0.05)


# What is open


async def test_no_committed_offset_passes_a_message_that_is_not_done(
    log: KafkaEventLog, namespace: str, topic: str
) -> None:
    blocked: list[Delivery] = []
    arrivals = inbox(lambda delivery: blocked.append(delivery) if delivery.payload == b"k:3" else delivery.ack())
    await log.subscribe(SHIPPING, arrivals, concurrency=64, order=Order.NONE)
    positions = [await log.publish(ORDERS, raw(f"k:{number}", key="k")) for number in range(10)]
    await arrivals.reaches(10)
    await asyncio.sleep(1.5)
    number = int(positions[0]) // 10**10 % 10**5
    low, text = (await committed(log, namespace))[TopicPartition(topic, number)]
    assert low == 3
    done, attempts = decode(low, text)
    assert done == [(4, 10)]
    assert attempts[3].made == 1
    blocked[0].ack()
    async with asyncio.timeout(LIMIT):
        while (await committed(log, namespace))[TopicPartition(topic, number)][0] != 10:
            await asyncio.sleep(0.05)


async def test_behind_a_message_that_is_not_done_the_window_ends(
    log: KafkaEventLog, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(member, "WINDOW", 50)
    monkeypatch.setattr(member, "BATCH", 10)
    blocked: list[Delivery] = []
    arrivals = inbox(lambda delivery: blocked.append(delivery) if delivery.payload == b"0" else delivery.ack())
    await log.subscribe(SHIPPING, arrivals, concurrency=64, order=Order.NONE)
    for number in range(200):
        await log.publish(ORDERS, raw(f"{number}", key="same partition"))
    await log.publish(ORDERS, raw("other", key="b"))
    await until(lambda: "no more are fetched" in caplog.text)
    await until(lambda: b"other" in arrivals.payloads)
    await asyncio.sleep(0.5)
    assert 50 <= len(arrivals.payloads) - 1 <= 60
    blocked[0].ack()
    await until(lambda: len(arrivals.payloads) == 201)
    assert len(set(arrivals.payloads)) == 201


async def test_more_retries_than_memory_holds_are_all_made(log: KafkaEventLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane, "MOST_WAITING", 3)
    arrivals = inbox(lambda delivery: delivery.retry(0.5) if delivery.attempt == 1 else delivery.ack())
    await log.subscribe(SHIPPING, arrivals, concurrency=2, order=Order.NONE)
    for number in range(50):
        await log.publish(ORDERS, raw(f"{number}"))
    await until(lambda: len(arrivals.payloads) == 100)
    assert Counter(arrivals.payloads) == dict.fromkeys((b"%d" % number for number in range(50)), 2)


async def test_headers_that_are_no_event_are_delivered_and_told(log: KafkaEventLog, topic: str) -> None:
    arrivals = inbox()
    await log.subscribe(SHIPPING, arrivals, concurrency=8)
    await connection_of(log).publish(topic, b"{}", headers=[("ce_id", b"\xff"), ("CE_type", b"t"), ("x-mine", b"\xff")])
    (delivery,) = await arrivals.reaches(1)
    assert (delivery.mode, delivery.payload, delivery.headers) == (Mode.BINARY, b"{}", {"x-mine": "\ufffd"})
    with pytest.raises(InvalidEvent):
        _ = delivery.attributes


async def test_a_group_with_members_is_not_forgotten(log: KafkaEventLog) -> None:
    subscription = await log.subscribe(SHIPPING, inbox(), concurrency=8)
    with pytest.raises(BrokerError, match="has members"):
        await log.unsubscribe(SHIPPING)
    await subscription.close()
    assert await log.unsubscribe(SHIPPING)


async def test_topics_have_the_partitions_and_the_clock_that_are_promised(
    log: KafkaEventLog, server: ApacheKafka, namespace: str, topic: str
) -> None:
    position = await log.publish(ORDERS, raw("one"))
    assert abs(int(position) // 10**15 / 1000 - time.time()) < LIMIT
    assert await connection_of(log).topics.partitions(topic) == 4
    assert event_log.SETTINGS["message.timestamp.type"] == "LogAppendTime"
