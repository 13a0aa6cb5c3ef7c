import pytest

from mesh.codec.media_type import charset, is_json, is_text


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        ("application/json", True),
        ("APPLICATION/JSON", True),
        ("application/json; charset=utf-8", True),
        ("text/json", True),
        ("model/gltf+json ;x=y", True),
        ("application/cloudevents+json", True),
        ("application/jsonl", False),
        ("application/json-seq", False),
        ("application/x+json+gzip", False),
        ("text/plain; x=+json", False),
        ("json", False),
        ("", False),
        (None, False),
    ],
)
def test_is_json(content_type: str | None, expected: bool) -> None:
    assert is_json(content_type) is expected


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [("text/x", True), ("Application/XML", True), ("a/b+xml;c=d", True), ("application/octet-stream", False)],
)
def test_is_text(content_type: str, expected: bool) -> None:
    assert is_text(content_type) is expected


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        ("text/plain", None),
        ("text/plain; charset=UTF-8", "utf-8"),
        ('text/plain;x=1; Charset="Utf\\-16"', "utf-16"),
        ('text/plain; x="; charset=utf-16"', None),
        ("text/plain; notcharset=x", None),
        ("text/plain;; charset=a; charset=b", "a"),
        ('text/plain; charset=""', ""),
    ],
)
def test_charset(content_type: str, expected: str | None) -> None:
    assert charset(content_type) == expected
