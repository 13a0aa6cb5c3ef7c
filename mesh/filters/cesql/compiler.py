"""From the tree of a CESQL expression to closures (CESQL 1.0: 3.4 to 3.7).

Compiled plainly, the closures stop at the first error: they raise `EvaluationError`. Compiled with outcomes to be
noted, they go on: each sub-expression is noted with its value and error, and what uses a failed one gives its zero
value. The hot ones are those of a plain compilation: a filter runs them for each event.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

from mesh.event import AttributeValue
from mesh.filters.cesql import like
from mesh.filters.cesql.functions import BUILT_IN, Function, Functions
from mesh.filters.cesql.values import (
    CASTS,
    FAILED,
    ZERO,
    ErrorKind,
    EvaluationError,
    OperandFailed,
    Value,
    int32,
    to_bool,
    to_int,
    to_text,
    to_type_of,
)
from mesh.filters.explanation import Fault, Outcome
from mesh.filters.syntax import Node

Attributes = Mapping[str, AttributeValue]
Run = Callable[[Attributes], Any]

_ORDER = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


def compile_tree(tree: Node, functions: Functions = BUILT_IN, outcomes: dict[int, Outcome] | None = None) -> Run:
    """With `outcomes`, what each node gave is put there by its `id`, and nothing is raised."""
    return _Compiler(functions, outcomes).run_of(tree)


def _divide(left: int, right: int) -> int:
    if right == 0:
        raise EvaluationError(ErrorKind.MATH, "division by zero")
    quotient = abs(left) // abs(right)
    return int32(quotient if (left < 0) is (right < 0) else -quotient)


def _remainder(left: int, right: int) -> int:
    if right == 0:
        raise EvaluationError(ErrorKind.MATH, "remainder of a division by zero")
    rest = abs(left) % abs(right)
    return -rest if left < 0 else rest


_ARITHMETIC: dict[str, Callable[[int, int], int]] = {
    "+": lambda left, right: int32(left + right),
    "-": lambda left, right: int32(left - right),
    "*": lambda left, right: int32(left * right),
    "/": _divide,
    "%": _remainder,
}


class _Compiler:
    def __init__(self, functions: Functions, outcomes: dict[int, Outcome] | None) -> None:
        self._functions = functions
        self._outcomes = outcomes

    def run_of(self, node: Node) -> Run:
        run = self._closure(node)
        return run if self._outcomes is None else self._noting(node, run, self._outcomes)

    def _noting(self, node: Node, run: Run, outcomes: dict[int, Outcome]) -> Run:
        returns: type = bool
        if node.kind in _ARITHMETIC or node.kind == "negate":
            returns = int
        elif node.kind == "call":
            function = self._functions.find(str(node.value), len(node.operands))
            returns = bool if function is None else function.returns

        def noting(attributes: Attributes) -> Any:
            try:
                value = run(attributes)
            except EvaluationError as error:
                given = ZERO[returns] if error.value is None or type(error.value) is not returns else error.value
                outcomes[id(node)] = Outcome(given, Fault(error.kind.value, error.message), True)
                return FAILED
            except OperandFailed:
                outcomes[id(node)] = Outcome(ZERO[returns], None, True)
                return FAILED
            outcomes[id(node)] = Outcome(value)
            return value

        return noting

    def _closure(self, node: Node) -> Run:
        kind, value = node.kind, node.value
        if kind == "literal":
            return lambda _attributes: value
        if kind == "attribute":
            return _attribute(str(value))
        if kind == "exists":
            return lambda attributes: value in attributes
        operands = [self.run_of(operand) for operand in node.operands]
        match kind:
            case "call":
                return self._call(str(value), operands)
            case "and" | "or":
                return _pair(operands[0], operands[1], kind == "or") if len(operands) == 2 else _run(operands, kind)
            case "xor":
                return _xor(operands)
            case "not":
                return _not(operands[0])
            case "negate":
                return _negate(operands[0])
            case "like" | "not like":
                return _like(operands[0], like.matcher(str(value)), kind == "like")
            case "in" | "not in":
                return _in(operands[0], operands[1:], kind == "in")
            case "=" | "!=":
                right = node.operands[1]
                return _equal(operands[0], operands[1], right, kind == "=")
            case _:
                apply = _ARITHMETIC.get(kind) or _ORDER[kind]
                return _integers(operands[0], operands[1], apply)

    def _call(self, name: str, arguments: list[Run]) -> Run:
        function = self._functions.find(name, len(arguments))
        if function is None:
            message = f"there is no function {name} with {len(arguments)} arguments"

            def missing(_attributes: Attributes) -> Value:
                raise EvaluationError(ErrorKind.MISSING_FUNCTION, message, False)

            return missing
        return _call(function, arguments)


def _attribute(name: str) -> Run:
    def attribute(attributes: Attributes) -> Value:
        try:
            return attributes[name]
        except KeyError:
            message = f"the event has no attribute '{name}'"
            raise EvaluationError(ErrorKind.MISSING_ATTRIBUTE, message, False) from None

    return attribute


def _call(function: Function, arguments: list[Run]) -> Run:
    types = [*function.parameters, *[function.rest] * (len(arguments) - len(function.parameters))]
    casts = [CASTS[one] for one in types if one is not None]
    run, returns = function.run, function.returns

    def call(attributes: Attributes) -> Value:
        given = [argument(attributes) for argument in arguments]
        values = [cast(value) for cast, value in zip(casts, given, strict=True)]
        try:
            result = run(*values)
        except EvaluationError:
            raise
        except Exception as error:
            message = f"{function.name} failed: {error!r}"
            raise EvaluationError(ErrorKind.FUNCTION, message, ZERO[returns]) from error
        if type(result) is not returns:
            message = f"{function.name} gave no {returns.__name__}"
            raise EvaluationError(ErrorKind.FUNCTION, message, ZERO[returns])
        return result

    return call


def _pair(left: Run, right: Run, decides: bool) -> Run:
    """AND (decided by false) and OR (decided by true) of two."""

    def pair(attributes: Attributes) -> bool:
        value = left(attributes)
        if value is not True and value is not False:
            value = to_bool(value)
        if value is decides:
            return decides
        value = right(attributes)
        return value if value is True or value is False else to_bool(value)

    return pair


def _run(operands: list[Run], kind: str) -> Run:
    decides = kind == "or"

    def run(attributes: Attributes) -> bool:
        for operand in operands:
            value = operand(attributes)
            if value is not True and value is not False:
                value = to_bool(value)
            if value is decides:
                return decides
        return not decides

    return run


def _xor(operands: list[Run]) -> Run:
    def xor(attributes: Attributes) -> bool:
        values = [operand(attributes) for operand in operands]
        return sum(map(to_bool, values)) % 2 == 1

    return xor


def _not(operand: Run) -> Run:
    return lambda attributes: not to_bool(operand(attributes))


def _negate(operand: Run) -> Run:
    return lambda attributes: int32(-to_int(operand(attributes)))


def _like(left: Run, matches: Callable[[str], bool], wanted: bool) -> Run:
    def like(attributes: Attributes) -> bool:
        value = left(attributes)
        return matches(value if type(value) is str else to_text(value)) is wanted

    return like


def _equal(left: Run, right: Run, right_node: Node, wanted: bool) -> Run:
    """The type of the right side decides; a text to compare with is the common case."""
    text = right_node.value
    if right_node.kind == "literal" and isinstance(text, str):

        def equal_text(attributes: Attributes) -> bool:
            value = left(attributes)
            return ((value if type(value) is str else to_text(value)) == text) is wanted

        return equal_text

    def equal(attributes: Attributes) -> bool:
        value, other = left(attributes), right(attributes)
        return bool(to_type_of(other)(value) == other) is wanted

    return equal


def _integers(left: Run, right: Run, apply: Callable[[int, int], Value]) -> Run:
    def integers(attributes: Attributes) -> Value:
        value, other = left(attributes), right(attributes)
        return apply(to_int(value), to_int(other))

    return integers


def _in(left: Run, members: list[Run], wanted: bool) -> Run:
    """Members behind the one that is found are not looked at."""

    def is_in(attributes: Attributes) -> bool:
        value = left(attributes)
        cast = to_type_of(value)
        for member in members:
            if cast(member(attributes)) == value:
                return wanted
        return not wanted

    return is_in
