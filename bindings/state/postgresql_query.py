"""Dapr's state queries in SQL, over values in a `jsonb` column. What the query says goes into parameters only.

Values are compared as what they are: a number with numbers, 9 before 10, a text with texts. (Dapr compares all of
them as texts.) A member that is missing fulfils no comparison, `NEQ` neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from mesh.ports.stores import StateQuery, StoreError
from mesh.state.query import Comparator, Comparison, Every, Filter, Membership, Path, Scalar, Some

_ORDER = {Comparator.GT: ">", Comparator.GTE: ">=", Comparator.LT: "<", Comparator.LTE: "<="}
_TYPES = {str: "string", int: "number", float: "number"}


class Clauses(NamedTuple):
    """Parts of a SELECT, with `%s` for each of the parameters, in their order."""

    where: str
    order: str
    parameters: Sequence[Any]


def translate(query: StateQuery) -> Clauses:
    """`where` and `order` can stand alone. Raises `StoreError` for what PostgreSQL cannot compare."""
    parameters: list[Any] = []
    where = "true" if query.filter is None else _condition(query.filter, parameters)
    order = []
    for path, descending in query.sort:
        parameters.append(_path(tuple(path)))
        order.append(f"value #> %s::text[] {'DESC' if descending else 'ASC'} NULLS LAST")
    return Clauses(where, ", ".join([*order, "row_id"]), parameters)


def _condition(given: Filter, parameters: list[Any]) -> str:
    match given:
        case Every(filters):
            return f"({' AND '.join(_condition(part, parameters) for part in filters)})"
        case Some(filters):
            return f"({' OR '.join(_condition(part, parameters) for part in filters)})"
        case Membership(path, values):
            parameters += (_path(path), [_json(value) for value in values])
            return "value #> %s::text[] = ANY (%s::jsonb[])"
        case Comparison(Comparator.EQ | Comparator.NEQ as comparator, path, value):
            parameters += (_path(path), _json(value))
            return f"value #> %s::text[] {'=' if comparator is Comparator.EQ else '<>'} %s::jsonb"
        case Comparison(comparator, path, value):
            kind = _TYPES.get(type(value))
            if kind is None:
                raise StoreError(f"{comparator.value} compares numbers or strings (got {_json(value)})")
            parameters += (_path(path), kind, _path(path), _json(value))
            return f"(jsonb_typeof(value #> %s::text[]) = %s AND value #> %s::text[] {_ORDER[comparator]} %s::jsonb)"


def _path(path: Path) -> list[str]:
    if any("\0" in name for name in path):
        raise StoreError("PostgreSQL knows no names with a NUL character")
    return list(path)


def _json(value: Scalar) -> str:
    if isinstance(value, str) and "\0" in value:
        raise StoreError("PostgreSQL knows no text with a NUL character")
    return msgspec.json.encode(value).decode()
