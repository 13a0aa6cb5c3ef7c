"""Events as handlers get them, and as services give them, whichever the broker."""

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
from faststream.message import StreamMessage, encode_message
from faststream.response.publish_type import PublishType
from faststream.response.response import PublishCommand

from mesh import envelope, ids
from mesh.codec import attributes as rules
from mesh.codec import json as json_codec
from mesh.codec.attributes import timestamp
from mesh.codec.media_type import charset, is_json, is_text
from mesh.errors import InvalidEvent, MeshError, clip
from mesh.event import Attributes, AttributeValue, CloudEvent, DataForm
from mesh.ports import Message, Mode, Topic

HOP = ("traceparent", "tracestate", "baggage")


class EventMessage(StreamMessage[Any]):
    """What FastStream's messages of mesh topics have beside what their broker's have: the body is the event's data."""

    stored: CloudEvent
    hop: Mapping[str, str]
    """`traceparent`, `tracestate` and `baggage` of the last hop, as far as there are any."""

    @cached_property
    def event(self) -> SdkEvent:
        """The event with its data decoded. Changing it changes nothing else. Raises `InvalidEvent`."""
        return to_sdk(self.stored)


class Parsed:
    """An event as it is stored, and what FastStream's messages are made of.

    Raises `InvalidEvent` for a message that is no event, `RejectMessage` for one that has expired.
    """

    def __init__(self, payload: bytes | None, mode: Mode, attributes: Attributes, headers: Mapping[str, str]) -> None:
        """`attributes` are those of binary mode, `headers` those of the transport."""
        if mode is Mode.RAW:
            raise InvalidEvent(None, "the message is not a CloudEvent")
        self.event = CloudEvent(attributes, payload) if mode is Mode.BINARY else json_codec.decode_event(payload or b"")
        if envelope.lifetime(None, _expiries(self.event.attributes), now=time.time()) == 0:
            raise RejectMessage
        self.hop = {name: headers[name] for name in HOP if name in headers}

    def options(self) -> dict[str, Any]:
        """Of `StreamMessage`."""
        event = self.event
        return {
            "body": event.data,
            "headers": {**{f"ce-{name}": value for name, value in event.attributes.items()}, **self.hop},
            "content_type": _content_type(event.attributes),
            "correlation_id": event.id,
            "message_id": event.id,
        }


class _EventParameter(CustomField):
    """What FastStream's `Context("message.event")` would do, which takes a thread for each message."""

    def __init__(self) -> None:
        super().__init__(cast=False)

    async def use(self, /, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        message = kwargs["context__"].get_local("message")
        if not isinstance(message, EventMessage):
            raise MeshError("only the topics of a mesh have an Event")
        return kwargs | {str(self.param_name): message.event}


Event = Annotated[SdkEvent, _EventParameter()]
"""Annotate a parameter of a handler with it to get the whole event, beside the body or instead of it."""


def _expiries(attributes: Attributes) -> list[str]:
    """None of a dead letter: it has no end."""
    if envelope.LETTER_ATTRIBUTE in attributes:
        return []
    return [str(attributes[name]) for name in envelope.EXPIRY_ATTRIBUTES if name in attributes]


async def decode(message: EventMessage) -> Any:
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


def to_message(cmd: PublishCommand, topic: Topic, app_id: str, handled: object, serializer: Any) -> Message:
    """What `cmd` stores as an event of `topic`; `handled` is the message whose handler publishes, if one does.

    Raises `InvalidEvent`, and `MeshError` for what events do not have.
    """
    if cmd.publish_type is PublishType.REQUEST or cmd.reply_to:
        raise MeshError(f"an event of topic {topic.name} has no reply")
    given = {name.lower(): str(value) for name, value in cmd.headers.items()}
    hop = {name: given[name] for name in HOP if name in given}
    if isinstance(handled, EventMessage) and "traceparent" not in hop:
        hop = {**handled.hop, **hop}
    others = {name for name in given if not name.startswith("ce-")} - {*HOP, "content-type", "correlation_id"}
    if others:
        raise MeshError(f"an event has attributes, given as ce- headers, and no header {clip(min(others))}")
    attributes: Attributes = {name[3:]: value for name, value in given.items() if name.startswith("ce-")}
    event = make_event(cmd.body, attributes, app_id, hop, serializer)
    return envelope.event_message(event, Mode.BINARY, hop, time.time())


class Wire(bytes):
    """The payload of an event that is ready to be stored, and the event beside it."""

    topic: Topic
    message: Message

    @classmethod
    def of(cls, topic: Topic, message: Message) -> Wire:
        wire = cls(message.payload or b"")
        wire.topic, wire.message = topic, message
        return wire


def _attribute(name: str, value: Any) -> AttributeValue:
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise InvalidEvent(name, "must be a time with a time zone", value)
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, str | int | bool):
        return value
    raise InvalidEvent(name, "must be a string, an integer, a boolean or a time", value)
