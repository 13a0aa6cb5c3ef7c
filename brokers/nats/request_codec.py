"""Calls and their answers as NATS messages, and the frames between the two peers of a call.

A call and its answer are CloudEvents in binary mode. What HTTP has beyond data stands in one header,
`Meshwire-Request` or `Meshwire-Response`, as a JSON array in ASCII: NATS merges headers of the same name, and JSON
leaves no way to break out of the line. The names differ since nats-py's `respond` repeats the request's headers.
`docs/protocol.md` has it all for outsiders. Guarded by `benchmarks/`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from brokers import call_head
from brokers.call_head import Malformed as Malformed
from brokers.nats import codec
from mesh import addressing
from mesh.codec import header
from mesh.errors import InvalidEvent, MessageTooLarge
from mesh.ids import random_id
from mesh.ports import Body, HeaderList, Peer, Request, Response

MAX_HEADER_BLOCK = 128 * 1024
"""Bytes of a message's header block, at most: it never counts against a stream's window."""
MAX_ERROR_TEXT = 1_024

NO_RESPONDERS = b"NATS/1.0 503"
BUSY = NO_RESPONDERS + b" Busy\r\n\r\n"
"""Too many calls wait here. To a stock client it is what the server itself says when nobody listens."""

_BEGIN = b"NATS/1.0\r\n"
_REQUEST = b"\r\nMeshwire-Request:"
_RESPONSE = b"\r\nMeshwire-Response:"
_STREAM = b"\r\nMeshwire-Stream:"
_FRAME = _BEGIN + b"Meshwire-Frame: "


class Frame(NamedTuple):
    """A message about a call, which is no event: `beat`, `credit`, `chunk`, `end`, `error` or `cancel`."""

    kind: bytes
    value: bytes


BEAT = _FRAME + b"beat\r\n\r\n"
CANCEL = _FRAME + b"cancel\r\n\r\n"


def credit(amount: int) -> bytes:
    return _FRAME + b"credit %d\r\n\r\n" % amount


def chunk(number: int) -> bytes:
    return _FRAME + b"chunk %d\r\n\r\n" % number


def end(count: int) -> bytes:
    """The body is whole: it had `count` chunks."""
    return _FRAME + b"end %d\r\n\r\n" % count


def error(text: str) -> bytes:
    return _FRAME + b"error %b\r\n\r\n" % header.encode(text[:MAX_ERROR_TEXT]).encode()


def error_text(frame: Frame) -> str:
    try:
        return header.decode(frame.value, "error")
    except InvalidEvent:
        return ascii(frame.value)


def parse_frame(block: bytes) -> Frame | None:
    """`None` for a block that is no frame."""
    if not block.startswith(_FRAME):
        return None
    kind, _, value = block[len(_FRAME) : block.find(b"\r\n", len(_FRAME))].partition(b" ")
    return Frame(kind, value)


def is_streamed(block: bytes) -> bool:
    """Whether the body of this call or answer comes in frames of its own."""
    return _STREAM in block


def encode_request(request: Request, caller: Peer, *, streamed: bool, target: str = "") -> bytes:
    """`target` is the name that is called. Raises `MessageTooLarge`."""
    head = call_head.encode_request(request)
    return _encode(b"Request", addressing.call_types(target)[0], head, request.headers, caller, streamed)


def encode_response(response: Response, source: Peer, *, streamed: bool) -> bytes:
    """Raises `MessageTooLarge`."""
    head = call_head.encode_response(response)
    return _encode(b"Response", addressing.call_types(source.app_id)[1], head, response.headers, source, streamed)


def _encode(kind: bytes, event_type: str, head: bytes, headers: HeaderList, source: Peer, streamed: bool) -> bytes:
    extra = b"Meshwire-Stream: 1\r\n" if streamed else b""
    content_type = call_head.data_content_type(headers)
    if content_type is not None:
        extra += b"ce-datacontenttype: %b\r\n" % header.encode(content_type).encode()
    block = b"NATS/1.0\r\nMeshwire-%b: %b\r\n%bce-id: %b\r\n%b\r\n" % (
        kind,
        head,
        _event_lines(event_type, source.app_id),
        random_id().encode(),
        extra,
    )
    if len(block) > MAX_HEADER_BLOCK:
        raise MessageTooLarge(len(block), MAX_HEADER_BLOCK)
    return block


@lru_cache(maxsize=256)
def _event_lines(event_type: str, source: str) -> bytes:
    """The header lines that are the same for all calls, or answers, of one app."""
    return f"ce-specversion: 1.0\r\nce-type: {event_type}\r\nce-source: {header.encode(source)}\r\n".encode()


def decode_request(block: bytes, body: Body, caller: Peer) -> Request:
    """A message without `Meshwire-Request` is `POST /`. Raises `Malformed`."""
    encoded = _head(_REQUEST, block)
    if encoded is None:
        return Request(method="POST", path="/", headers=_content_type(block), body=body, caller=caller)
    return call_head.decode_request(encoded, body, caller)


def decode_response(block: bytes, body: Body) -> Response:
    """A message without `Meshwire-Response` is the data of a 200. Raises `Malformed`."""
    encoded = _head(_RESPONSE, block)
    if encoded is None:
        repeats_request = _REQUEST in block
        return Response(status=200, headers=() if repeats_request else _content_type(block), body=body)
    return call_head.decode_response(encoded, body)


def _head(name: bytes, block: bytes) -> bytes | None:
    """The value of a header. A line break ends a header, so that no name can stand in another's value."""
    start = block.find(name)
    if start < 0:
        return None
    start += len(name)
    return block[start : block.find(b"\r\n", start)]


def _content_type(block: bytes) -> HeaderList:
    """Of a message from a program that speaks plain NATS: what its event says, or its `Content-Type`."""
    headers = codec.parse_block(block)
    value = headers.get("ce-datacontenttype")
    if value is not None and headers.get("content-type", "")[:23].lower() != "application/cloudevents":
        try:
            value = header.decode(value.encode(), "datacontenttype")
        except InvalidEvent as fault:
            raise Malformed(f"the message is no CloudEvent: {fault}") from None
    else:
        value = headers.get("content-type")
    return () if value is None else ((b"content-type", value.encode()),)
