"""The members of a group and what they own, as last seen."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import aclosing
from typing import NamedTuple, NoReturn

from mesh.errors import BrokerError
from mesh.ownership import records
from mesh.ports.clock import Clock
from mesh.ports.tables import ABSENT, Current, Entry, Gone, Key, Table

logger = logging.getLogger("meshwire.ownership")

PATIENCE = 2.0
"""Seconds after its TTL for which a member is believed to be there when no word of its end has come."""
RETRY_PAUSE = 1.0
"""Seconds from the end of a watch to the next one."""


class Seat(NamedTuple):
    """An owner record, or that there is none."""

    member: str
    """Empty when there is none."""
    revision: int


EMPTY = Seat("", ABSENT)


class Roster:
    """Kept current by a watch, and put right by reads where a commit has shown it to be wrong."""

    def __init__(self, table: Table, group: str, clock: Clock, elapsed: Callable[[], float]) -> None:
        self._table = table
        self._prefix = records.group_key(group)
        self._clock = clock
        self._elapsed = elapsed
        self._until: dict[str, float] = {}  # how long each member is believed to be there
        self._seats: dict[str, Seat] = {}
        self._newest: dict[Key, int] = {}  # revisions of what is known, by key
        self.unreadable: set[str] = set()
        """Names whose owner records a later version must have written: they are not for this one to claim."""
        self.current = False
        """Whether all that there is has been seen once."""
        self.changed: Callable[[], None] = lambda: None
        """Called whenever a member or an owner may have come or gone."""

    @property
    def members(self) -> set[str]:
        now = self._elapsed()
        return {member for member, until in self._until.items() if now < until}

    def seat(self, name: str) -> Seat:
        return self._seats.get(name, EMPTY)

    def is_member(self, member: str) -> bool:
        return self._elapsed() < self._until.get(member, 0.0)

    async def follow(self) -> NoReturn:
        """Keep it current, until cancelled."""
        while True:
            try:
                async with aclosing(self._table.watch(self._prefix, after=ABSENT)) as changes:
                    async for change in changes:
                        if isinstance(change, Current):
                            self.current = True
                            self.changed()
                        else:
                            self._note(change)
            except BrokerError as error:
                logger.warning("%s cannot be watched: %s", "/".join(self._prefix), error)
            await self._clock.sleep(RETRY_PAUSE)

    async def look(self, key: Key) -> None:
        """Read again what is stored under `key`. Raises errors of `Table`."""
        before = self._newest.get(key, ABSENT)
        entry = await self._table.get(key)
        if entry is not None:
            self._note(entry)
        elif self._newest.get(key, ABSENT) == before:
            self._forget(key)

    def note_seat(self, name: str, member: str, revision: int) -> None:
        """A commit of this process has made it so; an empty `member` is for a deletion."""
        key = (*self._prefix, records.OWNER, name)
        if revision > self._newest.get(key, ABSENT):
            self._newest[key] = revision
            self._seats[name] = Seat(member, revision) if member else EMPTY

    def _note(self, change: Entry | Gone) -> None:
        key = change.key
        if len(key) != len(self._prefix) + 2 or change.revision <= self._newest.get(key, ABSENT):
            return
        self._newest[key] = change.revision
        if isinstance(change, Gone):
            self._forget(key)
            return
        kind, name = key[-2:]
        try:
            if kind == records.MEMBER:
                known = self.is_member(name)
                self._until[name] = self._elapsed() + records.read_sign(change).ttl + PATIENCE
                if known:
                    return
            elif kind == records.OWNER:
                self.unreadable.add(name)
                self._seats[name] = Seat(records.read_title(change).member, change.revision)
                self.unreadable.remove(name)
        except BrokerError as error:
            logger.error("the group %s: %s", self._prefix[-1], error)
        self.changed()

    def _forget(self, key: Key) -> None:
        kind, name = key[-2:]
        if kind == records.MEMBER:
            self._until.pop(name, None)
            # Members' ids never come back: what is known of this one would only pile up.
            self._newest.pop(key, None)
        elif kind == records.OWNER:
            self._seats.pop(name, None)
            self.unreadable.discard(name)
        self.changed()
