"""Collectors of spans, as real servers: OTLP over gRPC and HTTP, decoded by OpenTelemetry's own definitions; Zipkin."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, NamedTuple, Self

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from tests.e2e.mesh import LIMIT, until

KINDS = {2: "SERVER", 3: "CLIENT", 4: "PRODUCER", 5: "CONSUMER"}


class CollectedSpan(NamedTuple):
    service: str
    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    attributes: Mapping[str, object]
    links: tuple[str, ...]
    """Ids of spans."""
    error: str | None
    seconds: float


class Collector:
    """What all collectors here have: `spans`, and the headers of the last request."""

    def __init__(self) -> None:
        self.spans: list[CollectedSpan] = []
        self.headers: Mapping[str, str] = {}
        self.port = 0

    async def got(self, *names: str, limit: float = LIMIT) -> list[CollectedSpan]:
        """All spans, once there is one of each of `names` (and as many as the name is given)."""

        def missing() -> list[str]:
            left = [span.name for span in self.spans]
            return [name for name in names if name not in left or left.remove(name) is not None]  # type: ignore[func-returns-value]

        await until(lambda: not missing(), lambda: f"no spans {missing()} among {self.spans}", limit)
        return list(self.spans)

    def one(self, name: str, service: str | None = None) -> CollectedSpan:
        (span,) = (span for span in self.spans if span.name == name and service in (None, span.service))
        return span

    def take_otlp(self, request: Any) -> None:
        for group in request.resource_spans:
            service = next(a.value.string_value for a in group.resource.attributes if a.key == "service.name")
            for span in (span for scope in group.scope_spans for span in scope.spans):
                self.spans.append(
                    CollectedSpan(
                        service,
                        span.name,
                        KINDS[span.kind],
                        span.trace_id.hex(),
                        span.span_id.hex(),
                        span.parent_span_id.hex(),
                        {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes},
                        tuple(link.span_id.hex() for link in span.links),
                        span.status.message if span.status.code == 2 else None,
                        (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
                    )
                )

    def take_zipkin(self, spans: Iterable[dict[str, Any]]) -> None:
        for span in spans:
            self.spans.append(
                CollectedSpan(
                    span["localEndpoint"]["serviceName"],
                    span["name"],
                    span["kind"],
                    span["traceId"],
                    span["id"],
                    span.get("parentId", ""),
                    span["tags"],
                    (),
                    span["tags"].get("error"),
                    span["duration"] / 1e6,
                )
            )


class HttpCollector(Collector):
    """OTLP at `/v1/traces`, Zipkin at `/api/v2/spans`. `status` is what it answers."""

    def __init__(self, *, status: int = 200) -> None:
        super().__init__()
        self.status = status
        self.attempts = 0
        collector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                collector.attempts += 1
                collector.headers = {name.lower(): value for name, value in self.headers.items()}
                body = self.rfile.read(int(self.headers["content-length"]))
                if collector.status == 200:
                    collector._paths[self.path](body)
                self.send_response(collector.status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._paths: dict[str, Callable[[bytes], None]] = {
            "/v1/traces": lambda body: self.take_otlp(trace_service_pb2.ExportTraceServiceRequest.FromString(body)),
            "/api/v2/spans": lambda body: self.take_zipkin(json.loads(body)),
        }
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]

    def __enter__(self) -> Self:
        self._thread = Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(LIMIT)


class GrpcCollector(Collector, trace_service_pb2_grpc.TraceServiceServicer):  # type: ignore[misc]
    def __enter__(self) -> Self:
        self._pool = ThreadPoolExecutor(2)
        self._server = grpc.server(self._pool)
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(0).wait(LIMIT)
        self._pool.shutdown()

    def Export(self, request: Any, context: Any) -> Any:
        self.headers = dict(context.invocation_metadata())
        self.take_otlp(request)
        return trace_service_pb2.ExportTraceServiceResponse()
