"""Events as records of Kafka (CloudEvents Kafka protocol binding 1.0.2), and back.

Binary mode has a header `ce_<name>` for each attribute, plain UTF-8, and `content-type` for `datacontenttype`; an event
without data has no value. A structured event is told by its `content-type`. The record's key is what orders it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from mesh.codec import attributes as rules
from mesh.errors import BrokerError, InvalidEvent, clip
from mesh.event import Attributes, AttributeValue
from mesh.ports import Message, Mode

STRUCTURED = b"application/cloudevents+json"
CONTENT_TYPE = "content-type"
TTL = "meshwire-ttl"
"""Header: seconds after which a message is not delivered any more."""

_CE = "ce_"
_OWN = frozenset((CONTENT_TYPE, TTL))

OFFSET_DIGITS, PARTITION_DIGITS, TIME_DIGITS = 10, 5, 13
MAX_DIGITS = OFFSET_DIGITS + PARTITION_DIGITS + TIME_DIGITS

Headers = list[tuple[str, bytes]]


def encode(message: Message) -> tuple[bytes | None, bytes | None, Headers]:
    """Key, value and headers of the record that `message` becomes. Raises `BrokerError` for a header of the transport
    that would be read as one of the event's."""
    headers: Headers = []
    if message.mode is Mode.STRUCTURED:
        headers.append((CONTENT_TYPE, STRUCTURED))
    elif message.mode is Mode.BINARY:
        for name, attribute in message.attributes.items():
            header = CONTENT_TYPE if name == "datacontenttype" else _CE + name
            headers.append((header, attribute.encode() if type(attribute) is str else _text(attribute)))
    elif message.content_type is not None:
        headers.append((CONTENT_TYPE, message.content_type.encode()))
    if message.ttl is not None:
        headers.append((TTL, f"{message.ttl:.3f}".encode()))
    for name, text in message.headers.items():
        if _is_own(name.lower()):
            raise BrokerError(f"the header {clip(name)} cannot be stored: it is one of the event's")
        headers.append((name, text.encode()))
    value = message.payload if message.mode is Mode.BINARY else message.payload or b""
    return None if message.key is None else message.key.encode(), value, headers


def _is_own(name: str) -> bool:
    return name in _OWN or name.startswith(_CE)


def _text(value: AttributeValue) -> bytes:
    if isinstance(value, bool):
        return b"true" if value else b"false"
    return str(value).encode()


def position(timestamp: int, partition: int, offset: int) -> str:
    """Where a record is stored, as one number. Records of a topic are in its order: by time, and where that is the
    same by partition and offset. Of the offset the last digits are enough, since time tells the rest."""
    number = (max(0, timestamp) * 10**PARTITION_DIGITS + partition) * 10**OFFSET_DIGITS + offset % 10**OFFSET_DIGITS
    return str(number)


def place(position: str) -> tuple[int, int, int]:
    """Time in milliseconds, partition, and the last digits of the offset, of a position."""
    rest, offset = divmod(int(position), 10**OFFSET_DIGITS)
    timestamp, partition = divmod(rest, 10**PARTITION_DIGITS)
    return timestamp, partition, offset


class KafkaRecord:
    """One stored message; see the `Record` port. `stored` is a `ConsumerRecord` of aiokafka."""

    __slots__ = ("_headers", "_mode", "stored", "topic")

    def __init__(self, stored: Any, topic: str) -> None:
        self.stored = stored
        self.topic = topic
        self._headers: dict[str, bytes] | None = None
        self._mode: Mode | None = None

    def _all_headers(self) -> dict[str, bytes]:
        if self._headers is None:
            self._headers = {name.lower(): value or b"" for name, value in self.stored.headers}
        return self._headers

    @property
    def mode(self) -> Mode:
        if self._mode is None:
            headers = self._all_headers()
            if headers.get(CONTENT_TYPE, b"")[:23].lower() == b"application/cloudevents":
                self._mode = Mode.STRUCTURED
            else:
                self._mode = Mode.BINARY if "ce_specversion" in headers or "ce_id" in headers else Mode.RAW
        return self._mode

    @property
    def attributes(self) -> Attributes:
        if self.mode is not Mode.BINARY:
            return {}
        found: Attributes = {}
        for header, value in self.stored.headers:
            name = _attributes.get(header)
            if name is None:
                name = _attribute(header)
            if name:
                if name in found:
                    raise InvalidEvent(name, "is given twice")
                try:
                    found[name] = (value or b"").decode()
                except UnicodeDecodeError:
                    raise InvalidEvent(name, "the bytes of the header are not UTF-8") from None
        if "specversion" not in found:
            raise InvalidEvent("specversion", "is required")
        rules.check_all(found)
        return found

    @property
    def payload(self) -> bytes | None:
        value: bytes | None = self.stored.value
        return value if value is not None or self.mode is Mode.BINARY else b""

    @property
    def content_type(self) -> str | None:
        found = self._all_headers().get(CONTENT_TYPE)
        return None if found is None else found.decode("utf-8", "replace")

    @property
    def headers(self) -> Mapping[str, str]:
        return {
            name: value.decode("utf-8", "replace") for name, value in self._all_headers().items() if not _is_own(name)
        }

    @property
    def key(self) -> str | None:
        if self.stored.key is not None:
            return str(self.stored.key, "utf-8", "replace")
        mode = self.mode
        if mode is Mode.BINARY:
            found = self._all_headers().get("ce_partitionkey")
            return None if found is None else found.decode("utf-8", "replace")
        if mode is Mode.STRUCTURED:
            try:
                value = _decode_key(self.payload or b"").partitionkey
            except (msgspec.DecodeError, UnicodeDecodeError):
                return None
            return None if value is None else str(value)
        return None

    @property
    def position(self) -> str:
        stored = self.stored
        return position(stored.timestamp, stored.partition, stored.offset)

    @property
    def time(self) -> float:
        return float(self.stored.timestamp / 1000)


_MAX_NAMES = 1024
_attributes: dict[str, str] = {}
"""Attributes by headers seen before; empty for a header of none. Bounded: whoever may publish chooses names."""


def _attribute(header: str) -> str:
    name = header.lower()
    name = "datacontenttype" if name == CONTENT_TYPE else name[3:] if name.startswith(_CE) else ""
    if len(_attributes) < _MAX_NAMES:
        _attributes[header] = name
    return name


class _Keyed(msgspec.Struct, gc=False):
    partitionkey: str | int | None = None


_decode_key = msgspec.json.Decoder(_Keyed).decode


def is_expired(stored: Any, now: float) -> bool:
    """Whether the `ConsumerRecord` is not to be delivered any more, at `now`. A lifetime that is no number is none."""
    for name, value in stored.headers:
        if name == TTL:
            try:
                return bool(stored.timestamp / 1000 + float(value) <= now)
            except (ValueError, TypeError):
                return False
    return False
