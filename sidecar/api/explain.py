"""`POST /mesh/v1/explain`: what the app's subscriptions would make of an event, and why. Nothing is published."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import parse_qsl

from starlette.types import Receive, Scope, Send

from mesh import inbound
from mesh.codec import http as codec
from mesh.codec import json as json_codec
from mesh.codec.http import ContentMode
from mesh.errors import ApiError, Code, InvalidEvent
from mesh.ports import Topic
from mesh.routing import Explained
from mesh.subscriptions import SubscriptionSpec
from sidecar.api.events import refused
from sidecar.api.state import send_json
from sidecar.http.body import BodyTooLarge, read_body
from sidecar.http.routing import Router


class ExplainApi:
    def __init__(self, subscriptions: Callable[[], Sequence[SubscriptionSpec]], max_body_size: int) -> None:
        """`subscriptions` gives those of the app at the moment."""
        self._subscriptions = subscriptions
        self._max_body_size = max_body_size

    def add_to(self, router: Router) -> None:
        router.add(("POST",), "/mesh/v1/explain", self.explain, group="mesh/explain")

    async def explain(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The event comes in binary or structured mode. `?pubsubname=` and `?topic=` pick among the subscriptions."""
        wanted = dict(parse_qsl(scope["query_string"].decode("latin-1")))
        body = await self._event(scope, receive)
        await send_json(
            send,
            {
                "subscriptions": [
                    _explained(spec, body)
                    for spec in self._subscriptions()
                    if wanted.get("pubsubname", spec.pubsub) == spec.pubsub
                    and wanted.get("topic", spec.topic) == spec.topic
                ]
            },
        )

    async def _event(self, scope: Scope, receive: Receive) -> bytes:
        """The event in the JSON format."""
        try:
            body = await read_body(receive, self._max_body_size, scope)
        except BodyTooLarge as error:
            raise ApiError(Code.EVENT_TOO_LARGE, str(error), metadata={"limit": str(error.limit)}) from None
        try:
            if codec.content_mode(scope["headers"]) is ContentMode.BATCHED:
                raise InvalidEvent(None, "send one event, in binary or structured mode, not a batch")
            mode, [event] = codec.decode(scope["headers"], body)
            if mode is ContentMode.BINARY:
                event = inbound.in_json_form(event.attributes, event.data)
            return json_codec.encode_event(event)
        except InvalidEvent as fault:
            raise refused(fault) from fault


def _explained(spec: SubscriptionSpec, body: bytes) -> dict[str, Any]:
    if spec.routing is None:
        found = Explained(matches=True, path=spec.routes[0].path)
    else:
        seen = inbound.wrap(body, Topic(spec.pubsub, spec.topic), {}) if spec.raw_payload else body
        found = spec.routing.explain(seen)
    subscription = {"pubsubname": spec.pubsub, "topic": spec.topic, "type": spec.type, "origin": spec.origin}
    return {**subscription, "explanation": found}
