"""ASGI wrappers that observe the HTTP API, put around it only when somebody listens; and the metrics endpoint."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from time import perf_counter

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mesh import spans, trace
from mesh.errors import ApiError
from mesh.telemetry import Attribute, Kind, Tracer
from mesh.telemetry_settings import MetricsSettings
from sidecar.http.responses import Headers, WatchedSend
from sidecar.telemetry.metrics import Counter, Family, Histogram, Registry
from sidecar.telemetry.paths import PathLabels

SIZES = tuple(1 << power for power in (10, 11, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30, 32))
"""Bounds of body sizes, in bytes (Dapr)."""
KEPT_PATHS = 2000
"""Requests whose labels are looked up at once."""
VERBS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "OPTIONS", "TRACE"))
SECRET_HEADERS = frozenset((b"dapr-api-token",))
SCRAPE_PIECE = 64 << 10
"""Characters of the exposition that are written at once."""


class TracedApi:
    """A server span for each API call but those for health (Dapr). What handlers find in `scope["trace"]` is its
    context, which the answer carries too unless the handler has put one there."""

    def __init__(self, app: ASGIApp, tracer: Tracer) -> None:
        self._app = app
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        raw_path: bytes = scope["raw_path"]
        if b"/healthz" in raw_path:
            await self._app(scope, receive, send)
            return
        path = raw_path.decode("ascii", "replace")
        span = self._tracer.start(Kind.SERVER, path, trace.extract(scope["headers"]))
        context = scope["trace"] = span.context
        status = 0

        def traced(message: Message) -> Awaitable[None]:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers: Headers = list(message.get("headers", ()))
                if context is not None and not any(name == b"traceparent" for name, _ in headers):
                    headers.append((b"traceparent", context.traceparent.encode()))
                    if context.tracestate:
                        headers.append((b"tracestate", context.tracestate.encode()))
                    message = {**message, "headers": headers}
            return send(message)

        if span.recording:
            span.set(_described(scope, path))
        with span:
            await self._app(scope, receive, traced)
            if status:
                spans.answered(span, status)


def _described(scope: Scope, path: str) -> dict[str, Attribute]:
    method = scope["method"]
    attributes: dict[str, Attribute] = {
        "dapr.api": f"{method} {path}",
        "dapr.protocol": "http",
        "http.request.method": method,
        "url.path": path,  # without the query, which may hold what is nobody's business
    }
    for name, value in scope["headers"]:
        if name.startswith(b"dapr-") and name not in SECRET_HEADERS:
            attributes[name.decode("latin-1")] = value.decode("latin-1")
        elif name == b"host":
            host = value.decode("latin-1")
            attributes["url.full"] = f"{scope['scheme']}://{host}{path}"
            address, _, port = host.rpartition(":") if host.rpartition(":")[2].isdigit() else (host, "", "")
            attributes["server.address"] = address
            if port:
                attributes["server.port"] = int(port)
    return attributes


class _RequestSeries:
    """What is counted for requests of one method, path and status."""

    __slots__ = ("_counters", "_latency", "_received", "_sent")

    def __init__(self, counters: tuple[Counter, ...], latency: Histogram, received: Histogram, sent: Histogram) -> None:
        self._counters = counters
        self._latency = latency
        self._received = received
        self._sent = sent

    def record(self, begun: float, received: int, sent: int) -> None:
        for counter in self._counters:
            counter.inc()
        self._latency.observe(1000 * (perf_counter() - begun))
        self._received.observe(received)
        self._sent.observe(sent)


class MeteredApi:
    """Counts requests with their latencies and sizes (Dapr: `http/server/…`)."""

    def __init__(self, app: ASGIApp, registry: Registry, settings: MetricsSettings) -> None:
        self._app = app
        self._paths = PathLabels(settings.path_patterns, every_path=settings.every_path)
        self._with_verbs = not settings.exclude_verbs
        self._series: dict[tuple[str, bytes, int], _RequestSeries] = {}
        self._labelled: dict[tuple[str, str, str], _RequestSeries] = {}
        """The same by labels: there may be many paths to one."""
        labels = ("method", "path", "status")
        dapr = "dapr_http_server"
        self._counts: list[Family[Counter]] = [registry.counter(f"{dapr}_request_count", "API calls.", labels)]
        if settings.every_path:
            self._counts.append(registry.counter(f"{dapr}_response_count", "Answers to API calls.", labels))
        self._latency = registry.histogram(
            f"{dapr}_latency", "Milliseconds until an API call was answered.", settings.buckets, labels
        )
        sizes = ("request_bytes", "Bytes of an API call's body."), ("response_bytes", "Bytes of an answer's body.")
        self._received, self._sent = (
            registry.histogram(f"{dapr}_{name}", help_text, SIZES).labels() for name, help_text in sizes
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = perf_counter()
        watched = WatchedSend(send)
        try:
            await self._app(scope, receive, watched)
        finally:
            key = scope["method"], self._paths.stand_in(scope["raw_path"]), watched.status
            series = self._series.get(key)
            if series is None:
                series = self._find(key)
            series.record(begun, _stated_length(scope), watched.size)

    def _find(self, key: tuple[str, bytes, int]) -> _RequestSeries:
        method, path, status = key
        verb = method if method in VERBS else "UNKNOWN"
        labels = verb if self._with_verbs else "", self._paths.label(path.decode("ascii", "replace")), str(status)
        if len(self._series) >= KEPT_PATHS:
            self._series.clear()
            self._labelled.clear()
        series = self._labelled.get(labels)
        if series is None:
            counters = tuple(family.labels(*labels) for family in self._counts)
            series = _RequestSeries(counters, self._latency.labels(*labels), self._received, self._sent)
            self._labelled[labels] = series
        self._series[key] = series
        return series


def _stated_length(scope: Scope) -> int:
    """Of the body, by its header (Dapr): 0 where it comes in chunks."""
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value)
    return 0


class CountErrors:
    """Counts what the API refuses or fails at, by code (Dapr: `recordErrorCodes`). Stands within `CatchErrors`."""

    _CATEGORIES = (
        ("ERR_PUBSUB", "pubsub"),
        ("ERR_TOPIC", "pubsub"),
        ("ERR_EVENT", "pubsub"),
        ("ERR_DIRECT_INVOKE", "service-invocation"),
        ("ERR_HEALTH", "health"),
        ("ERR_OUTBOUND", "health"),
    )

    def __init__(self, app: ASGIApp, registry: Registry) -> None:
        self._app = app
        self._errors = registry.counter(
            "dapr_error_code_total", "Errors of the API by their code.", ("error_code", "category")
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        except ApiError as error:
            code = error.code.error_code
            category = next((name for start, name in self._CATEGORIES if code.startswith(start)), "common")
            self._errors.labels(code, category).inc()
            raise


class Exposition:
    """The metrics of `registry`, under any path (Dapr). A large scrape lets other work in between."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] not in ("GET", "HEAD"):
            headers = [(b"allow", b"GET, HEAD"), (b"content-length", b"0")]
            await send({"type": "http.response.start", "status": 405, "headers": headers})
            await send({"type": "http.response.body", "body": b""})
            return
        pieces: list[bytes] = []
        part: list[str] = []
        size = 0
        for text in self._registry.render():
            part.append(text)
            size += len(text)
            if size > SCRAPE_PIECE:
                pieces.append("".join(part).encode())
                part, size = [], 0
                await asyncio.sleep(0)
        body = b"".join([*pieces, "".join(part).encode()])
        headers = [
            (b"content-type", b"text/plain; version=0.0.4; charset=utf-8"),
            (b"content-length", b"%d" % len(body)),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})
