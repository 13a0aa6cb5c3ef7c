"""The events of one app that are held until they are due.

One is a schedule, `("event", <pub/sub component>, <topic>, <id>, <digest of the source>)`: an event with the same id
and source takes its place. It carries the message as it will be published.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import NamedTuple
from urllib.parse import quote

import msgspec

from mesh import envelope, ids
from mesh.codec import json as json_codec
from mesh.dead_letters.selection import texts
from mesh.delayed.timing import InvalidTiming, Timing
from mesh.ids import utc_time
from mesh.ports import Clock, Message, Mode, Topic
from mesh.ports.alarms import AlarmClocks
from mesh.ports.tables import Key
from mesh.scheduling.recurrence import Every
from mesh.scheduling.scheduler import SHORTEST_PERIOD, Schedule, Scheduled, Scheduler

KIND = "event"
MAX_ID = 512
"""Bytes of the longest id of an event that can be held."""
RAW = "raw"
"""In the place of the source of what is no event."""


class Held(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is stored. Stored data: fields are only ever added."""

    source: str
    type: str
    message: Message
    created: float
    ttl: float | None = None
    """Seconds for which each occurrence may be delivered, by the request."""


class DelayedEvent(NamedTuple):
    topic: Topic
    """As the app names it."""
    id: str
    held: Held
    schedule: Schedule
    due: float
    """When it is published next, in seconds since the epoch."""
    number: int
    """Of that occurrence, from 1."""

    @property
    def name(self) -> str:
        return name_of(self.topic, self.id)


class DelayedPage(NamedTuple):
    events: list[DelayedEvent]
    cursor: str | None


_encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Held).decode
"""Raises `msgspec.DecodeError`."""


def name_of(topic: Topic, event_id: str) -> str:
    """What a delayed event is called: component, topic and id, each percent-encoded, with slashes between."""
    return "/".join(quote(part, safe="") for part in (*topic, event_id))


class DelayedEvents:
    """Every method raises `InvalidKey`, `BrokerError`, `BrokerUnavailable`."""

    def __init__(self, app_id: str, alarms: AlarmClocks, clock: Clock) -> None:
        self._clock = clock
        self.scheduler = Scheduler(alarms.alarms(app_id), clock)

    def check(self, message: Message, timing: Timing) -> None:
        """Raises `InvalidTiming` for what would have expired when it is due, cannot be named, or never is due."""
        named = texts(message)
        left = _left(named, timing.due)
        if left is not None and left <= 0:
            raise InvalidTiming("the event would have expired before it is delivered")
        if (size := len(named.get("id", "").encode("utf-8", "replace"))) > MAX_ID:
            raise InvalidTiming(f"an event that is held has an id of at most {MAX_ID} bytes (got {size})")
        rule = timing.schedule.recurrence
        if isinstance(rule, Every) and not rule.months and rule.seconds < SHORTEST_PERIOD:
            raise InvalidTiming(f"deliverEvery: must be {SHORTEST_PERIOD:g}s at least (got {rule.seconds:g}s)")

    async def hold(self, topic: Topic, message: Message, timing: Timing, ttl: float | None = None) -> str:
        """Returns the name once the broker holds the event; `ttl` is that of the request, counted from each due time.

        To be called after `check`. Raises `MessageTooLarge`.
        """
        named = texts(message)
        schedule, left = timing.schedule, _left(named, timing.due)
        if left is not None and schedule.recurrence is not None and ttl is None:
            ends = timing.due + left
            schedule = msgspec.structs.replace(schedule, until=min(ends, schedule.until or ends))
        event_id, source = named.get("id") or ids.uuid4(), named.get("source") or RAW
        held = Held(source=source, type=named.get("type", ""), message=message, created=self._clock.now(), ttl=ttl)
        await self.scheduler.schedule(_key(topic, event_id, source), schedule, _encode(held), overwrite=True)
        return name_of(topic, event_id)

    async def find(self, topic: Topic, event_id: str) -> list[DelayedEvent]:
        """Those with this id: there may be several sources."""
        page = await self.scheduler.scan((KIND, *topic, event_id), limit=100)
        return [_delayed(one) for one in page.schedules]

    async def cancel(self, topic: Topic, event_id: str, source: str | None = None) -> int:
        """How many were held under this id, of any source unless one is given."""
        if source is not None:
            return int(await self.scheduler.cancel(_key(topic, event_id, source)))
        page = await self.scheduler.scan((KIND, *topic, event_id), limit=100)
        return sum([await self.scheduler.cancel(one.key) for one in page.schedules])

    async def scan(self, *within: str, limit: int, cursor: str | None = None) -> DelayedPage:
        """Of all topics, or `within` a component, or a topic of it. A page may be shorter though more follow. Raises
        `ValueError` for a cursor of something else."""
        page = await self.scheduler.scan((KIND, *within), limit=limit, cursor=cursor)
        return DelayedPage([_delayed(one) for one in page.schedules], page.cursor)


def occurrence(held: Held, key: Key, due: float, *, recurring: bool) -> Message:
    """What is published at `due`. Repeats of it within the broker's window are dropped.

    Each occurrence of a series is an event of its own, and has an id and a time of its own.
    """
    message = msgspec.structs.replace(held.message, dedupe_id="\0".join((*key[1:], f"{due:.3f}")))
    if not recurring or message.mode is Mode.RAW:
        return message
    own = {"id": f"{key[3]}@{utc_time(due)}", "time": utc_time(due)}
    if held.ttl is not None:
        own["expiration"] = utc_time(due + held.ttl)
    if message.mode is Mode.BINARY:
        return msgspec.structs.replace(message, attributes={**message.attributes, **own})
    members: dict[str, bytes | msgspec.Raw] = dict(json_codec.members(message.payload or b""))
    members |= {name: msgspec.json.encode(text) for name, text in own.items()}
    return msgspec.structs.replace(message, payload=json_codec.join_members(members))


def _left(named: Mapping[str, str], moment: float) -> float | None:
    return envelope.lifetime(None, [named.get(name) for name in envelope.EXPIRY_ATTRIBUTES], moment)


def _key(topic: Topic, event_id: str, source: str) -> Key:
    digest = blake2b(source.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
    return (KIND, *topic, event_id, digest)


def _delayed(one: Scheduled) -> DelayedEvent:
    _, pubsub, topic, event_id, _ = one.key
    return DelayedEvent(Topic(pubsub, topic), event_id, decode(one.payload), one.schedule, one.due, one.number)
