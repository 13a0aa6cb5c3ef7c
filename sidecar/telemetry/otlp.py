"""Spans by OTLP, over gRPC or HTTP (OpenTelemetry protocol 1.x: `ExportTraceServiceRequest`).

The messages are encoded here: four times faster than by way of the OpenTelemetry SDK, whose exporters also send what
the `OTEL_*` variables hold to an endpoint that they do not belong to. gRPC needs the extra `otel`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from mesh.errors import ConfigurationError
from mesh.telemetry import Attribute
from mesh.telemetry_settings import OtlpSettings
from mesh.trace import TraceContext
from sidecar.telemetry.collector import Collector
from sidecar.telemetry.export import ExportError
from sidecar.telemetry.tracing import SpanRecord

SCOPE = "meshwire"
EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
_TRANSIENT = frozenset(
    ("CANCELLED", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED", "OUT_OF_RANGE", "UNAVAILABLE", "DATA_LOSS")
)


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


_LENGTHS = tuple(map(_varint, range(1024)))


def _sized(tag: bytes, content: bytes) -> bytes:
    """A field of variable length. `tag` is its number, shifted by three, and wire type 2."""
    length = len(content)
    return tag + (_LENGTHS[length] if length < 1024 else _varint(length)) + content


def _attribute(name: str, value: Attribute) -> bytes:
    """KeyValue {key = 1, value = 2: AnyValue {string_value = 1, int_value = 3}}."""
    if isinstance(value, str):
        any_value = _sized(b"\x0a", value.encode(errors="replace"))
    else:
        any_value = b"\x18" + _varint(value & (1 << 64) - 1)
    return _sized(b"\x0a", name.encode()) + _sized(b"\x12", any_value)


def _link(context: TraceContext) -> bytes:
    """Link {trace_id = 1, span_id = 2, trace_state = 3, flags = 6}."""
    text = context.traceparent
    encoded = b"\x0a\x10" + bytes.fromhex(text[3:35]) + b"\x12\x08" + bytes.fromhex(text[36:52])
    if context.tracestate:
        encoded += _sized(b"\x1a", context.tracestate.encode())
    return encoded + b"\x35" + int(text[53:55], 16).to_bytes(4, "little")


def _span(span: SpanRecord) -> bytes:
    """Span {trace_id = 1, span_id = 2, trace_state = 3, parent_span_id = 4, name = 5, kind = 6, start = 7, end = 8,
    attributes = 9, links = 13, status = 15: {message = 2, code = 3}, flags = 16}."""
    context = span.context
    parts = [b"\x0a\x10", bytes.fromhex(span.trace_id), b"\x12\x08", bytes.fromhex(span.span_id)]
    if context.tracestate:
        parts.append(_sized(b"\x1a", context.tracestate.encode()))
    if span.parent_id:
        parts += (b"\x22\x08", bytes.fromhex(span.parent_id))
    parts += (
        _sized(b"\x2a", span.name.encode(errors="replace")),
        b"\x30%c\x39" % span.kind.value,
        span.started.to_bytes(8, "little"),
        b"\x41",
        span.ended.to_bytes(8, "little"),
    )
    for name, value in span.attributes.items():
        parts.append(_sized(b"\x4a", _attribute(name, value)))
    for link in span.links:
        parts.append(_sized(b"\x6a", _link(link)))
    if span.error is not None:
        message = _sized(b"\x12", span.error.encode(errors="replace"))
        parts.append(_sized(b"\x7a", message + b"\x18\x02"))
    parts += (b"\x85\x01", int(context.traceparent[53:55], 16).to_bytes(4, "little"))
    return b"".join(parts)


class Encoder:
    """Makes export requests for one service."""

    def __init__(self, resource: Mapping[str, str]) -> None:
        attributes = b"".join(_sized(b"\x0a", _attribute(name, value)) for name, value in resource.items())
        self._resource = _sized(b"\x0a", attributes)
        self._scope = _sized(b"\x0a", _sized(b"\x0a", SCOPE.encode()))

    def encode(self, spans: Sequence[SpanRecord]) -> bytes:
        """ExportTraceServiceRequest {resource_spans = 1: {resource = 1, scope_spans = 2: {scope = 1, spans = 2}}}."""
        encoded = b"".join([_sized(b"\x12", _span(span)) for span in spans])
        return _sized(b"\x0a", self._resource + _sized(b"\x12", self._scope + encoded))


class OtlpHttpExporter:
    def __init__(self, settings: OtlpSettings, resource: Mapping[str, str]) -> None:
        scheme = "https" if settings.secure else "http"
        headers = {**dict(settings.headers), "content-type": "application/x-protobuf"}
        self.name = f"the OTLP collector {scheme}://{settings.endpoint}"
        self._encoder = Encoder(resource)
        self._collector = Collector(f"{scheme}://{settings.endpoint}{settings.path}", headers, settings.timeout)

    def export(self, spans: Sequence[SpanRecord]) -> None:
        self._collector.post(self._encoder.encode(spans))

    def close(self) -> None:
        self._collector.close()


class OtlpGrpcExporter:
    def __init__(self, settings: OtlpSettings, resource: Mapping[str, str]) -> None:
        """Raises `ConfigurationError` where gRPC is not installed."""
        try:
            self._grpc: Any = import_module("grpc")
        except ImportError:
            raise ConfigurationError(
                "spec.tracing.otel: the protocol grpc needs an extra: pip install 'meshwire[otel]' (or use http)"
            ) from None
        self.name = f"the OTLP collector {settings.endpoint}"
        self._encoder = Encoder(resource)
        self._timeout = settings.timeout
        self._headers = [(name.lower(), value) for name, value in settings.headers]
        grpc = self._grpc
        self._channel = (
            grpc.secure_channel(settings.endpoint, grpc.ssl_channel_credentials())
            if settings.secure
            else grpc.insecure_channel(settings.endpoint)
        )
        self._call = self._channel.unary_unary(EXPORT)  # bytes in, bytes out

    def export(self, spans: Sequence[SpanRecord]) -> None:
        try:
            self._call(self._encoder.encode(spans), timeout=self._timeout, metadata=self._headers)
        except self._grpc.RpcError as error:
            code = error.code().name
            raise ExportError(f"{code}: {error.details()}", transient=code in _TRANSIENT) from None

    def close(self) -> None:
        self._channel.close()
