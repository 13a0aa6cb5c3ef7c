"""The encoding of spans, held to OpenTelemetry's own definitions."""

from __future__ import annotations

import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from mesh.telemetry import Kind
from mesh.trace import TraceContext
from sidecar.telemetry.otlp import Encoder
from sidecar.telemetry.tracing import SpanRecord
from sidecar.telemetry.zipkin import ZipkinExporter
from tests.unit.sidecar.telemetry.test_tracing import best

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"

hexadecimal = st.text("0123456789abcdef", min_size=16, max_size=16).filter(lambda text: text.strip("0"))
texts = st.text(max_size=3000)


@st.composite
def spans(draw: st.DrawFn) -> SpanRecord:
    state = draw(st.sampled_from(["", "a=1,b=2"]))
    context = TraceContext(f"00-{draw(hexadecimal)}{draw(hexadecimal)}-{draw(hexadecimal)}-03", state)
    span = SpanRecord(
        lambda _: None, draw(st.sampled_from(Kind)), draw(texts), context, draw(hexadecimal | st.just(""))
    )
    integers = st.integers(-(2**63), 2**63 - 1)
    span.set(draw(st.dictionaries(st.text(string.ascii_letters, min_size=1), texts | integers, max_size=4)))
    for _ in range(draw(st.integers(0, 2))):
        span.link(TraceContext(f"00-{TRACE}-{draw(hexadecimal)}-01", draw(st.sampled_from(["", "c=3"]))))
    span.end(draw(st.none() | st.text(max_size=20)))
    return span


def clean(text: str) -> str:
    return text.encode(errors="replace").decode()


@given(st.lists(spans(), max_size=3))
def test_encoded_spans_are_what_opentelemetry_reads(records: list[SpanRecord]) -> None:
    resource = {"service.name": "shop", "b": "2"}
    request = ExportTraceServiceRequest.FromString(Encoder(resource).encode(records))
    (group,) = request.resource_spans
    assert {a.key: a.value.string_value for a in group.resource.attributes} == resource
    (scope,) = group.scope_spans
    assert scope.scope.name == "meshwire"
    assert len(scope.spans) == len(records)
    for span, record in zip(scope.spans, records, strict=True):
        assert (span.trace_id.hex(), span.span_id.hex()) == (record.trace_id, record.span_id)
        assert span.parent_span_id.hex() == record.parent_id
        assert span.trace_state == record.context.tracestate
        assert span.flags == 3
        assert (span.name, span.kind) == (clean(record.name), record.kind.value)
        assert (span.start_time_unix_nano, span.end_time_unix_nano) == (record.started, record.ended)
        attributes = {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}
        expected = {k: clean(v) if isinstance(v, str) else v for k, v in record.attributes.items()}
        assert attributes == expected
        links = [(link.trace_id.hex(), link.span_id.hex(), link.trace_state, link.flags) for link in span.links]
        assert links == [(k.traceparent[3:35], k.traceparent[36:52], k.tracestate, 1) for k in record.links]
        assert span.status.code == (0 if record.error is None else 2)
        assert span.status.message == clean(record.error or "")
        assert not span.DiscardUnknownFields()  # type: ignore[func-returns-value]
    assert request.SerializeToString()


def record() -> SpanRecord:
    span = SpanRecord(
        lambda _: None, Kind.PRODUCER, "publish orders", TraceContext(f"00-{TRACE}-{'1' * 16}-01", ""), "2" * 16
    )
    span.set({"messaging.system": "pubsub", "messaging.destination.name": "orders", "count": 7})
    span.link(TraceContext(f"00-{TRACE}-{'3' * 16}-01", ""))
    span.end("it broke")
    return span


@pytest.mark.quiet
def test_encoding_is_cheap() -> None:
    """It runs in a thread of its own, but holds the interpreter."""
    encoder = Encoder({"service.name": "shop"})
    batch = [record()] * 100
    assert best(lambda: encoder.encode(batch), times=1) / 100 < 50


def test_zipkin() -> None:
    span = record()
    converted = json.loads(json.dumps(ZipkinExporter("http://localhost/api/v2/spans?key=1", "shop")._converted(span)))
    assert converted == {
        "traceId": TRACE,
        "id": "1" * 16,
        "parentId": "2" * 16,
        "name": "publish orders",
        "kind": "PRODUCER",
        "timestamp": span.started // 1000,
        "duration": max(1, (span.ended - span.started) // 1000),
        "localEndpoint": {"serviceName": "shop"},
        "tags": {
            "messaging.system": "pubsub",
            "messaging.destination.name": "orders",
            "count": "7",
            "link.0": f"00-{TRACE}-{'3' * 16}-01",
            "error": "it broke",
        },
    }


def test_names_of_exporters_have_no_secrets() -> None:
    assert ZipkinExporter("http://localhost/api/v2/spans?key=1", "shop").name.endswith("/api/v2/spans")
