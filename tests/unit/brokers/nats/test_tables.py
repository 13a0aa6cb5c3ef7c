"""What is particular to tables on NATS: lost answers, lost streams, histories without gaps, streams that do not fit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from brokers.nats import jetstream
from brokers.nats.connection import Connection, Lookup, Reply, Servers
from brokers.nats.table_reads import FIRST_WIDTH
from brokers.nats.tables import MAX_PAGE_BYTES, NatsTable, NatsTables
from mesh.errors import BrokerError, BrokerUnavailable
from mesh.ports.tables import ABSENT, Check, Conflict, Current, Delete, Entry, Gone, Key, Put
from tests.contract.nats_server import NatsServer

A: Key = ("state", "shop", "a")
B: Key = ("state", "shop", "b")

namespaces = (f"test{number}" for number in count(1))


class LossyConnection(Connection):
    """Can lose the next message to a stream, or the answer to it; or the message comes late, when it has been given up
    and is about to be repeated."""

    lose = ""
    late: tuple[str, bytes, bytes] | None = None

    def call(self, subject: str, headers: bytes, payload: bytes, timeout: float) -> asyncio.Future[Reply]:
        if subject.startswith("$JS.API."):
            return super().call(subject, headers, payload, timeout)
        if self.late is not None:
            late, self.late = self.late, None
            super().call(*late, timeout).add_done_callback(lambda answer: answer.exception())
        if not self.lose:
            return super().call(subject, headers, payload, timeout)
        what, self.lose = self.lose, ""
        if what == "late":
            self.late = subject, headers, payload
        answer = super().call(subject, headers, payload, timeout) if what == "answer" else None

        async def lose_answer() -> Reply:
            if answer is not None:
                await answer
            await self.meanwhile()
            raise BrokerUnavailable("the broker did not answer in time")

        return asyncio.ensure_future(lose_answer())

    async def meanwhile(self) -> None:
        """What others do before the answer would have come."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    with NatsServer(tmp_path_factory.mktemp("nats")) as server:
        yield server


@pytest.fixture
async def connect(server: NatsServer) -> AsyncIterator[Callable[[], LossyConnection]]:
    connections: list[LossyConnection] = []

    async def connect(url: str = server.url) -> LossyConnection:
        connection = LossyConnection(Lookup(lambda: Servers([url])), name="test")
        connections.append(connection)
        await asyncio.wait_for(connection.start(), 30)
        return connection

    yield connect
    for connection in connections:
        await connection.close()


@pytest.fixture
def namespace() -> str:
    return next(namespaces)


@pytest.fixture
async def connection(connect) -> LossyConnection:
    return await connect()


@pytest.fixture
async def table(connection: LossyConnection, namespace: str) -> NatsTable:
    return NatsTables(connection, namespace=namespace).table("shop")


@pytest.fixture
async def other(connect, namespace: str) -> NatsTable:
    """The table as another process has it."""
    return NatsTables(await connect(), namespace=namespace).table("shop")


async def put(table: NatsTable, key: Key, value: bytes, expected: int | None = None) -> int:
    [revision] = await table.commit([Put(key=key, value=value, expected=expected)])
    return revision


async def value_of(table: NatsTable, key: Key) -> bytes | None:
    entry = await table.get(key)
    return None if entry is None else entry.value


# Lost answers


@pytest.mark.parametrize("lost", ["answer", "message", "late"])
async def test_a_change_whose_answer_is_lost_happens_once(
    table: NatsTable, connection: LossyConnection, lost: str
) -> None:
    before = await put(table, A, b"0")
    connection.lose = lost
    assert await put(table, A, b"1") == before + 1
    assert await put(table, B, b"") == before + 2


@pytest.mark.parametrize("lost", ["answer", "message", "late"])
async def test_a_lost_answer_is_no_conflict(table: NatsTable, connection: LossyConnection, lost: str) -> None:
    revision = await put(table, A, b"0", ABSENT)
    connection.lose = lost
    assert await put(table, A, b"1", revision) == revision + 1
    connection.lose = lost
    assert await put(table, B, b"1", ABSENT) == revision + 2
    connection.lose = lost
    [gone] = await table.commit([Delete(key=B)], [Check(A, revision + 1)])
    assert gone == revision + 3


@pytest.mark.parametrize("lost", ["answer", "message", "late"])
async def test_a_batch_whose_answer_is_lost_happens_once(
    table: NatsTable, connection: LossyConnection, lost: str
) -> None:
    revision = await put(table, A, b"0")
    connection.lose = lost
    changes = [Put(key=A, value=b"1", expected=revision), Put(key=B, value=b"1")]
    assert await table.commit(changes, [Check(("lease",), ABSENT)]) == [revision + 1, revision + 2]
    assert await put(table, B, b"2") == revision + 3


async def test_a_conflict_is_one_although_an_answer_was_lost(
    table: NatsTable, other: NatsTable, connection: LossyConnection
) -> None:
    revision = await put(table, A, b"0")
    newer = await put(other, A, b"1")
    assert (await table.get_many([A, B]))[0] is not None  # so it knows what has happened before
    connection.lose = "message"
    with pytest.raises(Conflict):
        await put(table, A, b"2", revision)
    assert await put(table, A, b"2", newer) == newer + 1


@pytest.mark.parametrize("expected", [True, False])
@pytest.mark.parametrize("batch", [True, False])
async def test_what_nobody_can_know_is_not_told(
    table: NatsTable, other: NatsTable, connection: LossyConnection, expected: bool, batch: bool
) -> None:
    """The change was made, and replaced before its answer was missed; a restart forgets that it ever was."""
    revision = await put(table, A, b"0")

    async def replace() -> None:
        await put(other, A, b"other")
        await put(other, B, b"other")

    connection.meanwhile = replace  # type: ignore[method-assign]
    connection.lose = "answer"
    changes = [Put(key=A, value=b"1", expected=revision if expected else None)]
    if batch:
        changes.append(Put(key=B, value=b"1"))
    with pytest.raises(BrokerUnavailable, match="not known"):
        await table.commit(changes)
    assert await table.get_many([A, B]) == await other.get_many([A, B])
    assert await value_of(table, A) == b"other"


async def test_a_batch_is_repeated_although_one_of_its_keys_is_busy(
    table: NatsTable, other: NatsTable, connection: LossyConnection
) -> None:
    await put(table, A, b"0")
    losses = 0

    async def meanwhile() -> None:
        nonlocal losses
        losses += 1
        if losses == 1:
            connection.lose = "message"
        else:
            await put(other, A, b"other")

    connection.meanwhile = meanwhile  # type: ignore[method-assign]
    connection.lose = "message"
    await asyncio.wait_for(table.commit([Put(key=A, value=b"1"), Put(key=B, value=b"1")]), 30)
    assert losses == 2
    assert [await value_of(table, A), await value_of(table, B)] == [b"1", b"1"]


async def test_a_change_waits_for_a_server_that_restarts(tmp_path: Path, connect) -> None:
    with NatsServer(tmp_path) as server:
        table = NatsTables(await connect(server.url), namespace="default").table("shop")
        first = await put(table, A, b"0")
        server.kill()
        changes = [asyncio.ensure_future(put(table, ("state", str(number)), b"")) for number in range(10)]
        reading = asyncio.ensure_future(value_of(table, A))
        await asyncio.sleep(0.1)
        assert not any(task.done() for task in [*changes, reading])
        server.start()
        revisions = await asyncio.gather(*changes)
        assert sorted(revisions) == list(range(first + 1, first + 11))
        assert await reading == b"0"


async def test_what_is_under_way_ends_with_the_tables(tmp_path: Path, connect) -> None:
    with NatsServer(tmp_path) as server:
        tables = NatsTables(await connect(server.url), namespace="default")
        table = tables.table("shop")
        await put(table, A, b"0")
        server.kill()
        tasks = [asyncio.ensure_future(task) for task in (table.get(A), put(table, A, b"1"), table.scan((), limit=1))]
        await asyncio.sleep(0.05)
        await tables.close()
        outcomes = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 30)
        assert [type(outcome) for outcome in outcomes if not isinstance(outcome, BrokerUnavailable)] == []


# Streams that vanish, or do not fit


async def test_a_stream_that_was_removed_is_made_again(
    table: NatsTable, other: NatsTable, connection: LossyConnection
) -> None:
    revision = await put(table, A, b"0")
    watch = other.watch(("state",), after=ABSENT)
    assert isinstance(await anext(watch), Entry)
    assert isinstance(await anext(watch), Current)
    await jetstream.call(connection, f"STREAM.DELETE.{table.stream.name}")
    assert await table.get(A) is None
    assert await other.get_many([A, B]) == [None, None]
    assert (await table.scan((), limit=10)).entries == []
    with pytest.raises(Conflict):
        await put(table, A, b"1", revision)
    again = await put(table, A, b"2", ABSENT)
    assert await put(other, B, b"3") > again
    seen: list[object] = []
    async with asyncio.timeout(30):
        while len(seen) < 2:
            change = await anext(watch)
            if isinstance(change, Entry):
                seen.append(change.value)
    assert seen == [b"2", b"3"]
    await watch.aclose()


@pytest.mark.parametrize(
    ("setting", "value"), [("max_bytes", 10**8), ("max_age", 3600 * 10**9), ("max_msgs_per_subject", 2)]
)
async def test_a_stream_that_would_lose_values_is_refused(
    connection: LossyConnection, namespace: str, setting: str, value: int
) -> None:
    table = NatsTables(connection, namespace=namespace).table("shop")
    await put(table, A, b"0")
    info = await jetstream.call(connection, f"STREAM.INFO.{table.stream.name}")
    changed = info["config"] | {setting: value}
    await jetstream.call(connection, f"STREAM.UPDATE.{table.stream.name}", changed)
    with pytest.raises(BrokerError, match=setting):
        await put(NatsTables(connection, namespace=namespace).table("shop"), A, b"1")


async def test_a_missing_permission_is_named(tmp_path: Path, connect) -> None:
    denied = {"publish": {"deny": ["mesh.default.state.>", "$JS.API.DIRECT.GET.>", "$JS.API.CONSUMER.MSG.NEXT.>"]}}
    users = [{"user": "app", "password": "secret", "permissions": denied}, {"user": "admin", "password": "secret"}]
    with NatsServer(tmp_path, authorization={"users": users}) as server:
        connection = await connect(server.url.replace("//", "//app:secret@"))
        table = NatsTables(connection, namespace="default").table("shop")
        with pytest.raises(BrokerError, match="grant this user the permission") as writing:
            await put(table, A, b"1")
        with pytest.raises(BrokerError, match="grant this user the permission") as reading:
            await table.get(A)
        watch = table.watch(("state",))
        assert isinstance(await anext(watch), Current)
        with pytest.raises(BrokerError, match="grant this user the permission") as watching:
            await asyncio.wait_for(anext(watch), 30)
        for caught in (writing, reading, watching):
            assert not isinstance(caught.value, BrokerUnavailable)


# Scans


async def test_a_page_of_large_values_ends_early(table: NatsTable) -> None:
    value = b"x" * 500_000
    for number in range(40):
        await put(table, ("state", str(number)), value)
    pages = []
    cursor = None
    while not pages or cursor is not None:
        page = await table.scan(("state",), limit=1000, cursor=cursor)
        pages.append(page.entries)
        cursor = page.cursor
    assert sorted(int(entry.key[1]) for page in pages for entry in page) == list(range(40))
    assert max(len(page) for page in pages) <= MAX_PAGE_BYTES / len(value) + FIRST_WIDTH


async def test_few_among_many_are_found(table: NatsTable) -> None:
    for first in range(0, 5000, 500):
        await table.commit([Put(key=("state", str(number)), value=b"") for number in range(first, first + 500)])
        await put(table, ("lease", str(first)), b"")
    leases = (await table.scan(("lease",), limit=100)).entries
    assert [int(entry.key[1]) for entry in leases] == list(range(0, 5000, 500))
    looked_at, cursor = 0, None
    found: list[Key] = []
    while not looked_at or cursor is not None:
        page = await table.scan(("state",), starts_with="499", limit=100, cursor=cursor)
        cursor = page.cursor
        found += [entry.key for entry in page.entries]
        looked_at += 1
    assert found == [("state", "499"), *(("state", f"499{digit}") for digit in range(10))]
    assert looked_at == 2  # a page looks at so many and no more


# Watches


async def test_a_watch_goes_on_soon_after_a_restart(tmp_path: Path, connect) -> None:
    with NatsServer(tmp_path) as server:
        table = NatsTables(await connect(server.url), namespace="default").table("shop")
        watch = table.watch(("state",))
        await anext(watch)
        await put(table, A, b"0")
        assert isinstance(await anext(watch), Entry)
        server.kill()
        server.start()
        await put(table, A, b"1")
        started = asyncio.get_running_loop().time()
        shown = []
        while not shown or not isinstance(shown[-1], Entry):
            shown.append(await asyncio.wait_for(anext(watch), 30))
        assert shown[-1].value == b"1"
        assert asyncio.get_running_loop().time() - started < 10  # a pull lasts 30 s
        while not any(isinstance(change, Current) for change in shown):
            shown.append(await asyncio.wait_for(anext(watch), 30))
        await watch.aclose()


async def test_a_consumer_that_vanishes_is_replaced(table: NatsTable, connection: LossyConnection) -> None:
    watch = table.watch(("state",))
    await anext(watch)
    await put(table, A, b"0")
    assert isinstance(await anext(watch), Entry)
    for consumer in (await jetstream.call(connection, f"CONSUMER.NAMES.{table.stream.name}"))["consumers"]:
        await jetstream.delete_consumer(connection, table.stream.name, consumer)
    revision = await put(table, A, b"1")
    async with asyncio.timeout(30):
        while not isinstance(change := await anext(watch), Entry):
            assert isinstance(change, Current)
    assert change.revision == revision
    await watch.aclose()


async def test_a_watch_leaves_no_consumer(table: NatsTable, connection: LossyConnection) -> None:
    watches = [table.watch(("state",)) for _ in range(3)]
    for watch in watches:
        await anext(watch)
    names = f"CONSUMER.NAMES.{table.stream.name}"
    assert len((await jetstream.call(connection, names))["consumers"]) == 3
    for watch in watches:
        await watch.aclose()
    async with asyncio.timeout(30):
        while (await jetstream.call(connection, names))["consumers"]:
            await asyncio.sleep(0.01)


async def test_what_was_known_of_a_lost_stream_says_nothing_about_the_next(
    table: NatsTable, other: NatsTable, connection: LossyConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sequences are small again, and no proof that a commit has not happened."""
    for _ in range(20):
        await put(table, A, b"0")

    async def meanwhile() -> None:
        await jetstream.call(connection, f"STREAM.DELETE.{table.stream.name}")
        await put(table, B, b"makes it again")
        await put(other, A, b"theirs")

    monkeypatch.setattr(connection, "meanwhile", meanwhile)
    connection.lose = "answer"
    with pytest.raises(BrokerUnavailable, match="not known"):
        await put(table, A, b"ours")
    assert await value_of(table, A) == b"theirs"


# Histories


async def test_no_value_is_missing_in_a_history(table: NatsTable, other: NatsTable) -> None:
    """A mirror alone loses what is replaced before it has come by."""
    for client in (table, other):
        await client.keep_history(("state", "shop"), 64)

    async def write(client: NatsTable) -> list[int]:
        return [await put(client, A, b"x") for _ in range(10)]

    revisions = await asyncio.gather(*(write(client) for client in (table, other) for _ in range(3)))
    newest_first = sorted((revision for run in revisions for revision in run), reverse=True)
    assert [record.revision for record in await table.history(A, limit=100)] == newest_first


async def test_a_deletion_is_not_missing_in_a_history(table: NatsTable) -> None:
    await table.keep_history(("state",), 64)
    for round in range(5):
        await put(table, A, b"%d" % round, ABSENT)
        await table.commit([Delete(key=A)])
    records = await table.history(A, limit=100)
    assert [isinstance(record, Gone) for record in records] == [True, False] * 5


async def test_a_key_that_the_stream_has_forgotten_can_be_written_again(
    connection: LossyConnection, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An hour after a deletion or expiry only the history remembers the key."""
    monkeypatch.setattr("brokers.nats.scopes.GONE_KEPT", 1)
    monkeypatch.setattr("brokers.nats.table_records.GONE_KEPT", 1)
    table = NatsTables(connection, namespace=namespace).table("orders")
    await table.keep_history(("state",), 5)
    old = await put(table, A, b"1")
    await put(table, B, b"1")
    await table.commit([Delete(key=A), Delete(key=B)])
    async with asyncio.timeout(30):
        while (await jetstream.call(connection, f"STREAM.INFO.{table.stream.name}"))["state"]["messages"]:
            await asyncio.sleep(0.1)
        with pytest.raises(Conflict):
            await put(table, A, b"2", old)
        await put(table, A, b"2")
        await put(table, B, b"2", ABSENT)
    values = [record.value if isinstance(record, Entry) else None for record in await table.history(A, limit=9)]
    assert values == [b"2", None, b"1"]  # deleted once, though the server also marked the end of the deletion


async def test_histories_of_a_stream_that_was_lost_are_not_mixed_with_those_of_the_next(
    table: NatsTable, connection: LossyConnection
) -> None:
    await table.keep_history(("state",), 5)
    for number in range(5):
        await put(table, A, b"old %d" % number)
    names = await jetstream.call(connection, "STREAM.NAMES")
    [kept] = [name for name in names["streams"] if name.startswith(table.stream.name.replace("-state-", "-history-"))]
    await jetstream.call(connection, f"STREAM.DELETE.{table.stream.name}")
    async with asyncio.timeout(30):
        with pytest.raises(BrokerError, match=f"{kept} has the earlier values of a stream that was lost"):
            await put(table, A, b"1")
        assert [record.revision for record in await table.history(A, limit=9)] == [5, 4, 3, 2, 1]
        await jetstream.call(connection, f"STREAM.DELETE.{kept}")
        for value in (b"1", b"2"):
            await put(table, A, value)
            await put(table, B, value)
        records = await table.history(A, limit=9)
    assert [record.value for record in records if isinstance(record, Entry)] == [b"2", b"1"]
    assert table.stream.standing is not None
    assert not table.stream.standing.direct


async def test_a_history_that_was_removed_is_kept_anew(table: NatsTable, connection: LossyConnection) -> None:
    await table.keep_history(("state",), 5)
    await put(table, A, b"1")
    names = await jetstream.call(connection, "STREAM.NAMES")
    [kept] = [name for name in names["streams"] if name.startswith(table.stream.name.replace("-state-", "-history-"))]
    await jetstream.call(connection, f"STREAM.DELETE.{kept}")
    async with asyncio.timeout(30):
        await put(table, A, b"2")
        await put(table, A, b"3")
        records = await table.history(A, limit=9)
    assert [record.value for record in records if isinstance(record, Entry)][:2] == [b"3", b"2"]


async def test_a_history_does_not_answer_for_the_present(
    table: NatsTable, other: NatsTable, connection: LossyConnection
) -> None:
    """NATS has mirrors answer direct gets of their origin, late as they are."""
    await put(other, A, b"0")
    await table.keep_history(("state",), 2)
    for number in range(100):
        value = b"%d" % number
        await put(other, B, value)
        assert [await value_of(table, B), await value_of(other, B)] == [value, value]
    streams = await jetstream.call(connection, "STREAM.LIST")
    mirrors = [
        stream["config"]
        for stream in streams["streams"]
        if stream["config"].get("mirror", {}).get("name") == table.stream.name
    ]
    assert [config["mirror_direct"] for config in mirrors] == [False]
