"""The JSON event format (CloudEvents JSON format 1.0.2).

What we write is always built from the parsed attributes and the data, never copied from what came in: every
reader behind us sees the values that we have checked, also where member names were given twice. Data that is JSON
is never decoded; its text is cut out on the way in and spliced in on the way out.
"""

from __future__ import annotations

import binascii
from collections.abc import Iterable, Mapping

import msgspec

from mesh.codec import attributes as rules
from mesh.codec.media_type import charset, is_json, is_text
from mesh.errors import InvalidBatch, InvalidEvent
from mesh.event import Attributes, AttributeValue, CloudEvent, DataForm

__all__ = [
    "decode_batch",
    "decode_event",
    "encode_batch",
    "encode_event",
    "is_json",
    "join_members",
    "json_form",
    "members",
]

_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_array = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_value = msgspec.json.Decoder(msgspec.Raw).decode
_decode_attribute = msgspec.json.Decoder(str | int | bool | None).decode
_decode_string = msgspec.json.Decoder(str).decode
_encode = msgspec.json.Encoder().encode

# What msgspec raises for bad input; RecursionError is its answer to values nested too deeply.
_BAD_JSON = (msgspec.DecodeError, ValueError, RecursionError)


def members(body: bytes) -> dict[str, msgspec.Raw]:
    """The members of a JSON object, each value as its text; of a name given twice the last one. The values are views
    into `body`: take `bytes(value)` of what shall outlive it.

    Raises `InvalidEvent` unless `body` is one JSON object in UTF-8, without a byte order mark. An escape that names
    half a surrogate pair, and nesting beyond some hundreds of levels, count as malformed.
    """
    _check_utf8(body)
    return _members(body)


def _members(value: bytes | msgspec.Raw) -> dict[str, msgspec.Raw]:
    try:
        return _decode_members(value)
    except _BAD_JSON as error:
        raise InvalidEvent(None, f"must be a JSON object: {_reason(error)}") from None


def _check_utf8(body: bytes) -> None:
    # msgspec does not look at the bytes within strings that it skips.
    try:
        body.decode()
    except UnicodeDecodeError as error:
        raise InvalidEvent(None, f"JSON must be UTF-8: byte {error.start} is not") from None


def _reason(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def join_members(members: Mapping[str, bytes | msgspec.Raw]) -> bytes:
    """A JSON object of `members`, whose values are JSON texts already."""
    return b"{" + b",".join([_encode(name) + b":" + bytes(value) for name, value in members.items()]) + b"}"


def decode_event(body: bytes) -> CloudEvent:
    """The event in a JSON object. Data of a JSON content type, or of none, is the JSON text as it stood; text of any
    other type is UTF-8, whatever its `charset` says; `data_base64` is decoded. Raises `InvalidEvent`.
    """
    return _event(members(body))


def decode_batch(body: bytes, *, limit: int) -> list[CloudEvent]:
    """The events of a JSON array, at most `limit` of them; there may be none. Raises `InvalidEvent` unless `body` is
    such an array, `InvalidBatch` with the fault of each member that is no valid event.
    """
    _check_utf8(body)
    try:
        batch = _decode_array(body)
    except _BAD_JSON as error:
        raise InvalidEvent(None, f"a batch must be a JSON array: {_reason(error)}") from None
    if len(batch) > limit:
        raise InvalidEvent(None, f"a batch may have at most {limit} events; send it in parts", len(batch))
    events: list[CloudEvent] = []
    faults: list[tuple[int, InvalidEvent]] = []
    for index, member in enumerate(batch):
        try:
            events.append(_event(_members(member)))
        except InvalidEvent as fault:
            faults.append((index, fault))
    if faults:
        raise InvalidBatch(faults)
    return events


def _event(members: dict[str, msgspec.Raw]) -> CloudEvent:
    data = members.pop("data", None)
    data_base64 = members.pop("data_base64", None)
    if (version := members.get("specversion")) is not None:
        rules.check_version(_attribute("specversion", version))
    attributes: Attributes = {}
    for name, raw in members.items():
        value = _attribute(name, raw)
        if value is None:  # the same as leaving it out
            rules.check_name(name)
        else:
            attributes[name] = value
    rules.check_all(attributes)

    if data_base64 is not None and (encoded := _base64_text(data_base64)) is not None:
        if data is not None:
            raise InvalidEvent("data_base64", "must not stand beside data")
        return CloudEvent(attributes, _base64_bytes(encoded), DataForm.BINARY)
    if data is None:
        return CloudEvent(attributes)
    content_type = attributes.get("datacontenttype")
    if content_type is None or is_json(str(content_type)):
        return CloudEvent(attributes, bytes(data), DataForm.JSON)
    try:
        return CloudEvent(attributes, _decode_string(data).encode(), DataForm.TEXT)
    except _BAD_JSON:
        rule = f"must be a JSON string, since datacontenttype is {content_type}, or be sent as data_base64"
        raise InvalidEvent("data", rule) from None


def _attribute(name: str, raw: msgspec.Raw) -> AttributeValue | None:
    try:
        value: AttributeValue | None = _decode_attribute(raw)
        return value
    except _BAD_JSON:
        raise InvalidEvent(name, "must be a string, an integer or a boolean", _text(raw)) from None


def _text(raw: msgspec.Raw) -> str:
    return bytes(raw).decode(errors="replace")


def _base64_text(raw: msgspec.Raw) -> str | None:
    try:
        return None if bytes(raw) == b"null" else _decode_string(raw)
    except _BAD_JSON:
        raise InvalidEvent("data_base64", "must be a JSON string") from None


def _base64_bytes(text: str) -> bytes:
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError as error:
        raise InvalidEvent("data_base64", f"must be base64 (RFC 4648): {error}") from None


def encode_event(event: CloudEvent) -> bytes:
    """The JSON object of `event`: `specversion`, `id`, `source`, `type`, the other attributes in their order, data."""
    attributes = event.attributes
    head = _encode(
        {
            "specversion": attributes["specversion"],
            "id": attributes["id"],
            "source": attributes["source"],
            "type": attributes["type"],
            **attributes,
        }
    )
    data = event.data
    if data is None:
        return head
    if event.form is DataForm.JSON:
        return b'%b,"data":%b}' % (head[:-1], data)
    if event.form is DataForm.TEXT:
        return b'%b,"data":%b}' % (head[:-1], _encode(data.decode()))
    return b'%b,"data_base64":"%b"}' % (head[:-1], binascii.b2a_base64(data, newline=False))


def encode_batch(events: Iterable[CloudEvent]) -> bytes:
    """The JSON array of `events`."""
    return b"[" + b",".join([encode_event(event) for event in events]) + b"]"


def json_form(content_type: str | None, data: bytes) -> DataForm:
    """How data that came beside its attributes (binary mode) goes into the JSON format: JSON in place, text as a
    string, and whatever is not what its type says, or cannot be restored byte for byte, as base64. Reads all of
    `data` to find out.
    """
    if content_type is None:
        return DataForm.BINARY
    if is_json(content_type):
        try:
            data.decode()
            _decode_value(data)
        except _BAD_JSON:
            return DataForm.BINARY
        return DataForm.JSON
    encoding = charset(content_type) or "utf-8"
    if is_text(content_type) and encoding in ("utf-8", "us-ascii"):
        try:
            data.decode(encoding)
        except UnicodeDecodeError:
            return DataForm.BINARY
        return DataForm.TEXT
    return DataForm.BINARY
