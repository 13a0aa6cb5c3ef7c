"""What calls over NATS promise when a peer dies, the server fails or refuses, or somebody cheats."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import nats
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from brokers import streams
from brokers.nats.connection import Connection, Lookup, Servers
from brokers.nats.requests import BEAT as REAL_BEAT
from brokers.nats.requests import MISSED_BEATS, SWEEPS_PER_BEAT
from mesh.errors import BrokerError, BrokerUnavailable
from mesh.ports import Body, Peer, PeerLost, Request, Response
from tests.contract.implementations import LoneRequests, nats_requests
from tests.contract.nats_server import NatsServer
from tests.contract.stream_peer import PEER, PIECE, memory

SHOP = Peer(PEER.namespace, "shop")
ADDRESS = f"mesh.{PEER.namespace}.invoke.{PEER.app_id}"
BEAT = 0.4
"""Seconds. Calls to a peer that died end after `MISSED_BEATS` of them."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    with NatsServer(tmp_path_factory.mktemp("nats")) as server:
        yield server


@asynccontextmanager
async def connected(url: str, peer: Peer, beat: float = BEAT) -> AsyncIterator[LoneRequests]:
    requests = await nats_requests(url, peer, beat=beat)
    try:
        yield requests
    finally:
        await asyncio.wait_for(requests.close(), 10)


@pytest.fixture
async def shop(server: NatsServer) -> AsyncIterator[LoneRequests]:
    async with connected(server.url, SHOP) as requests:
        yield requests


@pytest.fixture
async def peer(server: NatsServer) -> AsyncIterator[LoneRequests]:
    async with connected(server.url, PEER) as requests:
        yield requests


@pytest.fixture
async def stock_client(server: NatsServer) -> AsyncIterator[Client]:
    """A program that knows NATS and nothing of us."""
    client = await nats.connect(server.url)
    yield client
    await client.close()


@contextmanager
def peer_process(url: str, beat: float = BEAT) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "tests.contract.stream_peer", url, str(beat)],
        stdout=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def get(path: str = "/", body: Body = b"") -> Request:
    return Request(method="GET", path=path, body=body)


async def endless() -> AsyncGenerator[bytes, None]:
    while True:
        yield PIECE
        await asyncio.sleep(0)


async def answer(request: Request) -> Response:
    return Response(status=200, body=b"here")


async def until(condition: Callable[[], object], within: float = 30.0) -> None:
    async with asyncio.timeout(within):
        while not condition():
            await asyncio.sleep(0.01)


# A peer dies


def test_a_callee_that_dies_is_noticed_within_four_and_a_half_seconds() -> None:
    """The tests below shorten the time between beats; this is what it adds up to without."""
    assert REAL_BEAT * (MISSED_BEATS + 1 / SWEEPS_PER_BEAT) < 4.5
    assert REAL_BEAT * MISSED_BEATS > REAL_BEAT * 2  # one beat may be lost


@pytest.mark.parametrize("path", ["/wait", "/down/1000000000", "/up"])
async def test_a_callee_that_is_killed_fails_its_calls_and_the_next_goes_to_another(
    server: NatsServer, shop: LoneRequests, peer: LoneRequests, path: str
) -> None:
    started = asyncio.Event()

    async def body() -> AsyncGenerator[bytes, None]:
        async for piece in endless():
            started.set()
            yield piece

    async def call() -> None:
        response = await shop.request(PEER, get(path, body() if path == "/up" else b""))
        assert not isinstance(response.body, bytes)
        async for _ in response.body:
            started.set()

    with peer_process(server.url) as process:
        under_way = asyncio.ensure_future(call())
        if path == "/wait":
            await asyncio.sleep(2 * BEAT)
        else:
            await asyncio.wait_for(started.wait(), 30)
        assert not under_way.done()
        await peer.serve(PEER.app_id, answer, concurrency=8)
        process.kill()
        with pytest.raises(PeerLost):
            await asyncio.wait_for(under_way, 10)
        assert (await shop.request(PEER, get())).body == b"here"  # one that went to the dead would be lost, too


async def test_a_caller_that_dies_cancels_the_handler(server: NatsServer, peer: LoneRequests) -> None:
    """Nobody says so: the server does, when a beat finds nobody."""
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def handler(request: Request) -> Response:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return Response(status=200)

    await peer.serve(PEER.app_id, handler, concurrency=8)
    async with connected(server.url, SHOP) as shop:
        call = asyncio.ensure_future(shop.request(PEER, get()))
        await asyncio.wait_for(started.wait(), 30)
        assert shop.connection._client is not None
        shop.connection._client.abandon()
        await asyncio.wait_for(cancelled.wait(), 10)
        call.cancel()


async def test_a_caller_that_was_busy_itself_does_not_take_the_callee_for_dead(
    server: NatsServer, shop: LoneRequests
) -> None:
    with peer_process(server.url):
        call = asyncio.ensure_future(shop.request(PEER, get("/wait")))
        await asyncio.sleep(BEAT)
        time.sleep(BEAT * (MISSED_BEATS + 0.5))  # the beats of this time are not read yet
        await asyncio.sleep(BEAT / 2)
        assert not call.done()
        call.cancel()


async def test_a_cancel_does_not_wait_for_a_beat(server: NatsServer) -> None:
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def handler(request: Request) -> Response:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return Response(status=200)

    async with connected(server.url, PEER, beat=60) as peer, connected(server.url, SHOP, beat=60) as shop:
        await peer.serve(PEER.app_id, handler, concurrency=8)
        call = asyncio.ensure_future(shop.request(PEER, get()))
        await asyncio.wait_for(started.wait(), 30)
        call.cancel()
        await asyncio.wait_for(cancelled.wait(), 10)


# A connection is lost, the server goes away


@pytest.mark.parametrize("direction", ["down", "up"])
@pytest.mark.parametrize("end", ["caller", "callee"])
@pytest.mark.parametrize("which", ["main", "bulk"])
async def test_a_connection_lost_in_the_middle_of_a_stream_is_an_error_at_both_ends(
    shop: LoneRequests, peer: LoneRequests, direction: str, end: str, which: str
) -> None:
    flows, ended = asyncio.Event(), asyncio.Event()

    async def handler(request: Request) -> Response:
        if direction == "down":
            return Response(status=200, body=noted())
        assert not isinstance(request.body, bytes)
        try:
            async for _ in request.body:
                flows.set()
        finally:
            ended.set()
        return Response(status=200)

    async def noted() -> AsyncGenerator[bytes, None]:
        try:
            async for piece in endless():
                yield piece
        finally:
            ended.set()

    async def call() -> None:
        response = await shop.request(PEER, get(body=endless() if direction == "up" else b""))
        assert not isinstance(response.body, bytes)
        async for _ in response.body:
            flows.set()

    await peer.serve(PEER.app_id, handler, concurrency=8)
    under_way = asyncio.ensure_future(call())
    await asyncio.wait_for(flows.wait(), 30)
    requests = {"caller": shop, "callee": peer}[end]
    connection = requests.connection if which == "main" else requests.bulk._connection
    assert connection is not None
    assert connection._client is not None
    connection._client._lost("cut")
    with pytest.raises(PeerLost):
        await asyncio.wait_for(under_way, 10)
    await asyncio.wait_for(ended.wait(), 10)


@pytest.mark.parametrize("direction", ["down", "up"])
async def test_a_server_that_restarts_in_the_middle_of_a_stream_is_an_error_at_both_ends(
    server: NatsServer, shop: LoneRequests, peer: LoneRequests, direction: str
) -> None:
    started = asyncio.Event()
    far_end: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def handler(request: Request) -> Response:
        if request.path == "/":
            return Response(status=200)
        if direction == "down":
            return Response(status=200, body=noted())
        try:
            assert not isinstance(request.body, bytes)
            async for _ in request.body:
                started.set()
            far_end.set_result("whole")
        except BaseException as error:
            far_end.set_result(type(error).__name__)
            raise
        return Response(status=200)

    async def noted() -> AsyncGenerator[bytes, None]:
        try:
            async for piece in endless():
                yield piece
        finally:
            far_end.set_result("closed")

    async def call() -> int:
        response = await shop.request(PEER, get("/stream", endless() if direction == "up" else b""))
        assert not isinstance(response.body, bytes)
        received = 0
        async for piece in response.body:
            started.set()
            received += len(piece)
        return received

    await peer.serve(PEER.app_id, handler, concurrency=8)
    under_way = asyncio.ensure_future(call())
    await asyncio.wait_for(started.wait(), 30)
    await asyncio.to_thread(server.kill)
    with pytest.raises(PeerLost):
        await asyncio.wait_for(under_way, 30)
    assert await asyncio.wait_for(far_end, 30) in ("closed", "CancelledError", "PeerLost")

    with pytest.raises(BrokerUnavailable):
        await shop.request(PEER, get())
    await asyncio.to_thread(server.start)
    await until(lambda: shop.connection.problem is None and peer.connection.problem is None)
    assert (await asyncio.wait_for(shop.request(PEER, get()), 30)).status == 200


async def test_an_answer_that_is_ready_while_the_callee_is_cut_off_is_sent_when_it_is_back(
    shop: LoneRequests, peer: LoneRequests
) -> None:
    async def handler(request: Request) -> Response:
        assert peer.connection._client is not None
        peer.connection._client._lost("cut")  # type: ignore[attr-defined]
        return Response(status=200, body=b"late")

    await peer.serve(PEER.app_id, handler, concurrency=8)
    assert (await asyncio.wait_for(shop.request(PEER, get()), 30)).body == b"late"


# The server refuses


def permissions(app_id: str, *, serves: bool, calls: str) -> dict[str, object]:
    own = f"mesh.faults.invoke.{app_id}"
    return {
        "user": app_id,
        "password": app_id,
        "permissions": {
            "subscribe": [f"_INBOX.{app_id}.>"] + ([f"{own}.*", f"{own}.*.cancel"] if serves else []),
            "publish": ["_INBOX.>", calls, f"{calls}.cancel"],
        },
    }


async def test_the_server_decides_who_serves_and_who_calls_whom(tmp_path: Path) -> None:
    users = [
        permissions("peer", serves=True, calls="mesh.*.invoke.*.peer"),
        permissions("shop", serves=False, calls="mesh.*.invoke.*.shop"),
        permissions("mallory", serves=False, calls="mesh.*.invoke.stock.mallory"),
    ]
    body = bytes(1 << 20)

    async def echo(request: Request) -> Response:
        return Response(status=200, body=body)

    with NatsServer(tmp_path / "nats", authorization={"users": users}) as server:

        def url(app_id: str) -> str:
            return server.url.replace("://", f"://{app_id}:{app_id}@")

        async with connected(url("peer"), PEER) as peer, connected(url("shop"), SHOP) as shop:
            await peer.serve(PEER.app_id, echo, concurrency=8)
            response = await shop.request(PEER, get(body=body))
            assert not isinstance(response.body, bytes)
            assert b"".join([piece async for piece in response.body]) == body
            with pytest.raises(BrokerError, match="grant"):
                await asyncio.wait_for(shop.serve("shop", echo, concurrency=8), 2)
        impostor = Connection(Lookup(lambda: Servers([url("mallory")])), name="mallory")
        async with connected(url("mallory"), Peer("faults", "mallory")) as mallory:
            with pytest.raises(BrokerError, match="permission"):
                await asyncio.wait_for(mallory.request(PEER, get()), 2)
        await impostor.start()
        requests = LoneRequests(impostor, SHOP)  # says that it is somebody else
        with pytest.raises(BrokerError, match="permission"):
            await asyncio.wait_for(requests.request(PEER, get()), 2)
        await requests.close()


async def test_the_server_decides_who_is_an_instance_and_who_calls_one(tmp_path: Path) -> None:
    users = [permissions(name, serves=name == "peer", calls=f"mesh.*.invoke.*.{name}") for name in ("peer", "shop")]
    for user in users:
        granted = user["permissions"]
        assert isinstance(granted, dict)
        granted["publish"] += [f"mesh.*.invoke.*.{user['user']}.at.{rest}" for rest in ("*", "*.cancel")]
        if user["user"] == "peer":
            granted["subscribe"] += [f"mesh.faults.invoke.peer.*.at.{rest}" for rest in ("*", "*.cancel")]

    async def who(request: Request) -> Response:
        assert request.caller is not None
        return Response(status=200, body=request.caller.app_id.encode())

    with NatsServer(tmp_path / "nats", authorization={"users": users}) as server:

        def url(app_id: str) -> str:
            return server.url.replace("://", f"://{app_id}:{app_id}@")

        async with connected(url("peer"), PEER) as peer, connected(url("shop"), SHOP) as shop:
            await peer.serve(PEER.app_id, who, concurrency=8, instance="one")
            assert (await asyncio.wait_for(shop.request(PEER, get(), instance="one"), 5)).body == b"shop"
            with pytest.raises(BrokerError, match="grant"):
                await asyncio.wait_for(shop.serve(PEER.app_id, who, concurrency=8, instance="two"), 2)
        impostor = Connection(Lookup(lambda: Servers([url("shop")])), name="shop")
        await impostor.start()
        requests = LoneRequests(impostor, Peer("faults", "other"))  # says that it is somebody else
        with pytest.raises(BrokerError, match="permission"):
            await asyncio.wait_for(requests.request(PEER, get(), instance="one"), 2)
        await requests.close()


async def test_a_server_that_takes_only_small_messages_gets_smaller_chunks(tmp_path: Path) -> None:
    body = PIECE[:100_000]

    async def echo(request: Request) -> Response:
        assert not isinstance(request.body, bytes)
        return Response(status=200, body=b"".join([piece async for piece in request.body]))

    with NatsServer(tmp_path / "nats", max_payload=16_384) as server:
        async with connected(server.url, PEER) as peer, connected(server.url, SHOP) as shop:
            await peer.serve(PEER.app_id, echo, concurrency=8)
            response = await asyncio.wait_for(shop.request(PEER, get(body=body)), 30)
            assert not isinstance(response.body, bytes)
            assert b"".join([piece async for piece in response.body]) == body


# Programs that know NATS and nothing of us


async def test_a_plain_program_answers_a_call(shop: LoneRequests, stock_client: Client) -> None:
    async def respond(message: Msg) -> None:
        assert message.headers is not None
        assert message.headers["ce-type"] == "io.meshwire.invocation.request.v1"
        assert message.headers["ce-source"] == "shop"
        assert message.headers["ce-datacontenttype"] == "text/plain"
        assert message.headers["Meshwire-Request"] == '["PUT","/a?b",[["Content-Type","text/plain"]]]'
        reply = {
            b"event": {"ce-id": "1", "ce-datacontenttype": "text/x;%20q=1"},
            b"plain": {"Content-Type": "text/y"},
            b"bare": None,
            b"repeats": message.headers,  # as `message.respond` does
        }[message.data]
        await stock_client.publish(message.reply, message.data[::-1], headers=reply)

    await stock_client.subscribe(f"{ADDRESS}.*", queue=PEER.app_id, cb=respond)
    await stock_client.flush()
    types = {b"event": b"text/x; q=1", b"plain": b"text/y", b"bare": None, b"repeats": None}
    for body, content_type in types.items():
        request = Request(method="PUT", path="/a?b", headers=[(b"Content-Type", b"text/plain")], body=body)
        response = await asyncio.wait_for(shop.request(PEER, request), 30)
        assert (response.status, response.body) == (200, body[::-1])
        assert [*response.headers] == ([] if content_type is None else [(b"content-type", content_type)])


async def test_a_plain_program_calls(peer: LoneRequests, stock_client: Client) -> None:
    async def handler(request: Request) -> Response:
        assert isinstance(request.body, bytes)
        assert request.caller == Peer(PEER.namespace, "script")
        lines = [request.method, request.path, *(f"{n.decode()}={v.decode()}" for n, v in request.headers)]
        return Response(status=201, body="|".join(lines).encode() + request.body)

    await peer.serve(PEER.app_id, handler, concurrency=8)
    subject = f"{ADDRESS}.script"
    reply = await stock_client.request(subject, b"!", headers={"Content-Type": "text/plain"})
    assert reply.data == b"POST|/|content-type=text/plain!"
    reply = await stock_client.request(subject, b"?", headers={"Meshwire-Request": '["GET", "/x", [["a", "b"]]]'})
    assert reply.data == b"GET|/x|a=b?"
    assert reply.headers is not None
    assert reply.headers["Meshwire-Response"] == "[201,[]]"
    assert reply.headers["ce-type"] == "io.meshwire.invocation.response.v1"


@pytest.mark.parametrize(
    "head", ["", "{", "[]", "[1,2]", '["GET"]', '["GET","/",[["a"]]]', '["GET","/",[["a","\u0141"]]]', '["GET","/",3]']
)
async def test_a_call_that_cannot_be_read_is_refused(peer: LoneRequests, stock_client: Client, head: str) -> None:
    await peer.serve(PEER.app_id, answer, concurrency=8)
    reply = await stock_client.request(f"{ADDRESS}.script", b"", headers={"Meshwire-Request": head or "x"})
    assert reply.headers is not None
    assert reply.headers["Meshwire-Frame"].startswith("error the%20call%20cannot%20be%20read")


@pytest.mark.parametrize("head", ["{", "[]", '["200"]', "[42]", "[99999]", '[200,[["a","\u0141"]]]'])
async def test_an_answer_that_cannot_be_read_is_an_error(shop: LoneRequests, stock_client: Client, head: str) -> None:
    async def respond(message: Msg) -> None:
        await stock_client.publish(message.reply, b"", headers={"Meshwire-Response": head})

    await stock_client.subscribe(f"{ADDRESS}.*", queue=PEER.app_id, cb=respond)
    await stock_client.flush()
    with pytest.raises(PeerLost, match="cannot be read"):
        await asyncio.wait_for(shop.request(PEER, get()), 30)


# Somebody cheats


@pytest.mark.parametrize(
    ("frames", "problem"),
    [
        ([("chunk 0", b"a"), ("chunk 2", b"c"), ("end 3", b"")], "chunk 1 of the body is missing"),
        ([("chunk 0", b"a"), ("end 2", b"")], "chunk 1 of the body is missing"),
        ([("chunk 1", b"b")], "chunk 0 of the body is missing"),
        ([("chunk x", b"a")], "missing"),
        ([("", b"a")], "missing"),
        ([(f"chunk {number}", bytes(streams.CHUNK)) for number in range(17)], "more than it was allowed to"),
        ([("chunk 0", b"a")], "silent"),
    ],
)
async def test_a_body_with_a_gap_is_never_whole(
    shop: LoneRequests, stock_client: Client, frames: list[tuple[str, bytes]], problem: str
) -> None:
    """A callee of bad faith, or one whose messages were lost on the way."""

    async def write(message: Msg) -> None:
        for frame, payload in frames:
            await stock_client.publish(message.reply, payload, headers={"Meshwire-Frame": frame})

    async def respond(message: Msg) -> None:
        head = {"Meshwire-Response": "[200]", "Meshwire-Stream": "1"}
        await stock_client.publish(message.reply, b"", reply=control, headers=head)

    control = stock_client.new_inbox()
    await stock_client.subscribe(control, cb=write)
    await stock_client.subscribe(f"{ADDRESS}.*", queue=PEER.app_id, cb=respond)
    await stock_client.flush()
    response = await asyncio.wait_for(shop.request(PEER, get()), 30)
    assert not isinstance(response.body, bytes)
    with pytest.raises(PeerLost, match=problem):
        async with asyncio.timeout(30):
            await anext(response.body)
            await until(lambda: response.body.over)  # not read meanwhile: no more credit is granted
            await anext(response.body)


async def test_a_callee_cannot_answer_for_another(shop: LoneRequests, peer: LoneRequests, stock_client: Client) -> None:
    """It knows the address of its own call; that tells it nothing about those of others."""
    seen: list[str] = []
    release = asyncio.Event()

    async def spy(message: Msg) -> None:
        seen.append(message.reply)

    async def handler(request: Request) -> Response:
        await release.wait()
        return Response(status=200, body=b"honest")

    await stock_client.subscribe(f"{ADDRESS}-spy.*", queue="spy", cb=spy)
    await stock_client.flush()
    await peer.serve(PEER.app_id, handler, concurrency=8)
    spied = asyncio.ensure_future(shop.request(Peer(PEER.namespace, f"{PEER.app_id}-spy"), get()))
    await until(lambda: seen)
    call = asyncio.ensure_future(shop.request(PEER, get()))
    assert not seen[0].startswith(shop.connection.inbox)
    root, _, token = seen[0].rpartition(".")
    assert len(token) == 32
    for guess in (f"{int(token, 16) + 1:032x}", "1", "*"):
        await stock_client.publish(f"{root}.{guess}", b"forged")
    await stock_client.publish(seen[0], b"its own")
    assert (await asyncio.wait_for(spied, 30)).body == b"its own"
    await stock_client.flush()
    release.set()
    assert (await asyncio.wait_for(call, 30)).body == b"honest"


async def test_a_caller_cannot_have_the_callee_publish_where_it_may_not(
    peer: LoneRequests, stock_client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    calls = 0

    async def handler(request: Request) -> Response:
        nonlocal calls
        calls += 1
        return Response(status=200)

    await peer.serve(PEER.app_id, handler, concurrency=8)
    stolen = await stock_client.subscribe("mesh.faults.event.>")
    await stock_client.publish(f"{ADDRESS}.mallory", b"", reply="mesh.faults.event.pubsub.orders.u")
    await stock_client.publish(f"{ADDRESS}.mallory", b"")
    await stock_client.request(f"{ADDRESS}.honest", b"")
    assert calls == 1
    assert stolen.pending_msgs == 0
    assert "cannot be answered" in caplog.text


async def test_a_caller_cannot_cancel_the_call_of_another(
    shop: LoneRequests, peer: LoneRequests, stock_client: Client
) -> None:
    started, release = asyncio.Event(), asyncio.Event()

    async def handler(request: Request) -> Response:
        started.set()
        await release.wait()
        return Response(status=200)

    service = await peer.serve(PEER.app_id, handler, concurrency=8)
    call = asyncio.ensure_future(shop.request(PEER, get()))
    await asyncio.wait_for(started.wait(), 30)
    (address,) = service._calls  # which only the callee knows: not even its own peers may cancel
    await stock_client.publish(f"{ADDRESS}.mallory.cancel", address)
    await stock_client.flush()
    await peer.connection.round_trip()
    release.set()
    assert (await asyncio.wait_for(call, 30)).status == 200


async def test_a_caller_whose_connection_was_lost_does_not_keep_the_handler(
    shop: LoneRequests, peer: LoneRequests
) -> None:
    """Its inbox is there again, and a beat to a call that is over is answered with a cancel."""
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def handler(request: Request) -> Response:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return Response(status=200)

    await peer.serve(PEER.app_id, handler, concurrency=8)
    call = asyncio.ensure_future(shop.request(PEER, get()))
    await asyncio.wait_for(started.wait(), 30)
    assert shop.connection._client is not None
    shop.connection._client._lost("cut")
    with pytest.raises(PeerLost):
        await asyncio.wait_for(call, 10)
    await asyncio.wait_for(cancelled.wait(), 10)


async def test_of_what_comes_too_late_only_work_is_cancelled(shop: LoneRequests, stock_client: Client) -> None:
    """Credit that crosses the end of its stream is no cause for anything."""
    addresses: list[str] = []

    async def respond(message: Msg) -> None:
        addresses.append(message.reply)
        await message.respond(b"done")

    await stock_client.subscribe(f"{ADDRESS}.*", queue=PEER.app_id, cb=respond)
    answers = await stock_client.subscribe("_INBOX.late.*")
    await stock_client.flush()
    assert (await shop.request(PEER, get())).body == b"done"
    late = {
        "credit": {"Meshwire-Frame": f"credit {streams.WINDOW}"},
        "beat": {"Meshwire-Frame": "beat"},
        "error": {"Meshwire-Frame": "error x"},
        "answer": {"Meshwire-Response": "[200]", "Meshwire-Stream": "1"},
    }
    for name, headers in late.items():
        await stock_client.publish(addresses[0], b"", reply=f"_INBOX.late.{name}", headers=headers)
    cancels = [await answers.next_msg(2) for _ in range(2)]
    assert [message.subject for message in cancels] == ["_INBOX.late.beat", "_INBOX.late.answer"]
    assert {message.headers["Meshwire-Frame"] for message in cancels} == {"cancel"}  # type: ignore[index]
    assert answers.pending_msgs == 0


# Much, for long


@pytest.mark.quiet
async def test_much_goes_through_in_little_memory_while_small_calls_flow(
    server: NatsServer, shop: LoneRequests, record_property: Callable[[str, object], None]
) -> None:
    size = 96 * 1024 * 1024

    async def up() -> None:
        async def body() -> AsyncGenerator[bytes, None]:
            for _ in range(size // len(PIECE)):
                yield PIECE

        response = await shop.request(PEER, get("/up", body()))
        assert response.body == b"%d" % size

    async def down() -> None:
        response = await shop.request(PEER, get(f"/down/{size}"))
        assert not isinstance(response.body, bytes)
        received = 0
        async for piece in response.body:
            received += len(piece)
        assert received == size

    async def small_calls() -> None:
        while not done.is_set():
            begun = time.perf_counter()
            await shop.request(PEER, get())
            latencies.append(time.perf_counter() - begun)
            own.append(memory("VmRSS"))
            await asyncio.sleep(0.01)

    async def peer_memory() -> int:
        response = await shop.request(PEER, get("/memory"))
        assert isinstance(response.body, bytes)
        return int(response.body)

    done = asyncio.Event()
    latencies: list[float] = []
    with peer_process(server.url):
        own, peers = [memory("VmRSS")], await peer_memory()
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            group.create_task(small_calls())
            begun = time.perf_counter()
            async with asyncio.TaskGroup() as bodies:
                bodies.create_task(up())
                bodies.create_task(down())
            seconds = time.perf_counter() - begun
            done.set()
        grown = (max(own) - own[0], await peer_memory() - peers)
    latencies.sort()
    record_property("MiB/s each way", round(size / seconds / (1 << 20)))
    record_property("grown MiB, caller and callee", grown)
    median, high = (latencies[len(latencies) * percent // 100] for percent in (50, 99))
    record_property("small calls p50, p99 ms", [round(1000 * median, 1), round(1000 * high, 1)])
    assert max(grown) < 60
    assert len(latencies) > 20
    assert median < 0.1
