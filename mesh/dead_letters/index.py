"""The dead letters of an app in the order in which they died, in memory, for as long as somebody looks at them."""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect_left, insort
from collections.abc import Iterator
from contextlib import aclosing

from mesh import addressing
from mesh.dead_letters.selection import Row, texts
from mesh.dead_letters.store import KIND, Kept, LetterStore
from mesh.errors import BrokerError, BrokerUnavailable
from mesh.ports import Clock
from mesh.ports.tables import ABSENT, Current, Entry, Key

MOST = 200_000
"""Letters that are shown; of more, those that died last. Each takes about 1 KB."""
IDLE_LIMIT = 60.0
"""Seconds without a look after which everything is let go."""
PATIENCE = 15.0
"""Seconds until all letters must have been read."""

Order = tuple[float, Key]

logger = logging.getLogger("meshwire.dead-letters")


class Index:
    """Begins with the first look, and follows the table from then on."""

    def __init__(self, store: LetterStore, clock: Clock, *, most: int = MOST) -> None:
        self._store = store
        self._clock = clock
        self._most = most
        self._rows: dict[Key, Row] = {}
        self._order: list[Order] = []
        self._following: asyncio.Task[None] | None = None
        self._current = asyncio.Event()
        self._problem: BrokerError | None = None
        self._looked = 0.0
        self.left_out = False
        """Whether there were more letters than are shown."""

    async def look(self) -> None:
        """Returns when every letter of this moment is known. Raises `BrokerError`, `BrokerUnavailable`."""
        self._looked = self._clock.now()
        if self._following is None or self._following.done():
            self._forget_all()
            self._problem = None
            self._following = asyncio.get_running_loop().create_task(self._follow(), name="dead letters")
        if self._current.is_set():
            return
        arrived = asyncio.ensure_future(self._current.wait())
        try:
            await asyncio.wait({arrived, self._following}, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
        finally:
            arrived.cancel()
        if self._current.is_set():
            return
        raise self._problem or BrokerUnavailable(f"the dead letters could not be read within {PATIENCE:g} s; try again")

    def rows(self, *, newest: bool = False, after: Order | None = None) -> Iterator[Row]:
        """In the order of their death, from the one that follows `after`. The letters may change meanwhile."""
        if newest:
            end = len(self._order) if after is None else bisect_left(self._order, after)
            keys = [key for _, key in reversed(self._order[:end])]
        else:
            start = 0 if after is None else bisect_left(self._order, after)
            keys = [key for died, key in self._order[start:] if (died, key) != after]
        return (self._rows[key] for key in keys if key in self._rows)

    def begin_anew(self) -> None:
        """Once letters were removed, those that were left out may have a place."""
        self._let_go()

    def forget(self, key: Key, revision: int) -> None:
        """It was removed: who looks again at once must not see it."""
        row = self._rows.get(key)
        if row is not None and row.revision <= revision:
            self._drop(row)

    async def close(self) -> None:
        following = self._let_go()
        if following is not None:
            await asyncio.gather(following, return_exceptions=True)

    def _let_go(self) -> asyncio.Task[None] | None:
        following, self._following = self._following, None
        if following is not None:
            following.cancel()
        self._forget_all()
        return following

    def _forget_all(self) -> None:
        self._rows.clear()
        self._order.clear()
        self._current.clear()
        self.left_out = False

    async def _follow(self) -> None:
        idle = asyncio.get_running_loop().create_task(self._until_idle(), name="idle dead letters")
        try:
            async with aclosing(self._store.table.watch((KIND,), after=ABSENT)) as changes:
                async for change in changes:
                    if isinstance(change, Current):
                        self._current.set()
                    elif not isinstance(change, Entry):
                        self.forget(change.key, change.revision)
                    elif (kept := await self._store.read(change)) is not None:
                        self._add(_row(kept))
        except BrokerError as error:
            logger.debug("the dead letters are not watched: %s", error)
            self._problem = error
        finally:
            self._current.clear()
            idle.cancel()

    async def _until_idle(self) -> None:
        while (left := self._looked + IDLE_LIMIT - self._clock.now()) > 0:
            await self._clock.sleep(left)
        self._let_go()

    def _add(self, row: Row) -> None:
        earlier = self._rows.get(row.key)
        if earlier is not None:
            self._drop(earlier)
        self._rows[row.key] = row
        insort(self._order, row.order)
        if len(self._order) > self._most:
            self.left_out = True
            self._drop(self._rows[self._order[0][1]])

    def _drop(self, row: Row) -> None:
        del self._rows[row.key]
        del self._order[bisect_left(self._order, row.order)]


def _row(kept: Kept) -> Row:
    letter = kept.letter
    named = texts(letter.message)
    return Row(
        key=kept.key,
        revision=kept.revision,
        expires=kept.expires,
        died=letter.last_failure,
        subscription=letter.group.topic,
        topic=letter.topic,
        reason=letter.reason,
        text=letter.text,
        status=letter.status,
        attempts=letter.attempts,
        first_failure=letter.first_failure,
        size=len(letter.message.payload or b""),
        type=named.get("type", ""),
        source=named.get("source", ""),
        id=named.get("id", ""),
        redriven=letter.message.headers.get(addressing.REDRIVEN, ""),
    )
