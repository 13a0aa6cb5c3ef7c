"""Cursors of `Table.scan`: where its next page begins, as a text that fits no other scan."""

from __future__ import annotations

import base64
from typing import TypeVar

import msgspec

from mesh.errors import clip
from mesh.ports.tables import Key

T = TypeVar("T")


def write(prefix: Key, starts_with: str, place: object) -> str:
    """The cursor of the scan of `prefix` and `starts_with`; `place` is whatever the table finds its place by."""
    return base64.urlsafe_b64encode(msgspec.json.encode((prefix, starts_with, place))).decode()


def read(cursor: str, prefix: Key, starts_with: str, place: type[T]) -> T:
    """Raises `ValueError` for what this scan has not given."""
    try:
        scan = msgspec.json.decode(base64.b64decode(cursor, altchars=b"-_", validate=True), type=tuple[Key, str, place])  # type: ignore[valid-type]
    except (ValueError, msgspec.DecodeError):
        scan = None
    if scan is None or scan[:2] != (prefix, starts_with):
        raise ValueError(f"the cursor '{clip(cursor)}' is not of this scan")
    found: T = scan[2]
    return found
