"""What the bodies that create timers and reminders say about when they fire (Dapr: time formats of actors)."""

from __future__ import annotations

import re
from typing import NamedTuple

from mesh.scheduling.recurrence import Every, parse_moment, parse_period
from mesh.scheduling.scheduler import Schedule

SHORTEST_TIMER = 0.01
"""Seconds between two ticks of a timer."""

_CALENDAR = re.compile(r"(?:R-?\d+/)?P[^T]*[YMWD]")


class Times(NamedTuple):
    """Texts as they were sent; empty for what was not given."""

    due_time: str = ""
    period: str = ""
    ttl: str = ""


def of_reminder(times: Times, now: float) -> Schedule | None:
    """`None` for one that is taken and never fires. Raises `ValueError`, with the name of the member at fault."""
    if not times.due_time and not times.period:
        raise ValueError("one of dueTime and period must be given")
    first = _moment("dueTime", times.due_time, now) if times.due_time else None
    every, repeats = _period(times.period)
    if _CALENDAR.match(times.period):
        raise ValueError(f"period: a reminder's has no years, months, weeks and days (got '{times.period}')")
    if every is None and first is None:
        first = now
    until = None
    if times.ttl:
        if not times.period:
            raise ValueError("ttl: needs a period")
        until = _moment("ttl", times.ttl, now if first is None else first)
        begins = first if first is not None else every.next(now, now) if every else now
        if begins is None or until < begins:
            if times.due_time:
                raise ValueError("ttl: ends before the reminder fires for the first time")
            return None
    repeats = (repeats or None) if every else None
    return Schedule(first=first, recurrence=every, repeats=repeats, until=until, since=now)


def of_timer(times: Times, now: float) -> Schedule:
    """`first` is given. Raises `ValueError` as `of_reminder`."""
    first = _moment("dueTime", times.due_time, now) if times.due_time else now
    every, repeats = _period(times.period)
    if repeats == 0:
        raise ValueError("period: repeats must be greater than 0")
    if every is not None and not every.months and every.seconds < SHORTEST_TIMER:
        raise ValueError(f"period: a timer ticks every {SHORTEST_TIMER:g} s at most (got '{times.period}')")
    until = None
    if times.ttl:
        until = _moment("ttl", times.ttl, first)
        if until < max(first, now):
            raise ValueError("ttl: ends before the timer fires for the first time")
    return Schedule(first=first, recurrence=every, repeats=repeats if every else None, until=until)


def _moment(member: str, text: str, now: float) -> float:
    try:
        return parse_moment(text, now)
    except ValueError as error:
        raise ValueError(f"{member}: {error}") from None


def _period(text: str) -> tuple[Every | None, int | None]:
    if not text:
        return None, None
    try:
        return parse_period(text)
    except ValueError as error:
        raise ValueError(f"period: {error}") from None
