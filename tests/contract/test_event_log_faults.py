"""What the NATS event log promises when its server fails, refuses or is misconfigured."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count
from pathlib import Path

import nats
import nats.js.api
import pytest
from nats.js import JetStreamContext

from brokers.nats import consumer, event_log, reading
from brokers.nats.connection import Connection, Lookup, Reply, Servers
from brokers.nats.event_log import NatsEventLog
from mesh import addressing
from mesh.delivery import dead_letter
from mesh.errors import BrokerError, BrokerUnavailable, ConfigurationError, InvalidEvent, MessageTooLarge
from mesh.ports import OLDEST, Delivery, EventLog, Group, Message, Mode, Order, Start, Topic
from tests.contract.implementations import nats_event_log
from tests.contract.inbox import Inbox
from tests.contract.nats_server import NatsServer, cluster

ORDERS = Topic("pubsub", "orders")
SHIPPING = Group("shipping", ORDERS)

namespaces = (f"faults{number}" for number in count(1))


def raw(payload: str | bytes, **options: object) -> Message:
    data = payload.encode() if isinstance(payload, str) else payload
    return Message(mode=Mode.RAW, payload=data, **options)  # type: ignore[arg-type]


def keep(delivery: Delivery) -> None:
    """Leave it unsettled."""


def inbox(settle: Callable[[Delivery], None] = lambda delivery: delivery.ack()) -> Inbox:
    return Inbox(settle, time.monotonic)


async def until(condition: Callable[[], object], within: float) -> None:
    async with asyncio.timeout(within):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """One for all tests here; each leaves it running."""
    with NatsServer(tmp_path_factory.mktemp("nats")) as server:
        yield server


@pytest.fixture
def namespace() -> str:
    return next(namespaces)


@asynccontextmanager
async def connected(server: NatsServer, namespace: str) -> AsyncIterator[NatsEventLog]:
    log = nats_event_log([server.url], namespace)
    try:
        await asyncio.wait_for(log.start(), 30)
        yield log
    finally:
        await asyncio.wait_for(log.close(), 10)


@asynccontextmanager
async def administrator(server: NatsServer) -> AsyncIterator[JetStreamContext]:
    client = await nats.connect(server.url)
    try:
        yield client.jetstream()
    finally:
        await client.close()


@pytest.fixture
async def log(server: NatsServer, namespace: str) -> AsyncIterator[NatsEventLog]:
    async with connected(server, namespace) as log:
        yield log


@pytest.fixture
async def admin(server: NatsServer) -> AsyncIterator[JetStreamContext]:
    async with administrator(server) as admin:
        yield admin


@pytest.fixture
def stream(namespace: str) -> str:
    return addressing.event_stream(addressing.DEFAULT_PREFIX, namespace)


@pytest.fixture
def short_ack_wait(monkeypatch: pytest.MonkeyPatch) -> float:
    """For tests in which the server may lose what is on its way to us, and has to send it again."""
    monkeypatch.setattr(consumer, "ACK_WAIT", 1.0)
    monkeypatch.setattr(event_log, "ACK_WAIT", 1.0)
    monkeypatch.setattr(consumer, "TICK", 0.1)
    return 1.0


# The server goes away, and comes back


async def more(acknowledged: list[bytes], number: int, within: float) -> None:
    """Returns once so many more are acknowledged."""
    enough = len(acknowledged) + number
    await until(lambda: len(acknowledged) >= enough, within)


async def publish_for_ever(log: EventLog, worker: int, acknowledged: list[bytes]) -> None:
    for number in count():
        payload = b"%d-%d" % (worker, number)
        await log.publish(ORDERS, raw(payload, dedupe_id=payload.decode()))
        acknowledged.append(payload)


@pytest.mark.parametrize("end", ["kill", "stop"])
async def test_nothing_acknowledged_is_lost_when_the_server_restarts_under_load(
    log: EventLog,
    server: NatsServer,
    end: str,
    short_ack_wait: float,
    record_property: Callable[[str, object], None],
) -> None:
    arrivals = inbox()
    await log.subscribe(SHIPPING, arrivals, concurrency=64)
    acknowledged: list[bytes] = []
    async with asyncio.TaskGroup() as group:
        publishers = [group.create_task(publish_for_ever(log, worker, acknowledged)) for worker in range(16)]
        for _ in range(2):
            await more(acknowledged, 500, within=30)
            await asyncio.to_thread(getattr(server, end))
            await until(lambda: log.problem, within=30)
            await asyncio.to_thread(server.start)
        await more(acknowledged, 500, within=30)
        for publisher in publishers:
            publisher.cancel()
    await log.publish(ORDERS, raw("last"))
    await until(lambda: {b"last", *acknowledged} <= set(arrivals.payloads), within=30)
    copies = Counter(payload for payload, _ in {(d.payload, d.position) for d in arrivals.deliveries})
    assert max(copies.values()) == 1, "a repeated publish was stored twice"
    record_property("repeated deliveries", len(arrivals.payloads) - len(copies))


async def test_events_and_groups_outlive_the_server(log: EventLog, server: NatsServer) -> None:
    await (await log.subscribe(SHIPPING, keep, concurrency=1)).close()
    await log.publish(ORDERS, raw("before"))
    server.kill()
    server.start()
    arrivals = inbox()
    await log.publish(ORDERS, raw("after"))
    await log.subscribe(SHIPPING, arrivals, concurrency=8)
    await arrivals.reaches(2)
    assert arrivals.payloads == [b"before", b"after"]


async def test_a_publish_waits_for_the_server_to_come_back(log: EventLog, server: NatsServer) -> None:
    server.stop()
    await until(lambda: log.problem, within=30)
    publish = asyncio.create_task(log.publish(ORDERS, raw("one")))
    await asyncio.sleep(0.3)
    assert not publish.done()
    server.start()
    await asyncio.wait_for(publish, 30)
    assert log.problem is None


async def test_a_delivery_in_hand_may_be_settled_after_a_restart(log: EventLog, server: NatsServer) -> None:
    arrivals = inbox(keep)
    await log.subscribe(SHIPPING, arrivals, concurrency=1)
    await log.publish(ORDERS, raw("one"))
    await log.publish(ORDERS, raw("two"))
    (delivery,) = await arrivals.reaches(1)
    server.stop()
    await until(lambda: log.problem, within=30)
    server.start()
    await until(lambda: log.problem is None, within=30)
    delivery.ack()
    await arrivals.reaches(2)
    assert arrivals.payloads == [b"one", b"two"]
    arrivals.deliveries[1].ack()


async def test_a_frozen_server_is_noticed_and_survived(log: EventLog, server: NatsServer) -> None:
    arrivals = inbox()
    await log.subscribe(SHIPPING, arrivals, concurrency=8)
    await log.publish(ORDERS, raw("before"))
    await arrivals.reaches(1)
    server.freeze()
    try:
        await until(lambda: log.problem, within=30)
    finally:
        server.thaw()
    await log.publish(ORDERS, raw("after"))
    await arrivals.reaches(2)
    assert set(arrivals.payloads) == {b"before", b"after"}


async def test_silence_while_this_process_stood_still_is_not_the_servers(
    log: EventLog, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(consumer, "HEARTBEAT", 0.1)
    monkeypatch.setattr(consumer, "TICK", 0.05)
    arrivals = inbox()
    await log.subscribe(SHIPPING, arrivals, concurrency=8)
    await asyncio.sleep(0.1)
    time.sleep(0.5)  # nobody else runs meanwhile
    await asyncio.sleep(0.2)
    assert "no heartbeat" not in caplog.text


async def test_a_reason_once_given_is_told_though_the_last_attempt_is_cut_short(
    tmp_path: Path, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_log, "PUBLISH_TIMEOUT", 0.5)
    store = {"store_dir": str(tmp_path / "small"), "max_file_store": 1 << 20}
    with NatsServer(tmp_path / "nats", jetstream=store) as server:
        async with connected(server, namespace) as log:
            refused, check = asyncio.Event(), log._position

            def noting(reply: Reply) -> str:
                try:
                    return check(reply)
                except BrokerUnavailable:
                    refused.set()
                    raise

            async def fill() -> None:
                while True:
                    await log.publish(ORDERS, raw(bytes(600_000)))

            monkeypatch.setattr(log, "_position", noting)
            filling = asyncio.create_task(fill())
            await asyncio.wait_for(refused.wait(), 30)
            server.freeze()
            with pytest.raises(BrokerUnavailable, match="insufficient resources"):
                await asyncio.wait_for(filling, 30)
            server.thaw()


async def test_close_does_not_wait_for_a_frozen_server(server: NatsServer, namespace: str) -> None:
    async with connected(server, namespace) as log:
        await log.subscribe(SHIPPING, keep, concurrency=8)
        server.freeze()
        try:
            publishes = [asyncio.create_task(log.publish(ORDERS, raw(f"{number}"))) for number in range(10)]
            await asyncio.sleep(0.1)
            await asyncio.wait_for(log.close(), 10)
            outcomes = await asyncio.wait_for(asyncio.gather(*publishes, return_exceptions=True), 10)
        finally:
            server.thaw()
    assert all(isinstance(outcome, BrokerUnavailable) for outcome in outcomes)


async def test_start_waits_for_the_first_server(tmp_path: Path, namespace: str) -> None:
    server = NatsServer(tmp_path)
    log = nats_event_log([server.url], namespace)
    starting = asyncio.create_task(log.start())
    await until(lambda: "connect" in (log.problem or ""), within=30)
    assert not starting.done()
    with server:
        await asyncio.wait_for(starting, 30)
        await log.publish(ORDERS, raw("one"))
        await asyncio.wait_for(log.close(), 10)


@pytest.mark.parametrize("greeting", [b"INFO\r\n", b"INFO []\r\n", b"x" * 100_000])
async def test_a_stranger_at_the_servers_address_is_survived(
    log: EventLog, server: NatsServer, greeting: bytes
) -> None:
    met = asyncio.Event()

    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        met.set()
        writer.write(greeting)
        writer.close()

    server.stop()
    async with asyncio.timeout(30), await asyncio.start_server(greet, "127.0.0.1", server.port):
        await met.wait()
    server.start()
    await log.publish(ORDERS, raw("0"))


async def test_the_log_moves_to_a_server_that_is_alive(server: NatsServer, tmp_path: Path, namespace: str) -> None:
    gone = NatsServer(tmp_path)
    log = nats_event_log([gone.url, server.url], namespace)
    await asyncio.wait_for(log.start(), 30)
    await log.publish(ORDERS, raw("one"))
    await asyncio.wait_for(log.close(), 10)


@pytest.mark.quiet  # an election has time limits of its own
async def test_the_leader_of_a_cluster_may_die(
    tmp_path: Path, namespace: str, stream: str, short_ack_wait: float
) -> None:
    servers = cluster(tmp_path)
    async with AsyncExitStack() as stack:
        for server in servers:
            stack.callback(server.kill)
            server.start(wait=False)
        for server in servers:
            server.wait_until_ready()
        log = nats_event_log([server.url for server in servers], namespace, replicas=3)
        stack.push_async_callback(log.close)
        await asyncio.wait_for(log.start(), 20)  # it waits for the cluster to elect its first leader
        for server in servers:  # of which two lag behind the leader
            async with connected(server, namespace) as reader:
                for number in range(100):
                    position = await log.publish(Topic("pubsub", "read"), raw(f"{number}"))
                    page = await reader.read(Topic("pubsub", "read"), Start(position=position), limit=10)
                    assert [record.position for record in page.records] == [position]
        arrivals = inbox()
        await asyncio.wait_for(log.subscribe(SHIPPING, arrivals, concurrency=64), 30)
        acknowledged: list[bytes] = []
        publishers = [asyncio.create_task(publish_for_ever(log, worker, acknowledged)) for worker in range(4)]
        await more(acknowledged, 200, within=30)
        async with administrator(servers[0]) as admin:
            leader = (await admin.stream_info(stream)).cluster.leader
        await asyncio.to_thread(next(server for server in servers if server.name == leader).kill)
        await more(acknowledged, 200, within=20)
        assert not any(publisher.done() for publisher in publishers)
        for publisher in publishers:
            publisher.cancel()
        await asyncio.gather(*publishers, return_exceptions=True)
        await until(lambda: set(acknowledged) <= set(arrivals.payloads), within=30)


# Members that die or dawdle


async def test_a_slow_handler_keeps_its_event(log: EventLog, server: NatsServer, short_ack_wait: float) -> None:
    arrivals, others = inbox(keep), inbox()
    await log.subscribe(SHIPPING, arrivals, concurrency=1)
    await log.publish(ORDERS, raw("one"))
    (delivery,) = await arrivals.reaches(1)
    await log.subscribe(SHIPPING, others, concurrency=1)
    await asyncio.sleep(2.5 * short_ack_wait)
    delivery.ack()
    await log.publish(ORDERS, raw("two"))
    await until(lambda: b"two" in arrivals.payloads + others.payloads, within=30)
    assert (arrivals.payloads + others.payloads).count(b"one") == 1
    for delivery in arrivals.deliveries[1:]:
        delivery.ack()


async def test_what_a_dead_process_held_goes_to_another(
    log: EventLog, server: NatsServer, namespace: str, short_ack_wait: float
) -> None:
    dying, living = inbox(keep), inbox()
    connection = Connection(Lookup(lambda: Servers([server.url])), name="dying")
    other = NatsEventLog(connection, namespace=namespace)
    await other.start()
    await other.subscribe(SHIPPING, dying, concurrency=8, order=Order.NONE)
    for number in range(5):
        await log.publish(ORDERS, raw(f"{number}"))
    await dying.reaches(5)
    await connection.close()  # without a word about what it holds
    await log.subscribe(SHIPPING, living, concurrency=8, order=Order.NONE)
    died = time.monotonic()
    await living.reaches(5)
    assert set(living.payloads) == set(dying.payloads)
    assert {delivery.attempt for delivery in living.deliveries} == {2}
    assert time.monotonic() - died > short_ack_wait / 2
    await other.close()


@pytest.mark.parametrize("politely", [True, False], ids=["unsubscribed", "closed"])
async def test_processes_may_come_and_go_under_load(
    log: EventLog, server: NatsServer, namespace: str, politely: bool
) -> None:
    """What is on its way to a process that leaves comes to the others at once, not after the ack wait."""
    arrivals = inbox()
    await log.subscribe(SHIPPING, arrivals, concurrency=8)
    publishes = [asyncio.create_task(log.publish(ORDERS, raw(f"{number}"))) for number in range(3000)]
    while len(arrivals.deliveries) < 2000:
        async with connected(server, namespace) as other:
            member = await other.subscribe(SHIPPING, arrivals, concurrency=64)
            await arrivals.reaches(len(arrivals.deliveries) + 20)
            if politely:
                await asyncio.wait_for(member.close(), 10)
    await asyncio.gather(*publishes)
    await until(lambda: len(set(arrivals.payloads)) == 3000, within=30)


# What others do to our streams and consumers


async def consumers_of(admin: JetStreamContext, stream: str) -> list[nats.js.api.ConsumerInfo]:
    return await admin.consumers_info(stream)


@asynccontextmanager
async def observed(server: NatsServer, subject: str) -> AsyncIterator[list[str]]:
    """The subjects of the messages that are sent there."""
    seen: list[str] = []

    async def note(message: nats.aio.msg.Msg) -> None:
        seen.append(message.subject)

    client = await nats.connect(server.url)
    try:
        await client.subscribe(subject, cb=note)
        await client.flush()
        yield seen
    finally:
        await client.close()


@asynccontextmanager
async def responder(server: NatsServer, subject: str) -> AsyncIterator[list[str]]:
    """Somebody who answers one message that is sent there."""
    asked: list[str] = []

    async def answer(message: nats.aio.msg.Msg) -> None:
        asked.append(message.subject)
        if len(asked) == 1:
            await client.publish(message.reply, b'{"thanks": "a lot"}')

    client = await nats.connect(server.url)
    try:
        await client.subscribe(subject, cb=answer)
        await client.flush()
        yield asked
    finally:
        await client.close()


async def test_acks_reach_the_server(log: EventLog, admin: JetStreamContext, stream: str) -> None:
    arrivals = inbox()
    await log.subscribe(SHIPPING, arrivals, concurrency=8)
    for number in range(100):
        await log.publish(ORDERS, raw(f"{number}", key=None if number % 2 else f"{number}"))
    await arrivals.reaches(100)
    async with asyncio.timeout(30):
        while any(info.num_ack_pending for info in await consumers_of(admin, stream)):
            await asyncio.sleep(0.01)
    assert sum(info.num_pending or 0 for info in await consumers_of(admin, stream)) == 0


async def test_a_deleted_consumer_is_made_again_and_nothing_is_missed(
    log: EventLog, admin: JetStreamContext, stream: str
) -> None:
    held: list[Delivery] = []

    def hold_the_first(delivery: Delivery) -> None:
        if delivery.payload == b"held" and not held:
            held.append(delivery)
        else:
            delivery.ack()

    arrivals = inbox(hold_the_first)
    await log.subscribe(SHIPPING, arrivals, concurrency=8)
    await log.publish(ORDERS, raw("held"))
    for number in range(32):  # in every lane: one that has not begun yet has no place to go on from
        await log.publish(ORDERS, raw("before", key=f"{number}"))
    await arrivals.reaches(33)
    for info in await consumers_of(admin, stream):
        await admin.delete_consumer(stream, info.name)
    held[0].retry(0.0)  # nobody is there to hear it
    for number in range(100):
        await log.publish(ORDERS, raw(f"{number}", key=None if number % 2 else f"{number}"))
    expected = {b"held", b"before", *(f"{number}".encode() for number in range(100))}
    await until(lambda: expected <= set(arrivals.payloads), within=30)
    await until(lambda: arrivals.payloads.count(b"held") == 2, within=30)


async def test_a_consumer_deleted_while_the_server_was_away_is_made_again(
    log: EventLog, server: NatsServer, stream: str
) -> None:
    arrivals = inbox()
    await log.subscribe(SHIPPING, arrivals, concurrency=8)
    await log.publish(ORDERS, raw("before"))
    await arrivals.reaches(1)
    async with administrator(server) as admin:
        names = [info.name for info in await consumers_of(admin, stream)]
    server.stop()
    await until(lambda: log.problem, within=30)
    server.start()
    async with administrator(server) as admin:
        for name in names:
            await admin.delete_consumer(stream, name)
    await log.publish(ORDERS, raw("after"))
    await until(lambda: b"after" in arrivals.payloads, within=30)


async def test_a_consumer_that_cannot_be_mended_is_not_hurried(
    log: EventLog, server: NatsServer, admin: JetStreamContext, stream: str
) -> None:
    arrivals = inbox()
    await log.subscribe(SHIPPING, arrivals, concurrency=8, order=Order.NONE)
    async with observed(server, "$JS.API.CONSUMER.INFO.>") as looks:
        for info in await consumers_of(admin, stream):
            config = info.config.as_dict() | {"max_batch": 1}  # every pull for more is refused from now on
            request = json.dumps({"stream_name": stream, "config": config, "action": "update"}).encode()
            await admin._nc.request(f"$JS.API.CONSUMER.CREATE.{stream}.{info.name}", request)
        for number in range(8):
            await log.publish(ORDERS, raw(f"{number}"))
        await arrivals.reaches(8)
        await asyncio.sleep(1)
    assert 0 < len(looks) < 20


async def test_a_consumer_that_is_as_it_should_be_is_left_alone(
    log: EventLog, server: NatsServer, admin: JetStreamContext, stream: str
) -> None:
    await log.subscribe(SHIPPING, inbox(), concurrency=8, order=Order.NONE)
    async with observed(server, "$JS.API.CONSUMER.CREATE.>") as changes:
        await log.subscribe(SHIPPING, inbox(), concurrency=8, order=Order.NONE)
        assert not changes
        info, *_ = await consumers_of(admin, stream)
        info.config.max_ack_pending = 5
        await admin.add_consumer(stream, info.config)
        changes.clear()
        await log.subscribe(SHIPPING, inbox(), concurrency=8, order=Order.NONE)
        await until(lambda: changes, within=30)
    assert [info.config.max_ack_pending for info in await consumers_of(admin, stream)] == [10_000, 10_000]


async def test_what_a_stranger_answers_to_a_publish_is_no_acknowledgement(
    log: EventLog, server: NatsServer, admin: JetStreamContext, namespace: str, stream: str
) -> None:
    await admin.delete_stream(stream)
    async with responder(server, addressing.event_subjects("mesh", namespace)) as asked:
        await log.publish(ORDERS, raw("0"))
    assert asked
    assert (await admin.stream_info(stream)).state.messages == 1


async def test_a_deleted_stream_is_made_again_and_nothing_new_is_missed(
    log: EventLog, admin: JetStreamContext, stream: str
) -> None:
    arrivals = inbox()
    await log.subscribe(SHIPPING, arrivals, concurrency=8)
    for number in range(20):
        await log.publish(ORDERS, raw(f"{number}"))
    await arrivals.reaches(20)
    await admin.delete_stream(stream)
    for number in range(20, 25):  # at positions that the group has had before
        await log.publish(ORDERS, raw(f"{number}", key=None if number % 2 else "k"))
    await arrivals.reaches(25)
    assert set(arrivals.payloads) == {f"{number}".encode() for number in range(25)}


async def test_what_a_lost_stream_held_settles_nothing_in_the_new_one(
    log: EventLog, admin: JetStreamContext, stream: str
) -> None:
    arrivals = inbox(keep)
    await log.subscribe(SHIPPING, arrivals, concurrency=8)
    await log.publish(ORDERS, raw("old"))
    await arrivals.reaches(1)
    await admin.delete_stream(stream)
    await log.publish(ORDERS, raw("new"))
    old, new = await arrivals.reaches(2)
    assert old.position == new.position
    old.ack()
    await asyncio.sleep(0.1)
    assert sum(info.num_ack_pending or 0 for info in await consumers_of(admin, stream)) == 1
    new.ack()
    async with asyncio.timeout(30):
        while any(info.num_ack_pending for info in await consumers_of(admin, stream)):
            await asyncio.sleep(0.01)


async def test_a_subscribe_makes_a_missing_stream(log: EventLog, admin: JetStreamContext, stream: str) -> None:
    await admin.delete_stream(stream)
    arrivals = inbox()
    await log.subscribe(SHIPPING, arrivals, concurrency=8)
    await log.publish(ORDERS, raw("0"))
    await arrivals.reaches(1)


async def test_a_subscribe_to_a_stream_that_was_replaced_is_refused(
    log: EventLog, admin: JetStreamContext, stream: str
) -> None:
    await admin.delete_stream(stream)
    await admin.add_stream(name=stream, subjects=["something.else"])
    with pytest.raises(BrokerError, match="does not take the subjects"):
        await log.subscribe(SHIPPING, inbox(), concurrency=8)


@pytest.mark.parametrize("setting", ["allow_rollup_hdrs", "allow_msg_schedules"])
async def test_a_stream_that_could_erase_events_is_refused_by_name(
    server: NatsServer, admin: JetStreamContext, namespace: str, stream: str, setting: str
) -> None:
    subjects = [addressing.event_subjects(addressing.DEFAULT_PREFIX, namespace)]
    config = nats.js.api.StreamConfig(name=stream, subjects=subjects, allow_msg_ttl=True, **{setting: True})
    await admin.add_stream(config)
    with pytest.raises(ConfigurationError, match=f"{stream}.*{setting}"):
        async with connected(server, namespace):
            pass


async def test_an_operators_limits_on_the_stream_are_kept(
    server: NatsServer, admin: JetStreamContext, namespace: str, stream: str
) -> None:
    async with connected(server, namespace):
        info = await admin.stream_info(stream)
    info.config.max_bytes = 10_000_000
    info.config.max_age = 3600
    await admin.update_stream(info.config)
    async with connected(server, namespace) as log:
        await log.publish(ORDERS, raw("one"))
    config = (await admin.stream_info(stream)).config
    assert (config.max_bytes, config.max_age) == (10_000_000, 3600)


async def test_more_than_a_thousand_consumers(log: EventLog, admin: JetStreamContext, stream: str) -> None:
    slots = asyncio.Semaphore(100)

    async def add(number: int) -> None:
        async with slots:
            config = nats.js.api.ConsumerConfig(durable_name=f"c{number}", mem_storage=True)
            await admin.add_consumer(stream, config, timeout=20)

    await asyncio.gather(*(add(number) for number in range(1000)))
    arrivals = inbox()
    await log.subscribe(SHIPPING, arrivals, concurrency=8)
    await log.publish(ORDERS, raw("one"))
    await arrivals.reaches(1)


async def test_what_a_stranger_stores_is_an_invalid_event_and_no_more(
    log: EventLog, admin: JetStreamContext, namespace: str
) -> None:
    arrivals = inbox(keep)
    await log.subscribe(SHIPPING, arrivals, concurrency=8)
    subject = addressing.topic_root(addressing.DEFAULT_PREFIX, namespace, ORDERS) + addressing.partition_token(None)
    await admin.publish(subject, b"{}", headers={"ce-specversion": "1.0", "ce-id": "%ZZ"})
    await log.publish(ORDERS, raw("one"))
    first, second = await arrivals.reaches(2)
    with pytest.raises(InvalidEvent):
        _ = first.attributes
    assert second.payload == b"one"
    first.ack()
    second.ack()


# Refusals


async def test_a_strangers_headers_keep_no_message_from_the_dead_letters(
    log: EventLog, admin: JetStreamContext, namespace: str
) -> None:
    dead, arrivals, letters = Topic("pubsub", "dead"), inbox(keep), inbox()
    await log.subscribe(SHIPPING, arrivals, concurrency=8)
    await log.subscribe(Group("shipping", dead), letters, concurrency=8)
    headers = {"Content-Type": "a\tb", "x": "a\tb", "y": "kept"}
    await admin.publish(addressing.topic_root("mesh", namespace, ORDERS) + "u", b"no event", headers=headers)
    (delivery,) = await arrivals.reaches(1)
    await log.publish(dead, dead_letter(delivery, SHIPPING))
    (letter,) = await letters.reaches(1)
    assert (letter.payload, letter.headers, letter.content_type) == (b"no event", {"y": "kept"}, None)


async def test_wrong_credentials_end_the_start_promptly(tmp_path: Path, namespace: str) -> None:
    users = {"users": [{"user": "mesh", "password": "right"}]}
    with NatsServer(tmp_path, authorization=users) as server:
        wrong = nats_event_log([server.url.replace("//", "//mesh:wrong@")], namespace)
        with pytest.raises(ConfigurationError, match="credentials") as refused:
            await asyncio.wait_for(wrong.start(), 30)
        await wrong.close()
        assert "wrong@" not in str(refused.value)
        right = nats_event_log([server.url.replace("//", "//mesh:right@")], namespace)
        await asyncio.wait_for(right.start(), 30)
        await right.close()


async def test_a_server_without_jetstream_is_a_configuration_error(tmp_path: Path, namespace: str) -> None:
    with NatsServer(tmp_path, jetstream=False) as server:
        log = nats_event_log([server.url], namespace)
        try:
            with pytest.raises(ConfigurationError, match="JetStream"):
                await asyncio.wait_for(log.start(), 30)
        finally:
            await log.close()


async def test_a_missing_permission_is_named(tmp_path: Path, namespace: str) -> None:
    subjects = addressing.event_subjects(addressing.DEFAULT_PREFIX, namespace)
    users = [
        {"user": "all", "password": "1"},
        {"user": "reader", "password": "1", "permissions": {"publish": {"deny": [subjects]}}},
        {"user": "writer", "password": "1", "permissions": {"publish": {"deny": ["$JS.API.CONSUMER.>"]}}},
    ]
    with NatsServer(tmp_path, authorization={"users": users}) as server:
        for user in ("reader", "writer"):
            log = nats_event_log([server.url.replace("//", f"//{user}:1@")], namespace)
            await asyncio.wait_for(log.start(), 30)
            with pytest.raises(BrokerError, match=r"(?i)permission") as refused:
                async with asyncio.timeout(10):
                    if user == "reader":
                        await log.publish(ORDERS, raw("one"))
                    else:
                        await log.subscribe(SHIPPING, keep, concurrency=1)
            assert not isinstance(refused.value, BrokerUnavailable)
            assert log.problem is None
            await log.close()


async def test_the_servers_own_limit_counts(tmp_path: Path, namespace: str) -> None:
    with NatsServer(tmp_path, max_payload=4096) as server:
        async with connected(server, namespace) as log:
            with pytest.raises(MessageTooLarge, match="at most 4096"):
                await log.publish(ORDERS, raw(b"x" * 4096))
            server.configure(max_payload=2048)
            server.reload()
            with pytest.raises(MessageTooLarge, match="at most 2048"):
                await log.publish(ORDERS, raw(b"x" * 3000))
            await log.publish(ORDERS, raw(b"x" * 1000))
            assert log.problem is None


# Groups in order


async def test_a_lane_is_as_it_should_be_again_when_somebody_changed_it(
    log: EventLog, admin: JetStreamContext, stream: str
) -> None:
    subscription = await log.subscribe(SHIPPING, inbox(), concurrency=8, order=Order.STRICT)
    [info] = await consumers_of(admin, stream)
    info.config.max_ack_pending = 5
    await admin.add_consumer(stream, info.config)
    await subscription.close()
    await log.subscribe(SHIPPING, inbox(), concurrency=8, order=Order.STRICT)
    assert [info.config.max_ack_pending for info in await consumers_of(admin, stream)] == [100_000]


async def test_a_lane_that_vanished_while_nobody_worked_it_goes_on_where_it_was(
    log: EventLog, admin: JetStreamContext, stream: str
) -> None:
    """What was published while it was not there is not missed."""
    arrivals = inbox()
    subscription = await log.subscribe(SHIPPING, arrivals, concurrency=8, order=Order.STRICT)
    await log.publish(ORDERS, raw("0"))
    await arrivals.reaches(1)
    await subscription.close()
    [info] = await consumers_of(admin, stream)
    await admin.delete_consumer(stream, info.name)
    await log.publish(ORDERS, raw("1"))
    await log.subscribe(SHIPPING, arrivals, concurrency=8, order=Order.STRICT)
    await log.publish(ORDERS, raw("2"))
    await arrivals.reaches(3)
    assert arrivals.payloads == [b"0", b"1", b"2"]


async def test_a_foreign_pull_takes_nothing_from_a_lane(
    log: EventLog, server: NatsServer, admin: JetStreamContext, stream: str
) -> None:
    """As a member leaves it that sleeps: what it would be sent is not what comes next."""
    arrivals = inbox()
    await log.subscribe(SHIPPING, arrivals, concurrency=8, order=Order.STRICT)
    await log.publish(ORDERS, raw("0"))
    await arrivals.reaches(1)
    [info] = await consumers_of(admin, stream)
    client = await nats.connect(server.url)
    taken = await client.subscribe("sleeper")
    await client.publish(
        f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{info.name}", b'{"batch":5,"expires":20000000000}', reply=taken.subject
    )
    await client.flush()
    for number in range(1, 50):
        await log.publish(ORDERS, raw(f"{number}"))
    await arrivals.reaches(50)
    assert arrivals.payloads == [f"{number}".encode() for number in range(50)]
    await client.close()


async def test_a_lane_goes_on_in_order_when_the_broker_is_killed(log: EventLog, server: NatsServer) -> None:
    """What was sent on the lost connection, and acknowledged there, comes again; what is in hand does not."""
    held: list[Delivery] = []

    def settle(delivery: Delivery) -> None:
        if delivery.payload == b"blocked:0":
            held.append(delivery)
        else:
            delivery.ack()

    arrivals = inbox(settle)
    await log.subscribe(SHIPPING, arrivals, concurrency=8, order=Order.KEY)
    for number in range(100):
        await log.publish(ORDERS, raw(f"blocked:{number}", key="blocked"))
        await log.publish(ORDERS, raw(f"free:{number}", key="free"))
    await until(lambda: b"free:99" in arrivals.payloads, within=30)
    server.kill()
    server.start()
    for number in range(100, 110):
        await log.publish(ORDERS, raw(f"blocked:{number}", key="blocked"))
        await log.publish(ORDERS, raw(f"free:{number}", key="free"))
    await until(lambda: b"free:109" in arrivals.payloads, within=30)
    assert len(held) == 1
    held[0].ack()
    await until(lambda: b"blocked:109" in arrivals.payloads, within=30)
    for key in ("blocked", "free"):
        numbers = [payload for payload in arrivals.payloads if payload and payload.startswith(key.encode())]
        assert numbers == [f"{key}:{number}".encode() for number in range(110)]


@pytest.mark.parametrize(
    ("former", "order"), [(Order.NONE, Order.KEY), (Order.KEY, Order.STRICT), (Order.STRICT, Order.NONE)]
)
async def test_a_group_that_changes_its_order_misses_nothing(
    log: EventLog, admin: JetStreamContext, stream: str, former: Order, order: Order
) -> None:
    await (await log.subscribe(SHIPPING, inbox(), concurrency=8, order=former)).close()
    for number in range(20):
        await log.publish(ORDERS, raw(f"{number}", key="k" if number % 2 else None))
    before = {info.name for info in await consumers_of(admin, stream)}
    arrivals = inbox()
    await log.subscribe(SHIPPING, arrivals, concurrency=8, order=order)
    await arrivals.reaches(20)
    assert set(arrivals.payloads) == {f"{number}".encode() for number in range(20)}
    left = {info.name for info in await consumers_of(admin, stream)}
    assert {name.rpartition("_")[2] for name in left & before} <= {"u"}


# Positions, pauses, passing groups, reading


async def test_a_publish_tells_its_position_within_a_domain(tmp_path: Path, namespace: str) -> None:
    """The acknowledgement says more there."""
    jetstream = {"store_dir": str(tmp_path / "store"), "domain": "hub"}
    with NatsServer(tmp_path / "own", jetstream=jetstream) as own:
        async with connected(own, namespace) as log:
            told = [await log.publish(ORDERS, raw(f"{number}", dedupe_id=f"{number % 11}")) for number in range(12)]
            assert told == [*(f"{number}" for number in range(1, 12)), ""]
            page = await log.read(ORDERS, OLDEST, limit=100)
            assert [record.position for record in page.records] == told[:-1]


async def test_a_passing_group_that_is_away_for_long_misses_nothing(
    log: EventLog, admin: JetStreamContext, stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_log, "INACTIVE", 0.2)
    arrivals = inbox()
    member = await log.subscribe(SHIPPING, arrivals, concurrency=8, order=Order.NONE, lasting=False)
    await log.publish(ORDERS, raw("before"))
    await arrivals.reaches(1)
    member.set_concurrency(0)
    await log.publish(ORDERS, raw("meanwhile"))
    async with asyncio.timeout(30):
        while await consumers_of(admin, stream):
            await asyncio.sleep(0.05)
    await log.publish(ORDERS, raw("later"))
    member.set_concurrency(8)
    await arrivals.reaches(3)
    assert arrivals.payloads == [b"before", b"meanwhile", b"later"]


async def test_a_group_that_is_stopped_stays_so_when_the_server_restarts(log: EventLog, server: NatsServer) -> None:
    arrivals = inbox()
    member = await log.subscribe(SHIPPING, arrivals, concurrency=8, order=Order.NONE)
    member.set_concurrency(0)
    server.kill()
    server.start()
    await log.publish(ORDERS, raw("1"))
    await asyncio.sleep(0.2)
    assert arrivals.payloads == []
    member.set_concurrency(8)
    await arrivals.reaches(1)


async def test_a_page_of_a_stream_that_is_gone_is_an_error(log: EventLog, admin: JetStreamContext, stream: str) -> None:
    await log.publish(ORDERS, raw("1"))
    await admin.delete_stream(stream)
    with pytest.raises(BrokerUnavailable, match="nobody answers"):
        await log.read(ORDERS, OLDEST, limit=10)


async def test_a_page_that_stops_coming_is_an_error(
    log: EventLog, server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "SILENCE_LIMIT", 0.2)
    await log.publish(ORDERS, raw("1"))
    server.freeze()
    try:
        with pytest.raises(BrokerUnavailable, match="did not answer in time"):
            await log.read(ORDERS, OLDEST, limit=10)
    finally:
        server.thaw()
    assert len((await log.read(ORDERS, OLDEST, limit=10)).records) == 1


async def test_an_event_that_another_peer_stored_is_read_too(
    log: EventLog, admin: JetStreamContext, namespace: str
) -> None:
    subject = f"mesh.{namespace}.event.pubsub.orders.7"
    await admin.publish(subject, b"{}", headers={"ce-id": "1", "CE-Type": "t", "x-mine": "yes"})
    (record,) = (await log.read(ORDERS, OLDEST, limit=10)).records
    assert (record.topic, record.mode, record.payload) == ("orders", Mode.BINARY, b"{}")
    assert record.headers == {"x-mine": "yes"}
    with pytest.raises(InvalidEvent):
        _ = record.attributes
