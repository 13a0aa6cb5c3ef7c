"""W3C Trace Context (Level 2) and W3C Baggage, as headers carry them.

Headers are lists of pairs as in ASGI, names in lower case. Called for every request: where nothing is there, the
price is one pass over the list.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from mesh.errors import MeshError

MAX_MEMBERS = 32
"""A longer `tracestate` is dropped (Trace Context 3.3.1.1)."""
CARRIED_LENGTH = 512
"""Characters of `tracestate` that we carry; a longer one is cut (Trace Context 3.3.1.5)."""
LONG_MEMBER = 128
"""Members beyond this length are the first to go."""

MAX_BAGGAGE_BYTES = 8_192
MAX_BAGGAGE_MEMBERS = 180

_traceparent = re.compile(
    r"(?!ff)([0-9a-f]{2})-((?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL
).fullmatch
_tracestate_member = re.compile(
    r"([a-z0-9][a-z0-9_*/@-]{0,255})=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
).fullmatch

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"  # noqa: S105
_VALUE = r"[!#-+\--:<-\[\]-~]*+"
_OWS = r"[ \t]*+"
_baggage_member = re.compile(
    rf"{_OWS}{_TOKEN}{_OWS}={_OWS}{_VALUE}{_OWS}(?:;{_OWS}{_TOKEN}{_OWS}(?:={_OWS}{_VALUE}{_OWS})?+)*+"
).fullmatch


class InvalidBaggage(MeshError):
    """A `baggage` header breaks the syntax or the limits of W3C Baggage."""

    def __init__(self, rule: str) -> None:
        super().__init__(f"invalid baggage header: {rule}")


class TraceContext(NamedTuple):
    """The caller's place in a trace."""

    traceparent: str
    """Canonical: version `00`, lower case."""
    tracestate: str
    """Canonical; empty when there is none."""


def extract(headers: Sequence[tuple[bytes, bytes]]) -> TraceContext | None:
    """The trace context of a request; `None` when there is none, or none that is valid: start a new trace then."""
    found: bytes | None = None
    for name, value in headers:
        if name == b"traceparent":
            if found is not None:
                return None
            found = value
    if found is None:
        return None
    traceparent = parse_traceparent(found.decode("latin-1").strip(" \t"))
    if traceparent is None:
        return None
    states = [value.decode("latin-1") for name, value in headers if name == b"tracestate"]
    return TraceContext(traceparent, parse_tracestate(states) if states else "")


def parse_traceparent(text: str) -> str | None:
    """The canonical form of a `traceparent`, or `None` when it is not valid. Of a version later than ours the part
    that we know is kept, of the flags the two that we know: sampled and random.
    """
    match = _traceparent(text)
    if match is None:
        return None
    version, ids, flags, rest = match.groups()
    if version == "00" and rest is not None:
        return None
    return f"00-{ids}-{int(flags, 16) & 0b11:02x}"


def parse_tracestate(values: Iterable[str]) -> str:
    """The canonical form of the `tracestate` headers `values`, in order; empty when any member is invalid or there are
    more than `MAX_MEMBERS`. Of members with the same key the first stays. A list of more than `CARRIED_LENGTH`
    characters loses its long members, then its last ones, until it fits.
    """
    members: dict[str, str] = {}
    count = 0
    for member in ",".join(values).split(","):
        member = member.strip(" \t")
        if not member:
            continue
        count += 1
        match = _tracestate_member(member)
        if match is None or count > MAX_MEMBERS:
            return ""
        members.setdefault(match[1], member)
    kept = list(members.values())
    size = sum(map(len, kept)) + len(kept) - 1
    if size > CARRIED_LENGTH:
        last_first = kept[::-1]
        long = [member for member in last_first if len(member) > LONG_MEMBER]
        for member in long + [member for member in last_first if len(member) <= LONG_MEMBER]:
            kept.remove(member)
            size -= len(member) + 1
            if size <= CARRIED_LENGTH:
                break
    return ",".join(kept)


def baggage(headers: Sequence[tuple[bytes, bytes]]) -> str | None:
    """The `baggage` headers of a request, joined with commas, otherwise untouched; `None` when there are none. Raises
    `InvalidBaggage` when they are not valid, or beyond the limits of W3C Baggage 3.3.
    """
    for name, _ in headers:
        if name == b"baggage":
            break
    else:
        return None
    joined = b",".join([value for name, value in headers if name == b"baggage"]).decode("latin-1")
    if not joined:
        return None
    if len(joined) > MAX_BAGGAGE_BYTES:
        raise InvalidBaggage(f"{len(joined)} bytes are more than {MAX_BAGGAGE_BYTES}")
    members = joined.split(",")
    if len(members) > MAX_BAGGAGE_MEMBERS:
        raise InvalidBaggage(f"{len(members)} members are more than {MAX_BAGGAGE_MEMBERS}")
    for index, member in enumerate(members, 1):
        if not _baggage_member(member):
            # The value may be anybody's secret: say where, not what.
            raise InvalidBaggage(f"member {index} is not of the form key=value;property")
    return joined
