from datetime import datetime

import pytest
from hypothesis import given

from mesh.codec import attributes
from mesh.errors import InvalidEvent
from mesh.event import AttributeValue
from tests.unit.mesh.codec.events import NONCHARACTERS, moments, timestamps

MINIMAL: dict[str, AttributeValue] = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t"}

VALID = [
    ("id", " "),
    ("source", "/"),
    ("source", "https://example.com/a?b#c"),
    ("source", "urn:üñï"),
    ("type", "x y"),
    ("datacontenttype", "application/json"),
    ("datacontenttype", 'text/plain; charset="utf-8" ; x=y;'),
    ("datacontenttype", 'multipart/mixed; boundary="a;\\"b"'),
    ("dataschema", "urn:x"),
    ("dataschema", "https://example.com/schema"),
    ("subject", "ü"),
    ("time", "2024-02-29T23:59:59Z"),
    ("time", "2000-02-29T00:00:00.123456789+23:59"),
    ("time", "2024-12-31t23:59:60z"),
    ("time", "0000-02-29T00:00:00-00:00"),
    ("partitionkey", "k"),
    ("expirytime", "2024-01-01T00:00:00Z"),
    ("dataref", "../x"),
    ("sequence", "0001"),
    ("traceid", ""),
    ("x", "\u00a0\u2028\ue000\U0010fffd"),
    ("1", 2**31 - 1),
    ("x", -(2**31)),
    ("x", True),
    ("a" * 100, "long names are only advised against"),
]

INVALID = [
    *[(name, "") for name in ("id", "source", "type", "specversion", "datacontenttype", "dataschema", "subject")],
    *[(name, "") for name in ("time", "partitionkey", "sequence", "expirytime", "dataref")],
    *[(name, 1) for name in ("id", "source", "type", "specversion", "subject", "time", "partitionkey")],
    *[(name, True) for name in ("id", "datacontenttype")],
    *[("specversion", version) for version in ("0.3", "1", "1.0.2", " 1.0", "2.0")],
    *[("source", text) for text in ("a b", " a", "a\u2003b", "a\u00a0")],
    *[("dataschema", text) for text in ("/relative", "x", "1x:y", ":y", "a b:c", "urn:a b")],
    *[("datacontenttype", text) for text in ("json", "a/", "/b", "a/b/c", "a b/c", "a/b; x", "a/b; x=", "a/b, c/d")],
    *[("datacontenttype", text) for text in ('a/b; x="', 'a/b; x="\\"', "text/plän", "a/b ;" + " " * 40 + "!")],
    *[("time", f"2024-{day}T00:00:00Z") for day in ("02-30", "04-31", "13-01", "00-01", "01-00", "01-32")],
    *[("time", f"{year}-02-29T00:00:00Z") for year in ("2023", "1900", "2100")],
    *[("time", f"2024-01-01T{text}") for text in ("24:00:00Z", "00:60:00Z", "00:00:61Z", "00:00Z", "00:00:00")],
    *[("time", f"2024-01-01T00:00:00{text}") for text in ("+02", "+24:00", "+00:60", ".Z", "+0200", "ZZ", "Z ")],
    *[("time", text) for text in ("2024-01-01 00:00:00Z", "2024-01-01", "٢٠٢٤-01-01T00:00:00Z", "now")],
    ("expirytime", "tomorrow"),
    ("dataref", "a b"),
    *[("x", text) for text in ("\0", "a\n", "\x7f", "\x85", "\x9f", "\ud800", "a\udfff", *NONCHARACTERS)],
    *[("subject", text) for text in ("a\tb", "\ufffe")],
    *[(name, "v") for name in ("", "A", "my_ext", "my-ext", "é", "ß", "²", "a b", "data", "data_base64", "a\n", "x.y")],
    *[("x", value) for value in (2**31, -(2**31) - 1, 1.0, None, b"x", [], {})],
]


@pytest.mark.parametrize(("name", "value"), VALID)
def test_valid(name: str, value: AttributeValue) -> None:
    attributes.check(name, value)
    attributes.check_all(MINIMAL | {name: value})


@pytest.mark.parametrize(("name", "value"), INVALID)
def test_invalid(name: str, value: AttributeValue) -> None:
    with pytest.raises(InvalidEvent) as caught:
        attributes.check(name, value)
    assert caught.value.attribute == (name or "''")
    with pytest.raises(InvalidEvent) as whole:
        attributes.check_all(MINIMAL | {name: value})
    assert str(whole.value) == str(caught.value)


def test_error_names_rule_and_value() -> None:
    with pytest.raises(InvalidEvent) as caught:
        attributes.check("time", "yesterday")
    assert str(caught.value) == "time: must be an RFC 3339 timestamp such as '2024-05-01T12:34:56Z' (got 'yesterday')"
    with pytest.raises(InvalidEvent, match=r"x: must not contain the character U\+000A"):
        attributes.check("x", "a\nb")


def test_every_missing_attribute_is_named() -> None:
    with pytest.raises(InvalidEvent, match="id: a required attribute is missing, and so are source, type"):
        attributes.check_all({"specversion": "1.0"})
    for name in attributes.REQUIRED:
        with pytest.raises(InvalidEvent) as caught:
            attributes.check_all({key: value for key, value in MINIMAL.items() if key != name})
        assert str(caught.value) == f"{name}: a required attribute is missing"


def test_version_comes_first() -> None:
    with pytest.raises(InvalidEvent) as caught:
        attributes.check_all({"id": "", "specversion": "2.0"})
    assert caught.value.attribute == "specversion"


def test_media_type_check_is_linear() -> None:
    attributes.check("datacontenttype", "a/b" + "; x=y" * 10_000)
    with pytest.raises(InvalidEvent):
        attributes.check("datacontenttype", "a/b" + " ;" * 50_000 + " !")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1969-12-31T23:59:59.5Z", -0.5),
        ("2024-02-29T12:00:00+01:30", 1709202600),
        ("2016-12-31T23:59:60Z", 1483228800),
        ("0000-03-01T00:00:00Z", -62162035200),
        ("9999-12-31T23:59:59-23:59", 253402387139),
    ],
)
def test_timestamp(text: str, seconds: float) -> None:
    assert attributes.timestamp(text) == seconds


@given(moments)
def test_timestamp_agrees_with_datetime(moment: datetime) -> None:
    assert attributes.timestamp(moment.isoformat()) == pytest.approx(moment.timestamp(), abs=1e-4)


@given(timestamps)
def test_every_isoformat_is_valid(text: str) -> None:
    attributes.check("time", text)


def test_timestamp_refuses_other_text() -> None:
    with pytest.raises(ValueError, match="RFC 3339"):
        attributes.timestamp("2023-02-29T00:00:00Z")
