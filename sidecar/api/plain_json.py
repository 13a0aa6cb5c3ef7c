"""Request bodies in Dapr's plain dialect of JSON: names of members in any letter case, unknown members ignored.

An exact match of all member names is decoded at once; only what does not match is looked at again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from mesh.codec import json as json_codec
from mesh.errors import InvalidEvent

T = TypeVar("T", bound=msgspec.Struct)

_encode = msgspec.json.Encoder().encode
_decode_raws = msgspec.json.Decoder(list[msgspec.Raw]).decode
_BAD = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Malformed(ValueError):
    """What is wrong with a body, and where."""


def check_utf8(body: bytes) -> None:
    """Raises `Malformed` unless `body` is UTF-8, which the decoder does not look at everywhere."""
    if not body.isascii():
        try:
            body.decode()
        except UnicodeDecodeError as error:
            raise Malformed(f"JSON must be UTF-8: byte {error.start} is not") from None


def read_object(type_: type[T], body: bytes) -> T:
    """The body as one object. Raises `Malformed`."""
    check_utf8(body)
    return member_object(type_, body, "the body")


def read_array(type_: type[T], body: bytes, decode: Callable[[bytes], list[T]]) -> list[T]:
    """The body as an array of objects; `decode` is `msgspec.json.Decoder(list[T]).decode`. Raises `Malformed`."""
    check_utf8(body)
    try:
        return decode(body)
    except _BAD:
        pass
    try:
        raws = _decode_raws(body)
    except _BAD as error:
        raise Malformed(f"an array of items is expected: {_reason(error)}") from None
    return [member_object(type_, raw, f"[{index}]") for index, raw in enumerate(raws)]


def member_object(type_: type[T], raw: bytes | msgspec.Raw, place: str) -> T:
    """An object of a body that is UTF-8; `place` says which one for the error. Raises `Malformed`."""
    try:
        return msgspec.json.decode(raw, type=type_)
    except _BAD:
        pass
    fields = {field.name.lower(): field for field in msgspec.structs.fields(type_)}
    try:
        members: dict[str, msgspec.Raw] = {}
        for name, value in json_codec.members(bytes(raw)).items():
            field = fields.get(name.lower())
            if field is not None:
                nested = _struct_in(field.type)
                if nested is not None and bytes(value) != b"null":
                    value = msgspec.Raw(_encode(member_object(nested, value, f"{place}.{field.name}")))
                members[field.name] = value
        return msgspec.json.decode(json_codec.join_members(members), type=type_)
    except InvalidEvent as error:
        raise Malformed(f"{place}: {error}") from None
    except _BAD as error:
        raise Malformed(f"{place}: {_reason(error)}") from None


def _struct_in(type_: Any) -> type[msgspec.Struct] | None:
    """The struct that a field of type `Struct | None` may hold."""
    options = getattr(type_, "__args__", (type_,))
    return next((one for one in options if isinstance(one, type) and issubclass(one, msgspec.Struct)), None)


def _reason(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)
