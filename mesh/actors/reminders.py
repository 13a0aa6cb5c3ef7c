"""Reminders: ticks of actors that the broker keeps, whatever becomes of sidecars (Dapr).

A reminder is a schedule in the scope of its type. The sidecars that host the type share the ticks; whoever gets one
calls the actor, wherever it is by then.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

import msgspec

from mesh import addressing
from mesh.actors.callbacks import Call, complaint
from mesh.actors.calls import Actors
from mesh.actors.names import ActorName, method_path
from mesh.actors.schedules import Times, of_reminder
from mesh.errors import MeshError
from mesh.ownership.waits import end, within
from mesh.persistence import persist
from mesh.ports import Clock
from mesh.ports.alarms import AlarmClocks, AlarmSubscription
from mesh.ports.tables import Key
from mesh.quantities import duration_text
from mesh.scheduling.recurrence import Every
from mesh.scheduling.scheduler import Scheduled, Scheduler, Tick
from mesh.telemetry import Meter

logger = logging.getLogger("meshwire.actors")

KIND = "reminder"
"""Keys: `("reminder", <actor id>, <name>)`."""

ATTEMPTS = 4
ATTEMPT_PAUSE = 1.0
"""Seconds. A tick that failed so often is given up, and the schedule goes on (Dapr's default failure policy)."""
NO_OWNER_PAUSE = 1.0
"""Seconds after which a tick whose actor nobody hosts is tried again, for as long as it takes."""
AT_ONCE = 1024
"""Ticks of one type that this sidecar has in hand."""
TICKS_LIMIT = 2.0
"""Seconds that ticks in hand have for their end when the type is not hosted any more; then they come again."""
JSON = ((b"content-type", b"application/json"),)


class _Body(msgspec.Struct, omit_defaults=True):
    """Dapr: the times are empty."""

    due_time: str = msgspec.field(name="dueTime")
    period: str = msgspec.field()
    data: msgspec.Raw = msgspec.Raw(b"")


class Reminders:
    """Errors are those of `Scheduler`."""

    def __init__(self, alarms: AlarmClocks, actors: Actors, clock: Clock, meter: Meter) -> None:
        self._alarms = alarms
        self._actors = actors
        self._clock = clock
        self._meter = meter
        self._schedulers: dict[str, Scheduler] = {}
        self._serving: dict[str, asyncio.Task[None]] = {}
        self._subscriptions: dict[str, AlarmSubscription] = {}
        self._ticks: dict[str, set[asyncio.Task[None]]] = {}
        """Those in hand, by type."""

    async def create(self, actor: ActorName, name: str, times: Times, data: bytes, *, overwrite: bool) -> None:
        """`data` is JSON, or empty. Raises `AlreadyScheduled`, `ValueError`."""
        schedule = of_reminder(times, self._clock.now())
        scheduler = self._scheduler(actor.type)
        if schedule is None:
            await scheduler.cancel(_key(actor, name))
            return
        notes = {"due": times.due_time, "ttl": times.ttl if times.ttl[:4].isdigit() and "T" in times.ttl else ""}
        given = {note: text for note, text in notes.items() if text}
        await scheduler.schedule(_key(actor, name), schedule, data, notes=given, overwrite=overwrite)

    async def get(self, actor: ActorName, name: str) -> dict[str, Any] | None:
        """As Dapr shows it. Raises `ValueError` when this version cannot read it."""
        found = await self._scheduler(actor.type).get(_key(actor, name))
        return None if found is None else _shown(actor, found)

    async def scan(
        self, actor: ActorName, *, limit: int, cursor: str | None = None
    ) -> tuple[dict[str, dict[str, Any]], str | None]:
        """Those of an actor, by name. Raises `ValueError` for a cursor that is not of this list."""
        page = await self._scheduler(actor.type).scan((KIND, actor.id), limit=limit, cursor=cursor)
        return {found.key[-1]: _shown(actor, found) for found in page.schedules}, page.cursor

    async def delete(self, actor: ActorName, name: str) -> None:
        """Whether there is one or not."""
        await self._scheduler(actor.type).cancel(_key(actor, name))

    def host(self, actor_type: str) -> None:
        """Take ticks of a type from now on, in the background: the broker may be away for as long as it likes."""
        if actor_type not in self._serving:
            self._serving[actor_type] = asyncio.get_running_loop().create_task(
                self._serve(actor_type), name=f"reminders of {actor_type}"
            )

    async def unhost(self, actor_type: str) -> None:
        """Returns when no tick is in hand any more; those that are cancelled come again."""
        serving = self._serving.pop(actor_type, None)
        if serving is not None:
            await end(serving)
        subscription = self._subscriptions.pop(actor_type, None)
        if subscription is not None:
            closing = asyncio.ensure_future(subscription.close())  # takes no more from now on
            ticks = self._ticks.get(actor_type, set())
            await within(self._clock, TICKS_LIMIT, _settled(ticks))
            await end(*ticks)
            await closing

    async def close(self) -> None:
        await asyncio.gather(*map(self.unhost, list(self._serving)))

    def _scheduler(self, actor_type: str) -> Scheduler:
        scheduler = self._schedulers.get(actor_type)
        if scheduler is None:
            scheduler = Scheduler(self._alarms.alarms(addressing.actors_scope(actor_type)), self._clock)
            self._schedulers[actor_type] = scheduler
        return scheduler

    async def _serve(self, actor_type: str) -> None:
        take, scheduler = partial(self._take, actor_type), self._scheduler(actor_type)
        serve = partial(scheduler.serve, KIND, take, concurrency=AT_ONCE)
        complaint = f"the reminders of {actor_type} cannot be taken"
        self._subscriptions[actor_type] = await persist(serve, self._clock, complaint, logger)

    def _take(self, actor_type: str, tick: Tick) -> None:
        task = asyncio.get_running_loop().create_task(self._fire(actor_type, tick), name=f"reminder of {actor_type}")
        ticks = self._ticks.setdefault(actor_type, set())
        ticks.add(task)
        task.add_done_callback(ticks.discard)

    async def _fire(self, actor_type: str, tick: Tick) -> None:
        try:
            _, actor_id, name = tick.key
        except ValueError:
            logger.error("%s is no reminder and is dropped", "/".join(tick.key))
            tick.done()
            return
        actor = ActorName(actor_type, actor_id)
        body = msgspec.json.encode(_Body("", "", msgspec.Raw(tick.payload)))
        try:
            call = Call(actor, f"remind/{method_path(name)}", headers=JSON, body=body)
            for attempt in range(1, ATTEMPTS + 1):
                response = await self._actors.call(call)
                self._meter.actors(actor_type).fired("reminders", response.status == 200)
                if response.status == 200:
                    break
                logger.warning("reminder %s of %s, attempt %d: %s", name, actor, attempt, complaint(response))
                if attempt < ATTEMPTS:
                    await self._clock.sleep(ATTEMPT_PAUSE)
        except MeshError as error:  # no owner, or an open circuit breaker
            logger.debug("reminder %s of %s: %s", name, actor, error)
            tick.retry(NO_OWNER_PAUSE)
        except asyncio.CancelledError:
            tick.retry(0.0)
            raise
        except Exception:
            logger.exception("reminder %s of %s", name, actor)
            tick.retry(NO_OWNER_PAUSE)
        else:
            tick.done()


async def _settled(ticks: set[asyncio.Task[None]]) -> None:
    if ticks:
        await asyncio.wait(ticks)


def _key(actor: ActorName, name: str) -> Key:
    return (KIND, actor.id, name)


def _shown(actor: ActorName, found: Scheduled) -> dict[str, Any]:
    """Dapr: the period in the scheduler's form, the rest as it was sent."""
    notes: Mapping[str, str] = found.notes
    shown: dict[str, Any] = {"actorID": actor.id, "actorType": actor.type}
    if found.payload:
        shown["data"] = msgspec.Raw(found.payload)
    if notes.get("due"):
        shown["dueTime"] = notes["due"]
    if isinstance(found.schedule.recurrence, Every):
        shown["period"] = f"@every {duration_text(found.schedule.recurrence.seconds)}"
    if notes.get("ttl"):
        shown["ttl"] = notes["ttl"]
    return shown
