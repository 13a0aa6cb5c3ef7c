"""The callee's half of an invocation: a call that came over the broker goes to the app beside this sidecar."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from mesh import spans, trace
from mesh.errors import AppError, Code, MeshError
from mesh.invocation import headers
from mesh.ports import AppChannel, Peer, Request, Response
from mesh.telemetry import NO_TRACER, SILENCE, Telemetry
from mesh.trace import TraceContext

Permits = Callable[[Peer | None, str, str], str | None]
"""May this caller call this path with this verb? `None`, or why not."""


class Refused(MeshError):
    """The app was not called, or gave no answer. `str()` is the cause, as Dapr's error text ends with it."""

    def __init__(self, cause: str, status: int = 500) -> None:
        super().__init__(cause)
        self.status = status


class Callee:
    """Answers calls to `me` by calling the app.

    The app learns who calls from the broker's address, never from a header: `dapr-caller-app-id`,
    `dapr-caller-namespace` and `dapr-callee-app-id` are this sidecar's (Dapr's names). What keeps the app from
    answering is told to the caller in a response of Dapr's form, so that clients without a sidecar understand it too.
    """

    def __init__(
        self,
        me: Peer,
        channel: AppChannel | None,
        *,
        is_healthy: Callable[[], bool] = lambda: True,
        permits: Permits = lambda _caller, _path, _verb: None,
        telemetry: Telemetry = SILENCE,
    ) -> None:
        """`channel` is `None` when the app has no port."""
        self._me = me
        self._channel = channel
        self._is_healthy = is_healthy
        self._permits = permits
        self._tracer = telemetry.tracer
        self._calls = telemetry.meter.calls

    async def answer(self, request: Request) -> Response:
        """Answer a call that came over the broker: a `RequestHandler`. Raises nothing but cancellation."""
        caller = request.caller.app_id if request.caller else ""
        self._calls.received(caller)
        path = request.path.partition("?")[0]
        with spans.called(self._tracer, self._me.app_id, request.method, path, trace.extract(request.headers)) as span:
            try:
                if denied := self._permits(request.caller, request.path, request.method):
                    raise Refused(denied, 403)
                if self._tracer is not NO_TRACER and span.context is not None:
                    request = _with_trace(request, span.context)
                response = await self._call(request, "app channel is not initialized")
            except Refused as refused:
                if not isinstance(request.body, bytes):
                    await request.body.aclose()
                response = refusal(self._me.app_id, refused)
            spans.answered(span, response.status)
        self._calls.replied(caller, response.status)
        return response

    async def answer_own(self, request: Request) -> Response:
        """Answer the app's call to itself: no broker, no access policy. Raises `Refused`."""
        return await self._call(request, "cannot invoke local endpoint: app channel not initialized")

    async def _call(self, request: Request, no_channel: str) -> Response:
        if self._channel is None:
            raise Refused(no_channel)
        if not self._is_healthy():
            raise Refused("app is not in a healthy state")
        caller = request.caller or self._me
        own = (
            ("dapr-caller-app-id", caller.app_id),
            ("dapr-callee-app-id", self._me.app_id),
            ("dapr-caller-namespace", caller.namespace),
        )
        try:
            response = await self._channel.call(request, own)
        except AppError as error:
            raise Refused(f"error invoking app channel: {error}") from error
        except MeshError as error:
            raise Refused(str(error)) from error
        try:
            kept = headers.of_response(response.headers)
        except headers.InvalidHeader as error:
            if not isinstance(response.body, bytes):
                await response.body.aclose()
            raise Refused(f"error invoking app channel: {error}") from error
        return Response(status=response.status, headers=kept, body=response.body, trailers=response.trailers)


def _with_trace(request: Request, context: TraceContext) -> Request:
    """The request with the callee's span for the app to go on from."""
    kept = [header for header in request.headers if header[0] not in (b"traceparent", b"tracestate")]
    return Request(
        method=request.method,
        path=request.path,
        headers=kept + headers.trace_headers(context),
        body=request.body,
        caller=request.caller,
    )


def refusal(target: str, refused: Refused) -> Response:
    """A refusal as the response that the caller's client gets (Dapr: `ERR_DIRECT_INVOKE`)."""
    message = f"failed to invoke, id: {target}, err: {refused}"
    body = msgspec.json.encode({"errorCode": Code.DIRECT_INVOKE.error_code, "message": message})
    return Response(status=refused.status, headers=((b"content-type", b"application/json"),), body=body)
