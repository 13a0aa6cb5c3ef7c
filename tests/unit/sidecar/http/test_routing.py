from __future__ import annotations

from contextlib import suppress
from urllib.parse import quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.http.routing import BadEscape, Router, clean_path


def endpoint(name: str):
    async def app(scope, receive, send):
        scope["served by"] = name

    return app


TEMPLATES = [
    (("POST", "PUT"), "/v1.0/publish/{pubsub}/{topic:path}"),
    (("POST", "PUT"), "/v1.0/publish/bulk/{pubsub}/{topic:path}"),
    (("POST", "PUT"), "/v1.0/state/{store}"),
    (("GET", "DELETE"), "/v1.0/state/{store}/{key}"),
    (("POST", "PUT"), "/v1.0/state/{store}/bulk"),
    (("GET",), "/v1.0/healthz"),
    (("GET",), "/v1.0/healthz/outbound"),
    (("*",), "/mesh/{rest:path}"),
    (("GET",), "/"),
]


def router(fallback=None, **filters) -> Router:
    routes = Router(fallback, **filters)
    for methods, template in TEMPLATES:
        routes.add(methods, template, endpoint(template), group=template.split("/")[1].replace(".0", "") + "/x")
    return routes


async def call(routes: Router, method: str, raw_path: bytes):
    """What the app saw: (template, parameters); or the status and body that the router answered."""
    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": method, "raw_path": raw_path, "headers": []}
    await routes(scope, None, send)
    if sent:
        return sent[0]["status"], sent[1]["body"].decode()
    return scope["served by"], scope.get("path_params")


PUBLISH, BULK, STORE, KEY, BULK_GET = (template for _, template in TEMPLATES[:5])


@pytest.mark.parametrize(
    ("method", "path", "template", "parameters"),
    [
        ("POST", b"/v1.0/publish/ps/orders", PUBLISH, {"pubsub": "ps", "topic": "orders"}),
        ("PUT", b"/v1.0/publish/ps/a/b/c", PUBLISH, {"pubsub": "ps", "topic": "a/b/c"}),
        ("POST", b"/v1.0/publish/ps/%2F", PUBLISH, {"pubsub": "ps", "topic": "/"}),
        ("POST", b"/v1.0/publish/bulk/x/y", BULK, {"pubsub": "x", "topic": "y"}),
        ("POST", b"/v1.0/publish/bulk/x", PUBLISH, {"pubsub": "bulk", "topic": "x"}),
        ("POST", b"/v1.0/state/s", STORE, {"store": "s"}),
        ("GET", b"/v1.0/state/s/k", KEY, {"store": "s", "key": "k"}),
        ("POST", b"/v1.0/state/s/bulk", BULK_GET, {"store": "s"}),
        ("GET", b"/v1.0/state/s/bulk", KEY, {"store": "s", "key": "bulk"}),
        ("GET", b"/v1.0/state/s/a%2Fb", KEY, {"store": "s", "key": "a/b"}),
        ("GET", b"/v1.0/state/s/a+b%20c%2Bd", KEY, {"store": "s", "key": "a b c+d"}),
        ("GET", b"/v1.0/state/s/%C3%A4", KEY, {"store": "s", "key": "ä"}),
        ("GET", b"/v1.0////state/./s/x/../k//", KEY, {"store": "s", "key": "k"}),
        ("GET", b"/../v1.0/state/s/.k", KEY, {"store": "s", "key": ".k"}),
        ("GET", b"/v1.0/state/s/%2e%2e", KEY, {"store": "s", "key": ".."}),
        ("GET", b"/v1.0/healthz/", "/v1.0/healthz", {}),
        ("GET", b"/v1.0/healthz/outbound", "/v1.0/healthz/outbound", {}),
        ("PATCH", b"/mesh/a//b", "/mesh/{rest:path}", {"rest": "a/b"}),
        ("GET", b"/", "/", {}),
        ("GET", b"//", "/", {}),
        ("GET", b"/..", "/", {}),
    ],
)
async def test_dapr_path_rules(method, path, template, parameters) -> None:
    assert await call(router(endpoint("fallback")), method, path) == (template, parameters)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", b"/v1.0/publish/ps/orders"),  # wrong method: no 405
        ("POST", b"/v1.0/publish/ps"),
        ("POST", b"/v1.0/publish/ps/"),  # a topic never ends in /
        ("POST", b"/v1.0/PUBLISH/ps/orders"),
        ("HEAD", b"/v1.0/healthz"),
        ("GET", b"/v1.0"),
        ("GET", b"/v1.0/state/s/a/b"),
        ("GET", b"/mesh"),
        ("POST", b"/"),
        ("GET", b"/nothing/%zz"),  # the fallback decodes by its own rules
    ],
)
async def test_everything_else_goes_to_the_fallback_untouched(method, path) -> None:
    assert await call(router(endpoint("fallback")), method, path) == ("fallback", None)


@pytest.mark.parametrize("escape", [b"%", b"%4", b"%zz", b"%C3", b"%ff", b"a%2", b"%+1", b"% 1", b"%-1"])
async def test_a_bad_escape_is_400_in_plain_text(escape: bytes) -> None:
    status, text = await call(router(), "GET", b"/v1.0/state/s/" + escape)
    assert status == 400
    assert text.startswith('failed to unescape request parameter "key"')


async def test_without_a_fallback_unknown_paths_are_404_and_wrong_methods_405() -> None:
    assert await call(router(), "GET", b"/nothing") == (404, "404 page not found\n")
    assert await call(router(), "POST", b"/v1.0/healthz") == (405, "")
    assert await call(router(), "PATCH", b"/v1.0/state/s/bulk") == (405, "")


@pytest.mark.parametrize("template", ["v1.0/x", "/a//b", "/a/{b", "/a/{b c}", "/a/{b:path}/c", "/a/../b"])
def test_templates_that_are_none(template: str) -> None:
    with pytest.raises(ValueError, match=r"template|parameter|follow"):
        Router().add(["GET"], template, endpoint("x"), group="v1/x")


def test_a_second_app_for_a_route_is_refused() -> None:
    routes = Router()
    routes.add(["GET"], "/a/{b}", endpoint("x"), group="v1/x")
    with pytest.raises(ValueError, match="already"):
        routes.add(["GET"], "/a/{c}", endpoint("y"), group="v1/x")


names = st.text(min_size=1, max_size=12).filter(lambda text: text.encode("utf-8", "ignore") == text.encode("utf-8"))


@given(names.filter(lambda name: name not in (".", "..", "bulk")), names.filter(lambda name: name not in (".", "..")))
def test_any_name_survives_escaping(pubsub: str, key: str) -> None:
    path = f"/v1.0/state/{quote_plus(pubsub, safe='')}/{quote_plus(key, safe='')}".encode()
    matched = router().match("GET", path)
    assert matched is not None
    assert matched[1] == {"store": pubsub, "key": key}


@given(st.binary(max_size=60))
def test_any_bytes_match_or_not_but_never_fail_otherwise(tail: bytes) -> None:
    for prefix in (b"/", b"/v1.0/publish/ps/", b"/v1.0/state/"):
        with suppress(BadEscape):
            router().match("POST", prefix + tail)


@given(st.lists(st.sampled_from([b"", b".", b"..", b"a", b"%2e", b".b"]), max_size=8))
def test_cleaning_twice_changes_nothing(segments: list[bytes]) -> None:
    cleaned = clean_path(b"/" + b"/".join(segments))
    assert clean_path(cleaned) == cleaned
    assert cleaned == b"/" or not {b"", b".", b".."} & set(cleaned[1:].split(b"/"))


async def test_a_denied_api_is_served_by_the_fallback() -> None:
    routes = Router(
        endpoint("fallback"), permits=lambda group, template: (group, template[:11]) != ("v1/state", "/v1.0/state")
    )
    routes.add(["GET"], "/v1.0/state/{s}/{k}", endpoint("state"), group="v1/state")
    assert await call(routes, "GET", b"/v1.0/state/s/k") == ("fallback", None)
