"""Service invocation: whatever no other route takes, and names an app to call (Dapr).

Hot; guarded by `benchmarks/invoke.py`.
"""

from __future__ import annotations

import asyncio
import logging
from types import TracebackType

from starlette.types import Receive, Scope, Send

from mesh.errors import ApiError, Code, MeshError, clip
from mesh.invocation import Caller, InvocationFailed
from mesh.invocation import headers as rules
from mesh.invocation import target as targets
from mesh.ports import BodyStream, HeaderList, Request, Response
from mesh.trace import InvalidBaggage
from sidecar.api.request import Context, context
from sidecar.http.body import BodyTooLarge, ClientGone, read_body
from sidecar.http.responses import Headers, send_response, send_text

logger = logging.getLogger("meshwire.http")

GROUP, TEMPLATE = "v1/invoke", "/v1.0/invoke/{id}/method/{method:path}"
"""What the API lists call it: refused there, unknown paths are a plain 404."""

WHOLE = 128 * 1024
"""Request bodies that announce no more bytes than this are read whole, so that the call can be repeated."""
PATIENCE = 0.05
"""Seconds until we begin to listen whether the client is still there: most calls are over sooner."""

_FINAL = range(200, 600)
_NO_TRAILERS = (b"content-length", b"content-type", b"content-encoding", b"set-cookie", b"cache-control", b"location")
"""What must not come after the body (RFC 9110, 6.5.1)."""
_WITHOUT_BODY = (204, 304)


class InvokeApi:
    """The fallback of the router."""

    def __init__(self, caller: Caller, max_body_size: int) -> None:
        """`max_body_size` in bytes; 0 is no limit."""
        self._caller = caller
        self._max_body_size = max_body_size

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = scope["headers"]
        named = targets.named(headers, scope["raw_path"])
        if named is None:
            raise ApiError(
                Code.DIRECT_INVOKE, "failed getting app id either from the URL path or the header dapr-app-id"
            )
        try:
            asked = context(scope)
        except InvalidBaggage as error:
            await send_text(send, 400, str(error))
            return
        upload: RequestBody | None = None
        try:
            path = targets.method_path(named.method)
            body, length = await self._body(scope, receive)
            forwarded = rules.of_request(headers)
            if not isinstance(body, bytes):
                upload = body
                if length is not None:
                    forwarded.append((b"content-length", b"%d" % length))
            if asked.baggage is not None:
                forwarded.append((b"baggage", asked.baggage.encode("latin-1")))
            query = scope["query_string"]
            if query:
                path = f"{path}?{query.decode('latin-1')}"
            request = Request(method=scope["method"], path=path, headers=forwarded, body=body)
            with Attendance(receive, upload) as client:
                response = await self._caller.invoke(named.target, request, asked.trace)
                await _respond(send, scope, client, named.target, asked, response)
        except ApiError:
            raise
        except MeshError as error:
            raise _failure(named.target, upload, error) from error

    async def _body(self, scope: Scope, receive: Receive) -> tuple[bytes | RequestBody, int | None]:
        """The request's body, and its length when that was announced. Raises `BodyTooLarge` and `ClientGone`."""
        length = None
        chunked = False
        for name, value in scope["headers"]:
            if name == b"content-length":
                length = int(value)
            elif name == b"transfer-encoding":
                chunked = True
        if length is None and not chunked:
            return b"", 0
        if length is not None:
            if 0 < self._max_body_size < length:
                raise BodyTooLarge(self._max_body_size)
            if length <= WHOLE:
                return await read_body(receive, 0, scope), length
        return RequestBody(receive, self._max_body_size), length


class RequestBody:
    """The pieces of a request's body, read from the client no faster than they are taken."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive = receive
        self._limit = limit
        self._size = 0
        self._more = True
        self.over = asyncio.Event()
        """Nobody reads any more."""
        self.fault: BodyTooLarge | ClientGone | None = None
        """Why the body was cut short."""

    def __aiter__(self) -> BodyStream:
        return self

    async def __anext__(self) -> bytes:
        if self.fault is not None:
            raise self.fault
        if not self._more or self.over.is_set():
            raise StopAsyncIteration
        try:
            message = await self._receive()
        except asyncio.CancelledError:
            self.over.set()
            raise
        if message["type"] == "http.disconnect":
            raise self._cut(ClientGone())
        body: bytes = message.get("body", b"")
        self._size += len(body)
        if 0 < self._limit < self._size:
            raise self._cut(BodyTooLarge(self._limit))
        self._more = message.get("more_body", False)
        if not self._more:
            self.over.set()
        return body

    def _cut(self, fault: BodyTooLarge | ClientGone) -> BodyTooLarge | ClientGone:
        self.fault = fault
        self.over.set()
        return fault

    async def aclose(self) -> None:
        self.over.set()


class Attendance:
    """Cancels the block when the client hangs up meanwhile, and raises `ClientGone` for it.

    ASGI tells of it through `receive` only, which the body is read from, too: we listen when that is over.
    """

    def __init__(self, receive: Receive, upload: RequestBody | None) -> None:
        """`upload` is the body that is still read, by somebody else."""
        self._receive = receive
        self._upload = upload
        self._gone = False
        self._listener: asyncio.Task[None] | None = None

    def __enter__(self) -> Attendance:
        self._loop = asyncio.get_running_loop()
        self._work = asyncio.current_task()
        self._timer = self._loop.call_later(PATIENCE, self.listen)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        if self._listener is not None:
            self._listener.cancel()
            if self._gone and self._work is not None and self._work.uncancel() == 0 and kind is asyncio.CancelledError:
                raise ClientGone from None

    def listen(self) -> None:
        """Begin now."""
        if self._listener is None:
            self._listener = self._loop.create_task(self._listen(), name="attendance of the client")

    async def _listen(self) -> None:
        if self._upload is not None:
            await self._upload.over.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        if self._work is not None:
            self._work.cancel()


def _failure(target: str, upload: RequestBody | None, error: MeshError) -> MeshError:
    """What the client is told."""
    if upload is not None and upload.fault is not None:
        error = upload.fault  # the cause of whatever else went wrong
    if isinstance(error, ClientGone):
        return error
    return ApiError(Code.DIRECT_INVOKE, f"failed to invoke, id: {target}, err: {error}", status=500)


async def _respond(
    send: Send, scope: Scope, client: Attendance, target: str, asked: Context, response: Response
) -> None:
    body = response.body
    try:
        if response.status not in _FINAL:
            raise InvocationFailed(f"the app answered with the status {response.status}, which HTTP has no use for")
        bodiless = response.status in _WITHOUT_BODY or scope["method"] == "HEAD"
        headers = _headers(response, asked, bodiless=bodiless)
        trailers = rules.of_response(response.trailers) if response.trailers and _takes_trailers(scope) else ()
    except MeshError as error:
        if not isinstance(body, bytes):
            await body.aclose()
        raise _failure(target, None, error) from error
    if isinstance(body, bytes):
        if trailers and not bodiless:
            await _send_with_trailers(send, response.status, headers, body, trailers)
        else:
            await send_response(send, response.status, headers, b"" if bodiless else body)
        return
    client.listen()
    try:
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        if not bodiless:
            async for piece in body:
                if piece:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    except MeshError as error:
        # What came must not look whole: an error after the head closes the connection.
        logger.warning("the answer of %s broke off: %s", clip(target), error)
        raise _failure(target, None, error) from error
    finally:
        await body.aclose()


def _takes_trailers(scope: Scope) -> bool:
    """Whether the client says so (RFC 9110, 10.1.4)."""
    return scope["http_version"] == "1.1" and any(
        name == b"te" and b"trailers" in value.lower() for name, value in scope["headers"]
    )


async def _send_with_trailers(send: Send, status: int, headers: Headers, body: bytes, trailers: HeaderList) -> None:
    headers = [header for header in headers if header[0] != b"content-length"]
    await send({"type": "http.response.start", "status": status, "headers": headers, "trailers": True})
    await send({"type": "http.response.body", "body": body})
    allowed = [trailer for trailer in trailers if trailer[0] not in _NO_TRAILERS]
    await send({"type": "http.response.trailers", "headers": allowed})


def _headers(response: Response, asked: Context, *, bodiless: bool) -> Headers:
    """The headers of the answer. Raises `InvalidHeader`."""
    passed = rules.of_response(response.headers)
    headers = [header for header in passed if header[0] != b"content-length"]
    if isinstance(response.body, bytes) and not bodiless:
        length: int | None = len(response.body)
    else:
        length = rules.content_length(passed)
    if length is not None and response.status != 204:
        headers.append((b"content-length", b"%d" % length))
    if response.status >= 400 and not _has(headers, b"content-type"):
        headers.append((b"content-type", b"application/json"))  # Dapr
    if asked.trace is not None or asked.baggage is not None:
        headers += [header for header in asked.echo() if not _has(passed, header[0])]
    return headers


def _has(headers: Headers, wanted: bytes) -> bool:
    return any(name == wanted for name, _ in headers)
