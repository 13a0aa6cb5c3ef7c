"""What a `Deliverer` delivers to: how a stored message becomes a call of the app, and what the answer means.

Events of subscriptions, items of input bindings and replays differ in this, and in nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import NamedTuple, Protocol

import msgspec

from mesh.delivery.plan import Plan
from mesh.ports import AppResponse, AppRoute, Delivery, HeaderLines
from mesh.routing import Skipped

EXCERPT = 1024
"""Bytes of an answer that are kept with a failure (Knative: `knativeerrordata`)."""
NO_LINES = HeaderLines(b"")


class Verdict(Enum):
    """What an answer of the app means (Dapr: `SUCCESS`, `RETRY`, `DROP`)."""

    SUCCESS = "success"
    RETRY = "retry"
    DROP = "drop"


class Prepared(msgspec.Struct, frozen=True, gc=False):
    """A message, ready to be sent to the app."""

    route: AppRoute
    path: str
    """Of the route, for people."""
    body: bytes
    hop: Mapping[str, str]
    """`traceparent`, `tracestate` and `baggage`, as far as there are any; the deliverer sends them on."""
    lines: HeaderLines = NO_LINES
    """Headers of this message beyond those of the route."""
    plan: Plan | None = None
    """By whose attempts and pauses this message is delivered; `None` is the plan of its group."""


class Judgement(NamedTuple):
    """The meaning of one answer of the app."""

    verdict: Verdict
    reason: str = ""
    """In words, unless it is success. Never has the body in it."""
    status: int | None = None
    """Of the answer; `None` when there was none."""
    excerpt: bytes = b""
    """The first `EXCERPT` bytes of the body, of a failure only."""
    retry_after: float | None = None
    """How many seconds the app asks to be left alone."""
    final: bool = False
    """Of a failure: trying again is of no use."""


class HeaderEncoder(Protocol):
    """The part of an `AppChannel` that a `Deliverer` needs itself."""

    def header_lines(self, headers: Sequence[tuple[str, str]]) -> HeaderLines: ...


class Target(Protocol):
    def prepare(self, delivery: Delivery, now: float) -> Prepared | Skipped:
        """The call to make, or why there is none to make. `now` is in seconds since the epoch.

        Raises `MeshError` when the message can never be delivered, such as an event that is none.
        """
        ...

    def judge(self, response: AppResponse, now: float) -> Judgement: ...
