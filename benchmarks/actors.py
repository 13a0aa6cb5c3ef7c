"""Calls of actors, beside invocation of the same app by the same sidecars: what turns and placement cost.

10,000 actors that are all hosted behind the other sidecar; and a single one, whose turns follow each other, beside an
app that takes one call at a time.
"""

from __future__ import annotations

from benchmarks.app import ECHO
from benchmarks.conditions import Options, place
from benchmarks.events import NUMBER
from benchmarks.load import Result
from benchmarks.pair import Pair, app, pair, small_calls
from benchmarks.processes import Kind
from benchmarks.report import Cost, Row, Target, compare

NAME = "actors"
ACTORS = 10_000
WARM_UP = 2.0
"""Seconds of calls that do not count: all actors are active then."""
SHARE = Target(0.8)
MESHWIRE = 0
"""Only our own sidecars: a peer needs services of its own for actors."""


def run(options: Options) -> list[Row]:
    rows: list[Row] = []
    with place(options) as here, app(here) as callee:
        kind = here.kinds[MESHWIRE]
        with pair(here, kind, callee, f"{NAME}-many") as many:
            rows += _compared(many, kind, many.actor(NUMBER.decode()), ACTORS, f"{ACTORS:,} actors", options)
        with pair(here, kind, callee, f"{NAME}-one", ["--app-max-concurrency", "1"]) as one:
            rows += _compared(one, kind, one.actor("hot"), None, "one actor", options)
    return rows


def _compared(both: Pair, kind: Kind, path: str, numbers: int | None, name: str, options: Options) -> list[Row]:
    plain = Row(benchmark=NAME, name=f"{kind.name}, invocation beside {name}, 32 at once", unit="/s")
    turns = Row(benchmark=NAME, name=f"{kind.name}, {name}, 32 at once", unit="/s", target=SHARE)
    small_calls(both.caller.port, path, seconds=WARM_UP, numbers=numbers)
    for _ in range(options.runs):
        _measure(both, turns, path, numbers, options.seconds)
        _measure(both, plain, both.path(ECHO), None, options.seconds)
    compare([turns], plain)
    return [turns, plain]


def _measure(both: Pair, row: Row, path: str, numbers: int | None, seconds: float) -> None:
    before = sum(both.cpu())
    result: Result = small_calls(both.caller.port, path, seconds=seconds, numbers=numbers)
    spent = (sum(both.cpu()) - before) / result.requests * 1e6
    row.values.append(result.requests / result.elapsed)
    row.costs.append(Cost(sidecar=spent, client=result.cpu / result.requests * 1e6))
