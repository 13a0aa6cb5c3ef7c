"""The contract of `AppChannel.call`: bodies that come in pieces, in both directions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from mesh.errors import AppError, AppUnreachable
from mesh.ports import Request
from tests.contract.app_channel.apps import is_silent, running, says, says_and_closes
from tests.ports import free_port

MEGABYTE = 1 << 20
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture
async def serving():
    """Runs an app that reads and writes for itself; gives its port."""
    servers = []
    writers = []

    async def start(serve: Serve) -> int:
        async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers.append(writer)
            await serve(reader, writer)

        servers.append(await asyncio.start_server(served, "127.0.0.1", 0))
        return servers[-1].sockets[0].getsockname()[1]

    yield start
    for server in servers:
        server.close()
    for writer in writers:
        writer.transport.abort()
    await asyncio.sleep(0)


async def pieces(*given: bytes, then: Exception | None = None) -> AsyncIterator[bytes]:
    for piece in given:
        await asyncio.sleep(0)
        yield piece
    if then is not None:
        raise then


async def whole(body) -> bytes:
    return body if isinstance(body, bytes) else b"".join([piece async for piece in body])


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def test_a_short_answer_comes_whole_even_if_its_body_comes_later(open_channel, serving):
    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\nSet-Cookie: a\r\nset-cookie: b\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(0.01)
        writer.write(b"ok")

    response = await open_channel(await serving(serve)).call(Request(method="GET", path="/a?b=c"))
    assert (response.status, response.body) == (404, b"ok")
    assert response.headers == [(b"content-length", b"2"), (b"set-cookie", b"a"), (b"set-cookie", b"b")]


async def test_trailers_of_a_whole_answer(open_channel):
    answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n"
    async with running(says(answer)) as app:
        response = await open_channel(app.port).call(Request(method="GET", path="/"))
    assert response.body == b"ok"
    assert response.trailers == [(b"x-sum", b"1")]


async def test_pieces_come_one_by_one(open_channel, serving):
    go_on = asyncio.Event()

    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for number in range(3):
            writer.write(chunk(b"data: %d\n\n" % number))
            await go_on.wait()
            go_on.clear()
        writer.write(b"0\r\n\r\n")

    channel = open_channel(await serving(serve))
    response = await asyncio.wait_for(channel.call(Request(method="GET", path="/")), 30)
    assert response.status == 200
    seen = []
    async for piece in response.body:
        seen.append(piece)
        go_on.set()
    assert seen == [b"data: 0\n\n", b"data: 1\n\n", b"data: 2\n\n"]


async def test_an_answer_that_ends_with_the_connection(open_channel):
    async with running(says_and_closes(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * MEGABYTE)) as app:
        response = await open_channel(app.port).call(Request(method="GET", path="/"))
        assert len(await whole(response.body)) == MEGABYTE


@pytest.mark.parametrize("framing", [b"content-length: 1048576", b"transfer-encoding: chunked"])
async def test_an_answer_that_breaks_off_never_looks_whole(open_channel, serving, framing):
    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        data = b"x" * 200_000
        writer.write(b"HTTP/1.1 200 OK\r\n%b\r\n\r\n" % framing + (data if b"length" in framing else chunk(data)))
        writer.close()

    response = await open_channel(await serving(serve)).call(Request(method="GET", path="/"))
    with pytest.raises(AppError, match="closed the connection in the middle of its answer"):
        await whole(response.body)


async def test_a_slow_reader_slows_the_app(open_channel, serving):
    sent = 0

    async def serve(reader, writer):
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (64 * MEGABYTE))
        for _ in range(64):
            writer.write(bytes(MEGABYTE))
            await writer.drain()
            sent += 1

    response = await open_channel(await serving(serve)).call(Request(method="GET", path="/"))
    await anext(response.body)
    await asyncio.sleep(0.3)
    assert sent < 32  # what the two sockets and our buffer hold
    assert sum([len(piece) async for piece in response.body]) > 63 * MEGABYTE
    assert sent == 64


async def test_closing_an_answer_hangs_up_and_frees_the_slot(open_channel, serving):
    hung_up = asyncio.Event()

    async def serve(reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        if b"/endless" not in head:
            writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
            return
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunk(b"x"))
        assert await reader.read() == b""
        hung_up.set()

    channel = open_channel(await serving(serve), max_concurrency=1)
    response = await channel.call(Request(method="GET", path="/endless"))
    waiting = channel.call(Request(method="GET", path="/next"))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    await response.body.aclose()
    assert (await asyncio.wait_for(waiting, 30)).status == 204
    await asyncio.wait_for(hung_up.wait(), 30)


async def test_an_upload_is_chunked_unless_its_length_is_known(open_channel, serving):
    bodies = []

    async def serve(reader, writer):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = b"content-length: 10" in head
            bodies.append((length, await (reader.readexactly(10) if length else reader.readuntil(b"\r\n0\r\n\r\n"))))
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")

    channel = open_channel(await serving(serve))
    for headers in ([], [(b"content-length", b"10")]):
        request = Request(method="POST", path="/", headers=headers, body=pieces(b"hello", b"", b"world"))
        assert (await asyncio.wait_for(channel.call(request), 30)).status == 200
    assert bodies == [(False, b"5\r\nhello\r\n5\r\nworld\r\n0\r\n\r\n"), (True, b"helloworld")]
    assert len(channel._pool._open) == 1  # the connection was used again


@pytest.mark.parametrize(
    ("length", "given", "then", "problem"),
    [
        (None, [b"hello"], RuntimeError("gone"), "cut short: gone"),
        (10, [b"hello"], RuntimeError("gone"), "cut short: gone"),
        (10, [b"hello"], None, "5 bytes instead of 10"),
        (3, [b"hello"], None, "longer than the 3 bytes"),
    ],
)
async def test_an_upload_that_is_cut_short_never_looks_whole(open_channel, serving, length, given, then, problem):
    received = asyncio.get_running_loop().create_future()

    async def serve(reader, writer):
        received.set_result(await reader.read())

    headers = [] if length is None else [(b"content-length", b"%d" % length)]
    request = Request(method="POST", path="/", headers=headers, body=pieces(*given, then=then))
    with pytest.raises(AppError, match=problem):
        await asyncio.wait_for(open_channel(await serving(serve)).call(request), 30)
    body = (await asyncio.wait_for(received, 30)).partition(b"\r\n\r\n")[2]
    assert not body.endswith(b"0\r\n\r\n")
    assert length is None or len(body) < length


async def test_a_slow_app_slows_the_upload(open_channel, serving):
    taken = 0
    go_on = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        nonlocal taken
        for _ in range(64):
            taken += 1
            yield bytes(MEGABYTE)

    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        await go_on.wait()
        await reader.readexactly(64 * MEGABYTE)
        writer.write(b"HTTP/1.1 201 Created\r\ncontent-length: 0\r\n\r\n")

    request = Request(method="POST", path="/", headers=[(b"content-length", b"%d" % (64 * MEGABYTE))], body=body())
    call = open_channel(await serving(serve)).call(request)
    await asyncio.sleep(0.3)
    assert taken < 32
    go_on.set()
    assert (await asyncio.wait_for(call, 20)).status == 201


async def test_an_app_that_answers_before_the_upload_is_over(open_channel, serving):
    closed = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        try:
            yield b"x"
            await asyncio.Event().wait()
        finally:
            closed.set()

    connections = 0

    async def serve(reader, writer):
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 No\r\ncontent-length: 0\r\n\r\n")

    channel = open_channel(await serving(serve))
    for number in (1, 2):
        response = await asyncio.wait_for(channel.call(Request(method="POST", path="/", body=body())), 30)
        assert response.status == 413
        await asyncio.wait_for(closed.wait(), 30)
        assert connections == number  # what is left of the upload must not be the next request


async def test_cancelling_a_call_closes_a_body_that_waits_for_the_app(open_channel):
    asked, closed = asyncio.Event(), asyncio.Event()

    class Endless:
        def __aiter__(self):
            return self

        async def __anext__(self):
            asked.set()
            return bytes(MEGABYTE)

        async def aclose(self):
            closed.set()

    async with running(is_silent) as app:
        app.on_connect = lambda peer: peer.transport.pause_reading()
        call = open_channel(app.port).call(Request(method="POST", path="/", body=Endless()))
        await asyncio.wait_for(asked.wait(), 30)
        while asked.is_set():  # until the app takes no more
            asked.clear()
            await asyncio.sleep(0.1)
        call.cancel()
        await asyncio.wait_for(closed.wait(), 30)


async def test_cancelling_a_call_ends_its_upload(open_channel):
    closed = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        try:
            yield b"x"
            await asyncio.Event().wait()
        finally:
            closed.set()

    async with running(is_silent) as app:
        call = open_channel(app.port).call(Request(method="POST", path="/", body=body()))
        await asyncio.wait_for(app.connected.wait(), 30)
        await asyncio.sleep(0.01)
        call.cancel()
        await asyncio.wait_for(closed.wait(), 30)
        await app.all_closed()


async def test_what_other_apps_say_about_the_caller_is_left_out(open_channel):
    async with running() as app:
        request = Request(
            method="GET",
            path="/",
            headers=[(b"Dapr-Caller-App-Id", b"evil"), (b"dapr_caller_app_id", b"e"), (b"x", b"1")],
        )
        await open_channel(app.port, token="t").call(request, [("dapr-caller-app-id", "a")])
    assert app.requests[0].headers == [
        ("host", f"127.0.0.1:{app.port}"),
        ("dapr-api-token", "t"),
        ("dapr-caller-app-id", "a"),
        ("x", "1"),
    ]


@pytest.mark.parametrize(("method", "times"), [("GET", 2), ("PUT", 2), ("POST", 1), ("PATCH", 1)])
async def test_only_idempotent_calls_are_sent_again_over_a_dead_connection(open_channel, method, times):
    def answer(peer, request):
        if peer is app.peers[0] and len(app.requests) > 1:
            peer.close()
        else:
            peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")

    async with running(answer) as app:
        channel = open_channel(app.port)
        await channel.call(Request(method="GET", path="/"))
        call = channel.call(Request(method=method, path="/"))
        if times == 2:
            assert (await call).status == 200
        else:
            with pytest.raises(AppError, match="closed the connection without an answer"):
                await call
        assert len(app.requests) == 1 + times


async def test_an_app_that_is_not_there_closes_the_upload(open_channel):
    with pytest.raises(AppUnreachable):
        await open_channel(free_port()).call(Request(method="POST", path="/", body=pieces(b"x")))
