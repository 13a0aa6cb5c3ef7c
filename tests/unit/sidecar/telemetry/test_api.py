"""The wrappers around the API, with requests and answers as plain messages."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mesh.errors import ApiError, Code
from mesh.telemetry import Kind
from mesh.telemetry_settings import MetricsSettings
from sidecar.api.request import context
from sidecar.http.responses import CatchErrors, send_response
from sidecar.telemetry.api import CountErrors, Exposition, MeteredApi, TracedApi
from sidecar.telemetry.metrics import OTHER, Registry
from sidecar.telemetry.tracing import SamplingTracer, SpanRecord

CALLER = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
Headers = Sequence[tuple[bytes, bytes]]


async def request(
    app: ASGIApp, path: str = "/v1.0/publish/pubsub/a", headers: Headers = (), method: str = "POST"
) -> list[Message]:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        raise AssertionError("nobody reads here")

    raw_path = path.partition("?")[0].encode()
    scope = {"type": "http", "method": method, "raw_path": raw_path, "path": path, "scheme": "http"}
    await app({**scope, "headers": list(headers), "query_string": b"secret=1"}, receive, send)
    return sent


class Traced:
    def __init__(self, status: int = 204, headers: Headers = (), error: Exception | None = None) -> None:
        self.spans: list[SpanRecord] = []
        self.seen: str | None = None
        self._answer = status, list(headers), error
        self.app = TracedApi(CatchErrors(self._handle), SamplingTracer(1.0, [self.spans.append]))

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        status, headers, error = self._answer
        trace = context(scope).trace
        self.seen = None if trace is None else trace.traceparent
        if error is not None:
            raise error
        await send_response(send, status, headers, b"")


async def test_the_span_of_a_request() -> None:
    api = Traced()
    headers = [
        (b"host", b"localhost:3500"),
        (b"traceparent", CALLER),
        (b"dapr-app-id", b"b"),
        (b"dapr-api-token", b"x"),
    ]
    start, _ = await request(api.app, headers=headers)
    (span,) = api.spans
    assert (span.kind, span.name, span.parent_id) == (Kind.SERVER, "/v1.0/publish/pubsub/a", "00f067aa0ba902b7")
    assert span.attributes == {
        "dapr.api": "POST /v1.0/publish/pubsub/a",
        "dapr.protocol": "http",
        "dapr.status_code": "204",
        "dapr-app-id": "b",
        "http.request.method": "POST",
        "http.response.status_code": 204,
        "url.path": "/v1.0/publish/pubsub/a",
        "url.full": "http://localhost:3500/v1.0/publish/pubsub/a",
        "server.address": "localhost",
        "server.port": 3500,
    }  # no token, no query
    assert api.seen == span.context.traceparent
    assert start["headers"] == [(b"traceparent", span.context.traceparent.encode())]


async def test_what_the_handler_answers_as_traceparent_stays() -> None:
    api = Traced(headers=[(b"traceparent", b"of the handler")])
    start, _ = await request(api.app)
    assert start["headers"] == [(b"traceparent", b"of the handler")]


@pytest.mark.parametrize("path", ["/v1.0/healthz", "/v1.0/healthz/outbound"])
async def test_health_is_not_traced(path: str) -> None:
    api = Traced()
    start, _ = await request(api.app, path, [(b"traceparent", CALLER)], "GET")
    assert not api.spans
    assert start["headers"] == []
    assert api.seen == CALLER.decode()


@pytest.mark.parametrize(
    "failing",
    [Traced(503), Traced(error=ApiError(Code.EVENT_NOT_STORED, "secret")), Traced(error=ApiError(Code.INTERNAL, "x"))],
)
async def test_an_answer_from_400_on_is_an_error(failing: Traced) -> None:
    start, *_ = await request(failing.app)
    assert failing.spans[0].error == f"Code({start['status']})"


def metered(settings: MetricsSettings | None = None, status: int = 204) -> tuple[MeteredApi, Registry]:
    async def handle(scope: Scope, receive: Receive, send: Send) -> None:
        await send_response(send, status, [], b"four")

    registry = Registry({})
    return MeteredApi(handle, registry, settings or MetricsSettings()), registry


def text(registry: Registry) -> str:
    return "".join(registry.render())


async def test_requests_are_counted_with_their_sizes() -> None:
    app, registry = metered()
    await request(app, headers=[(b"content-length", b"2000")])
    await request(app, headers=[(b"content-length", b"2000")])
    await request(app, method="BREW")
    labels = 'path="/v1.0/publish/pubsub/a",status="204"'
    assert f'dapr_http_server_request_count{{method="POST",{labels}}} 2\n' in text(registry)
    assert f'dapr_http_server_latency_count{{method="UNKNOWN",{labels}}} 1\n' in text(registry)
    assert 'dapr_http_server_request_bytes_bucket{le="1024"} 1\n' in text(registry)
    assert "dapr_http_server_request_bytes_sum{} 4000\n" in text(registry)
    assert "dapr_http_server_response_bytes_sum{} 12\n" in text(registry)


async def test_any_number_of_paths_takes_bounded_space() -> None:
    app, registry = metered()
    for number in range(5000):
        await request(app, f"/v1.0/state/store/{number}")
        await request(app, f"/any/{number}")
    assert 'path="/v1.0/state/store",status="204"} 5000\n' in text(registry)
    assert f'path="{OTHER}"' in text(registry)
    assert text(registry).count("dapr_http_server_request_count{") <= 101
    assert len(app._series) <= 2000


async def test_errors_are_counted_by_code_and_go_on() -> None:
    async def fail(scope: Scope, receive: Receive, send: Send) -> None:
        raise ApiError(Code.PUBSUB_FORBIDDEN, "no")

    registry = Registry({})
    with pytest.raises(ApiError):
        await request(CountErrors(fail, registry))
    assert 'dapr_error_code_total{error_code="ERR_PUBSUB_FORBIDDEN",category="pubsub"} 1\n' in text(registry)


async def test_a_large_exposition_comes_whole() -> None:
    registry = Registry({})
    for number in range(90):
        family = registry.histogram(f"h{number}", "", MetricsSettings().buckets, ("topic",))
        for topic in range(20):
            family.labels(str(topic)).observe(1)
    start, body = await request(Exposition(registry), method="GET")
    assert body["body"].decode() == text(registry)
    assert dict(start["headers"])[b"content-length"] == str(len(body["body"])).encode()
