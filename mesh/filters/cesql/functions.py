"""The functions of CESQL (1.0: 3.5): those built in, and a user's own beside them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from mesh.errors import MeshError
from mesh.filters.cesql.values import INT_MAX, INT_MIN, ErrorKind, EvaluationError, Value

_WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"
"""Unicode's property White_Space, which `str.strip` goes beyond."""

_NAME = re.compile(r"[A-Za-z][A-Za-z_]*").fullmatch


class Function(NamedTuple):
    """`run` gets arguments of the declared types, and may raise `EvaluationError`."""

    name: str
    parameters: tuple[type[Value], ...]
    returns: type[Value]
    run: Callable[..., Value]
    rest: type[Value] | None = None
    """The type of any further arguments; `None` where there can be none."""


class InvalidFunction(MeshError):
    """A function cannot stand beside those that are there."""


class Functions:
    """Functions by name, in any letter case, and number of arguments."""

    def __init__(self, functions: Iterable[Function] = ()) -> None:
        """Raises `InvalidFunction`."""
        self._by_name: dict[str, list[Function]] = {}
        for function in functions:
            self._add(function)

    def extended(self, *functions: Function) -> Functions:
        """These functions and `functions`. Raises `InvalidFunction`."""
        return Functions([*(one for forms in self._by_name.values() for one in forms), *functions])

    def find(self, name: str, count: int) -> Function | None:
        for function in self._by_name.get(name.upper(), ()):
            fixed = len(function.parameters)
            if count == fixed or (function.rest is not None and count > fixed):
                return function
        return None

    def _add(self, function: Function) -> None:
        if not _NAME(function.name):
            raise InvalidFunction(f"function {function.name!r}: a name has letters and '_', and starts with a letter")
        forms = self._by_name.setdefault(function.name.upper(), [])
        for one in forms:
            if len(one.parameters) == len(function.parameters):
                raise InvalidFunction(f"function {function.name} with {len(one.parameters)} parameters is there")
        forms.append(function)
        variadic = [len(one.parameters) for one in forms if one.rest is not None]
        if len(variadic) > 1:
            raise InvalidFunction(f"function {function.name} has two forms with any number of arguments")
        if variadic and variadic[0] < max(len(one.parameters) for one in forms):
            raise InvalidFunction(
                f"function {function.name}: the form with any number of arguments needs more parameters than any other"
            )


def _failed(message: str, value: Value) -> EvaluationError:
    return EvaluationError(ErrorKind.FUNCTION, message, value)


def _left(text: str, count: int) -> str:
    if count < 0:
        raise _failed(f"LEFT takes no negative length (got {count})", text)
    return text[:count]


def _right(text: str, count: int) -> str:
    if count < 0:
        raise _failed(f"RIGHT takes no negative length (got {count})", text)
    return text[len(text) - min(count, len(text)) :]


def _substring(text: str, position: int, length: int = INT_MAX) -> str:
    if abs(position) > len(text):
        raise _failed(f"SUBSTRING from {position} is outside of a text of {len(text)} characters", "")
    if length < 0:
        raise _failed(f"SUBSTRING takes no negative length (got {length})", "")
    start = position - 1 if position > 0 else len(text) + position  # from 0 there is nothing
    return text[start : start + length]


def _abs(number: int) -> int:
    if number == INT_MIN:
        raise EvaluationError(ErrorKind.MATH, "ABS of the smallest Integer does not fit into 32 bits", INT_MAX)
    return abs(number)


BUILT_IN = Functions(
    [
        Function("INT", (int,), int, lambda number: number),
        Function("BOOL", (bool,), bool, lambda flag: flag),
        Function("STRING", (str,), str, lambda text: text),
        Function("LENGTH", (str,), int, len),
        Function("CONCAT", (), str, lambda *texts: "".join(texts), rest=str),
        Function("CONCAT_WS", (str,), str, lambda delimiter, *texts: delimiter.join(texts), rest=str),
        Function("LOWER", (str,), str, str.lower),
        Function("UPPER", (str,), str, str.upper),
        Function("TRIM", (str,), str, lambda text: text.strip(_WHITE_SPACE)),
        Function("LEFT", (str, int), str, _left),
        Function("RIGHT", (str, int), str, _right),
        Function("SUBSTRING", (str, int), str, _substring),
        Function("SUBSTRING", (str, int, int), str, _substring),
        Function("ABS", (int,), int, _abs),
    ]
)
