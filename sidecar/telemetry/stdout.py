"""Spans as lines of JSON on the standard output, for a look while developing."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import msgspec

from sidecar.telemetry.export import ExportError
from sidecar.telemetry.tracing import SpanRecord


class StdoutExporter:
    name = "stdout"

    def __init__(self, service_name: str) -> None:
        self._service = service_name

    def export(self, spans: Sequence[SpanRecord]) -> None:
        """The members are named as OpenTelemetry's Go exporter, and so Dapr, names them."""
        try:
            for span in spans:
                sys.stdout.write(msgspec.json.encode(self._converted(span)).decode() + "\n")
            sys.stdout.flush()
        except (OSError, ValueError) as error:
            raise ExportError(str(error), transient=False) from error

    def close(self) -> None:
        pass

    def _converted(self, span: SpanRecord) -> dict[str, object]:
        return {
            "Name": span.name,
            "SpanContext": {
                "TraceID": span.trace_id,
                "SpanID": span.span_id,
                "TraceFlags": span.context.traceparent[53:55],
                "TraceState": span.context.tracestate,
            },
            "Parent": {"TraceID": span.trace_id, "SpanID": span.parent_id or "0" * 16},
            "SpanKind": span.kind.value,
            "StartTime": span.started,
            "EndTime": span.ended,
            "Attributes": span.attributes,
            "Links": [link.traceparent for link in span.links],
            "Status": {"Code": "Unset" if span.error is None else "Error", "Description": span.error or ""},
            "Service": self._service,
        }
