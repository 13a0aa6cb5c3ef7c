"""When an event is to be published, as a request says it (docs/scheduled.md)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

from mesh.errors import MeshError, clip
from mesh.scheduling.recurrence import parse_moment, parse_recurrence
from mesh.scheduling.scheduler import Schedule

NAMES = ("deliverAt", "deliverAfter", "deliverEvery", "deliverTimes", "deliverUntil")
_FOLDED = {name.lower(): name for name in NAMES}

T = TypeVar("T")


class InvalidTiming(MeshError):
    """What a request says of when its event is to be delivered cannot be obeyed."""


class Timing(NamedTuple):
    schedule: Schedule
    due: float
    """When it is published first; seconds since the epoch."""


def timing(metadata: Mapping[str, str], now: float) -> Timing | None:
    """`None` when the request says nothing of it. Names count in any letter case, an empty value is none.

    Raises `InvalidTiming`.
    """
    asked = {_FOLDED[name.lower()]: value for name, value in metadata.items() if name.lower() in _FOLDED and value}
    return _read(asked, now) if asked else None


def _read(asked: Mapping[str, str], now: float) -> Timing:
    at, after, every = asked.get("deliverAt"), asked.get("deliverAfter"), asked.get("deliverEvery")
    times, until = asked.get("deliverTimes"), asked.get("deliverUntil")
    if at and after:
        raise InvalidTiming("deliverAt and deliverAfter contradict each other: give the one or the other")
    if every is None and (at or after) is None:
        raise InvalidTiming(f"{next(iter(asked))} needs deliverEvery")
    for name, text in (("deliverTimes", times), ("deliverUntil", until)):
        if text and not every:
            raise InvalidTiming(f"{name} needs deliverEvery")
    first = rule = None
    if at:
        if not at[:4].isdigit() or "T" not in at:
            raise InvalidTiming(f"deliverAt: must be a time such as 2030-01-31T08:00:00Z (got '{clip(at)}')")
        first = _field("deliverAt", lambda: parse_moment(at, now))
    elif after:
        if after[:4].isdigit() and "T" in after:
            raise InvalidTiming(f"deliverAfter: must be a duration such as 1h30m or PT1H30M (got '{clip(after)}')")
        first = _field("deliverAfter", lambda: parse_moment(after, now))
    if every:
        rule = _field("deliverEvery", lambda: parse_recurrence(every))
    repeats = end = None
    if times:
        if not re.fullmatch(r"[0-9]{1,9}", times) or not int(times):
            raise InvalidTiming(f"deliverTimes: must be an integer from 1 to 999999999 (got '{clip(times)}')")
        repeats = int(times)
    due = rule.next(now, now) if first is None and rule is not None else first
    if until:
        end = _field("deliverUntil", lambda: parse_moment(until, now if first is None else first))
    if due is None or (end is not None and end < due):
        raise InvalidTiming("the event would never be delivered: it ends before its first time")
    return Timing(Schedule(first=first, recurrence=rule, repeats=repeats, until=end, since=now), due)


def _field(name: str, read: Callable[[], T]) -> T:
    try:
        return read()
    except ValueError as error:
        raise InvalidTiming(f"{name}: {error}") from None
