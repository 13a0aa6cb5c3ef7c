"""Timers: ticks of actors that live in the memory of the sidecar which was asked for them (Dapr)."""

from __future__ import annotations

import asyncio
import logging

import msgspec

from mesh.actors.callbacks import Call, complaint
from mesh.actors.calls import Actors
from mesh.actors.names import ActorName, method_path
from mesh.actors.schedules import Times, of_timer
from mesh.errors import MeshError
from mesh.ownership.waits import end
from mesh.ports import Clock
from mesh.ports.clock import Timer as Alarm
from mesh.scheduling.scheduler import Schedule
from mesh.telemetry import Meter

logger = logging.getLogger("meshwire.actors")

MAX_TIMERS = 100_000
"""Of one sidecar."""
MAX_BYTES = 256 * 1024 * 1024
"""What they bring to their actors, all together."""
JSON = ((b"content-type", b"application/json"),)


class TooManyTimers(ValueError):
    """The sidecar holds as many as it can."""


class _Body(msgspec.Struct, omit_defaults=True):
    callback: str = msgspec.field()
    due_time: str = msgspec.field(name="dueTime")
    period: str = msgspec.field()
    data: msgspec.Raw = msgspec.Raw(b"")


class _Timer:
    __slots__ = ("alarm", "body", "due", "number", "schedule", "stopped")

    def __init__(self, schedule: Schedule, due: float, body: bytes) -> None:
        self.schedule = schedule
        self.body = body
        self.due = due
        self.number = 1
        """Of the tick to come."""
        self.alarm: Alarm | None = None
        self.stopped = False

    def next(self) -> bool:
        """Whether there is a further tick: counted from when the last one was due, so that none drifts."""
        schedule = self.schedule
        if schedule.recurrence is None or (schedule.repeats is not None and self.number >= schedule.repeats):
            return False
        due = schedule.recurrence.next(self.due, schedule.first or 0.0)
        if due is None or (schedule.until is not None and due > schedule.until):
            return False
        self.due = due
        self.number += 1
        return True


class Timers:
    """They go on when their actor is deactivated or moves: the tick is a call, which finds it and activates it. The
    next tick of a timer is planned when the call of this one has returned, so none overlaps with itself."""

    def __init__(self, actors: Actors, clock: Clock, meter: Meter) -> None:
        self._actors = actors
        self._meter = meter
        self._clock = clock
        self._timers: dict[tuple[ActorName, str], _Timer] = {}
        self._bytes = 0
        self._ticks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._timers)

    def create(self, actor: ActorName, name: str, times: Times, callback: str, data: bytes) -> None:
        """In place of one with the same name. `data` is JSON, or empty. Raises `ValueError`."""
        key = (actor, name)
        now = self._clock.now()
        schedule = of_timer(times, now)
        former = self._timers.get(key)
        if former is None and len(self._timers) >= MAX_TIMERS:
            raise TooManyTimers(f"this sidecar has {MAX_TIMERS} timers already: use reminders")
        body = msgspec.json.encode(_Body(callback, times.due_time, times.period, msgspec.Raw(data)))
        if self._bytes - (len(former.body) if former else 0) + len(body) > MAX_BYTES:
            raise TooManyTimers(f"the data of all timers of a sidecar has {MAX_BYTES} bytes at most: use reminders")
        self.delete(actor, name)
        timer = _Timer(schedule, schedule.first or now, body)
        self._timers[key] = timer
        self._bytes += len(body)
        self._meter.actors(actor.type).timers(1)
        self._plan(key, timer)

    def delete(self, actor: ActorName, name: str) -> None:
        """Whether there is one or not. A tick that is under way goes on."""
        timer = self._timers.pop((actor, name), None)
        if timer is not None:
            self._bytes -= len(timer.body)
            self._meter.actors(actor.type).timers(-1)
            timer.stopped = True
            if timer.alarm is not None:
                timer.alarm.cancel()

    async def close(self) -> None:
        for actor, name in list(self._timers):
            self.delete(actor, name)
        await end(*self._ticks)

    def _plan(self, key: tuple[ActorName, str], timer: _Timer) -> None:
        timer.alarm = self._clock.call_later(max(0.0, timer.due - self._clock.now()), lambda: self._ring(key, timer))

    def _ring(self, key: tuple[ActorName, str], timer: _Timer) -> None:
        timer.alarm = None
        task = asyncio.get_running_loop().create_task(self._tick(key, timer), name=f"timer {key[1]} of {key[0]}")
        self._ticks.add(task)
        task.add_done_callback(self._ticks.discard)

    async def _tick(self, key: tuple[ActorName, str], timer: _Timer) -> None:
        actor, name = key
        success = False
        try:
            call = Call(actor, f"timer/{method_path(name)}", headers=JSON, body=timer.body)
            response = await self._actors.call(call)
            success = response.status == 200
            if not success:
                logger.warning("timer %s of %s: %s", name, actor, complaint(response))
        except MeshError as error:  # no owner, or an open circuit breaker
            logger.warning("timer %s of %s: %s", name, actor, error)
        except Exception:  # it would tick no more, without a word
            logger.exception("timer %s of %s", name, actor)
        self._meter.actors(actor.type).fired("timers", success)
        if timer.stopped:
            return
        if timer.next():
            self._plan(key, timer)
        else:
            self.delete(actor, name)
