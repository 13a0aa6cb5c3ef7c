"""The load generator: HTTP/1.1 over keep-alive connections, in a process of its own.

Closed loop: each connection sends its next request as soon as the last one is answered; this finds the highest
rate. Open loop: requests are due at fixed moments, whatever the server does, and latency is counted from the
moment at which a request was *due*, so that a server that stalls pays for every request that it kept waiting.

It knows just enough HTTP to be no bottleneck: about 7 µs of CPU for a request.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections import Counter, deque

import msgspec

from benchmarks import worker
from benchmarks.events import Template
from benchmarks.histogram import Histogram
from benchmarks.pace import keep_pace

PATIENCE = 30.0
"""Seconds to wait for the answers that are missing after the last request."""

_content_length = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE).search


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to send. `request` is a `Template`. It ends after `seconds` or after `requests`, whichever comes first."""

    port: int
    request: bytes
    host: str = "127.0.0.1"
    connections: int = 32
    rate: float | None = None
    """Requests per second in the open loop; `None` is the closed loop."""
    seconds: float = 3.0
    requests: int | None = None
    numbers: int | None = None
    """How many numbers there are: they come again. `None` is without end."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """Times in seconds. `elapsed` ends with the last answer."""

    requests: int
    elapsed: float
    cpu: float
    statuses: dict[str, int]
    latencies: list[tuple[int, int]]
    """A `Histogram`'s pairs."""

    def check(self) -> None:
        """Raise `RuntimeError` unless every request was accepted: what was refused is not measured."""
        if any(not status.startswith("2") for status in self.statuses):
            raise RuntimeError(f"not all requests were accepted; statuses and their numbers: {self.statuses}")


class IncompatibleAnswer(Exception):
    """The answer is none that this client understands."""


def answer_length(data: bytes) -> int | None:
    """Bytes of the whole answer at the start of `data`; `None` when its head is incomplete.

    Raises `IncompatibleAnswer` for one that is no HTTP/1.1 answer with a length.
    """
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return None
    if not data.startswith(b"HTTP/1.1 "):
        raise IncompatibleAnswer(f"this is no HTTP/1.1 answer: {data[:40]!r}")
    if data[9:12] == b"204":
        return end + 4
    length = _content_length(data, 0, end)
    if length is None:
        raise IncompatibleAnswer(f"this answer has no Content-Length: {data[:end]!r}")
    return end + 4 + int(length[1])


class Connection(asyncio.Protocol):
    """Carries one request at a time for a `Load`."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._received = b""
        self._due = 0
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport

    def send(self, request: bytes, due: int) -> None:
        self._due = due
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        if self._received:
            data = self._received + data
        try:
            length = answer_length(data)
        except IncompatibleAnswer as error:
            self._load.fail(error)
            return
        if length is None or len(data) < length:
            self._received = data
            return
        self._received = b""
        self._load.answered(self, data[9:12], self._due)

    def connection_lost(self, exc: Exception | None) -> None:
        self._load.fail(ConnectionError(f"the server closed a connection: {exc or 'end of stream'}"))


class Load:
    """One run of a `Plan`; see the module."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._template = Template(plan.request)
        self._number = random.randrange(10**13)
        self._connections: list[Connection] = []
        self._idle: deque[Connection] = deque()
        self._late: deque[int] = deque()
        """Moments of requests that are due and wait for a connection."""
        self._sent = 0
        self._answered = 0
        self._last = plan.requests
        self._end = 0
        self._statuses: Counter[bytes] = Counter()
        self._histogram = Histogram()
        self._done: asyncio.Future[None]

    async def run(self) -> Result:
        """Raises `OSError`, `IncompatibleAnswer`, or `TimeoutError` when answers are missing at the end."""
        plan = self._plan
        loop = asyncio.get_running_loop()
        self._done = loop.create_future()
        try:
            for _ in range(plan.connections):
                _, connection = await loop.create_connection(lambda: Connection(self), plan.host, plan.port)
                self._connections.append(connection)
            cpu = time.process_time()
            start = time.monotonic_ns()
            async with asyncio.timeout(plan.seconds + PATIENCE):
                await self._send_all(start)
            elapsed = time.monotonic_ns() - start
            cpu = time.process_time() - cpu
        finally:
            for connection in self._connections:
                connection.transport.abort()
            await asyncio.sleep(0)  # they close in the loop's next turn
        return Result(
            requests=self._answered,
            elapsed=elapsed / 1e9,
            cpu=cpu,
            statuses={status.decode(): number for status, number in self._statuses.items()},
            latencies=self._histogram.pairs(),
        )

    async def _send_all(self, start: int) -> None:
        plan = self._plan
        self._end = start + int(plan.seconds * 1e9)
        if plan.rate is None:
            for connection in self._connections:
                self._send_at_once(connection)
            await self._done
        else:
            await self._keep_pace(plan.rate, start)

    def fail(self, error: Exception) -> None:
        if not self._done.done():
            self._done.set_exception(error)

    def answered(self, connection: Connection, status: bytes, due: int) -> None:
        now = time.monotonic_ns()
        self._histogram.record(now - due)
        self._statuses[status] += 1
        self._answered += 1
        if self._plan.rate is None:
            self._send_at_once(connection, now)
        elif self._late:
            self._send(connection, self._late.popleft())
        else:
            self._idle.append(connection)
        if self._answered == self._last and not self._done.done():
            self._done.set_result(None)

    def _send(self, connection: Connection, due: int) -> None:
        self._number += 1
        number = self._number if self._plan.numbers is None else self._number % self._plan.numbers
        connection.send(self._template.render(number, due), due)

    def _send_at_once(self, connection: Connection, now: int | None = None) -> None:
        now = now or time.monotonic_ns()
        if now >= self._end:
            self._last = self._sent
        elif self._sent != self._last:
            self._sent += 1
            self._send(connection, now)

    async def _keep_pace(self, rate: float, start: int) -> None:
        total = int(self._plan.seconds * rate)
        self._last = total if self._last is None else min(self._last, total)
        self._idle.extend(self._connections)

        def send(due: int) -> None:
            self._sent += 1
            if self._idle:
                self._send(self._idle.popleft(), due)
            else:
                self._late.append(due)

        await keep_pace(rate, self._last, start, send, self._done)


async def _main(plan: Plan) -> Result:
    return await Load(plan).run()


if __name__ == "__main__":
    worker.serve(_main, Plan)
