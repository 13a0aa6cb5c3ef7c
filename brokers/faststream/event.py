"""Events as handlers get them, and as services give them: FastStream's parser, decoder and encoder for mesh topics."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cached_property
from typing import Annotated, Any

import msgspec
from cloudevents.core.v1.event import CloudEvent as SdkEvent
from fast_depends.library import CustomField
from faststream.exceptions import RejectMessage
from faststream.message import encode_message
from faststream.nats.message import NatsMessage
from nats.aio.msg import Msg

from brokers.faststream.group import Received
from brokers.nats import codec
from mesh import envelope, ids
from mesh.codec import attributes as rules
from mesh.codec import json as json_codec
from mesh.codec.attributes import timestamp
from mesh.codec.media_type import charset, is_json, is_text
from mesh.errors import InvalidEvent, MeshError
from mesh.event import Attributes, AttributeValue, CloudEvent, DataForm
from mesh.ports import Mode

HOP = ("traceparent", "tracestate", "baggage")


class MeshMessage(NatsMessage):
    """FastStream's message of a mesh topic: the body is the event's data."""

    def __init__(self, raw_message: Msg, stored: CloudEvent, hop: Mapping[str, str]) -> None:
        super().__init__(
            raw_message=raw_message,
            body=stored.data,
            headers={**{f"ce-{name}": value for name, value in stored.attributes.items()}, **hop},
            content_type=_content_type(stored.attributes),
            correlation_id=stored.id,
            message_id=stored.id,
        )
        self.stored = stored
        self.hop = hop
        """`traceparent`, `tracestate` and `baggage` of the last hop, as far as there are any."""

    @cached_property
    def event(self) -> SdkEvent:
        """The event with its data decoded. Changing it changes nothing else. Raises `InvalidEvent`."""
        return to_sdk(self.stored)


class _EventParameter(CustomField):
    """What FastStream's `Context("message.event")` would do, which takes a thread for each message."""

    def __init__(self) -> None:
        super().__init__(cast=False)

    async def use(self, /, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        message = kwargs["context__"].get_local("message")
        if not isinstance(message, MeshMessage):
            raise MeshError("only the topics of a mesh have an Event")
        return kwargs | {str(self.param_name): message.event}


Event = Annotated[SdkEvent, _EventParameter()]
"""Annotate a parameter of a handler with it to get the whole event, beside the body or instead of it."""


async def parse(raw: Msg) -> MeshMessage:
    """FastStream's parser for mesh topics, for any consumer of their subjects.

    Raises `InvalidEvent` for a message that is no event, `RejectMessage` for one that has expired.
    """
    payload: bytes | None = raw.data
    if isinstance(raw, Received):
        payload, mode, headers = raw.delivery.payload, raw.delivery.mode, raw.delivery.headers
        attributes = raw.delivery.attributes
    else:
        stored = {name.lower(): value for name, value in (raw.headers or {}).items()}
        if not payload and "meshwire-no-data" in stored:
            payload = None
        mode = codec.mode(stored, payload or b"")
        attributes = codec.decode_attributes(stored) if mode is Mode.BINARY else {}
        headers = codec.transport_headers(stored)
    if mode is Mode.RAW:
        raise InvalidEvent(None, "the message is not a CloudEvent")
    event = CloudEvent(attributes, payload) if mode is Mode.BINARY else json_codec.decode_event(payload or b"")
    ends = envelope.lifetime(None, _expiries(event.attributes), now=time.time())
    if ends == 0:
        raise RejectMessage
    return MeshMessage(raw, event, {name: headers[name] for name in HOP if name in headers})


def _expiries(attributes: Attributes) -> list[str]:
    """None of a dead letter: it has no end."""
    if envelope.LETTER_ATTRIBUTE in attributes:
        return []
    return [str(attributes[name]) for name in envelope.EXPIRY_ATTRIBUTES if name in attributes]


async def decode(message: MeshMessage) -> Any:
    """FastStream's decoder for mesh topics: the data of the event, see `data_of`."""
    return data_of(message.stored)


def data_of(event: CloudEvent) -> Any:
    """JSON data as Python values, text as `str`, anything else, and whatever is not what its type says, as `bytes`;
    `None` for an event without data."""
    data, content_type = event.data, _content_type(event.attributes)
    if data is None:
        return None
    try:
        if event.form is DataForm.JSON or is_json(content_type):
            return msgspec.json.decode(data)
        if event.form is DataForm.TEXT:
            return data.decode()
        if content_type is not None and is_text(content_type):
            return data.decode(charset(content_type) or "utf-8")
    except (ValueError, LookupError, RecursionError):
        pass
    return data


def _content_type(attributes: Attributes) -> str | None:
    content_type = attributes.get("datacontenttype")
    return None if content_type is None else str(content_type)


def to_sdk(event: CloudEvent) -> SdkEvent:
    """The event for the `cloudevents` SDK, whose times are `datetime`s. Raises `InvalidEvent` for a year that those do
    not know."""
    attributes: dict[str, Any] = dict(event.attributes)
    given = attributes.get("time")
    if given is not None:
        attributes["time"] = _moment(given)
    sdk_event = SdkEvent(attributes, data_of(event))
    if given is None:
        del attributes["time"]  # the SDK invented it
    return sdk_event


def _moment(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text.upper())
    except ValueError:
        pass
    try:
        return datetime.fromtimestamp(timestamp(text), UTC)  # a leap second
    except (ValueError, OverflowError):
        raise InvalidEvent("time", "must be within the years 1 to 9999", text) from None


def make_event(body: Any, given: Attributes, app_id: str, hop: Mapping[str, str], serializer: Any) -> CloudEvent:
    """The event that `body` is, or that is made of it. An SDK event's own attributes stay as they are.

    Raises `InvalidEvent`.
    """
    attributes: Attributes
    if isinstance(body, SdkEvent):
        attributes = {name: _attribute(name, value) for name, value in body.get_attributes().items()} | given
        body = body.get_data()
    else:
        attributes = {
            "specversion": rules.SPECVERSION,
            "id": ids.uuid4(),
            "source": app_id,
            "type": envelope.DEFAULT_TYPE,
            "time": ids.utc_time(time.time()),
            **given,
        }
        if "traceparent" not in given:
            attributes |= {name: hop[name] for name in ("traceparent", "tracestate") if name in hop}
    content_type = _content_type(attributes)
    data: bytes | None = None
    if isinstance(body, str) and is_json(content_type):
        data = msgspec.json.encode(body)
    elif body is not None:
        data, implied = encode_message(body, serializer)
        if content_type is None and implied is not None:
            attributes["datacontenttype"] = implied
    rules.check_all(attributes)
    return CloudEvent(attributes, data)


def _attribute(name: str, value: Any) -> AttributeValue:
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise InvalidEvent(name, "must be a time with a time zone", value)
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, str | int | bool):
        return value
    raise InvalidEvent(name, "must be a string, an integer, a boolean or a time", value)
