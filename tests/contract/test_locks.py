"""The contract of `LockStore`, on every implementation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from itertools import count

import pytest

from mesh.fencing import FenceToken
from mesh.ports.stores import LockStore, UnlockStatus
from tests.contract.lock_stores import LOCK_BACKINGS, LockBacking

Connect = Callable[[], Awaitable[LockStore]]

numbers = count(1)
LONG = 60.0


@pytest.fixture(scope="module", params=LOCK_BACKINGS, ids=lambda backing: backing.name)
def backing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LockBacking]:
    started = request.param()
    started.start(tmp_path_factory.mktemp(started.name))
    yield started
    started.stop()


@pytest.fixture
async def connect(backing: LockBacking) -> AsyncIterator[Connect]:
    stores: list[LockStore] = []

    async def connect() -> LockStore:
        stores.append(await backing.store())
        await asyncio.wait_for(stores[-1].start(), 30)
        return stores[-1]

    yield connect
    for store in stores:
        await asyncio.wait_for(store.close(), 10)


@pytest.fixture
async def store(connect: Connect) -> LockStore:
    return await connect()


@pytest.fixture
def resource() -> str:
    return f"lock||app1||resource {next(numbers)}"


async def test_one_has_it(store: LockStore, resource: str, connect: Connect) -> None:
    assert await store.try_lock(resource, "a", LONG) is not None
    assert await store.try_lock(resource, "b", LONG) is None
    assert await (await connect()).try_lock(resource, "b", LONG) is None
    assert await store.try_lock(resource + "x", "b", LONG) is not None


async def test_it_is_not_reentrant(store: LockStore, resource: str) -> None:
    assert await store.try_lock(resource, "a", LONG) is not None
    assert await store.try_lock(resource, "a", LONG) is None


async def test_unlock(store: LockStore, resource: str, connect: Connect) -> None:
    other = await connect()
    assert await store.unlock(resource, "a") is UnlockStatus.LOCK_DOES_NOT_EXIST
    await store.try_lock(resource, "a", LONG)
    assert await store.unlock(resource, "b") is UnlockStatus.BELONGS_TO_OTHERS
    assert await other.try_lock(resource, "b", LONG) is None, "it is still locked"
    assert await other.unlock(resource, "a") is UnlockStatus.SUCCESS, "by any process that knows the owner"
    assert await store.unlock(resource, "a") is UnlockStatus.LOCK_DOES_NOT_EXIST
    assert await store.try_lock(resource, "b", LONG) is not None


async def test_it_expires_and_not_before(store: LockStore, resource: str, backing: LockBacking) -> None:
    await store.try_lock(resource, "a", 1)
    await backing.elapse(0.5)
    assert await store.try_lock(resource, "b", LONG) is None
    await backing.elapse(1.6)
    assert await store.unlock(resource, "a") is UnlockStatus.LOCK_DOES_NOT_EXIST
    assert await store.try_lock(resource, "b", LONG) is not None
    assert await store.unlock(resource, "a") is UnlockStatus.BELONGS_TO_OTHERS


async def test_of_many_at_once_one_wins(connect: Connect, resource: str) -> None:
    stores = [await connect() for _ in range(4)]
    outcomes = await asyncio.gather(*(store.try_lock(resource, str(n), LONG) for n in range(8) for store in stores))
    assert sum(outcome is not None for outcome in outcomes) == 1


async def test_exclusion(connect: Connect, resource: str) -> None:
    """A counter that is read and written under the lock only is never wrong."""
    counter = holders = 0

    async def work(store: LockStore, owner: str) -> None:
        nonlocal counter, holders
        for _ in range(5):
            while await store.try_lock(resource, owner, LONG) is None:
                await asyncio.sleep(0.001)
            holders += 1
            assert holders == 1
            before = counter
            await asyncio.sleep(0)
            counter = before + 1
            holders -= 1
            assert await store.unlock(resource, owner) is UnlockStatus.SUCCESS

    stores = [await connect() for _ in range(4)]
    await asyncio.gather(*(work(store, f"owner {number}") for number, store in enumerate(stores)))
    assert counter == 20


async def test_tokens_grow_with_each_holder(store: LockStore, resource: str, backing: LockBacking) -> None:
    tokens = []
    for owner in ("a", "b", "a"):
        token = await store.try_lock(resource, owner, LONG)
        assert token is not None
        tokens.append(token)
        await store.unlock(resource, owner)
    if not backing.fences:
        assert tokens == ["", "", ""]
        return
    revisions = [FenceToken.decode(token).revision for token in tokens]
    assert revisions == sorted(set(revisions))
    assert {FenceToken.decode(token).scope for token in tokens} == {"app1"}


@pytest.mark.parametrize("id", ["with blanks", "a.*.>", "é 日本語 😀", "a/b", "%2F", "\x00", "x" * 500])
async def test_any_id(store: LockStore, id: str, resource: str) -> None:
    name = f"{resource} {id}"
    assert await store.try_lock(name, f"owner {id}", LONG) is not None
    assert await store.try_lock(name, "b", LONG) is None
    assert await store.unlock(name, f"owner {id}") is UnlockStatus.SUCCESS


async def test_without_a_prefix(store: LockStore) -> None:
    name = f"lock||plain {next(numbers)}"
    assert await store.try_lock(name, "a", LONG) is not None
    assert await store.try_lock(name, "b", LONG) is None
    assert await store.unlock(name, "a") is UnlockStatus.SUCCESS


async def test_ping(store: LockStore) -> None:
    await store.ping()


async def test_closed(backing: LockBacking) -> None:
    store = await backing.store()
    await store.start()
    await store.close()
    await store.close()
