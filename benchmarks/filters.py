"""Filters and rules: compiling one, and asking one about an event. `Expression.matches` and `Routing.choose` alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from benchmarks.conditions import Options
from benchmarks.report import Cost, Row
from mesh.filters.cel import Rule
from mesh.filters.cesql import Expression
from mesh.routing import Routing

NAME = "filters"
CALLS = 20_000
SQL = "type = 'x' AND source LIKE '%y%'"
CEL = 'event.type == "x" && event.data.amount > 10'
ATTRIBUTES = {"specversion": "1.0", "id": "1", "type": "x", "source": "/a/y/b"}
EVENT = b'{"specversion":"1.0","id":"1","type":"x","source":"/a/y/b","data":{"amount":12,"currency":"EUR"}}'


def run(options: Options) -> list[Row]:
    return list(_rows(options.runs))


def _rows(runs: int) -> Iterator[Row]:
    expression = Expression(SQL)
    routing = Routing([(Rule(CEL), "/big"), (None, "/rest")])
    by_type = Routing([(Rule('event.type == "x"'), "/x"), (None, "/rest")])
    yield _measure("CESQL, compile", runs, CALLS // 20, lambda: Expression(SQL))
    yield _measure("CESQL, match", runs, CALLS, lambda: expression.matches(ATTRIBUTES))
    yield _measure("CEL, compile", runs, CALLS // 20, lambda: Rule(CEL))
    yield _measure("CEL, route by an attribute", runs, CALLS, lambda: by_type.choose(EVENT))
    yield _measure("CEL, route by data", runs, CALLS, lambda: routing.choose(EVENT))


def _measure(name: str, runs: int, calls: int, call: Callable[[], object]) -> Row:
    row = Row(benchmark=NAME, name=name, unit="/s")
    for _ in range(runs):
        start = time.process_time()
        for _ in range(calls):
            call()
        spent = time.process_time() - start
        row.values.append(calls / spent)
        row.costs.append(Cost(sidecar=spent / calls * 1e6))
    return row
