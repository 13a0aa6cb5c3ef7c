"""Hypothesis strategies for valid events, each part as wild as the specification allows."""

import json
from datetime import timedelta, timezone

from hypothesis import strategies as st

from mesh.codec.attributes import INT32_MAX, INT32_MIN
from mesh.event import Attributes, CloudEvent, DataForm

NONCHARACTERS = "".join(map(chr, range(0xFDD0, 0xFDF0))) + "".join(
    chr(plane << 16 | low) for plane in range(17) for low in (0xFFFE, 0xFFFF)
)
KNOWN = {"specversion", "id", "source", "type", "datacontenttype", "dataschema", "subject", "time"}
KNOWN |= {"partitionkey", "sequence", "expirytime", "dataref", "data"}

texts = st.text(st.characters(exclude_categories=["Cc", "Cs"], exclude_characters=NONCHARACTERS), max_size=30)
filled = texts.filter(bool)
references = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E) | st.sampled_from("é€😀"), min_size=1)
zones = st.integers(-23 * 60 - 59, 23 * 60 + 59).map(lambda minutes: timezone(timedelta(minutes=minutes)))
moments = st.datetimes(timezones=zones)
timestamps = moments.map(lambda moment: moment.isoformat()) | moments.map(
    lambda moment: moment.replace(tzinfo=None).isoformat() + "Z"
)
names = st.from_regex(r"[a-z0-9]{1,20}", fullmatch=True).filter(lambda name: name not in KNOWN)
extensions = st.dictionaries(names, texts | st.integers(INT32_MIN, INT32_MAX) | st.booleans(), max_size=4)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda values: st.lists(values, max_size=4) | st.dictionaries(texts, values, max_size=4),
    max_leaves=12,
)
json_texts = st.one_of(
    json_values.map(lambda value: json.dumps(value, ensure_ascii=False).encode()),
    json_values.map(lambda value: json.dumps(value).encode()),
    st.sampled_from([b"1e400", b'{"a":1,"a":2}', b"12345678901234567890123", b"null", b'""', b'"{}"', b'"\\u0000"']),
)
JSON_TYPES = ["application/json", "Application/JSON; charset=utf-8", "text/json", "model/gltf+json"]
TEXT_TYPES = ["text/plain", "text/html; charset=UTF-8", "application/xml", "image/svg+xml"]
BINARY_TYPES = [None, "application/octet-stream", "image/png", *JSON_TYPES, *TEXT_TYPES]


@st.composite
def attributes(draw: st.DrawFn, content_type: str | None) -> Attributes:
    given: Attributes = {
        "id": draw(filled),
        "source": draw(references),
        "type": draw(filled),
        **draw(
            st.fixed_dictionaries(
                {},
                optional={
                    "subject": filled,
                    "time": timestamps,
                    "dataschema": references.map("urn:".__add__),
                    "partitionkey": filled,
                },
            )
        ),
        **draw(extensions),
        "specversion": "1.0",
    }
    if content_type is not None:
        given["datacontenttype"] = content_type
    order = draw(st.permutations(list(given)))
    return {name: given[name] for name in order}


@st.composite
def events(draw: st.DrawFn) -> CloudEvent:
    form = draw(st.sampled_from(DataForm))
    data: bytes | None
    if form is DataForm.JSON:
        content_type, data = draw(st.sampled_from([None, *JSON_TYPES])), draw(json_texts)
    elif form is DataForm.TEXT:
        content_type, data = draw(st.sampled_from(TEXT_TYPES)), draw(st.text().map(lambda t: t.encode()))
    else:
        content_type, data = draw(st.sampled_from(BINARY_TYPES)), draw(st.none() | st.binary(max_size=50))
    return CloudEvent(draw(attributes(content_type)), data, form)
