"""The filters of a subscription (CloudEvents Subscriptions API 1.0; several keys in one filter as in Knative).

A filter is parsed from plain values, as JSON or YAML gives them, and compiled once. Filters see the attributes of
an event, never its data.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from mesh.errors import MeshError, clip
from mesh.event import AttributeValue
from mesh.filters.cesql import Expression, InvalidExpression
from mesh.filters.cesql.values import to_text
from mesh.filters.explanation import Step, shown
from mesh.filters.syntax import MAX_DEPTH

MAX_FILTERS = 500
"""Most filters of a subscription, counting those within others."""

Attributes = Mapping[str, AttributeValue]
Test = Callable[[str, str], bool]

_attribute_name = re.compile(r"[a-z0-9]+", re.ASCII).fullmatch

_TESTS: dict[str, Test] = {"exact": str.__eq__, "prefix": str.startswith, "suffix": str.endswith}
DIALECTS = (*_TESTS, "all", "any", "not", "sql", "cesql")


class InvalidFilter(MeshError):
    """`path` leads to the fault, as in `filters[0].any[1].exact`; `rule` says what it breaks."""

    def __init__(self, path: str, rule: str) -> None:
        super().__init__(f"{path}: {rule}")
        self.path = path
        self.rule = rule


class Explained(NamedTuple):
    step: Step
    decided_by: Step
    """The smallest part that made the filter what it is."""


class Filter(NamedTuple):
    """One filter, compiled."""

    matches: Callable[[Attributes], bool]
    """The hot function: by the attributes of an event."""
    explain: Callable[[Attributes], Explained]
    canonical: dict[str, Any]
    """The filter with one key in each object, as it is shown again."""
    warnings: tuple[str, ...] = ()


def parse_filters(value: object, path: str = "filters") -> Filter | None:
    """The filters of a subscription, all of which must hold; `None` when there are none, and everything passes.

    Raises `InvalidFilter`.
    """
    if value is None or value == []:
        return None
    if not isinstance(value, list):
        raise InvalidFilter(path, f"must be a list of filters, not {_kind(value)}")
    parser = _Parser()
    filters = [parser.filter(member, f"{path}[{index}]", 1) for index, member in enumerate(value)]
    return filters[0] if len(filters) == 1 else _all(filters)


class _Parser:
    def __init__(self) -> None:
        self._left = MAX_FILTERS

    def filter(self, value: object, path: str, depth: int) -> Filter:
        if depth > MAX_DEPTH:
            raise InvalidFilter(path, f"nested deeper than {MAX_DEPTH} levels")
        self._left -= 1
        if self._left < 0:
            raise InvalidFilter(path, f"more than {MAX_FILTERS} filters")
        if not isinstance(value, Mapping) or not value:
            raise InvalidFilter(path, f"must be an object with a dialect, not {_kind(value)}")
        filters = [self._dialect(str(name), operand, f"{path}.{name}", depth) for name, operand in value.items()]
        return filters[0] if len(filters) == 1 else _all(filters)

    def _dialect(self, name: str, operand: object, path: str, depth: int) -> Filter:
        match name:
            case "exact" | "prefix" | "suffix":
                return _attributes(name, _entries(operand, path))
            case "all" | "any":
                if not isinstance(operand, list) or not operand:
                    raise InvalidFilter(path, f"must be a list of at least one filter, not {_kind(operand)}")
                nested = [self.filter(one, f"{path}[{index}]", depth + 1) for index, one in enumerate(operand)]
                return _all(nested) if name == "all" else _any(nested)
            case "not":
                return _not(self.filter(operand, path, depth + 1))
            case "sql" | "cesql":
                return _sql(operand, path)
        raise InvalidFilter(path, f"'{clip(name)}' is no dialect (known: {', '.join(DIALECTS)})")


def _entries(operand: object, path: str) -> dict[str, str]:
    if not isinstance(operand, Mapping) or not operand:
        raise InvalidFilter(path, f"must be an object with at least one attribute, not {_kind(operand)}")
    for name, text in operand.items():
        if not isinstance(name, str) or not _attribute_name(name) or name == "data":
            raise InvalidFilter(
                f"{path}.{clip(name)}", "the name of an attribute has lower-case letters and digits only"
            )
        if not isinstance(text, str):
            raise InvalidFilter(f"{path}.{name}", f"must be a text, not {_kind(text)}: write it in quotes")
        if not text:
            raise InvalidFilter(f"{path}.{name}", "must not be empty")
    return dict(operand)


def _attributes(dialect: str, entries: dict[str, str]) -> Filter:
    tests = [_attribute(dialect, name, text) for name, text in entries.items()]
    return tests[0] if len(tests) == 1 else _all(tests, {dialect: entries})


def _attribute(dialect: str, name: str, text: str) -> Filter:
    """An attribute that is missing, or is no text and differs as one, does not match."""
    test = _TESTS[dialect]

    def matches(attributes: Attributes) -> bool:
        value = attributes.get(name)
        if type(value) is not str:
            if value is None:
                return False
            value = to_text(value)
        return test(value, text)

    canonical = {dialect: {name: text}}

    def explain(attributes: Attributes) -> Explained:
        step = Step(_shown(canonical), matches(attributes), steps=(Step(name, shown(attributes.get(name))),))
        return Explained(step, step)

    return Filter(matches, explain, canonical)


def _sql(operand: object, path: str) -> Filter:
    if not isinstance(operand, str):
        raise InvalidFilter(path, f"must be a text, not {_kind(operand)}")
    try:
        expression = Expression(operand)
    except InvalidExpression as error:
        raise InvalidFilter(path, f"{error} in '{clip(operand)}'") from None

    def explain(attributes: Attributes) -> Explained:
        result = expression.explain(attributes)
        return Explained(result.step, result.decided_by)

    warnings = tuple(f"{path}: {warning}" for warning in expression.warnings)
    return Filter(expression.matches, explain, {"sql": operand}, warnings)


def _all(filters: Sequence[Filter], canonical: dict[str, Any] | None = None) -> Filter:
    tests = [one.matches for one in filters]

    def matches(attributes: Attributes) -> bool:
        for test in tests:  # noqa: SIM110 - twice as fast as all() over a generator
            if not test(attributes):
                return False
        return True

    return _compound(filters, matches, canonical or {"all": [one.canonical for one in filters]}, decides=False)


def _any(filters: Sequence[Filter]) -> Filter:
    tests = [one.matches for one in filters]

    def matches(attributes: Attributes) -> bool:
        for test in tests:  # noqa: SIM110 - as in `_all`
            if test(attributes):
                return True
        return False

    return _compound(filters, matches, {"any": [one.canonical for one in filters]}, decides=True)


def _not(inner: Filter) -> Filter:
    def matches(attributes: Attributes) -> bool:
        return not inner.matches(attributes)

    return _compound([inner], matches, {"not": inner.canonical}, decides=None)


def _compound(
    filters: Sequence[Filter],
    matches: Callable[[Attributes], bool],
    canonical: dict[str, Any],
    *,
    decides: bool | None,
) -> Filter:
    """`decides` is the value of a member that gives the whole its value; `None` is that its only member does."""

    def explain(attributes: Attributes) -> Explained:
        explained: list[Explained] = []
        decider: Explained | None = None
        for one in filters:
            explained.append(one.explain(attributes))
            if decides is None or one.matches(attributes) is decides:
                decider = explained[-1]
                break
        steps = tuple(one.step for one in explained)
        step = Step(_shown(canonical), matches(attributes), steps=steps)
        return Explained(step, step if decider is None else decider.decided_by)

    return Filter(matches, explain, canonical, tuple(_chained(one.warnings for one in filters)))


def _chained(parts: Iterable[Iterable[str]]) -> list[str]:
    return [text for part in parts for text in part]


def _shown(canonical: dict[str, Any]) -> str:
    return json.dumps(canonical, ensure_ascii=False, separators=(",", ":"))


def _kind(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case str():
            return "a text" if value else "an empty text"
        case int() | float():
            return "a number"
        case list():
            return "a list" if value else "an empty list"
        case _:
            return "an object" if value else "an empty object"
