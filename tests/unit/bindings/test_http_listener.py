"""The listener of webhooks: what is bounded, and what a peer can do to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from bindings import http_listener
from bindings.http_listener import HttpListener, Request, Response
from mesh.ports.stores import StoreUnavailable
from tests.e2e.mesh import Answer, call, exchange
from tests.ports import free_port

MAX_BODY = 1000


class Served:
    def __init__(self) -> None:
        self.port = free_port()
        self.requests: list[Request] = []
        self.held: asyncio.Event | None = None
        self._listener = HttpListener("127.0.0.1", self.port, self._handle, max_body=MAX_BODY)
        self._task = asyncio.create_task(self._listener.serve())

    async def _handle(self, request: Request) -> Response:
        self.requests.append(request)
        if self.held is not None:
            await self.held.wait()
        if request.path == "/broken":
            raise RuntimeError("broken")
        return Response(202, [("x-n", str(len(self.requests)))])

    async def listening(self) -> None:
        async with asyncio.timeout(30):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                except OSError:
                    await asyncio.sleep(0.005)
                else:
                    writer.transport.abort()
                    return

    async def end(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task], timeout=10)
        assert self._task.cancelled()

    async def sends(self, raw: bytes, *, limit: float = 5) -> Answer:
        return Answer.parse(await exchange(self.port, raw, limit=limit))


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    served = Served()
    await served.listening()
    yield served
    await served.end()


async def test_a_request(served: Served) -> None:
    answer = await call(
        served.port, "POST", "/a%20b?x=1&x=2&y", [("X-A", "1"), ("x-a", "2"), ("Content-Type", "t/t")], b"\x00body"
    )
    assert (answer.status, answer.headers["x-n"], answer.body) == (202, "1", b"")
    (request,) = served.requests
    assert (request.method, request.path, request.query) == ("POST", "/a b", {"x": "1", "y": ""})
    assert (request.headers["x-a"], request.headers["content-type"], request.body) == ("1,2", "t/t", b"\x00body")


async def test_several_on_one_connection(served: Served) -> None:
    one = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n%d"
    chunked = (
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n2\r\nab\r\n0\r\n\r\n"
    )
    raw = await exchange(served.port, one % 1 + one % 2 + chunked)
    assert raw.count(b"HTTP/1.1 202 Accepted") == 3
    assert [request.body for request in served.requests] == [b"1", b"2", b"ab"]


async def test_a_body_that_is_announced(served: Served) -> None:
    raw = await exchange(
        served.port,
        b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 1\r\nConnection: close\r\n\r\n1",
    )
    assert raw.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 202 ")


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 1001\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3e9\r\n" + b"x" * 1001 + b"\r\n", 413),
        (b"POST / HTTP/1.1\r\nX: " + b"x" * 40_000 + b"\r\n\r\n", 431),
        (b"POST / HTTP/1.1\r\nX: " + b"x" * 300_000, 431),
        (b"POST / HTTP/1.1\r\n" + b"X: y\r\n" * 20_000, 431),
    ],
)
async def test_what_is_refused(served: Served, raw: bytes, status: int) -> None:
    assert (await served.sends(raw)).status == status
    assert served.requests == []


async def test_an_upgrade_is_passed_over(served: Served) -> None:
    raw = await exchange(served.port, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\nPRI")
    assert raw.count(b"HTTP/1.1") == 1
    assert Answer.parse(raw).status == 202


async def test_the_largest_body(served: Served) -> None:
    assert (await call(served.port, "POST", "/", body=b"x" * MAX_BODY)).status == 202


async def test_a_request_that_takes_too_long(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_listener, "REQUEST_LIMIT", 0.1)
    assert (await served.sends(b"POST / HTTP/1.1\r\nContent-Le")).status == 408
    assert await exchange(served.port, b"") == b"", "one that says nothing is closed without a word"


async def test_more_connections_than_there_may_be(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_listener, "MAX_CONNECTIONS", 1)
    _, writer = await asyncio.open_connection("127.0.0.1", served.port)
    await asyncio.sleep(0.05)  # it has no answer by which one could tell that it is there
    with pytest.raises((ConnectionError, AssertionError)):
        await call(served.port, "POST", "/")
    writer.transport.abort()


async def test_a_handler_that_fails(served: Served) -> None:
    assert (await call(served.port, "POST", "/broken")).status == 500
    assert (await call(served.port, "POST", "/")).status == 202


async def test_the_end_waits_for_a_request_and_for_no_idle_connection() -> None:
    served = Served()
    await served.listening()
    served.held = asyncio.Event()
    _, idle = await asyncio.open_connection("127.0.0.1", served.port)
    asking = asyncio.create_task(call(served.port, "POST", "/"))
    while not served.requests:
        await asyncio.sleep(0.005)
    ending = asyncio.create_task(served.end())
    await asyncio.sleep(0.02)
    assert not ending.done()
    served.held.set()
    assert (await asking).status == 202
    async with asyncio.timeout(10):
        await ending
    with pytest.raises(OSError):
        await call(served.port, "POST", "/")
    idle.transport.abort()


async def test_a_port_that_is_in_use_is_told(served: Served) -> None:
    another = HttpListener("127.0.0.1", served.port, served._handle, max_body=MAX_BODY)
    with pytest.raises(StoreUnavailable, match=f"port {served.port}: it is in use by another program"):
        await another.serve()
