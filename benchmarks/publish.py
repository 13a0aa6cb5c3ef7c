"""Publishing over HTTP, as fast as 32 connections can, beside stock nats-py's `await js.publish()` from 32 tasks.

Same server, same stream, same 1 KiB of data. Latency is measured apart, at a fixed rate.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

from benchmarks import load, stock, worker
from benchmarks.conditions import STREAM, Options, Place, place, subject
from benchmarks.events import HTTP_HEADERS, PLAIN_HEADERS, TOPIC, request
from benchmarks.histogram import Histogram
from benchmarks.processes import Sidecar
from benchmarks.report import Cost, Row, Target, compare

NAME = "publish"
CONCURRENCY = 32
WARM_UP = 0.5
"""Seconds of publishing that do not count, on each side."""
TARGET = Target(0.35, aim=0.6)

FORMS = {"binary CloudEvents": HTTP_HEADERS, "plain JSON": PLAIN_HEADERS}


def run(options: Options) -> list[Row]:
    with place(options) as here, ExitStack() as stack:
        sidecars = [stack.enter_context(Sidecar(kind, here.folder / f"{kind.name}-publish.log")) for kind in here.kinds]
        for sidecar in sidecars:
            sidecar.wait_until_accepting()
        baseline = Row(benchmark=NAME, name="nats-py, await js.publish()", unit="/s")
        rates = {
            (sidecar, form): Row(
                benchmark=NAME,
                name=f"{sidecar.kind.name}, {form}",
                unit="/s",
                target=TARGET if sidecar is sidecars[0] else None,
            )
            for sidecar in sidecars
            for form in FORMS
        }
        for sidecar, form in rates:
            _over_http(here, sidecar, form, seconds=WARM_UP)
        for _ in range(options.runs):
            for (sidecar, form), row in rates.items():
                _measure_rate(here, sidecar, form, options.seconds, row)
            _measure_baseline(here, options.seconds, baseline)
        latencies = [row for sidecar in sidecars for row in _latencies(here, sidecar, options)]
        compare([*rates.values()], baseline)
        return [*rates.values(), baseline, *latencies]


def _over_http(here: Place, sidecar: Sidecar, form: str, *, seconds: float, rate: float | None = None) -> load.Result:
    stock.run(stock.Purge(url=here.server.url, purge=STREAM))
    plan = load.Plan(
        port=sidecar.port,
        request=request(sidecar.publish_path(TOPIC), FORMS[form]),
        connections=CONCURRENCY,
        seconds=seconds,
        rate=rate,
    )
    result = worker.run("benchmarks.load", plan, load.Result)
    result.check()
    return result


def _measure_rate(here: Place, sidecar: Sidecar, form: str, seconds: float, row: Row) -> None:
    before, server_before = sidecar.cpu(), here.server.cpu()
    result = _over_http(here, sidecar, form, seconds=seconds)
    row.values.append(result.requests / result.elapsed)
    row.costs.append(
        Cost(
            sidecar=(sidecar.cpu() - before) / result.requests * 1e6,
            client=result.cpu / result.requests * 1e6,
            server=(here.server.cpu() - server_before) / result.requests * 1e6,
        )
    )


def _measure_baseline(here: Place, seconds: float, row: Row) -> None:
    before = here.server.cpu()
    plan = stock.Publish(url=here.server.url, subject=subject(TOPIC), purge=STREAM, tasks=CONCURRENCY, seconds=seconds)
    result = stock.run(plan)
    row.values.append(result.events / result.elapsed)
    row.costs.append(
        Cost(
            client=result.cpu / result.events * 1e6,
            server=(here.server.cpu() - before) / result.events * 1e6,
        )
    )


def _latencies(here: Place, sidecar: Sidecar, options: Options) -> Iterator[Row]:
    rows = {
        share: Row(
            benchmark=NAME, name=f"{sidecar.kind.name}, accepted at {options.rate:,.0f}/s, p{share * 100:g}", unit="ms"
        )
        for share in (0.5, 0.99)
    }
    for _ in range(options.runs):
        result = _over_http(here, sidecar, "binary CloudEvents", seconds=options.seconds, rate=options.rate)
        histogram = Histogram.from_pairs(result.latencies)
        for share, row in rows.items():
            row.values.append(histogram.quantile(share) / 1e6)
    yield from rows.values()
