"""The contract of `StateStore`, and of what a store can do beyond it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from itertools import count
from typing import Any, cast

import pytest

from bindings.state.in_memory import MemoryStateStore
from mesh.fencing import FenceToken
from mesh.ports.stores import (
    DeleteState,
    EtagMismatch,
    Expired,
    HistoricStateStore,
    InvalidEtag,
    InvalidStoreKey,
    ListableStateStore,
    OutboxRecord,
    OutboxStateStore,
    Position,
    SetState,
    StateFeature,
    StateItem,
    StateStore,
    StateVersion,
    StoreError,
    Unsupported,
    ValueTooLarge,
    WatchableStateStore,
)
from mesh.ports.tables import ABSENT, Delete, Put
from tests.contract.state_stores import STATE_BACKINGS, LoneMeshStateStore, StateBacking

names = (f"store{number}" for number in count(1))

A, B, C = "app1||a", "app1||b", "app1||c"

ODD_KEYS = [
    *("with.dots", ".", "..", "*", ">", "a.*", "a.>", " ", " blank ", "a/b", "%", "%2E", "~", "$JS.API", "é", "日本語"),
    *("😀", "line\nbreak", "'", '"', "\\", "{}", "[*]", "_", "UPPER", "upper", "null", "0", "--", "a:b", "k" * 500),
]

VALUES = [
    b"",
    b"null",
    b'"text"',
    b'{"a": 1}',
    b"\x00\xff\x00",
    b"9007199254740993",
    b" ",
    "☃".encode(),
    b"x" * 100_000,
]


@pytest.fixture(scope="module", params=STATE_BACKINGS, ids=lambda backing: backing.name)
def state_backing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StateBacking]:
    started = request.param()
    started.start(tmp_path_factory.mktemp(started.name))
    yield started
    started.stop()


@pytest.fixture
async def connect(state_backing: StateBacking) -> AsyncIterator[Callable[[], Awaitable[StateStore]]]:
    """Makes one more process's end of the test's store, started."""
    name = next(names)
    stores: list[StateStore] = []

    async def connect() -> StateStore:
        store = await state_backing.store(name)
        stores.append(store)
        await asyncio.wait_for(store.start(), 20)
        return store

    yield connect
    for store in stores:
        await asyncio.wait_for(store.close(), 10)


@pytest.fixture
async def store(connect: Callable[[], Awaitable[StateStore]]) -> StateStore:
    return await connect()


def needs(store: StateStore, *features: StateFeature) -> Any:
    missing = set(features) - store.features
    if missing:
        pytest.skip(f"the store does not declare {', '.join(feature.name for feature in missing)}")
    return store


async def put(store: StateStore, key: str, value: bytes = b"1", **more: Any) -> StateItem:
    await store.change(SetState(key=key, value=value, **more))
    item = await store.get(key)
    assert item is not None
    return item


async def value(store: StateStore, key: str) -> bytes | None:
    item = await store.get(key)
    return None if item is None else item.value


async def etag(store: StateStore, key: str) -> str:
    item = await store.get(key)
    assert item is not None
    assert item.etag
    return item.etag


# Items


async def test_what_was_set_is_got(store: StateStore) -> None:
    assert await store.get(A) is None
    await store.change(SetState(key=A, value=b'{"n": 1}'))
    item = await store.get(A)
    assert item is not None
    assert (item.key, item.value, item.expires) == (A, b'{"n": 1}', None)
    strong = await store.get(A, strong=True)
    assert strong == item


async def test_an_item_is_replaced_and_removed(store: StateStore) -> None:
    await put(store, A, b"1")
    assert (await put(store, A, b"2")).value == b"2"
    await store.change(DeleteState(key=A))
    assert await store.get(A) is None
    assert await store.get(A, strong=True) is None
    await store.change(DeleteState(key=A))
    assert (await put(store, A, b"3")).value == b"3"


@pytest.mark.parametrize("content", VALUES, ids=lambda content: repr(content[:12]))
async def test_a_value_is_any_bytes(store: StateStore, content: bytes) -> None:
    assert (await put(store, A, content)).value == content
    assert (await store.get(A, strong=True)) == await store.get(A)


async def test_a_key_is_any_text(store: StateStore) -> None:
    for number, key in enumerate(ODD_KEYS):
        await store.change(SetState(key=f"app1||{key}", value=str(number).encode()))
    for number, key in enumerate(ODD_KEYS):
        assert await value(store, f"app1||{key}") == str(number).encode(), key
    found = await store.get_many([f"app1||{key}" for key in ODD_KEYS])
    assert [item.value for item in found if isinstance(item, StateItem)] == [
        str(number).encode() for number in range(len(ODD_KEYS))
    ]


async def test_prefixes_are_apart(store: StateStore) -> None:
    for key in ("app1||a", "app2||a", "a", "app1||a||b"):
        await store.change(SetState(key=key, value=key.encode()))
    for key in ("app1||a", "app2||a", "a", "app1||a||b"):
        item = await store.get(key)
        assert item is not None
        assert (item.key, item.value) == (key, key.encode())


async def test_all_processes_see_one_store(store: StateStore, connect: Callable[[], Awaitable[StateStore]]) -> None:
    if isinstance(store, MemoryStateStore):
        pytest.skip("in the memory of one process")
    other = await connect()
    item = await put(store, A)
    assert await other.get(A, strong=True) == item
    await other.change(SetState(key=A, value=b"2", etag=item.etag))
    again = await store.get(A, strong=True)
    assert again is not None
    assert again.value == b"2"
    with pytest.raises(EtagMismatch):
        await store.change(SetState(key=A, value=b"3", etag=item.etag))


async def test_many_at_once(store: StateStore) -> None:
    await put(store, A, b"1")
    await put(store, C, b"3")
    found = await store.get_many([C, B, A, C])
    assert [None if item is None else cast(StateItem, item).value for item in found] == [b"3", None, b"1", b"3"]
    assert found[2] == await store.get(A)
    assert await store.get_many([]) == []
    keys = [f"app1||{number}" for number in range(250)]
    await asyncio.gather(*(store.change(SetState(key=key, value=key.encode())) for key in keys))
    found = await store.get_many(keys, strong=True)
    assert [cast(StateItem, item).value for item in found] == [key.encode() for key in keys]


async def test_a_key_that_cannot_be_does_not_harm_the_others(store: StateStore) -> None:
    await put(store, A)
    try:
        await store.change(SetState(key="app1||" + "k" * 10_000, value=b"1"))
    except InvalidStoreKey:
        bad, item = await store.get_many(["app1||" + "k" * 10_000, A])
        assert isinstance(bad, StoreError)
        assert isinstance(item, StateItem)
        with pytest.raises(InvalidStoreKey):
            await store.get("app1||" + "k" * 10_000)
    else:
        assert await value(store, "app1||" + "k" * 10_000) == b"1"


async def test_it_answers(store: StateStore) -> None:
    await store.ping()


# ETags


async def test_an_etag_names_a_value(store: StateStore) -> None:
    needs(store, StateFeature.ETAG)
    first = (await put(store, A, b"1")).etag
    assert first
    assert await etag(store, A) == first
    second = (await put(store, A, b"1")).etag
    assert second != first
    await store.change(SetState(key=A, value=b"2", etag=second))
    assert await value(store, A) == b"2"


async def test_a_write_with_an_old_etag_loses(store: StateStore) -> None:
    needs(store, StateFeature.ETAG)
    old = (await put(store, A, b"1")).etag
    new = (await put(store, A, b"2")).etag
    for change in (
        SetState(key=A, value=b"3", etag=old),
        SetState(key=A, value=b"3", etag=old, first_write=True),
        DeleteState(key=A, etag=old),
    ):
        with pytest.raises(EtagMismatch):
            await store.change(change)
    assert (await value(store, A), await etag(store, A)) == (b"2", new)
    await store.change(DeleteState(key=A, etag=new))
    assert await store.get(A) is None


async def test_an_etag_is_of_an_item_that_exists(store: StateStore) -> None:
    needs(store, StateFeature.ETAG)
    gone = (await put(store, A)).etag
    await store.change(DeleteState(key=A))
    for change in (SetState(key=A, value=b"2", etag=gone), DeleteState(key=A, etag=gone)):
        with pytest.raises(EtagMismatch):
            await store.change(change)
    assert await store.get(A) is None


async def test_first_write_creates_only(store: StateStore) -> None:
    needs(store, StateFeature.ETAG)
    await store.change(SetState(key=A, value=b"1", first_write=True))
    with pytest.raises(EtagMismatch):
        await store.change(SetState(key=A, value=b"2", first_write=True))
    assert await value(store, A) == b"1"
    await store.change(DeleteState(key=A))
    await store.change(SetState(key=A, value=b"3", first_write=True))
    assert await value(store, A) == b"3"
    await store.change(SetState(key=A, value=b"4"))


async def test_of_many_first_writes_one_wins(store: StateStore) -> None:
    needs(store, StateFeature.ETAG)
    writes = [store.change(SetState(key=A, value=b"%d" % n, first_write=True)) for n in range(20)]
    outcomes = await asyncio.gather(*writes, return_exceptions=True)
    [winner] = [number for number, outcome in enumerate(outcomes) if outcome is None]
    assert {type(outcome) for outcome in outcomes} == {type(None), EtagMismatch}
    assert await value(store, A) == b"%d" % winner


async def test_counting_with_etags_loses_nothing(store: StateStore) -> None:
    needs(store, StateFeature.ETAG)
    await put(store, A, b"0")

    async def count_one() -> None:
        while True:
            item = await store.get(A)
            assert item is not None
            try:
                await store.change(SetState(key=A, value=b"%d" % (int(item.value) + 1), etag=item.etag))
            except EtagMismatch:
                await asyncio.sleep(0)
                continue
            return

    await asyncio.wait_for(asyncio.gather(*(count_one() for _ in range(20))), 30)
    assert await value(store, A) == b"20"


async def test_an_etag_that_this_store_never_makes(store: StateStore) -> None:
    needs(store, StateFeature.ETAG)
    await put(store, A, b"1")
    for bad in ("no etag of anybody's", "-1", "0x1"):
        with pytest.raises((InvalidEtag, EtagMismatch)):
            await store.change(SetState(key=A, value=b"2", etag=bad))
        with pytest.raises((InvalidEtag, EtagMismatch)):
            await store.change(DeleteState(key=A, etag=bad))
    assert await value(store, A) == b"1"


# Lifetimes


async def test_an_item_expires(store: StateStore, state_backing: StateBacking) -> None:
    needs(store, StateFeature.TTL)
    item = await put(store, A, b"1", ttl=1)
    await put(store, B, b"2", ttl=60)
    await put(store, C, b"3", ttl=-1)
    assert item.expires is not None
    await state_backing.elapse(2.1)
    assert await store.get(A) is None
    assert await store.get(A, strong=True) is None
    assert [item is not None for item in await store.get_many([A, B, C])] == [False, True, True]
    if StateFeature.ETAG in store.features:
        with pytest.raises(EtagMismatch):
            await store.change(SetState(key=A, value=b"2", etag=item.etag))
        await store.change(SetState(key=A, value=b"3", first_write=True))


async def test_a_lifetime_ends_with_the_value(store: StateStore, state_backing: StateBacking) -> None:
    needs(store, StateFeature.TTL)
    await put(store, A, b"1", ttl=1)
    assert (await put(store, A, b"2", ttl=-1)).expires is None
    await put(store, B, b"1", ttl=1)
    assert (await put(store, B, b"2", ttl=60)).expires is not None
    await state_backing.elapse(2.1)
    assert (await value(store, A), await value(store, B)) == (b"2", b"2")


# Transactions


async def test_a_transaction_does_all(store: StateStore) -> None:
    needs(store, StateFeature.TRANSACTIONAL)
    await put(store, A, b"1")
    await put(store, B, b"2")
    await store.transact(
        [SetState(key=A, value=b"3"), DeleteState(key=B), SetState(key=C, value=b"4"), DeleteState(key="app1||d")]
    )
    assert [await value(store, key) for key in (A, B, C)] == [b"3", None, b"4"]


async def test_a_transaction_does_nothing(store: StateStore) -> None:
    needs(store, StateFeature.TRANSACTIONAL, StateFeature.ETAG)
    old = (await put(store, A, b"1")).etag
    await put(store, A, b"2")
    for bad in (
        SetState(key=A, value=b"3", etag=old),
        DeleteState(key=A, etag=old),
        SetState(key=A, value=b"3", first_write=True),
        SetState(key=B, value=b"3", etag=old),
    ):
        with pytest.raises(EtagMismatch):
            await store.transact([SetState(key=C, value=b"4"), bad])
        with pytest.raises(EtagMismatch):
            await store.transact([bad, SetState(key=C, value=b"4")])
        assert [await value(store, key) for key in (A, B, C)] == [b"2", None, None]


async def test_a_key_may_occur_twice_in_a_transaction(store: StateStore) -> None:
    needs(store, StateFeature.TRANSACTIONAL)
    await put(store, A, b"1")
    await store.transact([SetState(key=A, value=b"2"), SetState(key=B, value=b"2"), SetState(key=A, value=b"3")])
    await store.transact(
        [SetState(key=C, value=b"3"), DeleteState(key=C), DeleteState(key=B), SetState(key=B, value=b"5")]
    )
    assert [await value(store, key) for key in (A, B, C)] == [b"3", b"5", None]


async def test_conditions_of_a_key_that_occurs_twice(store: StateStore) -> None:
    needs(store, StateFeature.TRANSACTIONAL, StateFeature.ETAG)
    now = (await put(store, A, b"1")).etag
    await store.transact([SetState(key=A, value=b"2", etag=now), SetState(key=A, value=b"3")])
    assert await value(store, A) == b"3"
    now = await etag(store, A)
    for second in (SetState(key=A, value=b"5", etag=now), SetState(key=A, value=b"5", first_write=True)):
        with pytest.raises(EtagMismatch):
            await store.transact([SetState(key=A, value=b"4"), second])
    await store.transact([DeleteState(key=A), SetState(key=A, value=b"6", first_write=True)])
    assert await value(store, A) == b"6"


async def test_a_transaction_may_be_as_long_as_it_says(store: StateStore) -> None:
    needs(store, StateFeature.TRANSACTIONAL)
    size = store.max_transaction or 200
    keys = [f"app1||{number}" for number in range(size)]
    await store.transact([SetState(key=key, value=b"1") for key in keys])
    assert sum(isinstance(item, StateItem) for item in await store.get_many(keys)) == size
    await store.transact([DeleteState(key=key) for key in keys])
    assert await store.get_many(keys) == [None] * size


async def test_lifetimes_in_a_transaction(store: StateStore, state_backing: StateBacking) -> None:
    needs(store, StateFeature.TRANSACTIONAL, StateFeature.TTL)
    await store.transact([SetState(key=A, value=b"1", ttl=1), SetState(key=B, value=b"2")])
    assert (await value(store, A), await value(store, B)) == (b"1", b"2")
    await state_backing.elapse(2.1)
    assert (await value(store, A), await value(store, B)) == (None, b"2")


# Limits


async def test_a_value_that_is_too_large_changes_nothing(store: StateStore) -> None:
    await put(store, A, b"1")
    try:
        await store.change(SetState(key=A, value=b"x" * 10_000_000))
    except ValueTooLarge:
        assert await value(store, A) == b"1"
        if StateFeature.TRANSACTIONAL in store.features:
            with pytest.raises(ValueTooLarge):
                await store.transact([SetState(key=B, value=b"1"), SetState(key=A, value=b"x" * 10_000_000)])
            assert await store.get(B) is None
    else:
        assert len(await value(store, A) or b"") == 10_000_000


# Lists


async def test_a_list_is_of_the_keys_that_begin_so(store: StateStore) -> None:
    listable: ListableStateStore = needs(store, StateFeature.LIST)
    keys = {f"app1||cart-{number}" for number in range(25)}
    for key in [*keys, "app1||car", "app1||Cart-1", "app2||cart-1", "cart-1"]:
        await store.change(SetState(key=key, value=key.encode()))
    found: list[StateItem] = []
    cursor = None
    for _ in range(30):
        items, cursor = await listable.list_items("app1||cart-", limit=10, cursor=cursor)
        assert len(items) <= 10
        found += items
        if cursor is None:
            break
    assert cursor is None
    assert sorted(item.key for item in found) == sorted(keys)
    assert all(item.value == item.key.encode() for item in found)
    if StateFeature.ETAG in store.features:
        await store.change(DeleteState(key=found[0].key, etag=found[0].etag))
    assert (await listable.list_items("app1||nothing", limit=10))[0] == []
    with pytest.raises(Expired):
        await listable.list_items("app1||", limit=10, cursor="no cursor")


# Watches


async def test_a_watch_shows_what_is_then_what_comes(store: StateStore) -> None:
    watchable: WatchableStateStore = needs(store, StateFeature.WATCH)
    for key in (A, B, "app1||a2", "app2||a"):
        await put(store, key, key.encode())
    async with asyncio.timeout(20):
        async with aclosing(watchable.watch("app1||a", after="0")) as changes:
            seen = [await anext(changes) for _ in range(3)]
            assert isinstance(seen[2], Position)
            assert {change.key for change in seen if isinstance(change, StateVersion)} == {A, "app1||a2"}
            await put(store, B, b"other")
            await put(store, A, b"new")
            change = await anext(changes)
            assert isinstance(change, StateVersion)
            assert (change.key, change.value, change.etag) == (A, b"new", await etag(store, A))
            await store.change(DeleteState(key=A))
            gone = await anext(changes)
            assert isinstance(gone, StateVersion)
            assert (gone.key, gone.value, int(gone.etag) > int(change.etag)) == (A, None, True)
        await put(store, A, b"again")
        async with aclosing(watchable.watch("app1||a", after=change.etag)) as changes:
            later = await anext(changes)
            assert isinstance(later, StateVersion)
            if later.value is None:  # the deletion may be shown, or be superseded
                later = await anext(changes)
            assert (later.key, later.value) == (A, b"again")  # type: ignore[union-attr]
            assert isinstance(await anext(changes), Position)


async def test_a_watch_from_now_on(store: StateStore) -> None:
    watchable: WatchableStateStore = needs(store, StateFeature.WATCH)
    await put(store, A, b"1")
    async with asyncio.timeout(20), aclosing(watchable.watch("app1||")) as changes:
        assert isinstance(await anext(changes), Position)
        await put(store, A, b"2")
        change = await anext(changes)
        assert isinstance(change, StateVersion)
        assert change.value == b"2"


async def test_a_watch_from_a_position_of_another_store(store: StateStore) -> None:
    watchable: WatchableStateStore = needs(store, StateFeature.WATCH)
    await put(store, A, b"1")
    with pytest.raises(InvalidEtag):
        async with asyncio.timeout(20), aclosing(watchable.watch("app1||", after="x")) as changes:
            await anext(changes)
    beyond = str(int(await etag(store, A)) + 1000)  # as after the store was lost
    for prefix in ("app1||", "app1||nothing"):
        with pytest.raises(Expired, match=f"nothing has the ETag {beyond} yet"):
            async with asyncio.timeout(20), aclosing(watchable.watch(prefix, after=beyond)) as changes:
                await anext(changes)


# Earlier values


async def test_earlier_values(store: StateStore, state_backing: StateBacking) -> None:
    historic: HistoricStateStore = needs(store, StateFeature.HISTORY)
    first = await put(store, A, b"1")
    await state_backing.elapse(0.02)
    second = await put(store, A, b"2")
    await state_backing.elapse(0.02)
    await store.change(DeleteState(key=A))
    async with asyncio.timeout(20):
        while len(versions := await historic.history(A, limit=10)) < 3:  # it may lag behind
            await asyncio.sleep(0.01)
    assert [version.value for version in versions] == [None, b"2", b"1"]
    assert [version.etag for version in versions[1:]] == [second.etag, first.etag]
    assert {version.key for version in versions} == {A}
    assert len(await historic.history(A, limit=1)) == 1
    item = await historic.as_of(A, etag=first.etag)
    assert item is not None
    assert (item.key, item.value, item.etag) == (A, b"1", first.etag)
    assert await historic.as_of(A, etag=versions[0].etag) is None
    item = await historic.as_of(A, time=versions[1].time)
    assert item is not None
    assert item.value == b"2"
    with pytest.raises(InvalidEtag):
        await historic.as_of(A, etag="x")


# Fences


async def test_a_write_under_a_lock_that_has_passed_on_loses(store: StateStore) -> None:
    needs(store, StateFeature.FENCE)
    assert isinstance(store, LoneMeshStateStore)
    table = store.tables.table("app1")
    lock = ("lock", "locks", "a||b")
    [revision] = await table.commit([Put(key=lock, value=b"me", expected=ABSENT)])
    token = FenceToken("app1", lock, revision).encode()
    await store.change(SetState(key=A, value=b"1", fence=token))
    await store.transact([SetState(key=A, value=b"2", fence=token), SetState(key=B, value=b"2", fence=token)])
    await table.commit([Put(key=lock, value=b"another", expected=revision)])
    for change in (SetState(key=A, value=b"3", fence=token), DeleteState(key=A, fence=token)):
        with pytest.raises(EtagMismatch, match="not held any more"):
            await store.change(change)
        with pytest.raises(EtagMismatch, match="not held any more"):
            await store.transact([SetState(key=C, value=b"3"), change])
    assert [await value(store, key) for key in (A, B, C)] == [b"2", b"2", None]
    await table.commit([Delete(key=lock)])
    with pytest.raises(EtagMismatch):
        await store.change(SetState(key=A, value=b"3", fence=token))
    with pytest.raises(Unsupported, match="same keyPrefix"):
        await store.change(SetState(key="app2||a", value=b"3", fence=token))


# Outboxes


async def test_events_are_stored_with_the_items_or_not_at_all(store: StateStore) -> None:
    outbox: OutboxStateStore = needs(store, StateFeature.OUTBOX)
    old = (await put(store, A, b"1")).etag
    await put(store, A, b"2")
    with pytest.raises(EtagMismatch):
        await outbox.transact_with([SetState(key=A, value=b"3", etag=old)], [OutboxRecord("lost", b"{}")])
    await outbox.transact_with([SetState(key=A, value=b"3")], [OutboxRecord("1", b'{"id":"1"}')])
    async with asyncio.timeout(20), aclosing(outbox.pending("app1||")) as pending:
        assert await anext(pending) == "1"
        await outbox.transact_with([DeleteState(key=A)], [OutboxRecord("2", b'{"id":"2"}')])
        assert await anext(pending) == "2"
    assert await outbox.record("app1||", "1") == OutboxRecord("1", b'{"id":"1"}')
    await outbox.remove_record("app1||", "1")
    await outbox.remove_record("app1||", "1")
    assert await outbox.record("app1||", "1") is None
    assert await outbox.record("app1||", "lost") is None
    assert await store.get(A) is None
