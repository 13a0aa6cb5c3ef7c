"""What Meshwire's own routes read from a request: strictly, since no app relies on anything else being taken."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TypeVar
from urllib.parse import parse_qsl

import msgspec
from starlette.types import Receive, Scope

from mesh.codec.attributes import timestamp
from mesh.errors import ApiError, Code, clip
from sidecar.http.body import BodyTooLarge, read_body

MAX_ORDER = 1 << 20
"""Bytes of the longest body that asks for something."""

T = TypeVar("T")


def invalid(message: str) -> ApiError:
    return ApiError(Code.MALFORMED_REQUEST, message)


def query(scope: Scope, *names: str) -> dict[str, str]:
    """The query parameters, of which there are these; the first value of a name wins, an empty one is none."""
    try:
        pairs = parse_qsl(scope["query_string"].decode(), keep_blank_values=True, errors="strict")
    except UnicodeDecodeError:
        raise invalid("the query is no UTF-8") from None
    for name, _ in pairs:
        if name not in names:
            raise invalid(f"there is no parameter '{clip(name)}' (there are: {', '.join(names)})")
    return {name: value for name, value in reversed(pairs) if value}


def whole(asked: Mapping[str, str], name: str, default: int, most: int) -> int:
    """A parameter that is an integer from 1 to `most`."""
    text = asked.get(name, str(default))
    if not re.fullmatch(r"[0-9]{1,10}", text) or not 1 <= int(text) <= most:
        raise invalid(f"{name} must be an integer from 1 to {most} (got '{clip(text)}')")
    return int(text)


def moment(text: str, name: str) -> float:
    """Seconds since the epoch."""
    try:
        return timestamp(text)
    except ValueError:
        rule = "must be a time as RFC 3339 has it, such as 2026-05-04T12:30:00Z"
        raise invalid(f"{name} {rule} (got '{clip(text)}')") from None


def shown_time(seconds: float | None) -> str | None:
    """RFC 3339 in UTC, with milliseconds."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


async def order(scope: Scope, receive: Receive, type_: type[T]) -> T:
    """The body, a JSON object; an empty one is an empty object. Raises `ApiError` that names the member at fault."""
    try:
        body = await read_body(receive, MAX_ORDER, scope)
    except BodyTooLarge as error:
        raise ApiError(Code.BODY_READ, str(error), status=413) from None
    try:
        return msgspec.json.decode(body or b"{}", type=type_)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid(f"the body cannot be used: {error}") from None
