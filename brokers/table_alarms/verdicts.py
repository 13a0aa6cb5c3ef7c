"""What becomes of alarms that were handed out: many verdicts, few commits."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from brokers.table_alarms.records import CONTENT_TYPE, Record
from brokers.table_arguments import MAX_COMMIT
from mesh.errors import BrokerError, MessageTooLarge
from mesh.persistence import Trouble
from mesh.ports.clock import Clock
from mesh.ports.tables import Change, Conflict, Delete, Key, Put, Table

logger = logging.getLogger("meshwire.alarms")

MAX_COMMIT_BYTES = 256 * 1024
"""Bytes of the values of one commit, above which the rest waits for the next one."""
RETRY_PAUSE = 0.5
"""Seconds after a commit that failed. Done again it does nothing twice: each change depends on what it replaces."""


class Judged(Protocol):
    """What a verdict is on: a revision of an entry."""

    revision: int

    @property
    def key(self) -> Key: ...

    def stored(self) -> None:
        """The verdict is done; `revision` is that of the record, if it has one."""
        ...

    def overtaken(self) -> None:
        """Another revision is there, or none: somebody has set or cancelled the key, or had it taken over."""
        ...

    def refused(self, error: MessageTooLarge) -> None:
        """The table will never take the record."""
        ...


Values = dict[Judged, bytes | None]
"""For each the record that takes its place, encoded; `None` deletes it."""


class Verdicts:
    """Stores verdicts, one commit after the other, each with what has come up meanwhile."""

    def __init__(self, table: Table, clock: Clock, changed: Callable[[], None]) -> None:
        """`changed` is called when some of them are done."""
        self._table = table
        self._clock = clock
        self._changed = changed
        self._trouble = Trouble(clock, logger)
        self._pending: Values = {}
        self._woken = asyncio.Event()

    def __len__(self) -> int:
        """How many are to be stored."""
        return len(self._pending)

    def add(self, judged: Judged, record: Record | None) -> None:
        """Put `record` in the place of the alarm, or delete that; instead of an earlier verdict that waits yet."""
        self._pending[judged] = None if record is None else record.encode()
        self._woken.set()

    async def run(self) -> None:
        """Store them, until cancelled."""
        while True:
            await self._woken.wait()
            self._woken.clear()
            while self._pending:
                try:
                    await self._store(self._batch())
                except BrokerError as error:
                    self._trouble.say("what became of alarms is not stored yet", error)
                    await self._clock.sleep(RETRY_PAUSE)
                self._changed()

    def _batch(self) -> Values:
        batch: Values = {}
        keys: set[Key] = set()
        size = 0
        for judged, value in self._pending.items():
            size += len(value or b"")
            if len(batch) == MAX_COMMIT or (batch and size > MAX_COMMIT_BYTES):
                break
            if judged.key not in keys:  # two of one key: a commit has room for one
                keys.add(judged.key)
                batch[judged] = value
        return batch

    async def _store(self, batch: Values) -> None:
        """Raises `BrokerError` when some of them could not be stored now."""
        try:
            revisions = await self._table.commit([_change(judged, value) for judged, value in batch.items()])
        except (Conflict, MessageTooLarge) as error:
            if len(batch) > 1:  # one must not spoil the others
                lone = (self._store({judged: value}) for judged, value in batch.items())
                for outcome in await asyncio.gather(*lone, return_exceptions=True):
                    if outcome is not None:
                        raise outcome from None
                return
            [(judged, value)] = batch.items()
            if self._is_last(judged, value):
                judged.refused(error) if isinstance(error, MessageTooLarge) else judged.overtaken()
            return
        for (judged, value), revision in zip(batch.items(), revisions, strict=True):
            if value is not None:
                judged.revision = revision
            if self._is_last(judged, value):
                judged.stored()

    def _is_last(self, judged: Judged, value: bytes | None) -> bool:
        """Whether no other verdict has come since. Then there is none any more."""
        if self._pending[judged] is not value:
            return False
        del self._pending[judged]
        return True


def _change(judged: Judged, value: bytes | None) -> Change:
    if value is None:
        return Delete(key=judged.key, expected=judged.revision)
    return Put(key=judged.key, value=value, content_type=CONTENT_TYPE, expected=judged.revision)
