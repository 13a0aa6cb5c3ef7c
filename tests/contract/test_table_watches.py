"""What `Table.watch` promises."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from mesh.ports.tables import ABSENT, Current, Delete, Entry, Gone, Key, Put, Table, Tables, Watch
from tests.contract.tables import Backing

Connect = Callable[[], Awaitable[Tables]]

LIMIT = 10.0
"""Seconds that a change may take to be seen."""


@asynccontextmanager
async def watching(table: Table, *prefix: str, after: int | None = None) -> AsyncIterator[Watch]:
    watch = table.watch(prefix, after=after)
    try:
        yield watch
    finally:
        await watch.aclose()


async def following(watch: Watch) -> Entry | Gone | Current:
    async with asyncio.timeout(LIMIT):
        return await anext(watch)


async def until_current(watch: Watch) -> tuple[list[Entry | Gone], Current]:
    """What is shown before `Current`."""
    shown: list[Entry | Gone] = []
    while True:
        change = await following(watch)
        if isinstance(change, Current):
            return shown, change
        shown.append(change)


async def until(watch: Watch, revision: int) -> list[Entry | Gone]:
    """What is shown up to the change with this revision."""
    shown: list[Entry | Gone] = []
    while not shown or shown[-1].revision < revision:
        change = await following(watch)
        if not isinstance(change, Current):
            shown.append(change)
    return shown


def summary(changes: list[Entry | Gone]) -> list[tuple[str, bytes | None]]:
    return [("/".join(change.key), change.value if isinstance(change, Entry) else None) for change in changes]


async def put(table: Table, *key: str, value: bytes = b"v", ttl: float | None = None) -> int:
    [revision] = await table.commit([Put(key=key, value=value, ttl=ttl)])
    return revision


async def delete(table: Table, *key: str) -> int:
    [revision] = await table.commit([Delete(key=key)])
    return revision


async def test_a_watch_shows_the_changes_since_now(table: Table, connect: Connect) -> None:
    other = (await connect()).table("orders")
    old = await put(table, "state", "old")
    async with watching(other, "state") as watch:
        current = await following(watch)
        assert isinstance(current, Current)
        assert current.revision >= old
        first = await put(table, "state", "a", value=b"1")
        entry = await following(watch)
        assert entry == await table.get(("state", "a"))
        assert isinstance(entry, Entry)
        assert entry.revision == first
        gone = await delete(table, "state", "a")
        change = await following(watch)
        assert isinstance(change, Gone)
        assert (change.key, change.revision) == (("state", "a"), gone)
        assert change.time >= entry.time
        revisions = await table.commit([Put(key=("state", "b"), value=b"2"), Delete(key=("state", "old"))])
        assert summary(await until(watch, revisions[-1])) == [("state/b", b"2"), ("state/old", None)]


async def test_a_watch_from_the_beginning_shows_what_exists_first(table: Table) -> None:
    await put(table, "state", "a", value=b"1")
    await put(table, "state", "b", value=b"1")
    await put(table, "state", "gone")
    await put(table, "other", "c")
    await delete(table, "state", "gone")
    last = await put(table, "state", "a", value=b"2")
    async with watching(table, "state", after=ABSENT) as watch:
        shown, current = await until_current(watch)
        assert summary(shown) == [("state/b", b"1"), ("state/a", b"2")]
        assert current.revision >= last
        assert [await table.get(change.key) for change in shown] == shown
        revision = await put(table, "state", "a", value=b"3")
        assert summary(await until(watch, revision)) == [("state/a", b"3")]


async def test_a_watch_of_nothing_is_current_at_once(table: Table) -> None:
    async with watching(table, "state", after=ABSENT) as watch:
        assert isinstance(await following(watch), Current)
        revision = await put(table, "state", "a")
        assert summary(await until(watch, revision)) == [("state/a", b"v")]


async def test_a_watch_from_a_revision_shows_what_came_since(table: Table) -> None:
    await put(table, "state", "a", value=b"1")
    await put(table, "state", "doomed")
    await put(table, "state", "b", value=b"1")
    after = await put(table, "state", "c", value=b"1")
    await put(table, "state", "a", value=b"2")
    await delete(table, "state", "doomed")
    async with watching(table, "state", after=after) as watch:
        shown, current = await until_current(watch)
        assert summary(shown) == [("state/a", b"2"), ("state/doomed", None)]
        assert current.revision >= shown[-1].revision
    async with watching(table, "state", after=shown[-1].revision) as watch:
        assert isinstance(await following(watch), Current)


async def test_a_watch_shows_its_prefix_only(table: Table) -> None:
    keys: list[Key] = [("s",), ("s", "a"), ("s", "a", "b"), ("s", "ab"), ("s.a",), ("sa",), ("*", "a"), (">",)]
    expected: list[tuple[Key, list[Key]]] = [
        (("s",), [("s",), ("s", "a"), ("s", "a", "b"), ("s", "ab")]),
        (("s", "a"), [("s", "a"), ("s", "a", "b")]),
        ((">",), [(">",)]),
        (("*",), [("*", "a")]),
        ((), keys),
    ]
    watches = [table.watch(prefix) for prefix, _ in expected]
    for watch in watches:
        assert isinstance(await following(watch), Current)
    revisions = await table.commit([Put(key=key, value=b"") for key in keys])
    revision_of = dict(zip(keys, revisions, strict=True))
    for watch, (prefix, seen) in zip(watches, expected, strict=True):
        assert [change.key for change in await until(watch, revision_of[seen[-1]])] == seen
        await watch.aclose()
        async with watching(table, *prefix, after=ABSENT) as again:
            assert [change.key for change in (await until_current(again))[0]] == seen


async def test_an_expiry_is_seen_when_it_happens(table: Table, backing: Backing) -> None:
    async with watching(table, "state") as watch:
        await following(watch)
        written = backing.now()
        first = await put(table, "state", "a", ttl=1)
        entry = await following(watch)
        assert isinstance(entry, Entry)
        assert entry.expires is not None
        gone = asyncio.ensure_future(following(watch))
        await backing.elapse(2.5)
        change = await gone
        assert isinstance(change, Gone)
        assert change.key == ("state", "a")
        assert change.revision > first
        assert abs(change.time - written - 1) <= 1.1
        again = await put(table, "state", "a")
        assert again > change.revision
    async with watching(table, "state", after=first) as watch:
        shown, _ = await until_current(watch)
        assert summary(shown)[-1] == ("state/a", b"v")


async def test_an_expiry_can_be_seen_after_the_fact(table: Table, backing: Backing) -> None:
    revision = await put(table, "state", "a", ttl=1)
    await backing.elapse(2.5)
    async with watching(table, "state", after=revision) as watch:
        shown, _ = await until_current(watch)
        assert summary(shown) == [("state/a", None)]
    async with watching(table, "state", after=ABSENT) as watch:
        assert (await until_current(watch))[0] == []


async def test_revisions_only_grow_and_the_newest_is_never_left_out(table: Table, connect: Connect) -> None:
    writers = [(await connect()).table("orders") for _ in range(2)]

    async def write(writer: Table, name: str) -> None:
        for number in range(100):
            key = ("state", f"k{number % 7}")
            change = Delete(key=key) if number % 5 == 4 else Put(key=key, value=f"{name}{number}".encode())
            await writer.commit([change])

    async def write_all() -> None:
        await asyncio.gather(*(write(writer, name) for writer, name in zip(writers, "ab", strict=True)))
        await put(table, "state", "end")

    async with watching(table, "state", after=ABSENT) as watch, asyncio.TaskGroup() as group:
        await following(watch)
        group.create_task(write_all())
        newest: dict[Key, bytes | None] = {}
        last = 0
        while ("state", "end") not in newest:
            change = await following(watch)
            if isinstance(change, Current):
                continue
            assert change.revision > last
            last = change.revision
            newest[change.key] = change.value if isinstance(change, Entry) else None
    keys = [("state", f"k{number}") for number in range(7)]
    entries = await table.get_many(keys)
    assert {key: newest.get(key) for key in keys} == {
        key: entry and entry.value for key, entry in zip(keys, entries, strict=True)
    }


async def test_a_slow_reader_misses_no_key(table: Table) -> None:
    """Far more bytes than a reader may have waiting."""
    value = b"x" * 20_000
    async with watching(table, "state") as watch:
        await following(watch)
        newest: dict[Key, int] = {}
        for start in range(0, 2000, 10):
            keys = [("state", str(number % 1500)) for number in range(start, start + 10)]
            newest |= zip(keys, await table.commit([Put(key=key, value=value) for key in keys]), strict=True)
        end = await put(table, "state", "end")
        seen: dict[Key, int] = {}
        for change in await until(watch, end):
            assert seen.get(change.key, 0) < change.revision
            seen[change.key] = change.revision
    assert seen == newest | {("state", "end"): end}


async def test_a_closed_watch_ends(table: Table) -> None:
    watch = table.watch(("state",))
    await following(watch)
    await put(table, "state", "a")
    await watch.aclose()
    with pytest.raises(StopAsyncIteration):
        await following(watch)
    await watch.aclose()
    await table.watch(("state",)).aclose()  # one that never began


async def test_many_watches_see_the_same(table: Table) -> None:
    watches = [table.watch(("state",)) for _ in range(20)]
    for watch in watches:
        await following(watch)
    end = await put(table, "state", "a")
    for watch in watches:
        assert summary(await until(watch, end)) == [("state/a", b"v")]
    for watch in watches[::2]:
        await watch.aclose()
    end = await put(table, "state", "b")
    for watch in watches[1::2]:
        assert summary(await until(watch, end)) == [("state/b", b"v")]
        await watch.aclose()
