"""The values of CEL as plain Python ones, and what may be done with them (CEL: values, standard definitions).

`int` and `float` are CEL's int and double, `datetime` (in UTC) and `timedelta` its timestamp and duration; `bool` is
no number here.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from mesh.errors import MeshError

INT_MIN, INT_MAX = -(2**63), 2**63 - 1
MAX_SIZE = 1 << 24
"""Longest text, in characters, or list that a rule may put together."""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_NAMES: dict[type, str] = {
    bool: "bool",
    int: "int",
    float: "double",
    str: "string",
    type(None): "null",
    list: "list",
    dict: "map",
    datetime: "timestamp",
    timedelta: "duration",
}
_ORDERED = (str, bool, datetime, timedelta)


class RuleError(MeshError):
    """A rule has no value for this event."""


def name_of(value: Any) -> str:
    return _NAMES[type(value)]


def is_number(value: Any) -> bool:
    return type(value) is float or type(value) is int


def no_overload(what: str, *values: Any) -> RuleError:
    """`what` is not defined for values of these types."""
    names = [name_of(value) for value in values]
    hint = "; numbers of an event are doubles, so write 1.0, not 1" if set(names) == {"int", "double"} else ""
    return RuleError(f"no such overload: {what} of {' and '.join(names)}{hint}")


def equal(left: Any, right: Any) -> bool:
    """Values of different types are not equal; numbers are compared by value."""
    if type(left) is not type(right):
        return is_number(left) and is_number(right) and bool(left == right)
    if type(left) is list:
        return len(left) == len(right) and all(map(equal, left, right))
    if type(left) is dict:
        return left.keys() == right.keys() and all(equal(value, right[key]) for key, value in left.items())
    return bool(left == right)


def ordered(kind: str, compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def order(left: Any, right: Any) -> bool:
        if (is_number(left) and is_number(right)) or (type(left) is type(right) and type(left) in _ORDERED):
            return compare(left, right)
        raise no_overload(kind, left, right)

    return order


def int64(value: int) -> int:
    if INT_MIN <= value <= INT_MAX:
        return value
    raise RuleError("integer overflow")


def add(left: Any, right: Any) -> Any:
    match left, right:
        case (str(), str()) | (list(), list()):
            if len(left) + len(right) > MAX_SIZE:
                raise RuleError(f"a rule puts together at most {MAX_SIZE} characters or members")
            return left + right
        case (datetime(), timedelta()) | (timedelta(), datetime()) | (timedelta(), timedelta()):
            return _in_range(operator.add, left, right)
    return _arithmetic("+", operator.add, left, right)


def subtract(left: Any, right: Any) -> Any:
    match left, right:
        case (datetime(), datetime()) | (datetime(), timedelta()) | (timedelta(), timedelta()):
            return _in_range(operator.sub, left, right)
    return _arithmetic("-", operator.sub, left, right)


def multiply(left: Any, right: Any) -> Any:
    return _arithmetic("*", operator.mul, left, right)


def divide(left: Any, right: Any) -> Any:
    if right == 0 and is_number(right):
        if type(left) is int and type(right) is int:
            raise RuleError("division by zero")
        if type(left) is float and type(right) is float:
            quotient = math.copysign(math.inf, left) * math.copysign(1.0, right)
            return math.nan if left == 0 or left != left else quotient
    return _arithmetic("/", _quotient, left, right)


def remainder(left: Any, right: Any) -> int:
    if type(left) is not int or type(right) is not int:
        raise no_overload("%", left, right)
    if right == 0:
        raise RuleError("modulus by zero")
    rest = abs(left) % abs(right)
    return -rest if left < 0 else rest


def negate(value: Any) -> Any:
    if type(value) is int:
        return int64(-value)
    if type(value) is float:
        return -value
    raise no_overload("-", value)


def _quotient(left: Any, right: Any) -> Any:
    if type(left) is float:
        return left / right
    quotient = abs(left) // abs(right)
    return quotient if (left < 0) is (right < 0) else -quotient


def _arithmetic(kind: str, apply: Callable[[Any, Any], Any], left: Any, right: Any) -> Any:
    if type(left) is int and type(right) is int:
        return int64(apply(left, right))
    if type(left) is float and type(right) is float:
        return apply(left, right)
    raise no_overload(kind, left, right)


def _in_range(apply: Callable[[Any, Any], Any], left: Any, right: Any) -> Any:
    try:
        return apply(left, right)
    except OverflowError:
        raise RuleError("the time is out of range") from None


def text_of_double(value: float) -> str:
    """As Go writes it: shortest, with an exponent from seven digits on, and below 0.0001."""
    if math.isnan(value) or math.isinf(value):
        return "NaN" if math.isnan(value) else ("+Inf" if value > 0 else "-Inf")
    sign, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    power = len(digits) + int(exponent) - 1
    if value and not -4 <= power < 6:
        mantissa = str(digits[0]) + ("." + "".join(map(str, digits[1:])) if len(digits) > 1 else "")
        return f"{'-' if sign else ''}{mantissa}e{'-' if power < 0 else '+'}{abs(power):02d}"
    text = format(Decimal(repr(value)), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text
