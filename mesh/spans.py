"""The spans of the mesh: their names, kinds and attributes, by Dapr's names and OpenTelemetry's conventions.

(OpenTelemetry semantic conventions for messaging, HTTP and CloudEvents; Dapr: tracing. Where both name a thing, both
names are set: dashboards exist for either.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from mesh import trace
from mesh.codec import json as json_codec
from mesh.errors import InvalidEvent
from mesh.ports import Delivery, Group, Mode
from mesh.telemetry import Attribute, Kind, Span, Tracer
from mesh.trace import TraceContext

LARGEST_DESCRIBED = 64 << 10
"""Bytes of a structured event up to which it is looked into for a span's attributes."""

_EVENT = {
    "id": "cloudevents.event_id",
    "source": "cloudevents.event_source",
    "specversion": "cloudevents.event_spec_version",
    "type": "cloudevents.event_type",
    "subject": "cloudevents.event_subject",
}
_WANTED = frozenset((*_EVENT, "traceparent", "traceid", "tracestate"))


class Stored(Protocol):
    """What a message and a delivery have in common."""

    @property
    def mode(self) -> Mode: ...

    @property
    def attributes(self) -> Mapping[str, object]: ...

    @property
    def payload(self) -> bytes | None: ...


def event_texts(message: Stored) -> dict[str, str]:
    """Those attributes of an event that say who and in which trace it is; none where there is no event."""
    if message.mode is Mode.BINARY:
        try:
            return {name: value for name, value in message.attributes.items() if isinstance(value, str)}
        except InvalidEvent:
            return {}
    payload = message.payload
    if message.mode is Mode.RAW or payload is None or len(payload) > LARGEST_DESCRIBED:
        return {}
    texts = {}
    try:
        for name, raw in json_codec.members(payload).items():
            if name in _WANTED and bytes(raw).startswith(b'"'):
                texts[name] = msgspec.json.decode(raw, type=str)
    except (InvalidEvent, msgspec.DecodeError):
        return {}
    return texts


def creation_context(texts: Mapping[str, str]) -> TraceContext | None:
    """The context that an event was created in, by its own attributes (CloudEvents distributed tracing extension)."""
    traceparent = trace.parse_traceparent(texts.get("traceparent") or texts.get("traceid") or "")
    if traceparent is None:
        return None
    return TraceContext(traceparent, trace.parse_tracestate([texts.get("tracestate", "")]))


def hop_context(headers: Mapping[str, str]) -> TraceContext | None:
    """The context in hop headers that are canonical already."""
    traceparent = headers.get("traceparent")
    return None if traceparent is None else TraceContext(traceparent, headers.get("tracestate", ""))


def publishing(tracer: Tracer, pubsub: str, topic: str, parent: TraceContext | None) -> Span:
    """`publish <topic>`: from the checked request to the broker's acknowledgement."""
    span = tracer.start(Kind.PRODUCER, f"publish {topic}", parent)
    if span.recording:
        span.set(_messaging(pubsub, topic, "publish", "send"))
    return span


def describe_published(span: Span, messages: Sequence[Stored]) -> None:
    """Say which event, or how many, a recording span publishes."""
    if len(messages) == 1:
        span.set(_described(event_texts(messages[0])))
    else:
        span.set({"messaging.batch.message_count": len(messages)})


def processing(tracer: Tracer, group: Group, delivery: Delivery, parent: TraceContext | None) -> Span:
    """`process <topic>`: one attempt to deliver a message, linked to the context that the event was created in."""
    topic = group.topic
    span = tracer.start(Kind.CONSUMER, f"process {topic.name}", parent)
    if span.recording:
        texts = event_texts(delivery)
        created = creation_context(texts)
        if created is not None:
            span.link(created)
        attributes = _messaging(topic.pubsub, topic.name, "process", "process")
        attributes["messaging.consumer.group.name"] = group.app_id
        attributes["meshwire.delivery.attempt"] = delivery.attempt
        span.set(attributes | _described(texts))
    return span


def _messaging(pubsub: str, topic: str, operation: str, operation_type: str) -> dict[str, Attribute]:
    return {
        "messaging.system": "pubsub",  # as Dapr says, whatever broker it is
        "messaging.destination.name": topic,
        "messaging.operation.name": operation,
        "messaging.operation.type": operation_type,
        "meshwire.pubsub.component": pubsub,
    }


def _described(texts: Mapping[str, str]) -> dict[str, Attribute]:
    described: dict[str, Attribute] = {_EVENT[name]: text for name, text in texts.items() if name in _EVENT}
    if "id" in texts:
        described["messaging.message.id"] = texts["id"]
    return described


def calling(tracer: Tracer, app_id: str, method: str, path: str, parent: TraceContext | None) -> Span:
    """`CallLocal/<app>/<path>` at the caller: from the request to the head of the answer, all tries together.

    `path` is the app's own, without its query, with or without `/` before it; `method` the HTTP method.
    """
    return _invocation(tracer, Kind.CLIENT, app_id, method, path, parent)


def called(tracer: Tracer, app_id: str, method: str, path: str, parent: TraceContext | None) -> Span:
    """`CallLocal/<app>/<path>` at the callee, whose app is `app_id`."""
    return _invocation(tracer, Kind.SERVER, app_id, method, path, parent)


def _invocation(tracer: Tracer, kind: Kind, app_id: str, method: str, path: str, parent: TraceContext | None) -> Span:
    path = path.lstrip("/")
    span = tracer.start(kind, f"CallLocal/{app_id}/{path}", parent)
    if span.recording:
        span.set(
            {
                "rpc.service": "ServiceInvocation",
                "dapr.invoke_method": path,
                "dapr.protocol": "http",
                "net.peer.name": app_id,
                "http.request.method": method,
            }
        )
    return span


def describe_answer(span: Span, status: int) -> None:
    """Say on a recording span with which HTTP status the work was answered."""
    span.set({"http.response.status_code": status, "dapr.status_code": str(status)})


def answered(span: Span, status: int) -> None:
    """End the span of an HTTP call, by the status of its answer (Dapr: from 400 on it is an error)."""
    if span.recording:
        describe_answer(span, status)
    span.end(f"Code({status})" if status >= 400 else None)
