"""Values of PostgreSQL, from the text that the server sends to JSON, and back.

As Dapr's query has them: numbers, booleans, JSON and arrays are those of JSON, `bytea` is Base64, points in time are
RFC 3339 (without a zone, in UTC); everything else is the server's text. (A `uuid` is a text here too; Dapr shows 16
numbers.)
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

BOOL, BYTEA, INT8, INT2, INT4, OID, JSON, FLOAT4, FLOAT8 = 16, 17, 20, 21, 23, 26, 114, 700, 701
DATE, TIMESTAMP, TIMESTAMPTZ, NUMERIC, JSONB = 1082, 1114, 1184, 1700, 3802

SESSION = b"SET datestyle = ISO; SET timezone = 'UTC'; SET bytea_output = hex; SET intervalstyle = iso_8601"
"""Makes the texts of a connection those that are read here."""

_TIMESTAMP = re.compile(r"(\d{4}-\d\d-\d\d) (\d\d:\d\d:\d\d(?:\.\d+)?)(?:([+-]\d\d)(?::?(\d\d))?)?")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")
_ELEMENT = re.compile(r'"((?:[^"\\]|\\.)*)"|([^",{}]+)', re.DOTALL)


def value(text: str, type_: int) -> Any:
    """What `msgspec.json.encode` takes. What cannot be read as its type, such as `infinity`, is the text."""
    element = _ARRAYS.get(type_)
    if element is not None:
        return _array(text, element)
    convert = _FROM_TEXT.get(type_)
    return text if convert is None else convert(text)


def _raw(text: str) -> Any:
    return msgspec.Raw(text.encode())


def _number(text: str) -> Any:
    return _raw(text) if _NUMBER.fullmatch(text) else text


def _timestamp(text: str) -> str:
    match = _TIMESTAMP.fullmatch(text)
    if match is None:
        return text
    day, time, hours, minutes = match.groups()
    zone = "Z" if hours in (None, "+00") and minutes in (None, "00") else f"{hours}:{minutes or '00'}"
    return f"{day}T{time}{zone}"


def _date(text: str) -> str:
    return f"{text}T00:00:00Z" if re.fullmatch(r"\d{4}-\d\d-\d\d", text) else text


def _bytes(text: str) -> str:
    return base64.b64encode(bytes.fromhex(text[2:])).decode() if text.startswith("\\x") else text


_FROM_TEXT: dict[int, Callable[[str], Any]] = {
    BOOL: lambda text: text == "t",
    BYTEA: _bytes,
    **dict.fromkeys((INT2, INT4, INT8, OID, FLOAT4, FLOAT8, NUMERIC), _number),
    **dict.fromkeys((JSON, JSONB), _raw),
    **dict.fromkeys((TIMESTAMP, TIMESTAMPTZ), _timestamp),
    DATE: _date,
}
_ARRAYS = {
    1000: BOOL,
    1001: BYTEA,
    1005: INT2,
    1007: INT4,
    1016: INT8,
    1021: FLOAT4,
    1022: FLOAT8,
    1231: NUMERIC,
    199: JSON,
    3807: JSONB,
    1115: TIMESTAMP,
    1185: TIMESTAMPTZ,
    1182: DATE,
    **dict.fromkeys((1009, 1015, 1014, 2951), 25),  # text, varchar, char(n), uuid
}
"""Type of an array, and of its elements."""


def _array(text: str, element: int) -> Any:
    """A text such as `{1,NULL,"a, b"}`, or `[0:1]={…}` when it does not count from 1."""
    at = text.index("{")
    root: list[Any] = []
    open_: list[list[Any]] = [root]
    while at < len(text):
        if text[at] == "{":
            inner: list[Any] = []
            open_[-1].append(inner)
            open_.append(inner)
            at += 1
        elif text[at] == "}":
            open_.pop()
            at += 1
        elif text[at] == ",":
            at += 1
        else:
            match = _ELEMENT.match(text, at)
            if match is None:
                return text
            quoted, plain = match.groups()
            if quoted is not None:
                open_[-1].append(value(re.sub(r"\\(.)", r"\1", quoted, flags=re.DOTALL), element))
            else:
                open_[-1].append(None if plain == "NULL" else value(plain, element))
            at = match.end()
    return root[0]


def parameter(given: Any, type_: int | None) -> str | None:
    """A value of JSON as the text of a parameter; `type_` is that of the parameter, where it is known."""
    match given:
        case None:
            return None
        case bool():
            return "true" if given else "false"
        case str():
            return given
        case float() if given.is_integer():
            return f"{given:.0f}"
        case int() | float():
            return str(given)
        case list() if type_ not in (JSON, JSONB):
            return _array_text(given)
        case _:
            return msgspec.json.encode(given).decode()


def _array_text(elements: Sequence[Any]) -> str:
    return "{" + ",".join(map(_element_text, elements)) + "}"


def _element_text(element: Any) -> str:
    if isinstance(element, list):
        return _array_text(element)
    text = parameter(element, None)
    if text is None:
        return "NULL"
    return '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'
