"""Calling the app: `HttpAppChannel` alone, against the bare sink, with 32 calls under way."""

from __future__ import annotations

import asyncio
import time

import msgspec

from benchmarks import sink, worker
from benchmarks.conditions import Options
from benchmarks.events import DATA, TOPIC, Template
from benchmarks.processes import free_port
from benchmarks.report import Cost, Row
from mesh.ports import AppResponse
from sidecar.channel import HttpAppChannel

NAME = "app-channel"
CONCURRENCY = 32
TIMEOUT = 30.0


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """`calls` calls to the app on `port`."""

    port: int
    calls: int


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds."""

    elapsed: float
    cpu: float


def run(options: Options) -> list[Row]:
    row = Row(benchmark=NAME, name="POST of 1 KiB, 32 at once", unit="/s")
    for _ in range(options.runs):
        port = free_port()
        with sink.start(sink.Plan(port=port, pubsub=TOPIC, events=options.events)) as app:
            result = worker.run("benchmarks.app_channel", Plan(port=port, calls=options.events), Result)
            received = app.result()
        row.values.append(options.events / result.elapsed)
        row.costs.append(Cost(sidecar=result.cpu / options.events * 1e6, client=received.cpu / options.events * 1e6))
    return [row]


async def _main(plan: Plan) -> Result:
    channel = HttpAppChannel("127.0.0.1", plan.port)
    await channel.wait_until_listening()
    route = channel.prepare("POST", sink.ROUTE.decode(), [("content-type", "application/json")])
    body = Template(DATA)
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    sent = answered = 0

    def send() -> None:
        nonlocal sent
        if sent < plan.calls:
            sent += 1
            route.send(body.render(sent, time.monotonic_ns()), timeout=TIMEOUT).add_done_callback(finish)

    def finish(call: asyncio.Future[AppResponse]) -> None:
        nonlocal answered
        if done.done():
            return
        error = call.exception()
        if error is not None:
            done.set_exception(error)
            return
        answered += 1
        send()
        if answered == plan.calls:
            done.set_result(None)

    cpu, start = time.process_time(), time.perf_counter()
    for _ in range(CONCURRENCY):
        send()
    await done
    result = Result(elapsed=time.perf_counter() - start, cpu=time.process_time() - cpu)
    await channel.close()
    return result


if __name__ == "__main__":
    worker.serve(_main, Plan)
