"""The `cloudevents` SDK as an independent reader of what we write and writer of what we read.

Left out is what it is known to do otherwise than the specification: explicit null data, data that only looks like
JSON, Booleans in headers, fractions of a microsecond, JSON types outside `application/` and `text/`.
"""

import json as stdlib_json
from datetime import datetime
from typing import Any

from cloudevents.core.base import BaseCloudEvent
from cloudevents.core.bindings import http as sdk
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent as SdkEvent
from hypothesis import given
from hypothesis import strategies as st

from mesh.codec import attributes as rules
from mesh.codec import http
from mesh.event import Attributes, AttributeValue, CloudEvent, DataForm
from tests.unit.mesh.codec.events import extensions, filled, json_values, moments, references, texts

FORMAT = JSONFormat()
json_objects = st.dictionaries(texts, json_values, min_size=1, max_size=4)
optional = st.fixed_dictionaries(
    {}, optional={"subject": filled, "time": moments, "dataschema": references.map("urn:".__add__)}
)


@st.composite
def sdk_events(draw: st.DrawFn) -> SdkEvent:
    required = {"specversion": "1.0", "id": draw(filled), "source": draw(references), "type": draw(filled)}
    content_type, data = draw(
        st.tuples(st.just("application/json"), json_objects)
        | st.tuples(st.just("text/plain"), filled)
        | st.tuples(st.just("image/png"), st.binary(min_size=1).map(b"\xff".__add__))
    )
    return SdkEvent({**required, **draw(optional), **draw(extensions), "datacontenttype": content_type}, data)


def same_value(ours: AttributeValue, theirs: Any) -> bool:
    if isinstance(theirs, datetime):
        return abs(rules.timestamp(str(ours)) - theirs.timestamp()) < 1e-4
    return ours == theirs and type(ours) is type(theirs)


def same_attributes(ours: Attributes, theirs: BaseCloudEvent) -> bool:
    expected = theirs.get_attributes()
    return ours.keys() == expected.keys() and all(same_value(ours[name], expected[name]) for name in ours)


def same_data(ours: CloudEvent, theirs: Any) -> bool:
    if ours.attributes["datacontenttype"] == "application/json":
        return ours.data is not None and bool(stdlib_json.loads(ours.data) == theirs)
    return ours.data == (theirs.encode() if isinstance(theirs, str) else theirs)


def in_lists(message: sdk.HTTPMessage) -> tuple[list[tuple[bytes, bytes]], bytes]:
    return [(name.encode(), value.encode()) for name, value in message.headers.items()], message.body


def in_dicts(headers: list[tuple[bytes, bytes]], body: bytes) -> sdk.HTTPMessage:
    return sdk.HTTPMessage({name.decode(): value.decode() for name, value in headers}, body)


@given(sdk_events())
def test_we_read_their_structured_events_and_they_read_ours(theirs: SdkEvent) -> None:
    [ours] = http.decode(*in_lists(sdk.to_structured(theirs, FORMAT))).events
    assert same_attributes(ours.attributes, theirs)
    assert same_data(ours, theirs.get_data())

    again = sdk.from_structured(in_dicts(*http.encode_structured(ours)), FORMAT)
    assert again.get_attributes() == theirs.get_attributes()
    assert again.get_data() == theirs.get_data()


@given(sdk_events())
def test_we_read_their_binary_events_and_they_read_ours(theirs: SdkEvent) -> None:
    as_text = {name: str(value) if isinstance(value, int) else value for name, value in theirs.get_attributes().items()}
    theirs = SdkEvent(as_text, theirs.get_data())
    [ours] = http.decode(*in_lists(sdk.to_binary(theirs, FORMAT))).events
    assert same_attributes(ours.attributes, theirs)
    assert same_data(ours, theirs.get_data())

    again = sdk.from_binary(in_dicts(*http.encode_binary(ours)), FORMAT)
    assert again.get_attributes() == theirs.get_attributes()
    assert again.get_data() == theirs.get_data()


def test_comparison_can_fail() -> None:
    theirs = SdkEvent({"specversion": "1.0", "id": "1", "source": "/s", "type": "t", "x": 1}, None)
    ours: Attributes = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t"}
    assert not same_attributes(ours, theirs)
    assert not same_attributes(ours | {"x": True}, theirs)
    assert not same_data(CloudEvent({"datacontenttype": "application/json"}, b"[1]", DataForm.JSON), [2])
