"""What every implementation of `Requests` promises."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from itertools import count
from typing import TypeVar

import pytest

from brokers import streams, workers
from mesh.errors import MeshError, MessageTooLarge
from mesh.ports import Body, NoResponder, Peer, PeerLost, Request, Requests, Response
from tests.contract.implementations import BACKBONES, Backbone

namespaces = (f"calls{number}" for number in count(1))

MEBIBYTE = random.Random(7).randbytes(1 << 20)
SIZES = [0, 1, 1024, streams.CHUNK, streams.CHUNK + 1, 1 << 20, streams.WINDOW + 3 * streams.CHUNK + 7]


@pytest.fixture(scope="module", params=BACKBONES, ids=lambda backbone: backbone.name)
def backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backbone]:
    started = request.param()
    started.start(tmp_path_factory.mktemp(started.name))
    yield started
    started.stop()


@pytest.fixture
def namespace() -> str:
    return next(namespaces)


T = TypeVar("T")
Join = Callable[..., Awaitable[Requests]]


@pytest.fixture
async def join(backbone: Backbone, namespace: str) -> AsyncIterator[Join]:
    """Makes the end of an app's process."""
    joined: list[Requests] = []

    async def join(app_id: str, home: str = namespace) -> Requests:
        joined.append(await backbone.requests(Peer(home, app_id)))
        return joined[-1]

    yield join
    for requests in joined:
        await asyncio.wait_for(requests.close(), 10)


@pytest.fixture
async def shop(join: Join) -> Requests:
    """The caller in most tests."""
    return await join("shop")


@pytest.fixture
def stock(namespace: str) -> Peer:
    """The callee in most tests."""
    return Peer(namespace, "stock")


def get(path: str = "/", **options: object) -> Request:
    return Request(method="GET", path=path, **options)  # type: ignore[arg-type]


def post(body: Body) -> Request:
    return Request(method="POST", path="/", body=body)


async def whole(body: Body) -> bytes:
    return body if isinstance(body, bytes) else b"".join([piece async for piece in body])


async def pieces(body: bytes, size: int = 10_000) -> AsyncGenerator[bytes, None]:
    for start in range(0, len(body), size):
        yield body[start : start + size]


class Endless:
    """A body without an end, that tells how far it got and whether it was closed."""

    def __init__(self, piece: bytes = bytes(streams.CHUNK)) -> None:
        self.piece = piece
        self.sent = 0
        self.closed = asyncio.Event()

    async def stream(self) -> AsyncGenerator[bytes, None]:
        try:
            while True:
                self.sent += len(self.piece)
                yield self.piece
                await asyncio.sleep(0)
        finally:
            self.closed.set()

    async def stalls(self) -> int:
        """How much was sent when the writer got no further."""
        sent = -1
        while sent != self.sent:
            sent = self.sent
            await asyncio.sleep(0.1)
        return sent


class Handler:
    """A handler that waits to be let go, and notes how it ended."""

    def __init__(self) -> None:
        self.begun = 0
        self.most = 0
        self.running = 0
        self.started = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.release = asyncio.Event()

    async def __call__(self, request: Request) -> Response:
        self.begun += 1
        self.running += 1
        self.most = max(self.most, self.running)
        self.started.set()
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        finally:
            self.running -= 1
        return Response(status=200)


async def echo(request: Request) -> Response:
    return Response(status=200, body=await whole(request.body))


async def soon(awaitable: Awaitable[T], within: float = 30.0) -> T:
    return await asyncio.wait_for(awaitable, within)


# What arrives


async def test_a_call_and_its_answer_arrive_as_they_were_sent(shop: Requests, join: Join, stock: Peer) -> None:
    seen: list[Request] = []

    async def handler(request: Request) -> Response:
        seen.append(request)
        return Response(status=418, headers=[(b"X-Answer", b"1")], body=b"no coffee", trailers=[(b"x-t", b"2")])

    await (await join("stock")).serve("stock", handler, concurrency=8)
    request = Request(method="PATCH", path="/a%20b?c=%2F&d", headers=[(b"X-Ask", b"1")], body=b"coffee")
    response = await shop.request(stock, request)

    assert (response.status, response.body) == (418, b"no coffee")
    assert [*response.headers] == [(b"X-Answer", b"1")]
    assert [*response.trailers] == [(b"x-t", b"2")]
    assert (seen[0].method, seen[0].path, seen[0].body) == ("PATCH", "/a%20b?c=%2F&d", b"coffee")
    assert [*seen[0].headers] == [(b"X-Ask", b"1")]


ODD_HEADERS = [
    (b"Set-Cookie", b"a=1; Path=/"),
    (b"x-empty", b""),
    (b"set-cookie", b"b=2, c=3"),
    (b"X-Bytes", bytes(range(256))),
    (b"x-inject", b"1\r\nNats-Rollup: all\r\n\r\n"),
    (b"Meshwire-Request", b'["GET","/other"]'),
    (b"Set-Cookie", b"a=1; Path=/"),
]


async def test_headers_keep_their_order_repeats_case_and_bytes(shop: Requests, join: Join, stock: Peer) -> None:
    async def handler(request: Request) -> Response:
        return Response(status=200, headers=request.headers)

    await (await join("stock")).serve("stock", handler, concurrency=8)
    response = await shop.request(stock, get(headers=ODD_HEADERS))
    assert [*response.headers] == ODD_HEADERS


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_bodies_of_any_size_arrive_byte_for_byte(
    shop: Requests, join: Join, stock: Peer, size: int, streamed: bool
) -> None:
    body = random.Random(size).randbytes(size)

    async def handler(request: Request) -> Response:
        received = await whole(request.body)
        return Response(status=200, body=pieces(received[::-1]) if streamed else received[::-1])

    await (await join("stock")).serve("stock", handler, concurrency=8)
    response = await shop.request(stock, post(pieces(body) if streamed else body))
    assert await whole(response.body) == body[::-1]
    assert isinstance(response.body, bytes) is (not streamed and size <= streams.CHUNK)


async def test_pieces_arrive_while_the_rest_is_not_written_yet(shop: Requests, join: Join, stock: Peer) -> None:
    """Both ways at once: each line is answered before the next is asked."""

    async def handler(request: Request) -> Response:
        async def answers() -> AsyncGenerator[bytes, None]:
            assert not isinstance(request.body, bytes)
            async for line in request.body:
                yield line.upper()

        return Response(status=200, body=answers())

    async def questions() -> AsyncGenerator[bytes, None]:
        while (line := await asked.get()) is not None:
            yield line

    asked: asyncio.Queue[bytes | None] = asyncio.Queue()
    await (await join("stock")).serve("stock", handler, concurrency=8)
    response = await soon(shop.request(stock, post(questions())))
    assert not isinstance(response.body, bytes)
    for line in (b"one\n", b"two\n"):
        asked.put_nowait(line)
        assert await soon(response.body.__anext__()) == line.upper()
    asked.put_nowait(None)
    assert await soon(whole(response.body)) == b""


async def test_an_answer_may_come_before_the_body_was_read(shop: Requests, join: Join, stock: Peer) -> None:
    async def handler(request: Request) -> Response:
        return Response(status=413)

    endless = Endless()
    await (await join("stock")).serve("stock", handler, concurrency=8)
    assert (await soon(shop.request(stock, post(endless.stream())))).status == 413


async def test_headers_beyond_the_limit_are_refused_at_either_end(shop: Requests, join: Join, stock: Peer) -> None:
    async def handler(request: Request) -> Response:
        return Response(status=200, headers=[(b"x", bytes(1 << 20))])

    await (await join("stock")).serve("stock", handler, concurrency=8)
    with pytest.raises(MessageTooLarge):
        await shop.request(stock, get(headers=[(b"x", bytes(1 << 20))]))
    with pytest.raises(PeerLost, match="bytes"):
        await shop.request(stock, get())


# Who calls whom


async def test_the_callee_knows_who_calls(join: Join, stock: Peer, namespace: str) -> None:
    async def handler(request: Request) -> Response:
        assert request.caller is not None
        return Response(status=200, body="/".join(request.caller).encode())

    await (await join("stock")).serve("stock", handler, concurrency=8)
    claimed = Request(method="GET", path="/", caller=Peer("other", "admin"))
    for caller in (Peer(namespace, "shop"), Peer("abroad", "shop"), Peer(namespace, "stock")):
        requests = await join(caller.app_id, caller.namespace)
        assert (await requests.request(stock, claimed)).body == "/".join(caller).encode()


@pytest.mark.quiet
@pytest.mark.parametrize("name", ["nobody", "*", ">", "stock.*", "a b", "", "x" * 5000, "\ud800", "stock\r\nPUB a 0"])
async def test_nobody_there_is_known_at_once(shop: Requests, join: Join, namespace: str, name: str) -> None:
    await (await join("stock")).serve("stock", echo, concurrency=8)
    begun = time.perf_counter()
    for target in (Peer(namespace, name), Peer(name, "stock")):
        with pytest.raises(NoResponder):
            await shop.request(target, get())
    assert time.perf_counter() - begun < 2, "nobody waited for one to come"
    assert (await shop.request(Peer(namespace, "stock"), post(b"still here"))).body == b"still here"


async def test_nobody_there_closes_a_body_that_was_to_be_sent(shop: Requests, namespace: str) -> None:
    closed = asyncio.Event()

    class Body:
        def __aiter__(self) -> AsyncIterator[bytes]:
            raise AssertionError("not to be read")

        def __anext__(self) -> Awaitable[bytes]:
            raise AssertionError("not to be read")

        async def aclose(self) -> None:
            closed.set()

    with pytest.raises(NoResponder):
        await soon(shop.request(Peer(namespace, "nobody"), post(Body())))
    await soon(closed.wait())


async def test_apps_and_namespaces_do_not_see_each_others_calls(join: Join, shop: Requests, namespace: str) -> None:
    names = [Peer(namespace, "stock"), Peer(namespace, "stock2"), Peer("abroad", "stock")]
    for peer in names:

        async def handler(request: Request, peer: Peer = peer) -> Response:
            return Response(status=200, body="/".join(peer).encode())

        await (await join(peer.app_id, peer.namespace)).serve(peer.app_id, handler, concurrency=8)
    for peer in names:
        assert (await shop.request(peer, get())).body == "/".join(peer).encode()


async def test_instances_share_the_calls(join: Join, shop: Requests, stock: Peer) -> None:
    for number in range(3):

        async def handler(request: Request, number: int = number) -> Response:
            return Response(status=200, body=b"%d" % number)

        await (await join("stock")).serve("stock", handler, concurrency=8)
    answers = Counter([(await shop.request(stock, get())).body for _ in range(120)])
    assert answers.total() == 120
    assert len(answers) == 3
    assert min(answers.values()) > 10


async def test_a_call_may_ask_for_one_instance(join: Join, stock: Peer) -> None:
    shop = await join("shop")

    def named(name: bytes) -> Callable[[Request], Awaitable[Response]]:
        async def handler(request: Request) -> Response:
            assert request.caller is not None
            return Response(status=200, body=name + request.caller.app_id.encode())

        return handler

    first, second = await join("stock"), await join("stock")
    await first.serve("stock", named(b"first "), concurrency=8, instance="a.1 x")
    server = await second.serve("stock", named(b"second "), concurrency=8, instance="b")
    with pytest.raises(NoResponder):
        await soon(shop.request(stock, get()))
    await second.serve("stock", named(b"any "), concurrency=8)
    for _ in range(10):
        assert (await shop.request(stock, get(), instance="a.1 x")).body == b"first shop"
        assert (await shop.request(stock, get(), instance="b")).body == b"second shop"
        assert (await shop.request(stock, get())).body == b"any shop"
    for absent in ("c", "cancel", "*", ">", "a", "x" * 4000):
        with pytest.raises(NoResponder):
            await soon(shop.request(stock, get(), instance=absent))
    with pytest.raises(NoResponder):
        await soon(shop.request(Peer(stock.namespace, "other"), get(), instance="b"))
    await soon(server.close())
    with pytest.raises(NoResponder):
        await soon(shop.request(stock, get(), instance="b"))
    assert (await shop.request(stock, get(), instance="a.1 x")).body == b"first shop"


async def test_a_call_to_one_instance_can_be_given_up(join: Join, shop: Requests, stock: Peer) -> None:
    handler = Handler()
    await (await join("stock")).serve("stock", handler, concurrency=8, instance="a")
    call = asyncio.ensure_future(shop.request(stock, get(), instance="a"))
    await soon(handler.started.wait())
    call.cancel()
    await soon(handler.cancelled.wait())


async def test_large_bodies_go_to_and_from_one_instance(join: Join, shop: Requests, stock: Peer) -> None:
    await (await join("stock")).serve("stock", echo, concurrency=8, instance="a")
    response = await shop.request(stock, post(pieces(MEBIBYTE)), instance="a")
    assert await whole(response.body) == MEBIBYTE


async def test_many_calls_at_once(join: Join, shop: Requests, stock: Peer) -> None:
    await (await join("stock")).serve("stock", echo, concurrency=500)
    bodies = [b"%d" % number for number in range(200)]
    responses = await soon(asyncio.gather(*(shop.request(stock, post(body)) for body in bodies)))
    assert [response.body for response in responses] == bodies


# Handlers that fail, take long, or are too many


async def test_a_handler_that_works_long_is_waited_for(
    backbone: Backbone, join: Join, shop: Requests, stock: Peer
) -> None:
    async def handler(request: Request) -> Response:
        await asyncio.sleep(6 * backbone.beat)
        return Response(status=200, body=b"done")

    await (await join("stock")).serve("stock", handler, concurrency=1)
    both = await asyncio.gather(shop.request(stock, get()), shop.request(stock, get()))
    assert [response.body for response in both] == [b"done", b"done"]


async def test_a_streamed_answer_may_pause_for_long(
    backbone: Backbone, join: Join, shop: Requests, stock: Peer
) -> None:
    async def handler(request: Request) -> Response:
        async def body() -> AsyncGenerator[bytes, None]:
            yield b"one"
            await asyncio.sleep(6 * backbone.beat)
            yield b"two"

        return Response(status=200, body=body())

    await (await join("stock")).serve("stock", handler, concurrency=8)
    assert await whole((await shop.request(stock, get())).body) == b"onetwo"


@pytest.mark.parametrize("error", [MeshError("the app is not up: \x00 ü%"), ZeroDivisionError("secret")])
async def test_what_a_handler_raises_is_an_error_at_the_caller(
    join: Join, shop: Requests, stock: Peer, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(request: Request) -> Response:
        raise error

    await (await join("stock")).serve("stock", handler, concurrency=8)
    with pytest.raises(PeerLost) as caught:
        await soon(shop.request(stock, get()))
    if isinstance(error, MeshError):
        assert str(caught.value) == str(error)
    else:
        assert "secret" not in str(caught.value)
        assert "ZeroDivisionError" in caplog.text


async def test_an_answer_that_breaks_off_is_an_error_and_never_a_short_body(
    join: Join, shop: Requests, stock: Peer
) -> None:
    async def handler(request: Request) -> Response:
        async def body() -> AsyncGenerator[bytes, None]:
            yield b"looks whole"
            raise MeshError("the app broke off")

        return Response(status=200, body=body())

    await (await join("stock")).serve("stock", handler, concurrency=8)
    response = await shop.request(stock, get())
    with pytest.raises(PeerLost, match="broke off"):
        await soon(whole(response.body))


async def test_a_request_body_that_breaks_off_cancels_the_handler(join: Join, shop: Requests, stock: Peer) -> None:
    outcome: asyncio.Future[object] = asyncio.get_running_loop().create_future()

    async def handler(request: Request) -> Response:
        try:
            outcome.set_result(await whole(request.body))
        except BaseException as error:
            outcome.set_result(error)
            raise
        return Response(status=200)

    class ClientGone(Exception):
        pass

    async def body() -> AsyncGenerator[bytes, None]:
        yield b"looks whole"
        raise ClientGone

    await (await join("stock")).serve("stock", handler, concurrency=8)
    with pytest.raises(ClientGone):
        await soon(shop.request(stock, post(body())))
    assert isinstance(await soon(outcome), BaseException)


async def test_no_more_than_the_bound_run_at_once_and_the_rest_wait_in_order(
    join: Join, shop: Requests, stock: Peer
) -> None:
    handler = Handler()
    await (await join("stock")).serve("stock", handler, concurrency=3)
    calls = [asyncio.ensure_future(shop.request(stock, get())) for _ in range(10)]
    await soon(handler.started.wait())
    await asyncio.sleep(0.1)
    assert handler.begun == 3
    handler.release.set()
    await soon(asyncio.gather(*calls))
    assert (handler.begun, handler.most) == (10, 3)


async def test_beyond_the_bound_of_those_that_wait_a_call_is_refused_at_once(
    join: Join, shop: Requests, stock: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "MAX_WAITING", 2)
    handler = Handler()
    await (await join("stock")).serve("stock", handler, concurrency=1)
    calls = [asyncio.ensure_future(shop.request(stock, get())) for _ in range(4)]
    refused, _ = await soon(asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED))
    assert [type(call.exception()) for call in refused] == [NoResponder]
    handler.release.set()
    outcomes = await soon(asyncio.gather(*calls, return_exceptions=True))
    assert handler.begun == sum(isinstance(outcome, Response) for outcome in outcomes) == 3


# Letting go


async def test_a_caller_that_gives_up_cancels_the_handler(join: Join, shop: Requests, stock: Peer) -> None:
    handler = Handler()
    await (await join("stock")).serve("stock", handler, concurrency=8)
    call = asyncio.ensure_future(shop.request(stock, get()))
    await soon(handler.started.wait())
    call.cancel()
    await soon(handler.cancelled.wait())
    assert call.cancelled()


async def test_a_call_that_is_given_up_while_it_waits_never_begins(join: Join, shop: Requests, stock: Peer) -> None:
    handler = Handler()
    server = await (await join("stock")).serve("stock", handler, concurrency=1)
    calls = [asyncio.ensure_future(shop.request(stock, get())) for _ in range(2)]
    await soon(handler.started.wait())
    await asyncio.sleep(0.05)
    calls[1].cancel()
    await asyncio.sleep(0.05)
    handler.release.set()
    await soon(calls[0])
    await soon(server.close())
    assert handler.begun == 1


async def test_closing_an_answer_that_is_not_read_stops_the_far_end(join: Join, shop: Requests, stock: Peer) -> None:
    endless = Endless()

    async def handler(request: Request) -> Response:
        return Response(status=200, body=endless.stream())

    await (await join("stock")).serve("stock", handler, concurrency=8)
    response = await shop.request(stock, get())
    assert not isinstance(response.body, bytes)
    async with aclosing(response.body) as body:
        await soon(anext(body))
    await soon(endless.closed.wait())


async def test_a_reader_that_stops_stops_the_writer(join: Join, shop: Requests, stock: Peer) -> None:
    """Down: no more than the window is on its way, and reading on sets it going again."""
    endless = Endless()

    async def handler(request: Request) -> Response:
        return Response(status=200, body=endless.stream())

    await (await join("stock")).serve("stock", handler, concurrency=8)
    response = await shop.request(stock, get())
    assert not isinstance(response.body, bytes)
    await soon(anext(response.body))
    sent = await soon(endless.stalls())
    assert streams.WINDOW / 2 < sent <= streams.WINDOW + 2 * streams.CHUNK
    for _ in range(32):
        await soon(anext(response.body))
    assert endless.sent > sent
    await response.body.aclose()


@pytest.mark.parametrize("size", [1, streams.CHUNK])
async def test_a_handler_that_stops_reading_stops_the_caller(
    join: Join, shop: Requests, stock: Peer, size: int
) -> None:
    """Up, tiny pieces as well."""
    handler = Handler()
    endless = Endless(bytes(size))

    async def read_one(request: Request) -> Response:
        assert not isinstance(request.body, bytes)
        await anext(request.body)
        return await handler(request)

    await (await join("stock")).serve("stock", read_one, concurrency=8)
    call = asyncio.ensure_future(shop.request(stock, post(endless.stream())))
    await soon(handler.started.wait())
    assert await soon(endless.stalls()) <= streams.WINDOW + 2 * size
    assert endless.sent / size <= streams.WINDOW / streams.CHUNK_COST
    call.cancel()
    await soon(endless.closed.wait())
    await soon(handler.cancelled.wait())


async def test_closing_a_server_answers_what_is_under_way_and_takes_no_more(
    join: Join, shop: Requests, stock: Peer
) -> None:
    handler = Handler()
    server = await (await join("stock")).serve("stock", handler, concurrency=1)
    calls = [asyncio.ensure_future(shop.request(stock, get())) for _ in range(3)]
    await soon(handler.started.wait())
    await asyncio.sleep(0.05)
    closing = asyncio.ensure_future(server.close())
    await asyncio.sleep(0.05)
    with pytest.raises(NoResponder):
        await shop.request(stock, get())
    assert not closing.done()
    handler.release.set()
    assert [response.status for response in await soon(asyncio.gather(*calls))] == [200, 200, 200]
    await soon(closing)


async def test_no_call_is_lost_when_an_instance_closes_under_load(join: Join, shop: Requests, stock: Peer) -> None:
    members = [await join("stock") for _ in range(2)]
    servers = [await member.serve("stock", echo, concurrency=8) for member in members]

    async def call_on() -> int:
        answered = 0
        while not done.is_set():
            await shop.request(stock, get())
            answered += 1
        return answered

    done = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        callers = [group.create_task(call_on()) for _ in range(16)]
        await asyncio.sleep(0.05)
        await soon(servers[0].close())
        await soon(members[0].close())
        await asyncio.sleep(0.05)
        done.set()
    assert all(caller.result() for caller in callers)


async def test_a_close_that_is_cancelled_cancels_the_handlers(join: Join, shop: Requests, stock: Peer) -> None:
    handler = Handler()
    server = await (await join("stock")).serve("stock", handler, concurrency=8)
    call = asyncio.ensure_future(shop.request(stock, get()))
    await soon(handler.started.wait())
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(server.close(), 0.05)
    assert handler.cancelled.is_set()
    with pytest.raises(PeerLost, match="shutting down"):
        await soon(call)


@pytest.mark.parametrize("who", ["caller", "callee"])
async def test_closing_everything_ends_the_calls_under_way(join: Join, stock: Peer, who: str) -> None:
    handler = Handler()
    ends = {"caller": await join("shop"), "callee": await join("stock")}
    await ends["callee"].serve("stock", handler, concurrency=8)
    call = asyncio.ensure_future(ends["caller"].request(stock, get()))
    await soon(handler.started.wait())
    await soon(ends[who].close())
    with pytest.raises(PeerLost):
        await soon(call)
    await soon(handler.cancelled.wait())
