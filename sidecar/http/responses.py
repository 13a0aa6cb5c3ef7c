"""Answers and errors as Dapr writes them: the one place where an `ApiError` becomes bytes."""

from __future__ import annotations

import logging
from collections.abc import Awaitable

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mesh.errors import ApiError, Code, MeshError
from sidecar.http.body import BodyTooLarge, ClientGone

log = logging.getLogger("meshwire.http")

Headers = list[tuple[bytes, bytes]]

_encode = msgspec.json.Encoder().encode
_PREFIX = "type.googleapis.com/google.rpc."


class ResponseAborted(MeshError):
    """The app failed after its response had started: the server closes the connection. It is logged already."""


def go_json(value: object) -> bytes:
    """`value` as compact JSON, with `<`, `>`, `&` and the line separators escaped as Go's encoder does."""
    text = _encode(value)
    if b"<" in text or b">" in text or b"&" in text or b"\xe2\x80" in text:
        for raw, escaped in (
            (b"<", rb"\u003c"),
            (b">", rb"\u003e"),
            (b"&", rb"\u0026"),
            (b"\xe2\x80\xa8", rb"\u2028"),
            (b"\xe2\x80\xa9", rb"\u2029"),
        ):
            text = text.replace(raw, escaped)  # none of them occurs outside of strings
    return text


def error_response(error: ApiError) -> tuple[int, Headers, bytes]:
    """Status, headers and body of an error (Dapr: errors of the HTTP API).

    A standardised error has `details`: one of its own, `ResourceInfo` where a resource is known, then `ErrorInfo`.
    """
    content: dict[str, object] = {"errorCode": error.code.error_code, "message": error.message}
    if error.code.reason is not None:
        details: list[dict[str, object]] = []
        if error.detail is not None:
            name, members = error.detail
            details.append({"@type": _PREFIX + name, **members})
        if error.resource is not None:
            kind, name = error.resource
            details.append(
                {
                    "@type": _PREFIX + "ResourceInfo",
                    "description": error.message,
                    "owner": "",
                    "resource_name": name,
                    "resource_type": kind,
                }
            )
        details.append(
            {
                "@type": _PREFIX + "ErrorInfo",
                "domain": "dapr.io",
                "metadata": None if error.metadata is None else dict(error.metadata),
                "reason": error.code.reason,
            }
        )
        content["details"] = details
    if error.extra:
        content.update(error.extra)
    body = go_json(content)
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    return error.status, headers, body


class WatchedSend:
    """A `send` that notes the answer's status (0 before there is one) and how many bytes its body has."""

    __slots__ = ("_send", "size", "status")

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0
        self.size = 0

    def __call__(self, message: Message) -> Awaitable[None]:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        else:
            self.size += len(message.get("body", b""))
        return self._send(message)


async def send_response(send: Send, status: int, headers: Headers, body: bytes) -> None:
    """Send a whole response. `headers` are sent as they are: they state the body's length."""
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def send_text(send: Send, status: int, text: str, headers: Headers | None = None) -> None:
    """Send plain text, as Go's `http.Error` does for what is no JSON error in Dapr. `headers` come on top."""
    body = text.encode()
    own = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(body))]
    await send_response(send, status, own + (headers or []), body)


async def send_error(send: Send, error: ApiError) -> None:
    await send_response(send, *error_response(error))


class CatchErrors:
    """ASGI wrapper: turns what the app raises into Dapr's error responses.

    An `ApiError` becomes its response, `BodyTooLarge` `400 ERR_BODY_READ` (routes with a status of their own for
    it translate it themselves), `ClientGone` nothing. Anything else is logged with its traceback, once, and
    answered `500 ERROR` without internals. After the response has started `ResponseAborted` is raised, on which
    the server closes the connection.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        def watched(message: Message) -> Awaitable[None]:
            nonlocal started
            started = True
            return send(message)

        try:
            await self.app(scope, receive, watched)
            return
        except ApiError as error:
            refusal = error
        except BodyTooLarge as error:
            refusal = ApiError(Code.BODY_READ, f"failed to read request body: {error}")
        except ClientGone:
            raise ResponseAborted("the client is gone") from None
        except Exception:
            log.exception("%s %s failed", scope["method"], scope["path"])
            refusal = ApiError(Code.INTERNAL, "internal error; the log of the sidecar says more")
        if started:
            raise ResponseAborted(refusal.message)
        await send_error(send, refusal)
