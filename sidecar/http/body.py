"""Reading a request's body, with a limit."""

from __future__ import annotations

from starlette.types import Receive, Scope

from mesh.errors import MeshError


class BodyTooLarge(MeshError):
    """The body is longer than `limit` bytes. The status differs per route; the text has Dapr's `stream too large`."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"stream too large: the body is longer than {limit} bytes (--max-body-size)")
        self.limit = limit


class ClientGone(MeshError):
    """The client hung up before its request was complete. Nobody is left to answer."""

    def __init__(self) -> None:
        super().__init__("the client closed the connection before its request was complete")


async def read_body(receive: Receive, limit: int, scope: Scope) -> bytes:
    """The whole body, of at most `limit` bytes; `limit` 0 is no limit (Dapr: `--max-body-size 0`).

    Raises `BodyTooLarge` as soon as `Content-Length` or what has come exceeds the limit (the rest is then not
    read: our server closes the connection with the answer), and `ClientGone`.
    """
    if limit:
        for name, value in scope["headers"]:
            if name == b"content-length":
                if int(value) > limit:
                    raise BodyTooLarge(limit)
                break
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientGone
    body: bytes = message.get("body", b"")
    if 0 < limit < len(body):
        raise BodyTooLarge(limit)
    if not message.get("more_body", False):
        return body
    pieces = [body]
    size = len(body)
    while message.get("more_body", False):
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        body = message.get("body", b"")
        size += len(body)
        if 0 < limit < size:
            raise BodyTooLarge(limit)
        pieces.append(body)
    return b"".join(pieces)
