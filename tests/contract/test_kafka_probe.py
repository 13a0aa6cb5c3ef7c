"""What Apache Kafka and aiokafka do, as docs/brokers.md says: the facts on which an event log on Kafka will stand."""

from __future__ import annotations

import asyncio
import gc
import itertools
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic, RecordsToDelete
from aiokafka.client import AIOKafkaClient
from aiokafka.conn import create_conn
from aiokafka.errors import (
    CommitFailedError,
    GroupAuthorizationFailedError,
    InvalidTopicError,
    KafkaConnectionError,
    KafkaError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    OffsetMetadataTooLargeError,
    OffsetOutOfRangeError,
    OutOfOrderSequenceNumber,
    ProducerFenced,
    SaslAuthenticationFailed,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
)
from aiokafka.protocol import admin as admin_requests
from aiokafka.protocol import coordination, fetch, group, metadata, offset, produce, transaction
from aiokafka.protocol.api import Request
from aiokafka.structs import OffsetAndMetadata

from tests.servers import kafka_jars
from tests.servers.apache_kafka import ADMIN, ApacheKafka, cluster

pytestmark = pytest.mark.servers

LIMIT = 30.0
"""Seconds for anything that should happen."""
USERS = {ADMIN: "open sesame", "orders": "open barley"}
MEMBER = """
import asyncio, sys
from aiokafka import AIOKafkaConsumer

async def main(address, topic):
    await AIOKafkaConsumer(
        topic, bootstrap_servers=address, group_id=topic, session_timeout_ms=2000, heartbeat_interval_ms=200
    ).start()
    await asyncio.sleep(60)

asyncio.run(main(*sys.argv[1:]))
"""
"""A member of a group, to be killed."""
_numbers = itertools.count(1)


class Kafka:
    """Clients of a server, ended with the test."""

    def __init__(self, server: ApacheKafka, stack: AsyncExitStack, **common: Any) -> None:
        self.server, self._stack = server, stack
        self.common = {"bootstrap_servers": server.address, "request_timeout_ms": 10_000} | common

    async def admin(self, **own: Any) -> AIOKafkaAdminClient:
        client = AIOKafkaAdminClient(**self.common | own)
        self._stack.push_async_callback(client.close)
        await client.start()
        return client

    async def topic(self, partitions: int = 1, copies: int = 1, **configuration: object) -> str:
        name = f"topic{next(_numbers)}"
        texts = {option.replace("_", "."): str(value) for option, value in configuration.items()}
        admin = await self.admin()
        answer = await admin.create_topics([NewTopic(name, partitions, copies, topic_configs=texts)])
        assert [error[1] for error in answer.topic_errors] == [0], answer
        # a client that asks before all servers know the topic asks again in 5 minutes
        async with asyncio.timeout(LIMIT):
            while len(await leaders(admin, name)) < partitions:
                await asyncio.sleep(0.01)
        return name

    async def producer(self, **own: Any) -> AIOKafkaProducer:
        producer = AIOKafkaProducer(**self.common | {"enable_idempotence": True} | own)
        self._stack.push_async_callback(_ended, producer)
        await producer.start()
        return producer

    async def consumer(self, *topics: str, **own: Any) -> AIOKafkaConsumer:
        """Of the first partition of `topics`, from its beginning; with `group_id`, a member of that group."""
        given = {"enable_auto_commit": False, "auto_offset_reset": "earliest", "fetch_max_wait_ms": 5000}
        consumer = AIOKafkaConsumer(**self.common | given | own)
        if "group_id" in own:
            consumer.subscribe(topics)
        else:
            consumer.assign([TopicPartition(topic, 0) for topic in topics])
        self._stack.push_async_callback(_ended, consumer)
        await consumer.start()
        return consumer


async def _ended(client: AIOKafkaProducer | AIOKafkaConsumer) -> None:
    """What has failed may wait for ever for what it cannot send, and say so or that it was cancelled."""
    with suppress(KafkaError, TimeoutError, asyncio.CancelledError):
        await asyncio.wait_for(client.stop(), 3)
    await client._client.close() if isinstance(client, AIOKafkaConsumer) else await client.client.close()


@pytest.fixture(scope="module")
def server() -> Iterator[ApacheKafka]:
    if reason := kafka_jars.missing():
        pytest.skip(reason)
    server = ApacheKafka(
        auto_create_topics_enable="false",
        group_initial_rebalance_delay_ms=0,
        group_min_session_timeout_ms=1000,
        log_cleaner_backoff_ms=100,
        log_retention_check_interval_ms=500,
        log_initial_task_delay_ms=0,
    )
    server.start()
    yield server
    server.remove()


@pytest.fixture(scope="module")
def guarded() -> Iterator[ApacheKafka]:
    """One at which clients sign in."""
    if reason := kafka_jars.missing():
        pytest.skip(reason)
    server = ApacheKafka(users=USERS, group_initial_rebalance_delay_ms=0)
    server.start()
    yield server
    server.remove()


@pytest.fixture
async def kafka(server: ApacheKafka) -> AsyncIterator[Kafka]:
    async with AsyncExitStack() as stack:
        yield Kafka(server, stack)


@asynccontextmanager
async def signed_in(server: ApacheKafka, user: str, mechanism: str = "PLAIN", **own: Any) -> AsyncIterator[Kafka]:
    secrets = {"sasl_plain_username": user, "sasl_plain_password": USERS[user]}
    async with AsyncExitStack() as stack:
        yield Kafka(server, stack, security_protocol="SASL_PLAINTEXT", sasl_mechanism=mechanism, **secrets | own)


async def taken(consumer: AIOKafkaConsumer, number: int) -> list[Any]:
    async with asyncio.timeout(LIMIT):
        return [await consumer.getone() for _ in range(number)]


async def leaders(admin: AIOKafkaAdminClient, topic: str) -> list[int]:
    """Of the partitions that have one."""
    found = (await admin.describe_topics([topic]))[0]["partitions"]
    return [partition["leader"] for partition in found if partition["leader"] >= 0]


async def nothing_comes(consumer: AIOKafkaConsumer, seconds: float = 0.5) -> None:
    """So long that a fetch which waits for a record would have brought it."""
    found = await consumer.getmany(timeout_ms=int(seconds * 1000))
    assert not any(found.values()), found


# versions


async def test_every_request_of_the_client_is_known_to_the_server(kafka: Kafka) -> None:
    """Kafka 4 has dropped old versions of all of them."""
    client = AIOKafkaClient(**kafka.common)
    await client.bootstrap()
    try:
        assert await client.ready(client.get_random_node())
        versions = next(iter(client._conns.values()))._versions
    finally:
        await client.close()
    requests = [
        kind
        for module in (produce, fetch, offset, metadata, coordination, group, transaction, admin_requests)
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, Request) and kind is not Request
    ]
    assert len(requests) > 30
    unknown = {
        kind.__name__
        for kind in requests
        if kind.API_KEY not in versions
        or not any(
            versions[kind.API_KEY][0] <= shape.API_VERSION <= versions[kind.API_KEY][1] for shape in kind._CLASSES
        )
    }
    assert unknown == set()
    share_fetch, consumer_group_heartbeat = 78, 68
    assert {share_fetch, consumer_group_heartbeat} <= versions.keys()
    assert not {share_fetch, consumer_group_heartbeat} & {kind.API_KEY for kind in requests}


# records


async def test_a_record_comes_as_it_was_sent(kafka: Kafka) -> None:
    topic = await kafka.topic()
    producer, consumer = await kafka.producer(), await kafka.consumer(topic)
    headers = [("b", b"1"), ("a", b"\xff\x00"), ("b", b"2"), ("", b"")]
    sent = await producer.send_and_wait(topic, None, key="ä".encode(), headers=headers, timestamp_ms=1234)
    assert (sent.topic, sent.partition, sent.offset, sent.timestamp) == (topic, 0, 0, 1234)
    (record,) = await taken(consumer, 1)
    assert (record.key, record.value, record.timestamp) == ("ä".encode(), None, 1234)
    assert list(record.headers) == headers


async def test_the_time_is_the_senders_unless_the_topic_says_otherwise(kafka: Kafka) -> None:
    topic = await kafka.topic(message_timestamp_type="LogAppendTime")
    producer, consumer = await kafka.producer(), await kafka.consumer(topic)
    before = time.time() * 1000
    sent = await producer.send_and_wait(topic, b"a", timestamp_ms=1234)
    (record,) = await taken(consumer, 1)
    assert before - 1000 < record.timestamp < before + 10_000
    assert sent.timestamp == record.timestamp


async def test_a_fetch_that_waits_ends_with_the_first_record(kafka: Kafka) -> None:
    topic = await kafka.topic()
    producer, consumer = await kafka.producer(), await kafka.consumer(topic, fetch_max_wait_ms=20_000)
    await producer.send_and_wait(topic, b"warm")
    await taken(consumer, 1)
    waits = []
    for _ in range(5):
        waiting = asyncio.create_task(consumer.getone())
        await asyncio.sleep(0.1)  # the fetch is at the server
        begun = time.monotonic()
        await producer.send_and_wait(topic, b"x")
        await asyncio.wait_for(waiting, LIMIT)
        waits.append(time.monotonic() - begun)
    assert min(waits) < 0.2


async def test_keys_stay_in_their_partition_and_in_order(kafka: Kafka) -> None:
    topic = await kafka.topic(partitions=4)
    producer = await kafka.producer()
    sent = [await producer.send(topic, b"%d" % n, key=b"%d" % (n % 10)) for n in range(500)]
    places = [await future for future in sent]
    for key in range(10):
        assert len({place.partition for place in places[key::10]}) == 1
        assert [place.offset for place in places[key::10]] == sorted(place.offset for place in places[key::10])
    await (await kafka.admin()).create_partitions({topic: NewPartitions(16)})
    async with asyncio.timeout(LIMIT):
        while len(await producer.partitions_for(topic)) < 16:
            await producer.client.force_metadata_update()
    moved = [await producer.send_and_wait(topic, b"x", key=b"%d" % key) for key in range(10)]
    assert any(new.partition != old.partition for new, old in zip(moved, places, strict=False)), "a key's order is lost"


# too large


async def test_what_is_too_large_is_refused_and_the_producer_lives_on(kafka: Kafka) -> None:
    topic = await kafka.topic(max_message_bytes=2000)
    producer, consumer = await kafka.producer(enable_idempotence=False), await kafka.consumer(topic)
    with pytest.raises(MessageSizeTooLargeError):  # by the client, at its own limit
        await producer.send_and_wait(topic, b"x" * (1 << 20))
    await producer.send_and_wait(topic, b"before")
    with pytest.raises(MessageSizeTooLargeError):  # by the server
        await producer.send_and_wait(topic, b"x" * 3000)
    await asyncio.wait_for(producer.send_and_wait(topic, b"after"), LIMIT)
    assert [record.value for record in await taken(consumer, 2)] == [b"before", b"after"]


async def test_an_idempotent_producer_is_of_no_use_for_a_partition_that_has_refused_one(kafka: Kafka) -> None:
    """aiokafka counts what was refused: the server misses it ever after. So sizes are checked before sending, and a
    producer is replaced once anything is refused."""
    topic, other = await kafka.topic(max_message_bytes=2000), await kafka.topic()
    producer = await kafka.producer()
    await producer.send_and_wait(topic, b"before")
    with pytest.raises(MessageSizeTooLargeError):
        await producer.send_and_wait(topic, b"x" * 3000)
    for _ in range(3):
        with pytest.raises(OutOfOrderSequenceNumber):
            await asyncio.wait_for(producer.send_and_wait(topic, b"after"), LIMIT)
        await asyncio.wait_for(producer.send_and_wait(other, b"elsewhere"), LIMIT)
    await asyncio.wait_for((await kafka.producer()).send_and_wait(topic, b"by another"), LIMIT)


# transactions


async def test_what_was_aborted_is_not_read(kafka: Kafka) -> None:
    topic = await kafka.topic()
    producer = await kafka.producer(transactional_id=topic)
    committed = await kafka.consumer(topic, isolation_level="read_committed")
    careless = await kafka.consumer(topic)
    await producer.begin_transaction()
    await producer.send_and_wait(topic, b"aborted")
    await producer.abort_transaction()
    await producer.begin_transaction()
    await producer.send_and_wait(topic, b"first")
    await nothing_comes(committed)
    await producer.commit_transaction()
    async with producer.transaction():
        await producer.send_and_wait(topic, b"second")
    records = await taken(committed, 2)
    assert [record.value for record in records] == [b"first", b"second"]
    assert [record.offset for record in records] == [2, 4], "the ends of transactions take offsets"
    assert [record.value for record in await taken(careless, 3)] == [b"aborted", b"first", b"second"]


async def test_an_open_transaction_holds_back_what_others_write(kafka: Kafka) -> None:
    topic = await kafka.topic()
    slow, other = await kafka.producer(transactional_id=topic), await kafka.producer()
    consumer = await kafka.consumer(topic, isolation_level="read_committed")
    await slow.begin_transaction()
    await slow.send_and_wait(topic, b"slow")
    await other.send_and_wait(topic, b"other")
    await nothing_comes(consumer)
    await slow.commit_transaction()
    assert [record.value for record in await taken(consumer, 2)] == [b"slow", b"other"]


async def test_a_second_producer_of_an_id_fences_the_first(kafka: Kafka) -> None:
    topic = await kafka.topic()
    first = await kafka.producer(transactional_id=topic)
    await first.begin_transaction()
    await first.send_and_wait(topic, b"of the first")
    second = await kafka.producer(transactional_id=topic)
    with pytest.raises(ProducerFenced):
        await first.send_and_wait(topic, b"late")
    async with second.transaction():
        await second.send_and_wait(topic, b"of the second")
    consumer = await kafka.consumer(topic, isolation_level="read_committed")
    assert [record.value for record in await taken(consumer, 1)] == [b"of the second"]


async def test_offsets_go_with_a_transaction_or_not_at_all(kafka: Kafka) -> None:
    topic, partition = (name := await kafka.topic()), TopicPartition(name, 0)
    producer = await kafka.producer(transactional_id=topic)
    for number, end in enumerate(("abort", "commit"), 1):
        await producer.begin_transaction()
        await producer.send_offsets_to_transaction({partition: number}, topic)
        await getattr(producer, f"{end}_transaction")()
    consumer = await kafka.consumer(topic, group_id=topic)
    assert await consumer.committed(partition) == 2


# positions


async def test_offsets_are_found_by_time(kafka: Kafka) -> None:
    topic, partition = (name := await kafka.topic()), TopicPartition(name, 0)
    producer, consumer = await kafka.producer(), await kafka.consumer(topic)
    begun = int(time.time()) * 1000 - 60_000  # what is older than the retention may be gone at any moment
    for number in range(10):
        await producer.send_and_wait(topic, b"%d" % number, timestamp_ms=begun + 1000 * number)
    for asked, found in ((begun + 3000, 3), (begun + 3001, 4), (0, 0)):
        assert (await consumer.offsets_for_times({partition: asked}))[partition].offset == found
    assert (await consumer.offsets_for_times({partition: begun + 10_000}))[partition] is None, "later than everything"
    assert await consumer.end_offsets([partition]) == {partition: 10}
    consumer.seek(partition, 7)
    assert [record.offset for record in await taken(consumer, 3)] == [7, 8, 9]


async def test_a_position_before_the_first_stored_record_is_told_or_mended(kafka: Kafka) -> None:
    topic, partition = (name := await kafka.topic()), TopicPartition(name, 0)
    producer, consumer = await kafka.producer(), await kafka.consumer(topic)
    for number in range(10):
        await producer.send_and_wait(topic, b"%d" % number)
    admin = await kafka.admin()
    await admin.delete_records({partition: RecordsToDelete(before_offset=6)})
    assert await consumer.beginning_offsets([partition]) == {partition: 6}
    consumer.seek(partition, 2)
    assert [record.offset for record in await taken(consumer, 4)] == [6, 7, 8, 9]
    strict = await kafka.consumer(topic, auto_offset_reset="none")
    strict.seek(partition, 2)
    with pytest.raises(OffsetOutOfRangeError):
        await asyncio.wait_for(strict.getone(), LIMIT)


async def test_a_partition_that_is_paused_brings_nothing_and_delays_no_other(kafka: Kafka) -> None:
    one, two = await kafka.topic(), await kafka.topic()
    producer, consumer = await kafka.producer(), await kafka.consumer(one, two, fetch_max_wait_ms=2000)
    consumer.pause(TopicPartition(one, 0))
    await producer.send_and_wait(one, b"paused")
    await producer.send_and_wait(two, b"flows")
    assert [record.value for record in await taken(consumer, 1)] == [b"flows"]
    await nothing_comes(consumer)
    begun = time.monotonic()
    consumer.resume(TopicPartition(one, 0))
    assert [record.value for record in await taken(consumer, 1)] == [b"paused"]
    assert 1 < time.monotonic() - begun < 3, "the fetch that waits for the other one ends first"


# groups


async def test_a_group_can_be_placed_before_it_has_members(kafka: Kafka) -> None:
    """So a new group misses nothing from its first declaration on; while it has members, none but they may do it."""
    topic, partition = (name := await kafka.topic(partitions=1)), TopicPartition(name, 0)
    producer = await kafka.producer()
    for number in range(5):
        await producer.send_and_wait(topic, b"%d" % number)
    outsider = AIOKafkaConsumer(**kafka.common, group_id=topic, enable_auto_commit=False)
    outsider.assign([partition])
    await outsider.start()
    try:
        await outsider.commit({partition: OffsetAndMetadata(3, "")})
        member = await kafka.consumer(topic, group_id=topic)
        assert [record.offset for record in await taken(member, 2)] == [3, 4]
        with pytest.raises(CommitFailedError):
            await outsider.commit({partition: OffsetAndMetadata(0, "")})
        assert await member.committed(partition) == 3
    finally:
        await outsider.stop()


async def test_a_committed_offset_has_room_for_what_is_done_beyond_it(kafka: Kafka) -> None:
    topic, partition = (name := await kafka.topic()), TopicPartition(name, 0)
    member = await kafka.consumer(topic, group_id=topic)
    await member.commit({partition: OffsetAndMetadata(7, "x" * 4096)})
    stored = (await (await kafka.admin()).list_consumer_group_offsets(topic))[partition]
    assert stored == OffsetAndMetadata(7, "x" * 4096)
    with pytest.raises(OffsetMetadataTooLargeError):
        await member.commit({partition: OffsetAndMetadata(8, "x" * 4097)})


async def test_how_far_behind_a_group_is(kafka: Kafka) -> None:
    topic, partition = (name := await kafka.topic()), TopicPartition(name, 0)
    producer, admin = await kafka.producer(), await kafka.admin()
    for number in range(5):
        await producer.send_and_wait(topic, b"%d" % number)
    assert await admin.list_consumer_group_offsets(topic) == {}, "nobody has declared it"
    member = await kafka.consumer(topic, group_id=topic)
    await taken(member, 2)
    await member.commit({partition: 2})
    offsets = await admin.list_consumer_group_offsets(topic)
    assert (await member.end_offsets([partition]))[partition] - offsets[partition].offset == 3


async def test_a_group_is_forgotten(kafka: Kafka) -> None:
    """aiokafka has the request, and no method for it. A group that has members stays."""
    topic, partition = (name := await kafka.topic()), TopicPartition(name, 0)
    admin = await kafka.admin()
    member = await kafka.consumer(topic, group_id=topic)
    await member.commit({partition: 0})

    async def delete() -> int:
        node = await admin.find_coordinator(topic)
        answer = await admin._send_request_to_node(node, admin_requests.DeleteGroupsRequest([topic]))
        return int(answer.results[0][1])

    non_empty_group, group_id_not_found = 68, 69
    assert await delete() == non_empty_group
    await member.stop()
    assert await delete() == 0
    assert await admin.list_consumer_group_offsets(topic) == {}
    assert await delete() == group_id_not_found


async def test_what_a_member_that_is_gone_had_goes_to_another(kafka: Kafka) -> None:
    topic = await kafka.topic(partitions=4)
    session = {"group_id": topic, "session_timeout_ms": 2000, "heartbeat_interval_ms": 200}
    one = await kafka.consumer(topic, **session)
    other = await asyncio.create_subprocess_exec(sys.executable, "-P", "-c", MEMBER, kafka.server.address, topic)
    try:
        async with asyncio.timeout(LIMIT):
            while len(one.assignment()) != 2:
                await asyncio.sleep(0.05)
    finally:
        other.kill()
        await other.wait()
    async with asyncio.timeout(LIMIT):
        while len(one.assignment()) != 4:
            await asyncio.sleep(0.05)


async def test_a_static_member_that_comes_back_moves_nothing(kafka: Kafka) -> None:
    topic = await kafka.topic(partitions=4)
    session = {"group_id": topic, "session_timeout_ms": 20_000, "heartbeat_interval_ms": 200}
    one = await kafka.consumer(topic, **session, group_instance_id="one")
    two = await kafka.consumer(topic, **session, group_instance_id="two")
    async with asyncio.timeout(LIMIT):
        while (len(one.assignment()), len(two.assignment())) != (2, 2):
            await asyncio.sleep(0.05)
    had, generation = two.assignment(), one._coordinator.generation
    await two.stop()
    again = await kafka.consumer(topic, **session, group_instance_id="two")
    async with asyncio.timeout(LIMIT):
        while not again.assignment():
            await asyncio.sleep(0.02)
    assert again.assignment() == had
    await asyncio.sleep(0.5)  # two heartbeats, by which the other would hear of a rebalance
    assert one._coordinator.generation == generation


# topics


async def test_the_newest_record_of_a_key_is_what_compaction_leaves(kafka: Kafka) -> None:
    topic, partition = (
        (
            name := await kafka.topic(
                cleanup_policy="compact",
                segment_ms=100,
                min_cleanable_dirty_ratio=0.001,
                delete_retention_ms=100,
            )
        ),
        TopicPartition(name, 0),
    )
    producer = await kafka.producer()
    for number in range(50):
        await producer.send_and_wait(topic, b"%d" % number, key=b"%d" % (number % 5))
    await producer.send_and_wait(topic, None, key=b"3")
    async with asyncio.timeout(LIMIT):
        while True:
            await asyncio.sleep(0.2)
            await producer.send_and_wait(topic, b"x", key=b"filler")  # the segment that is written is never compacted
            reader = await kafka.consumer(topic)
            (end,) = (await reader.end_offsets([partition])).values()
            found: list[Any] = []
            while not found or found[-1].offset < end - 1:
                found.append(await reader.getone())
            await reader.stop()
            left = [record for record in found if record.key != b"filler"]
            if len(left) == 4:
                break
    assert {record.key: record.value for record in left} == {b"0": b"45", b"1": b"46", b"2": b"47", b"4": b"49"}
    assert [record.offset for record in left] == [45, 46, 47, 49], "what is left keeps its place"
    with pytest.raises(KafkaError):
        await asyncio.wait_for(producer.send_and_wait(topic, b"without a key"), LIMIT)


async def test_a_topic_that_nobody_made_is_refused(kafka: Kafka) -> None:
    producer = await kafka.producer(request_timeout_ms=1000)
    with pytest.raises((UnknownTopicOrPartitionError, KafkaTimeoutError)):
        await asyncio.wait_for(producer.send_and_wait("nobody-made-it", b"x"), LIMIT)


async def test_what_a_topic_may_be_called(kafka: Kafka) -> None:
    admin = await kafka.admin()

    async def make(name: str) -> int:
        return int((await admin.create_topics([NewTopic(name, 1, 1)])).topic_errors[0][1])

    invalid, exists = InvalidTopicError.errno, 36
    unique = f"name{next(_numbers)}"
    assert await make(f"{unique}.a_B-1") == 0
    assert await make(f"{unique}.a_B-1") == exists
    assert await make(f"{unique}_a.B-1") == invalid, "a dot and an underscore are one and the same to its metrics"
    assert await make("x" * 249) == 0
    for name in ("x" * 250, "a b", "a:b", "a/b", "ä", "a*", "a>", ".", ".."):
        assert await make(name) == invalid, name


# a server that is away


async def test_an_idempotent_producer_never_gives_up(server: ApacheKafka, kafka: Kafka) -> None:
    """Its `request_timeout_ms` ends no publish: whoever publishes must stop waiting, and what was waited for comes."""
    topic = await kafka.topic()
    patient = await kafka.producer(request_timeout_ms=500)
    other = await kafka.producer(request_timeout_ms=500, enable_idempotence=False)
    for producer in (patient, other):
        await producer.send_and_wait(topic, b"before")
    server.freeze()
    try:
        waiting = await patient.send(topic, b"meanwhile")
        with pytest.raises(KafkaError):
            await asyncio.wait_for(other.send_and_wait(topic, b"given up"), LIMIT)
        await asyncio.sleep(1)
        assert not waiting.done()
    finally:
        server.thaw()
    await asyncio.wait_for(waiting, LIMIT)
    await asyncio.wait_for(patient.send_and_wait(topic, b"after"), LIMIT)
    consumer = await kafka.consumer(topic)
    values: list[bytes] = []
    while b"after" not in values:
        values += [record.value for record in await taken(consumer, 1)]
    assert (values.count(b"meanwhile"), values.count(b"after")) == (1, 1)


async def test_what_was_acknowledged_by_three_survives_the_leaders_death() -> None:
    if reason := kafka_jars.missing():
        pytest.skip(reason)
    servers = cluster(3, group_initial_rebalance_delay_ms=0)
    try:
        for server in servers:
            server.start(wait=False)
        for server in servers:
            server.wait_until_ready()
        addresses = ",".join(server.address for server in servers)
        async with AsyncExitStack() as stack:
            kafka = Kafka(servers[0], stack, bootstrap_servers=addresses, request_timeout_ms=3000)
            topic = await kafka.topic(copies=3)
            producer = await kafka.producer()
            acknowledged = []

            async def publish(number: int) -> None:
                await producer.send_and_wait(topic, b"%d" % number)
                acknowledged.append(number)

            await publish(0)
            leader = producer.client.cluster.leader_for_partition(TopicPartition(topic, 0))
            servers[leader - 1].kill()
            async with asyncio.timeout(60):
                number = 0
                while len(acknowledged) < 50:
                    number += 1
                    try:
                        await publish(number)
                    except KafkaError:
                        await asyncio.sleep(0.05)
            consumer = await kafka.consumer(topic)
            stored: list[int] = []
            async with asyncio.timeout(LIMIT):
                while not set(acknowledged) <= set(stored):
                    stored.append(int((await consumer.getone()).value))
            assert stored == sorted(set(stored)), "in order, and nothing twice"
    finally:
        for server in servers:
            server.remove()


# who may


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)  # aiokafka leaves the connection open
@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
async def test_clients_sign_in(guarded: ApacheKafka, mechanism: str) -> None:
    async with signed_in(guarded, ADMIN, mechanism) as kafka:
        topic = await kafka.topic()
        await (await kafka.producer()).send_and_wait(topic, b"x")
    async with signed_in(guarded, ADMIN, mechanism, sasl_plain_password="wrong") as kafka:
        begun = time.monotonic()
        with pytest.raises(KafkaError) as caught:
            await kafka.producer()
        assert time.monotonic() - begun < 10
        # what tells wrong credentials from a server that is away is in its log alone; a bare connection says it
        assert type(caught.value) is KafkaConnectionError
        with pytest.raises(SaslAuthenticationFailed, match=r"(?i)invalid"):
            await create_conn(
                "127.0.0.1",
                guarded.port,
                security_protocol="SASL_PLAINTEXT",
                sasl_mechanism=mechanism,
                sasl_plain_username=ADMIN,
                sasl_plain_password="wrong",
            )
    del caught
    gc.collect()


async def test_the_server_keeps_a_caller_to_its_own_topics(guarded: ApacheKafka) -> None:
    literal, prefixed, topic_type, group_type = 3, 4, 2, 3
    read, write, allow = 3, 4, 3
    async with signed_in(guarded, ADMIN) as kafka:
        mine, others = await kafka.topic(), await kafka.topic()
        admin = await kafka.admin()
        for kind, name, pattern, operation in (
            (topic_type, mine, literal, write),
            (topic_type, mine, literal, read),
            (group_type, "orders.", prefixed, read),
        ):
            await admin._send_to_controller(
                admin_requests.CreateAclsRequest(kind, name, pattern, "User:orders", "*", operation, allow)
            )
        await (await kafka.producer()).send_and_wait(others, b"secret")
    async with signed_in(guarded, "orders", "SCRAM-SHA-256") as kafka:
        producer = await kafka.producer()
        await producer.send_and_wait(mine, b"x")
        with pytest.raises(TopicAuthorizationFailedError):
            await asyncio.wait_for(producer.send_and_wait(others, b"forged"), LIMIT)
        await asyncio.wait_for(producer.send_and_wait(mine, b"y"), LIMIT)  # the producer lives on
        reader = await kafka.consumer(mine, group_id="orders.a")
        assert [record.value for record in await taken(reader, 2)] == [b"x", b"y"]
        with pytest.raises(GroupAuthorizationFailedError):
            await asyncio.wait_for(kafka.consumer(mine, group_id="another"), LIMIT)
        with pytest.raises(TopicAuthorizationFailedError):
            await taken(await kafka.consumer(others), 1)
