"""Calls of actors, beside invocation of the same app by the same sidecars: what turns and placement cost.

10,000 actors that are all hosted behind the other sidecar; and a single one, whose turns follow each other, beside an
app that takes one call at a time. These turns have no state; those that read and write some stand apart. What an idle
actor costs is what the sidecar's RSS grows by while many are called once, after as many calls of a few.
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
KEYS = (1, 3)
"""How many items turns with state read, and write in one transaction."""
FEW = 64
IDLE_FACTOR = 5
"""For each event that the options speak of there are so many idle actors: 100,000 by default."""
PATIENCE = 600.0
SIZE = Target(500, at_most=True)
MESHWIRE = 0
"""Only our own sidecars: a peer needs services of its own for actors."""


def run(options: Options) -> list[Row]:
    rows: list[Row] = []
    with place(options) as here, app(here) as callee:
        kind = here.kinds[MESHWIRE]
        with pair(here, kind, callee, f"{NAME}-many") as many:
            rows += _compared(many, kind, many.actor(NUMBER.decode()), ACTORS, f"{ACTORS:,} actors", options)
            rows += [_with_state(many, kind, keys, options) for keys in KEYS]
        with pair(here, kind, callee, f"{NAME}-idle") as idle:
            rows.append(_idle(idle, kind, IDLE_FACTOR * options.events))
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


def _with_state(both: Pair, kind: Kind, keys: int, options: Options) -> Row:
    """Rates of a turn that takes one call more for each item, and one for the transaction."""
    row = Row(benchmark=NAME, name=f"{kind.name}, turns that read and write {keys} of 1 KiB, 32 at once", unit="/s")
    for _ in range(options.runs):
        _measure(both, row, both.actor(NUMBER.decode(), keys=keys), ACTORS, options.seconds)
    return row


def _idle(both: Pair, kind: Kind, actors: int) -> Row:
    """Once: the second time they are there already."""
    row = Row(benchmark=NAME, name=f"{kind.name}, an idle actor of {actors:,}", unit="bytes", target=SIZE)
    path = both.actor(NUMBER.decode())
    small_calls(both.caller.port, path, seconds=PATIENCE, numbers=FEW, requests=actors // 4)
    before = both.callee.memory().resident
    small_calls(both.caller.port, path, seconds=PATIENCE, numbers=actors, requests=actors)
    row.values.append((both.callee.memory().resident - before) / actors)
    return row


def _measure(both: Pair, row: Row, path: str, numbers: int | None, seconds: float) -> None:
    before = sum(both.cpu())
    result: Result = small_calls(both.caller.port, path, seconds=seconds, numbers=numbers)
    spent = (sum(both.cpu()) - before) / result.requests * 1e6
    row.values.append(result.requests / result.elapsed)
    row.costs.append(Cost(sidecar=spent, client=result.cpu / result.requests * 1e6))
