"""What the Scheduler promises, on every implementation of `Alarms`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from itertools import count

import pytest

from mesh.scheduling.recurrence import parse_recurrence
from mesh.scheduling.scheduler import AlreadyScheduled, Schedule, Scheduler, Tick
from tests.contract.alarms import BACKINGS, Backing, Inbox

NIGHTLY = ("job", "nightly")
EVERY_SECOND = parse_recurrence("@every 1s")

namespaces = (f"schedules{number}" for number in count(1))

Member = Callable[[], Awaitable[Scheduler]]


@pytest.fixture(scope="module", params=BACKINGS, ids=lambda backing: backing.name)
def backing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backing]:
    started = request.param()
    started.start(tmp_path_factory.mktemp(started.name))
    yield started
    started.stop()


@pytest.fixture
async def member(backing: Backing) -> AsyncIterator[Member]:
    """Makes the schedulers of members of one app."""
    namespace = next(namespaces)
    async with AsyncExitStack() as stack:

        async def member() -> Scheduler:
            clocks = await backing.member(namespace)
            stack.push_async_callback(clocks.close)
            return Scheduler(clocks.alarms("shop"), backing.clock)

        yield member


@pytest.fixture
async def scheduler(member: Member) -> Scheduler:
    return await member()


@pytest.fixture
def inbox(backing: Backing) -> Callable[..., Inbox[Tick]]:
    return lambda settle=None: Inbox(backing, settle or (lambda tick: tick.done()))


@pytest.fixture
def now(backing: Backing) -> Callable[[], float]:
    return backing.clock.now


def keep(tick: Tick) -> None:
    """Leave it unsettled."""


async def test_a_schedule_without_a_recurrence_fires_once(
    scheduler: Scheduler, inbox: Callable[..., Inbox[Tick]], backing: Backing, now: Callable[[], float]
) -> None:
    ticks = inbox()
    await scheduler.serve("job", ticks, concurrency=5)
    first = now() + 0.4
    due = await scheduler.schedule(NIGHTLY, Schedule(first=first), b"data", notes={"trace": "x"}, overwrite=False)
    (tick,) = await ticks.reaches(1)
    assert (tick.key, tick.payload, tick.notes, tick.due, tick.number) == (NIGHTLY, b"data", {"trace": "x"}, due, 1)
    assert 0 <= ticks.times[0] - first <= backing.resolution
    await backing.elapse(0.5)
    assert len(ticks.items) == 1
    assert await scheduler.get(NIGHTLY) is None


async def test_a_series_keeps_time_and_ends_after_its_repeats(
    scheduler: Scheduler, inbox: Callable[..., Inbox[Tick]], backing: Backing, now: Callable[[], float]
) -> None:
    ticks = inbox()
    await scheduler.serve("job", ticks, concurrency=5)
    began = now()
    await scheduler.schedule(NIGHTLY, Schedule(recurrence=EVERY_SECOND, repeats=3), overwrite=False)
    await ticks.reaches(3)
    assert [tick.number for tick in ticks.items] == [1, 2, 3]
    assert [tick.due for tick in ticks.items] == pytest.approx([began + 1, began + 2, began + 3], abs=0.05)
    assert all(0 <= seen - tick.due <= backing.resolution for seen, tick in zip(ticks.times, ticks.items, strict=True))
    await backing.elapse(1.5)
    assert len(ticks.items) == 3
    assert await scheduler.get(NIGHTLY) is None


async def test_the_first_time_may_differ_and_the_series_counts_from_it(
    scheduler: Scheduler, inbox: Callable[..., Inbox[Tick]], now: Callable[[], float]
) -> None:
    ticks = inbox()
    await scheduler.serve("job", ticks, concurrency=5)
    first = now() + 0.3
    await scheduler.schedule(NIGHTLY, Schedule(first=first, recurrence=EVERY_SECOND, repeats=2), overwrite=False)
    await ticks.reaches(2)
    assert [tick.due for tick in ticks.items] == [first, first + 1]


async def test_no_tick_is_later_than_the_end(
    scheduler: Scheduler, inbox: Callable[..., Inbox[Tick]], backing: Backing, now: Callable[[], float]
) -> None:
    ticks = inbox()
    await scheduler.serve("job", ticks, concurrency=5)
    first = now()
    await scheduler.schedule(NIGHTLY, Schedule(first=first, recurrence=EVERY_SECOND, until=first + 1), overwrite=False)
    await ticks.reaches(2)
    await backing.elapse(1.5)
    assert [tick.due for tick in ticks.items] == [first, first + 1]
    assert await scheduler.get(NIGHTLY) is None


async def test_missed_ticks_are_one_and_keep_the_phase(
    scheduler: Scheduler, inbox: Callable[..., Inbox[Tick]], backing: Backing, now: Callable[[], float]
) -> None:
    first = now() - 1000.5
    await scheduler.schedule(NIGHTLY, Schedule(first=first, recurrence=EVERY_SECOND, repeats=3), overwrite=False)
    await backing.elapse(1)
    ticks = inbox()
    await scheduler.serve("job", ticks, concurrency=5)
    await ticks.reaches(3)
    assert [tick.number for tick in ticks.items] == [1, 2, 3]
    assert ticks.items[0].due == first
    assert 0 < ticks.items[1].due - ticks.times[0] < 2
    assert (ticks.items[1].due - first) % 1 == pytest.approx(0, abs=1e-6)
    assert ticks.items[2].due == pytest.approx(ticks.items[1].due + 1)


async def test_a_tick_that_failed_comes_again_and_the_series_waits_for_it(
    scheduler: Scheduler, inbox: Callable[..., Inbox[Tick]], now: Callable[[], float]
) -> None:
    ticks = inbox(lambda tick: tick.retry(0.6) if tick.number == 1 and tick.attempt < 3 else tick.done())
    await scheduler.serve("job", ticks, concurrency=5)
    await scheduler.schedule(NIGHTLY, Schedule(first=now(), recurrence=EVERY_SECOND, repeats=2), overwrite=False)
    await ticks.reaches(4)
    assert [(tick.number, tick.attempt) for tick in ticks.items] == [(1, 1), (1, 2), (1, 3), (2, 1)]
    assert ticks.items[3].due >= ticks.times[2]


async def test_a_released_tick_comes_again_and_was_no_attempt(
    backing: Backing, scheduler: Scheduler, inbox: Callable[..., Inbox[Tick]]
) -> None:
    turns: list[Callable[[Tick], None]] = [
        Tick.release,
        lambda tick: tick.retry(0.1),
        Tick.release,
        Tick.done,
        Tick.done,
    ]
    ticks = inbox(lambda tick: turns.pop(0)(tick))
    await scheduler.serve("job", ticks, concurrency=4)
    first = backing.clock.now() + 0.2
    await scheduler.schedule(NIGHTLY, Schedule(first=first, recurrence=EVERY_SECOND, repeats=2), overwrite=False)
    await ticks.reaches(5, within=20)
    assert [(tick.number, tick.attempt) for tick in ticks.items] == [(1, 1), (1, 1), (1, 2), (1, 2), (2, 1)]
    assert {tick.due for tick in ticks.items[:4]} == {first}
    await backing.elapse(0.2)
    assert await scheduler.get(NIGHTLY) is None


async def test_ticks_of_one_schedule_are_never_side_by_side(
    scheduler: Scheduler, inbox: Callable[..., Inbox[Tick]], backing: Backing, now: Callable[[], float]
) -> None:
    ticks = inbox(keep)
    await scheduler.serve("job", ticks, concurrency=5)
    await scheduler.schedule(NIGHTLY, Schedule(first=now(), recurrence=EVERY_SECOND), overwrite=False)
    (tick,) = await ticks.reaches(1)
    await backing.elapse(2.2)
    assert len(ticks.items) == 1
    tick.done()
    await ticks.reaches(2)
    assert ticks.items[1].number == 2


async def test_a_schedule_is_there_until_its_last_tick_is_settled(
    scheduler: Scheduler, inbox: Callable[..., Inbox[Tick]], backing: Backing, now: Callable[[], float]
) -> None:
    rule = Schedule(first=now() + 0.2, recurrence=EVERY_SECOND, repeats=2, until=now() + 1000)
    await scheduler.schedule(NIGHTLY, rule, b"data", notes={"a": "b"}, overwrite=False)
    found = await scheduler.get(NIGHTLY)
    assert found is not None
    assert (found.key, found.schedule, found.payload, found.notes) == (NIGHTLY, rule, b"data", {"a": "b"})
    assert (found.due, found.number) == (rule.first, 1)
    await backing.elapse(0.9)  # it is due, and nobody is there
    with pytest.raises(AlreadyScheduled, match="job/nightly"):
        await scheduler.schedule(NIGHTLY, rule, overwrite=False)
    ticks = inbox(keep)
    await scheduler.serve("job", ticks, concurrency=5)
    (tick,) = await ticks.reaches(1)
    assert (await scheduler.get(NIGHTLY)) is not None
    tick.done()
    await ticks.reaches(2)
    found = await scheduler.get(NIGHTLY)
    assert found is not None
    assert (found.schedule, found.number) == (rule, 2)
    ticks.items[1].done()
    await backing.elapse(0.3)
    assert await scheduler.get(NIGHTLY) is None


async def test_overwriting_starts_anew(
    scheduler: Scheduler, inbox: Callable[..., Inbox[Tick]], backing: Backing, now: Callable[[], float]
) -> None:
    ticks = inbox(keep)
    await scheduler.serve("job", ticks, concurrency=5)
    await scheduler.schedule(NIGHTLY, Schedule(first=now(), recurrence=EVERY_SECOND), b"old", overwrite=False)
    (old,) = await ticks.reaches(1)
    again = Schedule(recurrence=EVERY_SECOND, repeats=7)
    await scheduler.schedule(NIGHTLY, again, b"new", overwrite=True)
    old.done()  # the old series must not go on over the new one
    await ticks.reaches(2)
    assert (ticks.items[1].payload, ticks.items[1].number) == (b"new", 1)
    await backing.elapse(0.3)
    assert len(ticks.items) == 2


async def test_a_series_that_is_cancelled_while_its_tick_is_handled_ends(
    scheduler: Scheduler, inbox: Callable[..., Inbox[Tick]], backing: Backing, now: Callable[[], float]
) -> None:
    ticks = inbox(keep)
    await scheduler.serve("job", ticks, concurrency=5)
    await scheduler.schedule(NIGHTLY, Schedule(first=now(), recurrence=EVERY_SECOND), overwrite=False)
    (tick,) = await ticks.reaches(1)
    assert await scheduler.cancel(NIGHTLY)
    tick.done()
    await backing.elapse(1.6)
    assert len(ticks.items) == 1
    assert await scheduler.get(NIGHTLY) is None
    await scheduler.schedule(NIGHTLY, Schedule(first=now() + 1000), overwrite=False)
    assert await scheduler.cancel(NIGHTLY)
    assert not await scheduler.cancel(NIGHTLY)


async def test_a_series_of_every_second_can_be_overwritten_and_cancelled(
    scheduler: Scheduler, inbox: Callable[..., Inbox[Tick]], backing: Backing, now: Callable[[], float]
) -> None:
    """Though it is always about to fire."""
    ticks = inbox()
    await scheduler.serve("job", ticks, concurrency=5)
    first = now()
    await scheduler.schedule(NIGHTLY, Schedule(first=first, recurrence=EVERY_SECOND), b"old", overwrite=False)
    await ticks.reaches(2)
    await scheduler.schedule(NIGHTLY, Schedule(first=first, recurrence=EVERY_SECOND), b"new", overwrite=True)
    seen = len(ticks.items)
    await ticks.reaches(seen + 2)
    assert {tick.payload for tick in ticks.items[seen + 1 :]} == {b"new"}
    assert await scheduler.cancel(NIGHTLY)
    seen = len(ticks.items)
    await backing.elapse(1.5)
    assert len(ticks.items) <= seen + 1
    assert await scheduler.get(NIGHTLY) is None


async def test_a_scan_lists_schedules(scheduler: Scheduler, now: Callable[[], float]) -> None:
    for name in "abc":
        await scheduler.schedule(("reminder", "cart", name), Schedule(first=now() + 99), overwrite=True)
    await scheduler.schedule(("reminder", "dog", "d"), Schedule(first=now() + 99), overwrite=True)
    page = await scheduler.scan(("reminder", "cart"), limit=10)
    assert sorted(found.key[2] for found in page.schedules) == ["a", "b", "c"]
    assert page.cursor is None


@pytest.mark.parametrize(
    ("schedule", "reason"),
    [
        (Schedule(), "first time or a recurrence"),
        (Schedule(first=5.0, repeats=0), "once at least"),
        (Schedule(first=5.0, repeats=2), "without a recurrence"),
        (Schedule(recurrence=parse_recurrence("@every 999ms")), "every 1 s at most"),
        (Schedule(recurrence=EVERY_SECOND, until=5.0), "ends before"),
        (Schedule(first=5.0, until=4.0), "ends before"),
        (Schedule(recurrence=parse_recurrence("@every P8999Y")), "ends before"),
    ],
    ids=str,
)
async def test_a_schedule_that_breaks_a_rule_is_refused(scheduler: Scheduler, schedule: Schedule, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        await scheduler.schedule(NIGHTLY, schedule, overwrite=True)
    assert await scheduler.get(NIGHTLY) is None


async def test_a_note_cannot_take_the_place_of_the_rule(scheduler: Scheduler, now: Callable[[], float]) -> None:
    with pytest.raises(ValueError, match="note"):
        await scheduler.schedule(NIGHTLY, Schedule(first=now()), notes={"schedule": "{}"}, overwrite=True)
