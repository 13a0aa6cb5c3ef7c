from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.scheduling.recurrence import Recurrence, add, parse_moment, parse_period, parse_recurrence

ROME, NEW_YORK = ZoneInfo("Europe/Rome"), ZoneInfo("America/New_York")


def moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


NOW = moment("2026-01-31T08:00:00Z")


def series(rule: Recurrence, start: str | float, number: int) -> list[str]:
    """The first moments after `start`, in UTC."""
    after = begin = moment(start) if isinstance(start, str) else start
    found: list[str] = []
    for _ in range(number):
        following = rule.next(after, begin)
        if following is None:
            break
        assert following > after
        after = following
        found.append(datetime.fromtimestamp(after, UTC).isoformat().removesuffix("+00:00"))
    return found


# Moments


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5s", 5),
        ("1h30m", 5400),
        ("250ms", 0.25),
        ("0s", 0),
        ("-5s", -5),
        ("PT5S", 5),
        ("PT1H30M", 5400),
        ("P1D", 86_400),
        ("P1W", 7 * 86_400),
        ("P1M", 28 * 86_400),
        ("P1Y", 365 * 86_400),
        ("P1Y2M3W4DT5H6M7S", moment("2027-04-25T13:06:07Z") - NOW),
        ("2026-01-31T08:00:01Z", 1),
        ("2026-01-31T09:00:00.5+01:00", 0.5),
        ("2020-01-01T00:00:00Z", moment("2020-01-01T00:00:00Z") - NOW),
    ],
)
def test_a_moment_is_an_instant_or_a_duration_from_now(text: str, seconds: float) -> None:
    assert parse_moment(text, NOW) == NOW + seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5",
        "soon",
        "P",
        "PT",
        "P1DT",
        "PT1.5S",
        "R5/PT1S",
        "p1d",
        "PT٣S",
        "2026-01-31",
        "2026-01-31T08:00:00",
        "2026-01-31 08:00:00Z",
        "2026-01-31t08:00:00z",
        "2026-02-30T08:00:00Z",
        "2026-01-31T08:00:60Z",
        "2026-01-31T08:00:00+25:00",
        "0000-01-01T00:00:00Z",
        "P9999Y",
        "P" + "9" * 400 + "Y",
        "P" + "9" * 200 + "D",
    ],
)
def test_what_is_no_moment_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must"):
        parse_moment(text, NOW)


# Periods


@pytest.mark.parametrize(
    ("text", "months", "seconds", "repeats"),
    [
        ("10s", 0, 10, None),
        ("PT10S", 0, 10, None),
        ("R5/PT10S", 0, 10, 5),
        ("R-1/PT10S", 0, 10, None),
        ("R0/PT10S", 0, 10, 0),
        ("R3/P1Y1M", 13, 0, 3),
    ],
)
def test_a_period_may_say_how_often(text: str, months: int, seconds: float, repeats: int | None) -> None:
    period = parse_period(text)
    assert period.every is not None
    assert (period.every.months, period.every.seconds, period.repeats) == (months, seconds, repeats)


@pytest.mark.parametrize(("text", "repeats"), [("0s", None), ("PT0S", None), ("R2/PT0S", 2)])
def test_a_period_of_no_length_recurs_never(text: str, repeats: int | None) -> None:
    assert parse_period(text) == (None, repeats)


@pytest.mark.parametrize("text", ["", "-1s", "R/PT1S", "R5", "R5/", "R5/10s", "R-2/PT1S", "R5/R5/PT1S", "5", "P"])
def test_what_is_no_period_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must"):
        parse_period(text)


# Every


def test_a_series_counts_from_its_start_without_drift() -> None:
    rule = parse_recurrence("@every 90s")
    assert series(rule, "2026-03-01T00:00:00", 3) == [
        "2026-03-01T00:01:30",
        "2026-03-01T00:03:00",
        "2026-03-01T00:04:30",
    ]
    start = moment("2026-03-01T00:00:00Z")
    assert rule.next(start + 1000, start) == start + 1080  # what lies between has been missed
    assert rule.next(start - 1000, start) == start + 90


def test_a_month_ends_with_its_last_day() -> None:
    assert series(parse_recurrence("@every P1M"), "2027-10-31T09:30:00Z", 5) == [
        "2027-11-30T09:30:00",
        "2027-12-31T09:30:00",
        "2028-01-31T09:30:00",
        "2028-02-29T09:30:00",
        "2028-03-31T09:30:00",
    ]


def test_a_leap_day_comes_back_every_fourth_year() -> None:
    assert series(parse_recurrence("@every P1Y"), "2028-02-29T00:00:00Z", 4) == [
        "2029-02-28T00:00:00",
        "2030-02-28T00:00:00",
        "2031-02-28T00:00:00",
        "2032-02-29T00:00:00",
    ]


def test_a_series_ends_with_the_calendar() -> None:
    rule = parse_recurrence("@every P1Y")
    assert series(rule, "9997-06-01T00:00:00Z", 5) == ["9998-06-01T00:00:00", "9999-06-01T00:00:00"]
    assert rule.next(1e18, 0.0) is None


@settings(deadline=None, max_examples=50)
@given(
    start=st.floats(0, 4e9),
    elapsed=st.floats(-1e9, 4e9),
    months=st.integers(0, 30),
    seconds=st.integers(0, 10**7),
)
def test_the_next_of_every_is_the_first_one_later(start: float, elapsed: float, months: int, seconds: int) -> None:
    every = parse_period(f"P{months}MT{seconds}S").every
    if every is None:
        assert not months
        assert not seconds
        return
    after = start + elapsed
    following = every.next(after, start)
    assert following is not None
    assert following > after
    moments = [add(start, n * months, n * float(seconds)) for n in _around(start, following, months, seconds)]
    assert following in moments
    assert not [other for other in moments if other is not None and after < other < following]


def _around(start: float, following: float, months: int, seconds: int) -> range:
    """The numbers of the moments near `following`."""
    guess = int((following - start) / (months * 30.436875 * 86_400 + seconds))
    return range(max(1, guess - 2), guess + 3)


# Cron


@pytest.mark.parametrize(
    ("text", "moments"),
    [
        ("*/15 * * * * *", ["2026-01-31T08:00:15", "2026-01-31T08:00:30", "2026-01-31T08:00:45"]),
        ("*/15 * * * *", ["2026-01-31T08:15:00", "2026-01-31T08:30:00", "2026-01-31T08:45:00"]),
        ("30 0 9 ? * mon-fri", ["2026-02-02T09:00:30", "2026-02-03T09:00:30"]),
        ("0 0 0 1 JAN,jul *", ["2026-07-01T00:00:00", "2027-01-01T00:00:00"]),
        ("0 0 0 29 2 *", ["2028-02-29T00:00:00", "2032-02-29T00:00:00"]),
        ("0 0 12 13 * FRI", ["2026-02-06T12:00:00", "2026-02-13T12:00:00"]),
        ("0 0 12 */10 * MON", ["2026-01-31T12:00:00", "2026-02-01T12:00:00", "2026-02-02T12:00:00"]),
        ("0 0 12 1-7 * *", ["2026-02-01T12:00:00", "2026-02-02T12:00:00"]),
        ("0 0 12 * * 7", ["2026-02-01T12:00:00", "2026-02-08T12:00:00"]),
        ("@hourly", ["2026-01-31T09:00:00", "2026-01-31T10:00:00"]),
        ("@daily", ["2026-02-01T00:00:00", "2026-02-02T00:00:00"]),
        ("@midnight", ["2026-02-01T00:00:00"]),
        ("@weekly", ["2026-02-01T00:00:00", "2026-02-08T00:00:00"]),
        ("@monthly", ["2026-02-01T00:00:00", "2026-03-01T00:00:00"]),
        ("@yearly", ["2027-01-01T00:00:00"]),
        ("@annually", ["2027-01-01T00:00:00"]),
        ("TZ=Asia/Kolkata 0 0 9 * * *", ["2026-02-01T03:30:00"]),
        ("CRON_TZ=Europe/Rome @daily", ["2026-01-31T23:00:00"]),
    ],
)
def test_a_pattern_fires_when_the_clocks_show_it(text: str, moments: list[str]) -> None:
    assert series(parse_recurrence(text), NOW, len(moments)) == moments


def test_the_zone_may_be_given_apart() -> None:
    apart, within = parse_recurrence("0 30 8 * * *", "Europe/Rome"), parse_recurrence("TZ=Europe/Rome 0 30 8 * * *")
    assert apart.next(NOW, NOW) == within.next(NOW, NOW) == moment("2026-02-01T07:30:00Z")


@pytest.mark.parametrize("text", ["*/5 1-3 * * * MON", "@hourly", "CRON_TZ=Europe/Rome 0 0 9 * * *", "@every P1MT1S"])
def test_the_text_of_a_rule_is_read_as_the_same_rule(text: str) -> None:
    rule = parse_recurrence(text)
    assert parse_recurrence(rule.text) == rule


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "six fields"),
        ("* * * *", "six fields"),
        ("* * * * * * *", "six fields"),
        ("60 * * * * *", "second"),
        ("0 0 24 * * *", "hour"),
        ("0 0 0 0 * *", "day-of-month"),
        ("0 0 0 * 13 *", "month"),
        ("0 0 0 * * 8", "day-of-week"),
        ("0 0 0 * FOO *", "month"),
        ("*/0 * * * * *", "second"),
        ("5-1 * * * * *", "second"),
        ("0 0 0 30 2 *", "day-of-month"),
        ("0 0 0 31 2,4,6 *", "day-of-month"),
        ("@fortnightly", "@monthly"),
        ("@every", "@monthly"),
        ("@every 0s", "greater than zero"),
        ("@every -1s", "negative"),
        ("@every R5/PT1S", "greater than zero"),
        ("TZ=Europe/Rome @every 1s", "together with @every"),
        ("TZ=Mars/Olympus 0 0 0 * * *", "zone"),
        ("TZ=../../etc/passwd 0 0 0 * * *", "zone"),
        ("TZ=Europe 0 0 0 * * *", "zone"),
        ("0 0 0 * * " + "1," * 200 + "1", "256 characters"),
    ],
)
def test_what_is_no_pattern_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_recurrence(text)


def test_a_zone_is_named_once() -> None:
    with pytest.raises(ValueError, match="once"):
        parse_recurrence("TZ=Europe/Rome @daily", "Europe/Rome")


# Clocks are put forward, and back


@pytest.mark.parametrize(
    ("text", "start", "moments"),
    [
        # Rome goes from 02:00 to 03:00 on 29 March 2026 at 01:00 UTC.
        ("TZ=Europe/Rome 0 30 2 * * *", "2026-03-27T22:00Z", ["28T01:30:00", "29T01:00:00", "30T00:30:00"]),
        ("TZ=Europe/Rome 0,30 2 * * *", "2026-03-28T02:00Z", ["29T01:00:00", "30T00:00:00", "30T00:30:00"]),
        ("TZ=Europe/Rome 15 59 1 * * *", "2026-03-28T02:00Z", ["29T00:59:15", "29T23:59:15"]),
        ("TZ=Europe/Rome 0 0 3 * * *", "2026-03-28T12:00Z", ["29T01:00:00", "30T01:00:00"]),
        ("TZ=Europe/Rome 0 */30 * * * *", "2026-03-29T00:00Z", ["29T00:30:00", "29T01:00:00", "29T01:30:00"]),
        ("TZ=Europe/Rome @hourly", "2026-03-28T23:30Z", ["29T00:00:00", "29T01:00:00", "29T02:00:00"]),
        # New York goes from 02:00 to 03:00 on 8 March 2026 at 07:00 UTC.
        ("TZ=America/New_York 45 15 2 * * *", "2026-03-06T12:00Z", ["07T07:15:45", "08T07:00:00", "09T06:15:45"]),
        ("TZ=America/New_York @hourly", "2026-03-08T05:30Z", ["08T06:00:00", "08T07:00:00", "08T08:00:00"]),
    ],
)
def test_what_a_gap_swallows_fires_once_right_after_it(text: str, start: str, moments: list[str]) -> None:
    assert [found[8:] for found in series(parse_recurrence(text), start, len(moments))] == moments


@pytest.mark.parametrize(
    ("text", "start", "moments"),
    [
        # Rome goes from 03:00 back to 02:00 on 25 October 2026 at 01:00 UTC.
        ("TZ=Europe/Rome 0 30 2 * * *", "2026-10-24T12:00Z", ["25T00:30:00", "26T01:30:00"]),
        ("TZ=Europe/Rome 0 30 2 * * *", "2026-10-25T01:10Z", ["26T01:30:00"]),
        ("TZ=Europe/Rome 0 0 3 * * *", "2026-10-24T12:00Z", ["25T02:00:00", "26T02:00:00"]),
        ("TZ=Europe/Rome 0 */30 * * * *", "2026-10-25T00:15Z", ["25T00:30:00", "25T01:00:00", "25T01:30:00"]),
        ("TZ=Europe/Rome @hourly", "2026-10-24T23:30Z", ["25T00:00:00", "25T01:00:00", "25T02:00:00"]),
        # New York goes from 02:00 back to 01:00 on 1 November 2026 at 06:00 UTC.
        ("TZ=America/New_York 0 30 1 * * *", "2026-10-31T12:00Z", ["01T05:30:00", "02T06:30:00"]),
        ("TZ=America/New_York @hourly", "2026-11-01T04:30Z", ["01T05:00:00", "01T06:00:00", "01T07:00:00"]),
    ],
)
def test_what_the_clocks_show_twice_fires_once(text: str, start: str, moments: list[str]) -> None:
    assert [found[8:] for found in series(parse_recurrence(text), start, len(moments))] == moments


@settings(deadline=None, max_examples=10)
@given(
    zone=st.sampled_from([ROME, NEW_YORK, ZoneInfo("Australia/Lord_Howe"), ZoneInfo("Africa/Cairo")]),
    hour=st.integers(0, 23),
    minute=st.integers(0, 59),
    second=st.integers(0, 59),
)
def test_a_daily_pattern_fires_once_each_day_of_a_year(zone: ZoneInfo, hour: int, minute: int, second: int) -> None:
    rule = parse_recurrence(f"{second} {minute} {hour} * * *", zone.key)
    at = datetime(2026, 1, 1, tzinfo=zone).timestamp()
    moments = [at := following for _ in range(365) if (following := rule.next(at, 0.0)) is not None]
    local = [datetime.fromtimestamp(found, zone) for found in moments]
    assert all(one.date() + timedelta(1) == other.date() for one, other in pairwise(local))
    odd = [found for found in local if (found.hour, found.minute, found.second) != (hour, minute, second)]
    assert len(odd) <= 1  # on the day whose clocks skip it


@settings(deadline=None, max_examples=50)
@given(
    st.sampled_from(["*/7 * * * * *", "0 */11 3-5 * * *", "5 4 */3 2,30 * *", "0 0 12 * * MON#2", "1 1 1 L * *"]),
    st.sampled_from(["", "Europe/Rome", "America/New_York", "Australia/Lord_Howe"]),
    st.floats(0, 4e9),
)
def test_a_pattern_never_stands_still(text: str, zone: str, after: float) -> None:
    rule = parse_recurrence(text, zone)
    first = rule.next(after, after)
    assert first is not None
    assert first > after
    assert rule.next(first - 0.5, after) == first or first - 0.5 < after
