"""Spans as plain records, and the tracer that decides which of them are made.

An unsampled hop costs a new context and nothing else; guarded by `tests/unit/sidecar/telemetry/test_tracing.py`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self

from mesh import ids
from mesh.errors import MeshError
from mesh.telemetry import Attribute, Kind, PassedOn, Span
from mesh.trace import TraceContext

ERROR_LENGTH = 256
"""Characters of an error that a span keeps."""
_SAMPLED = ("1", "3")
"""The last digit of a canonical traceparent whose sampled flag is set."""
_RANDOM = ("2", "3")


class SpanRecord:
    """A span that is recorded. Times in nanoseconds since the epoch, ids in lower-case hexadecimal digits."""

    __slots__ = (
        *("_done", "attributes", "context", "ended", "error", "kind", "links"),
        *("name", "parent_id", "span_id", "started", "trace_id"),
    )

    recording = True

    def __init__(
        self,
        done: Callable[[SpanRecord], None],
        kind: Kind,
        name: str,
        context: TraceContext,
        parent_id: str,
    ) -> None:
        traceparent = context.traceparent
        self._done = done
        self.kind = kind
        self.name = name
        self.context = context
        self.trace_id = traceparent[3:35]
        self.span_id = traceparent[36:52]
        self.parent_id = parent_id
        """Empty for the first span of a trace."""
        self.attributes: dict[str, Attribute] = {}
        self.links: list[TraceContext] = []
        self.error: str | None = None
        self.started = time.time_ns()
        self.ended = 0

    def set(self, attributes: Mapping[str, Attribute]) -> None:
        self.attributes.update(attributes)

    def link(self, context: TraceContext) -> None:
        self.links.append(context)

    def end(self, error: str | None = None) -> None:
        if not self.ended:
            self.ended = time.time_ns()
            if error is not None:
                self.error = error[:ERROR_LENGTH]
            self._done(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.end()
        elif isinstance(error, MeshError):
            self.end(str(error))
        else:  # whose text nobody has checked for secrets
            self.end("cancelled" if isinstance(error, asyncio.CancelledError) else type(error).__name__)


class SamplingTracer:
    """Gives every hop a span id of its own, and hands the sampled ones to `sinks` when they end.

    Dapr: below a sampled parent everything is sampled; all else by the ratio of trace ids, so that every sidecar with
    the same rate decides alike about a trace.
    """

    def __init__(self, rate: float, sinks: Sequence[Callable[[SpanRecord], None]]) -> None:
        """`rate` from 0 to 1."""
        bound = round(rate * (1 << 64))
        # Digits compare as the numbers do; `g` is above all of them.
        self._bound = "g" if bound >= 1 << 64 else f"{bound:016x}"
        self._sinks = sinks
        self._done = sinks[0] if len(sinks) == 1 else self._hand_out

    def start(self, kind: Kind, name: str, parent: TraceContext | None) -> Span:
        span_id = ids.random_id()[:16]
        if parent is None:
            trace_id = ids.random_id()
            if trace_id[16:] >= self._bound:
                return PassedOn(TraceContext(f"00-{trace_id}-{span_id}-00", ""))
            return SpanRecord(self._done, kind, name, TraceContext(f"00-{trace_id}-{span_id}-01", ""), "")
        traceparent, tracestate = parent
        trace_id = traceparent[3:35]
        flags = traceparent[54]
        if flags not in _SAMPLED and trace_id[16:] >= self._bound:
            return PassedOn(TraceContext(f"00-{trace_id}-{span_id}-0{flags}", tracestate))
        context = TraceContext(f"00-{trace_id}-{span_id}-0{'3' if flags in _RANDOM else '1'}", tracestate)
        return SpanRecord(self._done, kind, name, context, traceparent[36:52])

    def _hand_out(self, span: SpanRecord) -> None:
        for sink in self._sinks:
            sink(span)
