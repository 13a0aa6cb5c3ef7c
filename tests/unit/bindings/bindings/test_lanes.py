from __future__ import annotations

import asyncio
from collections import defaultdict

import pytest

from bindings.bindings.lanes import LANES, accept_all
from mesh.errors import BrokerUnavailable
from mesh.ports.bindings import Item


async def test_items_of_a_key_are_accepted_in_turn_and_others_at_once() -> None:
    accepted: dict[str, list[int]] = defaultdict(list)
    under_way: set[str | None] = set()
    most = 0

    async def accept(item: Item) -> None:
        nonlocal most
        assert item.key is not None
        assert item.key not in under_way
        under_way.add(item.key)
        most = max(most, len(under_way))
        await asyncio.sleep(0)
        under_way.discard(item.key)
        accepted[item.key].append(int(item.data))

    await accept_all(accept, [Item(data=b"%d" % n, key=f"key {n % 10}") for n in range(200)])
    assert {key: numbers for key, numbers in accepted.items() if numbers != sorted(numbers)} == {}
    assert sum(map(len, accepted.values())) == 200
    assert most > 1


async def test_no_more_are_under_way_than_there_are_lanes() -> None:
    under_way = most = 0

    async def accept(item: Item) -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1

    await accept_all(accept, [Item(data=b"") for _ in range(3 * LANES)])
    assert most == LANES


async def test_after_a_failure_nothing_is_accepted_that_comes_later() -> None:
    accepted = []

    async def accept(item: Item) -> None:
        await asyncio.sleep(0)
        if item.data == b"1":
            raise BrokerUnavailable("no broker")
        accepted.append(item.data)

    items = [Item(data=b"%d" % number, key="same") for number in range(4)]
    with pytest.raises(BrokerUnavailable):
        await accept_all(accept, items)
    assert accepted == [b"0"]
    await accept_all(accept, [])
