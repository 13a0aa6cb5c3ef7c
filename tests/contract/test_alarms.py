"""The contract of `Alarms`, on every implementation."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from itertools import count

import pytest

from mesh.errors import MessageTooLarge
from mesh.ports.alarms import Alarm, AlarmClocks, Alarms, Firing
from mesh.ports.tables import ABSENT, Conflict, InvalidKey
from tests.contract.alarms import BACKINGS, MAX_MESSAGE_SIZE, Backing, Inbox

NIGHTLY = ("job", "nightly")

namespaces = (f"alarms{number}" for number in count(1))

Member = Callable[[], Awaitable[AlarmClocks]]


@pytest.fixture(scope="module", params=BACKINGS, ids=lambda backing: backing.name)
def backing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backing]:
    started = request.param()
    started.start(tmp_path_factory.mktemp(started.name))
    yield started
    started.stop()


@pytest.fixture
async def member(backing: Backing) -> AsyncIterator[Member]:
    """Makes members of one namespace."""
    namespace = next(namespaces)
    async with AsyncExitStack() as stack:

        async def member() -> AlarmClocks:
            clocks = await backing.member(namespace)
            stack.push_async_callback(clocks.close)
            return clocks

        yield member


@pytest.fixture
async def alarms(member: Member) -> Alarms:
    return (await member()).alarms("shop")


@pytest.fixture
def inbox(backing: Backing) -> Callable[..., Inbox[Firing]]:
    return lambda settle=None: Inbox(backing, settle or (lambda firing: firing.ack()))


@pytest.fixture
def now(backing: Backing) -> Callable[[], float]:
    return backing.clock.now


def far(now: Callable[[], float], key: tuple[str, ...] = NIGHTLY, payload: bytes = b"") -> Alarm:
    """An alarm that no test lives to hear."""
    return Alarm(key=key, due=now() + 3600, payload=payload)


async def becomes_due(alarms: Alarms, key: tuple[str, ...], backing: Backing) -> None:
    """Returns once the alarm of `key` waits for a member."""
    for _ in range(200):
        found = await alarms.get(key)
        if found is not None and found.fired:
            return
        await backing.elapse(0.05)
    pytest.fail("it does not become due")


def keep(firing: Firing) -> None:
    """Leave it unsettled."""


# Becoming due


async def test_an_alarm_fires_once_and_never_early(
    alarms: Alarms, inbox: Callable[..., Inbox[Firing]], backing: Backing, now: Callable[[], float]
) -> None:
    fired = inbox()
    await alarms.serve("job", fired, concurrency=10)
    due = now() + 0.5
    await alarms.set(Alarm(key=NIGHTLY, due=due, payload=b"data", headers={"trace-parent": 'ä "%" \r\n x'}))
    (firing,) = await fired.reaches(1)
    assert 0 <= fired.times[0] - due <= backing.resolution
    assert firing.alarm == Alarm(key=NIGHTLY, due=due, payload=b"data", headers={"trace-parent": 'ä "%" \r\n x'})
    assert firing.attempt == 1
    await backing.elapse(0.3)
    assert len(fired.items) == 1
    assert await alarms.get(NIGHTLY) is None


@pytest.mark.parametrize("due", [-1e12, 0.0, 1.0], ids=str)
async def test_what_lies_in_the_past_is_due_at_once(
    alarms: Alarms, inbox: Callable[..., Inbox[Firing]], backing: Backing, now: Callable[[], float], due: float
) -> None:
    fired = inbox()
    await alarms.serve("job", fired, concurrency=10)
    await alarms.set(Alarm(key=NIGHTLY, due=due))
    began = now()
    (firing,) = await fired.reaches(1)
    assert fired.times[0] - began <= backing.resolution
    assert firing.alarm.due == due


@pytest.mark.parametrize("due", [9.3e9, 1e11, 1e300])
async def test_what_lies_beyond_the_reach_of_clocks_waits(
    alarms: Alarms, inbox: Callable[..., Inbox[Firing]], backing: Backing, due: float
) -> None:
    fired = inbox()
    await alarms.serve("job", fired, concurrency=10)
    await alarms.set(Alarm(key=NIGHTLY, due=due))
    await backing.elapse(0.6)
    assert not fired.items
    found = await alarms.get(NIGHTLY)
    assert found is not None
    assert (found.alarm.due, found.fired) == (due, False)


async def test_what_became_due_without_a_member_waits_for_one(
    alarms: Alarms, member: Member, inbox: Callable[..., Inbox[Firing]], backing: Backing, now: Callable[[], float]
) -> None:
    await alarms.set(Alarm(key=NIGHTLY, due=now() - 1, payload=b"1"))
    await becomes_due(alarms, NIGHTLY, backing)
    fired = inbox()
    await (await member()).alarms("shop").serve("job", fired, concurrency=10)
    assert [firing.alarm.payload for firing in await fired.reaches(1)] == [b"1"]


async def test_each_alarm_goes_to_one_member_and_to_its_kind(
    member: Member, inbox: Callable[..., Inbox[Firing]], backing: Backing, now: Callable[[], float]
) -> None:
    inboxes = [inbox(), inbox()]
    for fired in inboxes:
        await (await member()).alarms("shop").serve("job", fired, concurrency=5)
    reminders, elsewhere = inbox(), inbox()
    clocks = await member()
    await clocks.alarms("shop").serve("reminder", reminders, concurrency=5)
    await clocks.alarms("other").serve("job", elsewhere, concurrency=5)
    due = now() + 0.3
    alarms = clocks.alarms("shop")
    await asyncio.gather(*(alarms.set(Alarm(key=("job", str(n)), due=due)) for n in range(200)))
    await alarms.set(Alarm(key=("reminder", "cart", "7", "pay"), due=due))
    await reminders.reaches(1)
    async with asyncio.timeout(30):
        while sum(len(fired.items) for fired in inboxes) < 200:
            await backing.elapse(0.1)
            await asyncio.sleep(0)
    await backing.elapse(1.0)
    names = Counter(firing.alarm.key[1] for fired in inboxes for firing in fired.items)
    assert names == Counter(map(str, range(200)))
    assert all(fired.items for fired in inboxes)
    assert [firing.alarm.key for firing in reminders.items] == [("reminder", "cart", "7", "pay")]
    assert not elsewhere.items


async def test_no_more_than_agreed_are_in_hand(
    alarms: Alarms, inbox: Callable[..., Inbox[Firing]], backing: Backing, now: Callable[[], float]
) -> None:
    for number in range(10):
        await alarms.set(Alarm(key=("job", str(number)), due=now()))
    fired = inbox(keep)
    await alarms.serve("job", fired, concurrency=3)
    await fired.reaches(3)
    await backing.elapse(0.5)
    assert len(fired.items) == 3
    fired.items[1].ack()
    await fired.reaches(4)
    for firing in fired.items:
        firing.ack()
    fired._settle = lambda firing: firing.ack()
    await fired.reaches(10)


# Settling


async def test_a_firing_comes_again_after_the_delay(
    alarms: Alarms, inbox: Callable[..., Inbox[Firing]], backing: Backing, now: Callable[[], float]
) -> None:
    fired = inbox(lambda firing: firing.retry(0.4) if firing.attempt < 3 else firing.ack())
    await alarms.serve("job", fired, concurrency=1)
    await alarms.set(Alarm(key=NIGHTLY, due=now(), payload=b"x"))
    await fired.reaches(3)
    assert [firing.attempt for firing in fired.items] == [1, 2, 3]
    assert {firing.alarm.payload for firing in fired.items} == {b"x"}
    assert all(later - earlier >= 0.39 for earlier, later in zip(fired.times, fired.times[1:], strict=False))
    await backing.elapse(0.6)
    assert len(fired.items) == 3


async def test_only_the_first_verdict_counts(
    alarms: Alarms, inbox: Callable[..., Inbox[Firing]], backing: Backing, now: Callable[[], float]
) -> None:
    def settle(firing: Firing) -> None:
        firing.ack()
        firing.retry(0)
        firing.ack(far(now))

    fired = inbox(settle)
    await alarms.serve("job", fired, concurrency=1)
    await alarms.set(Alarm(key=NIGHTLY, due=now()))
    await fired.reaches(1)
    await backing.elapse(0.5)
    assert len(fired.items) == 1
    assert await alarms.get(NIGHTLY) is None


async def test_what_a_member_leaves_goes_to_another(
    member: Member, inbox: Callable[..., Inbox[Firing]], now: Callable[[], float]
) -> None:
    alarms = (await member()).alarms("shop")
    held = inbox(keep)
    subscription = await alarms.serve("job", held, concurrency=5)
    await alarms.set(Alarm(key=NIGHTLY, due=now()))
    await held.reaches(1)
    closing = asyncio.ensure_future(subscription.close())
    await asyncio.sleep(0.1)
    assert not closing.done()
    closing.cancel()
    await asyncio.gather(closing, return_exceptions=True)
    fired = inbox()
    await (await member()).alarms("shop").serve("job", fired, concurrency=5)
    await fired.reaches(1)
    assert fired.items[0].attempt == 2


async def test_the_next_one_is_set_by_the_verdict_on_the_last(
    alarms: Alarms, inbox: Callable[..., Inbox[Firing]], backing: Backing, now: Callable[[], float]
) -> None:
    def settle(firing: Firing) -> None:
        number = int(firing.alarm.payload)
        then = Alarm(key=NIGHTLY, due=firing.alarm.due + 0.3, payload=b"%d" % (number + 1))
        firing.ack(then if number < 3 else None)

    fired = inbox(settle)
    await alarms.serve("job", fired, concurrency=5)
    await alarms.set(Alarm(key=NIGHTLY, due=now(), payload=b"1"))
    await fired.reaches(3)
    assert [firing.alarm.payload for firing in fired.items] == [b"1", b"2", b"3"]
    await backing.elapse(0.6)
    assert await alarms.get(NIGHTLY) is None
    assert len(fired.items) == 3


@pytest.mark.parametrize("change", ["cancelled", "set", "set and fired"])
async def test_whoever_cancels_or_sets_wins_over_the_next_of_a_series(
    alarms: Alarms, inbox: Callable[..., Inbox[Firing]], backing: Backing, now: Callable[[], float], change: str
) -> None:
    fired = inbox(keep)
    await alarms.serve("job", fired, concurrency=5)
    await alarms.set(Alarm(key=NIGHTLY, due=now(), payload=b"old"))
    (firing,) = await fired.reaches(1)
    if change == "cancelled":
        assert await alarms.cancel(NIGHTLY)
    elif change == "set":
        await alarms.set(far(now, payload=b"new"))
    else:
        await alarms.set(Alarm(key=NIGHTLY, due=now(), payload=b"new"))
        await fired.reaches(2)
    firing.ack(far(now, payload=b"next of the old"))
    await backing.elapse(0.5)
    found = await alarms.get(NIGHTLY)
    assert (found and found.alarm.payload) == (None if change == "cancelled" else b"new")


async def test_the_next_one_has_the_same_key(
    alarms: Alarms, inbox: Callable[..., Inbox[Firing]], now: Callable[[], float]
) -> None:
    fired = inbox(keep)
    await alarms.serve("job", fired, concurrency=5)
    await alarms.set(Alarm(key=NIGHTLY, due=now()))
    (firing,) = await fired.reaches(1)
    with pytest.raises(ValueError, match="job/other"):
        firing.ack(far(now, ("job", "other")))
    firing.ack()


# Setting


async def test_setting_again_replaces(
    alarms: Alarms, inbox: Callable[..., Inbox[Firing]], backing: Backing, now: Callable[[], float]
) -> None:
    fired = inbox()
    await alarms.serve("job", fired, concurrency=5)
    first = await alarms.set(Alarm(key=NIGHTLY, due=now() + 1.5, payload=b"1"))
    second = await alarms.set(Alarm(key=NIGHTLY, due=now() + 0.3, payload=b"2"))
    assert second > first > 0
    await fired.reaches(1)
    await backing.elapse(1.8)
    assert [firing.alarm.payload for firing in fired.items] == [b"2"]


async def test_setting_takes_back_what_is_due_and_waits(
    alarms: Alarms, inbox: Callable[..., Inbox[Firing]], backing: Backing, now: Callable[[], float]
) -> None:
    await alarms.set(Alarm(key=NIGHTLY, due=now() - 10, payload=b"old"))
    await becomes_due(alarms, NIGHTLY, backing)
    await alarms.set(far(now, payload=b"new"))
    fired = inbox()
    await alarms.serve("job", fired, concurrency=5)
    await backing.elapse(0.5)
    assert not fired.items


async def test_a_set_that_expects_what_is_there_replaces_it(alarms: Alarms, now: Callable[[], float]) -> None:
    revision = await alarms.set(far(now, payload=b"1"), expected=ABSENT)
    for wrong in (ABSENT, revision + 1):
        with pytest.raises(Conflict):
            await alarms.set(far(now, payload=b"2"), expected=wrong)
    later = await alarms.set(far(now, payload=b"2"), expected=revision)
    with pytest.raises(Conflict):
        await alarms.set(far(now, payload=b"3"), expected=revision)
    found = await alarms.get(NIGHTLY)
    assert found is not None
    assert (found.alarm.payload, found.revision) == (b"2", later)


async def test_what_is_due_and_not_settled_is_there(
    alarms: Alarms, inbox: Callable[..., Inbox[Firing]], backing: Backing, now: Callable[[], float]
) -> None:
    revision = await alarms.set(Alarm(key=NIGHTLY, due=now()))
    await becomes_due(alarms, NIGHTLY, backing)
    for expected in (ABSENT, revision):
        with pytest.raises(Conflict):
            await alarms.set(far(now), expected=expected)
    fired = inbox()
    await alarms.serve("job", fired, concurrency=5)
    await fired.reaches(1)
    await backing.elapse(0.2)
    await alarms.set(far(now), expected=ABSENT)


async def test_one_of_many_that_expect_nothing_wins(alarms: Alarms, now: Callable[[], float]) -> None:
    outcomes = await asyncio.gather(*(alarms.set(far(now), expected=ABSENT) for _ in range(20)), return_exceptions=True)
    assert Counter(type(outcome) for outcome in outcomes) == {int: 1, Conflict: 19}


async def test_nothing_is_lost_that_is_set_in_the_moment_of_firing(
    alarms: Alarms, inbox: Callable[..., Inbox[Firing]], backing: Backing, now: Callable[[], float]
) -> None:
    old, new = inbox(), inbox()
    await alarms.serve("job", lambda firing: (new if firing.alarm.payload else old)(firing), concurrency=500)
    keys = [("job", str(number)) for number in range(500)]
    due = now() + 1.3
    await asyncio.gather(*(alarms.set(Alarm(key=key, due=due)) for key in keys))
    await backing.elapse(due - 0.1 - now())
    async with asyncio.TaskGroup() as group:
        for number, key in enumerate(keys):
            group.create_task(alarms.set(Alarm(key=key, due=now() + 1, payload=b"new")))
            if number % 50 == 0:
                await backing.elapse(0.05)
    assert sorted(firing.alarm.key for firing in await new.reaches(500)) == sorted(keys)
    assert len({firing.alarm.key for firing in old.items}) == len(old.items)


# Cancelling


async def test_what_is_cancelled_never_fires(
    alarms: Alarms, inbox: Callable[..., Inbox[Firing]], backing: Backing, now: Callable[[], float]
) -> None:
    fired = inbox()
    await alarms.serve("job", fired, concurrency=5)
    await alarms.set(Alarm(key=NIGHTLY, due=now() + 1.3))
    assert await alarms.cancel(NIGHTLY)
    assert not await alarms.cancel(NIGHTLY)
    assert await alarms.get(NIGHTLY) is None
    await backing.elapse(1.9)
    assert not fired.items


async def test_what_is_cancelled_can_be_set_again(alarms: Alarms, now: Callable[[], float]) -> None:
    for number in range(3):
        await alarms.set(far(now, payload=b"%d" % number), expected=ABSENT)
        assert await alarms.cancel(NIGHTLY)
    await alarms.set(far(now, payload=b"last"))
    found = await alarms.get(NIGHTLY)
    assert found is not None
    assert found.alarm.payload == b"last"


async def test_what_is_due_and_cancelled_does_not_come(
    alarms: Alarms, inbox: Callable[..., Inbox[Firing]], backing: Backing, now: Callable[[], float]
) -> None:
    await alarms.set(Alarm(key=NIGHTLY, due=now()))
    await alarms.set(Alarm(key=("job", "other"), due=now()))
    await becomes_due(alarms, NIGHTLY, backing)
    assert await alarms.cancel(NIGHTLY)
    assert await alarms.get(NIGHTLY) is None
    fired = inbox()
    await alarms.serve("job", fired, concurrency=5)
    await fired.reaches(1)
    await backing.elapse(0.4)
    assert [firing.alarm.key for firing in fired.items] == [("job", "other")]


async def test_what_is_in_hand_and_cancelled_does_not_come_again(
    alarms: Alarms, inbox: Callable[..., Inbox[Firing]], backing: Backing, now: Callable[[], float]
) -> None:
    fired = inbox(keep)
    await alarms.serve("job", fired, concurrency=5)
    await alarms.set(Alarm(key=NIGHTLY, due=now()))
    (firing,) = await fired.reaches(1)
    assert await alarms.cancel(NIGHTLY)
    firing.retry(0.1)
    await backing.elapse(0.6)
    assert len(fired.items) == 1


async def test_a_cancel_may_expect_a_revision(alarms: Alarms, now: Callable[[], float]) -> None:
    assert not await alarms.cancel(NIGHTLY, expected=ABSENT)
    revision = await alarms.set(far(now))
    for wrong in (ABSENT, revision + 1):
        with pytest.raises(Conflict):
            await alarms.cancel(NIGHTLY, expected=wrong)
    assert await alarms.cancel(NIGHTLY, expected=revision)
    with pytest.raises(Conflict):
        await alarms.cancel(NIGHTLY, expected=revision)


# Reading


async def test_a_scan_shows_what_is_set_or_due_within_the_prefix(
    alarms: Alarms, backing: Backing, now: Callable[[], float]
) -> None:
    wanted = {("reminder", "cart", str(n), "pay") for n in range(25)}
    others = {("reminder", "cart-x", "1", "pay"), ("job", "cart"), ("reminder", "car", "t")}
    await asyncio.gather(*(alarms.set(far(now, key)) for key in wanted | others))
    await alarms.set(Alarm(key=("reminder", "cart", "due", "pay"), due=now()))
    await alarms.set(far(now, ("reminder", "cart", "gone", "pay")))
    await alarms.cancel(("reminder", "cart", "gone", "pay"))
    await becomes_due(alarms, ("reminder", "cart", "due", "pay"), backing)
    found, cursor, pages = [], None, 0
    while pages < 50:
        page = await alarms.scan(("reminder", "cart"), limit=10, cursor=cursor)
        assert len(page.alarms) <= 10
        found += page.alarms
        cursor, pages = page.cursor, pages + 1
        if cursor is None:
            break
    assert sorted(entry.alarm.key for entry in found) == sorted({*wanted, ("reminder", "cart", "due", "pay")})
    assert [entry.alarm.key[2] for entry in found if entry.fired] == ["due"]
    for entry in found[:3]:
        assert await alarms.get(entry.alarm.key) == entry
    assert (await alarms.scan(("nothing",), limit=10)) == ([], None)


async def test_a_cursor_of_another_scan_is_refused(alarms: Alarms, now: Callable[[], float]) -> None:
    await asyncio.gather(*(alarms.set(far(now, ("job", "a", str(n)))) for n in range(5)))
    cursor = (await alarms.scan(("job", "a"), limit=2)).cursor
    assert cursor is not None
    for wrong in (cursor, "", "x", "999"):
        with pytest.raises(ValueError, match="cursor"):
            await alarms.scan(("job", "b"), limit=2, cursor=wrong)
    with pytest.raises(ValueError, match="page"):
        await alarms.scan(("job", "a"), limit=0)
    with pytest.raises(InvalidKey):
        await alarms.scan((), limit=1)


@pytest.mark.parametrize(
    "name",
    [
        ".",
        "*",
        ">",
        "a.b",
        "a b",
        "a||b",
        "ä/€",
        "%41",
        "%",
        "~",
        "\x00\r\n",
        "due",
        "set",
        "$JS",
        "x" * 972,
        "ü" * 450,
    ],
    ids=lambda name: ascii(name)[:30],
)
async def test_any_name_will_do(
    alarms: Alarms, inbox: Callable[..., Inbox[Firing]], now: Callable[[], float], name: str
) -> None:
    fired = inbox()
    await alarms.serve(name[:50], fired, concurrency=5)
    key = (name[:50], name)
    await alarms.set(Alarm(key=key, due=now()))
    assert [firing.alarm.key for firing in await fired.reaches(1)] == [key]
    await alarms.set(far(now, key))
    found = await alarms.get(key)
    assert found is not None
    assert found.alarm.key == key
    assert [entry.alarm.key for entry in (await alarms.scan(key[:1], limit=5)).alarms] == [key]
    assert await alarms.cancel(key)


@pytest.mark.parametrize(
    "key",
    [(), ("job",), ("job", ""), ("", "x"), ("job", "x" * 1020), ("job", "x" * 1100), ("job", "\ud800")],
    ids=ascii,
)
async def test_a_key_that_names_nothing_is_refused(
    alarms: Alarms, now: Callable[[], float], key: tuple[str, ...]
) -> None:
    for attempt in (alarms.set(far(now, key)), alarms.get(key), alarms.cancel(key)):
        with pytest.raises(InvalidKey):
            await attempt


@pytest.mark.parametrize(
    "alarm",
    [
        Alarm(key=NIGHTLY, due=float("nan")),
        Alarm(key=NIGHTLY, due=float("inf")),
        Alarm(key=NIGHTLY, due=0.0, headers={"Nats-Rollup: all": "x"}),
        Alarm(key=NIGHTLY, due=0.0, headers={"": "x"}),
        Alarm(key=NIGHTLY, due=0.0, headers={"x": "\ud800"}),
    ],
    ids=str,
)
async def test_an_alarm_that_breaks_a_rule_is_refused(alarms: Alarms, alarm: Alarm) -> None:
    with pytest.raises(ValueError, match=r"due|header"):
        await alarms.set(alarm)
    assert await alarms.get(NIGHTLY) is None


async def test_headers_stay_the_users_own(
    alarms: Alarms, inbox: Callable[..., Inbox[Firing]], now: Callable[[], float]
) -> None:
    notes = {"nats-schedule-target": "elsewhere", "ce-id": "1", "nats-ttl": "1", "meshwire-alarm": "x", "a": ""}
    fired = inbox()
    await alarms.serve("job", fired, concurrency=5)
    await alarms.set(Alarm(key=NIGHTLY, due=now(), headers=notes))
    assert [firing.alarm.headers for firing in await fired.reaches(1)] == [notes]


async def test_an_alarm_beyond_the_limit_is_refused_and_one_below_it_fires(
    alarms: Alarms, inbox: Callable[..., Inbox[Firing]], now: Callable[[], float]
) -> None:
    await alarms.set(far(now, ("job", "any")))
    with pytest.raises(MessageTooLarge):
        await alarms.set(far(now, payload=bytes(MAX_MESSAGE_SIZE)))
    fired = inbox()
    await alarms.serve("job", fired, concurrency=5)
    payload = bytes(MAX_MESSAGE_SIZE - 2048)
    await alarms.set(Alarm(key=NIGHTLY, due=now(), payload=payload))
    assert [firing.alarm.payload for firing in await fired.reaches(1)] == [payload]
