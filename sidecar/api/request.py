"""What all API routes read from a request in the same way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import parse_qsl

from starlette.types import Scope

from mesh import trace
from mesh.trace import TraceContext
from sidecar.http.responses import Headers

_METADATA = "metadata."
MAX_SCHEDULED = 4096
"""Bytes of the longest header `meshwire-scheduled`."""


def query_metadata(scope: Scope) -> dict[str, str]:
    """Dapr's request metadata: `?metadata.<key>=<value>`. The first value of a key wins."""
    query: bytes = scope["query_string"]
    if not query:
        return {}
    metadata: dict[str, str] = {}
    for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True, errors="replace"):
        if name.startswith(_METADATA):
            metadata.setdefault(name[len(_METADATA) :], value)
    return metadata


def scheduled(names: Sequence[str]) -> Headers:
    """What tells a publisher how events are called that will be delivered later, unless there are too many for it."""
    text = ", ".join(names).encode()
    return [(b"meshwire-scheduled", text)] if 0 < len(text) <= MAX_SCHEDULED else []


class Context(NamedTuple):
    """Content type, trace and baggage of a request."""

    content_type: str | None
    trace: TraceContext | None
    baggage: str | None

    def echo(self) -> Headers:
        """The response headers that tell the caller which trace its request was in."""
        headers: Headers = []
        if self.trace is not None:
            headers.append((b"traceparent", self.trace.traceparent.encode()))
            if self.trace.tracestate:
                headers.append((b"tracestate", self.trace.tracestate.encode()))
        if self.baggage is not None:
            headers.append((b"baggage", self.baggage.encode("latin-1")))
        return headers


def context(scope: Scope) -> Context:
    """Raises `InvalidBaggage`. Hot: a request without trace pays for one look-up each.

    Where the API is traced, the trace is that of this request's own span (`sidecar.telemetry.api.TracedApi`).
    """
    headers = scope["headers"]
    values = dict(headers)
    content_type = values.get(b"content-type")
    return Context(
        None if content_type is None else content_type.decode("latin-1"),
        scope["trace"] if "trace" in scope else trace.extract(headers) if b"traceparent" in values else None,
        trace.baggage(headers) if b"baggage" in values else None,
    )
