"""Bodies of 1 GiB through two sidecars, up and down, with small calls over the same two sidecars meanwhile."""

from __future__ import annotations

from msgspec.structs import replace

from benchmarks import transfer
from benchmarks.app import ECHO
from benchmarks.conditions import Options, Place, place
from benchmarks.histogram import Histogram
from benchmarks.pair import Pair, app, pair, small_calls
from benchmarks.report import Cost, Row, Target

NAME = "invoke-stream"
FLAGS = ("--max-body-size", "2Gi")
RATE = 100.0
"""Small calls per second meanwhile."""
SLICE = 1.0
"""Seconds of small calls at once. Those during which the transfer ended do not count, unless there are no others."""
ALONE = 3.0
"""Seconds of small calls before: what the machine itself does to them."""
PEAK = Target(150, at_most=True)
"""Megabytes, of 1,000,000 bytes."""
SMALL = Target(20, at_most=True)
"""Milliseconds."""


def run(options: Options) -> list[Row]:
    with place(options) as here, app(here) as callee:
        rows = []
        for number, kind in enumerate(here.kinds):
            measured = _Rows(kind.name, options.streamed, has_targets=not number)
            kind = replace(kind, command=(*kind.command, *FLAGS)) if not number else kind
            for _ in range(options.runs):
                with pair(here, kind, callee, NAME) as both:
                    _measure(here, both, options.streamed, measured)
            rows += measured.all()
        return rows


class _Rows:
    def __init__(self, kind: str, size: int, *, has_targets: bool) -> None:
        def row(name: str, unit: str, target: Target | None = None) -> Row:
            return Row(benchmark=NAME, name=f"{kind}, {name}", unit=unit, target=target if has_targets else None)

        amount = f"{size / (1 << 20):,.0f} MiB"
        ways = {True: "up", False: "down"}
        self.speed = {up: row(f"{amount} {way}", "MB/s") for up, way in ways.items()}
        self.alone = row(f"calls at {RATE:g}/s before, p99", "ms")
        self.small = {up: row(f"calls at {RATE:g}/s during {way}, p99", "ms", SMALL) for up, way in ways.items()}
        self.peaks = [row(f"peak RSS at the {side}'s side", "MB", PEAK) for side in Pair._fields]

    def all(self) -> list[Row]:
        return [*self.speed.values(), self.alone, *self.small.values(), *self.peaks]


def _measure(here: Place, both: Pair, size: int, rows: _Rows) -> None:
    before = small_calls(both.caller.port, both.path(ECHO), seconds=ALONE, rate=RATE)
    rows.alone.values.append(Histogram.from_pairs(before.latencies).quantile(0.99) / 1e6)
    for up in (True, False):
        plan = transfer.Plan(port=both.caller.port, prefix=both.path(""), size=size, up=up)
        cpu_before, server_before = sum(both.cpu()), here.server.cpu()
        histogram = Histogram()
        with transfer.start(plan) as under_way:
            over = False
            while not over:
                slice_ = small_calls(both.caller.port, both.path(ECHO), seconds=SLICE, rate=RATE)
                over = under_way.done
                if not over or not histogram.count:
                    histogram.add(Histogram.from_pairs(slice_.latencies))
            result = under_way.result()
        mebibytes = size / (1 << 20)
        rows.speed[up].values.append(size / 1e6 / result.elapsed)
        rows.speed[up].costs.append(
            Cost(
                sidecar=(sum(both.cpu()) - cpu_before) / mebibytes * 1e6,
                client=result.cpu / mebibytes * 1e6,
                server=(here.server.cpu() - server_before) / mebibytes * 1e6,
            )
        )
        rows.small[up].values.append(histogram.quantile(0.99) / 1e6)
    for row, sidecar in zip(rows.peaks, both, strict=True):
        row.values.append(sidecar.peak() / 1e6)
