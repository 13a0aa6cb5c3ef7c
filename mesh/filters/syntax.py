"""What both expression languages share: tokens, the syntax tree, limits, and errors that tell the position."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import msgspec

from mesh.errors import MeshError, clip

MAX_TEXT = 4096
"""Longest expression, in bytes of UTF-8."""
MAX_DEPTH = 64
"""Deepest nesting of parentheses, and of operators within operators."""


class InvalidExpression(MeshError):
    """The text is no expression. `position` is the offset of the fault in characters, from 0; `rule` what it breaks."""

    def __init__(self, text: str, position: int, rule: str) -> None:
        line = text.count("\n", 0, position)
        column = position - (text.rfind("\n", 0, position) + 1)
        where = f"line {line + 1}, column {column + 1}" if line else f"column {column + 1}"
        super().__init__(f"{where}: {rule}")
        self.position = position
        self.rule = rule


class Token(NamedTuple):
    kind: str
    """The name of the pattern's group; `end` behind the last one."""
    text: str
    start: int
    end: int


class Node(msgspec.Struct, frozen=True, gc=False):
    """A sub-expression. `start` and `end` bound its text; `value` is what its `kind` needs beside the operands."""

    kind: str
    start: int
    end: int
    operands: tuple[Node, ...] = ()
    value: object = None
    depth: int = 1


class Source:
    """The tokens of an expression, read from left to right.

    `pattern` names each kind of token as a group; the group `space` is skipped. Raises `InvalidExpression` for what
    no group takes, and for a text that is too long.
    """

    def __init__(self, text: str, pattern: re.Pattern[str]) -> None:
        self.text = text
        if len(text) > MAX_TEXT or (not text.isascii() and len(text.encode("utf-8", "surrogatepass")) > MAX_TEXT):
            raise self.fault(0, f"an expression has at most {MAX_TEXT} bytes")
        self._tokens: list[Token] = []
        self._next = 0
        self._nested = 0
        position, match_at, append = 0, pattern.match, self._tokens.append
        while position < len(text):
            found = match_at(text, position)
            if found is None:
                shown = clip(text[position])
                rule = "this string does not end" if shown in "'\"" else f"'{shown}' means nothing here"
                raise self.fault(position, rule)
            end = found.end()
            if found.lastgroup != "space":
                append(Token(str(found.lastgroup), found[0], position, end))
            position = end
        append(Token("end", "", len(text), len(text)))
        self.token = self._tokens[0]
        """The token that is to be read next."""

    def fault(self, position: int, rule: str) -> InvalidExpression:
        return InvalidExpression(self.text, position, rule)

    def unexpected(self, wanted: str) -> InvalidExpression:
        token = self.token
        shown = "the end" if token.kind == "end" else f"'{clip(token.text)}'"
        return self.fault(token.start, f"expected {wanted}, found {shown}")

    def peek(self) -> Token:
        """The token behind the next one."""
        return self._tokens[min(self._next + 1, len(self._tokens) - 1)]

    @property
    def last_end(self) -> int:
        """Where the last token read ends."""
        return self._tokens[self._next - 1].end if self._next else 0

    def advance(self) -> Token:
        token = self.token
        if token.kind != "end":
            self._next += 1
            self.token = self._tokens[self._next]
        return token

    def accept(self, text: str) -> bool:
        """Take the next token if it is the symbol `text`."""
        if self.token.kind == "symbol" and self.token.text == text:
            self.advance()
            return True
        return False

    def expect(self, text: str) -> Token:
        token = self.token
        if not self.accept(text):
            raise self.unexpected(f"'{text}'")
        return token

    @contextmanager
    def nested(self) -> Iterator[None]:
        """For each step of the parser into itself."""
        self._nested += 1
        if self._nested > MAX_DEPTH:
            raise self.fault(self.token.start, f"nested deeper than {MAX_DEPTH} levels")
        yield
        self._nested -= 1

    def node(self, kind: str, start: int, operands: tuple[Node, ...] = (), value: object = None) -> Node:
        """A node from `start` to the last token read."""
        depth = 1 + max([operand.depth for operand in operands], default=0)
        if depth > MAX_DEPTH:
            raise self.fault(start, f"nested deeper than {MAX_DEPTH} levels")
        return Node(kind, start, self.last_end, operands, value, depth)
