"""The condition on which a circuit breaker opens: the part of CEL that such conditions use.

Whole numbers, `true` and `false`, five counters, parentheses, and CEL's operators in CEL's precedence:
`- !`, then `* / %`, `+ -`, `< <= > >= == !=`, `&&`, `||`. Types are checked once, at load; everything else of CEL is
refused with its position.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, NoReturn

from mesh.errors import clip

MAX_LENGTH = 256
"""Longest condition, in characters."""
MAX_DEPTH = 32
"""Deepest nesting of parentheses and signs."""


@dataclass(slots=True)
class Counts:
    """What a breaker has seen since it was last reset."""

    requests: int = 0
    total_successes: int = 0
    total_failures: int = 0
    consecutive_successes: int = 0
    consecutive_failures: int = 0


class InvalidTrip(ValueError):
    """The text is the rule that was broken, with the position of the offending piece."""


Trip = Callable[[Counts], bool]
"""Whether to open. An evaluation that fails (division by zero, more than 64 bits) does not open (Dapr)."""

_Evaluation = Callable[[Counts], int]
"""Of a truth value, too: `bool` is an `int`."""


class _Term(NamedTuple):
    type: type[int]
    evaluate: _Evaluation
    position: int


class _Token(NamedTuple):
    text: str
    position: int


_COUNTERS: dict[str, _Evaluation] = {
    "requests": lambda counts: counts.requests,
    "totalSuccesses": lambda counts: counts.total_successes,
    "totalFailures": lambda counts: counts.total_failures,
    "consecutiveSuccesses": lambda counts: counts.consecutive_successes,
    "consecutiveFailures": lambda counts: counts.consecutive_failures,
}
_TOKEN = re.compile(r"[ \t\r\n\f]*(?:([0-9]+)(?![\w.])|([A-Za-z_]\w*)(?![\w.(])|(&&|\|\||[<>=!]=|[-+*/%<>!()])|\Z)")
_INT64 = 1 << 63
_COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
}


def parse_trip(text: str) -> Trip:
    """Raises `InvalidTrip`."""
    if len(text) > MAX_LENGTH:
        raise InvalidTrip(f"must have at most {MAX_LENGTH} characters")
    condition = _Parser(text).whole()

    def trip(counts: Counts) -> bool:
        try:
            return bool(condition(counts))
        except ArithmeticError:
            return False

    return trip


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.depth = 0
        self.next = self.scan(0)

    def whole(self) -> _Evaluation:
        term = self.disjunction()
        if self.next.text:
            self.refuse(self.next.position, f"unexpected '{clip(self.next.text)}'")
        return self.typed(bool, term).evaluate

    def scan(self, start: int) -> _Token:
        match = _TOKEN.match(self.text, start)
        if match is None:
            start += len(self.text[start:]) - len(self.text[start:].lstrip())
            self.refuse(
                start,
                f"'{clip(self.text[start:])}' is not understood: a condition has whole numbers, true, false, "
                f"{', '.join(_COUNTERS)}, and operators",
            )
        token = match[match.lastindex] if match.lastindex else ""
        self.end = match.end()
        return _Token(token, match.end() - len(token))

    def take(self, *texts: str) -> str:
        """The next token if it is one of `texts`, which is then used up; else nothing."""
        token = self.next.text
        if not token or token not in texts:
            return ""
        self.next = self.scan(self.end)
        return token

    def refuse(self, position: int, rule: str) -> NoReturn:
        raise InvalidTrip(f"at character {position + 1}: {rule}")

    def typed(self, expected: type[int], term: _Term) -> _Term:
        if term.type is not expected:
            self.refuse(term.position, "must be true or false" if expected is bool else "must be a number")
        return term

    def disjunction(self) -> _Term:
        left = self.conjunction()
        while self.take("||"):
            left = self.logical(left, self.conjunction(), decisive=True)
        return left

    def conjunction(self) -> _Term:
        left = self.relation()
        while self.take("&&"):
            left = self.logical(left, self.relation(), decisive=False)
        return left

    def logical(self, left: _Term, right: _Term, *, decisive: bool) -> _Term:
        """CEL: either side may decide, also when the other one fails."""
        first, second = self.typed(bool, left).evaluate, self.typed(bool, right).evaluate

        def evaluate(counts: Counts) -> bool:
            try:
                if first(counts) == decisive:
                    return decisive
            except ArithmeticError:
                if second(counts) == decisive:
                    return decisive
                raise
            return bool(second(counts))

        return _Term(bool, evaluate, left.position)

    def relation(self) -> _Term:
        left = self.sum()
        while operator := self.take(*_COMPARISONS):
            right = self.sum()
            self.typed(left.type if operator in ("==", "!=") else int, right)
            self.typed(right.type, left)
            left = self.binary(_COMPARISONS[operator], bool, left, right)
        return left

    def sum(self) -> _Term:
        left = self.product()
        while operator := self.take("+", "-"):
            left = self.arithmetic(operator, left, self.product())
        return left

    def product(self) -> _Term:
        left = self.unary()
        while operator := self.take("*", "/", "%"):
            left = self.arithmetic(operator, left, self.unary())
        return left

    def arithmetic(self, operator: str, left: _Term, right: _Term) -> _Term:
        return self.binary(_ARITHMETIC[operator], int, self.typed(int, left), self.typed(int, right))

    def binary(self, operation: Callable[[int, int], int], type_: type[int], left: _Term, right: _Term) -> _Term:
        a, b = left.evaluate, right.evaluate
        return _Term(type_, lambda counts: operation(a(counts), b(counts)), left.position)

    def unary(self) -> _Term:
        position = self.next.position
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self.refuse(position, f"nested deeper than {MAX_DEPTH} levels")
        if self.take("!"):
            inner = self.typed(bool, self.unary()).evaluate
            term = _Term(bool, lambda counts: not inner(counts), position)
        elif self.take("-"):
            inner = self.typed(int, self.unary()).evaluate
            term = _Term(int, lambda counts: _bounded(-inner(counts)), position)
        elif self.take("("):
            term = self.disjunction()._replace(position=position)
            if not self.take(")"):
                self.refuse(self.next.position, "')' is missing")
        else:
            term = self.leaf()
        self.depth -= 1
        return term

    def leaf(self) -> _Term:
        text, position = self.next
        if counter := _COUNTERS.get(text):
            term = _Term(int, counter, position)
        elif text in ("true", "false"):
            truth = text == "true"
            term = _Term(bool, lambda _: truth, position)
        elif text.isdigit():
            if (number := int(text)) >= _INT64:
                self.refuse(position, "a number must fit in 64 bits")
            term = _Term(int, lambda _: number, position)
        elif re.match(r"\w", text):
            self.refuse(position, f"no such counter '{clip(text)}' (known: {', '.join(_COUNTERS)})")
        else:
            self.refuse(position, f"unexpected '{text}'" if text else "the condition ends too early")
        self.take(text)
        return term


def _bounded(number: int) -> int:
    if not -_INT64 <= number < _INT64:
        raise OverflowError
    return number


def _quotient(a: int, b: int) -> int:
    """CEL: truncated towards zero."""
    return _bounded(abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1))


_ARITHMETIC: dict[str, Callable[[int, int], int]] = {
    "+": lambda a, b: _bounded(a + b),
    "-": lambda a, b: _bounded(a - b),
    "*": lambda a, b: _bounded(a * b),
    "/": _quotient,
    "%": lambda a, b: a - b * _quotient(a, b),
}
