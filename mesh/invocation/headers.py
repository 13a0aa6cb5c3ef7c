"""Which headers travel from app to app (Dapr: request forwarding; RFC 9110, 7.6.1).

Left out in both directions: what belongs to one connection, what `Connection` names, and what speaks in a
sidecar's name. `_` counts as `-`, since CGI, and so WSGI, makes them one. Everything else passes, repeated names in
their order.
"""

from __future__ import annotations

import re
from functools import lru_cache

from mesh.errors import MeshError, clip
from mesh.ports import HeaderList
from mesh.trace import TraceContext

_HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-connection transfer-encoding upgrade http2-settings te trailer "
    b"proxy-authorization proxy-authenticate".split()
)
_REQUEST_ONLY = frozenset(b"host expect destination-app-id".split())
_TRACE = frozenset((b"traceparent", b"tracestate", b"baggage"))
_RESPONSE_ONLY = frozenset((b"dapr-app-id", b"dapr-api-token"))

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch  # RFC 9110, 5.6.2
_BAD_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]").search  # RFC 9110, 5.5


class InvalidHeader(MeshError):
    """A header cannot be passed on as it is."""


def of_request(headers: HeaderList) -> list[tuple[bytes, bytes]]:
    """The headers of a client's request that go to the callee. Names are in lower case. The trace and the length of
    the body are the caller's to add. `dapr-*` and `meshwire-*` are gone: the callee's own sidecar says who calls, and
    under which lease an actor takes its turn.
    """
    kept: list[tuple[bytes, bytes]] = []
    left_out: list[tuple[bytes, bytes]] = []
    for header in headers:
        (kept if _goes_with_request(header[0]) else left_out).append(header)
    return _without_named(kept, left_out)


def of_response(headers: HeaderList) -> list[tuple[bytes, bytes]]:
    """The headers of an app's response that go back, names in lower case. Whether `content-length` stays is the
    sender's to decide. Raises `InvalidHeader` for a header that would break out of its line.
    """
    kept = []
    left_out = []
    for name, value in headers:
        if _BAD_VALUE(value):
            raise InvalidHeader(f"the response has a control character in the value of the header '{_shown(name)}'")
        lower = _response_name(name)
        if lower is None:
            left_out.append((name, value))
        else:
            kept.append((lower, value))
    return _without_named(kept, left_out)


def trace_headers(context: TraceContext) -> list[tuple[bytes, bytes]]:
    headers = [(b"traceparent", context.traceparent.encode())]
    if context.tracestate:
        headers.append((b"tracestate", context.tracestate.encode()))
    return headers


def content_length(headers: HeaderList) -> int | None:
    """What the headers say about the body's length, in bytes; `None` when they do not, or do not make sense."""
    found = {value for name, value in headers if name.lower() == b"content-length"}
    if len(found) != 1:
        return None
    value = found.pop()
    return int(value) if value.isdigit() and len(value) < 20 else None


@lru_cache(maxsize=1024)
def _goes_with_request(name: bytes) -> bool:
    folded = name.lower().replace(b"_", b"-")
    if folded in _HOP_BY_HOP or folded in _REQUEST_ONLY or folded in _TRACE or folded == b"content-length":
        return False
    return not folded.startswith((b"dapr-", b"meshwire-")) and not folded.endswith(b"-bin")


@lru_cache(maxsize=1024)
def _response_name(name: bytes) -> bytes | None:
    if not _TOKEN(name):
        raise InvalidHeader(f"the response has a header '{_shown(name)}', which is no header name (RFC 9110, 5.6.2)")
    lower = name.lower()
    return None if lower in _HOP_BY_HOP or lower in _RESPONSE_ONLY or lower.endswith(b"-bin") else lower


def _without_named(kept: list[tuple[bytes, bytes]], left_out: HeaderList) -> list[tuple[bytes, bytes]]:
    """`kept` without what a `Connection` header among those `left_out` names (RFC 9110, 7.6.1)."""
    named: set[bytes] = set()
    for name, value in left_out:
        if name.lower() == b"connection":
            named.update(option.strip(b" \t").lower() for option in value.split(b","))
    return [header for header in kept if header[0] not in named] if named else kept


def _shown(name: bytes) -> str:
    return clip(name.decode("latin-1"))
