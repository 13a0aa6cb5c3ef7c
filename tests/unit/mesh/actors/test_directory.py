"""Who owns what, as the sidecars tell each other."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from brokers.memory_tables import MemoryTables
from mesh import addressing
from mesh.actors.directory import TTL, Directory, Place
from mesh.ports import Peer
from mesh.ports.tables import Put
from tests.virtual_clock import VirtualClock


class Street:
    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.table = MemoryTables(self.clock).table(addressing.ACTORS_SCOPE)
        self.open: list[Directory] = []

    async def directory(self, name: str) -> Directory:
        directory = Directory(self.table, f"app-{name}", name, self.clock, active=lambda _: 7)
        directory.start()
        self.open.append(directory)
        await self.clock.advance(1)
        return directory


@pytest.fixture
async def street() -> AsyncIterator[Street]:
    street = Street()
    yield street
    for directory in street.open:
        await directory.close()


async def test_the_newest_token_counts_and_what_is_taken_back_is_gone(street: Street) -> None:
    first, second, reader = [await street.directory(name) for name in ("a", "b", "c")]
    first.tell("T", {1: 10, 2: 11})
    second.tell("T", {2: 12})
    await street.clock.settle()
    assert reader.place("T", 1) == Place("app-a", "a", 10)
    assert reader.place("T", 2) == Place("app-b", "b", 12)
    assert reader.place("T", 3) is reader.place("U", 1) is None
    assert {name: host.active for name, host in reader.hosts("T").items()} == {"a": 7, "b": 7}
    second.tell("T", {})
    await street.clock.settle()
    assert reader.place("T", 2) == Place("app-a", "a", 11)
    first.tell("T", None)
    second.tell("T", None)
    await street.clock.settle()
    assert reader.types() == []


async def test_records_are_renewed_and_expire_with_their_sidecar(street: Street) -> None:
    host, reader = await street.directory("a"), await street.directory("b")
    host.tell("T", {1: 10})
    await street.clock.advance(4 * TTL)
    assert reader.place("T", 1) is not None
    for task in host._tasks:
        task.cancel()
    await street.clock.advance(TTL + 2)
    assert reader.types() == []


async def test_a_farewell_is_seen_at_once(street: Street) -> None:
    host, reader = await street.directory("a"), await street.directory("b")
    host.tell("T", {1: 10})
    await street.clock.settle()
    await host.close()
    await street.clock.settle()
    assert reader.types() == []


async def test_records_that_cannot_be_read_are_passed_over(street: Street) -> None:
    reader = await street.directory("b")
    for value in (b"", b"[]", b'{"app": 1}', b'{"app": "x", "partitions": [[-1, 5], [64, 5], [3, 5]]}'):
        await street.table.commit([Put(key=("host", "T", "odd"), value=value)])
    await street.table.commit([Put(key=("host", "T"), value=b"{}")])
    await street.clock.settle()
    assert [partition for partition in range(64) if reader.place("T", partition)] == [3]


def test_names_and_partitions_that_are_stored() -> None:
    assert addressing.actors_scope("Cart") == "actors@Cart"
    assert addressing.actors_scope("a||b") == "actors@a%7C%7Cb"
    assert [addressing.actor_partition(name) for name in ("7", "cart-1", "é")] == [2, 36, 62]
    assert addressing.actors_host(Peer("n", "shop")) == Peer("n", "$actors.shop")
    request, response = addressing.call_types("$actors.shop")
    assert (request, response) == ("io.meshwire.actor.request.v1", "io.meshwire.actor.response.v1")
