"""Schedules over alarms: once, every so often, by cron; with an end, a number of times, and nothing forgotten.

A schedule is one alarm that carries its rule along. When it has become due, one member handles it; settling it sets
the next alarm of the series in its place. So a tick that fails or is lost with its member comes again, two ticks of one
schedule are never handled side by side, and those that were missed meanwhile are one (docs/adr/0007-schedules.md).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import NamedTuple

import msgspec

from mesh.errors import MeshError
from mesh.ports.alarms import Alarm, Alarms, AlarmSubscription, Firing, SetAlarm
from mesh.ports.clock import Clock
from mesh.ports.tables import ABSENT, Conflict, Key
from mesh.scheduling.recurrence import Every, Recurrence, parse_recurrence

logger = logging.getLogger("meshwire.schedules")

SHORTEST_PERIOD = 1.0
"""Seconds. Brokers hold messages to within a quarter of a second; whatever is faster belongs into a timer."""
LONGEST_PAUSE = 30.0
"""Seconds up to which a retry is the member's own; the broker holds a longer one as an alarm."""
UNREADABLE_PAUSE = 60.0
"""Seconds after which a schedule that this version cannot read is offered again, to a newer one."""

_NOTE = "schedule"
"""The header of the alarm that carries the rule."""


class AlreadyScheduled(MeshError):
    """There is a schedule of this key, and it was not to be overwritten."""

    def __init__(self, key: Key) -> None:
        super().__init__(f"{'/'.join(key)} is scheduled already")
        self.key = key


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """When something fires. Moments are seconds since the epoch (`parse_moment`)."""

    first: float | None = None
    """The first time, at once when it lies in the past; `None` is the first moment of `recurrence` after `since`."""
    recurrence: Recurrence | None = None
    """When it fires again; counted from `first`, or from `since`. `None` is never."""
    repeats: int | None = None
    """How often it fires in all; `None` is without end."""
    until: float | None = None
    """It fires at this moment perhaps, and never for a later one."""
    since: float | None = None
    """The moment that `recurrence` counts from without `first`: that of the request, from which `until` was worked out,
    too. `None` is when it is scheduled."""


class _Series(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the alarm of a schedule carries along: stored data, so fields are only ever added."""

    start: float
    """Where the recurrence counts from."""
    every: str = ""
    """The text of the recurrence."""
    number: int = 1
    """Of the tick that the alarm is, from 1."""
    repeats: int | None = None
    until: float | None = None
    first: float | None = None
    """As the schedule has it."""
    due: float | None = None
    """When the tick was to fire, of one that was put off since."""
    attempts: int = 0
    """How often that one was handled before."""

    def following(self, after: float) -> float | None:
        """When the series fires next, later than `after`; `None` when it is over. Raises `ValueError`."""
        if not self.every or (self.repeats is not None and self.number >= self.repeats):
            return None
        due = parse_recurrence(self.every).next(after, self.start)
        return None if due is None or (self.until is not None and due > self.until) else due


class Scheduled(NamedTuple):
    """A schedule that has yet to fire, or whose tick is due and not settled."""

    key: Key
    schedule: Schedule
    payload: bytes
    notes: Mapping[str, str]
    due: float
    """When it fires next, or is tried again. In the past while a tick waits for a member or is being handled."""
    number: int
    """Of that tick, from 1."""
    revision: int


class ScheduledPage(NamedTuple):
    schedules: list[Scheduled]
    cursor: str | None
    """Where the next page begins; `None` after the last one."""


class Tick:
    """A schedule that is due, in the hands of one member. Exactly one of `done` and `retry` settles it."""

    __slots__ = ("_clock", "_firing", "_series", "due", "key", "notes", "number", "payload")

    def __init__(self, firing: Firing, clock: Clock) -> None:
        """Raises `ValueError` when the alarm carries what this version cannot read."""
        self._firing = firing
        self._clock = clock
        self._series = _read(firing.alarm)
        self.key: Key = firing.alarm.key
        self.payload: bytes = firing.alarm.payload
        self.notes = _notes(firing.alarm)
        self.due: float = firing.alarm.due if self._series.due is None else self._series.due
        """When it was to fire. Seconds since the epoch."""
        self.number: int = self._series.number
        """1 at the first tick of the schedule, however late it is. Those that were missed are not counted."""

    @property
    def attempt(self) -> int:
        """1 when this tick is handled for the first time, as far as the broker knows."""
        return self._series.attempts + self._firing.attempt

    @property
    def recurs(self) -> bool:
        """It is of a series, of one moment or more."""
        return bool(self._series.every)

    def following(self, after: float) -> float | None:
        """The first moment of the series later than `after`; `None` when it is over."""
        return self._series.following(after)

    def done(self, *, up_to: float | None = None) -> None:
        """Handled, or given up: go on with the series, at its next moment from now on. With `up_to` the moments until
        then were handled, and none after it: the next one may be due already."""
        series = self._series
        due = series.following(max(self._clock.now() if up_to is None else up_to, self.due))
        if due is None:
            self._firing.ack()
        else:
            self._firing.ack(_alarm(self.key, due, self.payload, self.notes, _numbered(series, self.number + 1)))

    def retry(self, delay: float) -> None:
        """Handle this tick again after `delay` seconds. The series waits for it."""
        if delay <= LONGEST_PAUSE:
            self._firing.retry(delay)
        else:
            self._put_off(delay, self.attempt)

    def release(self) -> None:
        """As `retry` at once, but this was no attempt."""
        self._put_off(0, self.attempt - 1)

    def _put_off(self, delay: float, attempts: int) -> None:
        series = msgspec.structs.replace(self._series, due=self.due, attempts=attempts)
        self._firing.ack(_alarm(self.key, self._clock.now() + delay, self.payload, self.notes, series))


TickHandler = Callable[[Tick], None]
"""Called in the event loop for each tick. It must not block or raise; it settles the tick sooner or later."""


class Scheduler:
    """The schedules of one scope. Every method raises `InvalidKey`, `BrokerError`, `BrokerUnavailable`.

    They survive the end of everything. Each tick is handled once or more, never early, late rather than never; ticks
    whose moment has passed when the one before is settled, or while there was no member, are one.
    """

    def __init__(self, alarms: Alarms, clock: Clock) -> None:
        self._alarms = alarms
        self._clock = clock

    async def schedule(
        self,
        key: Key,
        schedule: Schedule,
        payload: bytes = b"",
        *,
        notes: Mapping[str, str] | None = None,
        overwrite: bool,
    ) -> float:
        """Fire under `key` when `schedule` says so. Returns when that is first, once the broker has stored it.

        The first part of the key is the kind that is served. Overwriting starts anew, and takes back a tick that
        is due. `notes` come with each tick: names of letters, digits and `-` in lower case, but not `schedule`.

        Raises `AlreadyScheduled`, `MessageTooLarge`, and `ValueError` for a schedule that breaks a rule or never fires.
        """
        series, due = _begin(schedule, self._clock.now() if schedule.since is None else schedule.since)
        if _NOTE in (notes or {}):
            raise ValueError(f"a note cannot be named '{_NOTE}'")
        alarm = _alarm(key, due, payload, notes or {}, series)
        try:
            await self._alarms.set(alarm, expected=None if overwrite else ABSENT)
        except Conflict:
            raise AlreadyScheduled(key) from None
        return due

    async def cancel(self, key: Key) -> bool:
        """False when nothing is scheduled under `key`. A tick that is due does not come again."""
        return await self._alarms.cancel(key)

    async def get(self, key: Key) -> Scheduled | None:
        """What is scheduled under `key`. Raises `ValueError` when this version cannot read it."""
        found = await self._alarms.get(key)
        return None if found is None else _scheduled(found)

    async def scan(self, prefix: Key, *, limit: int, cursor: str | None = None) -> ScheduledPage:
        """As `Alarms.scan`. Passes over what this version cannot read, and says so in the log."""
        page = await self._alarms.scan(prefix, limit=limit, cursor=cursor)
        schedules: list[Scheduled] = []
        for found in page.alarms:
            try:
                schedules.append(_scheduled(found))
            except ValueError as error:
                logger.error("the schedule %s is passed over: %s", "/".join(found.alarm.key), error)
        return ScheduledPage(schedules, page.cursor)

    async def serve(self, kind: str, handler: TickHandler, *, concurrency: int) -> AlarmSubscription:
        """Handle ticks of a kind, side by side with other members: each goes to one of them. Those that became due
        while there was no member come first. At most `concurrency` are unsettled at once."""

        def handle(firing: Firing) -> None:
            try:
                tick = Tick(firing, self._clock)
            except ValueError as error:
                logger.error("the schedule %s has to wait: %s", "/".join(firing.alarm.key), error)
                firing.retry(UNREADABLE_PAUSE)
            else:
                handler(tick)

        return await self._alarms.serve(kind, handle, concurrency=concurrency)


def _begin(schedule: Schedule, now: float) -> tuple[_Series, float]:
    """The series of a new schedule, and when it fires first. Raises `ValueError`."""
    rule, repeats = schedule.recurrence, schedule.repeats
    if repeats is not None and repeats < 1:
        raise ValueError(f"a schedule fires once at least, not {repeats} times")
    if rule is None and (repeats or 1) > 1:
        raise ValueError(f"a schedule without a recurrence fires once, not {repeats} times")
    if isinstance(rule, Every) and not rule.months and rule.seconds < SHORTEST_PERIOD:
        raise ValueError(f"a schedule recurs every {SHORTEST_PERIOD:g} s at most, not every {rule.seconds:g} s")
    due = schedule.first
    if due is None:
        if rule is None:
            raise ValueError("a schedule has a first time or a recurrence")
        due = rule.next(now, now)
    if due is None or (schedule.until is not None and due > schedule.until):
        raise ValueError("the schedule ends before it fires for the first time")
    start = now if schedule.first is None else schedule.first
    every = "" if rule is None else rule.text
    return _Series(start=start, every=every, repeats=repeats, until=schedule.until, first=schedule.first), due


def _numbered(series: _Series, number: int) -> _Series:
    return msgspec.structs.replace(series, number=number, due=None, attempts=0)


def _alarm(key: Key, due: float, payload: bytes, notes: Mapping[str, str], series: _Series) -> Alarm:
    headers = {**notes, _NOTE: msgspec.json.encode(series).decode()}
    return Alarm(key=key, due=due, payload=payload, headers=headers)


def _read(alarm: Alarm) -> _Series:
    """Raises `ValueError` for what no version before this one wrote."""
    text = alarm.headers.get(_NOTE)
    if text is None:  # an alarm that was set without a scheduler fires once
        return _Series(start=alarm.due, first=alarm.due)
    try:
        series = msgspec.json.decode(text, type=_Series)
    except msgspec.MsgspecError as error:
        raise ValueError(f"its rule cannot be read: {error}") from None
    if series.every:
        parse_recurrence(series.every)
    return series


def _notes(alarm: Alarm) -> dict[str, str]:
    return {name: value for name, value in alarm.headers.items() if name != _NOTE}


def _scheduled(found: SetAlarm) -> Scheduled:
    alarm = found.alarm
    series = _read(alarm)
    recurrence = parse_recurrence(series.every) if series.every else None
    schedule = Schedule(first=series.first, recurrence=recurrence, repeats=series.repeats, until=series.until)
    return Scheduled(alarm.key, schedule, alarm.payload, _notes(alarm), alarm.due, series.number, found.revision)
