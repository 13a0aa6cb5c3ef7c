from __future__ import annotations

import json

import pytest

from sidecar.http.guard import Guard

LOCAL = ("host", "localhost:3500")


async def call(
    headers, *, method="POST", path=b"/v1.0/publish/ps/t", server=("127.0.0.1", 3500), answer=(), **settings
):
    """(status, response headers, body, headers that the app saw or None)."""
    seen = None
    sent = []

    async def app(scope, receive, send):
        nonlocal seen
        seen = [(name.decode(), value.decode()) for name, value in scope["headers"]]
        await send({"type": "http.response.start", "status": 204, "headers": list(answer)})
        await send({"type": "http.response.body", "body": b""})

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": method,
        "raw_path": path,
        "scheme": "http",
        "server": server,
        "headers": [(name.encode(), value.encode()) for name, value in headers],
    }
    await Guard(app, **settings)(scope, None, send)
    fields = [(name.decode(), value.decode()) for name, value in sent[0]["headers"]]
    return sent[0]["status"], fields, sent[1]["body"], seen


async def test_the_token_is_checked_and_taken_away() -> None:
    status, _, _, seen = await call([("host", "any.where"), ("dapr-api-token", "s3"), ("x", "y")], token="s3")
    assert status == 204
    assert seen == [("host", "any.where"), ("x", "y")]


@pytest.mark.parametrize("given", [[], [("dapr-api-token", "")], [("dapr-api-token", "S3")], [("dapr-api-token", "ä")]])
async def test_a_missing_or_wrong_token_is_401_as_in_dapr(given) -> None:
    status, fields, body, seen = await call([LOCAL, *given], token="s3")
    assert (status, body, seen) == (401, b"invalid api token\n", None)
    assert ("content-type", "text/plain; charset=utf-8") in fields


async def test_without_a_configured_token_the_header_stays() -> None:
    assert (await call([LOCAL, ("dapr-api-token", "x")]))[3] == [LOCAL, ("dapr-api-token", "x")]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", b"/v1.0/healthz", 204),
        ("GET", b"/v1.0//healthz/", 204),
        ("GET", b"/v1.0/healthz/outbound", 204),
        ("POST", b"/v1.0/healthz", 401),
        ("GET", b"/v1.0/metadata", 401),
        ("GET", b"/v1.0/healthz/../metadata", 401),
    ],
)
async def test_only_the_health_probes_need_no_token(method, path, status) -> None:
    assert (await call([("host", "10.0.0.7")], method=method, path=path, token="s3"))[0] == status


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LocalHost:3500",
        "orders.localhost:1",
        "127.0.0.1:3500",
        "127.9.9.9",
        "[::1]:3500",
        "[::1]",
        "localhost.",
    ],
)
async def test_local_hosts_pass_without_a_token(host: str) -> None:
    assert (await call([("host", host)]))[0] == 204


@pytest.mark.parametrize(
    "host",
    [
        "",
        "evil.com",
        "evil.com:3500",
        "localhost.evil.com",
        "evillocalhost",
        "10.0.0.1",
        "127.0.0.1.nip.io",
        "[::2]",
        "[",
        ":",
        "::1:x",
    ],
)
async def test_foreign_hosts_are_refused_without_a_token(host: str) -> None:
    status, _, body, seen = await call([("host", host)])
    assert (status, seen) == (403, None)
    assert json.loads(body)["errorCode"] == "ERR_HOST_REFUSED"
    assert (await call([("host", host)], method="GET", path=b"/v1.0/healthz"))[0] == 204


async def test_allowed_hosts_and_unix_sockets_take_other_names() -> None:
    assert (await call([("host", "orders-dapr:3500")], allowed_hosts=["Orders-dapr"]))[0] == 204
    assert (await call([("host", "whatever")], server=("/run/dapr-a-http.socket", None)))[0] == 204


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([("origin", "http://localhost:3500")], 204),  # our own pages
        ([("origin", "http://localhost:8080")], 403),
        ([("origin", "https://evil.com")], 403),
        ([("origin", "null")], 403),
        ([("sec-fetch-site", "cross-site")], 403),  # an <img> sends no Origin
        ([("sec-fetch-site", "same-origin")], 204),
        ([("sec-fetch-site", "none")], 204),
    ],
)
async def test_web_pages_are_refused_without_a_token(headers, status) -> None:
    got, _, body, seen = await call([LOCAL, *headers])
    assert got == status
    assert (seen is None) == (status == 403)
    assert status == 204 or json.loads(body)["errorCode"] == "ERR_ORIGIN_REFUSED"


@pytest.mark.parametrize(
    ("allowed", "origin", "echoed"),
    [
        (["*"], "https://a.com", "*"),
        (["https://a.com", "https://b.com"], "https://b.com", "https://b.com"),
        (["https://*.a.com"], "https://x.a.com", "https://x.a.com"),
    ],
)
async def test_an_allowed_origin_may_call_and_is_told_so(allowed, origin, echoed) -> None:
    answer = [(b"access-control-allow-origin", b"https://of.the.app")]
    status, fields, _, _ = await call([LOCAL, ("origin", origin)], allowed_origins=allowed, answer=answer)
    assert status == 204
    assert fields == [("vary", "Origin"), ("access-control-allow-origin", echoed)]


@pytest.mark.parametrize(
    ("allowed", "origin"), [(["https://a.com"], "https://a.com.evil"), (["https://*.a.com"], "https://a.com")]
)
async def test_another_origin_is_refused_without_token_and_gets_no_header_with_one(allowed, origin) -> None:
    assert (await call([LOCAL, ("origin", origin)], allowed_origins=allowed))[0] == 403
    headers = [LOCAL, ("origin", origin), ("dapr-api-token", "s3")]
    status, fields, _, _ = await call(headers, allowed_origins=allowed, token="s3")
    assert (status, fields) == (204, [("vary", "Origin")])


PREFLIGHT = [
    LOCAL,
    ("origin", "https://a.com"),
    ("access-control-request-method", "PUT"),
    ("access-control-request-headers", "x-a, x-b"),
]


@pytest.mark.parametrize("token", [None, "s3"])
async def test_a_preflight_passes_before_the_token(token) -> None:
    status, fields, _, seen = await call(PREFLIGHT, method="OPTIONS", allowed_origins=["*"], token=token)
    assert (status, seen) == (200, None)
    assert dict(fields) == {
        "vary": "Origin, Access-Control-Request-Method, Access-Control-Request-Headers",
        "content-length": "0",
        "access-control-allow-origin": "*",
        "access-control-allow-methods": "HEAD, GET, POST, PUT, PATCH, DELETE",
        "access-control-allow-headers": "x-a, x-b",
    }


async def test_a_preflight_of_another_origin_is_200_without_permission() -> None:
    status, fields, _, _ = await call(PREFLIGHT, method="OPTIONS", allowed_origins=["https://b.com"])
    assert status == 200
    assert not [name for name, _ in fields if name.startswith("access-control")]


async def test_without_cors_a_preflight_is_a_request_like_others() -> None:
    assert (await call(PREFLIGHT, method="OPTIONS", token="s3"))[0] == 401
