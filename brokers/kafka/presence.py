"""Who is there: what the log of presence says, record by record (docs/adr/0012-kafka.md).

Every instance of an app says every few seconds that it is there, what it serves and where it listens. All that is known
follows from the newest record of each instance, so it does not matter how much of the log a reader has seen before.

A partition is claimed by a record. Of two claims the one of the higher term holds it, of the same term the one that
stands earlier in the log. A claim takes the term above the highest that was seen there, and is made where nobody holds
the partition or its holder is silent. So all who have read the log agree, by whatever clock, and an instance that comes
back after it was given up finds that it lost its place. No call depends on that, though: each names its instance.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import msgspec

MISSED_BEATS = 2.125
"""Silence, in times between beats, after which an instance counts as gone: two beats are missing."""
SURE_PULSES = 2
"""Own beats that must have been read back without one of another, before that one is called silent."""
LATE = 1.25
"""Silence, in the same measure, after which others are asked first, if there are any."""
FORGOTTEN = 15.0
"""Silence, in the same measure, after which nothing is known of it any more."""
LONGEST_EVERY = 60.0
"""Seconds between beats, at most."""


class Place(msgspec.Struct, frozen=True, omit_defaults=True):
    """The partition at which an instance listens."""

    partition: int
    term: int = 0
    """0 for a place that is shared: there are more instances than partitions."""
    since: int = -1
    """Offset of the record that claimed it first; -1 for this record."""


class Offer(msgspec.Struct, frozen=True, omit_defaults=True):
    """An app that an instance serves."""

    app: str
    instance: str = ""
    """With a name, only calls that name it are taken."""
    verified: bool = False
    """Calls come on a topic of their caller's own, which nobody else can write."""


class Beat(msgspec.Struct, frozen=True, omit_defaults=True):
    """One record of presence, in JSON; the id of the instance is its key."""

    app: str
    every: float = 2.0
    """Seconds until the next one."""
    places: dict[str, Place] = {}
    """By what is claimed: `invoke/<app>` and `replies/<app>`. An app without a place reads all partitions."""
    serves: tuple[Offer, ...] = ()
    calls: tuple[str, ...] = ()
    """Apps that it calls on topics of its own."""
    left: dict[str, dict[int, int]] | None = None
    """The last record: up to which offset it has read each partition of each topic."""


encode = msgspec.json.encode
_decode = msgspec.json.Decoder(Beat).decode


def decode(value: bytes) -> Beat:
    """Raises `ValueError` for what is no record of presence."""
    beat = _decode(value)
    if not 0 < beat.every <= LONGEST_EVERY or any(place.partition < 0 for place in beat.places.values()):
        raise ValueError("out of range")
    return beat


def invoke_place(app_id: str) -> str:
    return f"invoke/{app_id}"


def replies_place(app_id: str) -> str:
    return f"replies/{app_id}"


class Member:
    """An instance that is there, or was lately."""

    __slots__ = ("beat", "heard", "id", "pulse", "since", "suspect")

    def __init__(self, id: str) -> None:
        self.id = id
        self.beat = Beat("")
        self.since: dict[str, int] = {}
        """By what is claimed, the offset of the first claim."""
        self.heard = 0.0
        self.pulse = 0
        self.suspect = False
        """It was silent on a call: not to be asked until it is heard again."""

    def was_heard(self, moment: float) -> None:
        """The servers' clock says that it was then. That counts, whatever we read of ourselves."""
        self.heard = moment
        self.pulse -= SURE_PULSES

    def offer(self, app: str, instance: str) -> Offer:
        return next(offer for offer in self.beat.serves if (offer.app, offer.instance) == (app, instance))


class Presence:
    """The state of one log. Times are those of the reader's own monotonic clock.

    `pulse` counts the signs of life of the reader itself that it has read back: while it reads none, the servers or it
    were away, and nobody's silence means anything.
    """

    def __init__(self) -> None:
        self.members: dict[str, Member] = {}
        self.pulse = 0
        self._serving: dict[tuple[str, str], list[Member]] = {}
        self._terms: dict[tuple[str, int], int] = {}

    def apply(self, offset: int, id: str, beat: Beat, heard: float) -> Member:
        """The next record of the log. Returns whose it was, who may have left with it."""
        member = self.members.get(id) or Member(id)
        before, member.beat = member.beat, beat
        member.heard, member.pulse, member.suspect = heard, self.pulse, False
        if beat.left is not None:
            self._forget(member)
            return member
        self.members[id] = member
        if beat.places != before.places:
            self._take_claims(member, before, offset)
        if beat.serves != before.serves:
            self._index(member, before)
        return member

    def _take_claims(self, member: Member, before: Beat, offset: int) -> None:
        since: dict[str, int] = {}
        for name, place in member.beat.places.items():
            was = before.places.get(name)
            if place.since >= 0:
                since[name] = place.since
            elif was is not None and (was.partition, was.term) == (place.partition, place.term):
                since[name] = member.since[name]
            else:
                since[name] = offset
            key = (name, place.partition)
            self._terms[key] = max(self._terms.get(key, 0), place.term)
        member.since = since

    def _index(self, member: Member, before: Beat) -> None:
        for offer in before.serves:
            found = self._serving.get((offer.app, offer.instance), [])
            if member in found:
                found.remove(member)
        for offer in member.beat.serves:
            found = self._serving.setdefault((offer.app, offer.instance), [])
            if member not in found:
                found.append(member)

    def _forget(self, member: Member) -> None:
        known = self.members.pop(member.id, None)
        if known is not None:
            for found in self._serving.values():
                if known in found:
                    found.remove(known)

    def is_silent(self, member: Member, now: float) -> bool:
        return now - member.heard > member.beat.every * MISSED_BEATS and self.pulse - member.pulse >= SURE_PULSES

    def is_late(self, member: Member, now: float) -> bool:
        return now - member.heard > member.beat.every * LATE and self.pulse > member.pulse

    def purge(self, now: float) -> None:
        """Forget those who have been silent for long."""
        for member in list(self.members.values()):
            if self.is_silent(member, now) and now - member.heard > member.beat.every * FORGOTTEN:
                self._forget(member)
        for key in [key for key, found in self._serving.items() if not found]:
            del self._serving[key]

    def take(self, app: str, instance: str, now: float, but: Sequence[str] = ()) -> Member | None:
        """Who is to get the next call: those who serve it take turns, without those in `but`. One that is late gets it
        where all are."""
        found = self._serving.get((app, instance), [])
        late = None
        for _ in range(len(found)):
            member = found.pop(0)
            found.append(member)
            if member.suspect or member.id in but or self.is_silent(member, now):
                continue
            if not self.is_late(member, now):
                return member
            late = late or member
        if late is not None:
            found.remove(late)
            found.append(late)
        return late

    def holder(self, name: str, partition: int) -> str | None:
        """The instance whose place it is."""
        claims = [
            (place.term, -member.since[name], member.id)
            for member in self.members.values()
            if (place := member.beat.places.get(name)) and place.term and place.partition == partition
        ]
        return max(claims)[2] if claims else None

    def claim(self, name: str, partitions: int, now: float) -> Place:
        """A place that is free, at random; any one, shared, when there is none."""
        free = []
        for partition in range(partitions):
            holder = self.holder(name, partition)
            if holder is None or self.is_silent(self.members[holder], now):
                free.append(partition)
        if not free:
            return Place(random.randrange(partitions))  # noqa: S311 - no secret
        partition = random.choice(free)  # noqa: S311
        return Place(partition, self._terms.get((name, partition), 0) + 1)
