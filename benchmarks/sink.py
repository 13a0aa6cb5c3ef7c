"""The app at the end of a delivery: as little as can answer HTTP, so that the sidecar alone is measured."""

from __future__ import annotations

import asyncio
import json
import time

import httptools
import msgspec

from benchmarks import worker
from benchmarks.events import PROBE, TOPIC, moment, number
from benchmarks.histogram import Histogram

ROUTE = b"/events"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
_PROBE = number(PROBE)
LINGER = 0.2
"""Seconds for which late repeats are still answered."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Listen on `port`, subscribe to the benchmarks' topic, end when `events` different events have come.

    Fails when they have not after `limit` seconds.
    """

    port: int
    pubsub: str
    events: int
    probes: bool = False
    """Count probes, and no other event, instead of leaving them out."""
    limit: float = 60.0
    metadata: dict[str, str] = {}
    """Of the subscription."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """`elapsed` in seconds, from the first delivery to the last one; `repeats` came more than once."""

    events: int
    repeats: int
    elapsed: float
    cpu: float
    latencies: list[tuple[int, int]]
    """A `Histogram`'s pairs: from the moment at which an event was due to be published to its delivery."""


class Sink:
    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        subscription = {"pubsubname": plan.pubsub, "topic": TOPIC, "route": ROUTE.decode(), "metadata": plan.metadata}
        subscriptions = json.dumps([subscription]).encode()
        self._answers = {
            ROUTE: OK,
            b"/dapr/subscribe": b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (len(subscriptions), subscriptions),
        }
        self._seen: set[bytes] = set()
        self._repeats = 0
        self._first = self._last = 0
        self._histogram = Histogram()
        self._complete = asyncio.Event()

    async def run(self) -> Result:
        """Raises `TimeoutError`."""
        loop = asyncio.get_running_loop()
        cpu = time.process_time()
        server = await loop.create_server(lambda: Connection(self), "127.0.0.1", self._plan.port)
        try:
            async with asyncio.timeout(self._plan.limit):
                await self._complete.wait()
        except TimeoutError:
            raise TimeoutError(f"only {len(self._seen)} of {self._plan.events} events were delivered") from None
        cpu = time.process_time() - cpu
        await asyncio.sleep(LINGER)
        server.close()
        return Result(
            events=len(self._seen),
            repeats=self._repeats,
            elapsed=(self._last - self._first) / 1e9,
            cpu=cpu,
            latencies=self._histogram.pairs(),
        )

    def answer(self, path: bytes, body: bytes) -> bytes:
        if path == ROUTE:
            self._count(body)
        return self._answers.get(path, NOT_FOUND)

    def _count(self, body: bytes) -> None:
        name = number(body)
        if name is None or (name == _PROBE) is not self._plan.probes:
            return
        now = time.monotonic_ns()
        if name in self._seen:
            self._repeats += 1
            return
        self._seen.add(name)
        self._first = self._first or now
        self._last = now
        self._histogram.record(now - moment(body))
        if len(self._seen) == self._plan.events:
            self._complete.set()


class Connection(asyncio.Protocol):
    """One connection to the sink."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._parser = httptools.HttpRequestParser(self)
        self._path = b""
        self._body: list[bytes] = []
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._path = url

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        body = b"".join(self._body)
        self._body.clear()
        self._transport.write(self._sink.answer(self._path, body))


async def _main(plan: Plan) -> Result:
    return await Sink(plan).run()


def start(plan: Plan) -> worker.Worker[Result]:
    """A sink in a process of its own."""
    return worker.Worker("benchmarks.sink", plan, Result)


if __name__ == "__main__":
    worker.serve(_main, Plan)
