"""From the tree of a CEL expression to closures over an `EventView`.

With outcomes to be noted, what each sub-expression gave is put there by its node's `id`; nothing else changes.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any, cast

from mesh.errors import clip
from mesh.filters.cel import values
from mesh.filters.cel.functions import Function
from mesh.filters.cel.values import RuleError, equal, is_number, no_overload, ordered
from mesh.filters.event_view import EventView
from mesh.filters.explanation import Fault, Outcome
from mesh.filters.syntax import Node

MAX_STEPS = 100_000
"""How many members of lists and maps the macros of a rule look at for one event."""

Run = Callable[[EventView], Any]

_ORDER: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "+": values.add,
    "-": values.subtract,
    "*": values.multiply,
    "/": values.divide,
    "%": values.remainder,
    **{kind: ordered(kind, compare) for kind, compare in _ORDER.items()},
}
_MACROS = ("all", "exists", "exists_one", "filter", "map macro")


def compile_tree(node: Node, outcomes: dict[int, Outcome] | None = None) -> Run:
    """The closure raises `RuleError`."""
    run = _closure(node, outcomes)
    return run if outcomes is None else _noting(node, run, outcomes)


def _noting(node: Node, run: Run, outcomes: dict[int, Outcome]) -> Run:
    def noting(event: EventView) -> Any:
        try:
            value = run(event)
        except RuleError as error:
            outcomes[id(node)] = Outcome(None, Fault("RuleError", str(error)), True)
            raise
        outcomes[id(node)] = Outcome(value)
        return value

    return noting


def _closure(node: Node, outcomes: dict[int, Outcome] | None) -> Run:
    kind, value = node.kind, node.value
    match kind:
        case "literal":
            return lambda _event: value
        case "unknown":
            return _unknown(str(value))
        case "event":
            return _whole
        case "variable":
            return lambda event: event.variables[value]  # type: ignore[call-overload]
        case "select" | "has" if node.operands[0].kind == "event":
            return _of_event(str(value), kind == "has")
    operands = [compile_tree(operand, outcomes) for operand in node.operands]
    if kind in _MACROS:
        return _macro(kind, value, operands)
    match kind:
        case "select" | "has":
            return _select(operands[0], str(value), kind == "has")
        case "index":
            return _index(operands[0], operands[1])
        case "list":
            return lambda event: [operand(event) for operand in operands]
        case "map":
            keys: Any = value
            return lambda event: {key: operand(event) for key, operand in zip(keys, operands, strict=True)}
        case "call":
            return _call(cast(Function, value).run, operands)
        case "matches":
            return _matches(operands[0], value)
        case "and" | "or":
            return _logic(operands, kind == "or")
        case "not":
            return _not(operands[0])
        case "negate":
            return lambda event: values.negate(operands[0](event))
        case "?:":
            return _choose(*operands)
        case "==" | "!=":
            return _equal(operands[0], operands[1], node.operands[1], kind == "==")
        case "in":
            return _in(operands[0], operands[1])
    return _binary(operands[0], operands[1], node.operands[1], kind)


def _unknown(name: str) -> Run:
    def unknown(_event: EventView) -> Any:
        raise RuleError(f"no such attribute: {clip(name)} (a rule sees 'event')")

    return unknown


def _whole(event: EventView) -> Any:
    try:
        return event.whole()
    except ValueError as error:
        raise RuleError(f"the event cannot be read: {error}") from None


def _of_event(name: str, only_ask: bool) -> Run:
    if only_ask:
        return lambda event: event.has(name)

    def member(event: EventView) -> Any:
        try:
            return event.member(name)
        except KeyError:
            raise RuleError(f"no such key: {name}") from None
        except ValueError as error:
            raise RuleError(f"{name} cannot be read: {error}") from None

    return member


def _select(operand: Run, name: str, only_ask: bool) -> Run:
    def select(event: EventView) -> Any:
        value = operand(event)
        if type(value) is not dict:
            raise RuleError(f"no such overload: a {values.name_of(value)} has no field {name}")
        if only_ask:
            return name in value
        try:
            return value[name]
        except KeyError:
            raise RuleError(f"no such key: {name}") from None

    return select


def _index(operand: Run, key: Run) -> Run:
    def index(event: EventView) -> Any:
        value, place = operand(event), key(event)
        if type(value) is dict and type(place) is str:
            if place in value:
                return value[place]
            raise RuleError(f"no such key: {clip(place)}")
        if type(value) is list and (type(place) is int or (type(place) is float and place.is_integer())):
            if 0 <= place < len(value):
                return value[int(place)]
            raise RuleError(f"index {int(place)} is out of range")
        raise no_overload("an index", value, place)

    return index


def _call(function: Any, arguments: list[Run]) -> Run:
    if len(arguments) == 1:
        return lambda event: function(arguments[0](event))
    return lambda event: function(*[argument(event) for argument in arguments])


def _matches(operand: Run, search: Any) -> Run:
    def matches(event: EventView) -> bool:
        value = operand(event)
        if type(value) is not str:
            raise no_overload("matches()", value)
        return bool(search(value))

    return matches


def _logic(operands: list[Run], decides: bool) -> Run:
    """One operand that decides outweighs the errors of the others, whatever their order."""
    name = "||" if decides else "&&"

    def logic(event: EventView) -> bool:
        failed: RuleError | None = None
        for operand in operands:
            value: object
            try:
                value = operand(event)
            except RuleError as error:
                failed = failed or error
                continue
            if value is decides:
                return decides
            if value is not (not decides):
                failed = failed or no_overload(name, value)
        if failed is not None:
            raise failed
        return not decides

    return logic


def _not(operand: Run) -> Run:
    def negated(event: EventView) -> bool:
        value = operand(event)
        if type(value) is not bool:
            raise no_overload("!", value)
        return value is False

    return negated


def _choose(condition: Run, chosen: Run, other: Run) -> Run:
    def choose(event: EventView) -> Any:
        value = condition(event)
        if type(value) is not bool:
            raise no_overload("?:", value)
        return chosen(event) if value else other(event)

    return choose


def _equal(left: Run, right: Run, right_node: Node, wanted: bool) -> Run:
    """A text to compare with is the common case."""
    text = right_node.value
    if right_node.kind == "literal" and isinstance(text, str):
        return lambda event: (left(event) == text) is wanted
    return lambda event: equal(left(event), right(event)) is wanted


def _binary(left: Run, right: Run, right_node: Node, kind: str) -> Run:
    """A number to compare with is the common case."""
    apply, number = _BINARY[kind], right_node.value
    if kind in _ORDER and right_node.kind == "literal" and is_number(number):
        compare = _ORDER[kind]

        def compared(event: EventView) -> bool:
            value = left(event)
            if type(value) is float or type(value) is int:
                return compare(value, number)
            return bool(apply(value, number))

        return compared
    return lambda event: apply(left(event), right(event))


def _in(left: Run, right: Run) -> Run:
    def is_in(event: EventView) -> bool:
        value, members = left(event), right(event)
        if type(members) is list:
            return any(equal(value, member) for member in members)
        if type(members) is dict:
            return type(value) is str and value in members
        raise no_overload("in", value, members)

    return is_in


def _macro(kind: str, slot: Any, operands: list[Run]) -> Run:
    over, *arguments = operands
    condition, last = (arguments[0], arguments[-1])

    def members(event: EventView) -> Iterable[Any]:
        value = over(event)
        if type(value) is not list and type(value) is not dict:
            raise no_overload(kind.split()[0], value)
        for member in value:
            event.steps += 1
            if event.steps > MAX_STEPS:
                raise RuleError(f"a rule looks at no more than {MAX_STEPS} members of lists")
            event.variables[slot] = member
            yield member

    def holds(event: EventView) -> bool:
        value = condition(event)
        if type(value) is not bool:
            raise no_overload(kind.split()[0], value)
        return value

    def quantified(event: EventView) -> bool:
        decides = kind == "exists"
        failed: RuleError | None = None
        for _ in members(event):
            try:
                if holds(event) is decides:
                    return decides
            except RuleError as error:
                failed = failed or error
        if failed is not None:
            raise failed
        return not decides

    match kind:
        case "all" | "exists":
            return quantified
        case "exists_one":
            return lambda event: sum([holds(event) for _ in members(event)]) == 1
        case "filter":
            return lambda event: [member for member in members(event) if holds(event)]
        case _ if len(arguments) == 2:
            return lambda event: [last(event) for _ in members(event) if holds(event)]
        case _:
            return lambda event: [last(event) for _ in members(event)]
