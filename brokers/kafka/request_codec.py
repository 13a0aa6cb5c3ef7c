"""Calls and their answers as Kafka records, and the frames between the two peers of a call.

A call and its answer are CloudEvents in binary mode. What HTTP has beyond data stands in one header as a JSON array, as
on NATS. `docs/protocol.md` has it all for outsiders.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from brokers.kafka.connection import Headers
from mesh import addressing
from mesh.codec import attributes as rules
from mesh.errors import InvalidEvent, MeshError, MessageTooLarge, clip
from mesh.ids import random_id
from mesh.ports import Body, HeaderList, Peer, Request, Response

MAX_HEAD = 128 * 1024
"""Bytes of the header that carries those of HTTP, at most: it never counts against a stream's window."""
MAX_ERROR_TEXT = 1_024

CALL = "correlation_id"
"""The id of the call: in all that is said about it."""
TO = "meshwire-to"
FROM = "meshwire-from"
CALLER = "meshwire-caller"
NAME = "meshwire-instance"
REPLY = "meshwire-reply-partition"
REPLY_TOPIC = "meshwire-reply-topic"
REQUEST = "meshwire-request"
RESPONSE = "meshwire-response"
STREAM = "meshwire-stream"
FRAME = "meshwire-frame"

_Pairs = list[tuple[str, str]]


class _RequestHead(msgspec.Struct, array_like=True):
    method: str
    path: str
    headers: _Pairs = []


class _ResponseHead(msgspec.Struct, array_like=True):
    status: int
    headers: _Pairs = []
    trailers: _Pairs = []


_request_head = msgspec.json.Decoder(_RequestHead).decode
_response_head = msgspec.json.Decoder(_ResponseHead).decode


class Malformed(MeshError):
    """A record among calls is neither a call nor an answer."""


class Frame(NamedTuple):
    """A record about a call, which is no event: `beat`, `credit`, `chunk`, `end`, `error`, `refused` or `cancel`."""

    kind: str
    number: int


def frame(kind: str, call: str = "", number: int | None = None) -> list[tuple[str, bytes]]:
    """The headers of a frame. A `beat` has the ids of its calls as value instead."""
    text = kind if number is None else f"{kind} {number}"
    headers = [(FRAME, text.encode())]
    return [*headers, (CALL, call.encode())] if call else headers


def error_value(text: str) -> bytes:
    return text[:MAX_ERROR_TEXT].encode("utf-8", "replace")


def parse_frame(headers: dict[str, bytes]) -> Frame | None:
    """`None` for what is no frame. A number that is none is -1."""
    text = headers.get(FRAME)
    if text is None:
        return None
    kind, _, number = text.decode("latin-1").partition(" ")
    return Frame(kind, int(number) if number.isascii() and number.isdigit() and len(number) < 12 else -1)


def encode_request(request: Request, target: Peer, call: str, *, streamed: bool) -> list[tuple[str, bytes]]:
    """Raises `MessageTooLarge`."""
    pairs = _texts(request.headers)
    head: list[object] = [request.method, request.path, pairs]
    return _encode(REQUEST, addressing.call_types(target.app_id)[0], head, pairs, call, streamed)


def encode_response(response: Response, call: str, source: Peer, *, streamed: bool) -> list[tuple[str, bytes]]:
    """Raises `MessageTooLarge`."""
    pairs = _texts(response.headers)
    head = [response.status, pairs, _texts(response.trailers)] if response.trailers else [response.status, pairs]
    encoded = _encode(RESPONSE, addressing.call_types(source.app_id)[1], head, pairs, call, streamed)
    return [*encoded, ("ce_source", source.app_id.encode())]


def _encode(
    name: str, event_type: str, head: list[object], pairs: _Pairs, call: str, streamed: bool
) -> list[tuple[str, bytes]]:
    encoded = msgspec.json.encode(head)
    if len(encoded) > MAX_HEAD:
        raise MessageTooLarge(len(encoded), MAX_HEAD)
    headers = [
        (CALL, call.encode()),
        (name, encoded),
        ("ce_specversion", b"1.0"),
        ("ce_id", random_id().encode()),
        ("ce_type", event_type.encode()),
    ]
    for key, value in pairs:
        if key.lower() == "content-type":
            headers += _data_content_type(value)
            break
    if streamed:
        headers.append((STREAM, b"1"))
    return headers


def _data_content_type(value: str) -> list[tuple[str, bytes]]:
    """Of a `Content-Type`; nothing for one that is no media type, as HTTP peers may send."""
    try:
        rules.check("datacontenttype", value)
    except InvalidEvent:
        return []
    return [("content-type", value.encode())]


def decode_request(headers: dict[str, bytes], body: Body, caller: Peer) -> Request:
    """A record without `meshwire-request` is `POST /`. Raises `Malformed`."""
    encoded = headers.get(REQUEST)
    if encoded is None:
        return Request(method="POST", path="/", headers=_content_type(headers), body=body, caller=caller)
    try:
        head = _request_head(encoded)
        return Request(method=head.method, path=head.path, headers=_bytes(head.headers), body=body, caller=caller)
    except (msgspec.MsgspecError, UnicodeError) as fault:
        raise Malformed(f"the call cannot be read: {fault}") from None


def decode_response(headers: dict[str, bytes], body: Body) -> Response:
    """A record without `meshwire-response` is the data of a 200. Raises `Malformed`."""
    encoded = headers.get(RESPONSE)
    if encoded is None:
        return Response(status=200, headers=_content_type(headers), body=body)
    try:
        head = _response_head(encoded)
        if not 100 <= head.status <= 999:
            raise Malformed(f"the answer cannot be read: {clip(head.status)} is no status")
        return Response(status=head.status, headers=_bytes(head.headers), body=body, trailers=_bytes(head.trailers))
    except (msgspec.MsgspecError, UnicodeError) as fault:
        raise Malformed(f"the answer cannot be read: {fault}") from None


def _content_type(headers: dict[str, bytes]) -> HeaderList:
    value = headers.get("content-type")
    return () if value is None else ((b"content-type", value),)


def _texts(headers: HeaderList) -> _Pairs:
    """Bytes as the characters of the same numbers."""
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]


def _bytes(pairs: Iterable[tuple[str, str]]) -> HeaderList:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in pairs]


def read(headers: Headers) -> dict[str, bytes]:
    """The headers of a record by name; of those that are repeated, the last."""
    return {name: value for name, value in headers if value is not None}
