"""Earlier values, for tables that declare `HISTORY`."""

from __future__ import annotations

import asyncio
import time as wall
from collections.abc import Awaitable, Callable

import pytest

from mesh.ports.tables import (
    ABSENT,
    Conflict,
    Delete,
    Entry,
    Gone,
    HistoryNotKept,
    Key,
    Put,
    Table,
    TableFeature,
    Tables,
)
from tests.contract.tables import Backing

Connect = Callable[[], Awaitable[Tables]]

A: Key = ("state", "shop", "a")
B: Key = ("state", "shop", "b")


@pytest.fixture(autouse=True)
def needs_history(backing: Backing) -> None:
    if TableFeature.HISTORY not in backing.features:
        pytest.skip(f"{backing.name} does not declare HISTORY")


async def put(table: Table, key: Key, value: bytes, ttl: float | None = None) -> int:
    [revision] = await table.commit([Put(key=key, value=value, ttl=ttl)])
    return revision


async def delete(table: Table, key: Key) -> int:
    [revision] = await table.commit([Delete(key=key)])
    return revision


async def history(table: Table, key: Key, *, newest: int | None, limit: int = 100) -> list[bytes | None]:
    """The values, once the history has caught up with the revision `newest`."""
    limit_at = wall.monotonic() + 10
    while True:
        records = await table.history(key, limit=limit)
        if newest is None or (records and records[0].revision >= newest) or wall.monotonic() > limit_at:
            break
        await asyncio.sleep(0.01)
    assert all(record.key == key for record in records)
    revisions = [record.revision for record in records]
    assert revisions == sorted(set(revisions), reverse=True)
    return [record.value if isinstance(record, Entry) else None for record in records]


async def value_as_of(
    table: Table, key: Key, *, revision: int | None = None, time: float | None = None
) -> bytes | None:
    entry = await table.as_of(key, revision=revision, time=time)
    assert entry is None or entry.key == key
    return None if entry is None else entry.value


def test_the_features_are_declared(table: Table, backing: Backing) -> None:
    assert table.features == backing.features


async def test_no_history_is_kept_unless_asked_for(table: Table) -> None:
    revision = await put(table, A, b"1")
    with pytest.raises(HistoryNotKept):
        await table.history(A, limit=10)
    with pytest.raises(HistoryNotKept):
        await table.as_of(A, revision=revision)
    await table.keep_history(("state", "shop"), 5)
    with pytest.raises(HistoryNotKept):
        await table.history(("state", "other", "a"), limit=10)
    with pytest.raises(HistoryNotKept):
        await table.as_of(("state", "shopping", "a"), revision=revision)


async def test_the_newest_value_comes_first(table: Table, connect: Connect) -> None:
    await table.keep_history(("state", "shop"), 5)
    assert await history(table, A, newest=None) == []
    revisions = [await put(table, A, b"%d" % number) for number in range(3)]
    revisions.append(await delete(table, A))
    revisions.append(await put(table, A, b"4"))
    other = (await connect()).table("orders")
    assert await history(other, A, newest=revisions[-1]) == [b"4", None, b"2", b"1", b"0"]
    assert [record.revision for record in await other.history(A, limit=10)] == revisions[::-1]
    assert await history(other, A, newest=None, limit=2) == [b"4", None]
    present = await table.get(A)
    assert (await table.history(A, limit=1)) == [present]
    [_, gone] = await table.history(A, limit=2)
    assert isinstance(gone, Gone)


async def test_only_so_many_values_are_kept(table: Table) -> None:
    await table.keep_history(("state",), 3)
    revisions = [await put(table, A, b"%d" % number) for number in range(6)]
    other = await put(table, B, b"b")
    assert await history(table, A, newest=revisions[-1]) == [b"5", b"4", b"3"]
    assert await history(table, B, newest=other) == [b"b"]
    assert await value_as_of(table, A, revision=revisions[3]) == b"3"
    with pytest.raises(HistoryNotKept):
        await table.as_of(A, revision=revisions[2])
    assert await value_as_of(table, A, revision=other) == b"5"


async def test_the_value_as_of_a_revision(table: Table) -> None:
    await table.keep_history(("state", "shop"), 64)
    before = await put(table, B, b"b")
    first = await put(table, A, b"1")
    between = await put(table, B, b"b")
    second = await put(table, A, b"2")
    gone = await delete(table, A)
    third = await put(table, A, b"3")
    later = await put(table, B, b"b")
    await history(table, A, newest=third)
    await history(table, B, newest=later)
    expected = [(first, b"1"), (between, b"1"), (second, b"2"), (gone, None), (third, b"3"), (later, b"3")]
    assert [(revision, await value_as_of(table, A, revision=revision)) for revision, _ in expected] == expected
    assert await value_as_of(table, A, revision=before) is None


async def test_the_value_as_of_a_time(table: Table, backing: Backing) -> None:
    await table.keep_history(("state", "shop"), 64)
    times = []
    changes = [b"1", b"2", None, b"3"]
    for value in changes:
        revision = await (delete(table, A) if value is None else put(table, A, value))
        await backing.elapse(0.05)
        times.append(backing.now())
        await backing.elapse(0.05)
    await history(table, A, newest=revision)
    assert [await value_as_of(table, A, time=time) for time in times] == changes
    assert await value_as_of(table, A, time=backing.now() + 3600) == b"3"


async def test_a_value_that_has_expired_is_still_in_the_past(table: Table, backing: Backing) -> None:
    await table.keep_history(("state", "shop"), 64)
    first = await put(table, A, b"1", ttl=1)
    await backing.elapse(0.05)
    alive = backing.now()
    await backing.elapse(2.5)
    assert await table.get(A) is None
    expired = backing.now()
    other = await put(table, B, b"b")
    await history(table, B, newest=other)
    assert await value_as_of(table, A, time=alive) == b"1"
    assert await value_as_of(table, A, time=expired) is None
    assert await value_as_of(table, A, revision=first) == b"1"
    assert await value_as_of(table, A, revision=other) is None
    assert await history(table, A, newest=None) == [None, b"1"]
    second = await put(table, A, b"2")
    assert await history(table, A, newest=second) == [b"2", None, b"1"]


async def test_history_begins_with_the_value_that_is_there(table: Table) -> None:
    await put(table, A, b"0")
    first = await put(table, A, b"1")
    await table.keep_history(("state", "shop"), 5)
    assert await history(table, A, newest=first) == [b"1"]
    second = await put(table, A, b"2")
    assert await history(table, A, newest=second) == [b"2", b"1"]
    with pytest.raises(HistoryNotKept):
        await table.as_of(A, revision=first - 1)


async def test_history_may_be_asked_for_again(table: Table, connect: Connect) -> None:
    await table.keep_history(("state", "shop"), 5)
    other = (await connect()).table("orders")
    await other.keep_history(("state", "shop"), 5)
    await other.keep_history(("state", "other"), 2)
    revisions = [await put(table, A, b"%d" % number) for number in range(4)]
    assert await history(table, A, newest=revisions[-1]) == [b"3", b"2", b"1", b"0"]


async def test_conflicts_are_told_where_a_history_is_kept(table: Table) -> None:
    await table.keep_history(("state",), 5)
    old = await put(table, A, b"1")
    other = await put(table, B, b"1")
    newer = await put(table, A, b"2")
    for wrong in (old, other, newer + 1000, ABSENT):
        for change in (Put(key=A, value=b"3", expected=wrong), Delete(key=A, expected=wrong)):
            with pytest.raises(Conflict):
                await asyncio.wait_for(table.commit([change]), 30)
            with pytest.raises(Conflict):
                await asyncio.wait_for(table.commit([Put(key=("state", "c"), value=b""), change]), 30)
    assert await history(table, A, newest=newer) == [b"2", b"1"]


async def test_what_makes_no_sense_is_refused(table: Table) -> None:
    for revisions in (0, -1, 65):
        with pytest.raises(ValueError):
            await table.keep_history(("state",), revisions)
    await table.keep_history(("state",), 1)
    with pytest.raises(ValueError):
        await table.as_of(A)
    with pytest.raises(ValueError):
        await table.as_of(A, revision=1, time=1.0)
    with pytest.raises(ValueError):
        await table.history(A, limit=0)
