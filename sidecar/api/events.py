"""The CloudEvents ingress: `POST /mesh/v1/events/{pubsub}/{topic}`, strict where Dapr's publish route is lenient.

Binary, structured and batched mode (CloudEvents HTTP binding 3); 202 when every event is stored, never before.
`OPTIONS` answers the handshake of the CloudEvents WebHook text, 4.
"""

from __future__ import annotations

from starlette.types import Receive, Scope, Send

from mesh.codec import http as codec
from mesh.codec.http import ContentMode
from mesh.errors import ApiError, Code, InvalidBatch, InvalidEvent
from mesh.ports import Mode, Topic
from mesh.pubsub import PubSub
from mesh.trace import InvalidBaggage
from sidecar.api.request import context, scheduled
from sidecar.api.state import parameters as parameters_of
from sidecar.http.body import BodyTooLarge, read_body
from sidecar.http.responses import error_response, send_response, send_text
from sidecar.http.routing import Router

ALLOW = (b"allow", b"POST, OPTIONS")
RETRY_AFTER = (b"retry-after", b"1")


class EventsApi:
    def __init__(self, pubsub: PubSub, max_body_size: int) -> None:
        self._pubsub = pubsub
        self._max_body_size = max_body_size

    def add_to(self, router: Router) -> None:
        template = "/mesh/v1/events/{pubsub}/{topic:path}"
        router.add(("POST",), template, self.accept, group="mesh/publish")
        router.add(("OPTIONS",), template, self.handshake, group="mesh/publish")
        router.add(("*",), template, self.refuse, group="mesh/publish")

    async def accept(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            asked = await self._store(scope, receive)
        except InvalidBaggage as error:
            await send_text(send, 400, str(error))
        except ApiError as error:
            status, headers, body = error_response(error)
            if status == 503:
                headers.append(RETRY_AFTER)
            await send_response(send, status, headers, body)
        else:
            await send_response(send, 202, [*asked, (b"content-length", b"0")], b"")

    async def _store(self, scope: Scope, receive: Receive) -> list[tuple[bytes, bytes]]:
        parameters = scope["path_params"]
        topic = Topic(parameters["pubsub"], parameters["topic"])
        self._pubsub.component(topic.pubsub)
        asked = context(scope)
        try:
            body = await read_body(receive, self._max_body_size, scope)
        except BodyTooLarge as error:
            raise ApiError(Code.EVENT_TOO_LARGE, str(error), metadata={"limit": str(error.limit)}) from None
        try:
            decoded = codec.decode(scope["headers"], body)
        except InvalidEvent as fault:
            raise refused(fault) from fault
        mode = Mode.BINARY if decoded.mode is ContentMode.BINARY else Mode.STRUCTURED
        held = await self._pubsub.store_events(
            topic,
            decoded.events,
            mode,
            asked.trace,
            asked.baggage,
            parameters_of(scope) if scope["query_string"] else {},
        )
        return asked.echo() + scheduled(held)

    async def handshake(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        """Whoever gets this far (token, host, origin) may deliver, and as fast as it likes."""
        headers = [ALLOW, (b"webhook-allowed-origin", b"*"), (b"webhook-allowed-rate", b"*"), (b"content-length", b"0")]
        await send_response(send, 200, headers, b"")

    async def refuse(self, scope: Scope, _receive: Receive, send: Send) -> None:
        error = ApiError(Code.METHOD_NOT_ALLOWED, f"events are sent by POST, not by {scope['method']}")
        status, headers, body = error_response(error)
        await send_response(send, status, [*headers, ALLOW], body)


def refused(fault: InvalidEvent) -> ApiError:
    """The answer to what is no event, here and wherever else one is sent (CloudEvents HTTP binding 3)."""
    code = Code.EVENT_FORMAT if fault.unsupported else Code.EVENT_INVALID
    extra: dict[str, object]
    if isinstance(fault, InvalidBatch):
        extra = {"faults": [{"index": index, **_named(member)} for index, member in fault.faults]}
    else:
        extra = _named(fault)
    return ApiError(code, str(fault), extra=extra)


def _named(fault: InvalidEvent) -> dict[str, object]:
    """What is wrong, for programs."""
    named = {"attribute": fault.attribute, "rule": fault.rule, "value": fault.value}
    return {name: text for name, text in named.items() if text is not None}
