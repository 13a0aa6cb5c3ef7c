"""The members of a group and what they own, as last seen."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import aclosing
from typing import NamedTuple, NoReturn

from mesh.errors import BrokerError
from mesh.ownership import records
from mesh.persistence import Trouble
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
        self._trouble = Trouble(clock, logger)
        self._elapsed = elapsed
        self._until: dict[str, float] = {}  # how long each member is believed to be there
        self._seats: dict[str, Seat] = {}
        self._newest: dict[Key, int] = {}  # revisions of what is known, by key
        self._position = ABSENT  # of the watch
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
                await self._follow()
            except BrokerError as error:
                self._trouble.say(f"{'/'.join(self._prefix)} cannot be watched", error)
            except Exception as error:  # whatever it is: without a watch this member would block its share for ever
                logger.error("%s cannot be watched: %s", "/".join(self._prefix), error, exc_info=error)
            await self._clock.sleep(RETRY_PAUSE)

    async def _follow(self) -> None:
        """One watch. Raises errors of `Table`."""
        shown: set[Key] | None = set()
        async with aclosing(self._table.watch(self._prefix, after=ABSENT)) as changes:
            async for change in changes:
                if not isinstance(change, Current):
                    self._position = max(self._position, change.revision)
                    if shown is not None:
                        shown.add(change.key)
                    self._note(change)
                elif change.revision < self._position:
                    self._forget_all()
                    return
                else:
                    self._position = change.revision
                    if shown is not None:
                        self._forget_owners_but(shown, change.revision)
                        shown = None
                    self.current = True
                    self.changed()

    def _forget_owners_but(self, shown: set[Key], revision: int) -> None:
        """A watch that begins shows what there is, and not what went while there was none. Members that went are
        believed to be there for a while; one that was renewed just now may be shown later, and must not seem gone."""
        for key, known in list(self._newest.items()):
            if key not in shown and known <= revision and key[-2] == records.OWNER:
                self._forget(key)

    def _forget_all(self) -> None:
        """The broker has lost the table, and counts from 1 again: nothing new would seem to be newer."""
        logger.error("%s is not what it was: the broker has lost it", "/".join(self._prefix))
        self.current = False
        self._position = ABSENT
        for known in (self._newest, self._seats, self._until, self.unreadable):
            known.clear()

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
