"""What `bindings.postgresql` does beyond the contract of bindings: rows as they change, the slot, notifications."""

# ruff: noqa: S608 - the names of tables are our own

from __future__ import annotations

import asyncio
import json
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from bindings.bindings import postgresql_rows
from bindings.bindings.pgoutput import lsn_number
from bindings.bindings.postgresql import SPEC
from mesh.errors import BrokerUnavailable, ConfigurationError
from mesh.ports.bindings import Accept, BindingError, InvalidOperation, Invocation, Item
from mesh.ports.stores import StoreError, StoreUnavailable
from tests.contract.postgresql_bindings import Rows
from tests.opened import opened
from tests.servers.postgres import PASSWORD, PostgresServer

LIMIT = 20.0


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    server = PostgresServer(wal_level="logical", max_replication_slots="50")
    server.start()
    yield server
    server.remove()


@pytest.fixture
async def rows(server: PostgresServer) -> Rows:
    return await Rows(server).prepared()


class Inbox(list[Item]):
    async def __call__(self, item: Item) -> None:
        await asyncio.sleep(random.random() / 1000)
        self.append(item)

    async def holds(self, number: int) -> list[Item]:
        async with asyncio.timeout(LIMIT):
            while len(self) < number:
                await asyncio.sleep(0.01)
        return list(self)

    @property
    def bodies(self) -> list[Any]:
        return [json.loads(item.data) for item in self]


@asynccontextmanager
async def running(binding: Any, accept: Accept) -> AsyncIterator[asyncio.Task[None]]:
    await binding.start()
    task = asyncio.create_task(binding.run(accept))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait({task}, timeout=LIMIT)
        await binding.close()
        if not task.cancelled() and task.exception() is not None:
            with suppress(BrokerUnavailable):
                task.result()


def slot(rows: Rows) -> int:
    [(text,)] = rows.server.execute(
        "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = %s", rows.table
    )
    return lsn_number(text)


async def advanced(rows: Rows, beyond: int) -> None:
    async with asyncio.timeout(LIMIT):
        while slot(rows) < beyond:
            await asyncio.sleep(0.02)


def position(rows: Rows) -> int:
    return lsn_number(rows.server.execute("SELECT pg_current_wal_flush_lsn()::text")[0][0])


async def test_rows_are_read_whatever_encoding_the_environment_asks_for(
    rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    inbox = Inbox()
    async with running(rows.binding(), inbox):
        rows.server.execute(f"INSERT INTO {rows.table} VALUES (1, U&'Z\\00FCrich')")
        await inbox.holds(1)
    assert inbox.bodies[0]["new"] == {"id": 1, "text": "Zürich"}


async def test_what_becomes_of_a_row(rows: Rows) -> None:
    table, execute = rows.table, rows.server.execute
    inbox = Inbox()
    async with running(rows.binding(), inbox):
        execute(f"INSERT INTO {table} VALUES (1, 'a')")
        execute(f"UPDATE {table} SET text = 'b'")
        execute(f"UPDATE {table} SET id = 2")
        execute(f"DELETE FROM {table}")
        await inbox.holds(4)
        execute(f"TRUNCATE {table}")
        await inbox.holds(5)
    in_order = sorted(inbox, key=lambda item: lsn_number(item.metadata["lsn"]))
    found = [(body["operation"], body["new"], body["old"]) for item in in_order for body in [json.loads(item.data)]]
    assert found == [
        ("insert", {"id": 1, "text": "a"}, None),
        ("update", {"id": 1, "text": "b"}, None),
        ("update", {"id": 2, "text": "b"}, {"id": 1}),
        ("delete", None, {"id": 2}),
        ("truncate", None, None),
    ]
    assert [item.key for item in in_order] == [
        *(f"public.{table}:{key}" for key in (1, 1, 2, 2)),
        f"public.{table}",
    ]
    assert len({item.id for item in inbox}) == 5
    assert all(item.time is not None and item.metadata["xid"].isdigit() for item in inbox)


async def test_with_the_whole_identity_the_old_row_is_whole_and_large_values_are_told(rows: Rows) -> None:
    table, execute = rows.table, rows.server.execute
    large = "x" * 9000
    execute(f"ALTER TABLE {table} ALTER COLUMN text SET STORAGE EXTERNAL")
    execute(f"ALTER TABLE {table} ADD COLUMN n int")
    inbox = Inbox()
    async with running(rows.binding(), inbox):
        execute(f"INSERT INTO {table} VALUES (1, %s, 1)", large)
        execute(f"UPDATE {table} SET n = 2")
        await inbox.holds(2)
        assert inbox.bodies[1]["new"] == {"id": 1, "n": 2}, "it was left as it was, and is not in the log"
        execute(f"ALTER TABLE {table} REPLICA IDENTITY FULL")
        execute(f"UPDATE {table} SET n = 3")
        await inbox.holds(3)
    assert inbox.bodies[2]["new"] == {"id": 1, "text": large, "n": 3}
    assert inbox.bodies[2]["old"] == {"id": 1, "text": large, "n": 2}
    assert {item.key for item in inbox} == {f"public.{table}:1"}, "the primary key, also where all identifies"


async def test_a_table_without_a_key_is_one_key(server: PostgresServer) -> None:
    rows = Rows(server)
    server.execute(f"ALTER TABLE {rows.table} DROP CONSTRAINT {rows.table}_pkey")
    await rows.prepared()
    inbox = Inbox()
    async with running(rows.binding(), inbox):
        server.execute(f"INSERT INTO {rows.table} SELECT n, 'x' FROM generate_series(1, 100) n")
        await inbox.holds(100)
    assert [body["new"]["id"] for body in inbox.bodies] == list(range(1, 101))


async def test_only_what_is_wanted(server: PostgresServer) -> None:
    one, other = Rows(server), Rows(server)
    server.execute(f"CREATE PUBLICATION both_tables FOR TABLE {one.table}, {other.table}")
    binding = one.binding(publication="both_tables", changes="update, delete")
    inbox = Inbox()
    async with running(binding, inbox):
        for rows in (one, other):
            await rows.offer(1)
            server.execute(f"UPDATE {rows.table} SET text = 'new'")
        await inbox.holds(1)
        await advanced(one, position(one))
    assert [(body["operation"], body["table"]) for body in inbox.bodies] == [("update", one.table)]


async def test_rows_of_a_key_come_in_the_order_of_their_commits(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgresql_rows, "CHUNK", 7)
    monkeypatch.setattr(postgresql_rows, "MOST_CHANGES", 50)
    inbox = Inbox()
    for number in range(100):
        rows.server.execute(
            f"INSERT INTO {rows.table} VALUES (%s, %s) ON CONFLICT (id) DO UPDATE SET text = EXCLUDED.text",
            number % 5,
            str(number),
        )
    rows.server.execute(f"UPDATE {rows.table} SET text = 'all'")  # one transaction over several chunks
    async with running(rows.binding(), inbox):
        await inbox.holds(105)
        await advanced(rows, position(rows))
    texts = defaultdict(list)
    for body in inbox.bodies:
        texts[body["new"]["id"]].append(body["new"]["text"])
    assert texts == {key: [*(str(n) for n in range(key, 100, 5)), "all"] for key in range(5)}


async def test_the_slot_stays_behind_what_is_stored(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgresql_rows, "CHUNK", 3)
    monkeypatch.setattr(postgresql_rows, "ADVANCE_INTERVAL", 0.0)
    commits = []
    for number in range(10):
        rows.server.execute(f"INSERT INTO {rows.table} SELECT %s * 10 + n, '' FROM generate_series(1, 3) n", number)
        commits.append(position(rows))
    stored = Inbox()

    async def accept(item: Item) -> None:
        if json.loads(item.data)["new"]["id"] == 53:  # the last of its transaction
            assert slot(rows) <= commits[4]
            raise BrokerUnavailable("no broker")
        await stored(item)

    for _ in range(2):
        async with running(rows.binding(), accept) as task:
            with pytest.raises(BrokerUnavailable):
                await asyncio.wait_for(asyncio.shield(task), LIMIT)
        assert commits[2] <= slot(rows) <= commits[4], "whole transactions are done with, this one is not"
    everything = Inbox()
    async with running(rows.binding(), everything):
        async with asyncio.timeout(LIMIT):
            while not any(json.loads(item.data)["new"]["id"] == 93 for item in everything):
                await asyncio.sleep(0.01)
        await advanced(rows, commits[9])
    assert {json.loads(item.data)["new"]["id"] for item in (*stored, *everything)} == {
        number * 10 + n for number in range(10) for n in (1, 2, 3)
    }


async def test_a_log_without_rows_of_ours_is_let_go(rows: Rows) -> None:
    other = Rows(rows.server)
    async with running(rows.binding(), Inbox()):
        await other.offer(1)
        await advanced(rows, position(rows))


async def test_a_slot_that_is_gone_is_told(rows: Rows) -> None:
    binding = rows.binding()
    await binding.start()
    rows.server.execute("SELECT pg_drop_replication_slot(%s)", rows.table)
    with pytest.raises(StoreError, match="is gone"):
        await asyncio.wait_for(binding.run(Inbox()), LIMIT)
    await binding.close()


async def test_what_the_database_lacks_is_told(server: PostgresServer) -> None:
    rows = Rows(server)
    for settings, complaint in [
        ({"tables": "nowhere"}, "nowhere"),
        ({"publication": "nothing", "tables": ""}, "there is no publication nothing"),
    ]:
        binding = rows.binding(**settings)
        with pytest.raises(StoreError, match=complaint) as caught:
            await binding.start()
        assert PASSWORD not in str(caught.value)
        await binding.close()
    server.execute(f"CREATE PUBLICATION {rows.table}")
    binding = rows.binding()
    with pytest.raises(StoreError, match="ADD TABLE"):
        await binding.start()
    await binding.close()


async def test_notifications(server: PostgresServer) -> None:
    inbox = Inbox()
    binding = opened(SPEC, **server.settings, channel="News")
    async with running(binding, inbox):
        async with asyncio.timeout(LIMIT):
            while not inbox:  # until it listens
                server.execute("NOTIFY news, '{\"n\": 1}'")
                await asyncio.sleep(0.02)
        server.execute("NOTIFY news, 'plain'")
        async with asyncio.timeout(LIMIT):
            while inbox[-1].data != b"plain":
                await asyncio.sleep(0.01)
    assert (inbox[0].data, inbox[0].content_type, inbox[0].metadata) == (
        b'{"n": 1}',
        "application/json",
        {"channel": "news"},
    )
    assert inbox[-1].content_type == "text/plain"


async def test_a_wrong_parameter_is_named(server: PostgresServer) -> None:
    binding = opened(SPEC, **server.settings)
    await binding.start()
    for sql, params, complaint in [
        ("SELECT $1::int, $2::int", [1, "x"], r'params\[1\], which is \$2: .*integer: "x"'),
        ("SELECT $1::timestamptz", ["soon"], r"params\[0\]"),
        ("SELECT $1::int", [1.5], r"params\[0\]"),
        ("SELECT $1::int[]", [["a"]], r"params\[0\]"),
        ("SELECT $1::jsonb", ["{"], r"params\[0\]"),
        ("SELECT $1::int, $2::int", [1], "requires 2"),
    ]:
        with pytest.raises(InvalidOperation, match=complaint):
            await binding.invoke(Invocation(operation="query", metadata={"sql": sql, "params": json.dumps(params)}))
    for sql, params, expected in [
        ("SELECT $1::jsonb, $2::int[]", [[1, {"a": None}], [1, None]], [[[1, {"a": None}], [1, None]]]),
        ("SELECT $1::text WHERE $2::bool", ["it's", True], [["it's"]]),
        ("SELECT $1::numeric", [None], [[None]]),
    ]:
        result = await binding.invoke(
            Invocation(operation="query", metadata={"sql": sql, "params": json.dumps(params)})
        )
        assert json.loads(result.data) == expected
    with pytest.raises(BindingError, match="division by zero"):
        await binding.invoke(Invocation(operation="exec", metadata={"sql": "SELECT 1 / 0"}))
    await binding.close()


async def test_a_server_that_stops_in_between(server: PostgresServer) -> None:
    binding = opened(SPEC, **server.settings, timeout="2s")
    await binding.start()
    server.stop()
    with pytest.raises(StoreUnavailable) as caught:
        await binding.invoke(Invocation(operation="query", metadata={"sql": "SELECT 1"}))
    assert PASSWORD not in str(caught.value)
    server.start()
    assert (await binding.invoke(Invocation(operation="query", metadata={"sql": "SELECT 1"}))).data == b"[[1]]"
    await binding.close()


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"slot": "a", "channel": "b", "tables": "t"}, "channel: slot is given too"),
        ({"slot": "a"}, "tables: it is needed"),
        ({"slot": "A-b", "tables": "t"}, "slot: "),
        ({"slot": "a", "tables": "a b"}, "tables: "),
        ({"slot": "a", "tables": "t", "changes": "upsert"}, "changes: "),
        ({"tables": "t"}, "tables: it needs slot"),
        ({"channel": "x; DROP"}, "channel: "),
    ],
)
def test_settings_that_cannot_be_obeyed(settings: dict[str, str], complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        opened(SPEC, host="localhost", **settings)
