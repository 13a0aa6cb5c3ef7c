"""The contract of `Table`, but for watches (`test_table_watches.py`), the past (`test_table_history.py`) and faults."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest

from mesh.errors import BrokerUnavailable, MessageTooLarge
from mesh.ports.tables import (
    ABSENT,
    MAX_KEY_BYTES,
    Check,
    Conflict,
    Current,
    Delete,
    Entry,
    InvalidKey,
    Key,
    Put,
    Table,
    Tables,
)
from tests.contract.tables import MAX_MESSAGE_SIZE, Backing

Connect = Callable[[], Awaitable[Tables]]

ODD_PARTS = [
    "plain", "PLAIN", "Plain", "with.dots", ".", "..", ".leading", "trailing.", "*", ">", "a.*", "a.>", " ", "  ",
    " blank around ", "tab\tinside", "line\r\nbreak", "\x00", "\x7f", "order||7", "||", "/", "a/b", "//", "%", "%2E",
    "%25", "%%", "~", "$JS.API", "_INBOX", "-", "_", "=", "+", "\\", '"', "'", "{}", "é", "e\u0301", "ß", "SS",
    "日本語", "😀", "👩\u200d👩\u200d👧", "\u202eright to left", "\ufeff", "\uffff", "\U0010ffff", "0", "00", "null",
]  # fmt: skip

ODD_KEYS: list[Key] = [
    *(("state", part) for part in ODD_PARTS),
    *((part, "state") for part in ODD_PARTS),
    ("state",),
    ("state", "a", "b"),
    ("state", "a.b", "c"),
    ("state", "a", "b.c"),
    ("state", "x" * (MAX_KEY_BYTES - len("state"))),
    ("state", "€" * ((MAX_KEY_BYTES - len("state")) // 3)),
    ("state", "😀" * ((MAX_KEY_BYTES - len("state")) // 4)),
    ("state", *("p" * 20)),
]

BAD_KEYS: list[Key] = [
    ("",),
    ("state", ""),
    ("", "state"),
    ("state", "", "end"),
    ("state", "x" * (MAX_KEY_BYTES - len("state") + 1)),
    ("state", "é" * 512),
    ("state", "\ud800"),
    ("state", "a\udfffb"),
]


async def put(
    table: Table, *key: str, value: bytes = b"v", ttl: float | None = None, expected: int | None = None
) -> int:
    [revision] = await table.commit([Put(key=key, value=value, ttl=ttl, expected=expected)])
    return revision


async def delete(table: Table, *key: str, expected: int | None = None) -> int:
    [revision] = await table.commit([Delete(key=key, expected=expected)])
    return revision


async def value_of(table: Table, *key: str) -> bytes | None:
    entry = await table.get(key)
    return None if entry is None else entry.value


async def scan_all(table: Table, prefix: Key, *, starts_with: str = "", limit: int = 100) -> list[Entry]:
    entries: list[Entry] = []
    cursor = None
    for _ in range(1000):
        page = await table.scan(prefix, starts_with=starts_with, limit=limit, cursor=cursor)
        assert len(page.entries) <= limit
        entries += page.entries
        cursor = page.cursor
        if cursor is None:
            return entries
    raise AssertionError("the scan does not end")


def keys_of(entries: Sequence[Entry]) -> list[Key]:
    return sorted(entry.key for entry in entries)


# Entries


async def test_an_absent_key_has_no_value(table: Table) -> None:
    assert await table.get(("state", "none")) is None
    assert await table.get_many([("state", "none"), ("other",)]) == [None, None]
    assert await table.get_many([]) == []


async def test_an_entry_is_what_was_put(table: Table, backing: Backing) -> None:
    before = backing.now()
    [revision] = await table.commit(
        [Put(key=("state", "a"), value=b"\x00\xff{}", content_type='text/x; charset="a b"')]
    )
    entry = await table.get(("state", "a"))
    assert entry is not None
    assert (entry.key, entry.value, entry.content_type) == (("state", "a"), b"\x00\xff{}", 'text/x; charset="a b"')
    assert entry.revision == revision > 0
    assert entry.expires is None
    assert before - 0.1 <= entry.time <= backing.now() + 0.1


async def test_the_newest_value_is_read_by_every_client(table: Table, connect: Connect) -> None:
    other = (await connect()).table("orders")
    for round in range(20):
        writer, reader = (table, other) if round % 2 else (other, table)
        revision = await put(writer, "state", "a", value=b"%d" % round)
        entry = await reader.get(("state", "a"))
        assert entry is not None
        assert (entry.value, entry.revision) == (b"%d" % round, revision)


async def test_a_value_without_a_content_type_has_none(table: Table) -> None:
    await put(table, "state", "a")
    entry = await table.get(("state", "a"))
    assert entry is not None
    assert entry.content_type == ""


async def test_revisions_grow_over_all_keys(table: Table, connect: Connect) -> None:
    other = (await connect()).table("orders")
    revisions = []
    for client in (table, other, table):
        revisions += await client.commit([Put(key=("state", name), value=b"") for name in "abc"])
        revisions.append(await put(client, "state", "a"))
        revisions.append(await delete(client, "state", "a"))
    assert revisions == sorted(set(revisions))


async def test_odd_keys_are_all_different(table: Table) -> None:
    values = {key: b"%d" % number for number, key in enumerate(ODD_KEYS)}
    assert len(values) == len(ODD_KEYS)
    await table.commit([Put(key=key, value=value) for key, value in values.items()])
    entries = await table.get_many(ODD_KEYS)
    assert {entry.key: entry.value for entry in entries if entry} == values
    for key in ODD_KEYS:
        assert await value_of(table, *key) == values[key]
    scanned = [*await scan_all(table, ("state",)), *await scan_all(table, ("日本語",)), *await scan_all(table, ("*",))]
    assert {entry.key: entry.value for entry in scanned} == {
        key: value for key, value in values.items() if len(key) > 1 and key[0] in ("state", "日本語", "*")
    }
    for key in ODD_KEYS[::2]:
        await delete(table, *key)
    left = await table.get_many(ODD_KEYS)
    assert [entry and entry.key for entry in left] == [key if index % 2 else None for index, key in enumerate(ODD_KEYS)]


@pytest.mark.parametrize("key", BAD_KEYS, ids=ascii)
async def test_a_key_that_no_table_can_hold_is_refused(table: Table, key: Key) -> None:
    with pytest.raises(InvalidKey):
        await table.get(key)
    with pytest.raises(InvalidKey):
        await table.get_many([("state", "good"), key])
    with pytest.raises(InvalidKey):
        await table.commit([Put(key=("state", "good"), value=b""), Put(key=key, value=b"")])
    with pytest.raises(InvalidKey):
        await table.commit([Put(key=("state", "good"), value=b""), Delete(key=key)])
    with pytest.raises(InvalidKey):
        await table.commit([Put(key=("state", "good"), value=b"")], [Check(key, ABSENT)])
    with pytest.raises(InvalidKey):
        await table.scan(key, limit=1)
    with pytest.raises(InvalidKey):
        await anext(table.watch(key))
    with pytest.raises(InvalidKey):
        await table.history(key, limit=1)
    with pytest.raises(InvalidKey):
        await table.as_of(key, revision=1)
    with pytest.raises(InvalidKey):
        await table.keep_history(key, 1)
    assert await table.get(("state", "good")) is None


async def test_no_parts_are_no_key(table: Table) -> None:
    with pytest.raises(InvalidKey):
        await table.get(())
    with pytest.raises(InvalidKey):
        await put(table)


@pytest.mark.parametrize("size", [0, 1, 127, 128, 4096, 65_535, 65_536, MAX_MESSAGE_SIZE // 2])
async def test_a_value_of_any_size_comes_back(table: Table, size: int) -> None:
    value = bytes(index * 7 % 256 for index in range(size))
    await put(table, "state", "a", value=value)
    assert await value_of(table, "state", "a") == value


async def test_a_value_is_stored_whole_or_refused_as_too_large(table: Table) -> None:
    stored = refused = 0
    low, high = MAX_MESSAGE_SIZE - 4096, MAX_MESSAGE_SIZE + 1
    while low + 1 < high:  # the limit lies in between
        size = (low + high) // 2
        try:
            await put(table, "state", str(size), value=b"x" * size)
        except MessageTooLarge as error:
            assert error.size > error.limit
            assert await table.get(("state", str(size))) is None
            high, refused = size, refused + 1
        else:
            assert await value_of(table, "state", str(size)) == b"x" * size
            low, stored = size, stored + 1
    assert stored and refused


async def test_one_change_that_is_too_large_leaves_nothing_of_a_commit(table: Table) -> None:
    await put(table, "state", "old")
    with pytest.raises(MessageTooLarge):
        await table.commit([
            Put(key=("state", "a"), value=b"1"),
            Delete(key=("state", "old")),
            Put(key=("state", "b"), value=b"x" * (MAX_MESSAGE_SIZE + 1)),
        ])  # fmt: skip
    assert await table.get(("state", "a")) is None
    assert await value_of(table, "state", "old") == b"v"


async def test_scopes_have_nothing_in_common(connect: Connect) -> None:
    tables = await connect()
    scopes = ["orders", "Orders", "", "a.b", "a", ">", "*", " ", "ü", "u\u0308", "order||x", "%", "x" * 200]
    for number, scope in enumerate(scopes):
        assert tables.table(scope) is tables.table(scope)
        await put(tables.table(scope), "state", "a", value=b"%d" % number)
    other = await connect()
    for number, scope in enumerate(scopes):
        assert await value_of(other.table(scope), "state", "a") == b"%d" % number
        assert keys_of(await scan_all(other.table(scope), ())) == [("state", "a")]


# Preconditions


async def test_a_change_expects_a_revision(table: Table) -> None:
    first = await put(table, "state", "a", value=b"1")
    second = await put(table, "state", "a", value=b"2", expected=first)
    for wrong in (first, second + 1, second + 1000, ABSENT):
        with pytest.raises(Conflict) as caught:
            await put(table, "state", "a", value=b"3", expected=wrong)
        assert caught.value.key == ("state", "a")
        with pytest.raises(Conflict):
            await delete(table, "state", "a", expected=wrong)
    assert await value_of(table, "state", "a") == b"2"
    await delete(table, "state", "a", expected=second)
    assert await table.get(("state", "a")) is None


async def test_a_revision_of_another_key_is_none_of_this(table: Table) -> None:
    await put(table, "state", "a")
    other = await put(table, "state", "b")
    with pytest.raises(Conflict):
        await put(table, "state", "a", expected=other)


async def test_only_an_absent_key_is_created(table: Table) -> None:
    await put(table, "state", "a", expected=ABSENT)
    with pytest.raises(Conflict):
        await put(table, "state", "a", expected=ABSENT)
    await delete(table, "state", "a")
    await put(table, "state", "a", value=b"again", expected=ABSENT)
    assert await value_of(table, "state", "a") == b"again"


async def test_a_deleted_key_has_no_revision(table: Table) -> None:
    first = await put(table, "state", "a")
    gone = await delete(table, "state", "a")
    for revision in (first, gone):
        with pytest.raises(Conflict):
            await put(table, "state", "a", expected=revision)
        with pytest.raises(Conflict):
            await delete(table, "state", "a", expected=revision)
        with pytest.raises(Conflict):
            await table.commit([Put(key=("state", "b"), value=b"")], [Check(("state", "a"), revision)])
    await table.commit([Put(key=("state", "b"), value=b"")], [Check(("state", "a"), ABSENT)])


async def test_an_absent_key_can_be_deleted(table: Table) -> None:
    await delete(table, "state", "never")
    await put(table, "state", "a")
    await delete(table, "state", "a")
    await delete(table, "state", "a")
    await delete(table, "state", "a", expected=ABSENT)
    await put(table, "state", "a", expected=ABSENT)
    with pytest.raises(Conflict):
        await delete(table, "state", "a", expected=ABSENT)


async def test_one_of_many_wins(table: Table, connect: Connect) -> None:
    clients = [table, *[(await connect()).table("orders") for _ in range(3)]]
    revision = ABSENT
    for _ in range(10):
        outcomes = await asyncio.gather(
            *(put(client, "state", "a", expected=revision) for client in clients for _ in range(3)),
            return_exceptions=True,
        )
        won = [outcome for outcome in outcomes if isinstance(outcome, int)]
        assert len(won) == 1
        assert all(isinstance(outcome, int | Conflict) for outcome in outcomes)
        [revision] = won


# Commits


@pytest.mark.parametrize("count", [1, 2, 500])
async def test_a_commit_does_all(table: Table, count: int) -> None:
    keys = [("state", f"key{number}") for number in range(count)]
    revisions = await table.commit([Put(key=key, value=key[1].encode()) for key in keys])
    assert len(revisions) == count
    assert revisions == sorted(set(revisions))
    entries = await table.get_many(keys)
    assert [entry and (entry.key, entry.value, entry.revision) for entry in entries] == [
        (key, key[1].encode(), revision) for key, revision in zip(keys, revisions, strict=True)
    ]
    # And again, each with a precondition, as deletions and puts.
    await table.commit([
        Delete(key=key, expected=revision) if index % 2 else Put(key=key, value=b"2", expected=revision)
        for index, (key, revision) in enumerate(zip(keys, revisions, strict=True))
    ])  # fmt: skip
    entries = await table.get_many(keys)
    assert [entry and entry.value for entry in entries] == [None if index % 2 else b"2" for index in range(count)]


@pytest.mark.parametrize("extra", [0, 200])
async def test_a_conflict_leaves_nothing_of_a_commit(table: Table, extra: int) -> None:
    a, b, c = await table.commit([Put(key=("state", name), value=b"old") for name in "abc"])
    before = await scan_all(table, ("state",))

    async def commit(wrong: str) -> None:
        """With a precondition that does not hold on the key `wrong`."""
        revisions = {"a": a, "b": b, "c": c, "d": ABSENT, "e": ABSENT, "f": ABSENT}
        if wrong:
            revisions[wrong] += 1_000_000
        await table.commit(
            [
                Put(key=("state", "a"), value=b"new", expected=revisions["a"]),
                *(Put(key=("state", f"extra{number}"), value=b"") for number in range(extra)),
                Delete(key=("state", "b"), expected=revisions["b"]),
                Put(key=("state", "d"), value=b"new", expected=revisions["d"]),
                Put(key=("state", "e"), value=b"new", expected=revisions["e"]),
            ],
            [Check(("state", "c"), revisions["c"]), Check(("state", "f"), revisions["f"])],
        )

    for wrong in "abcdef":
        with pytest.raises(Conflict) as caught:
            await commit(wrong)
        assert caught.value.key == ("state", wrong)
        assert await scan_all(table, ("state",)) == before
    await commit("")
    after = {entry.key[1]: entry.value for entry in await scan_all(table, ("state",), starts_with="")}
    assert {name: after.get(name) for name in "abcdef"} == {
        "a": b"new", "b": None, "c": b"old", "d": b"new", "e": b"new", "f": None
    }  # fmt: skip
    assert len(after) == 4 + extra


async def test_one_change_may_depend_on_another_key(table: Table) -> None:
    """A fence."""
    lease = await put(table, "lease", "a")
    await table.commit([Put(key=("state", "a"), value=b"1")], [Check(("lease", "a"), lease)])
    await table.commit([Delete(key=("state", "a"))], [Check(("lease", "a"), lease)])
    await put(table, "lease", "a")
    for change in (Put(key=("state", "a"), value=b"2"), Delete(key=("state", "a"))):
        with pytest.raises(Conflict) as caught:
            await table.commit([change], [Check(("lease", "a"), lease)])
        assert caught.value.key == ("lease", "a")
    assert await table.get(("state", "a")) is None
    await table.commit([Put(key=("state", "a"), value=b"3")], [Check(("lease", "b"), ABSENT)])
    with pytest.raises(Conflict):
        await table.commit([Put(key=("state", "a"), value=b"4")], [Check(("lease", "a"), ABSENT)])
    assert await value_of(table, "state", "a") == b"3"


async def test_as_many_checks_as_changes(table: Table) -> None:
    fences = [("fence", str(number)) for number in range(250)]
    revisions = await table.commit([Put(key=key, value=b"") for key in fences])
    checks = [Check(key, revision) for key, revision in zip(fences, revisions, strict=True)]
    changes = [Put(key=("state", str(number)), value=b"") for number in range(250)]
    await table.commit(changes, checks)
    assert len(await scan_all(table, ("state",))) == 250
    await delete(table, "fence", "249")
    with pytest.raises(Conflict):
        await table.commit([Put(key=change.key, value=b"2") for change in changes], checks)
    assert {entry.value for entry in await scan_all(table, ("state",))} == {b""}


async def test_writes_that_check_each_other_do_not_both_happen(table: Table, connect: Connect) -> None:
    """No write skew: each of two commits depends on what the other one changes."""
    other = (await connect()).table("orders")
    for round in range(25):
        x, y = await table.commit([Put(key=("x", str(round)), value=b""), Put(key=("y", str(round)), value=b"")])
        outcomes = await asyncio.gather(
            table.commit([Put(key=("x", str(round)), value=b"1")], [Check(("y", str(round)), y)]),
            other.commit([Put(key=("y", str(round)), value=b"1")], [Check(("x", str(round)), x)]),
            return_exceptions=True,
        )
        assert sorted(type(outcome) for outcome in outcomes if not isinstance(outcome, list)) == [Conflict]


async def test_a_commit_that_breaks_the_rules_is_refused(table: Table) -> None:
    a, b = ("state", "a"), ("state", "b")
    with pytest.raises(ValueError):
        await table.commit([Put(key=a, value=b"1"), Put(key=a, value=b"2")])
    with pytest.raises(ValueError):
        await table.commit([Put(key=a, value=b"1"), Put(key=b, value=b"2"), Delete(key=a)])
    with pytest.raises(ValueError):
        await table.commit([Put(key=("state", str(number)), value=b"") for number in range(501)])
    with pytest.raises(ValueError):
        await table.commit([Put(key=a, value=b"")], [Check(("state", str(number)), ABSENT) for number in range(500)])
    for ttl in (0.0, 0.999, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError):
            await put(table, *a, ttl=ttl)
    assert await scan_all(table, ()) == []


async def test_a_cancelled_commit_happens_whole_and_at_most_once(table: Table, connect: Connect) -> None:
    other = (await connect()).table("orders")
    watch = other.watch(("state",))
    assert isinstance(await anext(watch), Current)
    tries = [(turns, key) for turns in (0, 1, 2, 3, 5, 8) for key in ("a", "b")]
    for turns, key in tries:
        changes = [Put(key=("state", key), value=b"%d" % turns)]
        if key == "b":
            changes.append(Put(key=("state", f"b{turns}"), value=b"%d" % turns))
        commit = asyncio.ensure_future(table.commit(changes))
        for _ in range(turns):
            await asyncio.sleep(0)
        commit.cancel()
        await asyncio.gather(commit, return_exceptions=True)
    end = await put(table, "state", "end")
    seen: list[tuple[str, bytes]] = []
    async with asyncio.timeout(30):
        async for change in watch:
            if isinstance(change, Entry):
                if change.revision == end:
                    break
                seen.append((change.key[1], change.value))
    assert len(seen) == len(set(seen))
    for turns, _ in tries:
        assert ((f"b{turns}", b"%d" % turns) in seen) == (await other.get(("state", f"b{turns}")) is not None)
    await watch.aclose()
    await put(table, "state", "a", value=b"works")
    assert await value_of(table, "state", "a") == b"works"


# Expiry


async def test_a_key_expires(table: Table, connect: Connect, backing: Backing) -> None:
    other = (await connect()).table("orders")
    first, second = await table.commit([
        Put(key=("state", "a"), value=b"1", ttl=1), Put(key=("state", "b"), value=b"1", ttl=1.5)
    ])  # fmt: skip
    await put(table, "state", "stays")
    entry = await other.get(("state", "a"))
    assert entry is not None
    assert entry.expires is not None
    assert abs(entry.expires - backing.now() - 1) <= 1
    assert len(await scan_all(other, ("state",))) == 3
    await backing.elapse(3)
    assert await other.get_many([("state", "a"), ("state", "b")]) == [None, None]
    assert await table.get(("state", "a")) is None
    assert keys_of(await scan_all(table, ("state",))) == [("state", "stays")]
    with pytest.raises(Conflict):
        await put(table, "state", "a", expected=first)
    with pytest.raises(Conflict):
        await table.commit([Put(key=("state", "c"), value=b"")], [Check(("state", "b"), second)])
    again = await table.commit(
        [Put(key=("state", "a"), value=b"2", expected=ABSENT), Put(key=("state", "d"), value=b"2")],
        [Check(("state", "b"), ABSENT)],
    )
    assert min(again) > second
    assert await value_of(table, "state", "a") == b"2"
    await put(table, "state", "b", expected=ABSENT)


async def test_a_new_value_has_its_own_time_to_live(table: Table, backing: Backing) -> None:
    for name in ("without", "longer", "deleted"):
        await put(table, "state", name, value=b"1", ttl=1)
    await put(table, "state", "shorter", value=b"1", ttl=100)
    await put(table, "state", "without", value=b"2")
    await put(table, "state", "longer", value=b"2", ttl=100)
    await put(table, "state", "shorter", value=b"2", ttl=1)
    await delete(table, "state", "deleted")
    await put(table, "state", "deleted", value=b"2")
    await backing.elapse(3)
    left = {entry.key[1]: entry for entry in await scan_all(table, ("state",))}
    assert sorted(left) == ["deleted", "longer", "without"]
    assert {entry.value for entry in left.values()} == {b"2"}
    assert left["without"].expires is None
    assert (left["longer"].expires or 0) > backing.now() + 90


# Scan


async def test_a_scan_has_the_keys_within_a_prefix(table: Table) -> None:
    keys: list[Key] = [("s",), ("s", "a"), ("s", "ab"), ("s", "b", "x"), ("s", "b", "y", "z"), ("s.a",), ("sa", "b")]
    await table.commit([Put(key=key, value=b"") for key in keys])

    async def found(prefix: Key, starts_with: str = "") -> list[Key]:
        return keys_of(await scan_all(table, prefix, starts_with=starts_with))

    assert await found(("s",)) == [("s", "a"), ("s", "ab"), ("s", "b", "x"), ("s", "b", "y", "z")]
    assert await found(("s",), "a") == [("s", "a"), ("s", "ab")]
    assert await found(("s",), "ab") == [("s", "ab")]
    assert await found(("s",), "abc") == []
    assert await found(("s",), "b") == [("s", "b", "x"), ("s", "b", "y", "z")]
    assert await found(("s", "b")) == [("s", "b", "x"), ("s", "b", "y", "z")]
    assert await found(("s", "b", "y")) == [("s", "b", "y", "z")]
    assert await found(("s", "a")) == []
    assert await found(()) == sorted(keys)
    assert await found((), "s.") == [("s.a",)]
    assert await found(("none",)) == []


async def test_the_start_of_a_part_is_compared_as_text(table: Table) -> None:
    names = [
        "user*",
        "user.1",
        "user.12",
        "user 1",
        "üser",
        "u\u0308ser",
        "user%",
        "user%2E1",
        "userÄ",
        "😀a",
        "😀b",
        ">",
    ]
    await table.commit([Put(key=("s", name), value=b"") for name in names])
    for start in ("user", "user.", "user.1", "user*", "user ", "user%", "ü", "u", "😀", ">", "*", "userÃ"):
        entries = await scan_all(table, ("s",), starts_with=start, limit=3)
        assert keys_of(entries) == sorted(("s", name) for name in names if name.startswith(start))


async def test_pages_follow_each_other(table: Table) -> None:
    names = [f"k{number:03}" for number in range(57)]
    await table.commit([Put(key=("s", name), value=name.encode()) for name in names])
    for limit in (1, 7, 56, 57, 58, 1000):
        entries = await scan_all(table, ("s",), limit=limit)
        assert sorted(entry.value for entry in entries) == [name.encode() for name in names]


async def test_a_scan_sees_what_exists_throughout(table: Table, connect: Connect) -> None:
    other = (await connect()).table("orders")
    kept = [f"kept{number:03}" for number in range(40)]
    rewritten = [f"rewritten{number:03}" for number in range(40)]
    doomed = [f"doomed{number:03}" for number in range(40)]
    await table.commit([Put(key=("s", name), value=b"1") for name in [*kept, *rewritten, *doomed]])
    seen: set[Key] = set()
    cursor = None
    for round in range(100):
        page = await table.scan(("s",), limit=7, cursor=cursor)
        seen |= {entry.key for entry in page.entries}
        cursor = page.cursor
        if cursor is None:
            break
        if round < 20:
            await put(other, "s", f"new{round}")
            await other.commit([Put(key=("s", name), value=b"2") for name in rewritten[2 * round : 2 * round + 2]])
            await other.commit([Delete(key=("s", name)) for name in doomed[-2 * round - 2 : -2 * round or None]])
    assert cursor is None
    assert seen >= {("s", name) for name in [*kept, *rewritten]}


async def test_a_cursor_belongs_to_its_scan(table: Table) -> None:
    await table.commit([Put(key=(kind, name), value=b"") for kind in "st" for name in ("a1", "a2", "a3")])
    cursor = (await table.scan(("s",), limit=1)).cursor
    assert cursor is not None
    with pytest.raises(ValueError):
        await table.scan(("t",), limit=1, cursor=cursor)
    with pytest.raises(ValueError):
        await table.scan(("s",), starts_with="a", limit=1, cursor=cursor)
    for bad in ("", "x", "ü", "a" * 1000, "\ud800", cursor + "x", cursor[::-1]):
        with pytest.raises(ValueError):
            await table.scan(("s",), limit=1, cursor=bad)
    for limit in (0, -1):
        with pytest.raises(ValueError):
            await table.scan(("s",), limit=limit)


# Closing


async def test_a_closed_table_answers_nothing(connect: Connect) -> None:
    tables = await connect()
    table = tables.table("orders")
    await put(table, "state", "a")
    watch = table.watch(("state",))
    assert isinstance(await anext(watch), Current)
    ended = asyncio.ensure_future(anext(watch))
    await asyncio.sleep(0)
    await tables.close()
    with pytest.raises(StopAsyncIteration):
        await asyncio.wait_for(ended, 30)
    for operation in (table.get(("state", "a")), table.scan(("state",), limit=1), put(table, "state", "a")):
        with pytest.raises(BrokerUnavailable):
            await asyncio.wait_for(operation, 30)
    with pytest.raises(BrokerUnavailable):
        await asyncio.wait_for(put(tables.table("other"), "state", "a"), 30)
    await tables.close()
