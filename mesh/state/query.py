"""Queries for items by what is in their values (Dapr: state query, alpha): from JSON to a tree that stores translate.

filter := {"EQ" | "NEQ" | "GT" | "GTE" | "LT" | "LTE": {"<path>": scalar}} | {"IN": {"<path>": [scalar, …]}}
        | {"AND" | "OR": [filter, filter, …]} | {}
sort   := [{"key": "<path>", "order": "ASC" | "DESC"}, …]
page   := {"limit": n, "token": "<opaque>"}
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any, NamedTuple

import msgspec

from mesh.documents import did_you_mean
from mesh.errors import MeshError, clip
from mesh.ports.stores import StateQuery

MAX_DEPTH = 32
"""Levels of AND and OR within each other."""
MAX_SORT = 32
"""Members to sort by."""
MAX_TERMS = 256
"""Comparisons in a query, the values of an IN among them."""

Scalar = str | int | float | bool | None
Path = tuple[str, ...]
"""Where in the value: the names of members, from the outside in."""


class InvalidQuery(MeshError):
    """A query that says something unknown or impossible. The text names the place."""


class Comparator(Enum):
    EQ = "EQ"
    NEQ = "NEQ"
    GT = "GT"
    GTE = "GTE"
    LT = "LT"
    LTE = "LTE"


class Comparison(NamedTuple):
    comparator: Comparator
    path: Path
    value: Scalar


class Membership(NamedTuple):
    """The member is one of the values (`IN`)."""

    path: Path
    values: tuple[Scalar, ...]


class Every(NamedTuple):
    """`AND` of two filters or more."""

    filters: tuple[Filter, ...]


class Some(NamedTuple):
    """`OR` of two filters or more."""

    filters: tuple[Filter, ...]


Filter = Comparison | Membership | Every | Some

_OPERATORS = (*(comparator.value for comparator in Comparator), "IN", "AND", "OR")


def parse(body: bytes) -> StateQuery:
    """Raises `InvalidQuery`. Member names that are unknown are an error (Dapr passes over them, and answers another
    question than was asked)."""
    try:
        query = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidQuery(f"the query is no JSON: {str(error) or 'nested too deeply'}") from None
    query = _closed(query, "the query", ("filter", "sort", "page"))
    page = _closed(_given(query, "page", {}), "page", ("limit", "token"))
    return StateQuery(
        filter=_Filters().parse(_given(query, "filter", {}), "filter", 0),
        sort=_sort(_given(query, "sort", [])),
        limit=_limit(page.get("limit")),
        token=_text(page.get("token"), "page.token") or None,
    )


class _Filters:
    def __init__(self) -> None:
        self._terms = 0

    def parse(self, given: object, place: str, depth: int) -> Filter | None:
        """`None` for an empty one, which stands for all items and only at the top."""
        if not isinstance(given, dict):
            raise InvalidQuery(f"{place} must be an object (got {_shown(given)})")
        if not given and depth == 0:
            return None
        if len(given) != 1:
            raise InvalidQuery(f"{place} must have exactly one member, an operator (got {len(given)})")
        if depth > MAX_DEPTH:
            raise InvalidQuery(f"{place} lies more than {MAX_DEPTH} levels deep")
        [(operator, operand)] = given.items()
        place = f"{place}.{clip(operator)}"
        if operator in ("AND", "OR"):
            return self._junction(operator, operand, place, depth)
        if operator not in _OPERATORS:
            raise InvalidQuery(f"{place}: there is no such operator{did_you_mean(operator, _OPERATORS)}")
        if not isinstance(operand, dict) or len(operand) != 1:
            raise InvalidQuery(f"{place} must be an object with one member, the path into the value")
        [(path, value)] = operand.items()
        where = f"{place}.{clip(path)}"
        if operator != "IN":
            return Comparison(Comparator(operator), _path(path, place), self._scalar(value, where))
        if not isinstance(value, list) or not value:
            raise InvalidQuery(f"{where} must be a list of values, not empty (got {_shown(value)})")
        return Membership(_path(path, place), tuple(self._scalar(member, where) for member in value))

    def _junction(self, operator: str, operand: object, place: str, depth: int) -> Filter:
        if not isinstance(operand, list) or len(operand) < 2:
            raise InvalidQuery(f"{place} must be a list of two filters or more")
        parts = (self.parse(member, f"{place}[{index}]", depth + 1) for index, member in enumerate(operand))
        filters = tuple(part for part in parts if part is not None)
        return Every(filters) if operator == "AND" else Some(filters)

    def _scalar(self, value: object, place: str) -> Scalar:
        self._terms += 1
        if self._terms > MAX_TERMS:
            raise InvalidQuery(f"a query can compare with at most {MAX_TERMS} values")
        if value is None or isinstance(value, str | int | float | bool):
            return value
        raise InvalidQuery(f"{place} must be a string, a number, a boolean or null (got {_shown(value)})")


def _sort(given: object) -> tuple[tuple[Path, bool], ...]:
    if not isinstance(given, list):
        raise InvalidQuery(f"sort must be a list (got {_shown(given)})")
    if len(given) > MAX_SORT:
        raise InvalidQuery(f"a query can sort by at most {MAX_SORT} members (got {len(given)})")
    terms = []
    for index, member in enumerate(given):
        place = f"sort[{index}]"
        term = _closed(member, place, ("key", "order"))
        order = _text(term.get("order"), f"{place}.order") or "ASC"
        if order not in ("ASC", "DESC"):
            raise InvalidQuery(f"{place}.order must be ASC or DESC (got '{clip(order)}')")
        terms.append((_path(_text(term.get("key"), f"{place}.key"), f"{place}.key"), order == "DESC"))
    return tuple(terms)


def _limit(given: object) -> int | None:
    if given is None or (given == 0 and not isinstance(given, bool)):
        return None
    if not isinstance(given, int) or isinstance(given, bool) or not 0 < given <= 2**31 - 1:
        raise InvalidQuery(f"page.limit must be a positive integer (got {_shown(given)})")
    return given


def _path(text: str, place: str) -> Path:
    path = tuple(text.split("."))
    if not all(path):
        raise InvalidQuery(f"{place}: '{clip(text)}' is no path: give names with dots between them, as in person.name")
    return path


def _text(given: object, place: str) -> str:
    if given is None:
        return ""
    if not isinstance(given, str):
        raise InvalidQuery(f"{place} must be a string (got {_shown(given)})")
    return given


def _closed(given: object, place: str, known: tuple[str, ...]) -> Mapping[str, Any]:
    if not isinstance(given, dict):
        raise InvalidQuery(f"{place} must be an object (got {_shown(given)})")
    for name in given:
        if name not in known:
            raise InvalidQuery(f"{place} has no member '{clip(name)}'{did_you_mean(name, known)}")
    return given


def _given(members: Mapping[str, Any], name: str, default: object) -> object:
    """A member that is `null` is none."""
    value = members.get(name)
    return default if value is None else value


def _shown(value: object) -> str:
    return clip(msgspec.json.encode(value).decode())
