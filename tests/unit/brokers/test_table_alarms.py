"""What alarms over tables promise when members fail, and how they keep what they know and store what they are told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from itertools import pairwise
from math import inf
from random import Random
from typing import Any

import msgspec
import pytest

from brokers.memory_tables import MemoryTable, MemoryTables
from brokers.table_alarms import TableAlarmClocks
from brokers.table_alarms.agenda import Agenda, Item
from brokers.table_alarms.member import HOLD, LOOK_AGAIN, REFUSED_PAUSE, REVOKE_GRACE
from brokers.table_alarms.records import PARTITIONS, Record, entry_key, partition_of
from brokers.table_alarms.verdicts import MAX_COMMIT_BYTES, Verdicts
from mesh import addressing
from mesh.errors import BrokerError, BrokerUnavailable
from mesh.ports.alarms import Alarm, Firing
from mesh.ports.tables import ABSENT, Conflict, Current, Entry, Gone, Key, Put
from tests.pausable import PausableTables, Pause
from tests.virtual_clock import VirtualClock

NIGHTLY = ("job", "nightly")
TTL = 3.0
TAKEOVER = TTL + 6.0
"""Seconds after which the alarms of a lost member are another's."""
EVERYTHING = range(PARTITIONS)


class Member:
    """One process's end: it can be paused, and keeps what it is handed."""

    def __init__(self, tables: MemoryTables, clock: VirtualClock, settle: Callable[[Firing], None]) -> None:
        self.pause = Pause()
        self.tables = PausableTables(tables, self.pause)
        self.clocks = TableAlarmClocks(self.tables, node="member", clock=clock, ttl=TTL, elapsed=clock.now)
        self.alarms = self.clocks.alarms("shop")
        self.fired: list[Firing] = []
        self.times: list[float] = []
        self.settle = settle
        self._clock = clock

    async def serve(self, concurrency: int = 1000) -> None:
        self.subscription = await self.alarms.serve("job", self._handle, concurrency=concurrency)

    def _handle(self, firing: Firing) -> None:
        self.fired.append(firing)
        self.times.append(self._clock.now())
        self.settle(firing)

    @property
    def payloads(self) -> list[bytes]:
        return [firing.alarm.payload for firing in self.fired]


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def tables(clock: VirtualClock) -> MemoryTables:
    return MemoryTables(clock)


@pytest.fixture
async def member(tables: MemoryTables, clock: VirtualClock) -> AsyncIterator[Callable[..., Member]]:
    async with AsyncExitStack() as stack:

        def member(settle: Callable[[Firing], None] = lambda firing: firing.ack()) -> Member:
            made = Member(tables, clock, settle)

            async def end() -> None:
                made.pause.resume()
                await asyncio.gather(made.clocks.close(), clock.advance(TAKEOVER))

            stack.push_async_callback(end)
            return made

        yield member


def keep(firing: Firing) -> None:
    """Leave it unsettled."""


def job(due: float, name: str = "nightly", payload: bytes = b"") -> Alarm:
    return Alarm(key=("job", name), due=due, payload=payload)


# Members


async def test_what_a_member_had_in_hand_when_it_was_stopped_fires_again_elsewhere(
    member: Callable[..., Member], clock: VirtualClock
) -> None:
    first, second = member(keep), member()
    await first.serve()
    await first.alarms.set(job(clock.now()))
    await clock.advance(1)
    assert len(first.fired) == 1
    first.pause.stop()
    await second.serve()
    await second.alarms.set(job(clock.now() + 1, "later"))
    await clock.advance(TAKEOVER)
    assert sorted(firing.alarm.key[1] for firing in second.fired) == ["later", "nightly"]
    assert await second.alarms.get(NIGHTLY) is None


async def test_a_member_that_was_stopped_too_long_fires_nothing_when_it_wakes(
    member: Callable[..., Member], clock: VirtualClock
) -> None:
    first, second = member(), member()
    await first.serve()
    await clock.advance(1)
    first.pause.stop()
    await second.serve()
    for number in range(100):
        await second.alarms.set(job(clock.now() + TAKEOVER, str(number)))
    await clock.advance(2 * TAKEOVER)
    first.pause.resume()
    await clock.advance(TAKEOVER)
    assert len(second.fired) == 100
    assert not first.fired


@pytest.mark.parametrize("verdict", ["ack", "then", "retry"])
async def test_the_late_verdict_of_a_member_that_was_stopped(
    member: Callable[..., Member], clock: VirtualClock, verdict: str
) -> None:
    """What it handled is handled: if nobody else has settled it yet, that counts. What it did not is another's."""
    first, second = member(keep), member(keep)
    await first.serve()
    await first.alarms.set(job(clock.now(), payload=b"1"))
    await clock.advance(1)
    first.pause.stop()
    await second.serve()
    await clock.advance(TAKEOVER)
    assert len(second.fired) == 1
    first.pause.resume()
    following = job(clock.now() + 3600, payload=b"2")
    if verdict == "retry":
        first.fired[0].retry(0.0)
    else:
        first.fired[0].ack(following if verdict == "then" else None)
    await clock.advance(TAKEOVER)
    found = await second.alarms.get(NIGHTLY)
    assert (found and found.alarm.payload) == {"ack": None, "then": b"2", "retry": b"1"}[verdict]
    second.fired[0].ack(job(clock.now() + 7200, payload=b"2 of the second"))
    await clock.advance(1)
    found = await second.alarms.get(NIGHTLY)
    assert (found and found.alarm.payload) == {"ack": None, "then": b"2", "retry": b"2 of the second"}[verdict]
    await clock.advance(60)
    assert len(first.fired) + len(second.fired) == 2


async def test_what_is_in_hand_stays_so_while_its_partition_moves(
    member: Callable[..., Member], clock: VirtualClock
) -> None:
    first, second = member(keep), member()
    await first.serve()
    keys = [str(number) for number in range(50)]
    for key in keys:
        await first.alarms.set(job(clock.now(), key))
    await clock.advance(1)
    await second.serve()
    await clock.advance(REVOKE_GRACE + 1)
    assert 0 < len(second.subscription._open()) < PARTITIONS
    await clock.advance(10 * HOLD)
    assert len(first.fired) == 50
    assert not second.fired
    for number in range(20):
        await first.alarms.set(job(clock.now(), f"new {number}"))
    await clock.advance(0.1)
    assert len(second.fired) > 5
    assert len(first.fired) + len(second.fired) == 70
    second.fired.clear()
    for firing in first.fired[50:]:
        firing.ack()
    del first.fired[50:]
    for firing in first.fired[:25]:
        firing.ack()
    for firing in first.fired[25:]:
        firing.retry(1.0)
    first.settle = second.settle
    await clock.advance(HOLD)
    again = first.fired[50:] + second.fired
    assert sorted(firing.alarm.key for firing in again) == sorted(firing.alarm.key for firing in first.fired[25:50])
    assert {firing.attempt for firing in again} == {2}
    assert second.fired


async def test_what_was_in_hand_while_its_partition_moved_is_free_when_the_member_ends(
    member: Callable[..., Member], clock: VirtualClock
) -> None:
    first, second = member(keep), member()
    await first.serve()
    for number in range(50):
        await first.alarms.set(job(clock.now(), str(number)))
    await clock.advance(1)
    await second.serve()
    await clock.advance(REVOKE_GRACE + HOLD)
    first.pause.stop()
    await clock.advance(TAKEOVER + HOLD)
    assert len(second.fired) == 50
    assert {firing.attempt for firing in second.fired} == {1, 2}  # 2 where there was time to say that it was in hand


async def test_a_member_that_was_stopped_does_not_put_off_what_was_its_own(
    member: Callable[..., Member], clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = member(keep), member(keep)
    await first.serve()
    for number in range(50):
        await first.alarms.set(job(clock.now(), str(number)))
    await clock.advance(1)
    await second.serve()
    await clock.advance(REVOKE_GRACE + HOLD)
    first.pause.stop()
    monkeypatch.setattr(first.subscription, "_hold", lambda _: None)  # a process that is stopped calls nothing
    await clock.advance(TAKEOVER + HOLD)
    assert len(second.fired) == 50
    first.pause.resume()
    for firing in first.fired:
        firing.retry(0.0)
    for firing in second.fired:
        firing.ack()
    await clock.advance(1)
    assert (await second.alarms.scan(("job",), limit=10)).alarms == []


async def test_what_a_member_gives_back_too_late_is_its_own_again_with_the_partition(
    member: Callable[..., Member], clock: VirtualClock
) -> None:
    first = member(keep)
    await first.serve()
    await first.alarms.set(job(clock.now()))
    await clock.advance(1)
    first.pause.stop()
    await clock.advance(TAKEOVER)
    first.fired[0].retry(0.0)
    first.pause.resume()
    await clock.advance(TAKEOVER)
    assert len(first.fired) == 2


async def test_a_partition_that_is_never_idle_moves(member: Callable[..., Member], clock: VirtualClock) -> None:
    first = member(lambda firing: clock.call_later(0.5, firing.ack))
    second = member(lambda firing: clock.call_later(0.5, firing.ack))
    await first.serve()
    for number in range(2000):
        await first.alarms.set(job(clock.now() + 1 + number / 100, str(number)))
    await clock.advance(3)
    await second.serve()
    await clock.advance(REVOKE_GRACE)
    assert len(second.fired) > 50
    await clock.advance(30)
    assert sorted(firing.alarm.key for firing in first.fired + second.fired) == sorted(
        ("job", str(number)) for number in range(2000)
    )


async def test_what_is_being_read_while_its_partition_moves_is_its_next_owners(
    member: Callable[..., Member], clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = member(), member()
    await first.serve()
    await clock.advance(1)
    table = first.subscription._table
    get_many = table.get_many

    async def slow(keys: Sequence[Key]) -> list[Entry | None]:
        entries = await get_many(keys)
        await clock.sleep(5)
        return entries

    monkeypatch.setattr(table, "get_many", slow)
    due = clock.now() + 0.5
    for number in range(50):
        await first.alarms.set(job(due, str(number)))
    await clock.advance(1)
    second.settle = keep
    await second.serve(concurrency=5)
    await clock.advance(20)
    monkeypatch.undo()
    assert len(second.fired) == 5
    names = {firing.alarm.key for firing in first.fired}
    assert names.isdisjoint(firing.alarm.key for firing in second.fired)
    assert 0 < len(names) < 45
    await second.clocks.close()
    await clock.advance(20)
    assert len(first.fired) == 50


async def test_partitions_that_come_back_are_served(member: Callable[..., Member], clock: VirtualClock) -> None:
    first, second = member(), member()
    await first.serve()
    await clock.advance(1)
    await second.serve()
    await clock.advance(1)
    await second.subscription.close()
    await clock.advance(1)
    for number in range(50):
        await first.alarms.set(job(clock.now(), str(number)))
    await clock.advance(1)
    assert len(first.fired) == 50


async def test_a_partition_moves_at_once_when_nothing_of_it_is_in_hand(
    member: Callable[..., Member], clock: VirtualClock
) -> None:
    first, second = member(), member()
    await first.serve()
    await clock.advance(1)
    await second.serve()
    for number in range(100):
        await first.alarms.set(job(clock.now() + 0.5, str(number)))
    await clock.advance(0.6)
    assert len(first.fired) + len(second.fired) == 100
    assert 20 < len(first.fired) < 80


async def test_a_member_that_leaves_passes_on_what_it_has_not_handled(
    member: Callable[..., Member], clock: VirtualClock
) -> None:
    first, second = member(keep), member()
    await first.serve()
    await first.alarms.set(job(clock.now()))
    await clock.advance(1)
    await second.serve()
    await first.clocks.close()
    await clock.advance(0.5)
    assert [firing.attempt for firing in second.fired] == [2]
    with pytest.raises(BrokerUnavailable):
        await first.alarms.get(NIGHTLY)


# Time


class WallClock:
    """It can be set, unlike that of the broker."""

    offset = 0.0

    def __init__(self, true: VirtualClock) -> None:
        self._true = true
        self.call_later = true.call_later
        self.sleep = true.sleep
        self.advance = true.advance

    def now(self) -> float:
        return self._true.now() + self.offset


@pytest.mark.parametrize("jump", [600.0, -600.0])
async def test_a_clock_that_is_set_is_followed(jump: float) -> None:
    true = VirtualClock()
    clock = WallClock(true)
    clocks = TableAlarmClocks(MemoryTables(true), node="member", clock=clock, ttl=TTL, elapsed=true.now)
    seen: list[float] = []

    def handle(firing: Firing) -> None:
        seen.append(clock.now() - firing.alarm.due)
        firing.ack()

    await clocks.alarms("shop").serve("job", handle, concurrency=5)
    await clocks.alarms("shop").set(job(clock.now() + 300))
    await clock.advance(10)
    clock.offset = jump
    await clock.advance(LOOK_AGAIN)
    assert len(seen) == (jump > 0)
    await clock.advance(300)
    assert len(seen) == (jump > 0)
    await clock.advance(600)
    assert len(seen) == 1
    assert seen[0] >= 0
    await asyncio.gather(clocks.close(), clock.advance(TAKEOVER))


async def test_what_became_due_without_members_comes_in_the_order_of_time(
    member: Callable[..., Member], clock: VirtualClock
) -> None:
    first = member()
    for number in range(200):
        await first.alarms.set(job(clock.now() - 7 * number % 200, str(number)))
    await first.serve(concurrency=3)
    await clock.advance(5)
    dues = [firing.alarm.due for firing in first.fired]
    assert len(dues) == 200
    assert sum(earlier > later for earlier, later in pairwise(dues)) <= PARTITIONS


async def test_none_is_handed_out_before_all_are_known(clock: VirtualClock) -> None:
    tables = FailingTables(clock)
    member = Member(tables, clock, lambda firing: firing.ack())
    for number in range(50):
        await member.alarms.set(job(clock.now() - number, str(number)))
    tables.watches_pause = 0.1
    await member.serve()
    await clock.advance(10)
    assert [firing.alarm.key[1] for firing in member.fired] == [str(number) for number in reversed(range(50))]
    await member.clocks.close()


# Verdicts


async def test_many_verdicts_are_few_commits(member: Callable[..., Member], clock: VirtualClock) -> None:
    first = member()
    await first.serve()
    await clock.advance(1)
    due = clock.now() + 1
    for number in range(1000):
        await first.alarms.set(job(due, str(number)))
    before = first.tables.commits
    await clock.advance(1.5)
    assert len(first.fired) == 1000
    assert (await first.alarms.scan(("job",), limit=1)).alarms == []
    assert first.tables.commits - before < 50


async def test_one_that_was_set_meanwhile_does_not_spoil_the_verdicts_on_others(
    member: Callable[..., Member], clock: VirtualClock
) -> None:
    first = member(keep)
    await first.serve()
    for number in range(100):
        await first.alarms.set(job(clock.now(), str(number)))
    await clock.advance(1)
    await first.alarms.set(job(clock.now() + 3600, "50", b"new"))
    for firing in first.fired:
        firing.ack()
    await clock.advance(1)
    left = (await first.alarms.scan(("job",), limit=100)).alarms
    assert [found.alarm.payload for found in left] == [b"new"]
    await clock.advance(60)
    assert len(first.fired) == 100


async def test_verdicts_on_two_of_one_key_at_once(member: Callable[..., Member], clock: VirtualClock) -> None:
    first = member(keep)
    await first.serve()
    await first.alarms.set(job(clock.now(), payload=b"old"))
    await clock.advance(1)
    await first.alarms.set(job(clock.now(), payload=b"new"))
    await clock.advance(1)
    assert first.payloads == [b"old", b"new"]
    for firing in first.fired:
        firing.ack()
    await clock.advance(1)
    assert await first.alarms.get(NIGHTLY) is None
    await first.alarms.set(job(clock.now(), payload=b"later"))
    await clock.advance(1)
    assert first.payloads[2:] == [b"later"]


async def test_large_verdicts_are_not_all_in_one_commit(
    member: Callable[..., Member], clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = member(keep)
    await first.serve()
    for number in range(10):
        await first.alarms.set(job(clock.now(), str(number)))
    await clock.advance(1)
    commit, sizes = first.subscription._table.commit, []

    async def weigh(changes: Sequence[Any], checks: Any = ()) -> list[int]:
        sizes.append(sum(len(change.value) for change in changes))
        return await commit(changes, checks)

    monkeypatch.setattr(first.subscription._table, "commit", weigh)
    for firing in first.fired:
        firing.ack(job(clock.now() + 3600, firing.alarm.key[1], bytes(100_000)))
    await clock.advance(1)
    assert sum(sizes) > 1_000_000
    assert max(sizes) <= MAX_COMMIT_BYTES


class Judgement:
    """A verdict's object."""

    def __init__(self, key: Key, revision: int) -> None:
        self.key = key
        self.revision = revision
        self.outcomes: list[str] = []

    def stored(self) -> None:
        self.outcomes.append("stored")

    def overtaken(self) -> None:
        self.outcomes.append("overtaken")

    def refused(self, error: Exception) -> None:
        self.outcomes.append("refused")


async def test_a_verdict_that_comes_while_another_is_on_its_way_is_the_last(
    tables: MemoryTables, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tables.table("shop")
    [revision] = await table.commit([Put(key=("at", "job", "a"), value=b"")])
    judged = Judgement(("at", "job", "a"), revision)
    verdicts = Verdicts(table, clock, lambda: None)
    commit = table.commit

    async def slow(changes: Any, checks: Any = ()) -> list[int]:
        revisions = await commit(changes, checks)
        await clock.sleep(1)
        return revisions

    monkeypatch.setattr(table, "commit", slow)
    running = asyncio.ensure_future(verdicts.run())
    verdicts.add(judged, Record(1.0, 1.0, 1, {}, b""))
    await clock.advance(0.5)
    verdicts.add(judged, None)
    await clock.advance(3)
    running.cancel()
    assert await table.get(("at", "job", "a")) is None
    assert judged.outcomes == ["stored"]
    assert not verdicts


async def test_an_answer_that_is_lost_makes_nothing_fire_again(
    member: Callable[..., Member], clock: VirtualClock
) -> None:
    first = member(keep)
    await first.serve()
    for number in range(10):
        await first.alarms.set(job(clock.now(), str(number), b"1"))
    await clock.advance(0.2)
    first.tables.unanswered = 1
    for firing in first.fired:
        firing.ack(job(clock.now() + 30, firing.alarm.key[1], b"2"))
    await clock.advance(29)
    assert first.payloads == [b"1"] * 10
    await clock.advance(2)
    assert first.payloads == [b"1"] * 10 + [b"2"] * 10


async def test_a_next_alarm_that_is_too_large_brings_the_last_again(clock: VirtualClock) -> None:
    member = Member(MemoryTables(clock, max_message_size=1000), clock, keep)
    await member.serve()
    for number in range(10):
        await member.alarms.set(job(clock.now(), str(number)))
    await clock.advance(0.1)
    for number, firing in enumerate(member.fired):
        firing.ack(job(clock.now() + 3600, firing.alarm.key[1], bytes(2000) if number == 5 else b""))
    await clock.advance(REFUSED_PAUSE - 1)
    assert len(member.fired) == 10
    await clock.advance(2)
    assert [firing.alarm.key for firing in member.fired[10:]] == [member.fired[5].alarm.key]
    assert len((await member.alarms.scan(("job",), limit=100)).alarms) == 10
    await member.clocks.close()


# The table


class FailingTables(MemoryTables):
    """Tables that fail as often as they are told."""

    watches_end = 0
    watches_pause = 0.0
    reads_fail = 0

    def table(self, scope: str) -> MemoryTable:
        table = super().table(scope)
        if not isinstance(table, FailingTable):
            table.__class__ = FailingTable
            table.own = self  # type: ignore[attr-defined]
        return table


class FailingTable(MemoryTable):
    own: FailingTables

    async def watch(self, prefix: Key, **options: Any) -> AsyncGenerator[Entry | Gone | Current, None]:
        async for change in super().watch(prefix, **options):
            if self.own.watches_end and prefix[0] == "at":
                self.own.watches_end -= 1
                raise BrokerError("refused")
            if self.own.watches_pause:
                await self._clock.sleep(self.own.watches_pause)
            yield change

    async def get_many(self, keys: Sequence[Key]) -> list[Entry | None]:
        if self.own.reads_fail:
            self.own.reads_fail -= 1
            raise BrokerUnavailable("no answer came")
        return await super().get_many(keys)


async def test_nothing_is_forgotten_nor_handed_out_twice_when_a_watch_begins_anew(clock: VirtualClock) -> None:
    tables = FailingTables(clock)
    member = Member(tables, clock, keep)
    await member.serve()
    for number in range(10):
        await member.alarms.set(job(clock.now(), f"in hand {number}"))
        await member.alarms.set(job(clock.now() + 60, f"later {number}"))
    await clock.advance(1)
    tables.watches_end = 2
    await member.alarms.set(job(clock.now() + 1, "the one that ends it"))
    await clock.advance(10)
    assert len(member.fired) == 11
    await clock.advance(60)
    assert len(member.fired) == 21
    assert len({firing.alarm.key for firing in member.fired}) == 21


async def test_what_went_while_there_was_no_watch_is_not_remembered(clock: VirtualClock) -> None:
    tables = FailingTables(clock)
    member = Member(tables, clock, keep)
    await member.serve()
    for number in range(10):
        await member.alarms.set(job(clock.now() + 3600, str(number)))
    await clock.advance(1)
    assert len(member.subscription._agenda) == 10
    await member.alarms.cancel(("job", "1"))
    await clock.advance(1)
    assert len(member.subscription._agenda) == 9
    tables.watches_end = 1
    await member.alarms.cancel(("job", "2"))
    await clock.advance(0.1)
    await member.alarms.cancel(("job", "3"))
    await clock.advance(5)
    assert len(member.subscription._agenda) == 7
    await asyncio.gather(member.clocks.close(), clock.advance(TAKEOVER))


async def test_what_cannot_be_read_when_it_is_due_is_late(clock: VirtualClock) -> None:
    tables = FailingTables(clock)
    member = Member(tables, clock, lambda firing: firing.ack())
    await member.serve()
    tables.reads_fail = 3
    await member.alarms.set(job(clock.now()))
    await clock.advance(5)
    assert len(member.fired) == 1
    await member.clocks.close()


async def test_what_is_set_anew_in_the_moment_of_firing_waits(
    member: Callable[..., Member], clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = member()
    await first.serve()
    table = first.subscription._table
    get_many = table.get_many

    async def overtaken(keys: Sequence[Key]) -> list[Entry | None]:
        monkeypatch.undo()
        await first.alarms.set(job(clock.now() + 10, payload=b"new"))
        return await get_many(keys)

    monkeypatch.setattr(table, "get_many", overtaken)
    await first.alarms.set(job(clock.now() + 1, payload=b"old"))
    await clock.advance(10)
    assert not first.fired
    await clock.advance(2)
    assert first.payloads == [b"new"]


async def test_what_another_version_wrote_does_not_hold_up_the_rest(
    member: Callable[..., Member], tables: MemoryTables, clock: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    first = member()
    table = tables.table(addressing.alarms_scope("shop"))
    whole = Record(clock.now(), clock.now(), 0, {}, b"whole").encode()
    await table.commit([Put(key=entry_key(("job", "nonsense")), value=b"\xc1")])
    await table.commit([Put(key=entry_key(("job", "half")), value=whole[:15])])
    half = msgspec.msgpack.encode([clock.now(), "a due time", 0, {}, b""])
    await table.commit([Put(key=entry_key(("job", "half understood")), value=half)])
    longer = bytes([whole[0] + 1]) + whole[1:] + b"\x01"  # with one field more
    await table.commit([Put(key=entry_key(("job", "newer")), value=longer)])
    await first.serve()
    await first.alarms.set(job(clock.now(), payload=b"mine"))
    await clock.advance(3 * REFUSED_PAUSE)
    assert len(caplog.records) <= 12
    assert sorted(first.payloads) == [b"mine", b"whole"]
    assert (await first.alarms.scan(("job",), limit=10)).alarms == []
    with pytest.raises(BrokerError, match="job/nonsense cannot be read"):
        await first.alarms.get(("job", "nonsense"))


async def test_a_cancellation_that_others_are_ahead_of_is_one_of_what_they_set(
    clock: VirtualClock, tables: MemoryTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    alarms = TableAlarmClocks(tables, node="member", clock=clock).alarms("shop")
    table = tables.table(addressing.alarms_scope("shop"))
    first = await alarms.set(job(clock.now() + 1))
    commit = table.commit

    async def overtaken(changes: Any, checks: Any = ()) -> list[int]:
        monkeypatch.undo()
        await alarms.set(job(clock.now() + 2))
        return await commit(changes, checks)

    monkeypatch.setattr(table, "commit", overtaken)
    with pytest.raises(Conflict) as conflict:
        await alarms.cancel(NIGHTLY, expected=first)
    assert conflict.value.key == NIGHTLY
    monkeypatch.setattr(table, "commit", overtaken)
    assert await alarms.cancel(NIGHTLY)
    assert await alarms.get(NIGHTLY) is None
    await alarms.set(job(clock.now() + 1))
    with pytest.raises(Conflict) as conflict:
        await alarms.set(job(clock.now() + 1), expected=ABSENT)
    assert conflict.value.key == NIGHTLY


async def test_one_of_two_cancellations_at_once_is_told_that_it_was_set(
    clock: VirtualClock, tables: MemoryTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    alarms = TableAlarmClocks(tables, node="member", clock=clock).alarms("shop")
    table = tables.table(addressing.alarms_scope("shop"))
    await alarms.set(job(clock.now() + 1))
    commit = table.commit

    async def overtaken(changes: Any, checks: Any = ()) -> list[int]:
        monkeypatch.undo()
        assert await alarms.cancel(NIGHTLY)
        return await commit(changes, checks)

    monkeypatch.setattr(table, "commit", overtaken)
    assert not await alarms.cancel(NIGHTLY)


# What a member remembers


def test_an_agenda_is_in_the_order_of_time_whatever_is_set_and_cancelled() -> None:
    agenda, model, chance = Agenda(), dict[Key, Item](), Random(7)
    for revision in range(1, 20_000):
        key = ("at", "job", str(chance.randrange(500)))
        if chance.random() < 0.6:
            model[key] = Item(float(chance.randrange(1000)), revision, key)
            agenda.note(model[key])
        elif chance.random() < 0.9:
            model.pop(key, None)
            agenda.forget(key)
        else:
            now = float(chance.randrange(300))
            first = min(model.values(), default=None)
            wanted = first if first is not None and first.at <= now else None
            assert agenda.take(EVERYTHING, now) is wanted
            if wanted is not None:
                del model[wanted.key]
        assert len(agenda) == len(model)
    assert [agenda.take(EVERYTHING, inf) for _ in list(model)] == sorted(model.values())
    assert agenda.next(EVERYTHING) == inf


def test_an_agenda_gives_what_is_of_its_partitions() -> None:
    agenda = Agenda()
    items = [Item(float(number), number + 1, ("at", "job", str(number))) for number in range(100)]
    for item in items:
        agenda.note(item)
    mine = [item for item in items if partition_of(item.key) in (3, 4)]
    assert agenda.next([3, 4]) == mine[0].at
    assert [agenda.take([3, 4], inf) for _ in mine] == mine
    assert agenda.take([3, 4], inf) is None
    assert len(agenda) == 100 - len(mine)


def test_an_agenda_does_not_grow_with_what_comes_and_goes() -> None:
    agenda = Agenda()
    for number in range(100):  # nothing behind these comes to the top
        agenda.note(Item(1.0, 1, ("at", "job", f"first {number}")))
    for number in range(20_000):
        agenda.note(Item(1e9 + number, number + 1, ("at", "job", str(number % 10))))
        agenda.note(Item(1e9 + number, number + 1, ("at", "job", f"once {number}")))
        agenda.forget(("at", "job", f"once {number}"))
        agenda.note(Item(0.0, number + 1, ("at", "job", f"due {number}")))
        assert agenda.take(EVERYTHING, 0.0) is not None
    assert len(agenda) == 110
    assert sum(map(len, agenda._heaps)) < 400


def test_an_agenda_takes_back_what_was_not_set_since() -> None:
    agenda = Agenda()
    old, new = Item(1.0, 1, ("at", "job", "a")), Item(5.0, 2, ("at", "job", "a"))
    agenda.note(old)
    assert agenda.take(EVERYTHING, 1.0) is old
    agenda.put_back(old)
    assert agenda.take(EVERYTHING, 1.0) is old
    agenda.note(new)
    agenda.put_back(old)
    assert agenda.take(EVERYTHING, 1.0) is None
    assert agenda.take(EVERYTHING, 5.0) is new


def test_all_members_and_versions_agree_about_partitions() -> None:
    assert [partition_of(entry_key(("job", name))) for name in ("nightly", "a", "ü")] == [11, 4, 1]
