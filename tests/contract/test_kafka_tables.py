"""What tables on Apache Kafka do beyond the contract of `Table`: snapshots, strangers, topics that vanish."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from itertools import count

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import RecordsToDelete

from brokers.kafka import table_snapshot, tables
from brokers.kafka.table_records import Write, message
from brokers.kafka.tables import KafkaTable
from mesh import addressing
from mesh.errors import BrokerError, BrokerUnavailable
from mesh.ports.tables import ABSENT, Conflict, Current, Delete, Entry, Gone, Put, Table
from tests.contract.kafka_tables import LoneKafkaTables, kafka_tables
from tests.contract.test_tables import keys_of, put, scan_all, value_of
from tests.servers import kafka_jars
from tests.servers.apache_kafka import ApacheKafka

pytestmark = pytest.mark.servers

LIMIT = 30.0
SCOPE = "orders"
namespaces = (f"kafka{number}" for number in count(1))

Connect = Callable[[], Awaitable[LoneKafkaTables]]


@pytest.fixture(scope="module")
def server() -> Iterator[ApacheKafka]:
    if reason := kafka_jars.missing():
        pytest.skip(reason)
    server = ApacheKafka(auto_create_topics_enable="false")
    server.start()
    yield server
    server.remove()


@pytest.fixture
def namespace() -> str:
    return next(namespaces)


@pytest.fixture
async def connect(server: ApacheKafka, namespace: str) -> AsyncIterator[Connect]:
    async with AsyncExitStack() as stack:

        async def connect() -> LoneKafkaTables:
            client = await kafka_tables([server.address], namespace)
            stack.push_async_callback(client.close)
            return client

        yield connect


@pytest.fixture
async def client(connect: Connect) -> LoneKafkaTables:
    return await connect()


@pytest.fixture
def table(client: LoneKafkaTables) -> KafkaTable:
    return client.table(SCOPE)


async def begins(client: LoneKafkaTables, topic: str) -> int:
    return await client._ends.begin(topic)


async def told(table: Table) -> object:
    """All that there is."""
    return sorted(await scan_all(table, ()), key=lambda entry: entry.key)


async def fill(table: Table, turn: str, size: int = 20) -> None:
    await table.commit([Put(key=("state", f"k{number}"), value=turn.encode()) for number in range(size)])
    await put(table, "state", f"only-{turn}", value=b"x" * 100_000)
    await put(table, "lease", turn, ttl=100)
    await table.commit([Delete(key=("state", "k3"))])


# Snapshots


async def test_a_start_needs_the_newest_snapshot_and_the_log_behind_it_only(
    client: LoneKafkaTables, table: KafkaTable, connect: Connect, namespace: str
) -> None:
    log = addressing.kafka_state_topic("mesh", namespace, SCOPE)
    await table.keep_history(("state",), 3)
    for turn in ("first", "second", "third"):
        await fill(table, turn)
        await table.take_snapshot()
    await fill(table, "fourth")
    assert await begins(client, log) > 0, "what an older snapshot tells is deleted from the log"
    assert await begins(client, addressing.kafka_snapshot_topic("mesh", namespace, SCOPE)) > 0
    other = (await connect()).table(SCOPE)
    assert await told(other) == await told(table)
    key = ("state", "k5")
    assert await other.history(key, limit=10) == await table.history(key, limit=10)
    assert [entry.value for entry in await other.history(key, limit=10) if isinstance(entry, Entry)] == [
        b"fourth",
        b"third",
        b"second",
    ]
    entry = await other.get(key)
    assert entry is not None
    await put(table, *key, expected=entry.revision)
    with pytest.raises(Conflict):
        await put(other, *key, expected=entry.revision)
    watch = other.watch(("state",), after=ABSENT)
    seen = [change async for change in until_current(watch)]
    assert [change.revision for change in seen] == sorted({change.revision for change in seen})
    assert {change.key for change in seen} == set(keys_of(await scan_all(other, ("state",))))


async def test_a_repeat_of_what_a_snapshot_tells_is_known(
    client: LoneKafkaTables, table: KafkaTable, connect: Connect, namespace: str
) -> None:
    log = addressing.kafka_state_topic("mesh", namespace, SCOPE)
    await put(table, "state", "b")
    record = message(table._source, [Write("state.a", b"once")], [])
    await client.connection.publish(log, record.value, key=record.key, headers=record.headers, partition=0)
    assert await value_of(table, "state", "a") == b"once"
    await put(table, "state", "a", value=b"newer")
    await table.take_snapshot()
    await client.connection.publish(log, record.value, key=record.key, headers=record.headers, partition=0)
    other = (await connect()).table(SCOPE)
    assert await value_of(other, "state", "a") == b"newer"
    assert await value_of(table, "state", "a") == b"newer"


async def test_half_a_snapshot_is_passed_over(table: KafkaTable, connect: Connect) -> None:
    for turn in ("first", "second", "third"):  # the log has lost its beginning, so that a snapshot is needed
        await fill(table, turn)
        await table.take_snapshot()
    manifest = manifest_of(table)

    async def dies() -> None:
        raise BrokerUnavailable("killed")

    with pytest.raises(BrokerUnavailable):
        await table._snapshots.write(table._replica.state, manifest, dies)
    await put(table, "state", "later")
    assert await told((await connect()).table(SCOPE)) == await told(table)


async def test_snapshots_that_are_mixed_are_told_apart(
    table: KafkaTable, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_snapshot, "PART_ITEMS", 5)
    await fill(table, "first")
    await table.take_snapshot()
    manifest = manifest_of(table)
    old_goes_on, new_goes_on = asyncio.Event(), asyncio.Event()

    async def write(goes_on: asyncio.Event) -> None:
        async def waits() -> None:
            began.set()
            await goes_on.wait()

        began = asyncio.Event()
        task = asyncio.ensure_future(table._snapshots.write(table._replica.state, manifest, waits))
        writing.append(task)
        await asyncio.wait_for(began.wait(), LIMIT)

    writing: list[asyncio.Future[table_snapshot.Manifest]] = []
    await write(old_goes_on)
    await fill(table, "second")
    await table.commit([Delete(key=("state", "k7"))])
    await write(new_goes_on)
    for goes_on, task in zip((old_goes_on, new_goes_on), list(writing), strict=True):
        goes_on.set()
        await asyncio.wait_for(task, LIMIT)
    other = (await connect()).table(SCOPE)
    assert await told(other) == await told(table)
    watch = other.watch((), after=ABSENT)
    revisions = [change.revision async for change in until_current(watch)]
    assert revisions == sorted(set(revisions))


def manifest_of(table: KafkaTable) -> table_snapshot.Manifest:
    entry = table._replica.state.get(tables._SNAPSHOT)
    assert entry is not None
    assert entry.value is not None
    return table_snapshot.decode_manifest(entry.value)


async def test_a_log_that_grows_is_written_down_by_one_of_those_who_use_it(
    table: KafkaTable, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "SNAPSHOT_FROM", 100_000)
    monkeypatch.setattr(tables, "SNAPSHOT_JITTER", 0.1)
    other = (await connect()).table(SCOPE)
    await other.get(("state", "a"))
    async with asyncio.timeout(LIMIT):
        number = 0
        while table._replica.state.get(tables._SNAPSHOT) is None:
            number += 1
            await put(table, "state", f"k{number % 3}", value=b"x" * 10_000)
    assert manifest_of(table).position > 0
    assert keys_of(await scan_all(table, ())) == [("state", "k0"), ("state", "k1"), ("state", "k2")], "it is hidden"
    assert await told((await connect()).table(SCOPE)) == await told(table)


async def test_who_is_so_far_behind_that_the_log_is_gone_takes_the_snapshot(
    server: ApacheKafka, client: LoneKafkaTables, table: KafkaTable, connect: Connect, namespace: str
) -> None:
    log = addressing.kafka_state_topic("mesh", namespace, SCOPE)
    late = (await connect()).table(SCOPE)
    await put(table, "state", "gone")
    losses: list[None] = []
    watch = late.watch(("state",), lost=lambda: losses.append(None))
    assert isinstance(await asyncio.wait_for(anext(watch), LIMIT), Current)
    follower = late._replica.follower
    assert follower is not None
    late._replica._feed.leave(follower)  # as if this process had been stopped
    await fill(table, "first")
    await table.commit([Delete(key=("state", "gone"))])
    await table.take_snapshot()
    end = await put(table, "state", "end")
    needed = manifest_of(table).position
    admin = await client.connection.admin()
    await admin.delete_records({TopicPartition(log, 0): RecordsToDelete(before_offset=needed)})
    await late._replica._feed.follow(follower, late._replica.state.position)
    seen: dict[str, bytes | None] = {}
    async with asyncio.timeout(LIMIT):
        async for change in watch:
            if not isinstance(change, Current):
                seen[change.key[1]] = None if isinstance(change, Gone) else change.value
                if change.revision == end:
                    break
    await watch.aclose()
    assert seen.keys() >= {"gone", "k0", "k3", "only-first", "end"}
    assert seen["gone"] is seen["k3"] is None
    assert losses
    assert await told(late) == await told(table)


async def test_a_log_that_was_cut_is_not_taken_for_a_whole_one(
    client: LoneKafkaTables, table: KafkaTable, connect: Connect, namespace: str
) -> None:
    log = addressing.kafka_state_topic("mesh", namespace, SCOPE)
    await fill(table, "first")
    admin = await client.connection.admin()
    await admin.delete_records({TopicPartition(log, 0): RecordsToDelete(before_offset=2)})
    other = (await connect()).table(SCOPE)
    with pytest.raises(BrokerError, match="restore it, or delete both"):
        await other.get(("state", "a"))
    with pytest.raises(BrokerError, match="restore it, or delete both"):
        await anext(other.watch(("state",)))


# Strangers


async def test_what_strangers_write_is_passed_over(
    client: LoneKafkaTables, table: KafkaTable, connect: Connect, namespace: str
) -> None:
    log = addressing.kafka_state_topic("mesh", namespace, SCOPE)
    snapshots = addressing.kafka_snapshot_topic("mesh", namespace, SCOPE)
    await fill(table, "first")
    await table.take_snapshot()
    publish = client.connection.publish
    for topic in (log, snapshots):
        await publish(topic, b"\xff{", key=b"state.k1", partition=0)
        await publish(topic, None, headers=[("ce_type", b"\xff"), ("ce_id", b"\xff")], partition=0)
        for kind in ("changed", "history", "snapshot", "set"):
            headers = [("ce_type", f"io.meshwire.state.{kind}.v1".encode()), ("ce_id", b"1")]
            await publish(topic, b"\xc1", headers=headers, partition=0)
    before = await told(table)
    assert await told((await connect()).table(SCOPE)) == before
    await put(table, "state", "k1", value=b"works")
    assert await value_of(table, "state", "k1") == b"works"


async def test_others_may_write_values(client: LoneKafkaTables, table: KafkaTable, namespace: str) -> None:
    """As docs/protocol.md tells."""
    log = addressing.kafka_state_topic("mesh", namespace, SCOPE)
    revision = await put(table, "state", "a")
    for expected, value in ((revision + 1, b"lost"), (revision, b"won")):
        headers = [
            ("ce_specversion", b"1.0"),
            ("ce_id", value),
            ("ce_source", b"/tests"),
            ("ce_type", b"io.meshwire.state.set.v1"),
            ("content-type", b"text/plain"),
            ("expected", b"%d" % expected),
            ("ttl", b"100"),
        ]
        await client.connection.publish(log, value, key=b"state.a", headers=headers, partition=0)
    entry = await table.get(("state", "a"))
    assert entry is not None
    assert (entry.value, entry.content_type) == (b"won", "text/plain")
    assert entry.expires == entry.time + 100


async def test_the_end_of_somebodys_transaction_stops_nobody(
    server: ApacheKafka, client: LoneKafkaTables, table: KafkaTable, namespace: str
) -> None:
    """It takes an offset, and never arrives."""
    await put(table, "state", "a")
    log = addressing.kafka_state_topic("mesh", namespace, SCOPE)
    producer = AIOKafkaProducer(bootstrap_servers=server.address, transactional_id=namespace)
    await producer.start()
    try:
        async with producer.transaction():
            await producer.send_and_wait(log, b"x", partition=0)
    finally:
        await producer.stop()
    async with asyncio.timeout(LIMIT):
        while await client._ends.end(log) < 3:
            await asyncio.sleep(0.02)
    assert await asyncio.wait_for(value_of(table, "state", "a"), LIMIT) == b"v"


# Faults


async def test_what_is_written_while_the_end_of_the_log_is_asked_for_does_not_make_it_look_cut(
    client: LoneKafkaTables, table: KafkaTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = table.watch(("state",))
    assert isinstance(await asyncio.wait_for(anext(watch), LIMIT), Current)
    end_of = client._ends.end

    async def late(topic: str) -> int:
        end = await end_of(topic)
        monkeypatch.undo()
        await put(table, "state", "a")
        return end

    monkeypatch.setattr(client._ends, "end", late)
    follower = table._replica.follower
    await table.feel_pulse()
    assert client._ends.end == end_of
    assert table._replica.follower is follower, "it is read anew"
    await watch.aclose()


async def test_those_who_watch_do_not_see_how_a_log_is_read_anew(table: KafkaTable, connect: Connect) -> None:
    other = (await connect()).table(SCOPE)
    await asyncio.gather(*(put(table, "state", f"k{number}") for number in range(600)))
    lost = asyncio.Event()
    watch = other.watch(("state",), lost=lost.set)
    begun = await asyncio.wait_for(anext(watch), LIMIT)
    assert isinstance(begun, Current)
    other._replica.break_off(BrokerUnavailable("as if it had been"))
    assert lost.is_set()
    end = await put(table, "state", "end")
    seen: list[Entry | Gone | Current] = []
    while not seen or seen[-1].revision < end:
        seen.append(await asyncio.wait_for(anext(watch), LIMIT))
    assert all(change.revision >= begun.revision for change in seen), "the table looks younger than it was"
    assert [change.key for change in seen if not isinstance(change, Current)] == [("state", "end")]
    await watch.aclose()


async def test_a_topic_that_is_deleted_is_made_anew(
    client: LoneKafkaTables, table: KafkaTable, connect: Connect, namespace: str
) -> None:
    other = (await connect()).table(SCOPE)
    await fill(table, "first")
    await put(table, "state", "a")
    lost = asyncio.Event()
    watch = other.watch(("state",), lost=lost.set)
    assert isinstance(await asyncio.wait_for(anext(watch), LIMIT), Current)
    admin = await client.connection.admin()
    await admin.delete_topics([addressing.kafka_state_topic("mesh", namespace, SCOPE)])
    await asyncio.wait_for(lost.wait(), LIMIT)
    async with asyncio.timeout(LIMIT):
        while True:
            try:
                await put(table, "state", "new", value=b"1")
                break
            except BrokerError:
                await asyncio.sleep(0.1)
        assert await told(table) == [await table.get(("state", "new"))]
        changes = []
        while not any(isinstance(change, Entry) and change.key == ("state", "new") for change in changes):
            changes.append(await anext(watch))
        await watch.aclose()
    assert await value_of(other, "state", "new") == b"1"


async def test_what_is_written_once_more_is_done_once(
    client: LoneKafkaTables, table: KafkaTable, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The acknowledgement is lost: the writer cannot know, and sends it again."""
    publish = client.connection.publish
    lost = 0

    async def loses(*args: object, **more: object) -> object:
        nonlocal lost
        stored = await publish(*args, **more)  # type: ignore[arg-type]
        if lost < 2:
            lost += 1
            raise BrokerUnavailable("the acknowledgement was lost")
        return stored

    other = (await connect()).table(SCOPE)
    watch = other.watch(("state",))
    await asyncio.wait_for(anext(watch), LIMIT)
    monkeypatch.setattr(client.connection, "publish", loses)
    revision = await put(table, "state", "a", expected=ABSENT)
    assert lost >= 1
    end = await put(table, "state", "end")
    seen = []
    while not seen or seen[-1].revision < end:
        seen.append(await asyncio.wait_for(anext(watch), LIMIT))
    assert [(change.key[1], change.revision) for change in seen if isinstance(change, Entry)] == [
        ("a", revision),
        ("end", end),
    ]
    await watch.aclose()


async def until_current(watch: object) -> AsyncIterator[Entry | Gone]:
    async with asyncio.timeout(LIMIT):
        async for change in watch:  # type: ignore[attr-defined]
            if isinstance(change, Current):
                await watch.aclose()  # type: ignore[attr-defined]
                return
            yield change
