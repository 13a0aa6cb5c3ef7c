"""What calls over Kafka promise when a peer dies, the servers fail or refuse, or somebody cheats."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol import admin as admin_requests

from brokers.kafka import bodies, station
from brokers.kafka.presence import MISSED_BEATS
from brokers.kafka.requests import BEAT as REAL_BEAT
from brokers.kafka.requests import TICKS_PER_BEAT
from mesh import addressing
from mesh.errors import BrokerError, BrokerUnavailable, MessageTooLarge
from mesh.ports import Body, NoResponder, Peer, PeerLost, Request, Response
from tests.contract.kafka_backbone import BEAT, LoneKafkaRequests, kafka_requests
from tests.contract.stream_peer import PEER, PIECE
from tests.servers import kafka_jars
from tests.servers.apache_kafka import ADMIN, ApacheKafka, cluster

pytestmark = pytest.mark.servers

LIMIT = 30.0
"""Seconds for anything that should happen."""
namespaces = (f"faults{number}" for number in count(1))


@pytest.fixture(scope="module")
def server() -> Iterator[ApacheKafka]:
    if reason := kafka_jars.missing():
        pytest.skip(reason)
    server = ApacheKafka(auto_create_topics_enable="false")
    server.start()
    yield server
    server.remove()


@pytest.fixture
def target() -> Peer:
    return Peer(next(namespaces), "peer")


@asynccontextmanager
async def connected(
    server: ApacheKafka | tuple[str, ...], peer: Peer, **options: Any
) -> AsyncIterator[LoneKafkaRequests]:
    address = server.address if isinstance(server, ApacheKafka) else server
    requests = await kafka_requests(address, peer, **options)
    try:
        yield requests
    finally:
        await asyncio.wait_for(requests.close(), LIMIT)


@pytest.fixture
async def shop(server: ApacheKafka, target: Peer) -> AsyncIterator[LoneKafkaRequests]:
    async with connected(server, Peer(target.namespace, "shop")) as requests:
        yield requests


@pytest.fixture
async def peer(server: ApacheKafka, target: Peer) -> AsyncIterator[LoneKafkaRequests]:
    async with connected(server, target) as requests:
        yield requests


@asynccontextmanager
async def stock_clients(server: ApacheKafka) -> AsyncIterator[tuple[AIOKafkaProducer, AIOKafkaConsumer]]:
    """Of a program that knows Kafka and nothing of us."""
    producer = AIOKafkaProducer(bootstrap_servers=server.address)
    consumer = AIOKafkaConsumer(bootstrap_servers=server.address, auto_offset_reset="earliest")
    await producer.start()
    await consumer.start()
    try:
        yield producer, consumer
    finally:
        await consumer.stop()
        await producer.stop()


@contextmanager
def peer_process(server: ApacheKafka, beat: float = BEAT) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "tests.contract.kafka_peer", server.address, str(beat)],
        stdout=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.communicate()


def get(path: str = "/", body: Body = b"") -> Request:
    return Request(method="GET", path=path, body=body)


async def answer(request: Request) -> Response:
    return Response(status=200, body=b"here")


async def soon(awaitable: Any, within: float = LIMIT) -> Any:
    return await asyncio.wait_for(awaitable, within)


async def until(condition: Callable[[], object], within: float = LIMIT) -> None:
    async with asyncio.timeout(within):
        while not condition():
            await asyncio.sleep(0.01)


class Handler:
    """Waits to be let go, and notes how it ended."""

    def __init__(self) -> None:
        self.begun = 0
        self.started, self.cancelled, self.release = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def __call__(self, request: Request) -> Response:
        self.begun += 1
        self.started.set()
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return Response(status=200, body=b"late")


# A peer dies, or stands still


def test_a_callee_that_dies_is_noticed_within_four_and_a_half_seconds() -> None:
    """The tests below shorten the time between beats; this is what it adds up to without."""
    assert REAL_BEAT * (MISSED_BEATS + 1 / TICKS_PER_BEAT) <= 4.5
    assert REAL_BEAT * MISSED_BEATS > REAL_BEAT * 2


@pytest.mark.parametrize("path", ["/wait", "/down/60000000"])
async def test_a_callee_that_is_killed_fails_its_calls_and_the_next_goes_to_another(
    server: ApacheKafka, path: str
) -> None:
    started = asyncio.Event()

    async def call(shop: LoneKafkaRequests) -> None:
        response = await shop.request(PEER, get(path))
        assert not isinstance(response.body, bytes)
        async for _ in response.body:
            started.set()
            await asyncio.sleep(0.1)

    async with connected(server, Peer(PEER.namespace, "shop")) as shop, connected(server, PEER) as peer:
        with peer_process(server) as process:
            under_way = asyncio.ensure_future(call(shop))
            if path == "/wait":
                await asyncio.sleep(3 * BEAT)
            else:
                await soon(started.wait())
            assert not under_way.done()
            await peer.serve(PEER.app_id, answer, concurrency=8)
            process.kill()
            with pytest.raises(PeerLost):
                await soon(under_way)
            for _ in range(4):
                assert (await soon(shop.request(PEER, get()))).body == b"here"


async def test_a_call_to_an_instance_that_stands_still_is_lost_and_never_handled_later(server: ApacheKafka) -> None:
    async with connected(server, Peer(PEER.namespace, "shop")) as shop:
        with peer_process(server) as process:
            assert (await soon(shop.request(PEER, get()))).body == b"peer"
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED)
            with pytest.raises(PeerLost, match="silent"):
                await soon(shop.request(PEER, get("/wait")))
            with pytest.raises(NoResponder):  # at once: it is not asked again
                await soon(shop.request(PEER, get()))
            process.send_signal(signal.SIGCONT)

            async def answered() -> bytes:
                while True:
                    try:
                        body = (await shop.request(PEER, get())).body
                    except (NoResponder, PeerLost):
                        await asyncio.sleep(0.05)
                    else:
                        assert isinstance(body, bytes)
                        return body

            assert await soon(answered()) == b"peer"


async def test_a_call_to_one_that_died_ends_when_its_presence_does(server: ApacheKafka) -> None:
    """It need not wait as long as one that was taken: its callee was silent before."""
    async with connected(server, Peer(PEER.namespace, "shop")) as shop:
        with peer_process(server) as process:
            assert (await soon(eventually(shop, PEER))).body == b"peer"
            process.kill()
            process.wait()
            under_way = asyncio.ensure_future(shop.request(PEER, get()))
            await until(lambda: shop._calls)
            for call in shop._calls.values():
                call.heard += LIMIT
            with pytest.raises(PeerLost, match="silent, and may have the call"):
                await soon(under_way)


async def test_who_died_before_the_caller_came_is_not_asked(server: ApacheKafka) -> None:
    with peer_process(server) as process:
        process.kill()
        process.wait()
    await asyncio.sleep(BEAT * (MISSED_BEATS + 1))
    async with connected(server, Peer(PEER.namespace, "shop")) as shop:
        with pytest.raises(NoResponder):
            await soon(shop.request(PEER, get()))


async def test_a_reader_that_is_stuck_is_replaced(
    server: ApacheKafka, shop: LoneKafkaRequests, peer: LoneKafkaRequests, target: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(station, "LIMIT", 1.0)
    await peer.serve("peer", answer, concurrency=8)
    assert peer._station is not None
    consumer: Any = peer._station.reader._consumer
    consumer._fetcher._fetch_task.cancel()  # as after an error that aiokafka did not expect
    assert (await soon(eventually(shop, target))).body == b"here"
    await until(lambda: peer._station is not None and peer._station.reader._consumer is not consumer)
    assert (await soon(eventually(shop, target))).body == b"here"


async def test_a_caller_that_dies_cancels_the_handler(
    server: ApacheKafka, peer: LoneKafkaRequests, target: Peer
) -> None:
    """Nobody says so: its silence does."""
    handler = Handler()
    await peer.serve("peer", handler, concurrency=8)
    async with connected(server, Peer(target.namespace, "shop")) as shop:
        call = asyncio.ensure_future(shop.request(target, get()))
        await soon(handler.started.wait())
        assert shop._ticker is not None
        shop._ticker.cancel()  # what a dead process does
        await soon(handler.cancelled.wait())
        call.cancel()


async def test_an_instance_that_comes_back_does_not_answer_for_its_predecessor(
    server: ApacheKafka, shop: LoneKafkaRequests, target: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the same partition: what is for one that says nothing is not for another."""
    monkeypatch.setattr(station, "PARTITIONS", 1)
    begun = 0

    async def handler(request: Request) -> Response:
        nonlocal begun
        begun += 1
        return Response(status=200)

    async with connected(server, target) as first, connected(server, target) as second:
        await first.serve("peer", answer, concurrency=8)
        assert first._station is not None
        await first._station.reader.pause()
        await second.serve("peer", handler, concurrency=8)
        calls = [shop.request(target, get()) for _ in range(2)]
        outcomes = await soon(asyncio.gather(*calls, return_exceptions=True))
        # A machine that is too busy to answer in time loses the other one, too; it is not called for the first.
        kinds = sorted(type(outcome).__name__ for outcome in outcomes)
        assert kinds in (["PeerLost", "Response"], ["PeerLost", "PeerLost"])
        assert begun == 1


async def test_what_an_instance_that_left_has_not_seen_goes_to_another(
    server: ApacheKafka, shop: LoneKafkaRequests, peer: LoneKafkaRequests, target: Peer
) -> None:
    leaving = await kafka_requests(server.address, target)
    await leaving.serve("peer", answer, concurrency=8)
    await soon(shop.request(target, get()))
    assert leaving._station is not None
    await leaving._station.reader.pause()
    call = asyncio.ensure_future(shop.request(target, get()))
    await until(lambda: any(each._offset is not None for each in shop._calls.values()))
    await peer.serve("peer", answer, concurrency=8)
    await leaving.close()
    assert (await soon(call, BEAT * 2)).body == b"here"


async def test_what_one_that_leaves_has_answered_is_heard_even_after_its_farewell(
    server: ApacheKafka, shop: LoneKafkaRequests, target: Peer
) -> None:
    handler = Handler()
    leaving = await kafka_requests(server.address, target)
    service = await leaving.serve("peer", handler, concurrency=8)
    call = asyncio.ensure_future(shop.request(target, get()))
    await soon(handler.started.wait())
    assert shop._station is not None
    consumer: Any = shop._station.reader._consumer
    answers = TopicPartition(shop._station.replies_topic, shop._station.replies_partition)
    consumer.pause(answers)
    handler.release.set()
    await soon(service.close())
    await soon(leaving.close())
    members = shop._station.home.members
    await until(lambda: all(member.beat.app != "peer" for member in members.values()))
    await asyncio.sleep(BEAT)
    assert not call.done()
    consumer.resume(answers)
    assert (await soon(call)).body == b"late"


# The servers fail


async def test_calls_go_on_after_the_server_was_frozen_for_long(
    server: ApacheKafka, shop: LoneKafkaRequests, peer: LoneKafkaRequests, target: Peer
) -> None:
    handler = Handler()
    await peer.serve("peer", handler, concurrency=8)
    call = asyncio.ensure_future(shop.request(target, get()))
    await soon(handler.started.wait())
    server.freeze()
    try:
        with pytest.raises(PeerLost):
            await soon(call)
        await soon(handler.cancelled.wait())
        begun = time.perf_counter()
        with pytest.raises((PeerLost, BrokerUnavailable)):
            await soon(shop.request(target, get()))
        assert time.perf_counter() - begun < 20
        await asyncio.sleep(6)  # longer than what clients wait for an answer
    finally:
        server.thaw()
    handler.release.set()
    assert (await soon(eventually(shop, target))).body == b"late"


async def eventually(requests: LoneKafkaRequests, target: Peer) -> Response:
    while True:
        try:
            return await requests.request(target, get())
        except (NoResponder, PeerLost, BrokerUnavailable):
            await asyncio.sleep(0.1)


async def test_calls_go_on_after_the_server_was_killed_and_started(
    server: ApacheKafka, shop: LoneKafkaRequests, peer: LoneKafkaRequests, target: Peer
) -> None:
    async def handler(request: Request) -> Response:
        return Response(status=200, body=forever() if request.path == "/stream" else b"here")

    async def forever() -> AsyncGenerator[bytes, None]:
        try:
            while True:
                yield PIECE
                await asyncio.sleep(0)
        finally:
            ended.set()

    ended = asyncio.Event()
    await peer.serve("peer", handler, concurrency=8)
    response = await soon(shop.request(target, get("/stream")))
    assert not isinstance(response.body, bytes)
    await soon(anext(response.body))
    await asyncio.to_thread(server.kill)
    with pytest.raises(PeerLost):
        async with asyncio.timeout(LIMIT):
            async for _ in response.body:
                pass
    await soon(ended.wait())
    await until(lambda: shop.connection.problem is not None)
    with pytest.raises(BrokerUnavailable):
        await shop.request(target, get())
    await asyncio.to_thread(server.start)
    assert (await soon(eventually(shop, target))).body == b"here"
    assert (await soon(shop.request(target, get()))).body == b"here"


@pytest.mark.parametrize("which", ["replies", "invoke", "presence"])
async def test_a_topic_that_is_deleted_under_us_is_made_again(
    server: ApacheKafka, shop: LoneKafkaRequests, peer: LoneKafkaRequests, target: Peer, which: str
) -> None:
    handler = Handler()
    await peer.serve("peer", handler, concurrency=8)
    call = asyncio.ensure_future(shop.request(target, get()))
    await soon(handler.started.wait())
    topic = {
        "replies": addressing.kafka_replies_topic("mesh", Peer(target.namespace, "shop")),
        "invoke": addressing.kafka_invoke_topic("mesh", target),
        "presence": addressing.kafka_presence_topic("mesh", target.namespace),
    }[which]
    admin = AIOKafkaAdminClient(bootstrap_servers=server.address)
    await admin.start()
    try:
        await admin.delete_topics([topic])
    finally:
        await admin.close()
    if which == "replies":
        with pytest.raises(PeerLost, match=r"deleted|silent"):  # whatever is noticed first
            await soon(call)
    else:
        if which == "presence":
            await asyncio.sleep(4 * BEAT)
        handler.release.set()
        await asyncio.gather(call, return_exceptions=True)
    handler.release.set()
    assert (await soon(eventually(shop, target))).body == b"late"
    for _ in range(5):
        assert (await soon(shop.request(target, get()))).body == b"late"


async def test_calls_go_on_when_a_leader_dies() -> None:
    if reason := kafka_jars.missing():
        pytest.skip(reason)
    servers = cluster(3, auto_create_topics_enable="false")
    target = Peer("default", "peer")
    try:
        for server in servers:
            server.start(wait=False)
        for server in servers:
            server.wait_until_ready()
        addresses = tuple(server.address for server in servers)
        async with (
            connected(addresses, Peer("default", "shop"), replicas=3) as shop,
            connected(addresses, target, replicas=3) as peer,
        ):
            await peer.serve("peer", answer, concurrency=8)
            # followers may come to a new topic late, and before they do nobody reads what is in it
            assert (await soon(eventually(shop, target), 60)).body == b"here"
            assert peer._station is not None
            consumer: Any = peer._station.reader._consumer
            partition = next(each for each in peer._station.reader.positions if ".invoke." in each.topic)
            servers[consumer._client.cluster.leader_for_partition(partition) - 1].kill()
            for _ in range(10):
                assert (await soon(eventually(shop, target), 60)).body == b"here"
    finally:
        for server in servers:
            server.remove()


# Too large


@pytest.mark.parametrize("way", ["up", "up, its length told", "up, in one piece", "down"])
async def test_a_body_that_is_too_large_is_refused_with_the_reason(
    shop: LoneKafkaRequests, peer: LoneKafkaRequests, target: Peer, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "MAX_BODY", 3_000_000)

    async def pieces() -> AsyncGenerator[bytes, None]:
        for _ in range(20):
            yield PIECE

    async def handler(request: Request) -> Response:
        if not isinstance(request.body, bytes):
            async for _ in request.body:
                pass
        return Response(status=200, body=pieces() if way == "down" else b"")

    await peer.serve("peer", handler, concurrency=8)
    if way == "down":
        response = await soon(shop.request(target, get()))
        with pytest.raises(PeerLost, match="MESHWIRE_REQUESTS"):
            async for _ in response.body:
                pass
        return
    body: Body = pieces()
    headers = []
    if way == "up, its length told":
        headers.append((b"Content-Length", b"4000000"))
    elif way == "up, in one piece":
        body = PIECE * 20
    with pytest.raises(MessageTooLarge, match="MESHWIRE_REQUESTS"):
        await soon(shop.request(target, Request(method="POST", path="/", headers=headers, body=body)))


# Programs that know Kafka and nothing of us


async def test_a_plain_program_answers_a_call(server: ApacheKafka, shop: LoneKafkaRequests, target: Peer) -> None:
    """It says that it is there, reads its topic, and answers where a call says. docs/protocol.md shows it."""
    topic = addressing.kafka_invoke_topic("mesh", target)
    await shop.connection.topics.ensure(topic, 4)
    async with stock_clients(server) as (producer, consumer):
        consumer.assign([TopicPartition(topic, number) for number in range(4)])
        presence = json.dumps({"app": "peer", "every": 60, "serves": [{"app": "peer"}]}).encode()
        await producer.send_and_wait(addressing.kafka_presence_topic("mesh", target.namespace), presence, b"me")
        call = asyncio.ensure_future(
            shop.request(
                target,
                Request(method="PUT", path="/a?b", headers=[(b"Content-Type", b"text/plain")], body=b"question"),
            )
        )
        record = await soon(consumer.getone())
        headers = dict(record.headers)
        assert record.value == b"question"
        assert headers["ce_type"] == b"io.meshwire.invocation.request.v1"
        assert headers["ce_source"] == b"shop"
        assert headers["content-type"] == b"text/plain"
        assert headers["meshwire-request"] == b'["PUT","/a?b",[["Content-Type","text/plain"]]]'
        await producer.send(
            headers["meshwire-reply-topic"].decode(),
            b"answer",
            partition=int(headers["meshwire-reply-partition"]),
            headers=[("correlation_id", headers["correlation_id"]), ("content-type", b"text/x")],
        )
        response = await soon(call)
        assert (response.status, response.body) == (200, b"answer")
        assert [*response.headers] == [(b"content-type", b"text/x")]


async def test_a_plain_program_calls(
    server: ApacheKafka, peer: LoneKafkaRequests, shop: LoneKafkaRequests, target: Peer
) -> None:
    async def handler(request: Request) -> Response:
        assert isinstance(request.body, bytes)
        return Response(status=200, body=f"{request.method} {request.path} {request.caller}".encode() + request.body)

    await peer.serve("peer", handler, concurrency=8)
    station = peer._station
    assert station is not None
    replies = addressing.kafka_replies_topic("mesh", Peer(target.namespace, "script"))
    await shop.connection.topics.ensure(replies, 1)
    async with stock_clients(server) as (producer, consumer):
        consumer.assign([TopicPartition(replies, 0)])
        headers = [
            ("correlation_id", b"7"),
            ("meshwire-to", station.id.encode()),
            ("meshwire-caller", b"script"),
            ("meshwire-reply-partition", b"0"),
        ]
        await producer.send(
            addressing.kafka_invoke_topic("mesh", target),
            b"hello",
            partition=station._places["invoke/peer"].partition,
            headers=headers,
        )
        record = await soon(consumer.getone())
        caller = Peer(target.namespace, "script")
        assert record.value == f"POST / {caller}hello".encode()
        assert dict(record.headers)["correlation_id"] == b"7"


async def test_records_of_strangers_are_passed_over(
    server: ApacheKafka, shop: LoneKafkaRequests, peer: LoneKafkaRequests, target: Peer
) -> None:
    calls = 0

    async def handler(request: Request) -> Response:
        nonlocal calls
        calls += 1
        return Response(status=200)

    await peer.serve("peer", handler, concurrency=8)
    await soon(shop.request(target, get()))
    here, there = peer._station, shop._station
    assert here is not None
    assert there is not None
    to = ("meshwire-to", here.id.encode())
    odd: list[list[tuple[str, bytes]]] = [
        [],
        [("correlation_id", b"1")],
        [("correlation_id", b"\xff\x00")],
        [to, ("correlation_id", b"2")],
        [to, ("correlation_id", b"3"), ("meshwire-caller", b"\xff"), ("meshwire-reply-partition", b"0")],
        [to, ("correlation_id", b"4"), ("meshwire-caller", b"a b"), ("meshwire-reply-partition", b"0")],
        [to, ("correlation_id", b"5"), ("meshwire-caller", b"shop"), ("meshwire-reply-partition", b"x")],
        [("meshwire-frame", b"")],
        [("meshwire-frame", b"chunk -1"), ("correlation_id", b"1")],
        [("meshwire-frame", b"chunk " + b"9" * 5000)],
        [("meshwire-frame", b"cancel")],
        [("meshwire-frame", b"beat")],
    ]
    async with stock_clients(server) as (producer, _):
        for headers in odd:
            for value in (b"", b"\xff{"):
                await producer.send_and_wait(
                    addressing.kafka_invoke_topic("mesh", target),
                    value,
                    partition=here._places["invoke/peer"].partition,
                    headers=headers,
                )
                await producer.send_and_wait(
                    there.replies_topic, value, partition=there.replies_partition, headers=headers
                )
        for key, value in ((None, b"{}"), (b"\xff", b"{}"), (b"a", b"["), (b"b", b'{"app":"peer","every":-1}')):
            await producer.send_and_wait(
                addressing.kafka_presence_topic("mesh", target.namespace), value, key, partition=0
            )
    for _ in range(3):
        assert (await soon(shop.request(target, get()))).status == 200
    assert calls == 4


async def test_a_call_that_a_producer_sends_twice_is_handled_once(
    server: ApacheKafka, shop: LoneKafkaRequests, peer: LoneKafkaRequests, target: Peer
) -> None:
    calls = 0

    async def handler(request: Request) -> Response:
        nonlocal calls
        calls += 1
        return Response(status=200)

    await peer.serve("peer", handler, concurrency=8)
    topic, here = addressing.kafka_invoke_topic("mesh", target), peer._station
    assert here is not None
    partition = TopicPartition(topic, here._places["invoke/peer"].partition)
    async with stock_clients(server) as (producer, consumer):
        consumer.assign([partition])
        await soon(shop.request(target, get()))
        record = await soon(consumer.getone())
        await producer.send_and_wait(topic, record.value, partition=partition.partition, headers=[*record.headers])
    await soon(shop.request(target, get()))
    assert calls == 2


# Who may


USERS = {ADMIN: "open sesame", "peer": "open peer", "shop": "open shop", "mallory": "open mallory"}
READ, WRITE, DESCRIBE, ALLOW, TOPIC, LITERAL = 3, 4, 8, 3, 2, 3


def signed(user: str) -> dict[str, Any]:
    return {
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "PLAIN",
        "sasl_plain_username": user,
        "sasl_plain_password": USERS[user],
    }


async def test_the_server_decides_who_calls_whom_and_as_whom() -> None:
    if reason := kafka_jars.missing():
        pytest.skip(reason)
    server = ApacheKafka(users=USERS, auto_create_topics_enable="false")
    server.start()
    peer, shop, mallory = (Peer("default", name) for name in ("peer", "shop", "mallory"))
    presence = addressing.kafka_presence_topic("mesh", "default")
    pair = addressing.kafka_invoke_topic("mesh", peer, shop)
    replies = {each: addressing.kafka_replies_topic("mesh", each) for each in (peer, shop, mallory)}
    granted = [
        *((user, presence, operation) for user in ("peer", "shop", "mallory") for operation in (READ, WRITE)),
        *((each.app_id, topic, READ) for each, topic in replies.items()),
        ("peer", replies[shop], WRITE),
        ("peer", pair, READ),
        ("shop", pair, WRITE),
    ]
    seen: list[Peer | None] = []

    async def handler(request: Request) -> Response:
        seen.append(request.caller)
        return Response(status=200)

    try:
        async with connected(server, Peer("default", "setup"), **signed(ADMIN)) as setup:
            for topic in (pair, *replies.values()):
                await setup.connection.topics.ensure(topic, 4)
            admin = await setup.connection.admin()
            for user, topic, operation in granted:
                acl = admin_requests.CreateAclsRequest(TOPIC, topic, LITERAL, f"User:{user}", "*", operation, ALLOW)
                await admin._send_to_controller(acl)
        async with (
            connected(server, peer, callers_verified=True, **signed("peer")) as callee,
            connected(server, shop, **signed("shop")) as caller,
            connected(server, mallory, **signed("mallory")) as other,
            connected(server, shop, **signed("shop")) as impostor,
        ):
            await callee.serve("peer", handler, concurrency=8)
            assert (await soon(caller.request(peer, get()))).status == 200
            with pytest.raises(BrokerError, match="refused"):
                await soon(other.request(peer, get()))
            with pytest.raises(BrokerError):  # where another writes
                other._station.me = shop  # type: ignore[union-attr]
                await soon(other.request(peer, get()))
            # on its own topic, in another's name
            station = impostor._station
            assert station is not None
            station.me = mallory
            station._places = {**station._places, "replies/mallory": station._places["replies/shop"]}

            async def address(*_: object) -> tuple[str, int]:
                return pair, callee._station._places["invoke/peer"].partition % 4  # type: ignore[union-attr]

            station.address = address  # type: ignore[method-assign]
            with pytest.raises(PeerLost, match="silent"):
                await soon(impostor.request(peer, get()))
        assert seen == [shop]
    finally:
        server.remove()


async def test_a_topic_of_a_caller_that_is_made_with_its_first_call_is_read(server: ApacheKafka, target: Peer) -> None:
    callers: list[Peer | None] = []

    async def handler(request: Request) -> Response:
        callers.append(request.caller)
        return Response(status=200)

    shop = Peer(target.namespace, "shop")
    async with connected(server, target, callers_verified=True) as peer, connected(server, shop) as caller:
        await peer.serve("peer", handler, concurrency=8)
        for _ in range(3):
            assert (await soon(caller.request(target, get()))).status == 200
        common = addressing.kafka_invoke_topic("mesh", target)
        assert await caller.connection.topics.partitions(common) is None
    assert callers == [shop] * 3


async def test_more_instances_than_partitions_share_them(
    server: ApacheKafka, shop: LoneKafkaRequests, target: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(station, "PARTITIONS", 2)
    answered: set[bytes] = set()
    members = [await kafka_requests(server.address, target) for _ in range(3)]
    try:
        for number, member in enumerate(members):

            async def handler(request: Request, number: int = number) -> Response:
                return Response(status=200, body=b"%d" % number)

            await member.serve("peer", handler, concurrency=8)
        places = [member._station._places["invoke/peer"] for member in members]  # type: ignore[union-attr]
        assert sorted(place.term for place in places) == [0, 1, 1]
        for _ in range(6):
            body = (await soon(shop.request(target, get()))).body
            assert isinstance(body, bytes)
            answered.add(body)
        assert answered == {b"0", b"1", b"2"}
    finally:
        for member in members:
            await member.close()
