"""Runs: work on an app's events that takes a while, a redrive or a replay, and outlives the sidecar it began in.

A run is a record, `("run", <kind>, <id>)`, in a table of the app's. Every sidecar of the app follows these records and
carries on what is under way; how they share it is the matter of the kind.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from enum import Enum
from typing import Any, Generic, TypeVar

import msgspec

from mesh import addressing
from mesh.errors import BrokerError, MeshError
from mesh.ports import Clock
from mesh.ports.tables import ABSENT, Check, Conflict, Entry, Gone, Key, Put, Table, Tables

KIND = "run"
KEPT_FOR = 7 * 24 * 3600.0
"""Seconds for which a run that is over can be looked at."""
MOST = 32
"""Runs of one kind that an app may have under way."""
PAUSE = 1.0
"""Seconds until what the broker refused is tried again."""

_PAGE = 100
_JSON = "application/json"

logger = logging.getLogger("meshwire.runs")


class State(Enum):
    RUNNING = "running"
    CANCELLING = "cancelling"
    """It will be cancelled as soon as a sidecar of the app sees it."""
    CANCELLED = "cancelled"
    DONE = "done"
    FAILED = "failed"


class Run(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """What all runs have in common. Stored data: fields are only ever added. Times in seconds since the epoch."""

    id: str
    created: float
    state: State = State.RUNNING
    error: str = ""
    """What went wrong last."""
    finished: float | None = None

    @property
    def over(self) -> bool:
        return self.state not in (State.RUNNING, State.CANCELLING)


class TooManyRuns(MeshError):
    """So many are under way that another has to wait."""


R = TypeVar("R", bound=Run)


class Runs(Generic[R]):
    """The records of all runs of one kind. Every method raises `BrokerError`, `BrokerUnavailable`."""

    def __init__(self, tables: Tables, kind: str, type_: type[R], clock: Clock) -> None:
        self.kind = kind
        self._tables = tables
        self._clock = clock
        self.decode = msgspec.json.Decoder(type_).decode

    def table(self, app_id: str) -> Table:
        return self._tables.table(addressing.runs_scope(app_id))

    async def add(self, app_id: str, run: R) -> None:
        """Begin. Raises `TooManyRuns`."""
        under_way = sum(not other.over for other in await self.all(app_id))
        if under_way >= MOST:
            raise TooManyRuns(f"{under_way} of this kind are under way already: wait for one, or cancel it")
        await self.table(app_id).commit([self._put(run, ABSENT)])

    async def get(self, app_id: str, run_id: str) -> R | None:
        entry = await self.table(app_id).get(self._key(run_id))
        return None if entry is None else self.decode(entry.value)

    async def all(self, app_id: str) -> list[R]:
        """The newest first."""
        found: dict[Key, R] = {}
        cursor: str | None = None
        while True:
            page = await self.table(app_id).scan((KIND, self.kind), limit=_PAGE, cursor=cursor)
            found |= {entry.key: self.decode(entry.value) for entry in page.entries}
            cursor = page.cursor
            if cursor is None:
                return sorted(found.values(), key=lambda run: (-run.created, run.id))

    async def change(
        self, app_id: str, run_id: str, how: Callable[[R], R], *, checks: Sequence[Check] = ()
    ) -> R | None:
        """Put in place of a run what `how` makes of it; `None` when there is none. One that is over stays as it is.

        Raises `Conflict` when one of `checks` does not hold.
        """
        key = self._key(run_id)
        while True:
            entry = await self.table(app_id).get(key)
            if entry is None:
                return None
            run = self.decode(entry.value)
            changed = run if run.over else how(run)
            if changed == run:
                return run
            try:
                await self.table(app_id).commit([self._put(changed, entry.revision)], checks)
            except Conflict as conflict:
                if conflict.key != key:
                    raise
            else:
                return changed

    async def cancel(self, app_id: str, run_id: str) -> R | None:
        """Ask for its end. `None` when there is no such run."""
        return await self.change(app_id, run_id, lambda run: msgspec.structs.replace(run, state=State.CANCELLING))

    async def finish(
        self, app_id: str, run_id: str, state: State, error: str = "", *, checks: Sequence[Check] = ()
    ) -> R | None:
        now = self._clock.now()

        def end(run: R) -> R:
            return msgspec.structs.replace(run, state=state, finished=now, error=error or run.error)

        return await self.change(app_id, run_id, end, checks=checks)

    def _key(self, run_id: str) -> Key:
        return (KIND, self.kind, run_id)

    def _put(self, run: R, expected: int) -> Put:
        return Put(
            key=self._key(run.id),
            value=msgspec.json.encode(run),
            content_type=_JSON,
            ttl=KEPT_FOR if run.over else None,
            expected=expected,
        )


class Followed(Generic[R]):
    """A run that is under way, as far as this sidecar has heard."""

    def __init__(self, run: R) -> None:
        self.run = run
        self._leaving = asyncio.Event()
        self._over = asyncio.Event()

    @property
    def leaving(self) -> bool:
        """Whether it is to be cancelled, or is over."""
        return self._leaving.is_set()

    async def until_leaving(self) -> None:
        await self._leaving.wait()

    async def until_over(self) -> None:
        await self._over.wait()

    def saw(self, run: R | None) -> None:
        """`None`: its record is gone."""
        if run is not None:
            self.run = run
        if run is None or run.state is not State.RUNNING:
            self._leaving.set()
        if run is None or run.over:
            self._over.set()


Work = Callable[[Followed[R]], Awaitable[None]]
"""Carries on one run, until it is over or nothing is left for this sidecar to do. May raise `BrokerError`: then it is
called again. It is cancelled when the sidecar ends."""


class Crew:
    """What one sidecar does for the runs of its app."""

    def __init__(self, tables: Tables, app_id: str, clock: Clock) -> None:
        self._table = tables.table(addressing.runs_scope(app_id))
        self._clock = clock
        self._kinds: dict[str, tuple[Runs[Any], Work[Any]]] = {}
        self._followed: dict[Key, Followed[Any]] = {}
        self._tasks: dict[Key, asyncio.Task[None]] = {}
        self._following: asyncio.Task[None] | None = None

    def works_on(self, runs: Runs[R], work: Work[R]) -> None:
        """To be called before `start`."""
        self._kinds[runs.kind] = runs, work

    def start(self) -> None:
        if self._following is None:
            self._following = asyncio.get_running_loop().create_task(self._follow(), name="follow runs")

    async def close(self) -> None:
        """Returns when nothing is being done any more. Runs that are under way stay so."""
        tasks = [*self._tasks.values(), *([] if self._following is None else [self._following])]
        self._following = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self) -> None:
        while True:
            try:
                async with aclosing(self._table.watch((KIND,), after=ABSENT)) as changes:
                    async for change in changes:
                        if isinstance(change, Entry | Gone) and len(change.key) == 3:
                            self._saw(change)
            except BrokerError as error:
                logger.debug("runs are not followed: %s", error)
            await self._clock.sleep(PAUSE)

    def _saw(self, change: Entry | Gone) -> None:
        runs, work = self._kinds.get(change.key[1], (None, None))
        if runs is None or work is None:
            return
        followed = self._followed.get(change.key)
        if isinstance(change, Gone):
            if followed is not None:
                followed.saw(None)
            return
        try:
            run = runs.decode(change.value)
        except msgspec.DecodeError as error:
            logger.error("the run %s cannot be read; a newer sidecar may have written it: %s", change.key[2], error)
            return
        if followed is not None:
            followed.saw(run)
        elif not run.over:
            followed = self._followed[change.key] = Followed(run)
            followed.saw(run)
            task = asyncio.get_running_loop().create_task(self._carry_on(followed, work), name=f"run {run.id}")
            self._tasks[change.key] = task
            task.add_done_callback(lambda _: self._left(change.key))

    def _left(self, key: Key) -> None:
        self._tasks.pop(key, None)
        self._followed.pop(key, None)

    async def _carry_on(self, followed: Followed[Any], work: Work[Any]) -> None:
        while self._following is not None:
            try:
                await work(followed)
            except (BrokerError, Conflict) as error:
                logger.warning("run %s, again in %g s: %s", followed.run.id, PAUSE, error)
                await self._clock.sleep(PAUSE)
            except Exception:  # else it would never be over
                logger.exception("run %s", followed.run.id)
                await self._clock.sleep(60 * PAUSE)
            else:
                return
