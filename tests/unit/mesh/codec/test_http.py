import json as stdlib_json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mesh.codec import header, http, json
from mesh.codec.http import ContentMode
from mesh.errors import InvalidBatch, InvalidEvent
from mesh.event import CloudEvent, DataForm
from tests.unit.mesh.codec.events import events

Headers = list[tuple[bytes, bytes]]

CE: Headers = [(b"ce-specversion", b"1.0"), (b"ce-id", b"1"), (b"ce-source", b"/s"), (b"ce-type", b"t")]
REQUIRED = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t"}
BODY = stdlib_json.dumps(REQUIRED).encode()


def typed(content_type: bytes, *more: tuple[bytes, bytes]) -> Headers:
    return [(b"host", b"x"), (b"content-type", content_type), *more]


@pytest.mark.parametrize(
    ("headers", "mode"),
    [
        (typed(b"application/cloudevents-batch+json"), ContentMode.BATCHED),
        (typed(b" Application/CloudEvents-Batch+XML"), ContentMode.BATCHED),
        (typed(b"application/cloudevents+json; charset=utf-8"), ContentMode.STRUCTURED),
        (typed(b"APPLICATION/CLOUDEVENTS", *CE), ContentMode.STRUCTURED),
        (typed(b"application/json", *CE), ContentMode.BINARY),
        (CE, ContentMode.BINARY),
        ([(b"ce-x", b"")], ContentMode.BINARY),
        (typed(b"application/json"), ContentMode.NONE),
        (typed(b"text/application/cloudevents"), ContentMode.NONE),
        ([], ContentMode.NONE),
    ],
)
def test_content_mode(headers: Headers, mode: ContentMode) -> None:
    assert http.content_mode(headers) is mode


def test_required_headers() -> None:
    assert http.has_required_headers([*CE, (b"ce-my_ext", b"")])
    assert not any(http.has_required_headers(CE[:n] + CE[n + 1 :]) for n in range(4))
    assert not http.has_required_headers([])


def as_headers_carry_it(event: CloudEvent) -> CloudEvent:
    """`event` after a passage through headers: no types, no form, and the two kinds of emptiness by content type."""
    attributes: dict[str, Any] = {
        name: header.decode(header.encode(value).encode(), name) for name, value in event.attributes.items()
    }
    if event.form is DataForm.JSON:
        attributes.setdefault("datacontenttype", "application/json")
    return CloudEvent(attributes, (event.data or b"") if "datacontenttype" in attributes else event.data or None)


@given(events())
def test_binary_mode_returns_what_it_was_given(event: CloudEvent) -> None:
    if event.data is None:
        event = CloudEvent(event.attributes)
    headers, body = http.encode_binary(event)
    mode, [decoded] = http.decode(headers, body)
    assert mode is ContentMode.BINARY
    assert decoded == as_headers_carry_it(event)
    if event.form is not DataForm.BINARY:
        assert json.json_form(str(decoded.attributes["datacontenttype"]), body) is event.form


@given(events())
@example(CloudEvent({**REQUIRED, "datacontenttype": "application/json"}, b"\t0\n", DataForm.BINARY))
def test_binary_to_structured_and_back(event: CloudEvent) -> None:
    headers, body = http.encode_binary(event)
    decoded = http.decode_binary(headers, body)
    content_type = decoded.attributes.get("datacontenttype")
    if decoded.data is not None:
        form = json.json_form(None if content_type is None else str(content_type), decoded.data)
        # What surrounds a JSON text is no part of the value, which alone becomes a member.
        data = decoded.data.strip(b" \t\r\n") if form is DataForm.JSON else decoded.data
        decoded = CloudEvent(decoded.attributes, data, form)
    _, [structured] = http.decode(*http.encode_structured(decoded))
    assert structured == decoded
    again = http.encode_binary(structured)
    assert (sorted(again[0]), again[1]) == (sorted(headers), decoded.data or b"")


@given(events(), st.lists(events(), max_size=3))
def test_structured_and_batched_mode_return_what_they_were_given(event: CloudEvent, batch: list[CloudEvent]) -> None:
    read = json.decode_event(json.encode_event(event))
    assert http.decode(*http.encode_structured(event)) == (ContentMode.STRUCTURED, [read])
    mode, decoded = http.decode(*http.encode_batched([event, *batch]))
    assert mode is ContentMode.BATCHED
    assert decoded[0] == read
    assert len(decoded) == len(batch) + 1


def test_written_headers() -> None:
    attributes = {**REQUIRED, "datacontenttype": 'text/plain; x="a b"', "yes": True, "n": -1, "subject": "Euro €"}
    headers, body = http.encode_binary(CloudEvent(attributes, b"x"))
    assert headers == [
        *CE,
        (b"ce-yes", b"true"),
        (b"ce-n", b"-1"),
        (b"ce-subject", b"Euro%20%E2%82%AC"),
        (b"content-type", b'text/plain; x="a b"'),
    ]
    assert body == b"x"
    assert http.encode_structured(CloudEvent(dict(REQUIRED)))[0] == [(b"content-type", b"application/cloudevents+json")]


@pytest.mark.parametrize(
    ("event", "content_type", "body"),
    [
        (CloudEvent(dict(REQUIRED)), None, b""),
        (CloudEvent(dict(REQUIRED), b"x", DataForm.BINARY), None, b"x"),
        (CloudEvent(dict(REQUIRED), b'"x"', DataForm.JSON), b"application/json", b'"x"'),
        (CloudEvent(REQUIRED | {"datacontenttype": "a/b"}), b"a/b", b""),
    ],
)
def test_content_type_is_not_invented_but_for_json(event: CloudEvent, content_type: bytes | None, body: bytes) -> None:
    headers, written = http.encode_binary(event)
    assert (dict(headers).get(b"content-type"), written) == (content_type, body)


def text_event(content_type: str, text: str) -> CloudEvent:
    return CloudEvent(REQUIRED | {"datacontenttype": content_type}, text.encode(), DataForm.TEXT)


def test_text_is_written_in_its_charset() -> None:
    assert http.encode_binary(text_event("text/plain; charset=ISO-8859-1", "é"))[1] == b"\xe9"
    assert http.encode_binary(text_event("text/plain", "é"))[1] == "é".encode()


@pytest.mark.parametrize("charset", ["us-ascii", "klingon", '""', "base64"])
def test_text_that_its_charset_cannot_express_needs_structured_mode(charset: str) -> None:
    with pytest.raises(InvalidEvent, match="structured mode"):
        http.encode_binary(text_event(f"text/plain; charset={charset}", "é"))


def test_event_within_an_event_needs_structured_mode() -> None:
    event = CloudEvent(REQUIRED | {"datacontenttype": "Application/CloudEvents+json"}, b"{}", DataForm.JSON)
    with pytest.raises(InvalidEvent, match="structured mode"):
        http.encode_binary(event)
    assert http.decode(*http.encode_structured(event)).events == [event]


@pytest.mark.parametrize(
    ("headers", "body", "data"),
    [
        (CE, b"", None),
        (CE, b"x", b"x"),
        ([*CE, (b"content-type", b"text/plain")], b"", b""),
        ([*CE, (b"content-type", b"text/plain")], b"x", b"x"),
    ],
)
def test_empty_body(headers: Headers, body: bytes, data: bytes | None) -> None:
    assert http.decode_binary(headers, body).data == data


def test_headers_that_are_no_attributes_are_left_alone() -> None:
    more = [(b"x-ce-y", b"1"), (b"ce", b"1"), (b"cex", b"1"), (b"host", b"a"), (b"host", b"b"), (b"x", b"\xff")]
    assert http.decode_binary([*more, *CE], b"").attributes == REQUIRED


def test_quoted_and_needlessly_coded_values() -> None:
    headers = [*CE, (b"ce-a", b'"b \\"c\\""'), (b"ce-d", b"%65"), (b"ce-subject", b"100%2525")]
    assert http.decode_binary(headers, b"").attributes == REQUIRED | {"a": 'b "c"', "d": "e", "subject": "100%25"}


def test_datacontenttype_header() -> None:
    same = (b"ce-datacontenttype", b"text/plain;%20x=y")
    event = http.decode_binary([same, *CE, (b"content-type", b"text/plain; x=y")], b"")
    assert event.attributes["datacontenttype"] == "text/plain; x=y"
    for headers in ([*CE, same], [*CE, same, (b"content-type", b"text/plain")]):
        with pytest.raises(InvalidEvent) as caught:
            http.decode_binary(headers, b"")
        assert caught.value.attribute == "ce-datacontenttype"


@pytest.mark.parametrize(
    ("headers", "attribute"),
    [
        *[(CE[:n] + CE[n + 1 :], name) for n, name in enumerate(REQUIRED)],
        ([*CE, (b"ce-id", b"1")], "ce-id"),
        ([*CE, (b"ce-my_ext", b"1")], "ce-my_ext"),
        ([*CE, (b"ce-data", b"1")], "ce-data"),
        ([*CE, (b"ce-", b"1")], "ce-"),
        ([*CE, (b"ce-\xe9", b"1")], "ce-é"),
        ([*CE, (b"ce-" + b"x" * 100 + b"_", b"1")], "ce-" + "x" * 100 + "_"),
        ([*CE, (b"ce-x", b"%zz")], "x"),
        ([*CE, (b"ce-x", "é".encode())], "x"),
        ([*CE, (b"ce-x", b"a%0Ab")], "x"),
        ([*CE, (b"ce-x", b"a\0b")], "x"),
        ([*CE, (b"ce-x", b"\t\0"), (b"ce-y", b"%30")], "x"),
        ([*CE, (b"ce-time", b"now")], "time"),
        ([(b"ce-specversion", b"0.3"), (b"ce-x", b"%"), *CE[1:]], "specversion"),
        ([(b"ce-specversion", b""), *CE[1:]], "specversion"),
        ([*CE, (b"content-type", b"")], "datacontenttype"),
        ([*CE, (b"content-type", b"json")], "datacontenttype"),
        ([*CE, (b"content-type", b"text/pl\xe4in")], "content-type"),
        ([*CE, (b"content-type", b"a/b"), (b"content-type", b"a/b")], "content-type"),
    ],
)
def test_invalid_binary_events(headers: Headers, attribute: str) -> None:
    for _ in range(2):  # nothing that was learned from the first attempt makes it valid
        with pytest.raises(InvalidEvent) as caught:
            http.decode(headers, b"")
        assert caught.value.attribute == attribute
        assert not caught.value.unsupported


def test_version_may_be_coded() -> None:
    assert http.decode_binary([(b"ce-specversion", b'"1.%30"'), *CE[1:]], b"").attributes == REQUIRED


def test_missing_headers_are_named() -> None:
    with pytest.raises(InvalidEvent, match="specversion: a required attribute is missing, and so are id, type"):
        http.decode([(b"ce-source", b"/s")], b"")


def test_no_event_at_all() -> None:
    with pytest.raises(InvalidEvent, match="no CloudEvent") as caught:
        http.decode(typed(b"application/json"), BODY)
    assert "application/cloudevents+json" in str(caught.value)


@pytest.mark.parametrize(
    "content_type",
    [
        b"application/cloudevents",
        b"application/cloudevents+xml",
        b"application/cloudevents-batch+xml",
        b"application/cloudeventsx+json",
        b"application/cloudevents+json; charset=utf-16",
        b'application/cloudevents-batch+json; charset="latin-1"',
    ],
)
def test_unsupported_formats(content_type: bytes) -> None:
    with pytest.raises(InvalidEvent) as caught:
        http.decode(typed(content_type), BODY)
    assert caught.value.unsupported


def test_unsupported_format_names_the_supported_ones() -> None:
    with pytest.raises(InvalidEvent, match=r"application/cloudevents\+json or application/cloudevents-batch\+json"):
        http.decode(typed(b"application/cloudevents+xml"), BODY)


def test_structured_reads_the_body_alone() -> None:
    headers = typed(b'Application/CloudEvents+JSON ; charset="UTF-8"; x=y', (b"ce-id", b"other"), (b"ce-b_d", b"%"))
    assert http.decode(headers, BODY).events == [CloudEvent(REQUIRED)]


def test_two_content_types() -> None:
    headers = [*typed(b"application/cloudevents+json"), *typed(b"application/cloudevents+json")]
    with pytest.raises(InvalidEvent, match="more than once"):
        http.decode(headers, BODY)


def test_batch() -> None:
    headers = typed(b"application/cloudevents-batch+json")
    assert http.decode(headers, b"[]") == (ContentMode.BATCHED, [])
    assert len(http.decode(headers, b"[" + BODY + b"," + BODY + b"]").events) == 2
    with pytest.raises(InvalidBatch):
        http.decode(headers, b"[{}]")
    with pytest.raises(InvalidEvent, match="at most 1 events"):
        http.decode(headers, b"[" + BODY + b"," + BODY + b"]", batch_limit=1)


def test_memory_of_header_names_is_bounded() -> None:
    names = http._AttributeNames()
    for n in range(names.LIMIT * 2):
        assert names[b"ce-x%d" % n] == f"x{n}"
    assert names[b"x" * (names.LONGEST + 1)] is None
    assert len(names) == names.LIMIT
    names.clear()
    assert names[b"ce-" + b"x" * names.LONGEST] == "x" * names.LONGEST
    assert not names
