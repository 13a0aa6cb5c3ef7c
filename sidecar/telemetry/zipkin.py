"""Spans as Zipkin v2 JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from mesh.telemetry_settings import EXPORT_TIMEOUT
from sidecar.telemetry.collector import Collector
from sidecar.telemetry.tracing import SpanRecord


class ZipkinExporter:
    def __init__(self, url: str, service_name: str) -> None:
        self.name = f"the Zipkin collector {url.partition('?')[0]}"
        self._endpoint = {"serviceName": service_name}
        self._collector = Collector(url, {"content-type": "application/json"}, EXPORT_TIMEOUT)

    def export(self, spans: Sequence[SpanRecord]) -> None:
        self._collector.post(msgspec.json.encode([self._converted(span) for span in spans]))

    def close(self) -> None:
        self._collector.close()

    def _converted(self, span: SpanRecord) -> dict[str, Any]:
        """Zipkin knows no links: they become tags. Times in microseconds, a duration is never 0."""
        tags = {name: str(value) for name, value in span.attributes.items()}
        for index, link in enumerate(span.links):
            tags[f"link.{index}"] = link.traceparent
        if span.error is not None:
            tags["error"] = span.error
        return {
            "traceId": span.trace_id,
            "id": span.span_id,
            **({"parentId": span.parent_id} if span.parent_id else {}),
            "name": span.name,
            "kind": span.kind.name,
            "timestamp": span.started // 1000,
            "duration": max(1, (span.ended - span.started) // 1000),
            "localEndpoint": self._endpoint,
            "tags": tags,
        }
