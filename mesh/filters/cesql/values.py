"""The values of CESQL, its errors and its casts (CESQL 1.0: 3.1, 3.3, 3.7)."""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum
from typing import Any

from mesh.errors import MeshError, clip

Value = str | int | bool

INT_MIN, INT_MAX = -(2**31), 2**31 - 1

ZERO: dict[type, Value] = {str: "", int: 0, bool: False}
NAMES: dict[type, str] = {str: "String", int: "Integer", bool: "Boolean"}


class ErrorKind(Enum):
    """The kinds of errors of an evaluation; that of parsing is `InvalidExpression`."""

    MATH = "MathError"
    CAST = "CastError"
    MISSING_ATTRIBUTE = "MissingAttributeError"
    MISSING_FUNCTION = "MissingFunctionError"
    FUNCTION = "FunctionEvaluationError"
    GENERIC = "GenericError"


class EvaluationError(MeshError):
    """A sub-expression failed. `value` is what it gives beside the error; `None` is the zero value of its type."""

    def __init__(self, kind: ErrorKind, message: str, value: Value | None = None) -> None:
        super().__init__(f"{kind.value}: {message}")
        self.kind = kind
        self.message = message
        self.value = value


class OperandFailed(Exception):
    """In a complete evaluation: an operand has failed, so its user gives its zero value, and no second error."""


FAILED: Any = type("Failed", (), {"__repr__": lambda _self: "FAILED"})()
"""In a complete evaluation: what a failed sub-expression gives to the operator or function that uses it."""

_integer = re.compile(r"[+-]?0*([0-9]{1,10})").fullmatch


def int32(value: int) -> int:
    """`value`, the result of arithmetic. Raises `EvaluationError` beyond 32 bits."""
    if INT_MIN <= value <= INT_MAX:
        return value
    raise EvaluationError(ErrorKind.MATH, "the result does not fit into 32 bits")


def to_text(value: Value) -> str:
    if type(value) is str:
        return value
    if type(value) is bool:
        return "true" if value else "false"
    if type(value) is int:
        return str(value)
    raise OperandFailed


def to_int(value: Value) -> int:
    if type(value) is int:
        return value
    if type(value) is bool:
        return int(value)
    if type(value) is str:
        number = int(value) if _integer(value) else INT_MAX + 1
        if INT_MIN <= number <= INT_MAX:
            return number
        raise EvaluationError(ErrorKind.CAST, f"'{clip(value)}' is no Integer", 0)
    raise OperandFailed


def to_bool(value: Value) -> bool:
    if type(value) is bool:
        return value
    if type(value) is int:
        return value != 0
    if type(value) is str:
        word = value.lower() if len(value) <= 5 else ""
        if word in ("true", "false"):
            return word == "true"
        raise EvaluationError(ErrorKind.CAST, f"'{clip(value)}' is no Boolean", False)
    raise OperandFailed


CASTS: dict[type, Callable[[Any], Value]] = {str: to_text, int: to_int, bool: to_bool}


def to_type_of(value: Value) -> Callable[[Any], Any]:
    """The cast to the type that `value` has."""
    cast = CASTS.get(type(value))
    if cast is None:
        raise OperandFailed
    return cast
