"""From a stored message to the event that an app receives: always JSON, in the app's hands as it was stored.

Dapr's rules, with two differences: an event stored in binary mode arrives as a whole event, not as its bare data,
and what only claims to be an event is refused here rather than handed to the app.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import cast

import msgspec

from mesh import ids, trace
from mesh.codec import json as json_codec
from mesh.envelope import DEFAULT_SOURCE, DEFAULT_TYPE, EXPIRY_ATTRIBUTES, LETTER_ATTRIBUTE, expiry
from mesh.errors import InvalidEvent
from mesh.event import Attributes, CloudEvent
from mesh.ports import Mode, Record, Topic

_EXPIRY = frozenset(EXPIRY_ATTRIBUTES)
_NAMES_A_TRACE = frozenset(("traceparent", "traceid"))
_TEXTS = frozenset((*EXPIRY_ATTRIBUTES, LETTER_ATTRIBUTE, "traceparent", "traceid", "tracestate"))
_NO_HEADERS: dict[str, str] = {}

_check_json = msgspec.json.Decoder(msgspec.Raw).decode

# Parsing an event costs more than everything else here, and nearly none needs it.
_may_expire = re.compile(rb'"expir').search
_names_a_trace = re.compile(rb'"trace(?:parent|id)"\s*:\s*"[0-9a-f]{2}-').search


class Inbound(msgspec.Struct, frozen=True, gc=False):
    """What the app gets of one message."""

    body: bytes
    """The event in the JSON format."""
    expires: float | None
    """When the event ends, in seconds since the epoch; a dead letter never does."""
    hop: Mapping[str, str]
    """`traceparent`, `tracestate` and `baggage`, as far as there are any."""


def read(record: Record, raw_from: Topic | None = None, headers: Mapping[str, str] | None = None) -> Inbound:
    """`raw_from` is the topic of a subscription with `rawPayload`: its messages are wrapped, whatever they are.
    `headers` are its own, for who has read them already.

    Raises `InvalidEvent` when the message is no event.
    """
    if headers is None:
        headers = record.headers
    if raw_from is not None:
        hop = hop_of(headers, {}) if headers else _NO_HEADERS
        return Inbound(wrap(record.payload or b"", Topic(raw_from.pubsub, record.topic), hop), None, hop)
    if record.mode is Mode.BINARY:
        attributes = record.attributes
        body = json_codec.encode_event(in_json_form(attributes, record.payload))
        texts = cast(dict[str, str], attributes)  # in binary mode every value came as text
        hop = hop_of(headers, texts) if headers or not _NAMES_A_TRACE.isdisjoint(texts) else _NO_HEADERS
        return Inbound(body, None if _EXPIRY.isdisjoint(texts) else _expires(texts), hop)
    body = record.payload or b""
    _check_object(body)
    if _may_expire(body) or ("traceparent" not in headers and _names_a_trace(body)):
        texts = _texts(body)
        return Inbound(body, _expires(texts), hop_of(headers, texts))
    return Inbound(body, None, hop_of(headers, {}) if headers else _NO_HEADERS)


def in_json_form(attributes: Attributes, data: bytes | None) -> CloudEvent:
    """An event of binary mode, its data as it stands in the JSON format."""
    content_type = attributes.get("datacontenttype")
    form = json_codec.json_form(None if content_type is None else str(content_type), data or b"")
    return CloudEvent(attributes, data, form)


def _check_object(body: bytes) -> None:
    """Anybody may publish to a broker, and an app that cannot parse its input would be called for ever."""
    if body.lstrip()[:1] != b"{":
        raise InvalidEvent(None, "the payload must be a JSON object")
    try:
        _check_json(body)
        if not body.isascii():
            body.decode()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidEvent(None, f"the payload must be a JSON object in UTF-8: {error}") from None


def _texts(body: bytes) -> dict[str, str]:
    """The members of an event that are strings."""
    texts = {}
    for name, raw in json_codec.members(body).items():
        if name in _TEXTS:
            try:
                texts[name] = msgspec.json.decode(raw, type=str)
            except msgspec.DecodeError:
                continue
    return texts


def _expires(texts: Mapping[str, str]) -> float | None:
    if LETTER_ATTRIBUTE in texts:
        return None
    ends = [end for name in EXPIRY_ATTRIBUTES if (end := expiry(texts.get(name))) is not None]
    return min(ends, default=None)


def hop_of(headers: Mapping[str, str], event: Mapping[str, str] = {}) -> dict[str, str]:
    """The context of the last hop; where the message brought none, the trace that the event was born in.

    Whatever is not valid stays behind: a message must not fail for the trace it is in.
    """
    hop: dict[str, str] = {}
    source = headers if "traceparent" in headers else event
    traceparent = trace.parse_traceparent(source.get("traceparent") or source.get("traceid") or "")
    if traceparent is not None:
        hop["traceparent"] = traceparent
        tracestate = trace.parse_tracestate([source.get("tracestate", "")])
        if tracestate:
            hop["tracestate"] = tracestate
    if "baggage" in headers:
        try:
            baggage = trace.baggage([(b"baggage", headers["baggage"].encode())])
        except trace.InvalidBaggage:
            baggage = None
        if baggage:
            hop["baggage"] = baggage
    return hop


def wrap(payload: bytes, topic: Topic, hop: Mapping[str, str]) -> bytes:
    """Dapr's envelope for raw bytes from `topic`: a new id at each delivery, and no time, since nobody knows it."""
    event = {
        "data_base64": base64.b64encode(payload).decode(),
        "datacontenttype": "application/octet-stream",
        "id": ids.uuid4(),
        "pubsubname": topic.pubsub,
        "source": DEFAULT_SOURCE,
        "specversion": "1.0",
        "topic": topic.name,
        "type": DEFAULT_TYPE,
    }
    if "traceparent" in hop:
        event |= {"traceid": hop["traceparent"], "traceparent": hop["traceparent"]}
    if "tracestate" in hop:
        event["tracestate"] = hop["tracestate"]
    return msgspec.json.encode(event)
