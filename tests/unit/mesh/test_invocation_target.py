"""Whom a request calls, and with which path."""

import base64

import pytest

from mesh.invocation.target import InvalidTarget, method_path, named, peer, url
from mesh.ports import Peer


def basic(text):
    return (b"authorization", b"Basic " + base64.b64encode(text.encode()))


@pytest.mark.parametrize(
    ("headers", "path", "target", "called"),
    [
        ([], "/v1.0/invoke/b/method/x/y", "b", "/x/y"),
        ([], "/v1.0/invoke/b/method/", "b", "/"),
        ([], "//v1.0////invoke/b//method//x/", "b", "/x"),
        ([], "/v1.0/invoke/b/method/x/method/y", "b", "/x/method/y"),
        ([], "/v1.0/invoke/b.ns/method/x", "b.ns", "/x"),
        ([], "/v1.0/invoke/http://h:1/method/x", "http://h:1", "/x"),
        ([], "/v1.0/invoke/http:/h:1/method/x", "http:/h:1", "/x"),
        ([], "/v1.0/invoke/http:%2F%2Fh:1/method/x", "http://h:1", "/x"),
        ([], "/v1.0/invoke/https%3A%2F%2Fh/method/x", "https://h", "/x"),
        ([(b"dapr-app-id", b"c")], "/v1.0/invoke/b/method/x", "c", "/v1.0/invoke/b/method/x"),
        ([(b"dapr-app-id", b"c")], "/x//y/", "c", "/x/y"),
        ([(b"dapr-app-id", b"")], "/v1.0/invoke/b/method/x", "b", "/x"),
        ([basic("dapr-app-id:c")], "/v1.0/invoke/b/method/x", "c", "/v1.0/invoke/b/method/x"),
        ([basic("dapr-app-id:c"), (b"dapr-app-id", b"d")], "/x", "d", "/x"),
        ([basic("someone:c")], "/v1.0/invoke/b/method/x", "b", "/x"),
        ([basic("dapr-app-id:http://h")], "/v1.0/invoke/b/method/x", "b", "/x"),  # two colons
        ([(b"authorization", b"Basic %%%")], "/v1.0/invoke/b/method/x", "b", "/x"),
        ([(b"authorization", b"Bearer x")], "/v1.0/invoke/b/method/x", "b", "/x"),
    ],
)
def test_the_target_and_its_path(headers, path, target, called):
    found = named(headers, path.encode())
    assert found is not None
    assert (found.target, method_path(found.method)) == (target, called)


@pytest.mark.parametrize(
    "path", ["/", "/x", "/v1.0/invoke/b", "/v1.0/invoke/b/method", "/v1.0/invoke//method/x", "/v2/invoke/b/method/x"]
)
def test_no_target(path):
    assert named([(b"x", b"1")], path.encode()) is None


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        ("a%2Fb", "/a/b"),
        ("admin%2F..%2Fpublic", "/public"),
        ("../../x", "/x"),
        ("%2e%2e/x/.", "/x"),
        ("a+b%20c", "/a+b%20c"),
        ("%25x", "/%25x"),
        ("%252F..%252Fx", "/%252F..%252Fx"),
        ("%C3%A9%FF", "/%C3%A9%FF"),
        ("a'%22*%5C|", "/a'%22*%5C%7C"),
        ("", "/"),
    ],
)
def test_a_path_is_decoded_resolved_and_encoded_again(raw, path):
    assert method_path(raw.encode()) == path


@pytest.mark.parametrize("raw", ["a%23b", "a%3Fb", "a%00b", "a%0D%0AHost:x", "a%7Fb", "a%", "a%zz", "a%2"])
def test_paths_that_are_refused(raw):
    with pytest.raises(InvalidTarget, match="invalid method"):
        method_path(raw.encode())


def test_peers():
    assert peer("a", "ns") == Peer("ns", "a")
    assert peer("a.other", "ns") == Peer("other", "a")


@pytest.mark.parametrize("target", ["a.b.c", "", ".", "a.", ".b", "a*", "a>", "a b", "é", "x" * 65, "a\r\nb"])
def test_targets_that_are_no_app(target):
    with pytest.raises(InvalidTarget, match="invalid app id"):
        peer(target, "ns")


@pytest.mark.parametrize(
    ("target", "origin"),
    [
        ("a", None),
        ("httpbin", None),
        ("http://h", "http://h"),
        ("HTTPS://h:8443/", "https://h:8443"),
        ("http:/h:1", "http://h:1"),
        ("http://[::1]:80", "http://[::1]:80"),
    ],
)
def test_urls(target, origin):
    assert url(target) == origin


@pytest.mark.parametrize(
    "target",
    ["http:", "http://", "http://u:p@h", "http://h/base", "http://h?x", "http://h#x", "http://h\\x", "http://h x"],
)
def test_urls_that_are_refused(target):
    with pytest.raises(InvalidTarget, match="scheme, a host and a port"):
        url(target)
