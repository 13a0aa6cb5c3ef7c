"""Calls and their answers as Kafka records, and the frames between the two peers of a call.

A call and its answer are CloudEvents in binary mode. What HTTP has beyond data stands in one header as a JSON array, as
on NATS. `docs/protocol.md` has it all for outsiders.
"""

from __future__ import annotations

from typing import NamedTuple

from brokers import call_head
from brokers.kafka.connection import Headers
from mesh import addressing
from mesh.errors import MessageTooLarge
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
    event_type = addressing.call_types(target.app_id)[0]
    return _encode(REQUEST, call_head.encode_request(request), event_type, request.headers, call, streamed)


def encode_response(response: Response, call: str, source: Peer, *, streamed: bool) -> list[tuple[str, bytes]]:
    """Raises `MessageTooLarge`."""
    event_type = addressing.call_types(source.app_id)[1]
    head = call_head.encode_response(response)
    encoded = _encode(RESPONSE, head, event_type, response.headers, call, streamed)
    return [*encoded, ("ce_source", source.app_id.encode())]


def _encode(
    name: str, head: bytes, event_type: str, headers: HeaderList, call: str, streamed: bool
) -> list[tuple[str, bytes]]:
    if len(head) > MAX_HEAD:
        raise MessageTooLarge(len(head), MAX_HEAD, None)
    encoded = [
        (CALL, call.encode()),
        (name, head),
        ("ce_specversion", b"1.0"),
        ("ce_id", random_id().encode()),
        ("ce_type", event_type.encode()),
    ]
    content_type = call_head.data_content_type(headers)
    if content_type is not None:
        encoded.append(("content-type", content_type.encode()))
    if streamed:
        encoded.append((STREAM, b"1"))
    return encoded


def decode_request(headers: dict[str, bytes], body: Body, caller: Peer) -> Request:
    """A record without `meshwire-request` is `POST /`. Raises `Malformed`."""
    encoded = headers.get(REQUEST)
    if encoded is None:
        return Request(method="POST", path="/", headers=_content_type(headers), body=body, caller=caller)
    return call_head.decode_request(encoded, body, caller)


def decode_response(headers: dict[str, bytes], body: Body) -> Response:
    """A record without `meshwire-response` is the data of a 200. Raises `Malformed`."""
    encoded = headers.get(RESPONSE)
    if encoded is None:
        return Response(status=200, headers=_content_type(headers), body=body)
    return call_head.decode_response(encoded, body)


def _content_type(headers: dict[str, bytes]) -> HeaderList:
    value = headers.get("content-type")
    return () if value is None else ((b"content-type", value),)


def read(headers: Headers) -> dict[str, bytes]:
    """The headers of a record by name; of those that are repeated, the last."""
    return {name: value for name, value in headers if value is not None}
