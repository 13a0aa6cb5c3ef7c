"""What a job is: when it fires, with which data, and what becomes of a tick that fails (Dapr: jobs API)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import msgspec

from mesh.delivery.plan import BackOff, Plan
from mesh.errors import MeshError, clip
from mesh.scheduling.recurrence import parse_moment, parse_recurrence
from mesh.scheduling.scheduler import Schedule

MAX_NAME = 512
"""Longest name, in bytes."""
MAX_RETRIES = 2**32 - 1
SHORTEST_PAUSE = 0.1
"""Seconds between attempts that have no end."""
_REFUSED = frozenset("/\\#?\x7f") | frozenset(map(chr, range(32)))

_NOTE, _TRACE = "job", ("traceparent", "tracestate")
"""The notes of a job's schedule: the job itself, and the trace that it was made in."""


T = TypeVar("T")


class InvalidJob(MeshError):
    """What a job says of itself cannot be obeyed, or its name is none."""


class FailurePolicy(msgspec.Struct, frozen=True, omit_defaults=True):
    """What becomes of a tick that the app refused. Dapr's default: three more attempts, a second apart."""

    interval: float = 1.0
    """Seconds between attempts."""
    retries: int | None = 3
    """`None` is without end."""

    def plan(self) -> Plan:
        pauses = BackOff(first=self.interval, factor=1, longest=self.interval, jitter=0)
        return Plan(attempts=None if self.retries is None else self.retries + 1, back_off=pauses)


DROP = FailurePolicy(interval=0.0, retries=0)


class Job(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A job as its maker wrote it. Stored data: fields are only ever added."""

    schedule: str = ""
    due_time: str = ""
    repeats: int | None = None
    ttl: str = ""
    policy: FailurePolicy = FailurePolicy()

    def timing(self, now: float) -> Schedule:
        """When it fires. Raises `InvalidJob`; a schedule that never fires the scheduler refuses."""
        rule = first = until = None
        if self.schedule:
            rule = _field("schedule", lambda: parse_recurrence(self.schedule))
        if self.due_time:
            first = _field("dueTime", lambda: parse_moment(self.due_time, now))
        if self.repeats is not None and self.repeats < 1:
            raise InvalidJob(f"repeats: must be 1 at least (got {self.repeats})")
        if rule is None and (self.repeats or 1) > 1:
            raise InvalidJob(f"repeats: {self.repeats} needs a schedule")
        if self.ttl:
            if rule is None:
                raise InvalidJob("ttl: needs a schedule")
            until = _field("ttl", lambda: parse_moment(self.ttl, now if first is None else first))
            if until < (now if first is None else max(first, now)):
                raise InvalidJob(f"ttl: is over before the job fires for the first time (got '{clip(self.ttl)}')")
        return Schedule(first=first, recurrence=rule, repeats=self.repeats, until=until, since=now)

    def check_policy(self) -> None:
        """Raises `InvalidJob`."""
        interval, retries = self.policy.interval, self.policy.retries
        if interval < 0:
            raise InvalidJob("failurePolicy: the interval must not be negative")
        if retries is None and interval < SHORTEST_PAUSE:
            raise InvalidJob(f"failurePolicy: without maxRetries the interval must be {SHORTEST_PAUSE:g}s at least")
        if retries is not None and not 0 <= retries <= MAX_RETRIES:
            raise InvalidJob(f"failurePolicy: maxRetries must be from 0 to {MAX_RETRIES} (got {retries})")


def _field(name: str, read: Callable[[], T]) -> T:
    try:
        return read()
    except ValueError as error:
        raise InvalidJob(f"{name}: {error}") from None


def check_name(name: str) -> None:
    """Raises `InvalidJob` (Dapr's scheduler)."""
    found = next((character for character in name if character in _REFUSED), None)
    if found is not None:
        raise InvalidJob(f"the name of a job must not have {found!a} in it (got '{clip(name)}')")
    size = len(name.encode("utf-8", "surrogatepass"))
    if not 0 < size <= MAX_NAME:
        raise InvalidJob(f"the name of a job must have from 1 to {MAX_NAME} bytes (got {size})")


def to_notes(job: Job, trace: Mapping[str, str]) -> dict[str, str]:
    return {_NOTE: msgspec.json.encode(job).decode(), **{name: trace[name] for name in _TRACE if name in trace}}


def from_notes(notes: Mapping[str, str]) -> Job:
    """Raises `InvalidJob` for what another version wrote, and this one cannot read."""
    try:
        return msgspec.json.decode(notes.get(_NOTE, "{}"), type=Job)
    except msgspec.MsgspecError as error:
        raise InvalidJob(f"what is stored of it cannot be read: {error}") from None


def trace_of(notes: Mapping[str, str]) -> dict[str, str]:
    return {name: notes[name] for name in _TRACE if name in notes}
