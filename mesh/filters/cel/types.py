"""What can be known of a rule's types before any event (CEL: type checking). What comes from an event is `dyn`."""

from __future__ import annotations

from mesh.filters.cel.functions import Function
from mesh.filters.cel.values import name_of
from mesh.filters.syntax import InvalidExpression, Node

DYN = "dyn"

_NUMBERS = frozenset(("int", "double"))
_ORDERED = frozenset(("int", "double", "string", "bool", "timestamp", "duration"))
_SUMS: dict[tuple[str, str, str], str] = {
    **{(sign, kind, kind): kind for sign in "+-*/" for kind in ("int", "double")},
    ("%", "int", "int"): "int",
    ("+", "string", "string"): "string",
    ("+", "list", "list"): "list",
    ("+", "timestamp", "duration"): "timestamp",
    ("+", "duration", "timestamp"): "timestamp",
    ("+", "duration", "duration"): "duration",
    ("-", "timestamp", "timestamp"): "duration",
    ("-", "timestamp", "duration"): "timestamp",
    ("-", "duration", "duration"): "duration",
}
_ARITHMETIC = frozenset("+-*/%")
_FIXED = {
    "list": "list",
    "filter": "list",
    "map macro": "list",
    "map": "map",
    "event": "map",
    **dict.fromkeys(("has", "in", "matches", "all", "exists", "exists_one"), "bool"),
}


def check(text: str, tree: Node) -> None:
    """Raises `InvalidExpression` where an operator has no meaning for what it gets, whatever the event, and for a
    rule that is never true or false."""
    if _type_of(text, tree) not in ("bool", DYN):
        raise InvalidExpression(text, tree.start, "a rule must be true or false")


def _type_of(text: str, node: Node) -> str:
    types = [_type_of(text, operand) for operand in node.operands]
    kind = node.kind
    if kind in _ARITHMETIC:
        if DYN in types:
            return DYN
        found = _SUMS.get((kind, types[0], types[1]))
        if found is None:
            raise _no_overload(text, node, kind, types)
        return found
    match kind:
        case "literal":
            return name_of(node.value)
        case "call":
            assert isinstance(node.value, Function)  # noqa: S101 - for mypy
            return node.value.returns
        case "and" | "or" | "not":
            if not {"bool", DYN}.issuperset(types):
                raise _no_overload(text, node, {"and": "&&", "or": "||"}.get(kind, "!"), types)
            return "bool"
        case "==" | "!=":
            if not _comparable(*types):
                raise _no_overload(text, node, kind, types)
            return "bool"
        case "<" | "<=" | ">" | ">=":
            known = [one for one in types if one != DYN]
            if not _ORDERED.issuperset(known) or not _comparable(*types):
                raise _no_overload(text, node, kind, types)
            return "bool"
        case "negate":
            if types[0] not in (*_NUMBERS, DYN):
                raise _no_overload(text, node, "-", types)
            return types[0]
        case "?:":
            if types[0] not in ("bool", DYN):
                raise _no_overload(text, node, "?:", types[:1])
            return types[1] if types[1] == types[2] else DYN
    return _FIXED.get(kind, DYN)


def _comparable(left: str, right: str) -> bool:
    return left == right or not {DYN, "null"}.isdisjoint((left, right)) or {left, right} == _NUMBERS


def _no_overload(text: str, node: Node, what: str, types: list[str]) -> InvalidExpression:
    return InvalidExpression(text, node.start, f"no such overload: {what} of {' and '.join(types)}")
