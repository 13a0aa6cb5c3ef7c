from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import MeshError
from sidecar.channel.guard import UnsafeRequest, header_lines, request_line, token_line


def test_the_request_line():
    assert request_line("POST", "/a%20b/c?x=1&y=%22") == b"POST /a%20b/c?x=1&y=%22 HTTP/1.1"


@pytest.mark.parametrize(
    "path", ["", "a", "*", "http://evil/", "/a b", "/a\r\nx: y", "/a\n", "/a\x00", "/a\t", "/ü", "/a#b", "/\x7f"]
)  # fmt: skip
def test_paths_that_cannot_be_sent(path):
    with pytest.raises(UnsafeRequest):
        request_line("GET", path)


@pytest.mark.parametrize("method", ["", "GET ", "G\r\nET", "GET / HTTP/1.1\r\n", "GÉT", "GE:T", "CONNECT"])
def test_methods_that_cannot_be_sent(method):
    with pytest.raises(UnsafeRequest, match="no method that an app can be called with"):
        request_line(method, "/")


def test_an_unsafe_request_is_a_value_error_and_a_mesh_error():
    assert issubclass(UnsafeRequest, ValueError)
    assert issubclass(UnsafeRequest, MeshError)


@pytest.mark.parametrize("name", ["", "a b", "a:", "a\r\nb", "a\n", "ü", "a\x00", b"a b", b"\xff", "a(b)"])
def test_names_that_are_no_tokens(name):
    with pytest.raises(UnsafeRequest, match="no header name"):
        header_lines([("ok", "1"), (name, "v")])


@pytest.mark.parametrize("value", ["a\r\nb: c", "a\n", "\r", "\x00", "\x1f", "\x7f", b"\x00", "\ud800"])
def test_values_with_control_characters(value):
    with pytest.raises(UnsafeRequest):
        header_lines([("x-a", value)])


def test_the_error_does_not_show_the_value():
    with pytest.raises(UnsafeRequest) as caught:
        header_lines([("authorization", "Bearer s3cret\n")])
    assert "authorization" in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_text_is_sent_as_utf8_and_bytes_as_they_are():
    assert header_lines([("X-A", "ü\t€"), (b"x-b", b"\xfc")]) == "X-A: ü\t€\r\n".encode() + b"x-b: \xfc\r\n"


@pytest.mark.parametrize(
    "name",
    [
        "host", "Host", "content-length", "Content_Length", "transfer-encoding", "connection", "Keep-Alive", "te",
        "trailer", "upgrade", "http2-settings", "proxy-connection", "expect", "dapr-api-token", "Dapr_Api_Token", b"TE",
    ],
)  # fmt: skip
@pytest.mark.parametrize("own", [False, True])
def test_headers_that_are_nobodys_to_set(name, own):
    assert header_lines([(name, "x"), ("x-a", "1")], own=own) == b"x-a: 1\r\n"


@pytest.mark.parametrize("name", ["dapr-app-id", "Dapr-Caller-App-Id", "dapr_caller_app_id", b"DAPR-anything"])
def test_headers_that_are_only_the_sidecars_to_set(name):
    assert header_lines([(name, "x")]) == b""
    assert header_lines([(name, "x")], own=True) != b""


def test_names_that_only_look_like_them_pass():
    names = ["x-host", "dapr", "daprd-x", "xdapr-x", "content-lengthy"]
    assert header_lines([(name, "") for name in names]).count(b"\r\n") == len(names)


@given(st.lists(st.tuples(st.text(max_size=8), st.text(max_size=8))))
def test_each_header_is_one_line_or_none(headers):
    try:
        lines = header_lines(headers)
    except UnsafeRequest:
        return
    assert lines == b"" or lines.endswith(b"\r\n")
    parts = lines.split(b"\r\n")
    assert len(parts) - 1 <= len(headers)
    assert not any(control in part for part in parts for control in (b"\r", b"\n", b"\0"))


def test_the_token():
    assert token_line("abc") == b"dapr-api-token: abc\r\n"
    with pytest.raises(UnsafeRequest) as caught:
        token_line("s3cret\r\nx: y")
    assert "s3cret" not in str(caught.value)
