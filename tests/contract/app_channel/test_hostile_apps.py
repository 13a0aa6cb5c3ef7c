"""Apps that break off, lie, flood or say nothing: each call ends, soon, with an error that says what happened."""

from __future__ import annotations

import asyncio

import pytest

from mesh.errors import AppError, AppUnreachable
from mesh.ports import Request
from sidecar.channel import Limits
from tests.contract.app_channel.apps import OK, running, says, says_and_closes
from tests.ports import free_port

LIMITS = Limits(header_bytes=2048, header_count=20, body_bytes=4096)


@pytest.mark.parametrize(
    "answer, error",
    [
        (b"", "closed the connection without an answer; see the app's own log"),
        (b"HTTP/1.1 200 O", "closed the connection in the middle of its answer"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf", "closed the connection in the middle of its answer"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n", "in the middle of its answer"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", "closed the connection in the middle of its answer"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "no HTTP/1.1 .*another protocol"),
        (b"\x15\x03\x01\x00\x02\x02P", "no HTTP/1.1"),
        (b"HTTP/1.1 abc OK\r\n\r\n", "no HTTP/1.1"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok", "no HTTP/1.1"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\nok", "no HTTP/1.1"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\nok", "no HTTP/1.1"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", "no HTTP/1.1"),
        (b"HTTP/1.1 101 Switch\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n", "switched to another protocol"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"a" * 3000 + b"\r\n\r\n", "more than 2048 bytes or 20 lines of headers"),
        (b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 21 + b"\r\n", "more than 2048 bytes or 20 lines of headers"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\n" + b"a" * 5000, "more than 4096 bytes, which is the limit"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"a" * 5000, "more than 4096 bytes, which is the limit"),
    ],
)  # fmt: skip
async def test_an_answer_that_is_none(open_channel, answer, error):
    async with running(says_and_closes(answer)) as app:
        channel = open_channel(app.port, limits=LIMITS)
        with pytest.raises(AppError, match=rf"^POST /x: the app at http://127.0.0.1:{app.port} .*{error}"):
            await channel.request("POST", "/x", timeout=5)
        assert len(app.requests) == 1  # a fresh connection: nothing is sent again
        await app.all_closed()
        app.answer = says(OK)
        assert (await channel.request("POST", "/x", timeout=5)).body == b"ok"  # the slot is free


@pytest.mark.parametrize(
    "beginning, more",
    [
        (b"HTTP/1.1 200 OK\r\n", b"x: y\r\n"),
        (b"HTTP/1.1 200 OK\r\nx", b"xxxxxxxxxx"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1;x=", b"xxxxxxxxxx"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n", b"x: y\r\n"),
    ],
)
async def test_what_is_not_the_body_cannot_go_on_for_ever(open_channel, beginning, more):
    async def flood(peer):
        peer.send(beginning)
        while not peer.closed.is_set():
            peer.send(more)
            await asyncio.sleep(0)

    tasks = []
    async with running(lambda peer, request: tasks.append(asyncio.create_task(flood(peer)))) as app:
        with pytest.raises(AppError, match="more than 2048 bytes or 20 lines of headers"):
            await open_channel(app.port, limits=LIMITS).request("GET", "/", timeout=5)
        await asyncio.wait_for(tasks[0], 30)


async def test_a_reset(open_channel):
    async with running(lambda peer, request: peer.reset()) as app:
        with pytest.raises(AppError, match=r"broke the connection \(.*reset.*\) without an answer"):
            await open_channel(app.port).request("GET", "/", timeout=5)
        assert len(app.requests) == 1


async def test_no_app(open_channel):
    port = free_port()
    with pytest.raises(
        AppUnreachable, match=rf"^GET /: cannot connect to the app at http://127.0.0.1:{port} .*is it running"
    ):
        await open_channel(port, max_concurrency=1).request("GET", "/", timeout=5)


async def test_calls_that_wait_fail_one_by_one_when_the_app_is_gone(open_channel):
    channel = open_channel(free_port(), max_concurrency=2)
    calls = [channel.request("GET", "/", timeout=5) for _ in range(20)]
    results = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 30)
    assert all(isinstance(result, AppError) for result in results)


async def test_an_app_that_talks_out_of_turn_is_not_listened_to(open_channel):
    """Bytes on an idle connection must not become the answer to the next call."""
    async with running() as app:
        channel = open_channel(app.port)
        await channel.request("GET", "/1", timeout=5)
        app.peers[0].send(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison")
        await asyncio.wait_for(app.peers[0].closed.wait(), 30)
        assert (await channel.request("GET", "/2", timeout=5)).body == b"ok"
        assert len(app.peers) == 2


async def test_a_late_answer_is_nobodys(open_channel):
    """The connection of a call that timed out is never used again."""
    peers = []
    async with running(lambda peer, request: peers.append(peer)) as app:
        channel = open_channel(app.port, max_concurrency=1)
        with pytest.raises(AppError):
            await channel.request("GET", "/1", timeout=0.2)
        peers[0].send(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nlate")
        app.answer = says(OK)
        assert (await channel.request("GET", "/2", timeout=5)).body == b"ok"


# Kept connections that are dead


def answers_first_then(end):
    """Answers the first request of the first connection and then ends it at the second; later connections work."""

    def answer(peer, request):
        if peer is peer.app.peers[0] and peer.app.requests.index(request) > 0:
            end(peer)
        else:
            peer.send(OK)

    return answer


@pytest.mark.parametrize("end", [lambda peer: peer.close(), lambda peer: peer.reset()], ids=["closed", "reset"])
async def test_a_stale_connection_is_replaced(open_channel, end):
    async with running(answers_first_then(end)) as app:
        channel = open_channel(app.port, max_concurrency=1)
        await channel.request("POST", "/1", timeout=5)
        assert (await channel.request("POST", "/2", body=b"again", timeout=5)).status == 200
        assert [request.line for request in app.requests] == [f"POST /{n} HTTP/1.1" for n in (1, 2, 2)]
        assert app.requests[2].body == b"again"
        assert (await channel.request("GET", "/3", timeout=5)).status == 200  # the slot is free
        assert len(app.peers) == 2


async def test_nothing_is_sent_again_without_permission(open_channel):
    async with running(answers_first_then(lambda peer: peer.close())) as app:
        channel = open_channel(app.port)
        await channel.request("POST", "/1", timeout=5)
        with pytest.raises(AppError, match="closed the connection without an answer"):
            await channel.request("POST", "/2", timeout=5, replay=False)
        assert len(app.requests) == 2


async def test_a_call_that_is_to_be_made_once_is_not_sent_again(open_channel):
    async with running(answers_first_then(lambda peer: peer.close())) as app:
        channel = open_channel(app.port)
        await channel.request("POST", "/1", timeout=5)
        with pytest.raises(AppError, match="closed the connection without an answer"):
            await channel.call(Request(method="PUT", path="/2", body=b"turn"), once=True)
        assert len(app.requests) == 2


async def test_nothing_is_sent_again_after_a_byte_of_the_answer(open_channel):
    async with running(answers_first_then(lambda peer: (peer.send(b"H"), peer.close()))) as app:
        channel = open_channel(app.port)
        await channel.request("POST", "/1", timeout=5)
        with pytest.raises(AppError, match="in the middle of its answer"):
            await channel.request("POST", "/2", timeout=5)
        assert len(app.requests) == 2


async def test_nothing_is_sent_a_third_time(open_channel):
    def answer(peer, request):
        if len(peer.app.requests) == 1:
            peer.send(OK)
        else:
            peer.close()

    async with running(answer) as app:
        channel = open_channel(app.port)
        await channel.request("POST", "/1", timeout=5)
        with pytest.raises(AppError, match="closed the connection without an answer"):
            await channel.request("POST", "/2", timeout=5)
        assert len(app.requests) == 3


async def test_a_connection_that_the_app_closed_while_idle_is_not_used(open_channel):
    async with running() as app:
        channel = open_channel(app.port)
        await channel.request("GET", "/1", timeout=5)
        app.peers[0].close()
        await asyncio.sleep(0.01)
        assert not channel._pool._idle
        assert (await channel.request("GET", "/2", timeout=5, replay=False)).status == 200


async def test_many_calls_to_an_app_that_closes_at_random(open_channel):
    """Whatever happens to connections, every call gets its own answer, once."""

    def answer(peer, request):
        number = int(request.line.split()[1][1:])
        body = b"%d" % number
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        if number % 7 == 0:
            peer.close()

    async with running(answer) as app:
        channel = open_channel(app.port, limits=Limits(connections=8))
        calls = [channel.request("GET", f"/{number}", timeout=20) for number in range(1000)]
        answers = await asyncio.gather(*calls)
    assert [int(answer.body) for answer in answers] == list(range(1000))
