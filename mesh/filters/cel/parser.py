"""From the text of a CEL expression to its tree (CEL: syntax).

The tree has the kinds `literal`, `list`, `map`, `event`, `unknown`, `variable`, `select`, `has`, `index`, `call`,
`negate`, `not`, `?:`, `and`, `or`, `in`, the macros `all`, `exists`, `exists_one`, `map` and `filter`, and the symbols
of arithmetic and comparison. A run of one and the same `&&` or `||` is one node.
"""

from __future__ import annotations

import re

from mesh.filters.cel import regular
from mesh.filters.cel.functions import GLOBAL, MEMBER
from mesh.filters.cel.values import INT_MAX, INT_MIN
from mesh.filters.syntax import Node, Source, Token

_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n\f]+|//[^\n]*)
      | (?P<raw>[rR](?:\"\"\".*?\"\"\"|'''.*?'''|"[^"\r\n]*"|'[^'\r\n]*'))
      | (?P<string>\"\"\"(?:[^\\]|\\.)*?\"\"\"|'''(?:[^\\]|\\.)*?'''|"(?:[^"\\\r\n]|\\.)*"|'(?:[^'\\\r\n]|\\.)*')
      | (?P<double>(?:[0-9]*\.[0-9]+(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)(?![A-Za-z0-9_]))
      | (?P<integer>(?:0x[0-9a-fA-F]+|[0-9]+)(?![A-Za-z0-9_]))
      | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
      | (?P<symbol>&&|\|\||==|!=|<=|>=|[-+*/%!<>?:.,()\[\]{}])""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(r"\\(?:([abfnrtv\\?\"'`])|x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-3][0-7]{2})|)")
_SIMPLE = dict(zip("abfnrtv", "\a\b\f\n\r\t\v", strict=True))

_RESERVED = frozenset(
    (
        "as",
        "break",
        "const",
        "continue",
        "else",
        "for",
        "function",
        "if",
        "import",
        "in",
        "let",
        "loop",
        "package",
        "namespace",
        "return",
        "var",
        "void",
        "while",
    )
)
_CONSTANTS = {"true": True, "false": False, "null": None}
_RELATIONS = ("<", "<=", ">=", ">", "==", "!=")
_LEVELS: dict[str, int] = dict.fromkeys(_RELATIONS, 1) | {"in": 1, "+": 2, "-": 2, "*": 3, "/": 3, "%": 3}
_MACROS: dict[str, tuple[int, ...]] = {"all": (2,), "exists": (2,), "exists_one": (2,), "map": (2, 3), "filter": (2,)}


def parse(text: str) -> tuple[Node, int]:
    """The tree, and how many variables its macros need. Raises `InvalidExpression`."""
    parser = _Parser(text)
    tree = parser.expression()
    if parser.source.token.kind != "end":
        raise parser.source.unexpected("an operator or the end")
    return tree, parser.variables


class _Parser:
    def __init__(self, text: str) -> None:
        self.source = Source(text, _TOKEN)
        self.variables = 0
        self._scope: dict[str, int] = {}

    def expression(self) -> Node:
        source = self.source
        with source.nested():
            start = source.token.start
            condition = self._run("||", "or")
            if not source.accept("?"):
                return condition
            chosen = self._run("||", "or")
            source.expect(":")
            return source.node("?:", start, (condition, chosen, self.expression()))

    def _run(self, symbol: str, kind: str) -> Node:
        source = self.source
        start = source.token.start
        operands = [self._run("&&", "and") if kind == "or" else self._relation(1)]
        while source.accept(symbol):
            operands.append(self._run("&&", "and") if kind == "or" else self._relation(1))
        return source.node(kind, start, tuple(operands)) if len(operands) > 1 else operands[0]

    def _relation(self, floor: int) -> Node:
        source = self.source
        start = source.token.start
        left = self._unary()
        while (level := _LEVELS.get(source.token.text, 0)) >= floor and source.token.kind in ("symbol", "name"):
            kind = source.advance().text
            left = source.node(kind, start, (left, self._relation(level + 1)))
        return left

    def _unary(self) -> Node:
        source = self.source
        token = source.token
        if token.kind == "symbol" and token.text in ("!", "-"):
            following = source.peek()
            if token.text == "-" and following.kind in ("integer", "double") and following.start == token.end:
                return self._members(self._primary(), token.start)
            with source.nested():
                source.advance()
                return source.node("not" if token.text == "!" else "negate", token.start, (self._unary(),))
        return self._members(self._primary(), token.start)

    def _members(self, node: Node, start: int) -> Node:
        source = self.source
        while True:
            if source.accept("."):
                name = source.token
                if name.kind != "name":
                    raise source.unexpected("the name of a field")
                source.advance()
                if source.token.text == "(" and source.token.kind == "symbol":
                    node = self._macro(node, name, start) if name.text in _MACROS else self._call(name, node, start)
                else:
                    node = source.node("select", start, (node,), name.text)
            elif source.accept("["):
                key = self.expression()
                source.expect("]")
                if key.kind == "literal" and isinstance(key.value, str):
                    node = source.node("select", start, (node,), key.value)
                else:
                    node = source.node("index", start, (node, key))
            else:
                return node

    def _primary(self) -> Node:
        source = self.source
        token = source.token
        match token.kind:
            case "symbol":
                if source.accept("("):
                    inner = self.expression()
                    source.expect(")")
                    return inner
                if source.accept("["):
                    return source.node("list", token.start, self._list("]"))
                if source.accept("{"):
                    return self._map(token)
                if source.accept("-"):
                    return self._number(token)
            case "integer" | "double":
                return self._number(None)
            case "string" | "raw":
                source.advance()
                return source.node("literal", token.start, (), self._string(token))
            case "name":
                source.advance()
                return self._named(token)
        raise source.unexpected("a value")

    def _named(self, token: Token) -> Node:
        source, name = self.source, token.text
        if name in _CONSTANTS:
            return source.node("literal", token.start, (), _CONSTANTS[name])
        if name in _RESERVED:
            raise source.fault(token.start, f"'{name}' is a reserved word")
        if source.token.text == "(" and source.token.kind == "symbol":
            return self._has(token) if name == "has" else self._call(token, None, token.start)
        if name in self._scope:
            return source.node("variable", token.start, (), self._scope[name])
        return source.node("event" if name == "event" else "unknown", token.start, (), name)

    def _call(self, name: Token, target: Node | None, start: int) -> Node:
        """Whatever is no function is refused here, before any event."""
        source = self.source
        source.expect("(")
        operands = (*(() if target is None else (target,)), *self._list(")"))
        key = name.text, len(operands)
        if name.text == "matches" and len(operands) == 2:
            pattern = operands[1]
            if pattern.kind != "literal" or not isinstance(pattern.value, str):
                raise source.fault(pattern.start, "the pattern of matches() must be a text in quotes")
            try:
                return source.node("matches", start, operands, regular.compiled(pattern.value))
            except ValueError as error:
                raise source.fault(pattern.start, str(error)) from None
        table = GLOBAL if target is None else MEMBER
        if key not in table:
            arguments = len(operands) if target is None else len(operands) - 1
            raise source.fault(name.start, f"there is no function {name.text} {_form(target, arguments)}")
        return source.node("call", start, operands, table[key])

    def _has(self, token: Token) -> Node:
        self.source.expect("(")
        field = self.expression()
        self.source.expect(")")
        if field.kind != "select" or self.source.text[field.end - 1] == "]":
            raise self.source.fault(field.start, "has() takes a field, as in has(event.data.amount)")
        return self.source.node("has", token.start, field.operands, field.value)

    def _macro(self, over: Node, name: Token, start: int) -> Node:
        source = self.source
        source.expect("(")
        variable = source.token
        if variable.kind != "name" or variable.text in _RESERVED or variable.text in _CONSTANTS:
            raise source.unexpected("the name of a variable")
        source.advance()
        source.expect(",")
        slot, outer = self.variables, self._scope
        self.variables += 1
        self._scope = {**outer, variable.text: slot}
        arguments = self._list(")")
        self._scope = outer
        if len(arguments) + 1 not in _MACROS[name.text]:
            wanted = " or ".join(map(str, _MACROS[name.text]))
            raise source.fault(name.start, f"{name.text} takes {wanted} arguments")
        return source.node(name.text if name.text != "map" else "map macro", start, (over, *arguments), slot)

    def _list(self, closing: str) -> tuple[Node, ...]:
        members: list[Node] = []
        while not self.source.accept(closing):
            if members:
                self.source.expect(",")
                if closing == "]" and self.source.accept(closing):
                    break
            members.append(self.expression())
        return tuple(members)

    def _map(self, opening: Token) -> Node:
        source = self.source
        keys: list[str] = []
        values: list[Node] = []
        while not source.accept("}"):
            if keys:
                source.expect(",")
                if source.accept("}"):
                    break
            token = source.token
            if token.kind not in ("string", "raw"):
                raise source.unexpected("a key in quotes")
            source.advance()
            keys.append(self._string(token))
            source.expect(":")
            values.append(self.expression())
        if len(set(keys)) < len(keys):
            raise source.fault(opening.start, "a key is given twice")
        return source.node("map", opening.start, tuple(values), tuple(keys))

    def _number(self, sign: Token | None) -> Node:
        source = self.source
        if sign is None and source.token.text == "-":
            sign = source.advance()
        token = source.advance()
        start = token.start if sign is None else sign.start
        value: int | float
        if token.kind == "double":
            value = float(token.text)
        else:
            value = int(token.text, 16 if token.text.startswith("0x") else 10)
        value = value if sign is None else -value
        if isinstance(value, int) and not INT_MIN <= value <= INT_MAX:
            raise source.fault(start, "an int has 64 bits")
        return source.node("literal", start, (), value)

    def _string(self, token: Token) -> str:
        text = token.text
        if token.kind == "raw":
            text = text[1:]
        width = 3 if text[:3] in ('"""', "'''") else 1
        inner = text[width:-width]
        if token.kind == "raw" or "\\" not in inner:
            return inner

        def character(found: re.Match[str]) -> str:
            simple, *codes = found.groups()
            if simple is not None:
                return _SIMPLE.get(simple, simple)
            code = next((int(digits, 16) for digits in codes[:3] if digits), None)
            code = int(codes[3], 8) if codes[3] else code
            if code is None or code > 0x10FFFF or 0xD800 <= code < 0xE000:
                raise self.source.fault(token.start + width + found.start(), "this escape is no character")
            return chr(code)

        return _ESCAPE.sub(character, inner)


def _form(target: Node | None, count: int) -> str:
    what = "on a value" if target is not None else "by itself"
    return f"{what} with {count} argument{'' if count == 1 else 's'}"
