import asyncio
from collections.abc import Iterator

import pytest

from benchmarks.events import DATA, PLAIN_HEADERS, number, request
from benchmarks.histogram import Histogram
from benchmarks.load import IncompatibleAnswer, Load, Plan, Result, answer_length

NO_CONTENT = b"HTTP/1.1 204 No Content\r\n\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        NO_CONTENT,
        b"HTTP/1.1 204 No Content\r\ntraceparent: 00-1\r\n\r\n",
        b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 400 Bad Request\r\nContent-Type: a/b\r\nContent-Length: 5\r\n\r\nerror",
    ],
)
def test_the_length_of_an_answer(answer: bytes) -> None:
    assert answer_length(answer) == len(answer)
    assert answer_length(answer + b"HTTP/1.1 ") == len(answer)
    head = answer.index(b"\r\n\r\n") + 4
    assert [answer_length(answer[:end]) for end in range(head)] == [None] * head


@pytest.mark.parametrize(
    "answer",
    [
        b"NATS/1.0 503\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nContent-Length: 3\r\n\r\nabc",
    ],
)
def test_an_answer_that_the_client_does_not_understand_is_an_error(answer: bytes) -> None:
    with pytest.raises(IncompatibleAnswer):
        answer_length(answer)


class Server(asyncio.Protocol):
    """Answers `answer` to requests of the length of ours, the first one after `delay` seconds."""

    def __init__(self, answer: bytes, delay: float) -> None:
        self.answer = answer
        self.delay = delay
        self.numbers: list[bytes | None] = []
        self.transports: list[asyncio.Transport] = []

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transports.append(transport)
        transport.set_protocol(_ServerConnection(self, transport))


class _ServerConnection(asyncio.Protocol):
    def __init__(self, server: Server, transport: asyncio.Transport) -> None:
        self._server = server
        self._transport = transport
        self._received = b""

    def data_received(self, data: bytes) -> None:
        self._received += data
        if len(self._received.partition(b"\r\n\r\n")[2]) < len(DATA):
            return
        self._server.numbers.append(number(self._received))
        self._received = b""
        delay, self._server.delay = self._server.delay, 0
        asyncio.get_running_loop().call_later(delay, self._answer)

    def _answer(self) -> None:
        # In two pieces, as a network may deliver it.
        self._transport.write(self._server.answer[:7])
        self._transport.write(self._server.answer[7:])


async def run_load(server: Server, **plan: object) -> Result:
    listener = await asyncio.get_running_loop().create_server(lambda: server, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    try:
        return await Load(Plan(port=port, request=request("/", PLAIN_HEADERS), **plan)).run()  # type: ignore[arg-type]
    finally:
        listener.close()
        for transport in server.transports:
            transport.abort()
        await asyncio.sleep(0)


@pytest.fixture(params=[None, 2000.0], ids=["closed loop", "open loop"])
def rate(request: pytest.FixtureRequest) -> Iterator[float | None]:
    yield request.param


async def test_a_load_sends_as_many_different_requests_as_it_was_told(rate: float | None) -> None:
    server = Server(NO_CONTENT, 0)
    result = await run_load(server, connections=4, requests=50, rate=rate, seconds=30)
    assert result.requests == len(set(server.numbers)) == 50
    assert result.statuses == {"204": 50}
    assert Histogram.from_pairs(result.latencies).count == 50


async def test_a_load_ends_after_its_time(rate: float | None) -> None:
    server = Server(NO_CONTENT, 0)
    result = await run_load(server, connections=2, rate=rate, seconds=0.05)
    assert result.requests == len(server.numbers) > 0


async def test_in_the_open_loop_a_request_that_had_to_wait_counts_from_when_it_was_due() -> None:
    server = Server(NO_CONTENT, 0.3)
    result = await run_load(server, connections=1, requests=10, rate=100, seconds=30)
    # All ten were due within 0.1 s, and the only connection was blocked for 0.3 s.
    assert Histogram.from_pairs(result.latencies).quantile(0) > 100_000_000


async def test_a_refused_request_is_not_taken_for_an_accepted_one() -> None:
    server = Server(b"HTTP/1.1 503 Unavailable\r\ncontent-length: 0\r\n\r\n", 0)
    result = await run_load(server, connections=1, requests=3)
    with pytest.raises(RuntimeError, match="'503': 3"):
        result.check()


async def test_a_server_that_speaks_something_else_ends_the_load() -> None:
    with pytest.raises(IncompatibleAnswer):
        await run_load(Server(b"SSH-2.0-OpenSSH_9.2\r\n\r\n", 0), connections=1, requests=3)
