"""Raw bytes in, raw bytes out, on real sockets."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sidecar.http.body import read_body
from sidecar.http.guard import Guard
from sidecar.http.limits import Limits
from sidecar.http.responses import ResponseAborted
from sidecar.http.server import HttpServer

HEAD = b"POST /a HTTP/1.1\r\nHost: a\r\n"
GET = b"GET /b HTTP/1.1\r\nHost: a\r\n\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
SHORT = 0.15


async def echo(scope, receive, send):
    """Answers with method, path, query, and the body."""
    body = await read_body(receive, 0, scope)
    text = b"%s %s?%s [%s]" % (scope["method"].encode(), scope["raw_path"], scope["query_string"], body)
    headers = [(b"content-length", b"%d" % len(text))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": text})


def answered(text: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(text), text)


@asynccontextmanager
async def serving(app=echo, **limits) -> AsyncIterator[int]:
    """The port of a server, which must have no connection left in the end."""
    server = HttpServer(app, limits=Limits(**limits))
    await server.start()
    try:
        yield server.port
    finally:
        await server.stop(2)
        assert not server._state.connections
        assert not server._state.tasks


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def read(self, text: bytes) -> None:
        got = await asyncio.wait_for(self.reader.readexactly(len(text)), 30)
        assert got == text

    async def rest(self) -> bytes:
        """All until the server closes."""
        return await asyncio.wait_for(self.reader.read(), 30)


@asynccontextmanager
async def client(port: int) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()


async def refusal(data: bytes, **limits) -> int:
    """The status that `data` is refused with; the connection must be closed after it."""
    async with serving(**{"linger": SHORT, **limits}) as port, client(port) as peer:
        await peer.send(data)
        head, _, body = (await peer.rest()).partition(b"\r\n\r\n")
        assert b"\r\nconnection: close" in head
        assert b"content-length: %d" % len(body) in head
        return int(head.split()[1])


@pytest.fixture(autouse=True)
def nothing_logged(caplog: pytest.LogCaptureFixture):
    yield
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


pytestmark = pytest.mark.usefixtures("nothing_logged")


@pytest.mark.parametrize(
    "parts",
    [
        (HEAD + b"Content-Length: 3\r\n\r\nabc",),
        (HEAD[:7], HEAD[7:20], HEAD[20:] + b"Content-Length: 3\r\n\r\na", b"b", b"c"),
        (CHUNKED + b"1\r\na\r\n2;ext=1\r\nbc\r\n0\r\n\r\n",),
        (CHUNKED + b"3\r\nab", b"c\r", b"\n0\r\nTrailer: x\r\n\r\n"),
        (b"\r\n\r\n" + HEAD + b"Content-Length: 3\r\n\r\nabc",),
        (
            b"POST http-is-a-path HTTP/1.1".replace(b"http-is-a-path", b"/a#f")
            + HEAD[16:]
            + b"Content-Length: 3\r\n\r\nabc",
        ),
    ],
)
async def test_a_request_in_pieces_is_a_request(parts) -> None:
    async with serving() as port, client(port) as peer:
        for part in (*parts, *parts):  # twice: the connection stays
            await peer.send(part)
            await asyncio.sleep(0.002)
        await peer.read(answered(b"POST /a? [abc]") * 2)


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with serving() as port, client(port) as peer:
        await peer.send(b"".join(b"GET /%d?q HTTP/1.1\r\nHost: a\r\n\r\n" % n for n in range(30)))
        await peer.read(b"".join(answered(b"GET /%d?q []" % n) for n in range(30)))


SMUGGLING = {
    "two Content-Length": HEAD + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    "two lengths": HEAD + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
    "list of lengths": HEAD + b"Content-Length: 3, 3\r\n\r\nabc",
    "signed length": HEAD + b"Content-Length: +3\r\n\r\nabc",
    "empty length": HEAD + b"Content-Length:\r\n\r\n",
    "CL.TE": HEAD + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "TE.CL": HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
    "TE twice": HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "TE after VT": HEAD + b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
    "TE in 1.0": b"POST /a HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "obs-fold": HEAD + b"X: a\r\n b\r\n\r\n",
    "bare LF": b"POST /a HTTP/1.1\nHost: a\n\n",
    "LF in headers": b"POST /a HTTP/1.1\r\nHost: a\nX: b\r\n\r\n",
    "LF at the end": HEAD + b"\n",
    "bare CR": HEAD + b"X: a\rb\r\n\r\n",
    "NUL": HEAD + b"X: a\0b\r\n\r\n",
    "NUL in a name": HEAD + b"X\0: a\r\n\r\n",
    "space before colon": HEAD + b"Content-Length : 3\r\n\r\nabc",
    "no colon": HEAD + b"X\r\n\r\n",
    "unknown method": b"FOO /a HTTP/1.1\r\nHost: a\r\n\r\n",
    "lower case method": b"post /a HTTP/1.1\r\nHost: a\r\n\r\n",
    "another scheme": b"GET ftp://a/b HTTP/1.1\r\nHost: a\r\n\r\n",
    "user information": b"GET http://a@b/ HTTP/1.1\r\nHost: b\r\n\r\n",
    "a password": b"GET http://localhost:3500@b/ HTTP/1.1\r\nHost: b\r\n\r\n",
    "empty authority": b"GET http:///a HTTP/1.1\r\nHost: a\r\n\r\n",
    "nothing but a port": b"GET http://:80/a HTTP/1.1\r\nHost: a\r\n\r\n",
    "port of no number": b"GET http://a:b/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "open bracket": b"GET http://[::1/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "backslash in the authority": b"GET http://a\\b/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "absolute form without Host": b"GET http://a/ HTTP/1.1\r\n\r\n",
    "authority form": b"CONNECT b:80 HTTP/1.1\r\nHost: b:80\r\n\r\n",
    "asterisk form": b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    "space in the path": b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
    "bytes in the path": b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n",
    "no Host": b"GET /a HTTP/1.1\r\n\r\n",
    "two Hosts": b"GET /a HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
    "chunk of no number": CHUNKED + b"zz\r\n",
    "negative chunk": CHUNKED + b"-1\r\n",
    "0x chunk": CHUNKED + b"0x3\r\nabc\r\n0\r\n\r\n",
    "huge chunk": CHUNKED + b"f" * 17 + b"\r\n",
    "chunk too short": CHUNKED + b"3\r\nabcd\r\n0\r\n\r\n",
    "chunk with LF": CHUNKED + b"3\nabc\r\n0\r\n\r\n",
    "chunk size and space": CHUNKED + b"3 \r\nabc\r\n0\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
}


@pytest.mark.parametrize("name", SMUGGLING)
async def test_what_two_parsers_could_read_differently_is_400(name: str) -> None:
    assert await refusal(SMUGGLING[name] + GET) == 400


@pytest.mark.parametrize(
    "data",
    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0", b"GET /a HTTP/2.0\r\nHost: a\r\n\r\n", b"GET /a\r\n\r\n"],
)
async def test_other_versions_of_http_are_505(data: bytes) -> None:
    assert await refusal(data) == 505


@pytest.mark.parametrize(
    "codings", ["gzip", "xchunked", "gzip, chunked", "identity, chunked", "gzip\r\nTransfer-Encoding: chunked"]
)
async def test_transfer_codings_that_are_not_undone_are_501(codings: str) -> None:
    assert await refusal(HEAD + b"Transfer-Encoding: %b\r\n\r\n0\r\n\r\n" % codings.encode()) == 501


@pytest.mark.parametrize("cut", [0, 1, 3])
@pytest.mark.parametrize(
    "body", [b"Content-Length: 3\r\n\r\nabc", b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"]
)
async def test_an_offer_of_h2c_is_declined_and_the_body_stays_a_body(body: bytes, cut: int) -> None:
    head = HEAD + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQ\r\n"
    framing, _, content = body.partition(b"\r\n\r\n")
    async with serving() as port, client(port) as peer:
        for _ in range(2):
            await peer.send(head + framing + b"\r\n\r\n" + content[:cut])
            await asyncio.sleep(0.01)
            await peer.send(content[cut:] + GET)
            await peer.read(answered(b"POST /a? [abc]") + answered(b"GET /b? []"))


async def test_a_websocket_is_not_opened() -> None:
    async with serving() as port, client(port) as peer:
        await peer.send(b"GET /w HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
        await peer.read(answered(b"GET /w? []"))


async def test_http_1_0_is_answered_and_closed() -> None:
    async with serving() as port, client(port) as peer:
        await peer.send(b"GET /a HTTP/1.0\r\n\r\n")
        assert await peer.rest() == answered(b"GET /a? []").replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")


async def test_trailers_do_not_become_headers() -> None:
    seen = []

    async def app(scope, receive, send):
        await read_body(receive, 0, scope)
        seen.extend(name for name, _ in scope["headers"])
        await early(scope, receive, send)

    async with serving(app) as port, client(port) as peer:
        await peer.send(CHUNKED + b"0\r\nDapr-Api-Token: x\r\n\r\n")
        await peer.reader.readuntil(b"\r\n\r\n")
    assert seen == [b"host", b"transfer-encoding"]


# Targets in absolute form (RFC 9112, 3.2.2)


async def echo_host(scope, receive, send):
    """Answers with the target as the app sees it, and all `Host` headers."""
    hosts = b",".join(value for name, value in scope["headers"] if name == b"host")
    text = b"%s|%s|%s" % (scope["raw_path"], scope["query_string"], hosts)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(text))]})
    await send({"type": "http.response.body", "body": text})


@pytest.mark.parametrize(
    ("request_", "seen"),
    [
        (b"GET http://b/a%2Fb?c=d#e HTTP/1.1\r\nHost: a\r\n\r\n", b"/a%2Fb|c=d|b"),
        (b"GET HTTP://b:3500/ HTTP/1.1\r\nHost: b:3500\r\n\r\n", b"/||b:3500"),
        (b"GET http://[::1]:1 HTTP/1.1\r\nHost:\r\n\r\n", b"/||[::1]:1"),
        (b"GET http://b?c HTTP/1.1\r\nHost: a\r\n\r\n", b"/|c|b"),
        (b"GET http://b/http://c@d HTTP/1.1\r\nHost: a\r\n\r\n", b"/http://c@d||b"),
    ],
)
async def test_a_target_in_absolute_form_brings_its_own_host(request_: bytes, seen: bytes) -> None:
    async with serving(echo_host) as port, client(port) as peer:
        await peer.send(request_ + GET)
        await peer.read(answered(seen) + answered(b"/b||a"))


async def test_a_target_in_absolute_form_names_the_host_of_http_1_0() -> None:
    async with serving(echo_host) as port, client(port) as peer:
        await peer.send(b"GET http://b/ HTTP/1.0\r\n\r\n")
        assert (await peer.rest()).endswith(b"\r\n\r\n/||b")


@pytest.mark.parametrize(
    ("target", "host", "status"),
    [
        (b"http://localhost/b", b"localhost", 200),
        (b"http://localhost:3500/b", b"evil.com", 200),
        (b"http://orders-dapr:3500/b", b"orders-dapr", 200),
        (b"http://evil.com/b", b"evil.com", 403),
        (b"http://evil.com/b", b"localhost", 403),
        (b"http://evil.com:3500", b"orders-dapr", 403),
        (b"http://%6cocalhost/b", b"localhost", 403),
    ],
)
async def test_the_guard_checks_the_host_of_the_target(target: bytes, host: bytes, status: int) -> None:
    async with serving(Guard(echo_host, allowed_hosts=["orders-dapr"])) as port, client(port) as peer:
        await peer.send(b"GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n" % (target, host))
        assert (await peer.rest()).startswith(b"HTTP/1.1 %d " % status)


async def test_a_target_of_another_scheme_is_misdirected() -> None:
    assert await refusal(b"GET https://localhost/ HTTP/1.1\r\nHost: localhost\r\n\r\n") == 421


# Pipelines that end badly


class Gate:
    """An app that answers each request only when told so."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.open = asyncio.Event()

    async def __call__(self, scope, receive, send):
        self.asked.append(scope["raw_path"])
        await self.open.wait()
        await echo(scope, receive, send)


NONSENSE = {
    "no HTTP": (b"nonsense\r\n\r\n", 400),
    "no Host": (b"GET /a HTTP/1.1\r\n\r\n", 400),
    "bad chunk": (CHUNKED + b"3\r\nabc\r\nzz\r\n", 400),
    "too many headers": (HEAD + b"X: a\r\n" * 100 + b"\r\n", 431),
    "TLS": (SMUGGLING["TLS"], 400),
}


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("name", NONSENSE)
async def test_what_came_before_nonsense_is_answered_first(name: str, together: bool) -> None:
    gate = Gate()
    nonsense, status = NONSENSE[name]
    valid = [HEAD + b"Content-Length: 3\r\n\r\nabc", GET, GET]
    async with serving(gate, linger=SHORT) as port, client(port) as peer:
        for part in [b"".join([*valid, nonsense])] if together else [*valid, nonsense]:
            await peer.send(part)
            await asyncio.sleep(0.005)
        await peer.send(GET * 3)  # not served any more
        assert gate.asked == [b"/a"]
        gate.open.set()
        answers = answered(b"POST /a? [abc]") + answered(b"GET /b? []") * 2
        rest = await peer.rest()
        assert rest.startswith(answers + b"HTTP/1.1 %d " % status)
        assert rest.count(b"HTTP/1.1 ") == 4
        assert rest.count(b"connection: close") == 1
    assert gate.asked == [b"/a", b"/b", b"/b"]


async def test_a_next_request_without_end_does_not_cost_the_answer_before_it() -> None:
    gate = Gate()
    async with serving(gate, head_time=SHORT, linger=SHORT) as port, client(port) as peer:
        await peer.send(GET + HEAD)
        await asyncio.sleep(SHORT * 3)
        gate.open.set()
        assert (await peer.rest()).startswith(answered(b"GET /b? []") + b"HTTP/1.1 408 ")


async def test_nothing_is_said_after_an_answer_that_closes() -> None:
    gate = Gate()
    async with serving(gate, linger=SHORT) as port, client(port) as peer:
        await peer.send(GET[:-2] + b"Connection: close\r\n\r\nnonsense\r\n\r\n")
        gate.open.set()
        rest = await peer.rest()
        assert rest.startswith(b"HTTP/1.1 200 ")
        assert rest.endswith(b"GET /b? []")


# Sizes


def head_of(size: int) -> bytes:
    """A request whose line and headers are `size` bytes as `Limits.head` counts them."""
    return HEAD + b"X: %s\r\n\r\n" % (b"a" * (size - len(b"/aHost: a\r\nX: \r\n")))


async def test_the_head_may_have_its_limit_and_no_more() -> None:
    padding = b"Content-Length: 200\r\n\r\n" + b"b" * 200
    async with serving(head=500) as port, client(port) as peer:
        await peer.send(head_of(500)[:-2] + b"\r\n")  # in one piece with nothing else
        await peer.read(answered(b"POST /a? []"))
        for _ in range(3):  # requests that are long together
            await peer.send((HEAD + padding) * 3)
            await peer.read(answered(b"POST /a? [" + b"b" * 200 + b"]") * 3)
    assert await refusal(head_of(520), head=500) == 431


async def test_a_long_head_behind_another_request_is_seen_too() -> None:
    async with serving(head=500, linger=SHORT) as port, client(port) as peer:
        await peer.send(HEAD + b"Content-Length: 3\r\n\r\nabc" + head_of(600) + b"x")
        assert answered(b"POST /a? [600]")[-3:] not in await peer.rest()


@pytest.mark.parametrize(
    "data",
    [
        b"GET /" + b"a" * 600,
        HEAD + b"X: " + b"a" * 600,
        HEAD + b"X: a\r\n" * 150,
        HEAD + b"X" * 600,
    ],
)
@pytest.mark.parametrize("step", [100, 10_000])
async def test_a_head_without_end_is_431(data: bytes, step: int) -> None:
    async with serving(head=500, linger=SHORT) as port, client(port) as peer:
        await trickle(peer, data, step)
        assert b"HTTP/1.1 431 " in await peer.rest()


@pytest.mark.parametrize("data", [b"1;" + b"e" * 800, b"0\r\nT: " + b"t" * 800])
async def test_extensions_and_trailers_without_end_are_431(data: bytes) -> None:
    async with serving(head=500, linger=SHORT) as port, client(port) as peer:
        await trickle(peer, CHUNKED + data, 100)
        assert b"HTTP/1.1 431 " in await peer.rest()


async def trickle(peer: Client, data: bytes, step: int) -> None:
    for start in range(0, len(data), step):
        await peer.send(data[start : start + step])
        await asyncio.sleep(0.002)


async def test_too_many_headers_are_431() -> None:
    assert await refusal(HEAD + b"X: a\r\n" * 100 + b"\r\n") == 431


async def test_connections_beyond_the_limit_are_503() -> None:
    async with serving(connections=1, linger=SHORT) as port, client(port) as first:
        await first.send(GET)
        await first.read(answered(b"GET /b? []"))
        async with client(port) as second:
            assert (await second.rest()).startswith(b"HTTP/1.1 503 ")
        await first.send(GET)
        await first.read(answered(b"GET /b? []"))


async def test_too_deep_a_pipeline_is_cut_off() -> None:
    async with serving(pipeline=4, linger=SHORT) as port, client(port) as peer:
        await peer.send(GET * 100)
        rest = await peer.rest()
        assert rest.startswith(answered(b"GET /b? []") * 5 + b"HTTP/1.1 503 ")
        assert rest.count(b"HTTP/1.1 ") == 6


# Times


@pytest.mark.parametrize("data", [HEAD, HEAD[:3], GET + HEAD])
async def test_headers_must_come_in_time(data: bytes) -> None:
    async with serving(head_time=SHORT, linger=SHORT) as port, client(port) as peer:
        await peer.send(data)
        assert b"HTTP/1.1 408 " in await peer.rest()


async def test_headers_that_trickle_are_no_excuse() -> None:
    async with serving(head_time=SHORT, linger=SHORT) as port, client(port) as peer:
        for byte in HEAD * 3:
            if peer.reader.at_eof() or peer.reader._buffer:
                break
            await peer.send(bytes([byte]))
            await asyncio.sleep(0.01)
        assert (await peer.rest()).startswith(b"HTTP/1.1 408 ")


async def test_a_client_that_says_nothing_is_dropped() -> None:
    async with serving(head_time=SHORT, linger=SHORT) as port, client(port) as peer:
        assert await peer.rest() == b""


@pytest.mark.parametrize("data", [HEAD + b"Content-Length: 3\r\n\r\na", CHUNKED, CHUNKED + b"5\r\nab"])
async def test_a_body_must_go_on(data: bytes) -> None:
    async with serving(body_idle=SHORT, linger=SHORT) as port, client(port) as peer:
        await peer.send(data)
        assert (await peer.rest()).startswith(b"HTTP/1.1 408 ")


async def test_a_slow_body_that_goes_on_is_served() -> None:
    async with serving(body_idle=SHORT) as port, client(port) as peer:
        await peer.send(HEAD + b"Content-Length: 10\r\n\r\n")
        for _ in range(10):
            await asyncio.sleep(SHORT / 4)
            await peer.send(b"a")
        await peer.read(answered(b"POST /a? [aaaaaaaaaa]"))


async def test_an_idle_connection_is_closed() -> None:
    async with serving(keep_alive=SHORT) as port, client(port) as peer:
        await peer.send(GET)
        assert await peer.rest() == answered(b"GET /b? []")


async def test_a_slow_app_is_not_the_clients_fault() -> None:
    async def app(scope, receive, send):
        await asyncio.sleep(SHORT * 3)
        await echo(scope, receive, send)

    body = b"b" * 300_000
    times = {"head_time": SHORT, "body_idle": SHORT, "keep_alive": SHORT, "linger": SHORT}
    async with serving(app, **times) as port, client(port) as peer:
        await peer.send(HEAD + b"Content-Length: 300000\r\n\r\n" + body)
        await peer.read(answered(b"POST /a? [" + body + b"]"))


async def test_a_client_that_reads_nothing_is_dropped() -> None:
    gone = asyncio.Event()

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while (await asyncio.sleep(0)) is None and not gone.is_set():
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
            if scope["state"].disconnected:
                gone.set()

    async def wrapped(scope, receive, send):
        scope["state"] = send.__self__
        await app(scope, receive, send)

    async with serving(wrapped, write_idle=SHORT) as port, client(port) as peer:
        peer.writer.transport.pause_reading()
        await peer.send(GET)
        await asyncio.wait_for(gone.wait(), 30)


# Answers before the end of the body


async def early(scope, receive, send):
    await send({"type": "http.response.start", "status": 400, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"no"})


async def test_a_short_body_that_the_app_does_not_want_is_read_over() -> None:
    async with serving(early) as port, client(port) as peer:
        await peer.send(HEAD + b"Content-Length: 3\r\n\r\na")
        await peer.read(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\nno")
        await peer.send(b"bc" + GET)
        await peer.read(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\nno")


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 90000000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\nffffff\r\n"]
)
async def test_a_long_body_that_the_app_does_not_want_ends_the_connection_but_not_the_answer(framing: bytes) -> None:
    async with serving(early, linger=SHORT) as port, client(port) as peer:
        await peer.send(HEAD + framing + b"a" * 500_000)
        answer = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno"
        assert await peer.rest() == answer


async def test_100_continue_is_said_when_the_app_reads_and_only_then() -> None:
    expecting = HEAD + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\n"
    async with serving() as port, client(port) as peer:
        await peer.send(expecting)
        await peer.read(b"HTTP/1.1 100 Continue\r\n\r\n")
        await peer.send(b"abc")
        await peer.read(answered(b"POST /a? [abc]"))
    async with serving(early, linger=SHORT) as port, client(port) as peer:
        await peer.send(expecting)
        assert (await peer.rest()).startswith(b"HTTP/1.1 400 ")


# Hang-ups


async def test_a_hang_up_is_told_to_all_pipelined_requests() -> None:
    told = []
    both = asyncio.Event()

    async def app(scope, receive, send):
        assert not (await receive())["more_body"]
        both.set()
        told.append((await receive())["type"])

    async with serving(app) as port:
        async with client(port) as peer:
            await peer.send(GET + GET)
            await both.wait()
        async with asyncio.timeout(30):
            while not told:
                await asyncio.sleep(0.005)
    assert told == ["http.disconnect"]


@pytest.mark.parametrize("data", [b"", HEAD, HEAD + b"Content-Length: 3\r\n\r\na", GET])
async def test_a_reset_at_any_moment_is_silent(data: bytes) -> None:
    async with serving() as port:
        peer = socket.create_connection(("127.0.0.1", port))
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.sendall(data)
        await asyncio.sleep(0.01)
        peer.close()
        await asyncio.sleep(0.01)


# What the app does


def responding(status: int, headers, *bodies: bytes):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for body in bodies:
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    return app


@pytest.mark.parametrize(
    ("app", "request_", "answer"),
    [
        (responding(204, []), GET, b"HTTP/1.1 204 No Content\r\n\r\n"),
        (
            responding(200, [(b"X-A", b"b")], b"ab", b"", b"c"),
            GET,
            b"HTTP/1.1 200 OK\r\nx-a: b\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n",
        ),
        (
            responding(200, [(b"transfer-encoding", b"chunked"), (b"content-length", b"3")], b"abc"),
            GET,
            b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc",
        ),
        (
            responding(200, [(b"content-length", b"3")], b"abc"),
            b"HEAD /b HTTP/1.1\r\nHost: a\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n",
        ),
    ],
)
async def test_how_responses_are_framed(app, request_: bytes, answer: bytes) -> None:
    async with serving(app) as port, client(port) as peer:
        await peer.send(request_ * 2)
        await peer.read(answer * 2)


async def test_a_response_without_length_to_http_1_0_ends_with_the_connection() -> None:
    async with serving(responding(200, [], b"ab", b"c")) as port, client(port) as peer:
        await peer.send(b"GET / HTTP/1.0\r\n\r\n")
        assert await peer.rest() == b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nabc"


class TestFaultyApps:
    """They are logged once, and the client never takes a broken answer for a whole one."""

    @pytest.fixture(autouse=True)
    def nothing_logged(self):
        """Overrides the module's: here something is."""

    @pytest.mark.parametrize(
        "headers",
        [
            [(b"x", b"a\r\nset-cookie: b")],
            [(b"x", b"a\nb")],
            [(b"x", b"a\rb")],
            [(b"x", b"a\0b")],
            [(b"x y", b"a")],
            [(b"x:", b"a")],
            [(b"", b"a")],
            [(b"content-length", b"1"), (b"content-length", b"1")],
        ],
    )
    async def test_a_response_cannot_be_split(self, headers, caplog) -> None:
        async with serving(responding(200, headers)) as port, client(port) as peer:
            await peer.send(GET)
            assert (await peer.rest()).startswith(b"HTTP/1.1 500 ")
        assert len(caplog.records) == 1

    @pytest.mark.parametrize("body", [b"a", b"abc"])
    async def test_a_body_of_another_length_closes(self, body: bytes, caplog) -> None:
        async with serving(responding(200, [(b"content-length", b"2")], body)) as port, client(port) as peer:
            await peer.send(GET)
            await peer.rest()
        assert len(caplog.records) == 1

    async def test_no_answer_is_500(self, caplog) -> None:
        async def app(scope, receive, send):
            pass

        async with serving(app) as port, client(port) as peer:
            await peer.send(GET)
            assert (await peer.rest()).startswith(b"HTTP/1.1 500 ")
        assert len(caplog.records) == 1

    async def test_an_aborted_response_closes_without_another_word(self, caplog) -> None:
        async def app(scope, receive, send):
            await send({"type": "http.response.start", "status": 200, "headers": []})
            raise ResponseAborted

        async with serving(app) as port, client(port) as peer:
            await peer.send(GET)
            assert await peer.rest() == b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
        assert not caplog.records


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.one_of(
            st.sampled_from([HEAD, GET, CHUNKED, b"\r\n", b"3\r\nabc\r\n", b"0\r\n\r\n", b"Content-Length: 3\r\n\r\n"]),
            st.sampled_from(list(SMUGGLING.values())),
            st.binary(max_size=30),
        ),
        max_size=6,
    )
)
async def test_no_bytes_upset_the_server(parts: list[bytes]) -> None:
    async with serving(head_time=0.02, body_idle=0.02, keep_alive=0.02, linger=0.02) as port, client(port) as peer:
        try:
            for part in parts:
                await peer.send(part)
            await peer.rest()
        except ConnectionError:
            pass
