"""Calls from app to app: directly, through two sidecars, and as stock nats-py's request and reply.

Same body, same headers, same rate, in turns of one slice each. What counts is what the mesh adds to a direct call, in
units of what stock nats-py needs for its request and reply on the same server in the same round.
"""

from __future__ import annotations

from contextlib import ExitStack

from benchmarks import stock_requests
from benchmarks.app import ECHO, App
from benchmarks.conditions import Options, Place, place
from benchmarks.histogram import Histogram
from benchmarks.pair import HEADERS, Pair, app, pair, small_calls
from benchmarks.report import Cost, Row, Target, compare

NAME = "invoke"
WARM_UP = 0.5
"""Seconds of calls that do not count, each way."""
ADDED = {0.5: Target(4, at_most=True, aim=2), 0.99: Target(12, at_most=True)}
"""What the mesh may add at each quantile, by that of stock nats-py."""
SUBJECT = "bench.requests"


def run(options: Options) -> list[Row]:
    with ExitStack() as stack:
        here = stack.enter_context(place(options))
        callee = stack.enter_context(app(here))
        pairs = [stack.enter_context(pair(here, kind, callee, NAME)) for kind in here.kinds]
        stack.enter_context(stock_requests.Responder(here.server.url, SUBJECT, here.folder / "responder.log"))
        for each in pairs:
            small_calls(each.caller.port, each.path(ECHO), seconds=WARM_UP)
        return [*_latencies(here, callee, pairs, options), *_rates(here, pairs, options)]


def _latencies(here: Place, callee: App, pairs: list[Pair], options: Options) -> list[Row]:
    """In the open loop, so that nobody's stall is hidden."""
    ways = ["direct", *(f"through two of {kind.name}" for kind in here.kinds), "nats-py, request and reply"]
    rows = {
        (way, share): Row(benchmark=NAME, name=f"{way}, {options.rate:,.0f}/s, p{share * 100:g}", unit="ms")
        for way in ways
        for share in ADDED
    }
    added = {
        (way, share): Row(
            benchmark=NAME,
            name=f"{way} − direct, p{share * 100:g}, by that of nats-py",
            unit="×",
            target=None if number else target,
        )
        for number, way in enumerate(ways[1:-1])
        for share, target in ADDED.items()
    }
    for _ in range(options.runs):
        direct = small_calls(callee.port, ECHO, seconds=options.slice, rate=options.rate)
        histograms = [Histogram.from_pairs(direct.latencies)]
        for each in pairs:
            before = each.cpu()
            result = small_calls(each.caller.port, each.path(ECHO), seconds=options.slice, rate=options.rate)
            histograms.append(Histogram.from_pairs(result.latencies))
            spent = sum(each.cpu()) - sum(before)
            for share in ADDED:
                rows[ways[len(histograms) - 1], share].costs.append(Cost(sidecar=spent / result.requests * 1e6))
        stock = _stock(here, seconds=options.slice, rate=options.rate)
        histograms.append(Histogram.from_pairs(stock.latencies))
        for share in ADDED:
            quantiles = [histogram.quantile(share) / 1e6 for histogram in histograms]
            for way, value in zip(ways, quantiles, strict=True):
                rows[way, share].values.append(value)
            for way, value in zip(ways[1:-1], quantiles[1:-1], strict=True):
                added[way, share].values.append((value - quantiles[0]) / quantiles[-1])
    return [*rows.values(), *added.values()]


def _rates(here: Place, pairs: list[Pair], options: Options) -> list[Row]:
    """In the closed loop: as many calls as 32 connections can make."""
    rates = [Row(benchmark=NAME, name=f"through two of {kind.name}, 32 at once", unit="/s") for kind in here.kinds]
    shares = [
        [
            Row(benchmark=NAME, name=f"{kind.name}, CPU for a call at the {side}'s side", unit="µs")
            for side in Pair._fields
        ]
        for kind in here.kinds
    ]
    baseline = Row(benchmark=NAME, name="nats-py, request and reply, 32 at once", unit="/s")
    for _ in range(options.runs):
        for each, rate, sides in zip(pairs, rates, shares, strict=True):
            before, server_before = each.cpu(), here.server.cpu()
            result = small_calls(each.caller.port, each.path(ECHO), seconds=options.seconds)
            spent = [(after - start) / result.requests * 1e6 for start, after in zip(before, each.cpu(), strict=True)]
            rate.values.append(result.requests / result.elapsed)
            rate.costs.append(
                Cost(
                    sidecar=sum(spent),
                    client=result.cpu / result.requests * 1e6,
                    server=(here.server.cpu() - server_before) / result.requests * 1e6,
                )
            )
            for row, cost in zip(sides, spent, strict=True):
                row.values.append(cost)
        server_before = here.server.cpu()
        stock = _stock(here, seconds=options.seconds)
        baseline.values.append(stock.requests / stock.elapsed)
        baseline.costs.append(
            Cost(
                client=stock.cpu / stock.requests * 1e6,
                server=(here.server.cpu() - server_before) / stock.requests * 1e6,
            )
        )
    compare(rates, baseline)
    return [*rates, *(row for sides in shares for row in sides), baseline]


def _stock(here: Place, *, seconds: float, rate: float | None = None) -> stock_requests.Result:
    plan = stock_requests.Plan(url=here.server.url, subject=SUBJECT, headers=HEADERS, seconds=seconds, rate=rate)
    return stock_requests.run(plan)
