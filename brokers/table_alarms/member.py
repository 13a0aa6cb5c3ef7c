"""A member that takes alarms of a kind: what is due, of the partitions that it owns."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing
from typing import NamedTuple

from brokers.alarm_arguments import check_then
from brokers.table_alarms.agenda import Agenda, Item
from brokers.table_alarms.records import (
    PARTITIONS,
    Record,
    entry_key,
    partition_of,
    read_record,
    read_when,
    record_of,
)
from brokers.table_alarms.verdicts import Verdicts
from mesh.errors import BrokerError, MessageTooLarge
from mesh.fencing import FenceToken
from mesh.ownership import Partitions
from mesh.ownership.waits import end, within
from mesh.persistence import Trouble
from mesh.ports.alarms import Alarm, FiringHandler
from mesh.ports.clock import Clock
from mesh.ports.tables import ABSENT, Current, Entry, Key, Tables

logger = logging.getLogger("meshwire.alarms")

LOOK_AGAIN = 5.0
"""Seconds. A wall clock that is put right is followed within this time."""
MAX_TAKEN = 100
"""Alarms that are read, with their payloads, at once."""
MAX_UNSTORED = 2000
"""Verdicts that wait to be stored, above which nothing is taken."""
READ_AT_ONCE = 1000
"""Changes that are noted before others have a turn in the event loop."""
RETRY_PAUSE = 0.5
"""Seconds after a read that failed, and from the end of a watch to the next one."""
REFUSED_PAUSE = 30.0
"""Seconds after which an alarm comes again that cannot be read, or whose verdict the table does not take."""
REVOKE_GRACE = 3.0
"""Seconds that an alarm in hand has for its end before its partition goes to another member without it."""
HOLD = 30.0
"""Seconds for which an alarm in hand is kept from the next owner of its partition, each time anew. A third passes
between one time and the next."""
STOP_LIMIT = 2.0
"""Seconds that a member has to store what it was told and to leave, when it is cut off."""


class Membership(NamedTuple):
    """How a member takes part: see `Partitions`."""

    node: str
    clock: Clock
    ttl: float
    elapsed: Callable[[], float]


class TableFiring:
    """A `Firing` of `TableAlarmSubscription`."""

    __slots__ = ("_member", "alarm", "attempt", "held", "held_until", "key", "partition", "revision")

    def __init__(self, member: TableAlarmSubscription, item: Item, record: Record) -> None:
        self._member = member
        self.key = item.key
        self.revision = item.revision
        self.partition = partition_of(item.key)
        self.alarm = record.alarm(item.key)
        self.attempt = record.attempts + 1
        self.held_until: float | None = None
        """Until when its entry is to keep the next owner of the partition from firing it; `None` when it does not."""
        self.held = False
        """Whether that is stored, or not needed: its key was set or cancelled."""

    def ack(self, then: Alarm | None = None) -> None:
        check_then(self.alarm, then)
        self._member.settle(self, None if then is None else record_of(then))

    def retry(self, delay: float) -> None:
        self._member.put_off(self, max(0.0, delay))

    def stored(self) -> None:
        self._member.judged(self)

    def overtaken(self) -> None:
        self._member.judged(self)

    def refused(self, error: MessageTooLarge) -> None:
        self._member.refused(self, error)


class TableAlarmSubscription:
    """One member. Its own clock says what is due; the revision of an entry, whose verdict counts."""

    def __init__(
        self,
        tables: Tables,
        scope: str,
        kind: str,
        group: str,
        handler: FiringHandler,
        concurrency: int,
        membership: Membership,
        *,
        closed: Callable[[TableAlarmSubscription], None],
    ) -> None:
        """`scope` is that of the entries, and of the leases of `group`."""
        self._table = tables.table(scope)
        self._prefix = entry_key((kind,))
        self._handler = handler
        self._concurrency = concurrency
        self._clock = membership.clock
        self._trouble = Trouble(membership.clock, logger)
        self._on_closed = closed
        self._partitions = Partitions(tables, scope, group, PARTITIONS, self, **membership._asdict())
        self._leaving: set[int] = set()
        self._agenda = Agenda()
        self._is_read = False
        """Whether all that there was has been noted once: until then, what is first is not known."""
        self._in_hand: set[TableFiring] = set()
        self._unfinished: dict[Key, TableFiring] = {}  # in hand, or with a verdict to be stored; the newest of each key
        self._verdicts = Verdicts(self._table, self._clock, self._wake)
        self._woken = asyncio.Event()
        self._progress: set[asyncio.Event] = set()  # of those that wait for verdicts
        self._closing = False
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._partitions.start()
        create_task = asyncio.get_running_loop().create_task
        name = "/".join(self._prefix)
        self._tasks = [
            create_task(self._follow(), name=f"follow {name}"),
            create_task(self._work(), name=f"hand out {name}"),
            create_task(self._verdicts.run(), name=f"settle {name}"),
        ]
        for task in self._tasks:
            task.add_done_callback(_say_why)

    async def close(self) -> None:
        self._closing = True
        try:
            await self._until(lambda: not self._in_hand and not self._verdicts)
        finally:  # cancelled: what is left in hand goes to other members
            await self.cut()

    async def cut(self) -> None:
        """Let go of everything, whatever is in hand."""
        self._closing = True
        for firing in list(self._in_hand):
            firing.retry(0.0)
        try:
            # It waits for the verdicts on what is in its partitions.
            await within(self._clock, STOP_LIMIT, self._partitions.close())
        finally:
            await end(*self._tasks)
            self._on_closed(self)

    # What is due

    async def _follow(self) -> None:
        while True:
            try:
                await self._read()
            except BrokerError as error:
                self._trouble.say(f"the alarms of {self._prefix[1]} cannot be watched", error)
            await self._clock.sleep(RETRY_PAUSE)

    async def _read(self) -> None:
        """Note all that there is, and what changes, as long as a watch lasts. Raises errors of `Table`."""
        noted = 0
        self._agenda, self._is_read = Agenda(), False
        async with aclosing(self._table.watch(self._prefix, after=ABSENT)) as changes:
            async for change in changes:
                if isinstance(change, Current):
                    self._is_read = True
                elif isinstance(change, Entry):
                    self._note(change)
                else:
                    self._agenda.forget(change.key)
                self._woken.set()
                noted += 1
                if noted % READ_AT_ONCE == 0:
                    await asyncio.sleep(0)

    def _note(self, entry: Entry) -> None:
        try:
            self._agenda.note(Item(read_when(entry), entry.revision, entry.key))
        except BrokerError as error:  # for a member of a later version
            logger.error("%s", error)
            self._agenda.forget(entry.key)

    async def _work(self) -> None:
        while True:
            self._woken.clear()
            if items := self._take():
                await self._hand_out(items)
            else:
                await self._wait()

    def _open(self) -> list[int]:
        """The partitions of which alarms may be handed out now."""
        if not self._is_read or self._closing:
            return []
        return [partition for partition in self._partitions.owned if partition not in self._leaving]

    def _room(self) -> int:
        return min(MAX_TAKEN, self._concurrency - len(self._in_hand), MAX_UNSTORED - len(self._verdicts))

    def _take(self) -> list[Item]:
        partitions, now = self._open(), self._clock.now()
        items: list[Item] = []
        for _ in range(self._room()):
            item = self._agenda.take(partitions, now)
            if item is None:
                break
            items.append(item)
        return items

    async def _wait(self) -> None:
        """For something to happen, or the next alarm to be due."""
        left = self._agenda.next(self._open()) - self._clock.now() if self._room() > 0 else LOOK_AGAIN
        timer = self._clock.call_later(min(max(0.0, left), LOOK_AGAIN), self._woken.set)
        try:
            await self._woken.wait()
        finally:
            timer.cancel()

    async def _hand_out(self, items: list[Item]) -> None:
        try:
            entries = await self._table.get_many([item.key for item in items])
        except BrokerError as error:
            logger.warning("%d alarms that are due cannot be read: %s", len(items), error)
            await self._clock.sleep(RETRY_PAUSE)
            entries = None
        partitions = self._open()
        for number, item in enumerate(items):
            if entries is None or partition_of(item.key) not in partitions:
                self._agenda.put_back(item)
            elif (entry := entries[number]) is not None and entry.revision == item.revision:
                self._fire(item, entry)
            # Set or cancelled a moment ago: the watch tells, if it has not told yet.

    def _fire(self, item: Item, entry: Entry) -> None:
        known = self._unfinished.get(item.key)
        if known is not None and known.revision == item.revision:
            return  # a watch that was begun anew has shown it once more
        try:
            firing = TableFiring(self, item, read_record(entry))
        except BrokerError as error:
            logger.error("%s", error)
            self._agenda.put_back(item._replace(at=self._clock.now() + REFUSED_PAUSE))
            return
        self._in_hand.add(firing)
        self._unfinished[item.key] = firing
        self._handler(firing)

    # What becomes of it

    def settle(self, firing: TableFiring, record: Record | None) -> None:
        """`record` takes its place. The first verdict counts."""
        if firing in self._in_hand:
            self._in_hand.remove(firing)
            self._verdicts.add(firing, record)
            self._wake()

    def put_off(self, firing: TableFiring, delay: float) -> None:
        if self._is_ours(firing):
            at = self._clock.now() + delay
            self.settle(firing, record_of(firing.alarm, at=at, attempts=firing.attempt))
        elif firing in self._in_hand:  # whoever has the partition now has it, too; perhaps we shall again
            self._in_hand.remove(firing)
            self._agenda.put_back(Item(firing.alarm.due, firing.revision, firing.key))
            self.judged(firing)

    def judged(self, firing: TableFiring) -> None:
        """Its verdict is stored, or does not count any more."""
        if firing in self._in_hand:
            firing.held = True
        elif self._unfinished.get(firing.key) is firing:
            del self._unfinished[firing.key]
        self._wake()

    def refused(self, firing: TableFiring, error: MessageTooLarge) -> None:
        logger.error("what becomes of the alarm %s cannot be stored: %s", "/".join(firing.alarm.key), error)
        self.judged(firing)
        if firing not in self._in_hand:
            self._agenda.put_back(Item(self._clock.now() + REFUSED_PAUSE, firing.revision, firing.key))

    def _is_ours(self, firing: TableFiring) -> bool:
        """Whether no other member may have it in hand, judged at this moment."""
        if firing.held_until is not None:
            return self._clock.now() < firing.held_until
        return self._partitions.token(firing.partition) is not None

    def _hold(self, firing: TableFiring) -> None:
        """Keep the next owner of its partition from firing it as long as it is in hand."""
        if firing in self._in_hand and self._is_ours(firing):
            firing.held_until = self._clock.now() + HOLD
            self._verdicts.add(firing, record_of(firing.alarm, at=firing.held_until, attempts=firing.attempt))
            self._clock.call_later(HOLD / 3, lambda: self._hold(firing))

    # Partitions

    def gained(self, partition: int, token: FenceToken) -> None:
        self._leaving.discard(partition)
        self._woken.set()

    async def revoke(self, partition: int) -> None:
        self._leaving.add(partition)
        if not await within(self._clock, REVOKE_GRACE, self._until(lambda: not self._kept_by(partition))):
            for firing in self._kept_by(partition):
                self._hold(firing)
            await self._until(lambda: not self._kept_by(partition))

    def lost(self, partition: int) -> None:
        self._leaving.discard(partition)

    def _kept_by(self, partition: int) -> list[TableFiring]:
        """Those that another owner of the partition would fire again."""
        return [firing for firing in self._unfinished.values() if firing.partition == partition and not firing.held]

    async def _until(self, condition: Callable[[], bool]) -> None:
        moved = asyncio.Event()
        self._progress.add(moved)
        try:
            while not condition():
                moved.clear()
                await moved.wait()
        finally:
            self._progress.discard(moved)

    def _wake(self) -> None:
        self._woken.set()
        for moved in self._progress:
            moved.set()


def _say_why(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        logger.error("no more of '%s': %s", task.get_name(), task.exception(), exc_info=task.exception())
