"""Items as they are stored: each is a CloudEvent, so that it can be watched, replayed and published by anybody.

Its data is the item's; what becomes headers for the app is one attribute (docs/protocol.md, "Bindings").
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import quote

import msgspec

from mesh import addressing, ids
from mesh.bindings.headers import printable
from mesh.codec import json as json_codec
from mesh.codec.media_type import is_media_type
from mesh.errors import InvalidEvent, MessageTooLarge
from mesh.event import Attributes
from mesh.ports import Message, Mode, Record
from mesh.ports.bindings import Item

METADATA = "bindingmetadata"
"""The extension attribute with the metadata: a JSON object of strings, in ASCII."""
MAX_METADATA = 32 << 10
"""Bytes of that attribute. It travels as a header, and so do its members on the way to the app."""
OCTETS = "application/octet-stream"

_encode = msgspec.json.Encoder().encode
_decode_metadata = msgspec.json.Decoder(dict[str, str]).decode


class MetadataTooLarge(MessageTooLarge):
    """The metadata of an item are more than any app would take as headers."""

    def __init__(self, size: int) -> None:
        super().__init__(size, MAX_METADATA)
        self.args = (f"the item has {size} bytes of metadata, at most {MAX_METADATA} can be sent to an app",)


class Trigger(NamedTuple):
    """What the app is sent for an item."""

    body: bytes
    metadata: Mapping[str, str]


def message(binding: str, item: Item, now: float) -> Message:
    """Of any size; `check` tells whether it can be stored."""
    source = _source(binding)
    given = printable(item.id) if item.id else ""
    attributes: Attributes = {
        "specversion": "1.0",
        "id": given or ids.random_id(),
        "source": source,
        "type": addressing.BINDING_TRIGGERED,
        "time": _time(item.time, now),
        "datacontenttype": item.content_type if is_media_type(item.content_type) else OCTETS,
    }
    if item.metadata:
        attributes[METADATA] = _in_json(item.metadata)
    key = printable(item.key) if item.key else None
    if key is not None:
        attributes["partitionkey"] = key
    return Message(
        mode=Mode.BINARY,
        payload=item.data,
        attributes=attributes,
        key=key,
        dedupe_id=addressing.identity(source, given) if given else None,
    )


@lru_cache(1024)
def _source(binding: str) -> str:
    return f"/bindings/{quote(binding, safe='', errors='replace')}"


def _in_json(metadata: Mapping[str, str]) -> str:
    """In printable ASCII, so that any name and value survives."""
    if all(text.isascii() and text.isprintable() for pair in metadata.items() for text in pair):
        return _encode(metadata).decode()
    return json.dumps({_whole(name): _whole(value) for name, value in metadata.items()}, separators=(",", ":"))


def check(message: Message) -> None:
    """Raises `MetadataTooLarge`."""
    size = len(str(message.attributes.get(METADATA, "")))
    if size > MAX_METADATA:
        raise MetadataTooLarge(size)


def _time(moment: float | None, now: float) -> str:
    """When the item arose; sources let anybody choose times, also such that no calendar has."""
    try:
        return ids.utc_time(now if moment is None else moment)
    except (ValueError, OverflowError):
        return ids.utc_time(now)


def _whole(text: str) -> str:
    """`text` with `?` in the place of half a surrogate pair, which no reader of JSON takes."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def trigger(record: Record) -> Trigger:
    """The item of a record. One that somebody else has published may be an event in either mode, or bare bytes.

    Raises `InvalidEvent` for what claims to be an event and is none.
    """
    if record.mode is Mode.RAW:
        return Trigger(record.payload or b"", {})
    if record.mode is Mode.STRUCTURED:
        event = json_codec.decode_event(record.payload or b"")
        return Trigger(event.data or b"", _metadata(event.attributes))
    return Trigger(record.payload or b"", _metadata(record.attributes))


def _metadata(attributes: Mapping[str, object]) -> Mapping[str, str]:
    text = attributes.get(METADATA)
    if text is None:
        return {}
    try:
        return _decode_metadata(str(text))
    except msgspec.DecodeError as error:
        raise InvalidEvent(METADATA, f"must be a JSON object of strings: {error}", text) from None
