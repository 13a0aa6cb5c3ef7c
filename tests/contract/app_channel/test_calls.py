"""The contract of the `AppChannel` port: what every call to an app that behaves can rely on."""

from __future__ import annotations

import asyncio
import logging
import socket

import pytest

from mesh.errors import AppError, ConfigurationError
from sidecar.channel import Limits, UnsafeRequest, http
from tests.contract.app_channel.apps import OK, is_silent, running, says, says_and_closes
from tests.ports import free_port


async def test_sends_the_request_and_returns_the_answer(open_channel):
    answer = b"HTTP/1.1 418 Teapot\r\nContent-Length: 5\r\nSet-Cookie: a\r\nset-cookie: b\r\n\r\nshort"
    async with running(says(answer)) as app:
        response = await open_channel(app.port).request(
            "POST", "/orders?x=%20y", [("content-type", "text/plain"), ("x-a", "1"), ("x-a", "ü")], b"body", timeout=5
        )
    assert response.status == 418
    assert response.headers == [(b"content-length", b"5"), (b"set-cookie", b"a"), (b"set-cookie", b"b")]
    assert response.body == b"short"
    (request,) = app.requests
    assert request.line == "POST /orders?x=%20y HTTP/1.1"
    assert request.body == b"body"
    assert request.headers == [
        ("host", f"127.0.0.1:{app.port}"),
        ("content-length", "4"),
        ("content-type", "text/plain"),
        ("x-a", "1"),
        ("x-a", "ü"),
    ]


@pytest.mark.parametrize("method, length", [("GET", None), ("DELETE", None), ("POST", "0"), ("PUT", "0")])
async def test_an_empty_body_has_a_length_where_the_method_expects_one(open_channel, method, length):
    async with running() as app:
        await open_channel(app.port).request(method, "/", timeout=5)
    assert app.requests[0].header("content-length") == length


async def test_calls_one_after_the_other_share_a_connection(open_channel):
    async with running() as app:
        channel = open_channel(app.port)
        for _ in range(5):
            await channel.request("GET", "/", timeout=5)
        assert len(app.peers) == 1


async def test_can_be_used_from_callbacks(open_channel):
    async with running() as app:
        channel = open_channel(app.port)
        second = asyncio.get_running_loop().create_future()

        def after_the_first(first):
            channel.request("GET", "/second", timeout=5).add_done_callback(
                lambda call: second.set_result(call.result())
            )

        channel.request("GET", "/first", timeout=5).add_done_callback(after_the_first)
        assert (await asyncio.wait_for(second, 30)).status == 200


async def test_a_prepared_route_adds_the_headers_of_each_call(open_channel):
    async with running() as app:
        channel = open_channel(app.port)
        route = channel.prepare("POST", "/a", [("content-type", "x/y"), ("dapr-app-id", "me")])
        await route.send(b"1", channel.header_lines([("traceparent", "t1")]), timeout=5)
        await route.send(b"", timeout=5)
    first, second = app.requests
    assert (first.body, first.header("traceparent"), first.header("content-type")) == (b"1", "t1", "x/y")
    assert (second.body, second.header("traceparent"), second.header("dapr-app-id")) == (b"", None, "me")


async def test_a_large_body_arrives_whole(open_channel):
    body = bytes(range(256)) * 8192  # 2 MiB: more than the socket takes at once
    async with running() as app:
        await open_channel(app.port).request("POST", "/", body=body, timeout=5)
    assert app.requests[0].body == body


async def test_the_app_token_is_on_every_call_but_not_on_probes(open_channel):
    async with running() as app:
        channel = open_channel(app.port, token="s3cret")
        await channel.request("GET", "/", [("dapr-api-token", "stolen"), ("Dapr_Api_Token", "x")], timeout=5)
        assert await channel.probe("/healthz", timeout=5)
    call, probe = app.requests
    assert call.header("dapr-api-token") == "s3cret"
    assert call.header("Dapr_Api_Token") is None
    assert probe.line == "GET /healthz HTTP/1.1"
    assert probe.header("dapr-api-token") is None


async def test_headers_of_the_connection_and_of_the_sidecar_are_not_the_callers(open_channel):
    theirs = [("Host", "evil"), ("content-length", "0"), ("Transfer-Encoding", "chunked"), ("Connection", "close")]
    theirs += [("Dapr-App-Id", "other"), ("x-mine", "1")]
    async with running() as app:
        channel = open_channel(app.port)
        route = channel.prepare("POST", "/", [("dapr-app-id", "me")])
        await route.send(b"body", channel.header_lines(theirs), timeout=5)
        await channel.request("POST", "/", theirs, b"body", timeout=5)
    request, unprepared = app.requests
    assert request.header("host") == f"127.0.0.1:{app.port}"
    assert request.header("content-length") == "4"
    assert request.header("dapr-app-id") == "me"
    assert unprepared.header("dapr-app-id") is None
    assert request.header("x-mine") == unprepared.header("x-mine") == "1"
    assert request.header("transfer-encoding") is request.header("connection") is None


async def test_what_cannot_be_sent_is_refused_before_anything_is(open_channel):
    async with running() as app:
        channel = open_channel(app.port)
        with pytest.raises(UnsafeRequest):
            channel.request("GET", "/", [("x", "a\r\nhost: evil")], timeout=5)
        with pytest.raises(UnsafeRequest):
            channel.request("GET", "/ HTTP/1.1\r\nx: y", timeout=5)
        with pytest.raises(UnsafeRequest):
            channel.prepare("GET\r\n", "/")
        assert not app.peers


# Answers, whole


@pytest.mark.parametrize(
    "answer, body, kept",
    [
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2;x=y\r\nab\r\n1\r\nc\r\n0\r\nx-sum: 1\r\n\r\n",
            b"abc",
            True,
        ),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b"", True),
        (b"HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n", b"", True),
        (b"HTTP/1.1 302 Found\r\nlocation: /there\r\ncontent-length: 0\r\n\r\n", b"", True),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nlink: </x>\r\n\r\n" + OK, b"ok", True),
        (b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok", b"ok", False),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok", b"ok", False),
        (b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\nok", b"ok", True),
        (OK + b"more than asked", b"ok", False),
        (OK + OK, b"ok", False),
    ],
)
async def test_the_answer_ends_where_http_says(open_channel, answer, body, kept):
    async with running(says(answer)) as app:
        channel = open_channel(app.port)
        for _ in range(2):
            response = await channel.request("GET", "/", timeout=5)
            assert response.status == int(answer.rsplit(b"HTTP/1", 1)[1][3:6]) or b"more" in answer
            assert response.body == body
            assert b"x-sum" not in dict(response.headers)
            assert b"link" not in dict(response.headers)
        assert len(app.requests) == 2
        assert len(app.peers) == (1 if kept else 2)


async def test_an_answer_may_end_with_the_connection(open_channel):
    async with running(says_and_closes(b"HTTP/1.1 200 OK\r\n\r\nuntil the end")) as app:
        response = await open_channel(app.port).request("GET", "/", timeout=5)
    assert response.body == b"until the end"


async def test_the_answer_may_come_byte_by_byte(open_channel):
    async def trickle(peer):
        for byte in b"HTTP/1.1 200 OK\r\nx-long: value\r\ncontent-length: 3\r\n\r\nabc":
            peer.send(bytes([byte]))
            await asyncio.sleep(0)

    tasks = []
    async with running(lambda peer, request: tasks.append(asyncio.create_task(trickle(peer)))) as app:
        response = await open_channel(app.port).request("GET", "/", timeout=5)
        await tasks[0]
    assert response.body == b"abc"
    assert (b"x-long", b"value") in response.headers


async def test_the_answer_to_head_has_no_body(open_channel):
    async with running(says(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")) as app:
        channel = open_channel(app.port)
        for _ in range(2):
            response = await channel.request("HEAD", "/", timeout=5)
            assert (response.status, response.body) == (200, b"")


async def test_an_answer_before_the_request_is_read_counts(open_channel):
    """The rest of the request must not become the next one: the connection is not kept."""
    refusal = b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n"

    def stop_reading_and_refuse(peer):
        peer.transport.pause_reading()
        peer.send(refusal)

    async with running() as app:
        app.on_bytes = stop_reading_and_refuse
        channel = open_channel(app.port)
        assert (await channel.request("POST", "/", body=bytes(8_000_000), timeout=5)).status == 413
        app.on_bytes = None
        assert (await channel.request("GET", "/", timeout=5)).status == 200
        assert len(app.peers) == 2
        app.peers[0].transport.resume_reading()  # lets it see the end


# Slots


async def test_at_most_max_concurrency_calls_are_under_way_and_the_rest_in_order(open_channel):
    pending = []
    async with running(lambda peer, request: pending.append(peer)) as app:
        channel = open_channel(app.port, max_concurrency=2)
        calls = [channel.request("GET", f"/{number}", timeout=5) for number in range(6)]
        for done in range(0, 6, 2):
            await app.calls(done + 2)
            assert len(app.requests) == done + 2
            # The slot is held until the body is there.
            for peer in pending:
                peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\no")
            await asyncio.sleep(0.01)
            assert len(app.requests) == done + 2
            peers, pending[:] = pending[:], []
            for peer in peers:
                peer.send(b"k")
        await asyncio.wait_for(asyncio.gather(*calls), 30)
        lines = [request.line for request in app.requests]
        assert [sorted(lines[at : at + 2]) for at in (0, 2, 4)] == [
            [f"GET /{number} HTTP/1.1" for number in (at, at + 1)] for at in (0, 2, 4)
        ]
        assert len(app.peers) == 2


async def test_connections_are_bounded_without_max_concurrency(open_channel):
    async with running(is_silent) as app:
        channel = open_channel(app.port, max_concurrency=-1, limits=Limits(connections=3))
        calls = [channel.request("GET", "/", timeout=5) for _ in range(5)]
        await app.calls(3)
        await asyncio.sleep(0.01)
        assert len(app.peers) == 3
        for call in calls:
            call.cancel()


async def test_the_queue_is_bounded(open_channel):
    async with running(is_silent) as app:
        channel = open_channel(app.port, limits=Limits(connections=1, waiting=1))
        calls = [channel.request("GET", "/", timeout=5)]
        await app.calls(1)
        calls += [channel.request("GET", "/", timeout=5) for _ in range(2)]
        with pytest.raises(AppError, match="works on 1 calls and 1 are waiting"):
            await calls[2]
        assert not calls[0].done()
        assert not calls[1].done()
        calls[1].cancel()
        assert not channel.request("GET", "/", timeout=5).done()  # a cancelled call has left the queue


async def test_probes_need_no_slot(open_channel):
    def answer(peer, request):
        if "/healthz" in request.line:
            peer.send(OK)

    async with running(answer) as app:
        channel = open_channel(app.port, max_concurrency=1)
        call = channel.request("GET", "/slow", timeout=5)
        await app.calls(1)
        assert await channel.probe("/healthz", timeout=5)
        assert not call.done()


# Time


async def test_a_call_that_takes_too_long_fails_and_its_connection_closes(open_channel):
    async with running(is_silent) as app:
        channel = open_channel(app.port)
        with pytest.raises(AppError, match=r"POST /slow: the app at http://127.0.0.1:\d+ did not answer in time"):
            await channel.request("POST", "/slow?token=secret", timeout=0.2)
        await app.all_closed()


async def test_an_answer_that_stops_half_way_is_named_so(open_channel):
    async with running(says(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf")) as app:
        with pytest.raises(AppError, match="began its answer but did not end it in time"):
            await open_channel(app.port).request("GET", "/", timeout=0.2)


async def test_the_time_in_the_queue_counts(open_channel):
    async with running(is_silent) as app:
        channel = open_channel(app.port, max_concurrency=1)
        first = channel.request("GET", "/1", timeout=5)
        with pytest.raises(AppError, match="still worked on 1 other calls"):
            await channel.request("GET", "/2", timeout=0.2)
        assert not first.done()
        assert len(app.requests) == 1


async def test_each_call_has_its_own_limit_whatever_the_order(open_channel):
    async with running(is_silent) as app:
        channel = open_channel(app.port)
        loop = asyncio.get_running_loop()
        began = loop.time()
        ends = {}
        calls = []
        for limit in (5.0, 0.06, 0.03, 0.09):
            call = channel.request("GET", "/", timeout=limit)
            call.add_done_callback(lambda call, limit=limit: ends.setdefault(limit, loop.time() - began))
            calls.append(call)
        results = await asyncio.gather(*calls[1:], return_exceptions=True)
        assert all(isinstance(result, AppError) for result in results)
        assert list(ends) == [0.03, 0.06, 0.09]
        for limit, end in ends.items():
            assert limit - 0.005 <= end < 5
        assert not calls[0].done()


async def test_unused_connections_are_closed(open_channel):
    async with running() as app:
        channel = open_channel(app.port, limits=Limits(idle=0.03))
        await channel.request("GET", "/", timeout=5)
        await app.all_closed()
        assert (await channel.request("GET", "/", timeout=5)).status == 200
        assert len(app.peers) == 2


# Cancelling, closing


async def test_cancelling_closes_the_connection_and_frees_the_slot(open_channel):
    async with running(is_silent) as app:
        channel = open_channel(app.port, max_concurrency=1)
        call = channel.request("GET", "/1", timeout=5)
        await app.calls(1)
        task = asyncio.ensure_future(asyncio.wait_for(channel.request("GET", "/2", timeout=5), 30))
        await asyncio.sleep(0)
        call.cancel()
        await asyncio.wait_for(app.peers[0].closed.wait(), 30)
        await app.calls(2)
        task.cancel()  # through the awaiting task
        with pytest.raises(asyncio.CancelledError):
            await task
        await app.all_closed()


async def test_cancelling_before_the_connection_stands(open_channel):
    async with running(is_silent) as app:
        channel = open_channel(app.port, max_concurrency=1)
        channel.request("GET", "/never", timeout=5).cancel()
        second = channel.request("GET", "/never", timeout=5)
        await asyncio.sleep(0)
        second.cancel()
        app.answer = says(OK)
        assert (await channel.request("GET", "/", timeout=5)).status == 200
        assert [request.line for request in app.requests] == ["GET / HTTP/1.1"]


async def test_closing_fails_all_calls_and_closes_all_sockets(open_channel):
    async with running(is_silent) as app:
        channel = open_channel(app.port, max_concurrency=2)
        calls = [channel.request("GET", "/", timeout=5) for _ in range(2)]
        await app.calls(2)
        calls += [channel.request("GET", "/", timeout=5), asyncio.ensure_future(channel.probe("/", timeout=5))]
        await asyncio.sleep(0)
        await asyncio.wait_for(channel.close(), 10)
        for call in calls[:3]:
            with pytest.raises(AppError, match="the sidecar is shutting down"):
                await call
        assert await calls[3] is False
        with pytest.raises(AppError, match="the sidecar is shutting down"):
            await channel.request("GET", "/", timeout=5)
        await app.all_closed()


# Addresses


async def test_packets_are_not_held_back(open_channel):
    async with running() as app:
        channel = open_channel(app.port)
        await channel.request("GET", "/", timeout=5)
        (connection,) = channel._pool._open
        raw = connection._transport.get_extra_info("socket")
        assert raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_host_names(open_channel):
    async with running(host="localhost") as app:
        assert (await open_channel(app.port, "localhost").request("GET", "/", timeout=5)).status == 200
    assert app.requests[0].header("host") == f"localhost:{app.port}"


async def test_ipv6(open_channel):
    try:
        with socket.socket(socket.AF_INET6) as trial:
            trial.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")
    async with running(host="::1") as app:
        assert (await open_channel(app.port, "::1").request("GET", "/", timeout=5)).status == 200
    assert app.requests[0].header("host") == f"[::1]:{app.port}"


@pytest.mark.parametrize("address", ["", "a b", "a\r\nx: y", "a..b", "http://x", "user@x", "x" * 64])
async def test_impossible_addresses_are_refused(open_channel, address):
    with pytest.raises(ConfigurationError, match="neither an IP address nor a host name"):
        open_channel(80, address)


# Probing


@pytest.mark.parametrize(
    "status, healthy", [(200, True), (204, True), (299, True), (302, False), (404, False), (500, False)]
)
async def test_a_probe_is_about_2xx(open_channel, status, healthy):
    async with running(says(b"HTTP/1.1 %d X\r\ncontent-length: 0\r\n\r\n" % status)) as app:
        channel = open_channel(app.port)
        assert await channel.probe("/healthz", timeout=5) is healthy
        await app.all_closed()  # even though the app would keep the connection


async def test_an_app_that_does_not_answer_is_not_healthy(open_channel):
    assert await open_channel(free_port()).probe("/", timeout=5) is False
    async with running(is_silent) as app:
        assert await open_channel(app.port).probe("/", timeout=0.2) is False


async def test_waits_until_the_app_listens(open_channel, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(http, "DIAL_PAUSE", 0.0001)
    port = free_port()
    waiting = asyncio.create_task(open_channel(port).wait_until_listening())
    while len(caplog.messages) < 2:  # 100 attempts
        await asyncio.sleep(0.001)
    assert not waiting.done()
    server = await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", port)
    await asyncio.wait_for(waiting, 30)
    server.close()
    assert caplog.messages[0] == f"application protocol: http. waiting on port {port}."
    assert caplog.messages[1].startswith("application protocol: http. still waiting")
    assert caplog.messages[-1] == f"application discovered on port {port}"
