"""Output bindings, by Dapr's route."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from starlette.types import Receive, Scope, Send

from mesh.bindings import headers
from mesh.bindings.output import OutputFailed, Outputs
from mesh.errors import ApiError, Code
from mesh.ports.bindings import Invocation
from mesh.trace import InvalidBaggage
from sidecar.api.plain_json import Malformed, read_object
from sidecar.api.request import Context, context
from sidecar.http.body import read_body
from sidecar.http.responses import Headers, error_response, send_response
from sidecar.http.routing import Router

JSON = (b"content-type", b"application/json")


_ABSENT = msgspec.Raw(b"")


class _Request(msgspec.Struct, forbid_unknown_fields=True):
    operation: str | None = None
    data: msgspec.Raw = _ABSENT
    metadata: dict[str, str] | None = None


class BindingsApi:
    def __init__(self, outputs: Outputs, max_body_size: int) -> None:
        """`max_body_size` in bytes; 0 is no limit."""
        self._outputs = outputs
        self._max_body_size = max_body_size

    def add_to(self, router: Router) -> None:
        router.add(("POST", "PUT"), "/v1.0/bindings/{binding}", self.invoke, group="v1.0/bindings")

    async def invoke(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Dapr: the answer's metadata are headers `metadata.<key>`, of a failure too."""
        body = await read_body(receive, self._max_body_size, scope)
        try:
            caller = context(scope)
            request = read_object(_Request, body)
        except InvalidBaggage as error:
            raise ApiError(Code.MALFORMED_REQUEST, str(error)) from None
        except Malformed as error:
            raise ApiError(Code.MALFORMED_REQUEST, f"failed deserializing HTTP body: {error}") from None
        echo = caller.echo()
        invocation = Invocation(
            operation=request.operation or "",
            data=_compact(request.data),
            metadata={**(request.metadata or {}), **_trace(caller)},
        )
        try:
            result = await self._outputs.invoke(scope["path_params"]["binding"], invocation)
        except OutputFailed as error:
            status, own, text = error_response(error)
            await send_response(send, status, own + _headers(error.shown) + echo, text)
            return
        shown = _headers(result.metadata) + echo
        if result.data is None:
            await send_response(send, 204, shown, b"")
        else:
            length = (b"content-length", b"%d" % len(result.data))
            await send_response(send, 200, [JSON, length, *shown], result.data)


def _compact(value: msgspec.Raw) -> bytes:
    """Dapr writes the value anew; here numbers and the order of members stay as they are."""
    return b"" if value is _ABSENT else msgspec.json.format(bytes(value), indent=-1)


def _trace(caller: Context) -> dict[str, str]:
    """Dapr: the component is told of the trace that it is called in."""
    return {name.decode(): value.decode("latin-1") for name, value in caller.echo()}


def _headers(metadata: Mapping[str, str]) -> Headers:
    return [(f"metadata.{name}".lower().encode(), value.encode()) for name, value in headers.safe(metadata)]
