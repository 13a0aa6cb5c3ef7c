"""Watches of a table: each reads along in the state, at its own pace, so none has a queue that could grow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from itertools import islice

from brokers.kafka.revision_log import Stored
from brokers.kafka.table_state import State, within
from mesh import addressing
from mesh.errors import BrokerError
from mesh.ports.tables import ABSENT, Current, Entry, Gone

SLICE = 512
"""Records that are looked at before others have their turn."""


class Watch:
    """How far a watch has come, and what it has to be told."""

    __slots__ = ("beginning", "failure", "is_lost", "is_to_be_current", "lost", "path", "position", "woken")

    def __init__(self, path: str, position: int, beginning: int, lost: Callable[[], None]) -> None:
        self.path = path
        self.position = position
        self.beginning = beginning
        """Once everything up to this revision has been shown, it is current."""
        self.lost = lost
        self.woken = asyncio.Event()
        self.is_lost = False
        self.is_to_be_current = True
        self.failure: BrokerError | None = None


class Watches:
    """Those of one table."""

    def __init__(self) -> None:
        self._state = State()
        """As it was when it was last up to date: one that is still being read must not pass for all there is."""
        self._watches: set[Watch] = set()
        self._closed = False

    def __bool__(self) -> bool:
        return bool(self._watches)

    def close(self) -> None:
        self._closed = True
        for watch in self._watches:
            watch.woken.set()

    def on_changed(self, paths: list[str]) -> None:
        for watch in self._watches:
            if not watch.woken.is_set() and any(within(path, watch.path) for path in paths):
                watch.woken.set()

    def on_lost(self) -> None:
        """Changes may not arrive."""
        for watch in self._watches:
            if not watch.is_lost:
                watch.is_lost = True
                watch.lost()

    def on_refused(self, error: BrokerError) -> None:
        """Changes will not arrive."""
        for watch in self._watches:
            watch.failure = error
            watch.woken.set()

    def on_found(self, state: State) -> None:
        """Everything that had not arrived has."""
        self._state = state
        for watch in self._watches:
            if watch.is_lost:
                watch.is_lost = False
                watch.is_to_be_current = True
                watch.beginning = state.revision
                watch.woken.set()

    async def watch(
        self, state: State, path: str, after: int | None, lost: Callable[[], None]
    ) -> AsyncGenerator[Entry | Gone | Current, None]:
        """See `Table.watch`; `path` is that of the prefix, and `state` is up to date."""
        self._state = state
        watch = Watch(path, state.revision if after is None else after, state.revision, lost)
        from_nothing = after == ABSENT
        self._watches.add(watch)
        try:
            while not self._closed:
                if watch.failure is not None:
                    raise watch.failure
                if self._state is not state or watch.position > state.revision:
                    state = self._state
                    if watch.position > state.revision:  # another log, which counts from the beginning again
                        watch.position = ABSENT
                        from_nothing = watch.is_to_be_current = True
                    watch.beginning = state.revision
                looked = list(islice(state.log.after(watch.position), SLICE))
                for record in looked:
                    if watch.is_to_be_current and record.revision > watch.beginning:
                        watch.is_to_be_current = from_nothing = False
                        yield Current(watch.beginning)
                    watch.position = max(watch.position, record.revision)
                    if within(record.path, path) and not (from_nothing and record.value is None):
                        if state.newest.get(record.path) is not record:
                            continue  # there is a newer one, which comes later
                        change = told(record)
                        if change is not None:
                            yield change
                if len(looked) == SLICE:
                    await asyncio.sleep(0)
                elif next(state.log.after(watch.position), None) is None:
                    watch.position = max(watch.position, state.revision)
                    if watch.is_to_be_current:
                        watch.is_to_be_current = from_nothing = False
                        yield Current(watch.position)
                    elif self._state is state:
                        watch.woken.clear()
                        if not self._closed:
                            await watch.woken.wait()
        finally:
            self._watches.discard(watch)


def told(record: Stored) -> Entry | Gone | None:
    """What a record says about a key; `None` when it is none that users have."""
    key = addressing.parse_key_path(record.path)
    if key is None:
        return None
    if record.value is None:
        return Gone(key=key, revision=record.revision, time=record.time)
    return Entry(
        key=key,
        value=record.value,
        revision=record.revision,
        time=record.time,
        expires=record.expires,
        content_type=record.content_type,
    )
