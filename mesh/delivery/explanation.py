"""A delivery plan in words and times, before anything runs: for `meshwire explain` and the API."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice

import msgspec

from mesh.delivery.plan import BackOff, Plan, schedule, scheduled
from mesh.quantities import duration_text
from mesh.resiliency.retry import Codes

LISTED = 20
"""Attempts that are listed; of further ones the last is told."""


class Value(msgspec.Struct, frozen=True):
    """One value of the plan."""

    name: str
    value: str
    origin: str
    """Where it was said."""


class Attempt(msgspec.Struct, frozen=True):
    """In seconds after the first one, if the app answers at once."""

    attempt: int
    earliest: float
    latest: float


class PlanExplained(msgspec.Struct, frozen=True, kw_only=True):
    pubsubname: str
    topic: str
    origin: str
    """Where the subscription was declared."""
    plan: tuple[Value, ...]
    attempts: tuple[Attempt, ...]
    """The first `LISTED`."""
    then: str
    """What follows those; empty when nothing does."""
    end: str
    """What becomes of an event whose attempts are over, or that the app refuses for good."""


def explain(pubsub: str, topic: str, origin: str, plan: Plan, origins: Mapping[str, str]) -> PlanExplained:
    """`pubsub` and `topic` as the app names them; `origins` as `mesh.delivery.compile` gives them."""
    listed = tuple(
        Attempt(attempt, round(earliest, 3), round(latest, 3))
        for attempt, earliest, latest in islice(schedule(plan), LISTED)
    )
    return PlanExplained(
        pubsubname=pubsub,
        topic=topic,
        origin=origin,
        plan=tuple(Value(name, text, origins.get(key, "")) for name, key, text in _values(plan)),
        attempts=listed,
        then=_then(plan, len(listed)),
        end=_end(plan),
    )


def _values(plan: Plan) -> Iterator[tuple[str, str, str]]:
    yield "attempts", "attempts", "until it succeeds" if plan.attempts is None else str(plan.attempts)
    yield "pauses", "backOff", _pauses(plan.back_off)
    yield "statuses tried again", "retryable", _statuses(plan.retryable)
    yield "longest Retry-After", "retryAfterMax", duration_text(plan.retry_after_max)
    yield "time for one attempt", "timeout", duration_text(plan.timeout)
    breaker = "none"
    if plan.breaker is not None:
        breaker = f"opens for {duration_text(plan.breaker.timeout)}, then {plan.breaker.max_requests} at a time"
    yield "circuit breaker", "breaker", breaker
    yield "order", "order", plan.order.value
    yield "in hand at once", "concurrency", str(plan.concurrency)
    yield "broadcast", "broadcast", "yes" if plan.broadcast else "no"
    yield "dead letter topic", "deadLetterTopic", "none" if plan.dead_letter is None else plan.dead_letter.name


def _pauses(back_off: BackOff) -> str:
    spread = f", ±{back_off.jitter:.0%}" if back_off.jitter else ""
    if back_off.factor == 1 or back_off.first >= back_off.longest:
        return f"{duration_text(back_off.nominal(1))} each{spread}"
    return f"{duration_text(back_off.first)}, ×{back_off.factor:g} up to {duration_text(back_off.longest)}{spread}"


def _statuses(codes: Codes) -> str:
    if not codes:
        return "all but 404 and 410"
    return ",".join(f"{one[0]}-{one[-1]}" if len(one) > 1 else f"{one[0]}" for one in codes)


def _then(plan: Plan, listed: int) -> str:
    if plan.attempts is None:
        shortest, longest = (plan.back_off.pause(listed, spread) for spread in (0.0, 1.0))
        pause = f"{shortest:g} s" if shortest == longest else f"{shortest:g} to {longest:g} s"
        return f"and so on until it succeeds, after pauses of {pause}"
    if plan.attempts <= listed:
        return ""
    last = scheduled(plan, plan.attempts)
    return (
        f"{plan.attempts - listed} more, the last one (attempt {plan.attempts}) "
        f"after {last.earliest:.0f} to {last.latest:.0f} s"
    )


def _end(plan: Plan) -> str:
    where = "the dead letters of the app"
    if plan.dead_letter is not None:
        where = f"the topic {plan.dead_letter.name}, and {where}"
    over = "An answer of 410" if plan.attempts is None else "After the last attempt, or an answer of 410"
    if plan.retryable:
        over += " or another status that is not tried again"
    dropped = "goes there too" if plan.dead_letter is not None else "is gone"
    return f"{over}: to {where}. What the app drops (404, DROP), or what has expired, {dropped}."
