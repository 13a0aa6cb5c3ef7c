"""Alarms of a scope: entries of a table of their own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from brokers.alarm_arguments import check_alarm, check_alarm_key, check_scan
from brokers.table_alarms.member import Membership, TableAlarmSubscription
from brokers.table_alarms.records import CONTENT_TYPE, entry_key, read_record, record_of
from mesh import addressing
from mesh.clock import SystemClock
from mesh.errors import BrokerError, BrokerUnavailable
from mesh.ownership.lease import TTL
from mesh.ownership.waits import elapsed
from mesh.ports.alarms import Alarm, AlarmPage, FiringHandler, SetAlarm
from mesh.ports.clock import Clock
from mesh.ports.tables import ABSENT, Conflict, Delete, Entry, Key, Put, Tables

logger = logging.getLogger("meshwire.alarms")

MAX_TRIES = 100
"""Of a cancellation that others are always ahead of."""


class TableAlarmClocks:
    """`AlarmClocks` over `tables`, which somebody else closes after them.

    What is due is so by the clock of the member that fires it: hosts are expected to agree about the time.
    """

    def __init__(
        self,
        tables: Tables,
        *,
        node: str,
        clock: Clock | None = None,
        ttl: float = TTL,
        elapsed: Callable[[], float] = elapsed,
    ) -> None:
        """`node` names this process for people. `ttl`: seconds after which the alarms of a member that is gone without
        a word go to others. `elapsed` as in `Partitions`."""
        self._tables = tables
        self._membership = Membership(node, clock or SystemClock(), ttl, elapsed)
        self._scopes: dict[str, TableAlarms] = {}
        self._closed = False

    def alarms(self, scope: str) -> TableAlarms:
        """Raises `InvalidKey` for a scope that cannot be named."""
        alarms = self._scopes.get(scope)
        if alarms is None:
            alarms = self._scopes[scope] = TableAlarms(self._tables, addressing.alarms_scope(scope), self._membership)
            alarms.closed = self._closed
        return alarms

    async def close(self) -> None:
        self._closed = True
        await asyncio.gather(*(alarms.close() for alarms in self._scopes.values()))


class TableAlarms:
    """`Alarms` of `TableAlarmClocks`."""

    def __init__(self, tables: Tables, scope: str, membership: Membership) -> None:
        """`scope` is that of the table."""
        self.closed = False
        self._tables = tables
        self._scope = scope
        self._table = tables.table(scope)
        self._membership = membership
        self._clock = membership.clock
        self._subscriptions: set[TableAlarmSubscription] = set()

    async def set(self, alarm: Alarm, *, expected: int | None = None) -> int:
        self._check_open()
        check_alarm(alarm)
        key = entry_key(alarm.key)
        if expected:
            self._check_expected(alarm.key, await self._table.get(key), expected)
        value = record_of(alarm).encode()
        try:
            [revision] = await self._table.commit(
                [Put(key=key, value=value, content_type=CONTENT_TYPE, expected=expected)]
            )
        except Conflict:
            raise Conflict(alarm.key) from None
        return revision

    async def cancel(self, key: Key, *, expected: int | None = None) -> bool:
        self._check_open()
        check_alarm_key(key)
        for _ in range(MAX_TRIES):
            entry = await self._table.get(entry_key(key))
            if expected is not None:
                self._check_expected(key, entry, expected)
            if entry is None:
                return False
            try:
                await self._table.commit([Delete(key=entry.key, expected=entry.revision)])
                return True
            except Conflict:  # what is there now says whether that matters
                continue
        raise BrokerUnavailable(f"others never stop changing the alarm {'/'.join(key)}")

    async def get(self, key: Key) -> SetAlarm | None:
        self._check_open()
        check_alarm_key(key)
        entry = await self._table.get(entry_key(key))
        return None if entry is None else self._read(entry)

    async def scan(self, prefix: Key, *, limit: int, cursor: str | None = None) -> AlarmPage:
        self._check_open()
        check_scan(prefix, limit)
        page = await self._table.scan(entry_key(prefix), limit=limit, cursor=cursor)
        alarms: list[SetAlarm] = []
        for entry in page.entries:
            try:
                alarms.append(self._read(entry))
            except BrokerError as error:
                logger.error("%s", error)
        return AlarmPage(alarms, page.cursor)

    async def serve(self, kind: str, handler: FiringHandler, *, concurrency: int) -> TableAlarmSubscription:
        self._check_open()
        check_alarm_key((kind, "any"))
        subscription = TableAlarmSubscription(
            self._tables,
            self._scope,
            kind,
            addressing.alarm_group(kind),
            handler,
            concurrency,
            self._membership,
            closed=self._subscriptions.discard,
        )
        subscription.start()
        self._subscriptions.add(subscription)
        return subscription

    async def close(self) -> None:
        self.closed = True
        await asyncio.gather(*(subscription.cut() for subscription in list(self._subscriptions)))

    def _check_open(self) -> None:
        if self.closed:
            raise BrokerUnavailable("the alarms are closed")

    def _check_expected(self, key: Key, entry: Entry | None, expected: int) -> None:
        """Raises `Conflict` unless it is the revision of the alarm that is set, and not due."""
        if expected != (ABSENT if entry is None else entry.revision):
            raise Conflict(key)
        if entry is not None and self._read(entry).fired:
            raise Conflict(key)

    def _read(self, entry: Entry) -> SetAlarm:
        """Raises `BrokerError` for what this version cannot read."""
        alarm = read_record(entry).alarm(entry.key)
        return SetAlarm(alarm, entry.revision, alarm.due <= self._clock.now())
