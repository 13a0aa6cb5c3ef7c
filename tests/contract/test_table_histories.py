"""Linearizability, judged: ten clients beside each other, and a broker that is killed under them."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from math import inf
from pathlib import Path

import pytest

from brokers.memory_tables import MemoryTables
from mesh.errors import BrokerUnavailable
from mesh.ports.tables import ABSENT, Check, Conflict, Delete, Key, Put, Table, Tables
from tests.contract.kafka_tables import kafka_tables
from tests.contract.linearizability import Action, Change, Commit, Operation, Read, check_table
from tests.contract.nats_server import NatsServer, cluster
from tests.contract.nats_tables import nats_tables, stream_leader
from tests.servers import apache_kafka, kafka_jars

CLIENTS = 10
KEYS: list[Key] = [("state", name) for name in "abcde"]
SCOPE = "orders"
HURRY = 0.4
"""Seconds after which half of the clients give an operation up, so that its outcome stays unknown."""


class Client:
    """Does one operation after the other, and notes when, and what became of it."""

    def __init__(self, number: int, table: Table, history: list[Operation[Action]]) -> None:
        self._number = number
        self._table = table
        self._history = history
        self._choice = random.Random(number)
        self._known = dict.fromkeys(KEYS, ABSENT)
        self._values = 0
        self._patience = HURRY if number % 2 else 30.0
        self.tally: Counter[str] = Counter()

    async def run(self, until: Callable[[], bool]) -> None:
        while not until():
            kind = self._choice.choice(
                ["get", "get", "get", "get_many", "put", "cas", "cas", "create", "delete", "batch", "batch", "fence"]
            )
            keys = self._choice.sample(KEYS, {"get_many": 3, "batch": 2, "fence": 2}.get(kind, 1))
            self.tally[kind] += 1
            if kind.startswith("get"):
                await self.read(keys)
            elif not await self._write(kind, keys):
                self.tally["unknown"] += 1
                while not await self.read(KEYS[:1]) and not until():  # until it is there again
                    await asyncio.sleep(0.02)

    async def read(self, keys: Sequence[Key]) -> bool:
        start = time.monotonic()
        try:
            async with asyncio.timeout(self._patience):
                await asyncio.sleep(0)
                if len(keys) == 1:
                    entries = [await self._table.get(keys[0])]
                else:
                    entries = await self._table.get_many(keys)
                await asyncio.sleep(0)
        except (BrokerUnavailable, TimeoutError):
            return False
        end = time.monotonic()
        for key, entry in zip(keys, entries, strict=True):
            value, revision = (None, ABSENT) if entry is None else (entry.value, entry.revision)
            self._known[key] = revision
            self._history.append(Operation(Read(key, value, revision), start, end))
        return True

    async def _write(self, kind: str, keys: Sequence[Key]) -> bool:
        """Whether the outcome is known."""
        checks = [Check(keys[1], self._known[keys[1]])] if kind == "fence" else []
        changes = [Change(key, self._value(key), self._expected(kind, key)) for key in keys[: 2 - len(checks)]]
        start, end = time.monotonic(), inf
        revisions: list[int] | None = None
        try:
            async with asyncio.timeout(self._patience):
                await asyncio.sleep(0)
                revisions = await self._table.commit(
                    [
                        Delete(key=key, expected=expected)
                        if value is None or kind == "delete"
                        else Put(key=key, value=value, expected=expected)
                        for key, value, expected in changes
                    ],
                    checks,
                )
                await asyncio.sleep(0)
        except Conflict:
            end = time.monotonic()
            self.tally["conflict"] += 1
        except (BrokerUnavailable, TimeoutError):
            revisions = None
        else:
            end = time.monotonic()
            self._known.update(zip([change.key for change in changes], revisions, strict=True))
        if kind == "delete":
            changes = [change._replace(value=None) for change in changes]
            if end != inf and revisions:
                self._known[keys[0]] = ABSENT
        commit = Commit(
            tuple(changes), tuple(checks), tuple(revisions) if revisions else None, end != inf and not revisions
        )
        self._history.append(Operation(commit, start, end))
        return end != inf

    def _expected(self, kind: str, key: Key) -> int | None:
        if kind == "cas":
            return self._known[key]
        if kind == "create":
            return ABSENT
        return self._choice.choice([None, self._known[key]])

    def _value(self, key: Key) -> bytes:
        self._values += 1
        return f"{self._number}.{self._values}.{key[1]}".encode()


async def judge(
    connect: Callable[[], Awaitable[Tables]],
    *,
    operations: int,
    seconds: float,
    trouble: Callable[[], Awaitable[None]] | None = None,
) -> Counter[str]:
    """Let clients work until there are so many operations, within `seconds`, while `trouble` is made."""
    history: list[Operation[Action]] = []
    async with AsyncExitStack() as stack:
        clients = []
        for number in range(CLIENTS + 1):
            tables = await connect()
            stack.push_async_callback(tables.close)
            clients.append(Client(number, tables.table(SCOPE), history))
        witness = clients.pop()
        assert await witness.read(KEYS)
        start = time.monotonic()
        trouble_is_over = trouble is None

        def is_over() -> bool:
            spent = time.monotonic() - start
            return spent > seconds or (trouble_is_over and len(history) >= operations)

        async with asyncio.timeout(seconds + 30), asyncio.TaskGroup() as group:
            for client in clients:
                group.create_task(client.run(is_over))
            if trouble is not None:
                await trouble()
                after = len(history)
                while len(history) < after + operations // 4 and not is_over():  # work goes on
                    await asyncio.sleep(0.05)
                trouble_is_over = True
        assert await witness.read(KEYS)
    check_table(history)
    tally = Counter(operations=len(history))
    for client in clients:
        tally += client.tally
    print(f"{time.monotonic() - start:.1f} s", dict(tally))
    return tally


async def test_tables_in_memory_are_linearizable() -> None:
    tables = MemoryTables()

    async def connect() -> Tables:
        return tables

    tally = await judge(connect, operations=5000, seconds=10)
    assert tally["operations"] >= 5000
    assert tally["conflict"] > 100


async def test_a_server_that_is_killed_loses_and_repeats_nothing(tmp_path: Path) -> None:
    server = NatsServer(tmp_path / "server")
    await asyncio.to_thread(server.start)

    async def kill_twice() -> None:
        for _ in range(2):
            await asyncio.sleep(1)
            await asyncio.to_thread(server.kill)
            await asyncio.sleep(0.3)
            await asyncio.to_thread(server.start)

    try:
        tally = await judge(lambda: nats_tables([server.url], "test"), operations=3000, seconds=15, trouble=kill_twice)
    finally:
        server.kill()
    assert tally["operations"] >= 2000
    assert tally["unknown"] > 0


@pytest.mark.quiet  # an election has time limits of its own
@pytest.mark.timeout(90)
async def test_a_cluster_whose_leader_is_killed_loses_and_repeats_nothing(tmp_path: Path) -> None:
    servers = cluster(tmp_path)
    try:
        for server in servers:
            server.start(wait=False)
        for server in servers:
            await asyncio.to_thread(server.wait_until_ready)
        urls = [server.url for server in servers]

        async def kill_the_leader() -> None:
            await asyncio.sleep(1.5)
            leader = next(server for server in servers if server.name == leader_name)
            await asyncio.to_thread(leader.kill)
            await asyncio.sleep(0.5)
            await asyncio.to_thread(leader.start)

        first = await nats_tables(urls, "test", replicas=3)
        async with asyncio.timeout(30):  # the cluster elects its first leader
            while True:
                try:
                    await first.table(SCOPE).commit([Put(key=("other", "first"), value=b"")])
                    break
                except BrokerUnavailable:
                    await asyncio.sleep(0.1)
            leader_name = await stream_leader(first, SCOPE)
        await first.close()
        tally = await judge(
            lambda: nats_tables(urls, "test", replicas=3), operations=3000, seconds=20, trouble=kill_the_leader
        )
    finally:
        for server in servers:
            server.kill()
    assert tally["operations"] >= 1000
    assert tally["unknown"] > 0


@pytest.mark.servers
@pytest.mark.timeout(180)
async def test_an_apache_kafka_that_is_killed_loses_and_repeats_nothing() -> None:
    if reason := kafka_jars.missing():
        pytest.skip(reason)
    server = apache_kafka.ApacheKafka(auto_create_topics_enable="false")

    async def trouble() -> None:
        for _ in range(2):
            await asyncio.sleep(1)
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
        await asyncio.sleep(1)
        server.freeze()
        await asyncio.sleep(1)
        server.thaw()

    try:
        await asyncio.to_thread(server.start)
        tally = await judge(
            lambda: kafka_tables([server.address], "test"), operations=3000, seconds=90, trouble=trouble
        )
    finally:
        server.remove()
    assert tally["operations"] >= 1000
    assert tally["unknown"] > 0


@pytest.mark.servers
@pytest.mark.timeout(240)
async def test_three_apache_kafkas_whose_leader_is_killed_lose_and_repeat_nothing() -> None:
    if reason := kafka_jars.missing():
        pytest.skip(reason)
    servers = apache_kafka.cluster(3, auto_create_topics_enable="false")
    try:
        for server in servers:
            server.start(wait=False)
        for server in servers:
            await asyncio.to_thread(server.wait_until_ready)
        addresses = [server.address for server in servers]

        async def kill_each_leader() -> None:
            for _ in range(2):
                await asyncio.sleep(1.5)
                leader = servers[await first.leader(SCOPE) - 1]
                await asyncio.to_thread(leader.kill)
                await asyncio.sleep(2)
                await asyncio.to_thread(leader.start)

        first = await kafka_tables(addresses, "test", replicas=3)
        async with asyncio.timeout(60):
            while True:
                try:
                    await first.table(SCOPE).commit([Put(key=("other", "first"), value=b"")])
                    break
                except BrokerUnavailable:
                    await asyncio.sleep(0.1)
        try:
            tally = await judge(
                lambda: kafka_tables(addresses, "test", replicas=3),
                operations=3000,
                seconds=120,
                trouble=kill_each_leader,
            )
        finally:
            await first.close()
    finally:
        for server in servers:
            server.remove()
    assert tally["operations"] >= 1000
    assert tally["unknown"] > 0
