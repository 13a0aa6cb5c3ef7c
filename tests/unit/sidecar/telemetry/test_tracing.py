"""Which spans are made, what they carry, and what a hop costs."""

from __future__ import annotations

import asyncio
import time

import pytest

from mesh.errors import MeshError
from mesh.telemetry import Kind, PassedOn, Span
from mesh.trace import TraceContext, parse_traceparent
from sidecar.telemetry.tracing import ERROR_LENGTH, SamplingTracer, SpanRecord

LOW = "4bf92f3577b34da6" + "0" * 15 + "1"
HIGH = "4bf92f3577b34da6" + "f" * 16
PARENT = "00f067aa0ba902b7"


def below(trace_id: str, flags: str) -> TraceContext:
    return TraceContext(f"00-{trace_id}-{PARENT}-{flags}", "vendor=1")


def start(rate: float, parent: TraceContext | None) -> Span:
    return SamplingTracer(rate, [lambda _: None]).start(Kind.SERVER, "x", parent)


@pytest.mark.parametrize(
    ("rate", "trace_id", "flags", "sampled"),
    [
        (0.0001, HIGH, "01", True),
        (0.0001, HIGH, "03", True),
        (0.0001, HIGH, "00", False),
        (0.0001, HIGH, "02", False),
        (0.0001, LOW, "00", True),  # by its ratio, as every other sidecar finds
        (0.0, LOW, "00", False),
        (0.0, HIGH, "01", True),
        (1.0, HIGH, "00", True),
        (0.5, "0" * 16 + "7" + "f" * 15, "00", True),
        (0.5, "0" * 16 + "8" + "0" * 15, "00", False),
    ],
)
def test_below_a_parent(rate: float, trace_id: str, flags: str, sampled: bool) -> None:
    span = start(rate, below(trace_id, flags))
    assert span.recording is sampled
    assert span.context is not None
    traceparent, tracestate = span.context
    assert parse_traceparent(traceparent) == traceparent
    assert traceparent[:36] == f"00-{trace_id}-"
    assert traceparent[36:52] != PARENT
    assert int(traceparent[53:55], 16) == (int(flags, 16) & 2) | sampled
    assert tracestate == "vendor=1"


@pytest.mark.parametrize(("rate", "flags"), [(1.0, "01"), (0.0, "00")])
def test_a_new_trace(rate: float, flags: str) -> None:
    span = start(rate, None)
    assert span.context is not None
    assert parse_traceparent(span.context.traceparent) == span.context.traceparent
    assert span.context.traceparent.endswith(f"-{flags}")
    if isinstance(span, SpanRecord):
        assert span.parent_id == ""


def test_the_ratio_holds() -> None:
    assert 350 < sum(start(0.1, None).recording for _ in range(5000)) < 650


def test_a_span_ends_once_in_every_sink() -> None:
    first: list[SpanRecord] = []
    second: list[SpanRecord] = []
    span = SamplingTracer(1.0, [first.append, second.append]).start(Kind.CLIENT, "x", None)
    span.end("e" * 1000)
    span.end()
    assert first == second == [span]
    assert first[0].error == "e" * ERROR_LENGTH
    assert first[0].ended >= first[0].started > 1e18


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MeshError("the broker is away"), "the broker is away"),
        (ValueError("password=1234"), "ValueError"),
        (asyncio.CancelledError(), "cancelled"),
    ],
)
def test_what_a_block_raises_is_told_without_secrets(error: BaseException, told: str) -> None:
    ended: list[SpanRecord] = []
    with (
        pytest.raises(type(error)),
        SamplingTracer(1.0, [ended.append]).start(Kind.CLIENT, "x", None),
    ):
        raise error
    assert ended[0].error == told


@pytest.mark.quiet
def test_a_sampled_span_and_an_unsampled_hop_are_cheap() -> None:
    """30 µs is the promise for a sampled span; both are far below, so that a busy machine does not matter."""
    parent = below(HIGH, "01")
    attributes = {"messaging.system": "pubsub", "messaging.destination.name": "orders", "a": 1, "b": "2"}
    kept: list[SpanRecord] = []
    tracer = SamplingTracer(1.0, [kept.append])

    def sampled() -> None:
        with tracer.start(Kind.PRODUCER, "publish orders", parent) as span:
            span.set(attributes)

    unsampled_parent = below(HIGH, "00")
    unsampled_tracer = SamplingTracer(0.0, [kept.append])

    def unsampled() -> None:
        with unsampled_tracer.start(Kind.PRODUCER, "publish orders", unsampled_parent) as span:
            assert type(span) is PassedOn

    assert best(sampled) < 30
    assert best(unsampled) < 10


def best(work: object, rounds: int = 10, times: int = 200) -> float:
    """Microseconds, in the best of some rounds."""
    assert callable(work)
    found = float("inf")
    for _ in range(rounds):
        begun = time.perf_counter()
        for _ in range(times):
            work()
        found = min(found, (time.perf_counter() - begun) / times * 1e6)
    return found
