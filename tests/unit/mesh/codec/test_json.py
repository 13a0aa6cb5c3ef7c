import json as stdlib_json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft7Validator

from mesh.codec import json
from mesh.errors import InvalidBatch, InvalidEvent
from mesh.event import CloudEvent, DataForm
from tests.unit.mesh.codec.events import events

REQUIRED = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t"}

# The rules of the JSON schema that is published with CloudEvents 1.0.2 (draft-07), and the naming rule beside them.
SCHEMA = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "type": "object",
    "required": ["id", "source", "specversion", "type"],
    "properties": {
        "id": {"type": "string", "minLength": 1},
        "source": {"type": "string", "minLength": 1, "format": "uri-reference"},
        "specversion": {"type": "string", "minLength": 1},
        "type": {"type": "string", "minLength": 1},
        "datacontenttype": {"type": ["string", "null"], "minLength": 1},
        "dataschema": {"type": ["string", "null"], "minLength": 1, "format": "uri"},
        "subject": {"type": ["string", "null"], "minLength": 1},
        "time": {"type": ["string", "null"], "minLength": 1, "format": "date-time"},
        "data": {"type": ["object", "string", "number", "array", "boolean", "null"]},
        "data_base64": {"type": ["string", "null"], "contentEncoding": "base64", "pattern": "^[A-Za-z0-9+/]*={0,2}$"},
    },
    "not": {"required": ["data", "data_base64"]},
    "patternProperties": {"^[a-z0-9]+$": {}},
    "additionalProperties": False,
}
SCHEMA_VALIDATOR = Draft7Validator(SCHEMA)


def event_text(**members: Any) -> bytes:
    return stdlib_json.dumps(REQUIRED | members).encode()


def raw_event(members: str) -> bytes:
    return event_text()[:-1] + b", " + members.encode() + b"}"


@given(events())
def test_what_is_written_can_be_read(event: CloudEvent) -> None:
    if event.data is None:
        event = CloudEvent(event.attributes)
    written = json.encode_event(event)
    assert json.decode_event(written) == event
    assert json.encode_event(json.decode_event(written)) == written


@given(st.lists(events(), max_size=4))
def test_batches(batch: list[CloudEvent]) -> None:
    written = json.encode_batch(batch)
    assert json.decode_batch(written, limit=4) == [json.decode_event(json.encode_event(event)) for event in batch]


@given(events())
def test_what_is_written_obeys_the_schema(event: CloudEvent) -> None:
    SCHEMA_VALIDATOR.validate(stdlib_json.loads(json.encode_event(event)))


def test_schema_can_say_no() -> None:
    for wrong in ({"id": ""}, {"data": 1, "data_base64": ""}, {"Bad": 1}, {"data_base64": "-_"}):
        assert not SCHEMA_VALIDATOR.is_valid(REQUIRED | wrong)
    assert SCHEMA_VALIDATOR.is_valid(REQUIRED | {"data_base64": ""})


def test_order_and_exact_bytes() -> None:
    attributes = {"zz": 1, "type": "t", "time": "2024-01-01T00:00:00Z", "id": "é", "specversion": "1.0"}
    event = CloudEvent({**attributes, "b": True, "source": "/s"}, b'{"a": 1e400, "a": [ 1.0 ]}', DataForm.JSON)
    assert (
        json.encode_event(event).decode()
        == '{"specversion":"1.0","id":"é","source":"/s","type":"t","zz":1,"time":"2024-01-01T00:00:00Z","b":true,'
        '"data":{"a": 1e400, "a": [ 1.0 ]}}'
    )


@pytest.mark.parametrize(
    ("members", "data", "form"),
    [
        ("", None, DataForm.BINARY),
        ('"data": null', b"null", DataForm.JSON),
        ('"data": "{}"', b'"{}"', DataForm.JSON),
        ('"data":  { "b":1, "a":1e400, "a":2 } ', b'{ "b":1, "a":1e400, "a":2 }', DataForm.JSON),
        ('"data": 123456789012345678901234567890.10', b"123456789012345678901234567890.10", DataForm.JSON),
        ('"data": "\\u0000"', b'"\\u0000"', DataForm.JSON),
        ('"data": 1, "data": 2', b"2", DataForm.JSON),
        ('"data": 1, "data_base64": null', b"1", DataForm.JSON),
        ('"data": [], "datacontenttype": "x/y+json;a=b"', b"[]", DataForm.JSON),
        ('"data": 1, "datacontenttype": null', b"1", DataForm.JSON),
        ('"data": "{\\u00e9\\n\\u0000", "datacontenttype": "text/plain"', "{é\n\0".encode(), DataForm.TEXT),
        ('"data": "é", "datacontenttype": "text/plain; charset=latin-1"', "é".encode(), DataForm.TEXT),
        ('"data": "", "datacontenttype": "a/b"', b"", DataForm.TEXT),
        ('"data_base64": "AP8="', b"\0\xff", DataForm.BINARY),
        ('"data_base64": ""', b"", DataForm.BINARY),
        ('"data_base64": "\\u0041P8="', b"\0\xff", DataForm.BINARY),
        ('"data_base64": "e30=", "datacontenttype": "application/json"', b"{}", DataForm.BINARY),
    ],
)
def test_data(members: str, data: bytes | None, form: DataForm) -> None:
    event = json.decode_event(raw_event(members) if members else event_text())
    assert (event.data, event.form) == (data, form)
    assert event.attributes.keys() & {"data", "data_base64"} == set()
    again = json.decode_event(json.encode_event(event))
    assert again == event


def test_attribute_types() -> None:
    event = json.decode_event(
        event_text(i=-(2**31), j=2**31 - 1, yes=True, no=False, text="\u00e9\U0001f600", gone=None)
    )
    assert event.attributes == REQUIRED | {"i": -(2**31), "j": 2**31 - 1, "yes": True, "no": False, "text": "é😀"}
    assert event.attributes["yes"] is True
    assert type(event.attributes["i"]) is int


def test_last_of_duplicate_members_wins_everywhere() -> None:
    event = json.decode_event(raw_event('"source": "/evil", "x": 1, "x": 2, "source": "/last", "\\u0078": 3'))
    assert (event.source, event.attributes["x"]) == ("/last", 3)
    assert json.encode_event(event).count(b"source") == 1


@pytest.mark.parametrize(
    ("members", "attribute"),
    [
        *[(f'"{name}": null', name) for name in REQUIRED],
        *[(f'"{name}": 1', name) for name in REQUIRED],
        *[(f'"{name}": ""', name) for name in REQUIRED],
        ('"specversion": "0.3"', "specversion"),
        ('"specversion": "2.0", "id": {}, "Bad": 1', "specversion"),
        *[(f'"x": {value}', "x") for value in ("1.5", "1e2", "1.0", "1e400", "2147483648", "-2147483649", "{}", "[]")],
        (f'"x": {"9" * 5000}', "x"),
        *[(f'"{name}": "v"', name) for name in ("Cap", "a_b", "a-b", "é")],
        ('"Cap": null', "Cap"),
        ('"x": "\\u0000"', "x"),
        ('"x": "\\uffff"', "x"),
        ('"subject": ""', "subject"),
        ('"time": "2024-13-01T00:00:00Z"', "time"),
        ('"data": 1, "data_base64": ""', "data_base64"),
        ('"data": null, "data_base64": "AA=="', "data_base64"),
        *[(f'"data_base64": {value}', "data_base64") for value in ("1", "{}", '"A"', '"AA"', '"-_=="', '"AA==\\n"')],
        *[(f'"data_base64": {value}', "data_base64") for value in ('"A A="', '"AA==AA=="', '"é"', '"=AAA"')],
        *[(f'"data": {value}, "datacontenttype": "text/plain"', "data") for value in ("1", "{}", "null", "true")],
    ],
)
def test_invalid_events(members: str, attribute: str) -> None:
    with pytest.raises(InvalidEvent) as caught:
        json.decode_event(raw_event(members))
    assert caught.value.attribute == attribute


DEEP = b'{"data":' + b"[" * 100_000 + b"]" * 100_000 + b"}"

MALFORMED = [
    b"",
    b" ",
    b"[]",
    b"null",
    b'"x"',
    b"{",
    b"{}{}",
    b"{'a':1}",
    b'{"a":1,}',
    b'{"a":01}',
    b'{"a":NaN}',
    b'{"a":"\n"}',
    b'{"a":"\\q"}',
    b'{"a":"\\ud800"}',
    b'{"a":{"b":["\\udc00"]}}',
    b'{"a":"\xff"}',
    b'{"a":["\xed\xa0\x80"]}',
    b'{"\xff":1}',
    b"\xef\xbb\xbf{}",
    '{"a":1}'.encode("utf-16"),
    DEEP,
]


@pytest.mark.parametrize("body", MALFORMED, ids=range(len(MALFORMED)))
def test_malformed(body: bytes) -> None:
    for read in (json.members, json.decode_event):
        with pytest.raises(InvalidEvent):
            read(body)
    with pytest.raises(InvalidEvent):
        json.decode_batch(b"[" + body + b"," + body + b"]", limit=10)


def test_members_keep_their_text() -> None:
    found = json.members(b' { "b" : 1e400 , "a":[ 1, "\xc3\xa9" ], "b":"\\u0041" } ')
    assert {name: bytes(value) for name, value in found.items()} == {"b": b'"\\u0041"', "a": b'[ 1, "\xc3\xa9" ]'}
    found["n\u00e9\n"] = msgspec.Raw(b"1.0")
    assert json.join_members(found) == '{"b":"\\u0041","a":[ 1, "é" ],"né\\n":1.0}'.encode()
    assert json.join_members({"a": b"1"}) == b'{"a":1}'
    assert json.join_members({}) == b"{}"


def test_batch_names_each_bad_member() -> None:
    body = b"[%b, 1, %b, {}, %b]" % (event_text(), raw_event('"specversion":"0.3"'), raw_event('"x":"\\u0000"'))
    with pytest.raises(InvalidBatch) as caught:
        json.decode_batch(body, limit=5)
    assert [(index, fault.attribute) for index, fault in caught.value.faults] == [
        (1, None),
        (2, "specversion"),
        (3, "specversion"),
        (4, "x"),
    ]


def test_batch_limit_and_shape() -> None:
    body = b"[%b]" % b",".join([event_text()] * 3)
    assert len(json.decode_batch(body, limit=3)) == 3
    assert json.decode_batch(b" [ ] ", limit=0) == []
    with pytest.raises(InvalidEvent, match="at most 2 events"):
        json.decode_batch(body, limit=2)
    for other in (b"", b"{}", event_text(), b"[1", b"\xff", b'["\xff"]'):
        with pytest.raises(InvalidEvent) as caught:
            json.decode_batch(other, limit=2)
        assert not isinstance(caught.value, InvalidBatch)


@pytest.mark.parametrize(
    ("content_type", "data", "form"),
    [
        (None, b"{}", DataForm.BINARY),
        ("application/json", b' {"a":1e400} ', DataForm.JSON),
        ("text/json", b"null", DataForm.JSON),
        ("application/json", b"", DataForm.BINARY),
        ("application/json", b"{", DataForm.BINARY),
        ("application/json", b'"\xff"', DataForm.BINARY),
        ("application/json", b"[" * 100_000 + b"]" * 100_000, DataForm.BINARY),
        ("application/json; charset=utf-16", "{}".encode("utf-16"), DataForm.BINARY),
        ("text/plain", "é\0".encode(), DataForm.TEXT),
        ("text/plain", b"", DataForm.TEXT),
        ("text/plain; charset=UTF-8", b"a", DataForm.TEXT),
        ("text/plain", b"\xff", DataForm.BINARY),
        ("text/plain; charset=latin-1", b"a", DataForm.BINARY),
        ("text/plain; charset=utf-16", b"\0a", DataForm.BINARY),
        ("text/plain; charset=us-ascii", b"a", DataForm.TEXT),
        ("text/plain; charset=us-ascii", "é".encode(), DataForm.BINARY),
        ("application/xml", b"<a/>", DataForm.TEXT),
        ("application/octet-stream", b"a", DataForm.BINARY),
    ],
)
def test_json_form(content_type: str | None, data: bytes, form: DataForm) -> None:
    assert json.json_form(content_type, data) is form
