"""State over HTTP at 32 in flight: set and get through the sidecar, beside `put` and `get` of stock nats-py's bucket.

What is read often comes from memory; how little the state route adds to a bare one is measured in one process.
"""

from __future__ import annotations

from contextlib import ExitStack

from benchmarks import load, stock_kv, worker
from benchmarks.conditions import Options, Place, place
from benchmarks.events import DATA, NUMBER, request
from benchmarks.histogram import Histogram
from benchmarks.processes import Process, Sidecar
from benchmarks.report import Cost, Row, Target, compare
from benchmarks.state_routes import BARE, GET, Routes
from benchmarks.stock_kv import KEY

NAME = "state"
CONCURRENCY = 32
WARM_UP = 0.5
STORE = "/v1.0/state/statestore"
JSON = {"Content-Type": "application/json"}

SET = request(STORE, JSON, b'[{"key":"k%b","value":%b}]' % (NUMBER, DATA))
FIRST = request(STORE, JSON, b'[{"key":"%b","value":%b}]' % (KEY.encode(), DATA))


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def run(options: Options) -> list[Row]:
    with place(options) as here, ExitStack() as stack:
        writer, reader = (
            stack.enter_context(Sidecar(here.kinds[0], here.folder / f"{name}.log", app_id=name))
            for name in ("writer", "reader")
        )
        for sidecar in (writer, reader):
            sidecar.wait_until_accepting()
        _load(reader.port, FIRST, requests=1)
        one = get(f"{STORE}/{KEY}")
        ways = [
            (Row(benchmark=NAME, name="meshwire, set", unit="/s", target=Target(0.4)), writer, SET),
            (Row(benchmark=NAME, name="meshwire, get", unit="/s", target=Target(0.4)), reader, one),
            (
                Row(benchmark=NAME, name="meshwire, get, strong", unit="/s"),
                reader,
                get(f"{STORE}/{KEY}?consistency=strong"),
            ),
            # Whoever has read lately is told of every change.
            (Row(benchmark=NAME, name="meshwire, set, beside a local view", unit="/s"), reader, SET),
        ]
        puts = Row(benchmark=NAME, name="nats-py, await kv.put()", unit="/s")
        gets = Row(benchmark=NAME, name="nats-py, await kv.get()", unit="/s")
        latencies = {
            share: Row(benchmark=NAME, name=f"meshwire, set, p{share * 100:g}", unit="ms") for share in (0.5, 0.99)
        }
        for _, sidecar, template in ways:
            _load(sidecar.port, template, seconds=WARM_UP)
        for _ in range(options.runs):
            for row, sidecar, template in ways:
                result = _measure(here, sidecar, sidecar.port, template, options.seconds, row)
                if sidecar is writer:
                    histogram = Histogram.from_pairs(result.latencies)
                    for share, latency in latencies.items():
                        latency.values.append(histogram.quantile(share) / 1e6)
            for row, is_get in ((puts, False), (gets, True)):
                _baseline(here, is_get, options.seconds, row)
        rows = [row for row, _, _ in ways]
        compare([rows[0], rows[3]], puts)
        compare(rows[1:3], gets)
        return [*rows, puts, gets, *latencies.values(), *_routes(here, options)]


def _routes(here: Place, options: Options) -> list[Row]:
    with Routes(here.folder / "routes.log") as routes:
        view = Row(benchmark=NAME, name="get from the local view", unit="/s", target=Target(0.5))
        bare = Row(benchmark=NAME, name="a raw-ASGI 204 route, same process", unit="/s")
        for path in (GET, BARE):
            _load(routes.port, get(path), seconds=WARM_UP)
        for _ in range(options.runs):
            _measure(here, routes, routes.port, get(GET), options.seconds, view)
            _measure(here, routes, routes.port, get(BARE), options.seconds, bare)
        compare([view], bare)
        return [view, bare]


def _load(port: int, template: bytes, *, seconds: float = 10.0, requests: int | None = None) -> load.Result:
    plan = load.Plan(
        port=port,
        request=template,
        connections=1 if requests == 1 else CONCURRENCY,
        seconds=seconds,
        requests=requests,
    )
    result = worker.run("benchmarks.load", plan, load.Result)
    result.check()
    return result


def _measure(here: Place, process: Process, port: int, template: bytes, seconds: float, row: Row) -> load.Result:
    before, server_before = process.cpu(), here.server.cpu()
    result = _load(port, template, seconds=seconds)
    row.values.append(result.requests / result.elapsed)
    row.costs.append(
        Cost(
            sidecar=(process.cpu() - before) / result.requests * 1e6,
            client=result.cpu / result.requests * 1e6,
            server=(here.server.cpu() - server_before) / result.requests * 1e6,
        )
    )
    return result


def _baseline(here: Place, is_get: bool, seconds: float, row: Row) -> None:
    before = here.server.cpu()
    result = stock_kv.run(stock_kv.Plan(url=here.server.url, gets=is_get, seconds=seconds, tasks=CONCURRENCY))
    row.values.append(result.events / result.elapsed)
    row.costs.append(
        Cost(
            client=result.cpu / result.events * 1e6,
            server=(here.server.cpu() - before) / result.events * 1e6,
        )
    )
