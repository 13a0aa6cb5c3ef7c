"""The lease of one thing, held by at most one at a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing

from mesh.errors import BrokerError
from mesh.fencing import FenceToken
from mesh.ownership import records
from mesh.ownership.beat import STOP_LIMIT, Beat
from mesh.ownership.waits import elapsed, end, within
from mesh.ports.clock import Clock
from mesh.ports.tables import ABSENT, Conflict, Gone, Tables

logger = logging.getLogger("meshwire.ownership")

TTL = 10.0
"""Seconds after which a holder that is gone without a word can be replaced, unless a lease says otherwise."""


class Lease:
    """The lease `name` in the table of `scope`, for one that wants it.

    The holder writes with `token.check()` as a precondition: then nothing that it writes is stored once another has
    taken over. `held` and `lost` tell it to stop before that can happen, unless this process is paused.
    """

    def __init__(
        self,
        tables: Tables,
        scope: str,
        name: str,
        *,
        node: str,
        clock: Clock,
        ttl: float = TTL,
        lost: Callable[[], None] = lambda: None,
        elapsed: Callable[[], float] = elapsed,
    ) -> None:
        """`node` names this holder for people. `lost` is called in the event loop when a tenure ends without
        `release`; it must not raise. `elapsed` counts seconds and never stands still."""
        self._table = tables.table(scope)
        self._scope = scope
        self._name = name
        self._node = node
        self._clock = clock
        self._ttl = ttl
        self._on_lost = lost
        self._elapsed = elapsed
        self._key = records.owner_key(name, name)
        self._beat: Beat | None = None
        self._token: FenceToken | None = None
        self._acquiring = False

    @property
    def held(self) -> bool:
        return self._token is not None and self._beat is not None and self._beat.alive

    @property
    def token(self) -> FenceToken | None:
        """That of the tenure, the same until its end; `None` when it is not held."""
        return self._token if self.held else None

    async def acquire(self, *, limit: float | None = None) -> FenceToken | None:
        """Wait until the lease is free, and take it. `None` when that takes longer than `limit` seconds; with 0 it is
        tried once. Cancelling leaves nothing behind, or for as long as the TTL when the broker cannot be reached.

        Raises `RuntimeError` when this object holds it or is acquiring it, `InvalidKey`, and with a limit of 0
        `BrokerError`; otherwise trouble with the broker is waited out.
        """
        if self._acquiring or self.held:
            raise RuntimeError(f"the lease {self._name} is held, or being acquired, by this object")
        self._acquiring = True
        if self._beat is not None:
            self._beat.die()  # after a pause of this process: nothing has noticed yet
        try:
            if limit == 0:
                await self._attempt()
            elif limit is None:
                await self._wait()
            else:
                await within(self._clock, limit, self._wait())
        except BaseException:
            await self.release()
            raise
        finally:
            self._acquiring = False
        return self.token

    async def release(self) -> None:
        """Give it up: a waiter has it at once. Nothing happens when it is not held. Raises no `BrokerError`."""
        beat, token = self._beat, self._token
        self._beat = self._token = None
        if beat is None:
            return
        if token is not None:
            await within(self._clock, STOP_LIMIT, self._give_up(token))
        await beat.stop()

    async def _wait(self) -> None:
        freed = asyncio.Event()
        following = asyncio.get_running_loop().create_task(self._follow(freed), name=f"wait for lease {self._name}")
        try:
            while True:
                freed.clear()
                try:
                    if await self._attempt():
                        return
                except BrokerError as error:
                    logger.debug("the lease %s cannot be had yet: %s", self._name, error)
                await within(self._clock, self._ttl / 3, _wait_for(freed))
        finally:
            await end(following)

    async def _follow(self, freed: asyncio.Event) -> None:
        while True:
            try:
                async with aclosing(self._table.watch(records.group_key(self._name))) as changes:
                    async for change in changes:
                        if isinstance(change, Gone):
                            freed.set()
            except BrokerError as error:
                logger.debug("the lease %s is not watched: %s", self._name, error)
            await self._clock.sleep(self._ttl / 3)  # meanwhile the waiter looks for itself

    async def _attempt(self) -> bool:
        entry = await self._table.get(self._key)
        owner, revision = ("", ABSENT) if entry is None else (records.read_title(entry).member, entry.revision)
        if owner and await self._table.get(records.member_key(self._name, owner)) is not None:
            return False
        beat = self._beat = Beat(
            self._table,
            self._name,
            self._node,
            ttl=self._ttl,
            clock=self._clock,
            elapsed=self._elapsed,
            lost=self._lose,
        )
        try:
            await beat.start()
            token = await records.claim(self._table, self._name, self._name, beat.id, owner=owner, revision=revision)
            if beat.alive:
                self._token = FenceToken(self._scope, self._key, token)
        except Conflict:
            pass  # another was faster
        finally:
            if self._token is None:
                self._beat = None
                await beat.stop()
        return self._token is not None

    async def _give_up(self, token: FenceToken) -> None:
        try:
            await records.give_up(self._table, self._name, self._name, token.revision)
        except BrokerError as error:
            logger.debug("the lease %s is left to expire: %s", self._name, error)

    def _lose(self) -> None:
        held = self._token is not None
        self._beat = self._token = None
        if held:
            self._on_lost()


async def _wait_for(event: asyncio.Event) -> None:
    await event.wait()
