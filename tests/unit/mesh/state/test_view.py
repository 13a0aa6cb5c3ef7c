from __future__ import annotations

import asyncio
import time
import tracemalloc
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from math import inf
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from brokers.memory_tables import MemoryTable, MemoryTables
from mesh.errors import BrokerUnavailable
from mesh.ports.tables import (
    ABSENT,
    Change,
    Check,
    Conflict,
    Current,
    Delete,
    Entry,
    Gone,
    HistoryNotKept,
    Key,
    Page,
    Put,
    TableFeature,
)
from mesh.state.view import IDLE_LIMIT, IDLE_LOOKS, IN_VAIN, MEND_LIMIT, RETRY_PAUSE, LocalView
from tests.virtual_clock import VirtualClock

A: Key = ("state", "a")
B: Key = ("state", "b")
PREFIX: Key = ("state",)


class FarTable:
    """A table behind a network: each request, answer and change that a watch shows arrives when `arrive` lets it.

    Until `slow`, they arrive at once. `reads` counts what was asked of the broker.
    """

    features: frozenset[TableFeature] = MemoryTable.features

    def __init__(self, table: MemoryTable) -> None:
        self.table = table
        self.slow = False
        self.travelling: list[asyncio.Future[None]] = []
        self.reads = 0
        self.watches = 0
        self._lost: asyncio.Event = asyncio.Event()
        self.on_lost: Callable[[], None] = lambda: None
        self._mended: asyncio.Event = asyncio.Event()

    async def travel(self) -> None:
        if self.slow:
            arrival: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.travelling.append(arrival)
            await arrival

    def arrive(self, number: int = 0) -> None:
        arrival = self.travelling.pop(number % len(self.travelling))
        if not arrival.done():
            arrival.set_result(None)

    def lose_watches(self) -> None:
        self._lost.set()
        self._lost = asyncio.Event()

    def mend_watches(self) -> None:
        """They are current again, as after a loss."""
        self._mended.set()
        self._mended = asyncio.Event()

    async def get(self, key: Key) -> Entry | None:
        [entry] = await self.get_many([key])
        return entry

    async def get_many(self, keys: Sequence[Key]) -> list[Entry | None]:
        self.reads += len(keys)
        await self.travel()
        entries = await self.table.get_many(keys)
        await self.travel()
        return entries

    async def commit(self, changes: Sequence[Change], checks: Sequence[Check] = ()) -> list[int]:
        await self.travel()
        revisions = await self.table.commit(changes, checks)
        await self.travel()
        return revisions

    async def watch(
        self, prefix: Key, *, after: int | None = None, lost: Callable[[], None] | None = None
    ) -> AsyncGenerator[Entry | Gone | Current, None]:
        self.watches += 1
        self.on_lost = lost or self.on_lost
        failure = asyncio.ensure_future(self._lost.wait())
        change: asyncio.Future[Entry | Gone | Current] | None = None
        watch = self.table.watch(prefix, after=after)
        try:
            await self.travel()
            while True:
                change = change or asyncio.ensure_future(anext(watch))
                mended = asyncio.ensure_future(self._mended.wait())
                try:
                    await asyncio.wait([change, failure, mended], return_when=asyncio.FIRST_COMPLETED)
                finally:
                    is_mended = not mended.cancel()
                if failure.done():
                    raise BrokerUnavailable("the connection was lost")
                await self.travel()
                if is_mended:
                    yield Current(0)
                else:
                    yield change.result()
                    change = None
        finally:
            failure.cancel()
            if change is not None and not change.done():
                change.cancel()
                await asyncio.wait([change])
            await watch.aclose()

    async def scan(self, prefix: Key, *, starts_with: str = "", limit: int, cursor: str | None = None) -> Page:
        return await self.table.scan(prefix, starts_with=starts_with, limit=limit, cursor=cursor)

    async def keep_history(self, prefix: Key, revisions: int) -> None:
        raise HistoryNotKept

    async def history(self, key: Key, *, limit: int) -> list[Entry | Gone]:
        raise HistoryNotKept

    async def as_of(self, key: Key, *, revision: int | None = None, time: float | None = None) -> Entry | None:
        raise HistoryNotKept


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def far(clock: VirtualClock) -> FarTable:
    return FarTable(MemoryTables(clock).table("orders"))


@pytest.fixture
async def view(far: FarTable, clock: VirtualClock) -> AsyncGenerator[LocalView, None]:
    view = LocalView(far, PREFIX, clock)
    yield view
    await view.close()
    assert len(asyncio.all_tasks()) == 1


async def put(table: FarTable | MemoryTable | LocalView, key: Key, value: bytes, ttl: float | None = None) -> int:
    [revision] = await table.commit([Put(key=key, value=value, ttl=ttl)])
    return revision


async def value_of(view: LocalView, key: Key) -> bytes | None:
    entry = await view.get(key)
    return None if entry is None else entry.value


async def warm(view: LocalView, clock: VirtualClock) -> None:
    """Let the view's watch become current."""
    await view.get(("state", "warm"))
    await clock.settle()


async def test_a_key_that_was_read_is_in_memory(view: LocalView, far: FarTable, clock: VirtualClock) -> None:
    await put(far, A, b"1")
    await warm(view, clock)
    first = await view.get(A)
    reads = far.reads
    assert await view.get(A) == first == await far.table.get(A)
    assert await view.get_many([A, A]) == [first, first]
    assert far.reads == reads


async def test_what_is_absent_is_in_memory_too(view: LocalView, far: FarTable, clock: VirtualClock) -> None:
    await warm(view, clock)
    assert await view.get(A) is None
    reads = far.reads
    assert await view.get(A) is None
    assert await view.get_many([A]) == [None]
    assert far.reads == reads
    await put(far, A, b"1")
    await clock.settle()
    assert await value_of(view, A) == b"1"


async def test_reads_go_to_the_broker_until_the_watch_is_current(
    view: LocalView, far: FarTable, clock: VirtualClock
) -> None:
    await put(far, A, b"1")
    for _ in range(2):
        reads = far.reads
        assert await value_of(view, A) == b"1"
        assert far.reads == reads + 1
    assert far.watches <= 1


async def test_changes_of_others_arrive_by_the_watch(view: LocalView, far: FarTable, clock: VirtualClock) -> None:
    await put(far, A, b"1")
    await warm(view, clock)
    await view.get(A)
    reads = far.reads
    await put(far, A, b"2")
    await clock.settle()
    assert await value_of(view, A) == b"2"
    await far.commit([Delete(key=A)])
    await clock.settle()
    assert await value_of(view, A) is None
    assert far.reads == reads


async def test_own_writes_are_seen_at_once(view: LocalView, far: FarTable, clock: VirtualClock) -> None:
    await warm(view, clock)
    far.slow = True  # no change arrives by the watch
    for value in (b"1", b"2"):
        commit = asyncio.ensure_future(
            view.commit([Put(key=A, value=value, content_type="text/plain", ttl=50), Put(key=B, value=value)])
        )
        while not commit.done():
            await clock.settle()
            far.arrive(-1)  # the commit's own
            await clock.settle()
        reads = far.reads
        entry = await view.get(A)
        assert entry == await far.table.get(A)
        assert await value_of(view, B) == value
        assert far.reads == reads
    far.slow = False
    await view.commit([Delete(key=A)])
    assert await view.get(A) is None


async def test_memory_is_shown_for_a_while_when_the_watch_is_lost(
    view: LocalView, far: FarTable, clock: VirtualClock
) -> None:
    await put(far, A, b"1")
    await warm(view, clock)
    await view.get(A)
    reads = far.reads
    far.on_lost()
    await put(far.table, A, b"2")
    far.slow = True  # nobody hears of it
    await clock.advance(MEND_LIMIT - 0.1)
    assert await value_of(view, A) == b"1"
    assert far.reads == reads
    await clock.advance(0.2)
    far.slow = False
    for _ in range(2):
        assert await value_of(view, A) == b"2"
    assert far.reads == reads + 2
    far.arrive()
    await clock.settle()
    far.mend_watches()
    await clock.settle()
    for _ in range(2):
        assert await value_of(view, A) == b"2"
    assert far.reads == reads + 3
    assert far.watches == 1


async def test_a_watch_that_is_mended_in_time_costs_nothing_more(
    view: LocalView, far: FarTable, clock: VirtualClock
) -> None:
    await warm(view, clock)
    far.on_lost()
    far.mend_watches()
    await clock.settle()
    await view.get(A)
    reads = far.reads
    await clock.advance(2 * MEND_LIMIT)
    assert await view.get(A) is None
    assert far.reads == reads


async def test_a_view_lets_go_while_far_more_is_written_than_read(
    view: LocalView, far: FarTable, clock: VirtualClock
) -> None:
    await warm(view, clock)
    for _ in range(IN_VAIN + 20):
        await put(far, B, b"1")
        await clock.settle()
    await clock.advance(IDLE_LIMIT / IDLE_LOOKS)
    await put(far, A, b"1")
    reads = far.reads
    for _ in range(2):
        assert await value_of(view, A) == b"1"
    assert (far.reads, far.watches) == (reads + 2, 1)
    await clock.advance(IDLE_LIMIT)
    await warm(view, clock)
    await view.get(A)
    for _ in range(IN_VAIN // 2):
        await put(far, A, b"2")
        await clock.settle()
        assert await value_of(view, A) == b"2"
    await clock.advance(IDLE_LIMIT / IDLE_LOOKS)
    reads = far.reads
    assert await value_of(view, A) == b"2"
    assert (far.reads, far.watches) == (reads, 2)


async def test_a_strong_read_asks_the_broker(view: LocalView, far: FarTable, clock: VirtualClock) -> None:
    await put(far, A, b"1")
    await warm(view, clock)
    await view.get(A)
    await put(far.table, A, b"2")  # not yet seen by the watch
    entry = await view.get(A, strong=True)
    assert entry is not None
    assert entry.value == b"2"
    assert await value_of(view, A) == b"2"
    await far.table.commit([Delete(key=A)])
    assert await view.get_many([A, B], strong=True) == [None, None]
    assert await value_of(view, A) is None


async def test_an_expired_entry_is_not_shown(view: LocalView, far: FarTable, clock: VirtualClock) -> None:
    await warm(view, clock)
    await put(view, A, b"1", ttl=5)
    await put(far, B, b"1", ttl=5)
    assert await value_of(view, B) == b"1"
    far.slow = True  # the watch does not say so
    await clock.advance(4.9)
    assert await value_of(view, A) == await value_of(view, B) == b"1"
    await clock.advance(0.2)
    far.slow = False
    reads = far.reads
    assert await view.get(A) is None
    assert await view.get_many([A, B]) == [None, None]
    assert far.reads > reads


async def test_a_conflict_makes_the_next_read_fresh(view: LocalView, far: FarTable, clock: VirtualClock) -> None:
    first = await put(far, A, b"1")
    await warm(view, clock)
    await view.get(A)
    far.slow = True  # the watch
    second = await put(far.table, A, b"2")
    far.slow = False
    for checks in ([], [Check(A, first)]):
        changes = [Put(key=B, value=b"x")] if checks else [Put(key=A, value=b"x", expected=first)]
        with pytest.raises(Conflict):
            await view.commit(changes, checks)
    entry = await view.get(A)
    assert entry is not None
    assert entry.revision == second
    await view.commit([Put(key=A, value=b"3", expected=second)])


async def test_a_commit_whose_outcome_is_unknown_leaves_nothing_in_memory(
    view: LocalView, far: FarTable, clock: VirtualClock
) -> None:
    await put(far, A, b"1")
    await warm(view, clock)
    await view.get(A)
    far.slow = True
    commit = asyncio.ensure_future(view.commit([Put(key=A, value=b"2")]))
    await clock.settle()
    far.arrive()  # the request; the answer does not
    await clock.settle()
    commit.cancel()
    await asyncio.gather(commit, return_exceptions=True)
    far.slow = False
    assert await value_of(view, A) == b"2"


async def test_an_answer_that_was_overtaken_by_a_change_is_not_kept(
    view: LocalView, far: FarTable, clock: VirtualClock
) -> None:
    await put(far, A, b"1")
    await warm(view, clock)
    far.slow = True
    read = asyncio.ensure_future(view.get(A))
    await clock.settle()
    far.arrive()  # the request
    await clock.settle()
    await put(far.table, A, b"2")
    await clock.settle()
    far.arrive(1)  # the change, by the watch
    await clock.settle()
    far.arrive()  # the answer
    await read
    far.slow = False
    assert await value_of(view, A) == b"2"


async def test_an_absence_is_not_followed_by_what_came_before_it(
    view: LocalView, far: FarTable, clock: VirtualClock
) -> None:
    await warm(view, clock)
    far.slow = True
    await put(far.table, A, b"1")
    await clock.settle()  # the watch takes the change before it can be left out
    await far.table.commit([Delete(key=A)])
    read = asyncio.ensure_future(view.get(A))
    for _ in range(2):
        await clock.settle()
        far.arrive(1)  # request and answer overtake the change
    assert await read is None
    far.arrive()  # the change; that the key is gone again is still on its way
    await clock.settle()
    read = asyncio.ensure_future(view.get(A))
    await clock.settle()
    far.slow = False
    far.arrive(-1)
    assert await read is None


async def test_an_answer_from_before_the_watch_was_lost_is_not_kept(
    view: LocalView, far: FarTable, clock: VirtualClock
) -> None:
    await put(far, A, b"1")
    await warm(view, clock)
    far.slow = True
    read = asyncio.ensure_future(view.get(A))
    await clock.settle()
    far.arrive()  # the request; the answer takes its time
    await clock.settle()
    far.slow = False
    far.lose_watches()
    await clock.settle()
    await put(far.table, A, b"2")
    await clock.advance(RETRY_PAUSE)
    await warm(view, clock)  # a new watch, which knows nothing of that change
    assert far.watches == 2
    far.arrive()
    await read
    assert await value_of(view, A) == b"2"


async def test_memory_is_bounded(far: FarTable, clock: VirtualClock) -> None:
    view = LocalView(far, PREFIX, clock, max_bytes=20_000)
    keys = [("state", str(number)) for number in range(200)]
    await far.commit([Put(key=key, value=b"x" * 1000) for key in keys])
    await warm(view, clock)
    for key in keys:
        assert await view.get(key) is not None
        assert await view.get(("state", "none", key[1])) is None
        assert await view.get(keys[0]) is not None  # in use all the time
    reads = far.reads
    await view.get(keys[0])
    await view.get(keys[-1])
    assert far.reads == reads
    await view.get(keys[1])
    assert far.reads == reads + 1
    await put(view, A, b"x" * 30_000)  # larger than all memory
    assert await value_of(view, A) == b"x" * 30_000
    assert view._bytes <= 20_000
    for key in keys:  # and growing entries
        await put(far, key, b"y" * 5000)
        await clock.settle()
        assert await value_of(view, key) == b"y" * 5000
    assert 0 <= view._bytes <= 20_000
    await view.close()
    assert view._bytes == 0


async def test_what_is_kept_takes_no_more_memory_than_counted() -> None:
    clock = VirtualClock()
    table = MemoryTables(clock).table("orders")
    view = LocalView(table, PREFIX, clock, max_bytes=4 << 20)
    await warm(view, clock)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for number in range(20_000):
        view._keep(
            Entry(
                key=("state", "statestore", f"order-{number:08}"),
                value=b"%200d" % number,
                revision=number + 1000,
                time=number + 1e9,
                expires=number + 2e9,
                content_type="application/json",
            )
        )
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 2 << 20 < after - before <= 4 << 20
    await view.close()


async def test_an_idle_view_lets_go(view: LocalView, far: FarTable, clock: VirtualClock) -> None:
    await put(far, A, b"1")
    assert far.watches == 0  # nor does it begin before it is needed
    await warm(view, clock)
    await view.get(A)
    for _ in range(5):
        await clock.advance(IDLE_LIMIT - 1)
        reads = far.reads
        await view.get(A)
        assert far.reads == reads
    await clock.advance(IDLE_LIMIT * (1 + 1 / IDLE_LOOKS))
    assert len(asyncio.all_tasks()) == 1
    assert view._bytes == 0
    reads = far.reads
    await put(far, A, b"2")
    assert await value_of(view, A) == b"2"
    assert far.reads == reads + 1
    await clock.settle()
    await view.get(A)
    await view.get(A)
    assert (far.reads, far.watches) == (reads + 2, 2)


async def test_a_lost_watch_is_taken_up_again(view: LocalView, far: FarTable, clock: VirtualClock) -> None:
    await put(far, A, b"1")
    await warm(view, clock)
    await view.get(A)
    far.lose_watches()
    await clock.settle()
    await put(far, A, b"2")
    for _ in range(2):
        assert await value_of(view, A) == b"2"
    assert far.watches == 1
    await clock.advance(RETRY_PAUSE)
    await warm(view, clock)
    await view.get(A)
    reads = far.reads
    assert await value_of(view, A) == b"2"
    assert (far.reads, far.watches) == (reads, 2)


async def test_keys_elsewhere_are_not_kept(view: LocalView, far: FarTable, clock: VirtualClock) -> None:
    await warm(view, clock)
    await put(view, ("lease", "a"), b"1")
    await put(far, ("lease", "a"), b"2")
    assert await value_of(view, ("lease", "a")) == b"2"
    await put(far, ("lease", "a"), b"3")
    assert await value_of(view, ("lease", "a")) == b"3"


async def test_a_closed_view_reads_through(far: FarTable, clock: VirtualClock) -> None:
    view = LocalView(far, PREFIX, clock)
    await warm(view, clock)
    await put(view, A, b"1")
    await view.close()
    assert len(asyncio.all_tasks()) == 1
    reads = far.reads
    assert await value_of(view, A) == await value_of(view, A) == b"1"
    assert far.reads == reads + 2
    await view.close()


# What the view promises under every order of events

KEYS = [A, B]
Action = tuple[str, int]

actions = st.lists(
    st.tuples(
        st.sampled_from(
            [
                *(["arrive"] * 6), *(["get"] * 3), "strong", "get_many", "put", "put", "delete", "create", "batch",
                "others put", "others put", "others delete", "put ttl", "time", "lose", "cancel",
            ]
        ),
        st.integers(0, 9),
    ),
    min_size=20,  # for what takes many steps is what is looked for
    max_size=60,
)  # fmt: skip


class Witness:
    """Watches over the promise: no read shows less than what was known when it began."""

    def __init__(self, table: MemoryTable) -> None:
        self._table = table
        self._known = dict.fromkeys(KEYS, 0)
        self._shown: list[tuple[Key, int, Entry | None, dict[Key, int]]] = []

    async def read(self, read: Coroutine[Any, Any, list[Entry | None]], keys: list[Key]) -> None:
        known = dict(self._known)
        for key, entry in zip(keys, await read, strict=True):
            start = await self._check(key, entry, known[key])
            self._known[key] = max(self._known[key], start)

    async def commit(self, commit: Coroutine[Any, Any, list[int]], keys: list[Key]) -> None:
        try:
            revisions = await commit
        except Conflict:
            return
        for key, revision in zip(keys, revisions, strict=True):
            self._known[key] = max(self._known[key], revision)

    async def _check(self, key: Key, entry: Entry | None, known: int) -> int:
        """The first revision at which the key was so, and was not known to be otherwise later."""
        changes = [*reversed(await self._table.history(key, limit=1000))]
        states: list[tuple[int, Entry | None]] = [(0, None)]
        states += [(change.revision, change if isinstance(change, Entry) else None) for change in changes]
        ends = [start for start, _ in states[1:]] + [1 << 60]
        for (start, state), end in zip(states, ends, strict=True):
            if end > known and (state.revision if state else None) == (entry.revision if entry else None):
                assert entry is None or (state is not None and entry.value == state.value)
                return start
        raise AssertionError(f"{key} was shown as {entry} when {known} was known: {changes}")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(actions=actions, max_bytes=st.sampled_from([0, 700, 1 << 20]))
def test_a_view_never_goes_back(actions: list[Action], max_bytes: int) -> None:
    asyncio.run(never_goes_back(actions, max_bytes))


async def never_goes_back(actions: list[Action], max_bytes: int) -> None:
    clock = VirtualClock()
    far = FarTable(MemoryTables(clock).table("orders"))
    await far.table.keep_history((), 64)
    view = LocalView(far, PREFIX, clock, max_bytes=max_bytes)
    witness = Witness(far.table)
    await warm(view, clock)
    far.slow = True
    tasks: list[asyncio.Task[None]] = []
    values = iter(range(1000))

    def start(operation: Coroutine[Any, Any, None]) -> None:
        tasks.append(asyncio.ensure_future(operation))

    def put_of(key: Key, ttl: float | None = None, expected: int | None = None) -> Put:
        return Put(key=key, value=b"%d" % next(values), ttl=ttl, expected=expected)

    for action, number in actions:
        key = KEYS[number % 2]
        match action:
            case "arrive" if far.travelling:
                far.arrive(number)
            case "get" | "strong":
                start(witness.read(listed(view.get(key, strong=action == "strong")), [key]))
            case "get_many":
                start(witness.read(view.get_many(KEYS), KEYS))
            case "put":
                start(witness.commit(view.commit([put_of(key)]), [key]))
            case "put ttl":
                start(witness.commit(view.commit([put_of(key, ttl=1 + number)]), [key]))
            case "create":
                start(witness.commit(view.commit([put_of(key, expected=ABSENT)]), [key]))
            case "delete":
                start(witness.commit(view.commit([Delete(key=key)]), [key]))
            case "batch":
                start(witness.commit(view.commit([put_of(A), Delete(key=B)]), KEYS))
            case "others put":
                await far.table.commit([put_of(key)])
            case "others delete":
                await far.table.commit([Delete(key=key)])
            case "time":
                await clock.advance(number)
            case "lose":
                far.lose_watches()
            case "cancel" if tasks:
                tasks[number % len(tasks)].cancel()
        await clock.settle()
        for key in KEYS:
            kept = view._kept.get(key)
            if isinstance(kept, Gone) or (kept and (kept.expires or inf) > clock.now()):
                # Whatever would be shown from memory now must be fit to be shown.
                await witness.read(view.get_many([key]), [key])
    far.slow = False
    while far.travelling:
        far.arrive()
        await clock.settle()
    for outcome in await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 30):
        if isinstance(outcome, Exception):
            raise outcome
    for key in KEYS:  # nothing stale stays
        # A view knows about its own writes when they were answered, and not when they were stored.
        kept, stored = await view.get(key), await far.table.get(key)
        assert (kept and (kept.revision, kept.value)) == (stored and (stored.revision, stored.value))
    await view.close()


async def listed(read: Coroutine[Any, Any, Entry | None]) -> list[Entry | None]:
    return [await read]


# Speed


@pytest.mark.quiet
async def test_a_read_from_memory_costs_next_to_nothing(view: LocalView, far: FarTable, clock: VirtualClock) -> None:
    await warm(view, clock)
    await put(view, A, b"1")

    async def nothing(key: Key) -> None:
        pass

    async def seconds(read: Callable[[Key], Coroutine[Any, Any, object]]) -> float:
        best = 1.0
        for _ in range(20):
            start = time.perf_counter()
            for _ in range(5000):
                await read(A)
            best = min(best, (time.perf_counter() - start) / 5000)
        return best

    assert await seconds(view.get) - await seconds(nothing) < 1e-6
