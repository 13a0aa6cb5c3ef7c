"""The HTTP protocol binding (CloudEvents HTTP binding 1.0.2): which mode, reading, writing.

Headers are lists of pairs as in ASGI: names in lower case, values as they came, in their order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum
from typing import NamedTuple

from mesh.codec import attributes as rules
from mesh.codec import header, json
from mesh.codec.media_type import charset, essence
from mesh.errors import InvalidEvent
from mesh.event import CloudEvent, DataForm

Headers = Sequence[tuple[bytes, bytes]]

STRUCTURED_TYPE = "application/cloudevents+json"
BATCHED_TYPE = "application/cloudevents-batch+json"
BATCH_LIMIT = 1_000
"""How many events a batch may have, where nobody says otherwise."""


class ContentMode(Enum):
    """How an HTTP message carries events (CloudEvents HTTP binding 3)."""

    BATCHED = "batched"
    STRUCTURED = "structured"
    BINARY = "binary"
    NONE = "none"
    """Not at all: neither a CloudEvents media type nor a header that starts with `ce-`."""


class Decoded(NamedTuple):
    mode: ContentMode
    events: list[CloudEvent]
    """One event, or in batched mode any number."""


def content_mode(headers: Headers) -> ContentMode:
    """The mode that `headers` announce. `BINARY` says only that some attribute is there; whether all required ones
    are is for `decode_binary`, or `has_required_headers`.
    """
    values = dict(headers)
    kind = values.get(b"content-type", b"").strip().lower()
    if kind.startswith(b"application/cloudevents-batch"):
        return ContentMode.BATCHED
    if kind.startswith(b"application/cloudevents"):
        return ContentMode.STRUCTURED
    if b"ce-specversion" in values or any(name.startswith(b"ce-") for name in values):
        return ContentMode.BINARY
    return ContentMode.NONE


_REQUIRED_HEADERS = frozenset(b"ce-" + name.encode() for name in rules.REQUIRED)


def has_required_headers(headers: Headers) -> bool:
    """Whether all four required attributes are among the headers. Dapr's publish route takes nothing less for an
    event in binary mode.
    """
    return dict(headers).keys() >= _REQUIRED_HEADERS


def decode(headers: Headers, body: bytes, *, batch_limit: int = BATCH_LIMIT) -> Decoded:
    """The events of a request that must carry some. Raises `InvalidEvent` when it does not, or not properly;
    `InvalidEvent.unsupported` where the format or charset is none of ours; `InvalidBatch` for members of a batch.

    Beside a structured event, attributes in headers are copies and not read (CloudEvents HTTP binding 3.2.3).
    """
    mode = content_mode(headers)
    if mode is ContentMode.BINARY:
        return Decoded(mode, [decode_binary(headers, body)])
    if mode is ContentMode.STRUCTURED:
        _check_format(headers, STRUCTURED_TYPE)
        return Decoded(mode, [json.decode_event(body)])
    if mode is ContentMode.BATCHED:
        _check_format(headers, BATCHED_TYPE)
        return Decoded(mode, json.decode_batch(body, limit=batch_limit))
    raise InvalidEvent(
        None,
        "this is no CloudEvent: send ce-specversion, ce-id, ce-source and ce-type as headers, "
        f"or a body of type {STRUCTURED_TYPE} or {BATCHED_TYPE}",
    )


def _check_format(headers: Headers, expected: str) -> None:
    given = [value for name, value in headers if name == b"content-type"]
    if len(given) > 1:
        raise InvalidEvent("content-type", "the header occurs more than once")
    content_type = given[0].decode("latin-1")
    if essence(content_type) != expected:
        rule = f"is an event format that is not supported; use {STRUCTURED_TYPE} or {BATCHED_TYPE}"
        raise InvalidEvent("content-type", rule, content_type, unsupported=True)
    if charset(content_type) not in (None, "utf-8"):
        raise InvalidEvent("content-type", "the charset must be utf-8", content_type, unsupported=True)


class _AttributeNames(dict[bytes, str | None]):
    """The attribute that a header carries, by the header's name; `None` where it carries none.

    Callers choose the names, so only short ones are remembered, and not too many.
    """

    LIMIT = 1_024
    LONGEST = 64

    def __missing__(self, name: bytes) -> str | None:
        if not name.startswith(b"ce-"):
            attribute = None
        else:
            attribute = name[3:].decode("latin-1")
            try:
                rules.check_name(attribute)
            except InvalidEvent as error:
                raise InvalidEvent(name.decode("latin-1"), error.rule) from None
        if len(self) < self.LIMIT and len(name) <= self.LONGEST:
            self[name] = attribute
        return attribute


_CONTENT_TYPE = "content-type"  # no attribute can have this name
_attribute_names = _AttributeNames({b"content-type": _CONTENT_TYPE})


def decode_binary(headers: Headers, body: bytes) -> CloudEvent:
    """The event whose attributes are headers and whose data is the body. An empty body is data of zero bytes beside a
    `Content-Type`, and no data without one. Raises `InvalidEvent`.

    The body is not looked at, so `form` is `BINARY`; ask `json.json_form` before writing the event as JSON.
    """
    found: dict[str, bytes] = {}
    for name, value in headers:
        attribute = _attribute_names[name]
        if attribute is not None:
            if attribute in found:
                raise InvalidEvent(name.decode("latin-1"), "the header occurs more than once")
            found[attribute] = value
    content_type = found.pop(_CONTENT_TYPE, None)
    version = found.get("specversion")
    if version is not None and version != b"1.0":
        rules.check_version(header.decode(version, "specversion"))

    attributes = header.decode_all(found)
    if content_type is not None:
        if not content_type.isascii():
            raise InvalidEvent(_CONTENT_TYPE, "must be ASCII", content_type)
        media_type = content_type.decode("ascii")
        if attributes.setdefault("datacontenttype", media_type) != media_type:
            raise InvalidEvent("ce-datacontenttype", f"differs from Content-Type, which is {media_type}")
    elif "datacontenttype" in attributes:
        raise InvalidEvent("ce-datacontenttype", "must be sent as the header Content-Type")
    rules.check_all(attributes)
    return CloudEvent(attributes, None if content_type is None and not body else body)


def encode_binary(event: CloudEvent) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Headers and body of `event` in binary mode. Data that is JSON for want of any type gets `application/json`. HTTP
    cannot tell data of zero bytes without a type from no data, nor no data with a type from zero bytes.

    Raises `InvalidEvent` where only structured mode can carry the event: its data is an event itself, or a text
    that its charset cannot express.
    """
    headers: list[tuple[bytes, bytes]] = []
    content_type: str | None = None
    for name, value in event.attributes.items():
        if name == "datacontenttype":
            content_type = str(value)
        else:
            headers.append((f"ce-{name}".encode(), header.encode(value).encode()))
    data = event.data
    if data is None:
        data = b""
    elif event.form is DataForm.JSON:
        content_type = content_type or "application/json"
    elif event.form is DataForm.TEXT and content_type is not None:
        data = _in_charset(data, content_type)
    if content_type is not None:
        if content_type[:23].lower() == "application/cloudevents":
            raise InvalidEvent("datacontenttype", "an event within an event needs structured mode", content_type)
        headers.append((b"content-type", content_type.encode()))
    return headers, data


def _in_charset(text: bytes, content_type: str) -> bytes:
    """UTF-8 `text` in the charset that `content_type` names."""
    name = charset(content_type)
    if name is None or name == "utf-8":
        return text
    try:
        return text.decode().encode(name)
    except (LookupError, ValueError):
        rule = "the charset is unknown or cannot express the text; use structured mode"
        raise InvalidEvent("datacontenttype", rule, content_type) from None


def encode_structured(event: CloudEvent) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Headers and body of `event` in structured mode."""
    return [(b"content-type", STRUCTURED_TYPE.encode())], json.encode_event(event)


def encode_batched(events: Iterable[CloudEvent]) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Headers and body of `events` in batched mode, for a receiver that asked for it."""
    return [(b"content-type", BATCHED_TYPE.encode())], json.encode_batch(events)
