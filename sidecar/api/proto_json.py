"""JSON bodies of the routes that Dapr decodes as protocol buffers: lock, unlock, jobs, crypto."""

from __future__ import annotations

import re
from typing import Annotated, TypeVar

import msgspec

from mesh.codec import json as json_codec
from mesh.errors import ApiError, Code, InvalidEvent

Int32 = Annotated[int, msgspec.Meta(ge=-(2**31), lt=2**31)]

T = TypeVar("T", bound=msgspec.Struct)

_CAPITAL = re.compile("[A-Z]")


def decode(type_: type[T], body: bytes) -> T:
    """The fields of `type_`, which have lowerCamelCase names and defaults, from an object.

    Names in snake_case are as good, unknown ones are left out, `null` is the default, integers may be text, and an
    empty body is an empty object. Raises `ApiError` for everything else, and for a field that is given twice.
    """
    known = {name: name for name in type_.__struct_fields__}
    known |= {_CAPITAL.sub(lambda capital: f"_{capital[0].lower()}", name): name for name in known}
    try:
        given: dict[str, msgspec.Raw] = {}
        for name, value in (json_codec.members(body) if body else {}).items():
            field = known.get(name)
            if field is None:
                continue
            if field in given:
                raise _malformed(f"the field {field} is given twice")
            given[field] = value
        members = {name: value for name, value in given.items() if bytes(value) != b"null"}
        return msgspec.json.decode(json_codec.join_members(members), type=type_, strict=False)
    except (InvalidEvent, msgspec.DecodeError, RecursionError) as error:
        raise _malformed(error) from None


def _malformed(cause: object) -> ApiError:
    return ApiError(Code.MALFORMED_REQUEST, f"failed deserializing HTTP body: {cause}")
