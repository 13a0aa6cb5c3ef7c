"""Tables of a process that is paused, as SIGSTOP does it, or cut off from the broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

from mesh.errors import BrokerUnavailable
from mesh.ports.tables import Change, Check, Current, Entry, Gone, Key, Page, TableFeature, Tables


class Pause:
    """What a stopped process sees: nothing happens, and then much time has passed."""

    def __init__(self) -> None:
        self.running = asyncio.Event()
        self.running.set()

    def stop(self) -> None:
        self.running.clear()

    def resume(self) -> None:
        self.running.set()


class PausableTables:
    """Requests of a paused process are not sent, and answers to it not read."""

    def __init__(self, tables: Tables, pause: Pause) -> None:
        self._tables = tables
        self._pause = pause
        self.commits = 0
        """How many were asked for."""
        self.unanswered = 0
        """So many of the next commits happen, and nobody hears of it."""
        self.deaf = False
        """Watches do not hear that something is gone."""

    def table(self, scope: str) -> PausableTable:
        return PausableTable(self, self._tables, scope, self._pause)

    async def close(self) -> None: ...


class PausableTable:
    features: frozenset[TableFeature] = frozenset()

    def __init__(self, own: PausableTables, tables: Tables, scope: str, pause: Pause) -> None:
        self._own = own
        self._table = tables.table(scope)
        self._pause = pause
        self.keep_history = self._table.keep_history
        self.history = self._table.history
        self.as_of = self._table.as_of

    async def get(self, key: Key) -> Entry | None:
        await self._pause.running.wait()
        entry = await self._table.get(key)
        await self._pause.running.wait()
        return entry

    async def get_many(self, keys: Sequence[Key]) -> list[Entry | None]:
        return [await self.get(key) for key in keys]

    async def commit(self, changes: Sequence[Change], checks: Sequence[Check] = ()) -> list[int]:
        self._own.commits += 1
        await self._pause.running.wait()
        revisions = await self._table.commit(changes, checks)
        await asyncio.sleep(0)  # as the network: others come in between
        if self._own.unanswered:
            self._own.unanswered -= 1
            raise BrokerUnavailable("no answer came")
        await self._pause.running.wait()
        return revisions

    async def scan(self, prefix: Key, *, starts_with: str = "", limit: int, cursor: str | None = None) -> Page:
        return await self._table.scan(prefix, starts_with=starts_with, limit=limit, cursor=cursor)

    async def watch(self, prefix: Key, *, after: int | None = None) -> AsyncGenerator[Entry | Gone | Current, None]:
        changes = self._table.watch(prefix, after=after)
        try:
            async for change in changes:
                await self._pause.running.wait()
                if not (self._own.deaf and isinstance(change, Gone)):
                    yield change
        finally:
            await changes.aclose()
