"""The source of an input: run again when it fails, and by one replica where only one may."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from brokers.memory_tables import MemoryTables
from mesh.bindings.source import LONGEST_PAUSE, Source
from mesh.ownership import records
from mesh.ports.bindings import Accept, Item
from mesh.ports.stores import StoreUnavailable
from mesh.ports.tables import Delete
from tests.virtual_clock import VirtualClock


class Binding:
    """An input binding that does what the test says."""

    def __init__(self, *, exclusive: bool = False) -> None:
        self.exclusive = exclusive
        self.runs = 0
        self.running = 0
        self.fails: BaseException | None = None

    async def start(self) -> None: ...

    async def ping(self) -> None: ...

    async def close(self) -> None: ...

    async def run(self, accept: Accept) -> None:
        self.runs += 1
        self.running += 1
        try:
            if self.fails is not None:
                raise self.fails
            await asyncio.get_running_loop().create_future()
        finally:
            self.running -= 1


async def nothing(_item: Item) -> None: ...


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def tables(clock: VirtualClock) -> MemoryTables:
    return MemoryTables(clock)


async def until(clock: VirtualClock, condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await clock.advance(0.25)
            await asyncio.sleep(0)


def source(binding: Binding, tables: MemoryTables, clock: VirtualClock) -> Source:
    return Source("app1", "b", binding, nothing, tables=tables, clock=clock)


async def test_it_runs_until_it_is_ended(clock: VirtualClock, tables: MemoryTables) -> None:
    binding = Binding()
    one = source(binding, tables, clock)
    assert one.status == "not started"
    one.begin()
    one.begin()
    await until(clock, lambda: one.status == "running")
    assert binding.runs == 1
    await one.end()
    assert (binding.running, one.status) == (0, "ended")
    one.begin()
    await until(clock, lambda: binding.running == 1)
    await one.end()


async def test_pauses_grow_up_to_a_minute_and_begin_anew_after_a_steady_run(
    clock: VirtualClock, tables: MemoryTables
) -> None:
    binding = Binding()
    binding.fails = OSError("port\x00in use")
    one = source(binding, tables, clock)
    one.begin()
    await until(clock, lambda: one.status.startswith("failed"))
    assert one.status == "failed, runs again after 0.5 s: OSError: port\\x00in use"
    begun = clock.now()
    await until(clock, lambda: binding.runs == 4)
    assert 3 <= clock.now() - begun < 4.5
    await until(clock, lambda: f"after {LONGEST_PAUSE:g} s" in one.status)
    binding.fails = None
    await until(clock, lambda: one.status == "running")
    await one.end()


async def test_an_error_of_ours_is_told_whole(clock: VirtualClock, tables: MemoryTables) -> None:
    reason = "PostgreSQL cannot be reached: " + "connection refused " * 10
    binding = Binding()
    binding.fails = StoreUnavailable(reason)
    one = source(binding, tables, clock)
    one.begin()
    await until(clock, lambda: one.status == f"failed, runs again after 0.5 s: {reason}")
    await one.end()


async def test_a_source_whose_library_cancels_it_runs_again(clock: VirtualClock, tables: MemoryTables) -> None:
    binding = Binding()
    binding.fails = asyncio.CancelledError()
    one = source(binding, tables, clock)
    one.begin()
    await until(clock, lambda: one.status.startswith("failed, runs again after 1 s: its library"))
    binding.fails = None
    await until(clock, lambda: one.status == "running")
    await one.end()


async def test_a_source_that_ends_by_itself_runs_again(clock: VirtualClock, tables: MemoryTables) -> None:
    binding = Binding()

    async def run(_accept: Accept) -> None:
        binding.runs += 1

    binding.run = run  # type: ignore[method-assign]
    one = source(binding, tables, clock)
    one.begin()
    await until(clock, lambda: binding.runs == 3)
    assert one.status.endswith("it ended by itself")
    await one.end()


async def test_only_one_replica_runs_an_exclusive_source(clock: VirtualClock, tables: MemoryTables) -> None:
    bindings = [Binding(exclusive=True) for _ in range(3)]
    sources = [source(binding, tables, clock) for binding in bindings]
    for one in sources:
        one.begin()
    for _ in range(2):
        await until(clock, lambda: sum(binding.running for binding in bindings) == 1)
        await until(clock, lambda: sum(one.status.startswith("waiting") for one in sources) == len(sources) - 1)
        holder = next(index for index, binding in enumerate(bindings) if binding.running)
        await sources.pop(holder).end()
        assert not bindings.pop(holder).running
    await until(clock, lambda: bindings[0].running == 1)
    await sources[0].end()


async def test_a_lease_that_is_lost_ends_the_run(clock: VirtualClock, tables: MemoryTables) -> None:
    binding = Binding(exclusive=True)
    one = source(binding, tables, clock)
    one.begin()
    await until(clock, lambda: binding.running == 1)
    table = tables.table("bindings@app1")
    page = await table.scan((records.KIND, "source/b", records.MEMBER), limit=10)
    await table.commit([Delete(key=entry.key) for entry in page.entries])
    await until(clock, lambda: binding.running == 0)
    assert one.status.startswith("waiting") or one.status.startswith("failed")
    await until(clock, lambda: binding.runs == 2 and binding.running == 1)
    await one.end()
