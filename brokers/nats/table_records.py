"""Entries of a table as messages of its stream: CloudEvents in binary mode, and the server's own marks of expiry.

Reading and writing one is on the hot path of state, so headers are looked up, not parsed. Guarded by
`benchmarks/state.py`.
"""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NamedTuple

from brokers.nats.codec import MAX_TTL
from brokers.nats.scopes import GONE_KEPT
from mesh import addressing
from mesh.codec import header
from mesh.errors import InvalidEvent
from mesh.ids import random_id
from mesh.ports.tables import Entry, Gone, Key, Put

_NANOSECONDS = 1_000_000_000

_DELETED = f"\r\nce-type: {addressing.STATE_DELETED}\r\n".encode()
_MARKER = b"\r\nNats-Marker-Reason: "
_CONTENT_TYPE = b"\r\nce-datacontenttype: "
_TTL = b"\r\nNats-TTL: "
_MESSAGE_ID = b"\r\nNats-Msg-Id: "
_SUBJECT = b"\r\nNats-Subject: "
_SEQUENCE = b"\r\nNats-Sequence: "
_TIME = b"\r\nNats-Time-Stamp: "


class Stored(NamedTuple):
    """A message of a scope's stream."""

    path: str
    """Its subject without the scope's root."""
    sequence: int
    time: float
    """Seconds since the epoch."""
    block: bytes
    payload: bytes

    @property
    def gone(self) -> bool:
        """Whether it says that there is no value any more."""
        return _MARKER in self.block or _DELETED in self.block

    @property
    def is_marker(self) -> bool:
        """Whether the server wrote it when a message had outlived its TTL: a value, or a deletion."""
        return _MARKER in self.block

    @property
    def message_id(self) -> bytes:
        return _value(self.block, _MESSAGE_ID)


def from_direct(root: str, block: bytes, payload: bytes, path: str = "") -> Stored:
    """The answer to a direct get, of `path` if that is known: the server puts what it knows behind the headers."""
    return Stored(
        path or _last_value(block, _SUBJECT).decode()[len(root) :],
        int(_last_value(block, _SEQUENCE)),
        parse_time(_last_value(block, _TIME)),
        block,
        payload,
    )


def from_leader(root: str, message: dict[str, Any]) -> Stored:
    """The answer of a stream's leader to `STREAM.MSG.GET`."""
    return Stored(
        message["subject"][len(root) :],
        message["seq"],
        parse_time(message["time"].encode()),
        base64.b64decode(message.get("hdrs", "")),
        base64.b64decode(message.get("data", "")),
    )


def record(stored: Stored) -> Entry | Gone | None:
    """What a message says about a key; `None` when it is no record of an entry."""
    key = addressing.parse_key_path(stored.path)
    if key is None:
        return None
    return record_of(key, stored)


def record_of(key: Key, stored: Stored) -> Entry | Gone:
    """What a message says about `key`, which is that of its subject."""
    block = stored.block
    if _MARKER in block or _DELETED in block:
        return Gone(key=key, revision=stored.sequence, time=stored.time)
    ttl = _lifetime(_value(block, _TTL)) if _TTL in block else None
    return Entry(
        key=key,
        value=stored.payload,
        revision=stored.sequence,
        time=stored.time,
        expires=None if ttl is None else stored.time + ttl,
        content_type=_read_content_type(_value(block, _CONTENT_TYPE)) if _CONTENT_TYPE in block else "",
    )


class Writing:
    """The headers of one message of a commit; all but its precondition, which may change between attempts."""

    __slots__ = ("head", "id", "path", "payload")

    def __init__(self, path: str, payload: bytes, attributes: str) -> None:
        self.path = path
        self.payload = payload
        self.id = random_id()
        self.head = f"NATS/1.0\r\nNats-Msg-Id: {self.id}\r\nce-specversion: 1.0\r\nce-id: {self.id}\r\n{attributes}"


def put(path: str, source: str, change: Put) -> Writing:
    """`source` is the `ce-source` of the scope's events, as a header value."""
    attributes = f"ce-source: {source}\r\nce-type: {addressing.STATE_SET}\r\nce-subject: {_subject(path)}\r\n"
    if change.content_type:
        attributes += f"ce-datacontenttype: {_content_type(change.content_type)}\r\n"
    if change.ttl is not None:
        # The server counts whole seconds.
        attributes += f"Nats-TTL: {min(MAX_TTL, int(-(-change.ttl // 1)))}\r\n"
    return Writing(path, change.value, attributes)


def deletion(path: str, source: str) -> Writing:
    return Writing(
        path,
        b"",
        f"ce-source: {source}\r\nce-type: {addressing.STATE_DELETED}\r\nce-subject: {_subject(path)}\r\n"
        f"Nats-TTL: {GONE_KEPT}\r\n",
    )


def check(source: str) -> Writing:
    """A record that carries a precondition, and says nothing."""
    return Writing(addressing.CHECK, b"", f"ce-source: {source}\r\nce-type: {addressing.STATE_CHECKED}\r\n")


def source(prefix: str, namespace: str, scope: str) -> str:
    """The `ce-source` of a scope's events, as a header value."""
    return header.encode(f"/{prefix}/{namespace}/state/{addressing.token(scope)}")


def parse_time(text: bytes) -> float:
    """RFC 3339 in UTC, as the server writes it: up to nine digits of a second, without trailing zeros."""
    fraction = text[20:-1]
    nanoseconds = int(fraction.ljust(9, b"0")) if fraction else 0
    return (_whole_seconds(text[:19]) * _NANOSECONDS + nanoseconds) / 1e9


@lru_cache(maxsize=64)
def _whole_seconds(text: bytes) -> int:
    return int(datetime.fromisoformat(text.decode()).replace(tzinfo=UTC).timestamp())


def _subject(path: str) -> str:
    return path.replace("%", "%25") if "%" in path else path


@lru_cache(maxsize=256)
def _content_type(text: str) -> str:
    return header.encode(text)


@lru_cache(maxsize=256)
def _read_content_type(raw: bytes) -> str:
    try:
        return header.decode(raw, "datacontenttype")
    except InvalidEvent:  # somebody else's message: the value is there all the same
        return ""


def _lifetime(raw: bytes) -> int | None:
    """Seconds. Others may write a Go duration, which is not worth reading: their value has no known end then."""
    return int(raw) if raw.isdigit() else None


def _value(block: bytes, name: bytes) -> bytes:
    """The value of a header, `name` being `\\r\\n<name>: `; empty when there is none."""
    start = block.find(name)
    if start < 0:
        return b""
    start += len(name)
    return block[start : block.find(b"\r\n", start)]


def _last_value(block: bytes, name: bytes) -> bytes:
    """As `_value`, for what the server appends: whoever wrote the message may have used the same name."""
    start = block.rfind(name) + len(name)
    return block[start : block.find(b"\r\n", start)]
