"""An event as rules and filters look at it: decoded member by member, and only where one looks."""

from __future__ import annotations

import json
from typing import Any, NoReturn

import msgspec

from mesh.codec import json as json_codec
from mesh.event import AttributeValue

_decode_text = msgspec.json.Decoder(str).decode
_decode_attribute = msgspec.json.Decoder(str | int | bool | None).decode
_DATA = frozenset(("data", "data_base64"))


class EventView:
    """One event, given as its JSON text. Each member is decoded at most once, `data` only when a rule names it."""

    __slots__ = ("_attributes", "_decoded", "_members", "steps", "variables")

    def __init__(self, body: bytes) -> None:
        """Raises `InvalidEvent` unless `body` is a JSON object."""
        self._members = json_codec.members(body)
        self._decoded: dict[str, Any] = {}
        self._attributes: dict[str, AttributeValue] | None = None
        self.variables: list[Any] = []
        """Of the macros of the rule that is being evaluated."""
        self.steps = 0
        """How many members of lists the macros of that rule have looked at."""

    @property
    def attributes(self) -> dict[str, AttributeValue]:
        """For filters: the members that are attributes. One that is null or no attribute's value is as if missing."""
        if self._attributes is None:
            self._attributes = {}
            for name, raw in self._members.items():
                if name not in _DATA:
                    try:
                        value = _decode_attribute(raw)
                    except msgspec.DecodeError:
                        continue
                    if value is not None:
                        self._attributes[name] = value
        return self._attributes

    def member(self, name: str) -> Any:
        """For rules: a member as JSON has it, its numbers as doubles (Dapr). Raises `KeyError`, and `ValueError` for
        one that cannot be decoded."""
        try:
            return self._decoded[name]
        except KeyError:
            value = self._decoded[name] = _decode(self._members[name])
            return value

    def has(self, name: str) -> bool:
        return name in self._members

    def whole(self) -> dict[str, Any]:
        """All members."""
        return {name: self.member(name) for name in self._members}


def _number(text: str) -> float | int:
    """A whole number as a double, as Dapr has it, unless it is too long for one."""
    if len(text) > 15:
        number = int(text) if len(text) <= 20 else float(text)
        return float(number) if float(number) == number else number
    return float(text)


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


_decode_json = json.JSONDecoder(parse_int=_number, parse_constant=_constant).decode


def _decode(raw: msgspec.Raw) -> Any:
    text = bytes(raw)
    if text[:1] == b'"':
        return _decode_text(text)
    try:
        return _decode_json(text.decode())
    except RecursionError:
        raise ValueError("nested too deeply") from None
