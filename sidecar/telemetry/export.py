"""From ended spans to collectors: a bounded queue and a thread for each of them.

Whatever is wrong with a collector costs spans, which are counted, and nothing else.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from mesh.errors import MeshError
from sidecar.telemetry.tracing import SpanRecord

logger = logging.getLogger("meshwire.tracing")

CAPACITY = 8192
"""Spans that wait for one collector."""
BATCH = 256
"""Spans in one export. Encoding them holds the interpreter for a millisecond or two."""
GATHERING = 0.25
"""Seconds in which spans gather before they are sent."""
PAUSES = (0.5, 1.0, 2.0)
"""Seconds before each repeat of an export that may succeed later."""
CLOSING = 2.0
"""Seconds that `close` gives to what waits."""
LOG_PAUSE = 60.0
"""Seconds between two log lines about one collector."""


class ExportError(MeshError):
    """A collector did not take the spans. `transient` ones may be tried again."""

    def __init__(self, reason: str, *, transient: bool) -> None:
        super().__init__(reason)
        self.transient = transient


class SpanExporter(Protocol):
    """Used by one thread, which is not that of the event loop."""

    @property
    def name(self) -> str:
        """For logs and metrics, without secrets."""
        ...

    def export(self, spans: Sequence[SpanRecord]) -> None:
        """Returns when the collector has the spans, within a limit. Raises `ExportError`."""
        ...

    def close(self) -> None: ...


class ExportQueue:
    """Owns the thread of one exporter."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self.name = exporter.name
        self._waiting: deque[SpanRecord] = deque()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._deadline = 0.0
        self._overflowed = 0
        self._refused = 0
        self._reported = 0
        self._silent_until = 0.0
        self._thread = threading.Thread(target=self._run, name=f"spans to {self.name}", daemon=True)

    @property
    def dropped(self) -> int:
        """Spans that were lost so far."""
        return self._overflowed + self._refused

    def put(self, span: SpanRecord) -> None:
        """Never waits. Called in the event loop."""
        if len(self._waiting) >= CAPACITY:
            self._overflowed += 1
            return
        self._waiting.append(span)
        if not self._wake.is_set():
            self._wake.set()

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Send what waits, for at most `CLOSING` seconds; waits as long, so not to be called in the event loop."""
        if not self._thread.is_alive():
            return
        self._deadline = time.monotonic() + CLOSING
        self._stopping.set()
        self._wake.set()
        self._thread.join(CLOSING)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.wait()
            self._stopping.wait(GATHERING)
            self._wake.clear()
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
                self._export(batch)
        self._exporter.close()

    def _export(self, batch: Sequence[SpanRecord]) -> None:
        problem = "it was too slow"
        for pause in (*PAUSES, None):
            if self._stopping.is_set() and time.monotonic() > self._deadline:
                self._refused += len(batch)
                break
            try:
                self._exporter.export(batch)
                break
            except ExportError as error:
                problem = str(error)
                if pause is None or not error.transient or self._stopping.wait(pause):
                    self._refused += len(batch)
                    break
            except Exception:
                logger.exception("exporting spans to %s", self.name)
                self._refused += len(batch)
                return
        self._report(problem)

    def _report(self, problem: str) -> None:
        lost = self.dropped - self._reported
        now = time.monotonic()
        if lost and now >= self._silent_until:
            logger.warning("%d spans for %s are lost: %s", lost, self.name, problem)
            self._reported += lost
            self._silent_until = now + LOG_PAUSE
