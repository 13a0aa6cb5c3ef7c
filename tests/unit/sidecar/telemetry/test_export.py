"""The queue before a collector: bounded, in the background, and nobody's problem."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import pytest

from mesh.telemetry import Kind
from mesh.trace import TraceContext
from sidecar.telemetry import export
from sidecar.telemetry.export import BATCH, ExportError, ExportQueue
from sidecar.telemetry.tracing import SpanRecord

LIMIT = 10.0


class Exporter:
    name = "the test"

    def __init__(self, *errors: Exception | None) -> None:
        self.errors = list(errors)
        self.batches: list[Sequence[SpanRecord]] = []
        self.closed = threading.Event()
        self.called = threading.Semaphore(0)
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def export(self, spans: Sequence[SpanRecord]) -> None:
        self.called.release()
        assert self.may_go_on.wait(LIMIT)
        error = self.errors.pop(0) if self.errors else None
        if error is not None:
            raise error
        self.batches.append(spans)

    def close(self) -> None:
        self.closed.set()

    @property
    def spans(self) -> list[SpanRecord]:
        return [span for batch in self.batches for span in batch]


def span() -> SpanRecord:
    context = TraceContext("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "")
    return SpanRecord(lambda _: None, Kind.CLIENT, "x", context, "")


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "PAUSES", (0.01, 0.01, 0.01))
    monkeypatch.setattr(export, "GATHERING", 0.01)


def test_all_spans_arrive_in_order_and_in_batches() -> None:
    exporter = Exporter()
    queue = ExportQueue(exporter)
    sent = [span() for _ in range(2 * BATCH + 1)]
    for each in sent:
        queue.put(each)
    queue.start()
    queue.close()
    assert exporter.spans == sent
    assert max(map(len, exporter.batches)) == BATCH
    assert queue.dropped == 0
    assert exporter.closed.is_set()


def test_what_does_not_fit_is_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "CAPACITY", 3)
    exporter = Exporter()
    exporter.may_go_on.clear()
    queue = ExportQueue(exporter)
    queue.start()
    queue.put(span())
    assert exporter.called.acquire(timeout=LIMIT)  # it hangs in the exporter
    begun = time.perf_counter()
    for _ in range(10):
        queue.put(span())
    assert time.perf_counter() - begun < LIMIT / 2
    assert queue.dropped == 7
    exporter.may_go_on.set()
    queue.close()
    assert len(exporter.spans) == 4


def test_a_transient_failure_is_tried_again() -> None:
    busy = ExportError("busy", transient=True)
    exporter = Exporter(busy, busy, None)
    queue = ExportQueue(exporter)
    queue.start()
    queue.put(span())
    for _ in range(3):
        assert exporter.called.acquire(timeout=LIMIT)
    queue.close()
    assert (len(exporter.spans), queue.dropped) == (1, 0)


def test_losses_are_counted_and_told_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    exporter = Exporter(*[ExportError("no such path", transient=False)] * 3)
    queue = ExportQueue(exporter)
    queue.start()
    for _ in range(3):
        queue.put(span())
        assert exporter.called.acquire(timeout=LIMIT)
    queue.close()
    assert queue.dropped == 3
    assert caplog.messages == ["1 spans for the test are lost: no such path"]


def test_a_bug_in_an_exporter_does_not_end_the_thread(caplog: pytest.LogCaptureFixture) -> None:
    exporter = Exporter(TypeError("a bug"))
    queue = ExportQueue(exporter)
    queue.start()
    queue.put(span())
    assert exporter.called.acquire(timeout=LIMIT)
    queue.put(span())
    assert exporter.called.acquire(timeout=LIMIT)
    queue.close()
    assert (len(exporter.spans), queue.dropped) == (1, 1)
    assert "exporting spans to the test" in caplog.messages


def test_closing_does_not_wait_for_a_collector_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "CLOSING", 0.1)
    exporter = Exporter()
    exporter.may_go_on.clear()
    queue = ExportQueue(exporter)
    queue.start()
    queue.put(span())
    assert exporter.called.acquire(timeout=LIMIT)
    begun = time.perf_counter()
    queue.close()
    assert time.perf_counter() - begun < LIMIT / 2
    exporter.may_go_on.set()
    assert exporter.closed.wait(LIMIT)


def test_closing_what_was_not_started() -> None:
    ExportQueue(Exporter()).close()
