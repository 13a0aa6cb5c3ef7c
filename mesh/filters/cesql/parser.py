"""From the text of a CESQL expression to its tree (CESQL 1.0: 2, and 3.6 for precedence).

The tree has the kinds `literal`, `attribute`, `call`, `exists`, `in`, `not in`, `like`, `not like`, `negate`, `not`,
`and`, `or`, `xor`, and the symbols of arithmetic and comparison. A run of one and the same `AND`, `OR` or `XOR` is
one node.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from mesh.filters.cesql.values import INT_MAX, INT_MIN
from mesh.filters.syntax import Node, Source

_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n]+)
      | (?P<string> '(?:[^'\\]|\\.|'')*' | "(?:[^"\\]|\\.|"")*" )
      | (?P<integer>[0-9]+(?![A-Za-z0-9_]))
      | (?P<name>[A-Za-z0-9][A-Za-z0-9_]*)
      | (?P<symbol><>|!=|<=|>=|[=<>()+*/%,-])""",
    re.VERBOSE | re.DOTALL,
)

_KEYWORDS = frozenset(("AND", "OR", "XOR", "NOT", "LIKE", "EXISTS", "IN", "TRUE", "FALSE"))

_UNARY, _LIKE, _IN, _LOGIC = 9, 8, 7, 1
_SYMBOLS = {"*": 6, "/": 6, "%": 6, "+": 5, "-": 5} | dict.fromkeys(("=", "!=", "<>", ">=", "<=", ">", "<"), 4)
_WORDS = {"LIKE": _LIKE, "IN": _IN, "AND": _LOGIC, "OR": _LOGIC, "XOR": _LOGIC}


class Parsed(NamedTuple):
    tree: Node
    warnings: tuple[str, ...]


def parse(text: str) -> Parsed:
    """Raises `InvalidExpression`."""
    parser = _Parser(text)
    tree = parser.expression(0)
    if parser.source.token.kind != "end":
        raise parser.source.unexpected("an operator or the end")
    return Parsed(tree, tuple(parser.warnings))


class _Parser:
    def __init__(self, text: str) -> None:
        self.source = Source(text, _TOKEN)
        self.warnings: list[str] = []

    def expression(self, floor: int) -> Node:
        """An expression of operators that bind at least as tightly as `floor`."""
        source = self.source
        with source.nested():
            start = source.token.start
            left = self._operand()
            while (level := self._level()) >= max(floor, 1):
                if level == _LOGIC:
                    return self._logic(left, start)
                token = source.advance()
                word = token.text.upper()
                negated = word == "NOT"
                if negated:
                    word = source.advance().text.upper()
                if word == "LIKE":
                    left = self._like(left, start, "not like" if negated else "like")
                elif word == "IN":
                    left = self._in(left, start, "not in" if negated else "in")
                else:
                    right = self.expression(level + 1)
                    left = source.node("!=" if word == "<>" else word, start, (left, right))
            return left

    def _word(self) -> str:
        """The keyword that is next, in capitals; else nothing."""
        token = self.source.token
        word = token.text.upper() if token.kind == "name" else ""
        return word if word in _KEYWORDS else ""

    def _level(self) -> int:
        """How tightly the next operator binds; 0 is that there is none."""
        token = self.source.token
        if token.kind == "symbol":
            return _SYMBOLS.get(token.text, 0)
        word = self._word()
        if word == "NOT":
            word = self.source.peek().text.upper()
            return _WORDS[word] if word in ("LIKE", "IN") else 0
        return _WORDS.get(word, 0)

    def _logic(self, first: Node, start: int) -> Node:
        """AND, OR and XOR bind alike; unlike ones group to the right, as in the reference grammar."""
        source = self.source
        words: list[str] = []
        operands = [first]
        while self._level() == _LOGIC:
            token = source.advance()
            words.append(token.text.upper())
            if words[0] != words[-1] and not self.warnings:
                self.warnings.append(
                    f"column {token.start + 1}: {words[-1]} after {words[0]} is not stronger or weaker than it, "
                    "both group to the right: use parentheses"
                )
            operands.append(self.expression(_LOGIC + 1))
        run = [operands.pop()]
        while words:
            word = words.pop()
            run.insert(0, operands.pop())
            if not words or words[-1] != word:
                run = [source.node(word.lower(), run[0].start, tuple(run))]
        return run[0]

    def _operand(self) -> Node:
        source = self.source
        token = source.token
        following = source.peek()
        if token.kind == "symbol":
            if token.text in "+-" and following.kind == "integer" and following.start == token.end:
                source.advance()
                return self._integer(token.start, -1 if token.text == "-" else 1)
            if source.accept("-"):
                return source.node("negate", token.start, (self.expression(_UNARY),))
            if source.accept("("):
                inner = self.expression(0)
                source.expect(")")
                return inner
        elif token.kind == "integer":
            return self._integer(token.start, 1)
        elif token.kind == "string":
            return source.node("literal", token.start, (), self._string())
        elif token.kind == "name":
            match self._word():
                case "":
                    return self._call() if following.text == "(" else self._attribute("attribute")
                case "TRUE" | "FALSE" as word:
                    source.advance()
                    return source.node("literal", token.start, (), word == "TRUE")
                case "NOT":
                    source.advance()
                    return source.node("not", token.start, (self.expression(_UNARY),))
                case "EXISTS":
                    source.advance()
                    return self._attribute("exists", token.start)
        raise source.unexpected("a value")

    def _integer(self, start: int, sign: int) -> Node:
        digits = self.source.advance().text.lstrip("0") or "0"
        value = sign * int(digits) if len(digits) <= 10 else INT_MAX + 1
        if not INT_MIN <= value <= INT_MAX:
            raise self.source.fault(start, f"an Integer is from {INT_MIN} to {INT_MAX}")
        return self.source.node("literal", start, (), value)

    def _string(self) -> str:
        """Only the delimiter can be escaped: by a backslash, or by doubling it."""
        if self.source.token.kind != "string":
            raise self.source.unexpected("a text in quotes")
        text = self.source.advance().text
        quote = text[0]
        return re.sub(rf"\\({quote})|\\.|{quote}({quote})", _unescaped, text[1:-1], flags=re.DOTALL)

    def _attribute(self, kind: str, start: int | None = None) -> Node:
        token = self.source.token
        name = token.text.lower()
        if token.kind not in ("name", "integer") or self._word():
            raise self.source.unexpected("the name of an attribute")
        if "_" in name:
            raise self.source.fault(token.start, "the name of an attribute has letters and digits only")
        self.source.advance()
        return self.source.node(kind, token.start if start is None else start, (), name)

    def _call(self) -> Node:
        source = self.source
        token = source.advance()
        name = token.text.upper()
        if not name.replace("_", "").isalpha():
            raise source.fault(token.start, "the name of a function has letters and '_' only")
        return source.node("call", token.start, self._list(may_be_empty=True), name)

    def _list(self, *, may_be_empty: bool = False) -> tuple[Node, ...]:
        self.source.expect("(")
        members: list[Node] = []
        if may_be_empty and self.source.accept(")"):
            return ()
        while True:
            members.append(self.expression(0))
            if not self.source.accept(","):
                break
        self.source.expect(")")
        return tuple(members)

    def _like(self, left: Node, start: int, kind: str) -> Node:
        return self.source.node(kind, start, (left,), self._string())

    def _in(self, left: Node, start: int, kind: str) -> Node:
        return self.source.node(kind, start, (left, *self._list()))


def _unescaped(found: re.Match[str]) -> str:
    return str(found[1] or found[2] or found[0])
