"""What output bindings ask of the app's requests. Each function raises `InvalidOperation` with the rule that is broken.

`data` is JSON (Dapr): bindings that take a text or bytes get a string with its quotes, and take them away.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection
from typing import TypeVar

import msgspec

from mesh import quantities
from mesh.errors import clip
from mesh.ports.bindings import InvalidOperation, Invocation

T = TypeVar("T")

TRACE = frozenset(("traceparent", "tracestate", "baggage"))
"""Dapr adds them to the metadata of every request."""


def check_metadata(invocation: Invocation, known: Collection[str]) -> None:
    """Refuse metadata that would have no effect."""
    names = {name.lower() for name in known} | TRACE
    for name in invocation.metadata:
        if name.lower() not in names:
            there = f"it knows: {', '.join(known)}" if known else "it knows none"
            raise InvalidOperation(f"the operation {invocation.operation} has no metadata '{clip(name)}' ({there})")


def required(invocation: Invocation, name: str) -> str:
    """The metadata of this name, which is not empty."""
    value = invocation.text(name)
    if not value:
        raise InvalidOperation(f"the operation {invocation.operation} needs the metadata '{name}'")
    return value


def flag(invocation: Invocation, name: str, default: bool) -> bool:
    """Dapr's truthy words."""
    value = invocation.text(name)
    return quantities.truthy(value) if value else default


def unquoted(data: bytes) -> bytes:
    """The text of a JSON string; other data as it is."""
    if data[:1] == b'"':
        try:
            return msgspec.json.decode(data, type=str).encode()
        except (msgspec.DecodeError, UnicodeEncodeError):
            pass
    return data


def decoded(data: bytes) -> bytes:
    """What base64 says, in which line ends are ignored."""
    try:
        return base64.b64decode(data.replace(b"\r", b"").replace(b"\n", b""), validate=True)
    except binascii.Error:
        raise InvalidOperation("the data is not in base64") from None


def payload(invocation: Invocation, type_: type[T]) -> T:
    """The data as a struct."""
    try:
        return msgspec.json.decode(invocation.data, type=type_)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        reason = clip(str(error) or "nested too deeply")
        raise InvalidOperation(
            f"the data of the operation {invocation.operation} is not as it must be: {reason}"
        ) from None


def check_size(data: bytes, limit: int) -> None:
    if len(data) > limit:
        raise InvalidOperation(f"the data is too large: {len(data)} bytes, where {limit} are the most")
