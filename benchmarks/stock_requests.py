"""The baseline of calls: stock nats-py's request and reply between two processes, without any sidecar."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from pathlib import Path

import msgspec
import nats
import uvloop
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import NoRespondersError

from benchmarks import worker
from benchmarks.events import DATA, Template
from benchmarks.histogram import Histogram
from benchmarks.pace import keep_pace
from benchmarks.processes import START_LIMIT, Process

TIMEOUT = 5.0


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """`request()` on `subject` with the benchmarks' data, for `seconds`: `rate` times a second, or, without a rate,
    from so many `tasks` at once."""

    url: str
    subject: str
    headers: dict[str, str]
    seconds: float
    rate: float | None = None
    tasks: int = 32


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """Times in seconds, of the work alone."""

    requests: int
    elapsed: float
    cpu: float
    latencies: list[tuple[int, int]]
    """A `Histogram`'s pairs, from the moment at which a request was due."""


class Requester:
    def __init__(self, client: Client, plan: Plan) -> None:
        self._client = client
        self._plan = plan
        self._template = Template(DATA)
        self._number = random.randrange(10**13)
        self._histogram = Histogram()

    async def run(self) -> Result:
        cpu = time.process_time()
        start = time.monotonic_ns()
        await (self._closed(start) if self._plan.rate is None else self._open(self._plan.rate, start))
        return Result(
            requests=self._histogram.count,
            elapsed=(time.monotonic_ns() - start) / 1e9,
            cpu=time.process_time() - cpu,
            latencies=self._histogram.pairs(),
        )

    async def _call(self, due: int) -> None:
        self._number += 1
        data = self._template.render(self._number, due)
        reply = await self._client.request(self._plan.subject, data, timeout=TIMEOUT, headers=self._plan.headers)
        self._histogram.record(time.monotonic_ns() - due)
        assert len(reply.data) == len(data)

    async def _closed(self, start: int) -> None:
        end = start + int(self._plan.seconds * 1e9)

        async def call() -> None:
            while (now := time.monotonic_ns()) < end:
                await self._call(now)

        async with asyncio.TaskGroup() as group:
            for _ in range(self._plan.tasks):
                group.create_task(call())

    async def _open(self, rate: float, start: int) -> None:
        total = int(self._plan.seconds * rate)
        all_sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        async with asyncio.TaskGroup() as group:
            sent = 0

            def send(due: int) -> None:
                nonlocal sent
                sent += 1
                group.create_task(self._call(due))
                if sent == total:
                    all_sent.set_result(None)

            await keep_pace(rate, total, start, send, all_sent)


async def _main(plan: Plan) -> Result:
    client = await nats.connect(plan.url)
    try:
        return await Requester(client, plan).run()
    finally:
        await client.close()


def run(plan: Plan) -> Result:
    """In a process of its own. Raises `RuntimeError` when it fails."""
    return worker.run("benchmarks.stock_requests", plan, Result)


class Responder(Process):
    """Stock nats-py that answers requests on `subject` with their own data, in a process of its own. It answers once
    it is made."""

    def __init__(self, url: str, subject: str, log: Path) -> None:
        super().__init__([sys.executable, "-P", "-m", "benchmarks.stock_requests", url, subject], log)
        asyncio.run(self._answers(url, subject))

    async def _answers(self, url: str, subject: str) -> None:
        client = await nats.connect(url)
        deadline = time.monotonic() + START_LIMIT
        while True:
            try:
                await client.request(subject, timeout=TIMEOUT)
            except NoRespondersError:
                self.check()
                if time.monotonic() > deadline:
                    raise RuntimeError("the responder does not answer") from None
                await asyncio.sleep(0.02)
            else:
                break
        await client.close()


async def _respond(url: str, subject: str) -> None:
    client = await nats.connect(url)

    async def answer(message: Msg) -> None:
        await message.respond(message.data)

    await client.subscribe(subject, cb=answer)
    await asyncio.Event().wait()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        uvloop.run(_respond(sys.argv[1], sys.argv[2]))
    else:
        worker.serve(_main, Plan)
