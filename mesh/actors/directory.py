"""Who owns which actors: what the sidecars of a namespace tell each other in one small table.

Each sidecar that hosts a type has one record, with its address and the fencing token of each partition of the type that
it owns. It is a guide, not the truth: that is in the leases, which the owner itself looks at before each turn. A record
expires some time after its sidecar has gone; until then the newer token of whoever took over counts.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import aclosing
from typing import NamedTuple

import msgspec

from mesh import addressing
from mesh.errors import BrokerError
from mesh.ownership.waits import end, within
from mesh.persistence import Trouble
from mesh.ports import Clock
from mesh.ports.tables import ABSENT, Current, Delete, Entry, Gone, Key, Put, Table

logger = logging.getLogger("meshwire.actors")

HOST = "host"
"""The kind of the records."""

TTL = 30.0
"""Seconds after which the record of a sidecar that is gone without a word expires."""
RETRY_PAUSE = 0.5
FAREWELL = 2.0
"""Seconds that taking the records away may take; without that they expire."""


class Place(NamedTuple):
    """Where the actors of a partition are."""

    app_id: str
    instance: str
    token: int
    """That of the owner's lease."""


class Host(msgspec.Struct, frozen=True):
    """The value of a record. Stored data: fields are only ever added."""

    app: str
    partitions: list[tuple[int, int]] = []
    """Number and token of each that is owned."""
    active: int = 0
    """How many actors were active when the record was written."""


class _Type:
    """What is known of a type."""

    __slots__ = ("hosts", "places", "revisions")

    def __init__(self) -> None:
        self.hosts: dict[str, Host] = {}
        self.revisions: dict[str, int] = {}
        self.places: list[Place | None] = [None] * addressing.ACTOR_PARTITIONS

    def work_out(self) -> None:
        places: list[Place | None] = [None] * addressing.ACTOR_PARTITIONS
        for instance, host in self.hosts.items():
            for partition, token in host.partitions:
                if 0 <= partition < len(places):
                    best = places[partition]
                    if best is None or token > best.token:
                        places[partition] = Place(host.app, instance, token)
        self.places = places


class Directory:
    """All there is to know of hosts, and what this one has to tell. A `Companion`."""

    def __init__(
        self, table: Table, app_id: str, instance: str, clock: Clock, *, active: Callable[[str], int] = lambda _: 0
    ) -> None:
        """`instance` is the name under which this sidecar answers calls of its actors. `active` counts those of a
        type."""
        self._table = table
        self._app_id = app_id
        self._instance = instance
        self._clock = clock
        self._active = active
        self._types: dict[str, _Type] = {}
        self._told: dict[str, Host] = {}
        self._stale: set[str] = set()
        """Types whose record is not as it should be."""
        self._stir = asyncio.Event()
        self._news = asyncio.Event()
        self._position = ABSENT
        self._tasks: list[asyncio.Future[None]] = []
        self._trouble = Trouble(clock, logger)
        self.current = False
        """Whether all that there is has been seen once."""
        self.problem = ""
        """Why it cannot be followed at the moment, if so."""

    def start(self) -> None:
        """In the background: the broker may be away, for as long as it likes."""
        create_task = asyncio.get_running_loop().create_task
        self._tasks = [
            create_task(self._follow(), name="actors: watch the directory"),
            create_task(self._announce(), name="actors: tell the directory"),
        ]

    async def close(self) -> None:
        """Never raises."""
        if self._tasks:
            tasks, self._tasks = self._tasks, []
            await end(*tasks)
            await within(self._clock, FAREWELL, self._leave())

    # What is known

    def place(self, actor_type: str, partition: int) -> Place | None:
        """The newest owner that is known; `None` when there is none."""
        known = self._types.get(actor_type)
        return None if known is None else known.places[partition]

    def hosts(self, actor_type: str) -> Mapping[str, Host]:
        """The sidecars that host a type, by instance."""
        known = self._types.get(actor_type)
        return {} if known is None else known.hosts

    def types(self) -> list[str]:
        return sorted(self._types)

    async def news(self, limit: float) -> None:
        """Returns when something has changed, or after `limit` seconds."""
        await within(self._clock, limit, _wait_for(self._news))

    async def _follow(self) -> None:
        while True:
            try:
                await self._watch()
            except BrokerError as error:
                self.problem = f"the owners of actors cannot be watched: {error}"
                self._trouble.say("the owners of actors cannot be watched", error)
            except Exception:  # without a watch no actor elsewhere could be found any more
                logger.exception("the owners of actors cannot be watched")
            await self._clock.sleep(RETRY_PAUSE)

    async def _watch(self) -> None:
        shown: set[Key] | None = set()
        async with aclosing(self._table.watch((HOST,), after=ABSENT)) as changes:
            async for change in changes:
                if isinstance(change, Current):
                    if change.revision < self._position:
                        self._forget_all()
                        return
                    self._position = change.revision
                    if shown is not None:
                        self._forget_but(shown)
                        shown = None
                    self.current = True
                    self.problem = ""
                    self._tell()
                else:
                    self._position = max(self._position, change.revision)
                    if shown is not None:
                        shown.add(change.key)
                    self._note(change)

    def _forget_all(self) -> None:
        """The broker has lost the table, and counts from 1 again: nothing new would seem to be newer."""
        logger.error("the directory of actors is not what it was: the broker has lost it")
        self._types.clear()
        self._position = ABSENT
        self._stale.update(self._told)
        self._stir.set()

    def _forget_but(self, shown: set[Key]) -> None:
        """A watch that begins does not show what went while there was none."""
        for name, known in list(self._types.items()):
            for instance in list(known.hosts):
                if (HOST, name, instance) not in shown:
                    self._drop(name, instance)

    def _note(self, change: Entry | Gone) -> None:
        if len(change.key) != 3:
            return
        _, name, instance = change.key
        known = self._types.get(name)
        if known is not None and change.revision <= known.revisions.get(instance, ABSENT):
            return
        if isinstance(change, Gone):
            self._drop(name, instance)
        else:
            try:
                host = _decode(change.value)
            except msgspec.DecodeError as error:
                logger.error("the record %s cannot be read: %s", "/".join(change.key), error)
                return
            if known is None:
                known = self._types[name] = _Type()
            known.revisions[instance] = change.revision
            if known.hosts.get(instance) == host:
                return  # a renewal
            known.hosts[instance] = host
            known.work_out()
        self._tell()

    def _drop(self, name: str, instance: str) -> None:
        known = self._types.get(name)
        if known is not None and known.hosts.pop(instance, None) is not None:
            del known.revisions[instance]
            known.work_out()
            if not known.hosts:
                del self._types[name]

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    # What is told

    def tell(self, actor_type: str, partitions: Mapping[int, int] | None) -> None:
        """This sidecar owns these partitions of the type, with these tokens; `None`: it does not host it any more."""
        if partitions is None:
            self._told.pop(actor_type, None)
        else:
            self._told[actor_type] = Host(self._app_id, sorted(partitions.items()))
        self._stale.add(actor_type)
        self._stir.set()

    async def _announce(self) -> None:
        renew_at = 0.0
        while True:
            self._stir.clear()
            if self._clock.now() >= renew_at:
                self._stale.update(self._told)
                renew_at = self._clock.now() + TTL / 3
            if not await self._write():
                await self._clock.sleep(RETRY_PAUSE)
                continue
            await within(self._clock, max(0.01, renew_at - self._clock.now()), _wait_for(self._stir))

    async def _write(self) -> bool:
        """Whether all was told that is to be told."""
        for name in list(self._stale):
            self._stale.discard(name)
            try:
                await self._table.commit([self._record(name)])
            except BrokerError as error:
                self._stale.add(name)
                logger.debug("the actors of type %s are not announced yet: %s", name, error)
                return False
        return True

    def _record(self, name: str) -> Put | Delete:
        key = (HOST, name, self._instance)
        host = self._told.get(name)
        if host is None:
            return Delete(key=key)
        told = Host(host.app, host.partitions, self._active(name))
        return Put(key=key, value=msgspec.json.encode(told), ttl=TTL)

    async def _leave(self) -> None:
        names = self._stale | self._told.keys()
        self._told.clear()
        try:
            for name in names:
                await self._table.commit([self._record(name)])
        except BrokerError as error:
            logger.debug("left without a word: %s", error)


_decode = msgspec.json.Decoder(Host).decode


async def _wait_for(event: asyncio.Event) -> None:
    await event.wait()
