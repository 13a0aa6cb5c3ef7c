"""The CloudEvents NATS binding (working draft, headers): messages to header blocks and back.

Attribute names are written in lower case and read in any case; values are percent-encoded as in the HTTP
binding. `datacontenttype` is `ce-datacontenttype`, and only a structured event has a CloudEvents `Content-Type`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from mesh.codec import attributes as rules
from mesh.codec import header
from mesh.errors import BrokerError, InvalidEvent, clip
from mesh.event import Attributes
from mesh.ports import Message, Mode

STRUCTURED = b"Content-Type: application/cloudevents+json\r\n"
NO_DATA = b"Meshwire-No-Data"
"""Marks an event without data, as opposed to empty data."""

MAX_TTL = 100 * 365 * 24 * 3600
"""Seconds. The server adds a lifetime to now in 64-bit nanoseconds; one that ends after the year 2262 overflows, and it
forgets the event at once."""

_CE = "ce-"
_OWN = frozenset(("content-type", "meshwire-key", NO_DATA.decode().lower()))
"""Headers of ours, in lower case, that tell how a message is stored."""
_MAX_NAMES = 1024
_WHITE_SPACE = " \t\r\n\v\f"
_names: dict[str, str] = {}
"""Header names seen before, folded to lower case. Bounded: whoever may publish chooses names."""


def encode(message: Message, stored_as: str) -> bytes:
    """The header block under which `message` is stored; `stored_as` becomes its `Nats-Msg-Id`.

    Raises `BrokerError` for a transport header that would break out of its line.
    """
    lines = [b"NATS/1.0\r\nNats-Msg-Id: %b\r\n" % stored_as.encode()]
    if message.key is not None and message.key != message.attributes.get("partitionkey"):
        lines.append(b"Meshwire-Key: %b\r\n" % header.encode(message.key).encode())  # before the attribute, for `key`
    if message.mode is Mode.STRUCTURED:
        lines.append(STRUCTURED)
    elif message.mode is Mode.BINARY:
        coded = header.encode_all(message.attributes)
        lines.append("".join([f"ce-{name}: {value}\r\n" for name, value in coded.items()]).encode())
        if message.payload is None:
            lines.append(b"%b: 1\r\n" % NO_DATA)
    elif message.content_type is not None:
        lines.append(_line("Content-Type", message.content_type))
    if message.ttl is not None:
        # The server counts whole seconds; rounding up lets the exact time be judged at delivery.
        lines.append(b"Nats-TTL: %d\r\n" % max(1, min(MAX_TTL, int(-(-message.ttl // 1)))))
    for name, text in message.headers.items():
        lines.append(_line(name, text))
    lines.append(b"\r\n")
    return b"".join(lines)


def _line(name: str, value: str) -> bytes:
    line = f"{name}: {value}"
    if not line.isprintable() or name.lower().startswith(("nats-", "ce-")):
        raise BrokerError(f"the header {clip(name)} cannot be stored: '{clip(value)}'")
    return line.encode() + b"\r\n"


def parse_block(block: bytes) -> dict[str, str]:
    """Header names (lower case) and values of a stored message. The last one of a repeated name wins."""
    parsed: dict[str, str] = {}
    for line in block.decode("utf-8", "replace").split("\r\n")[1:]:
        raw, separator, value = line.partition(":")
        if separator:
            parsed[_names.get(raw) or _name(raw)] = value.strip(_WHITE_SPACE)
    return parsed


def _name(raw: str) -> str:
    name = raw.strip(_WHITE_SPACE).lower()
    if len(_names) < _MAX_NAMES:
        _names[raw] = name
    return name


def key(block: bytes, payload: bytes) -> str | None:
    """The key of a stored message: as its publisher gave it, or else the event's `partitionkey`.

    `None` where it is not to be found, as in a structured event that is no JSON. Guarded by `benchmarks/deliver.py`.
    """
    found = _find_key(block)
    if found is not None:
        raw = found[1]
        if b"%" not in raw and b'"' not in raw and raw.isascii():
            return raw.decode()
        try:
            return header.decode(raw, "partitionkey")
        except InvalidEvent:
            return raw.decode("utf-8", "replace")
    try:
        value = _decode_key(payload).partitionkey
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return None if value is None else str(value)


class _Keyed(msgspec.Struct, gc=False):
    partitionkey: str | int | None = None


_find_key = re.compile(rb"\r\n(?:Meshwire-Key|ce-partitionkey):[ \t]*([^\r]*)", re.IGNORECASE).search
_decode_key = msgspec.json.Decoder(_Keyed).decode


def mode(headers: Mapping[str, str], payload: bytes) -> Mode:
    """How a stored message holds its event (CloudEvents NATS binding 3; 1.0.2 producers send no header)."""
    if headers.get("content-type", "")[:23].lower() == "application/cloudevents":
        return Mode.STRUCTURED
    if "ce-specversion" in headers or "ce-id" in headers:
        return Mode.BINARY
    if payload.lstrip()[:1] == b"{" and b'"specversion"' in payload:
        return Mode.STRUCTURED
    return Mode.RAW


def decode_attributes(headers: Mapping[str, str]) -> Attributes:
    """The attributes of a binary-mode event. Raises `InvalidEvent`."""
    found = header.decode_texts({name[3:]: value for name, value in headers.items() if name.startswith(_CE)})
    content_type = headers.get("content-type")
    if "datacontenttype" not in found and content_type is not None:
        found["datacontenttype"] = content_type
    if "specversion" not in found:
        raise InvalidEvent("specversion", "is required")
    rules.check_all(found)
    return found


def transport_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """What remains when the event's and the broker's own headers are gone."""
    return {
        name: value for name, value in headers.items() if name[:3] != _CE and name[:5] != "nats-" and name not in _OWN
    }
