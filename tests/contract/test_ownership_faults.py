"""Members of a group as processes on a real broker, killed, stopped, and with the broker gone for a while.

Each writes with every token that it ever had. What is stored must be the work of one owner after the other.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from mesh.ports.tables import Entry, Table, TableFeature
from tests.contract.partition_member import SCOPE, WRITTEN
from tests.contract.tables import BACKINGS, DurableBacking

ROOT = Path(__file__).parents[2]
PARTITIONS = 6
TTL = 3.0
LIMIT = 45.0
"""Seconds for anything that waits for a member to be lost, or for a broker that starts, on a machine that is busy."""

namespaces = (f"faults{number}" for number in count(1))


class Process:
    """A member, and what it says."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._reading = asyncio.create_task(self._read())
        self.said: dict[str, Any] = {"owned": [], "writing": [], "refused": 0, "lost": 0}

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            self.said = json.loads(line)

    @property
    def owned(self) -> set[int]:
        return set(self.said["owned"])

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def kill(self) -> None:
        self.signal(signal.SIGKILL)
        await self._process.wait()

    async def leave(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(b"leave\n")
        async with asyncio.timeout(20):
            assert await self._process.wait() == 0
            await self._reading

    async def end(self) -> None:
        if self._process.returncode is None:
            self.signal(signal.SIGCONT)
            await self.kill()
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)


class Group:
    def __init__(self, broker: DurableBacking) -> None:
        self.broker = broker
        self.namespace = next(namespaces)
        self.members: list[Process] = []

    async def join(self) -> Process:
        arguments = [self.broker.url, self.namespace, f"node{len(self.members)}", str(PARTITIONS), str(TTL)]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); import runpy; "
              "runpy.run_module('tests.contract.partition_member', run_name='__main__')", *arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        self.members.append(Process(process))
        return self.members[-1]

    async def until_owned_by(self, *members: Process) -> None:
        """All partitions are, and by these alone, each with its share, for which it has written."""
        shares = {PARTITIONS // len(members)}

        def is_so() -> bool:
            owned = [partition for member in members for partition in member.owned]
            return (
                sorted(owned) == list(range(PARTITIONS))
                and {len(member.said["writing"]) for member in members} == shares
            )

        await until(is_so, lambda: str([member.said for member in self.members]))

    async def check_what_is_stored(self) -> None:
        """No write with an older token follows one with a newer token of the same partition."""
        tables = await self.broker.client(self.namespace)
        try:
            tenures = 0
            for partition in range(PARTITIONS):
                entries = await scanned(tables.table(SCOPE), str(partition))
                entries.sort(key=lambda entry: entry.revision)
                tokens = [int(entry.value) for entry in entries]
                assert tokens == sorted(tokens)
                assert tokens, "somebody has written"
                tenures += len(set(tokens))
            assert tenures > PARTITIONS, "some partitions have had more than one owner"
        finally:
            await tables.close()


async def until(condition: Callable[[], bool], describe: Callable[[], str]) -> None:
    try:
        async with asyncio.timeout(LIMIT):
            while not condition():
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(describe()) from None


async def scanned(table: Table, partition: str) -> list[Entry]:
    entries: list[Entry] = []
    cursor = None
    while True:
        page = await table.scan((WRITTEN, partition), limit=1000, cursor=cursor)
        entries += page.entries
        cursor = page.cursor
        if cursor is None:
            return entries


DURABLE = [pytest.param(one, id=one.name, marks=one.marks) for one in BACKINGS if TableFeature.DURABLE in one.features]


@pytest.fixture(scope="module", params=DURABLE)
def broker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DurableBacking]:
    started = request.param()
    started.start(tmp_path_factory.mktemp(started.name))
    yield started
    started.stop()


@pytest.fixture
async def group(broker: DurableBacking) -> AsyncIterator[Group]:
    group = Group(broker)
    yield group
    for member in group.members:
        await member.end()


async def test_a_member_is_killed(group: Group) -> None:
    first, second, third = [await group.join() for _ in range(3)]
    await group.until_owned_by(first, second, third)
    await second.kill()
    await group.until_owned_by(first, third)
    lost = first.said["lost"]
    await first.leave()
    await group.until_owned_by(third)
    assert first.said["lost"] == lost, "who leaves in order loses nothing"
    await group.check_what_is_stored()


async def test_a_member_is_stopped_beyond_its_ttl(group: Group) -> None:
    stopped, other = await group.join(), await group.join()
    await group.until_owned_by(stopped, other)
    before = stopped.said["refused"]
    stopped.signal(signal.SIGSTOP)
    await group.until_owned_by(other)
    stopped.signal(signal.SIGCONT)
    await until(lambda: stopped.said["refused"] > before, lambda: str(stopped.said))
    await until(lambda: stopped.said["lost"] >= PARTITIONS // 2, lambda: str(stopped.said))
    await group.until_owned_by(stopped, other)
    await group.check_what_is_stored()


async def test_the_broker_is_killed_for_longer_than_the_ttl(group: Group, broker: DurableBacking) -> None:
    first, second = await group.join(), await group.join()
    await group.until_owned_by(first, second)
    await asyncio.to_thread(broker.crash)
    await until(lambda: not first.owned and not second.owned, lambda: str([first.said, second.said]))
    await asyncio.to_thread(broker.recover)
    await group.until_owned_by(first, second)
    await group.check_what_is_stored()


async def test_the_broker_is_killed_for_a_moment(group: Group, broker: DurableBacking) -> None:
    first, second = await group.join(), await group.join()
    await group.until_owned_by(first, second)
    await asyncio.to_thread(broker.crash)
    await asyncio.to_thread(broker.recover)
    await second.kill()
    await group.until_owned_by(first)
    await group.check_what_is_stored()
