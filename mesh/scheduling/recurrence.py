"""When something is due: the texts in which Dapr's APIs say it, and the arithmetic of what comes next.

Every parser raises `ValueError` whose text is the rule that was broken; the caller names the field. Moments are
seconds since the epoch. docs/scheduling.md tells users the same.
"""

from __future__ import annotations

import calendar
import math
import re
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from typing import NamedTuple, Protocol
from zoneinfo import ZoneInfo

import msgspec
from cronsim import CronSim, CronSimError

from mesh.errors import clip
from mesh.quantities import duration

MAX_TEXT = 256
"""Longest text of a schedule, in characters."""

_RFC_3339 = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?(Z|[-+][0-9]{2}:[0-9]{2})")
_ISO_DURATION = re.compile(
    r"P(?=.)(?:(\d+)Y)?(?:(\d+)M)?(?:(\d+)W)?(?:(\d+)D)?(?:T(?=.)(?:(\d+)H)?(?:(\d+)M)?(?:(\d+)S)?)?", re.ASCII
)
_REPETITION = re.compile(r"R(-1|\d{1,9})/(.+)", re.ASCII)
_ZONE = re.compile(r"(?:CRON_)?TZ=(\S+)\s+(.+)")
_STEP_OF_ALL = re.compile(r"(?<![^,])\*(?=/0*(?:[2-9]|1\d))")
_LONGEST = 10_000 * 366 * 86_400.0
"""Seconds. Whatever is longer ends after the year 9999, which is as far as dates go here."""

_DESCRIPTORS = {
    "@yearly": "0 0 0 1 1 *",
    "@annually": "0 0 0 1 1 *",
    "@monthly": "0 0 0 1 * *",
    "@weekly": "0 0 0 * * 0",
    "@daily": "0 0 0 * * *",
    "@midnight": "0 0 0 * * *",
    "@hourly": "0 0 * * * *",
}


class Recurrence(Protocol):
    """A rule by which moments follow each other."""

    @property
    def text(self) -> str:
        """What `parse_recurrence` reads as the same rule."""
        ...

    def next(self, after: float, start: float) -> float | None:
        """The first moment of the rule later than `after`; `None` when there is none before the year 10000.

        `start` is where the series begins: rules that count from somewhere count from there.
        """
        ...


class Every(msgspec.Struct, frozen=True):
    """Again and again after the same time: months of the calendar, and seconds.

    Moments are counted from the start, in UTC, so none drifts. A day that a month does not have is its last one:
    a month after 31 January is 28 February, two months after it 31 March. (Dapr's timers would come on 3 March, and
    on the 3rd from then on.)
    """

    text: str
    months: int
    seconds: float

    def next(self, after: float, start: float) -> float | None:
        if after - start > _LONGEST:
            return None
        longest = self.months * 31 * 86_400.0 + self.seconds
        number = max(1, math.floor((after - start) / longest))
        while (moment := self._moment(start, number)) is not None and moment <= after:
            # Months are shorter than the longest one, but not by so much that this takes more than a few turns.
            number += max(1, math.floor((after - moment) / longest))
        return moment

    def _moment(self, start: float, number: int) -> float | None:
        return add(start, number * self.months, number * self.seconds)


class Cron(msgspec.Struct, frozen=True):
    """A pattern that the clocks of a zone show.

    `fields` is second, minute, hour, day of the month, month and day of the week. Where clocks are put forward and
    back: a pattern with a fixed hour and minute fires once right after a gap that swallowed it, and once when the
    clocks show its time twice, at the first. One whose hour or minute begins with `*` goes on as time does.
    """

    text: str
    fields: str
    zone: str

    def next(self, after: float, start: float) -> float | None:
        zone = _zone(self.zone)
        try:
            wall = datetime.fromtimestamp(math.floor(after), UTC).astimezone(zone)
            if zone is UTC or self._goes_on:
                found = next(CronSim(self.fields, wall), None)
                return None if found is None else found.timestamp()
            for local in CronSim(self.fields, wall.replace(tzinfo=None, fold=0)):
                moment = _first_moment(local, zone)
                if moment > after:
                    return moment
        except (OverflowError, ValueError, OSError):  # past the year 9999
            pass
        return None

    @property
    def _goes_on(self) -> bool:
        _, minute, hour, *_ = self.fields.split()
        return minute.startswith("*") or hour.startswith("*")


def _first_moment(local: datetime, zone: tzinfo) -> float:
    """When the clocks of `zone` show `local` for the first time or, when they skip it, first show something later."""
    shown = local.replace(tzinfo=zone, fold=0)
    moment = shown.timestamp()
    if datetime.fromtimestamp(moment, zone).replace(tzinfo=None, fold=0) == local:
        return moment
    before, after = math.floor(shown.replace(fold=1).timestamp()), math.ceil(moment)
    offset = datetime.fromtimestamp(after, zone).utcoffset()
    while after - before > 1:
        middle = (before + after) // 2
        if datetime.fromtimestamp(middle, zone).utcoffset() == offset:
            after = middle
        else:
            before = middle
    return float(after)


class Period(NamedTuple):
    """What a `period` says."""

    every: Every | None
    """`None` for one of no length (Dapr: fires once)."""
    repeats: int | None
    """How often in all; `None` where the text does not say so. 0 is for the caller to judge: Dapr's timers refuse it,
    its reminders take it as without end."""


def parse_moment(text: str, now: float) -> float:
    """An RFC 3339 instant, or a duration from `now`: Go's (`1h30m`) or ISO 8601's (`PT1H30M`, `P1M`, whole numbers).

    May lie in the past. Raises `ValueError` also for what lies outside the years 1 to 9999.
    """
    _check_length(text)
    if _RFC_3339.fullmatch(text):
        try:
            return datetime.fromisoformat(text).timestamp()
        except (ValueError, OverflowError):
            raise ValueError(f"must be a date and time that exist (got '{clip(text)}')") from None
    if text.startswith("P"):
        months, seconds = _iso_duration(text)
        moment = add(now, months, seconds)
    else:
        try:
            moment = add(now, 0, duration(text, bare_unit=None))
        except ValueError:
            raise ValueError(
                "must be a time such as 2030-01-31T08:00:00Z, or a duration such as 1h30m or PT1H30M "
                f"(got '{clip(text)}')"
            ) from None
    if moment is None:
        raise ValueError(f"must end before the year 10000 (got '{clip(text)}')")
    return moment


def parse_period(text: str) -> Period:
    """A Go duration, or an ISO 8601 one with or without repetitions: `R5/PT10S` fires five times."""
    _check_length(text)
    repeats = None
    repetition = _REPETITION.fullmatch(text)
    if repetition is not None:
        repeats = None if repetition[1] == "-1" else int(repetition[1])
        text = repetition[2]
    elif text.startswith("R"):
        raise ValueError(f"must say how often, such as R5/PT10S (got '{clip(text)}')")
    if text.startswith("P"):
        months, seconds = _iso_duration(text)
    elif repetition is not None:
        raise ValueError(f"must have an ISO 8601 duration after the repetitions, such as PT10S (got '{clip(text)}')")
    else:
        months, seconds = 0, duration(text, bare_unit=None)
    if seconds < 0:
        raise ValueError(f"must not be negative (got '{clip(text)}')")
    return Period(Every(f"@every {text}", months, seconds) if months or seconds else None, repeats)


@lru_cache(maxsize=1024)
def parse_recurrence(text: str, zone: str = "") -> Recurrence:
    """A cron pattern of six fields (seconds first) or five, `@every <duration>`, or one of `@yearly`, `@annually`,
    `@monthly`, `@weekly`, `@daily`, `@midnight`, `@hourly`.

    `zone` is an IANA name; a prefix `CRON_TZ=<name> ` or `TZ=<name> ` of the text is another way to give it; without
    any it is UTC. Raises `ValueError` also for a pattern that no date ever fits.
    """
    _check_length(text)
    text = text.strip()
    prefix = _ZONE.fullmatch(text)
    if prefix is not None:
        if zone:
            raise ValueError(f"must name a zone once, not '{clip(prefix[1])}' and '{clip(zone)}'")
        zone, text = prefix[1], prefix[2]
    if text.startswith("@every "):
        if zone:
            raise ValueError("must not have a zone together with @every")
        every = parse_period(text.removeprefix("@every ").strip())
        if every.every is None or every.repeats is not None:
            raise ValueError(f"must be a duration greater than zero after @every (got '{clip(text)}')")
        return every.every
    _zone(zone)
    fields = _cron_fields(text)
    try:
        possible = next(CronSim(fields, datetime(2000, 1, 1)), None)
    except (CronSimError, AssertionError) as error:
        raise ValueError(f"must be a cron pattern: {error or 'bad fields'} in '{clip(text)}'") from None
    if possible is None:
        raise ValueError(f"must be a pattern that some date fits (got '{clip(text)}')")
    return Cron(f"CRON_TZ={zone} {text}" if zone else text, fields, zone)


def _cron_fields(text: str) -> str:
    """The six fields in cronsim's spelling and meaning."""
    if text.startswith("@"):
        if text not in _DESCRIPTORS:
            raise ValueError(f"must be one of {', '.join(_DESCRIPTORS)} or @every <duration> (got '{clip(text)}')")
        return _DESCRIPTORS[text]
    fields = text.upper().replace("?", "*").split()
    if len(fields) == 5:
        fields.insert(0, "0")
    if len(fields) != 6:
        raise ValueError(f"must have six fields, seconds first, or five (got '{clip(text)}')")
    # Either day may fit, or both must when one is any (`*`). Dapr takes `*/2` for a restriction, cronsim for any.
    fields[3] = _STEP_OF_ALL.sub("1-31", fields[3])
    fields[5] = _STEP_OF_ALL.sub("0-6", fields[5])
    return " ".join(fields)


def add(moment: float, months: int, seconds: float) -> float | None:
    """`moment` and so many months of the UTC calendar, then so many seconds; `None` outside the years 1 to 9999."""
    try:
        if months:
            whole = math.floor(moment)
            date = datetime.fromtimestamp(whole, UTC)
            year, month = divmod(date.year * 12 + date.month - 1 + months, 12)
            day = min(date.day, calendar.monthrange(year, month + 1)[1])
            moment = date.replace(year=year, month=month + 1, day=day).timestamp() + (moment - whole)
        datetime.fromtimestamp(0, UTC) + timedelta(seconds=moment + seconds)
    except (ValueError, OverflowError):
        return None
    return moment + seconds


def _iso_duration(text: str) -> tuple[int, float]:
    """Months and seconds."""
    match = _ISO_DURATION.fullmatch(text)
    if match is None:
        raise ValueError(f"must be an ISO 8601 duration of whole numbers, such as PT1H30M or P1M (got '{clip(text)}')")
    years, months, weeks, days, hours, minutes, seconds = (int(number or 0) for number in match.groups())
    total = ((weeks * 7 + days) * 24 + hours) * 3600 + minutes * 60 + seconds
    if (years * 12 + months) * 28 * 86_400 + total > _LONGEST:
        raise ValueError(f"must be shorter than 10000 years (got '{clip(text)}')")
    return years * 12 + months, float(total)


@lru_cache(maxsize=256)
def _zone(name: str) -> tzinfo:
    """Raises `ValueError` for an unknown one."""
    if not name or name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ValueError(f"must be the name of a time zone, such as Europe/Rome (got '{clip(name)}')") from None


def _check_length(text: str) -> None:
    if len(text) > MAX_TEXT:
        raise ValueError(f"must have at most {MAX_TEXT} characters (got '{clip(text)}')")
