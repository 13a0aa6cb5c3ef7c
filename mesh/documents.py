"""YAML documents as plain values that remember the line they stand on.

The parser's events are read directly: PyYAML's composer recurses in C and dies on deeply nested input, and its
constructors lose the lines. Scalars follow the Go YAML library that Dapr reads manifests with, whose numbers and
dates differ from PyYAML's (`12:30` and `2024-01-01` are text).

Import this module only when there is something to read: PyYAML costs memory and start-up time.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from mesh.errors import ConfigurationError, clip

MAX_DOCUMENT = 1 << 20
"""Longest document, in bytes."""
MAX_FILE = 16 << 20
"""Longest file, in bytes."""
MAX_DEPTH = 64
MAX_VALUES = 20_000
"""Most values in a document, counting again what an alias repeats."""

Scalar = str | int | float | bool | None
Value = Any
"""A `Scalar`, a `list` of values, or `Fields`."""


class Fields(dict[str, Value]):
    """A mapping, with the line of each key and the file it stands in.

    The accessors raise `ConfigurationError`, naming file, line and field, for a value of another type; an absent
    field and an explicit null give the default. `path` is where the mapping stands, as in `spec.routes`.
    """

    __slots__ = ("line", "lines", "path", "source")

    def __init__(self, source: str, line: int) -> None:
        super().__init__()
        self.source = source
        self.line = line
        self.lines: dict[str, int] = {}
        self.path = ""

    def at(self, key: str | None = None) -> str:
        """`file:line` of a field, or of the mapping itself."""
        return f"{self.source}:{self.lines.get(key, self.line) if key else self.line}"

    def named(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key

    def fault(self, key: str, rule: str) -> ConfigurationError:
        return ConfigurationError(f"{self.at(key)}: {self.named(key)}: {rule}")

    def closed(self, *known: str) -> Fields:
        """These fields by the names in `known`, found in any letter case, as Dapr finds them.

        Raises `ConfigurationError` for a field that is not known, with the nearest one that is.
        """
        canonical = {name.lower(): name for name in known}
        found = Fields(self.source, self.line)
        found.path = self.path
        for key, value in self.items():
            name = canonical.get(key.lower())
            if name is None:
                raise self.fault(key, f"unknown field{did_you_mean(key, known)}")
            if name in found:
                raise self.fault(key, f"given twice, the other is on line {found.lines[name]}")
            found[name] = value
            found.lines[name] = self.lines[key]
        return found

    def text(self, key: str, default: str = "") -> str:
        value = self.get(key)
        if isinstance(value, (Fields, list)):
            raise self.fault(key, "must be text")
        return default if value is None else as_text(value)

    def flag(self, key: str) -> bool:
        value = self.get(key)
        if value is None or isinstance(value, bool):
            return bool(value)
        raise self.fault(key, f"must be true or false (got '{clip(as_text(value))}')")

    def fields(self, key: str) -> Fields:
        value = self.get(key)
        if value is None:
            return self._placed(Fields(self.source, self.lines.get(key, self.line)), key)
        if not isinstance(value, Fields):
            raise self.fault(key, "must be a mapping")
        return self._placed(value, key)

    def sequence(self, key: str) -> list[Value]:
        value = self.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.fault(key, "must be a list")
        return value

    def entries(self, key: str) -> Iterator[Fields]:
        """The members of a list of mappings."""
        for index, entry in enumerate(self.sequence(key)):
            if not isinstance(entry, Fields):
                raise self.fault(key, f"entry {index} must be a mapping")
            yield self._placed(entry, f"{key}[{index}]")

    def texts(self, key: str) -> tuple[str, ...]:
        """The members of a list of texts."""
        values = self.sequence(key)
        if any(value is None or isinstance(value, (Fields, list)) for value in values):
            raise self.fault(key, "must be a list of texts")
        return tuple(as_text(value) for value in values)

    def _placed(self, child: Fields, key: str) -> Fields:
        child.path = self.named(key)
        return child


class Unreadable(NamedTuple):
    """A document that could not be read: the reason names file and line."""

    reason: str


def read(path: Path) -> list[Fields | Unreadable]:
    """The documents of a file in order, empty ones left out.

    Each document is read on its own, so one that is broken does not take the others with it. Raises
    `ConfigurationError` when the file itself cannot be read.
    """
    try:
        if path.stat().st_size > MAX_FILE:
            return [Unreadable(f"{path}: longer than {MAX_FILE >> 20} MiB")]
        content = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        return list(parse(content.decode("utf-8-sig"), str(path)))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        return [Unreadable(f"{path}:{line}: not UTF-8")]


def parse(text: str, source: str) -> Iterator[Fields | Unreadable]:
    """The documents in `text`, split at lines that start with `---` (Dapr: loading from disk)."""
    line = 1
    for piece in re.split(r"^(?=---)", text, flags=re.MULTILINE):
        separator = re.match(r"-+[ \t]*(?:\n|\r|\Z)", piece)
        document = re.sub("-", " ", piece[: separator.end()]) + piece[separator.end() :] if separator else piece
        try:
            value = _Builder(source, line).document(document)
        except _Fault as fault:
            yield Unreadable(f"{source}:{fault.line}: {fault}")
        else:
            if value is not None:
                yield value
        line += piece.count("\n")


def as_text(value: Value) -> str:
    """A value as Dapr hands it to a component: null is empty, a mapping or a list is its JSON text."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return _decimal(value)
    if isinstance(value, int):
        return str(value)
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`, did you mean 'x'?`, or what there is to choose from."""
    names = {candidate.lower(): candidate for candidate in known}
    near = difflib.get_close_matches(name.lower(), names, n=1)
    return f", did you mean '{names[near[0]]}'?" if near else f" (known: {', '.join(names.values())})"


def _decimal(value: float) -> str:
    """Go's `encoding/json`: no exponent from 1e-6 up to 1e21."""
    if value and not 1e-6 <= abs(value) < 1e21:
        return repr(value)
    text = format(Decimal(repr(value)), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


class _Fault(Exception):
    def __init__(self, line: int, rule: str) -> None:
        super().__init__(rule)
        self.line = line


_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_BRACKETS = (yaml.StreamStartEvent, yaml.StreamEndEvent, yaml.DocumentStartEvent, yaml.DocumentEndEvent)
_STANDARD = "tag:yaml.org,2002:"
_TAGGED: dict[str, tuple[type, ...]] = {
    f"{_STANDARD}int": (int,),
    f"{_STANDARD}float": (int, float),
    f"{_STANDARD}bool": (bool,),
    f"{_STANDARD}null": (type(None),),
}
_NULLS = {"", "~", "null", "Null", "NULL"}
_BOOLEANS = {
    form: value
    for value, words in ((True, ("yes", "true", "on")), (False, ("no", "false", "off")))
    for word in words
    for form in (word, word.capitalize(), word.upper())
}
_INTEGER = re.compile(r"[-+]?(?:0b[01_]+|0o[0-7_]+|0x[0-9a-fA-F_]+|0[0-7_]*|[1-9][0-9_]*)")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")


def _plain(text: str) -> Scalar:
    """The value of an unquoted scalar (Go yaml.v2, YAML 1.1 without base 60, dates, infinities)."""
    if text in _NULLS:
        return None
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    if len(text) <= 64:  # longer digits are an identifier, not a quantity
        if _INTEGER.fullmatch(text):
            return _integer(text)
        if _FLOAT.fullmatch(text):
            number = float(text)
            return number if abs(number) != float("inf") else text
    return text


def _integer(text: str) -> int | str:
    digits = text.replace("_", "").lower()
    octal = re.fullmatch(r"([-+]?)0([0-7]+)", digits)
    try:
        return int(f"{octal[1]}0o{octal[2]}" if octal else digits, 0)
    except ValueError:  # nothing but underscores behind the prefix
        return text


class _Builder:
    """Values from the parser's events, within bounds of depth and number."""

    def __init__(self, source: str, line: int) -> None:
        self.source = source
        self.first = line
        self.left = MAX_VALUES
        self.anchors: dict[str, tuple[Value, int]] = {}

    def document(self, text: str) -> Fields | None:
        if len(text) > MAX_DOCUMENT or len(text.encode()) > MAX_DOCUMENT:
            raise _Fault(self.first, f"longer than {MAX_DOCUMENT >> 20} MiB")
        value = None
        try:
            events = iter(yaml.parse(text, Loader=_LOADER))
            for count, event in enumerate(event for event in events if not isinstance(event, _BRACKETS)):
                if count:
                    raise _Fault(self._line(event), "a second document without --- before it")
                value = self._value(event, events, 0)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            raise _Fault(self.first + (mark.line if mark else 0), error.problem or str(error.context)) from None
        except yaml.reader.ReaderError as error:
            position = error.position if isinstance(error.position, int) else 0
            raise _Fault(self.first + text.count("\n", 0, position), f"{error.reason}") from None
        if value is not None and not isinstance(value, Fields):
            raise _Fault(self.first, "a document must be a mapping")
        return value

    def _line(self, event: Any) -> int:
        return self.first + int(event.start_mark.line)

    def _value(self, event: Any, events: Iterator[Any], depth: int) -> Value:
        line = self._line(event)
        if depth > MAX_DEPTH:
            raise _Fault(line, f"nested deeper than {MAX_DEPTH} levels")
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self.anchors:
                raise _Fault(line, f"unknown anchor '{clip(event.anchor)}'")
            value, size = self.anchors[event.anchor]
            self._spend(size, line)
            return value
        before = self.left
        self._spend(1, line)
        if isinstance(event, yaml.ScalarEvent):
            value = self._scalar(event, line)
        elif event.tag not in (None, "!", f"{_STANDARD}map", f"{_STANDARD}seq"):
            raise _Fault(line, f"the tag '{clip(event.tag)}' is not allowed")
        elif isinstance(event, yaml.SequenceStartEvent):
            value = []
            while not isinstance(member := next(events), yaml.SequenceEndEvent):
                value.append(self._value(member, events, depth + 1))
        else:
            value = self._mapping(line, events, depth)
        # known only from here on, so a value cannot contain itself.
        if event.anchor:
            self.anchors[event.anchor] = value, before - self.left
        return value

    def _mapping(self, line: int, events: Iterator[Any], depth: int) -> Fields:
        fields = Fields(self.source, line)
        merged: list[Fields] = []
        while not isinstance(event := next(events), yaml.MappingEndEvent):
            at = self._line(event)
            key = self._value(event, events, depth + 1)
            if isinstance(key, (Fields, list)):
                raise _Fault(at, "a key must be a scalar")
            value = self._value(next(events), events, depth + 1)
            if key == "<<" and getattr(event, "implicit", (False,))[0]:
                merged += value if isinstance(value, list) else [value]
                continue
            name = as_text(key)
            if name in fields:
                raise _Fault(at, f"'{clip(name)}' is given twice, first on line {fields.lines[name]}")
            fields[name] = value
            fields.lines[name] = at
        for other in merged:
            if not isinstance(other, Fields):
                raise _Fault(line, "<< takes a mapping or a list of mappings")
            for name in other.keys() - fields.keys():
                fields[name] = other[name]
                fields.lines[name] = other.lines[name]
        return fields

    def _scalar(self, event: Any, line: int) -> Scalar:
        tag = event.tag
        if tag is None:
            return _plain(event.value) if event.implicit[0] else str(event.value)
        if tag in ("!", f"{_STANDARD}str"):
            return str(event.value)
        value = _plain(event.value)
        expected = _TAGGED.get(tag, ())
        if not isinstance(value, expected):
            raise _Fault(line, f"the tag '{clip(tag)}' is not allowed here")
        return value

    def _spend(self, size: int, line: int) -> None:
        self.left -= size
        if self.left < 0:
            raise _Fault(line, f"more than {MAX_VALUES} values, aliases counted")
