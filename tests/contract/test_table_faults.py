"""Tables that declare `DURABLE`, while their broker is killed or frozen."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import cast

import pytest

from mesh.errors import BrokerUnavailable
from mesh.ports.tables import ABSENT, Conflict, Current, Delete, Entry, Gone, Key, Put, Table, TableFeature, Tables
from tests.contract.tables import Backing, DurableBacking

Connect = Callable[[], Awaitable[Tables]]

LIMIT = 30.0
"""Seconds for anything that waits for the broker to come back, or to be given up."""
PATIENCE = 10.0
"""Seconds of an outage that every operation outlives."""


@pytest.fixture
async def broker(backing: Backing) -> AsyncIterator[DurableBacking]:
    if TableFeature.DURABLE not in backing.features:
        pytest.skip(f"{backing.name} does not declare DURABLE")
    broker = cast(DurableBacking, backing)
    yield broker
    broker.thaw()


async def restart(broker: DurableBacking) -> None:
    await asyncio.to_thread(broker.crash)
    await asyncio.to_thread(broker.recover)


async def put(
    table: Table, *key: str, value: bytes = b"v", ttl: float | None = None, expected: int | None = None
) -> int:
    async with asyncio.timeout(LIMIT):
        [revision] = await table.commit([Put(key=key, value=value, ttl=ttl, expected=expected)])
    return revision


async def test_entries_outlive_the_broker(broker: DurableBacking, table: Table, connect: Connect) -> None:
    keys: list[Key] = [("state", str(number)) for number in range(100)]
    revisions = await table.commit([Put(key=key, value=key[1].encode(), content_type="text/plain") for key in keys])
    await table.commit([Delete(key=key) for key in keys[90:]])
    mortal = await put(table, "state", "mortal", ttl=2)
    before = await table.get_many(keys)
    await restart(broker)
    other = (await connect()).table("orders")
    for client in (table, other):
        async with asyncio.timeout(LIMIT):
            assert await client.get_many(keys) == before
    with pytest.raises(Conflict):
        await put(other, "state", "0", expected=revisions[1])
    assert await put(other, "state", "0", expected=revisions[0]) > mortal
    await put(table, "state", "99", expected=ABSENT)
    await broker.elapse(2.5)
    assert await other.get(("state", "mortal")) is None


async def test_a_watch_outlives_the_broker(broker: DurableBacking, table: Table, connect: Connect) -> None:
    """What others changed before the watch is back is shown, the newest of each key; and then it is current again."""
    await table.commit([Put(key=("state", name), value=b"old") for name in ("same", "changed", "gone")])
    losses: list[None] = []
    watch = table.watch(("state",), lost=lambda: losses.append(None))
    async with asyncio.timeout(LIMIT):
        assert isinstance(await anext(watch), Current)
    for round in range(2):
        await restart(broker)
        other = (await connect()).table("orders")
        async with asyncio.timeout(LIMIT):
            for value in (b"1", b"2"):
                await other.commit([Put(key=("state", "changed"), value=b"%d.%s" % (round, value))])
            await other.commit([Delete(key=("state", "gone"))])
            end = await put(other, "state", "end", value=b"%d" % round)
        newest: dict[str, bytes | None] = {}
        last = 0
        is_current = False
        async with asyncio.timeout(LIMIT):
            while last < end or not is_current:
                change = await anext(watch)
                assert change.revision >= last
                last = change.revision
                match change:
                    case Current():
                        is_current = True
                    case Entry():
                        newest[change.key[1]] = change.value
                    case Gone():
                        newest[change.key[1]] = None
        assert len(losses) > round
        assert newest == {"changed": b"%d.2" % round, "gone": None, "end": b"%d" % round}
        await put(other, "state", "gone")
        async with asyncio.timeout(LIMIT):
            assert isinstance(await anext(watch), Entry)
    await watch.aclose()


async def test_what_a_frozen_broker_was_asked_happens_once_or_not(
    broker: DurableBacking, table: Table, connect: Connect
) -> None:
    other = (await connect()).table("orders")
    watch = other.watch(("state",))
    await put(table, "state", "first")
    await other.get(("state", "first"))
    async with asyncio.timeout(LIMIT):
        assert isinstance(await anext(watch), Current)
    broker.freeze()
    given_up = asyncio.ensure_future(table.commit([Put(key=("state", "a"), value=b"given up")]))
    pair = asyncio.ensure_future(table.commit([Put(key=("state", name), value=b"pair") for name in ("b", "c")]))
    patient = asyncio.ensure_future(table.commit([Put(key=("state", "d"), value=b"patient")]))
    await asyncio.sleep(2.5)  # longer than an attempt takes
    given_up.cancel()
    broker.thaw()
    outcomes = await asyncio.wait_for(asyncio.gather(given_up, pair, patient, return_exceptions=True), LIMIT)
    assert all(isinstance(outcome, list | BrokerUnavailable | asyncio.CancelledError) for outcome in outcomes)
    end = await put(table, "state", "end")
    seen: list[tuple[str, int]] = []
    async with asyncio.timeout(LIMIT):
        while not seen or seen[-1][1] < end:
            change = await anext(watch)
            if isinstance(change, Entry):
                seen.append((change.key[1], change.revision))
    await watch.aclose()
    names = [name for name, _ in seen]
    assert len(names) == len(set(names))
    assert ("b" in names) == ("c" in names)
    for name, outcome in zip("bd", outcomes[1:], strict=True):
        if isinstance(outcome, list):
            assert (name, outcome[0]) in seen


async def test_a_frozen_broker_is_given_up_in_the_end(broker: DurableBacking, table: Table) -> None:
    await put(table, "state", "a")
    lost = asyncio.Event()
    watch = table.watch(("state",), lost=lost.set)
    assert isinstance(await anext(watch), Current)
    broker.freeze()
    watch_is_lost = asyncio.ensure_future(asyncio.wait_for(lost.wait(), 30.0))
    operations = [
        table.get(("state", "a")),
        table.get_many([("state", "a"), ("state", "b")]),
        table.scan(("state",), limit=10),
        table.commit([Put(key=("state", "x"), value=b"")]),
        table.commit([Put(key=("state", "y"), value=b""), Put(key=("state", "z"), value=b"")]),
    ]
    outcomes = await asyncio.wait_for(asyncio.gather(*operations, return_exceptions=True), LIMIT)
    assert [type(outcome) for outcome in outcomes if not isinstance(outcome, BrokerUnavailable)] == []
    await watch_is_lost
    broker.thaw()
    async with asyncio.timeout(LIMIT):
        assert isinstance(await anext(watch), Entry | Current)
        await watch.aclose()
        y, z = await table.get_many([("state", "y"), ("state", "z")])
    assert (y is None) == (z is None)
    await put(table, "state", "a", value=b"works")


async def test_commits_during_an_outage_are_done_when_it_is_over(broker: DurableBacking, table: Table) -> None:
    revision = await put(table, "state", "a")
    await asyncio.to_thread(broker.crash)
    keeping = asyncio.ensure_future(table.keep_history(("other",), 5))
    commits = [
        asyncio.ensure_future(put(table, "state", "a", value=b"cas", expected=revision)),
        asyncio.ensure_future(table.commit([Put(key=("state", name), value=b"pair") for name in ("b", "c")])),
    ]
    begun = asyncio.get_running_loop().time()
    await asyncio.sleep(0.3)
    await asyncio.to_thread(broker.recover)
    away = asyncio.get_running_loop().time() - begun
    done = await asyncio.wait_for(asyncio.gather(keeping, *commits, return_exceptions=True), LIMIT)
    if away > PATIENCE:
        pytest.skip(f"the broker was away for {away:.0f} s, which is longer than operations wait")
    assert [outcome for outcome in done if isinstance(outcome, BaseException)] == []
    entries = await table.get_many([("state", name) for name in "abc"])
    assert [entry and entry.value for entry in entries] == [b"cas", b"pair", b"pair"]
