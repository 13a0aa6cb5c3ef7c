"""The reference alarms: the contract of `Alarms` in one process, with nothing behind it."""

from __future__ import annotations

import asyncio
import heapq
from collections import OrderedDict

import msgspec

from brokers.alarm_arguments import check_alarm, check_alarm_key, check_scan, check_then
from mesh.clock import SystemClock
from mesh.errors import BrokerUnavailable, MessageTooLarge, clip
from mesh.ports import Clock
from mesh.ports.alarms import Alarm, AlarmPage, FiringHandler, SetAlarm
from mesh.ports.tables import ABSENT, Conflict, Key

LONGEST_TIMER = 24 * 3600.0
"""Seconds. A wall clock that is put right is followed within this time."""


class MemoryAlarmClocks:
    """`AlarmClocks` in memory. All members of all scopes share this one object.

    `max_message_size` bounds the bytes of one alarm: key, headers and payload.
    """

    def __init__(self, clock: Clock | None = None, *, max_message_size: int = 1 << 20) -> None:
        self._clock = clock or SystemClock()
        self._max_message_size = max_message_size
        self._scopes: dict[str, MemoryAlarms] = {}
        self._closed = False

    def alarms(self, scope: str) -> MemoryAlarms:
        alarms = self._scopes.get(scope)
        if alarms is None:
            alarms = self._scopes[scope] = MemoryAlarms(self._clock, self._max_message_size)
            if self._closed:
                alarms.close()
        return alarms

    async def close(self) -> None:
        self._closed = True
        for alarms in self._scopes.values():
            alarms.close()


class MemoryAlarms:
    """`Alarms` of `MemoryAlarmClocks`."""

    def __init__(self, clock: Clock, max_message_size: int) -> None:
        self._clock = clock
        self._max_message_size = max_message_size
        self._revision = 0
        self._set: dict[Key, SetAlarm] = {}
        self._due: dict[Key, _Due] = {}  # not settled: waiting for a member, for a retry, or in hand
        self._kinds: dict[str, _Kind] = {}
        self._closed = False

    async def set(self, alarm: Alarm, *, expected: int | None = None) -> int:
        self._check(alarm)
        if expected is not None:
            self._check_expected(alarm.key, expected)
        self._forget_due(alarm.key)
        return self._store(alarm)

    async def cancel(self, key: Key, *, expected: int | None = None) -> bool:
        self._check_open()
        check_alarm_key(key)
        if expected is not None:
            self._check_expected(key, expected)
        was_set = self._set.pop(key, None) is not None
        return self._forget_due(key) or was_set

    async def get(self, key: Key) -> SetAlarm | None:
        self._check_open()
        check_alarm_key(key)
        return self._find(key)

    async def scan(self, prefix: Key, *, limit: int, cursor: str | None = None) -> AlarmPage:
        self._check_open()
        check_scan(prefix, limit)
        after = prefix if cursor is None else _read_cursor(cursor, prefix)
        keys = (key for key in self._set.keys() | self._due.keys() if key[: len(prefix)] == prefix and key > after)
        page = heapq.nsmallest(limit + 1, keys)
        found = [alarm for key in page[:limit] if (alarm := self._find(key)) is not None]
        return AlarmPage(found, msgspec.json.encode(page[limit - 1]).decode() if len(page) > limit else None)

    async def serve(self, kind: str, handler: FiringHandler, *, concurrency: int) -> MemoryAlarmSubscription:
        self._check_open()
        check_alarm_key((kind, "any"))
        return MemoryAlarmSubscription(self._kind(kind), handler, concurrency)

    def close(self) -> None:
        self._closed = True
        self._set.clear()
        self._due.clear()
        for kind in self._kinds.values():
            kind.clear()

    def settle(self, due: _Due, then: Alarm | None) -> None:
        key = due.alarm.key
        if self._due.get(key) is due:
            del self._due[key]
            if then is not None and key not in self._set:
                self._store(then)

    def put_back(self, due: _Due, delay: float) -> None:
        self._clock.call_later(max(0.0, delay), lambda: self._offer(due))

    def _find(self, key: Key) -> SetAlarm | None:
        found = self._set.get(key)
        if found is None and (due := self._due.get(key)) is not None:
            return SetAlarm(due.alarm, due.revision, True)
        return found

    def _check(self, alarm: Alarm) -> None:
        self._check_open()
        check_alarm(alarm)
        size = len(alarm.payload) + sum(len(part.encode()) for part in alarm.key)
        size += sum(len(name) + len(value.encode()) for name, value in alarm.headers.items())
        if size > self._max_message_size:
            raise MessageTooLarge(size, self._max_message_size)

    def _check_open(self) -> None:
        if self._closed:
            raise BrokerUnavailable("the alarms are closed")

    def _check_expected(self, key: Key, expected: int) -> None:
        found = self._find(key)
        if expected != (ABSENT if found is None else found.revision) or (found is not None and found.fired):
            raise Conflict(key)

    def _store(self, alarm: Alarm) -> int:
        self._revision += 1
        self._set[alarm.key] = SetAlarm(alarm, self._revision, False)
        self._wait_for(alarm, self._revision)
        return self._revision

    def _wait_for(self, alarm: Alarm, revision: int) -> None:
        delay = max(0.0, alarm.due - self._clock.now())
        self._clock.call_later(min(delay, LONGEST_TIMER), lambda: self._look_at(alarm, revision))

    def _look_at(self, alarm: Alarm, revision: int) -> None:
        found = self._set.get(alarm.key)
        if found is None or found.revision != revision:
            return  # cancelled, or set anew
        if self._clock.now() < alarm.due:
            self._wait_for(alarm, revision)
            return
        del self._set[alarm.key]
        self._revision += 1
        due = self._due[alarm.key] = _Due(alarm, self._revision)
        self._offer(due)

    def _offer(self, due: _Due) -> None:
        if self._due.get(due.alarm.key) is due:
            self._kind(due.alarm.key[0]).offer(due)

    def _forget_due(self, key: Key) -> bool:
        due = self._due.pop(key, None)
        if due is None:
            return False
        self._kind(key[0]).withdraw(due)
        return True

    def _kind(self, name: str) -> _Kind:
        kind = self._kinds.get(name)
        if kind is None:
            kind = self._kinds[name] = _Kind(self)
        return kind


class _Due:
    """An alarm that has become due."""

    __slots__ = ("alarm", "attempts", "revision")

    def __init__(self, alarm: Alarm, revision: int) -> None:
        self.alarm = alarm
        self.revision = revision
        self.attempts = 0


class _Kind:
    """What is due of one kind and waits for a member, the first first; and the members."""

    def __init__(self, alarms: MemoryAlarms) -> None:
        self.alarms = alarms
        self.members: list[MemoryAlarmSubscription] = []
        self._waiting: OrderedDict[_Due, None] = OrderedDict()

    def offer(self, due: _Due) -> None:
        self._waiting[due] = None
        self.dispatch()

    def withdraw(self, due: _Due) -> None:
        self._waiting.pop(due, None)

    def clear(self) -> None:
        self._waiting.clear()
        self.members.clear()

    def dispatch(self) -> None:
        """Hand what waits to members with a free place, in turn."""
        while self._waiting and (member := next((member for member in self.members if member.free), None)):
            self.members.remove(member)
            self.members.append(member)
            due, _ = self._waiting.popitem(last=False)
            due.attempts += 1
            member.take(MemoryFiring(member, due))


class MemoryAlarmSubscription:
    """One member that takes alarms of a kind."""

    def __init__(self, kind: _Kind, handler: FiringHandler, concurrency: int) -> None:
        self.kind = kind
        self._handler = handler
        self._concurrency = concurrency
        self._in_hand: set[MemoryFiring] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        kind.members.append(self)
        kind.dispatch()

    @property
    def free(self) -> bool:
        return len(self._in_hand) < self._concurrency

    def take(self, firing: MemoryFiring) -> None:
        self._in_hand.add(firing)
        self._idle.clear()
        # Not called from here: a handler that settles at once would come back in, as deep as the queue is long.
        asyncio.get_running_loop().call_soon(self._handle, firing)

    def _handle(self, firing: MemoryFiring) -> None:
        if firing in self._in_hand:
            self._handler(firing)

    def let_go(self, firing: MemoryFiring) -> bool:
        """Whether `firing` was in hand until now."""
        if firing not in self._in_hand:
            return False
        self._in_hand.remove(firing)
        if not self._in_hand:
            self._idle.set()
        return True

    async def close(self) -> None:
        if self in self.kind.members:
            self.kind.members.remove(self)
        try:
            await self._idle.wait()
        finally:  # cancelled: what is left in hand goes to other members
            for firing in list(self._in_hand):
                firing.retry(0.0)


class MemoryFiring:
    """A `Firing` of `MemoryAlarmSubscription`."""

    __slots__ = ("_due", "_member", "alarm", "attempt")

    def __init__(self, member: MemoryAlarmSubscription, due: _Due) -> None:
        self._member = member
        self._due = due
        self.alarm = due.alarm
        self.attempt = due.attempts

    def ack(self, then: Alarm | None = None) -> None:
        check_then(self.alarm, then)
        if self._member.let_go(self):
            self._member.kind.alarms.settle(self._due, then)
            self._member.kind.dispatch()

    def retry(self, delay: float) -> None:
        if self._member.let_go(self):
            self._member.kind.alarms.put_back(self._due, delay)
            self._member.kind.dispatch()


def _read_cursor(cursor: str, prefix: Key) -> Key:
    try:
        key: Key = msgspec.json.decode(cursor, type=tuple[str, ...])
    except msgspec.MsgspecError:
        key = ()
    if key[: len(prefix)] != prefix:
        raise ValueError(f"the cursor '{clip(cursor)}' is not of this scan")
    return key
