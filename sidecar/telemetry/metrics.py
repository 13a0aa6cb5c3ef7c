"""Counters, gauges and histograms of one process, and their exposition (Prometheus text format 0.0.4).

Whoever counts often keeps what `Family.labels` returns: an increment is then an addition. For use in one thread, that
of the event loop; guarded by `tests/unit/sidecar/telemetry/test_metrics.py`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Generic, TypeVar

from mesh.telemetry_settings import LabelRule

MAX_VALUES = 100
"""Values that a label may take over all families; further ones count as `OTHER`."""
MAX_SERIES = 500
"""Series of one family; what goes beyond has `OTHER` in all labels."""
OTHER = "_other"


class Counter:
    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1) -> None:
        self.value += amount

    def lines(self, name: str, labels: str) -> str:
        return f"{name}{{{labels}}} {_number(self.value)}\n"


class Gauge(Counter):
    """Unlike a counter it may fall."""

    __slots__ = ()


class Histogram:
    """Counts observations by their upper `bounds`, which grow."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def lines(self, name: str, labels: str) -> str:
        count = 0
        lines = []
        comma = "," if labels else ""
        for bound, more in zip((*map(_number, self.bounds), "+Inf"), self.counts, strict=True):
            count += more
            lines.append(f'{name}_bucket{{{labels}{comma}le="{bound}"}} {count}\n')
        lines.append(f"{name}_sum{{{labels}}} {_number(self.total)}\n{name}_count{{{labels}}} {count}\n")
        return "".join(lines)


Child = TypeVar("Child", Counter, Gauge, Histogram)


class Family(Generic[Child]):
    """One metric: its children by the values of its labels."""

    def __init__(
        self, registry: Registry, name: str, kind: str, help_text: str, labels: Sequence[str], make: Callable[[], Child]
    ) -> None:
        self.name = name
        self.kind = kind
        self.help = help_text
        self._registry = registry
        self._labels = labels
        self._make: Callable[[], Child] = make
        self._children: dict[tuple[str, ...], tuple[str, Child]] = {}
        self._found: dict[tuple[str, ...], Child] = {}
        """By the values as they were asked for."""

    def labels(self, *values: str) -> Child:
        """The child with these values, in the order in which the labels were declared."""
        child = self._found.get(values)
        if child is None:
            if len(self._found) >= 2 * MAX_SERIES:
                self._found.clear()
            child = self._found[values] = self._child(values)
        return child

    def _child(self, values: tuple[str, ...]) -> Child:
        values = self._registry.bounded(self.name, self._labels, values)
        found = self._children.get(values)
        if found is None and len(self._children) >= MAX_SERIES:
            values = (OTHER,) * len(values)
            found = self._children.get(values)
        if found is None:
            own: list[str] = [f'{name}="{_escaped(value)}"' for name, value in zip(self._labels, values, strict=True)]
            found = self._children[values] = (",".join((*self._registry.constant, *own)), self._make())
        return found[1]

    def render(self) -> Iterator[str]:
        if self._children:
            yield f"# HELP {self.name} {self.help}\n# TYPE {self.name} {self.kind}\n"
            for labels, child in list(self._children.values()):
                yield child.lines(self.name, labels)


class Registry:
    """All metrics of a sidecar. `constant` labels stand on every series; `rules` rewrite values (Dapr)."""

    def __init__(self, constant: Mapping[str, str], rules: Sequence[LabelRule] = ()) -> None:
        self.constant: tuple[str, ...] = tuple(f'{name}="{_escaped(value)}"' for name, value in constant.items())
        self._families: list[Family[Counter] | Family[Gauge] | Family[Histogram]] = []
        self._values: dict[str, set[str]] = {}
        self._rules = {(f"dapr_{rule.metric}", rule.label): rule.replacements for rule in rules}
        self._refreshes: list[Callable[[], None]] = []

    def counter(self, name: str, help_text: str, labels: Sequence[str] = ()) -> Family[Counter]:
        return self._add(Family(self, name, "counter", help_text, labels, Counter))

    def gauge(self, name: str, help_text: str, labels: Sequence[str] = ()) -> Family[Gauge]:
        return self._add(Family(self, name, "gauge", help_text, labels, Gauge))

    def histogram(
        self, name: str, help_text: str, bounds: Sequence[float], labels: Sequence[str] = ()
    ) -> Family[Histogram]:
        bounds = tuple(bounds)
        return self._add(Family(self, name, "histogram", help_text, labels, lambda: Histogram(bounds)))

    def before_rendering(self, refresh: Callable[[], None]) -> None:
        """`refresh` sets what is counted elsewhere."""
        self._refreshes.append(refresh)

    def render(self) -> Iterator[str]:
        """The exposition in pieces of one series each, so that a scrape need not hold up the event loop."""
        for refresh in self._refreshes:
            refresh()
        for family in self._families:
            yield from family.render()

    def bounded(self, metric: str, labels: Sequence[str], values: tuple[str, ...]) -> tuple[str, ...]:
        kept = []
        for label, value in zip(labels, values, strict=True):
            for pattern, replacement in self._rules.get((metric, label), ()):
                value = pattern.sub(replacement, value)
            known = self._values.setdefault(label, set())
            if value not in known:
                if len(known) < MAX_VALUES:
                    known.add(value)
                else:
                    value = OTHER
            kept.append(value)
        return tuple(kept)

    def _add(self, family: Family[Child]) -> Family[Child]:
        self._families.append(family)
        return family


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
