"""What HTTP has beyond data, of a call and of its answer, as one line of JSON in ASCII: the same on every broker.

Bytes of headers are the characters of the same numbers. `docs/protocol.md` has it for outsiders. Guarded by
`benchmarks/`.
"""

from __future__ import annotations

import json
from functools import lru_cache

import msgspec

from mesh.codec import attributes as rules
from mesh.errors import InvalidEvent, MeshError
from mesh.ports import Body, HeaderList, Peer, Request, Response

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
_encode_json = msgspec.json.encode


class Malformed(MeshError):
    """A message on the address of a call is neither a call nor an answer."""


def encode_request(request: Request) -> bytes:
    return _encode([request.method, request.path, _texts(request.headers)])


def encode_response(response: Response) -> bytes:
    head: list[object] = [response.status, _texts(response.headers)]
    return _encode([*head, _texts(response.trailers)] if response.trailers else head)


def _encode(head: list[object]) -> bytes:
    encoded = _encode_json(head)
    if encoded.isascii():
        return encoded
    return json.dumps(head, separators=(",", ":")).encode()  # odd bytes, each of them a character here


def decode_request(encoded: bytes, body: Body, caller: Peer) -> Request:
    """Raises `Malformed`."""
    try:
        head = _request_head(encoded)
        return Request(method=head.method, path=head.path, headers=_bytes(head.headers), body=body, caller=caller)
    except (msgspec.MsgspecError, UnicodeError) as fault:
        raise Malformed(f"the call cannot be read: {fault}") from None


def decode_response(encoded: bytes, body: Body) -> Response:
    """Raises `Malformed`."""
    try:
        head = _response_head(encoded)
        if not 100 <= head.status <= 999:
            raise Malformed(f"the answer cannot be read: {head.status} is no status")
        return Response(status=head.status, headers=_bytes(head.headers), body=body, trailers=_bytes(head.trailers))
    except (msgspec.MsgspecError, UnicodeError) as fault:
        raise Malformed(f"the answer cannot be read: {fault}") from None


def data_content_type(headers: HeaderList) -> str | None:
    """The media type of the data; `None` where there is none, or none that is one, as HTTP peers may send."""
    for name, value in headers:
        if name == b"content-type" or name.lower() == b"content-type":
            return _media_type(value)
    return None


@lru_cache(maxsize=256)
def _media_type(value: bytes) -> str | None:
    text = value.decode("latin-1")
    try:
        rules.check("datacontenttype", text)
    except InvalidEvent:
        return None
    return text


def _texts(headers: HeaderList) -> _Pairs:
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]


def _bytes(pairs: _Pairs) -> HeaderList:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in pairs]
