"""`state.sqlite` and Dapr on one file: what Dapr wrote is read, what we write is what Dapr reads.

The SQL here is what Dapr's component does, not taken from ours.
"""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from bindings.state import sqlite
from bindings.state.sqlite import SqliteStateStore
from mesh.errors import ConfigurationError
from mesh.ports.stores import (
    DeleteState,
    EtagMismatch,
    InvalidStoreKey,
    SetState,
    StateItem,
    StoreError,
    StoreUnavailable,
)
from tests.opened import opened
from tests.virtual_clock import VirtualClock

CREATE = """
    CREATE TABLE IF NOT EXISTS state (
        key TEXT NOT NULL PRIMARY KEY,
        value TEXT NOT NULL,
        is_binary BOOLEAN NOT NULL,
        etag TEXT NOT NULL,
        expiration_time TIMESTAMP DEFAULT NULL,
        update_time TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP
    )"""
INSERT = """
    INSERT OR REPLACE INTO state (key, value, is_binary, etag, update_time, expiration_time)
    VALUES (?, ?, ?, ?, CURRENT_TIMESTAMP, {})"""
ALIVE = "(expiration_time IS NULL OR expiration_time > CURRENT_TIMESTAMP)"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "data.db"


@pytest.fixture
def dapr(file: Path) -> Iterator[sqlite3.Connection]:
    """Dapr's end of the file, its tables made."""
    connection = sqlite3.connect(file, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE metadata (key text NOT NULL PRIMARY KEY, value text NOT NULL)")
    connection.execute("REPLACE INTO metadata (key, value) VALUES ('migrations', '1')")
    connection.execute(CREATE)
    yield connection
    connection.close()


@pytest.fixture
async def store(file: Path) -> AsyncIterator[SqliteStateStore]:
    store = opened(sqlite.SPEC, connectionString=str(file))
    await store.start()
    yield store
    await store.close()


async def test_what_dapr_wrote(dapr: sqlite3.Connection, store: SqliteStateStore) -> None:
    dapr.execute(INSERT.format("NULL"), ("app1||json", '{"b":1,"a":[2]}', False, "an-etag"))
    dapr.execute(INSERT.format("NULL"), ("app1||bytes", base64.b64encode(b"\x00\xff").decode(), True, "another"))
    soon = "DATETIME(CURRENT_TIMESTAMP, '+60 seconds')"
    dapr.execute(INSERT.format(soon), ("app1||soon", "1", False, "e3"))
    dapr.execute(INSERT.format("DATETIME(CURRENT_TIMESTAMP, '-1 seconds')"), ("app1||over", "1", False, "e4"))
    now = time.time()
    json, binary, soon_over, over = await store.get_many([f"app1||{key}" for key in ("json", "bytes", "soon", "over")])
    assert json == StateItem(key="app1||json", value=b'{"b":1,"a":[2]}', etag="an-etag")
    assert binary == StateItem(key="app1||bytes", value=b"\x00\xff", etag="another")
    assert isinstance(soon_over, StateItem)
    assert soon_over.expires is not None
    assert now + 55 < soon_over.expires <= now + 61
    assert over is None
    with pytest.raises(EtagMismatch):
        await store.change(SetState(key="app1||over", value=b"2", etag="e4"))
    await store.change(SetState(key="app1||over", value=b"2", first_write=True))
    await store.change(SetState(key="app1||json", value=b"2", etag="an-etag"))
    await store.change(DeleteState(key="app1||bytes", etag="another"))
    assert sorted(key for (key,) in dapr.execute("SELECT key FROM state")) == ["app1||json", "app1||over", "app1||soon"]


async def test_what_dapr_reads(dapr: sqlite3.Connection, store: SqliteStateStore) -> None:
    await store.change(SetState(key="app1||json", value=b'{"b": 1, "a":[2]}'))
    await store.change(SetState(key="app1||bytes", value=b"\x00\xff", ttl=60))
    await store.change(SetState(key="app1||over", value=b"1", ttl=1))
    columns = "key, value, typeof(value), is_binary, etag, expiration_time, update_time = CURRENT_TIMESTAMP"
    rows = {row[0]: row[1:] for row in dapr.execute(f"SELECT {columns} FROM state WHERE {ALIVE}")}  # noqa: S608
    item = await store.get("app1||json")
    assert item is not None
    assert rows["app1||json"] == ('{"b": 1, "a":[2]}', "text", 0, item.etag, None, 1)
    value, kind, binary, _etag, expiration, _ = rows["app1||bytes"]
    assert (base64.b64decode(value), kind, binary) == (b"\x00\xff", "text", 1)
    [(left,)] = dapr.execute("SELECT (julianday(?) - julianday('now')) * 86400", (expiration,))
    assert 55 < left <= 60
    await asyncio.sleep(2.1)
    assert dapr.execute(f"SELECT 1 FROM state WHERE key = 'app1||over' AND {ALIVE}").fetchall() == []  # noqa: S608
    [(level,)] = dapr.execute("SELECT value FROM metadata WHERE key = 'migrations'")
    assert level == "1"


async def test_the_tables_are_made_as_dapr_makes_them(file: Path, tmp_path: Path) -> None:
    store = opened(sqlite.SPEC, connectionString=str(file), tableName="items", metadataTableName="levels")
    await store.start()
    await store.close()
    ours, theirs = sqlite3.connect(file), sqlite3.connect(":memory:")
    theirs.execute(CREATE)
    assert list(ours.execute("PRAGMA table_info(items)")) == list(theirs.execute("PRAGMA table_info(state)"))
    assert list(ours.execute("SELECT * FROM levels")) == [("migrations", "1")]
    assert list(ours.execute("PRAGMA journal_mode")) == [("wal",)]
    ours.close()
    theirs.close()


async def test_a_file_of_before_there_was_a_metadata_table(file: Path) -> None:
    before = sqlite3.connect(file, isolation_level=None)
    before.execute(CREATE)
    before.execute(INSERT.format("NULL"), ("a", "1", False, "e"))
    before.close()
    store = opened(sqlite.SPEC, connectionString=str(file))
    await store.start()
    assert await store.get("a") == StateItem(key="a", value=b"1", etag="e")
    await store.close()


async def test_two_tables_in_one_file(store: SqliteStateStore, file: Path) -> None:
    other = opened(sqlite.SPEC, connectionString=str(file), tableName="other")
    await other.start()
    await other.change(SetState(key="a", value=b"1"))
    assert await store.get("a") is None
    assert (await other.get("a")).value == b"1"
    await other.close()


async def test_a_damaged_row_harms_no_other(dapr: sqlite3.Connection, store: SqliteStateStore) -> None:
    dapr.execute(INSERT.format("NULL"), ("a", "abc", True, "e"))
    dapr.execute(INSERT.format("NULL"), ("b", "1", False, "e"))
    bad, good = await store.get_many(["a", "b"])
    assert isinstance(bad, StoreError)
    assert isinstance(good, StateItem)


async def test_expired_items_are_removed_by_one(file: Path, dapr: sqlite3.Connection) -> None:
    clock = VirtualClock()
    stores = [opened(sqlite.SPEC, clock, connectionString=str(file), cleanupInterval="1h") for _ in range(2)]
    for store in stores:
        await store.start()
    for number in range(2500):
        dapr.execute(INSERT.format("'2020-01-01 00:00:00'"), (f"a{number}", "1", False, "e"))
    dapr.execute(INSERT.format("NULL"), ("b", "1", False, "e"))
    await clock.advance(3599)
    assert dapr.execute("SELECT count(*) FROM state").fetchone() == (2501,)
    await clock.advance(1)
    async with asyncio.timeout(30):
        while dapr.execute("SELECT count(*) FROM state").fetchone() != (1,):
            await asyncio.sleep(0.01)
    [(last,)] = dapr.execute("SELECT unixepoch('now') - unixepoch(value) FROM metadata WHERE key = 'last-cleanup'")
    assert 0 <= last <= 10
    dapr.execute(INSERT.format("'2020-01-01 00:00:00'"), ("a", "1", False, "e"))
    await clock.advance(3600)  # by the clock of the file no hour has passed since
    for store in stores:
        await store.change(SetState(key="b", value=b"2"))  # which waits for what was asked before
        await store.close()
    assert dapr.execute("SELECT count(*) FROM state").fetchone() == (2,)


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({}, "connectionString: a component of type state.sqlite needs it"),
        ({"connectionString": "a.db", "tableName": "state; DROP TABLE state"}, "no name of a table"),
        ({"connectionString": "a.db", "metadataTableName": "a.b"}, "no name of a table"),
        ({"connectionString": "a.db?_pragma=busy_timeout(1)"}, "use the setting busyTimeout"),
        ({"connectionString": "a.db?_pragma=journal_mode(off)"}, "use the setting disableWAL"),
        ({"connectionString": "a.db?_pragma=x(1);DROP"}, "no pragma"),
        ({"connectionString": "a.db?_txlock=deferred"}, "can only be immediate"),
        ({"connectionString": "a.db?_loc=auto"}, "_loc is not known"),
        ({"connectionString": "a.db", "timeout": "1ms"}, "must be at least 1"),
        ({"connectionString": "a.db", "busyTimout": "1s"}, "no such setting"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, str], rule: str) -> None:
    with pytest.raises(ConfigurationError, match=rule):
        opened(sqlite.SPEC, **settings)


@pytest.mark.parametrize(
    "text",
    [
        ":memory:",
        "file::memory:?cache=shared",
        "file:x?mode=memory",
        "{}/a.db",
        "file:{}/a.db?_pragma=cache_size(-100)",
    ],
)
async def test_connection_strings(text: str, tmp_path: Path) -> None:
    store = opened(sqlite.SPEC, connectionString=text.format(tmp_path))
    await store.start()
    await store.change(SetState(key="a", value=b"1"))
    assert (await store.get("a")).value == b"1"
    assert (tmp_path / "a.db").exists() == ("a.db" in text)
    await store.close()
    with pytest.raises(StoreUnavailable):
        await store.get("a")


@pytest.mark.parametrize("path", ["{}/no/folder/a.db", "{}", "{}/text", "file:{}/a.db?mode=ro"])
async def test_a_file_that_cannot_be_had(path: str, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database" * 100)
    store = opened(sqlite.SPEC, connectionString=path.format(tmp_path))
    with pytest.raises(StoreError, match="SQLite"):
        await store.start()
    await store.close()


async def test_another_process_that_writes_for_long(file: Path, dapr: sqlite3.Connection) -> None:
    store = opened(sqlite.SPEC, connectionString=str(file), busyTimeout="200ms")
    await store.start()
    await store.change(SetState(key="a", value=b"1"))
    dapr.execute("BEGIN IMMEDIATE")
    assert (await store.get("a")).value == b"1"
    writes = await asyncio.gather(
        *(store.change(SetState(key=f"a{number}", value=b"2")) for number in range(3)), return_exceptions=True
    )
    assert [type(outcome) for outcome in writes] == [StoreUnavailable] * 3
    dapr.execute("COMMIT")
    await store.change(SetState(key="a", value=b"3"))
    assert (await store.get("a")).value == b"3"
    await store.close()


async def test_what_was_asked_before_the_end_is_done(file: Path) -> None:
    store = opened(sqlite.SPEC, connectionString=str(file))
    await store.start()
    writes = [asyncio.create_task(store.change(SetState(key=f"a{number}", value=b"1"))) for number in range(300)]
    await asyncio.sleep(0)
    ends = [asyncio.create_task(store.close()) for _ in range(2)]
    async with asyncio.timeout(30):  # one that comes too late is refused, not left to wait
        late = 0
        with pytest.raises(StoreUnavailable, match="closed"):
            while True:
                await store.change(SetState(key=f"b{late}", value=b"1"))
                late += 1
        await asyncio.gather(*writes, *ends)
    again = opened(sqlite.SPEC, connectionString=str(file))
    await again.start()
    items, _ = await again.list_items("", limit=1000)
    assert len(items) == 300 + late
    await again.close()


async def test_keys_that_cannot_be(store: SqliteStateStore) -> None:
    for key in ("", "\ud800"):
        with pytest.raises(InvalidStoreKey):
            await store.get(key)
        with pytest.raises(InvalidStoreKey):
            await store.transact([SetState(key="a", value=b"1"), SetState(key=key, value=b"1")])
    for key in ("a\0b", "a\0c"):
        await store.change(SetState(key=key, value=key.encode()))
        item = await store.get(key)
        assert item is not None
        assert (item.key, item.value) == (key, key.encode())
    assert await store.get("a") is None


async def test_a_slow_statement_is_ended(file: Path) -> None:
    store = opened(sqlite.SPEC, connectionString=str(file), timeout="1s")
    await store.start()
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    for worker in (store._reader, store._writer):
        with pytest.raises(StoreUnavailable, match=r"took too long|in time"):
            await worker.run(lambda connection: connection.execute(endless).fetchall())
    await store.change(SetState(key="a", value=b"1"))
    assert (await store.get("a")).value == b"1"
    await store.close()


WRITER = """
import asyncio, sys
sys.path.insert(0, {root!r})
from bindings.state import sqlite
from mesh.ports.stores import SetState
from tests.opened import opened

async def write(name):
    store = opened(sqlite.SPEC, connectionString={file!r})
    await store.start()
    async def lane(lane):
        number = 0
        while True:
            number += 1
            value = str(number).encode()
            keys = [f"{{name}}-{{lane}}-{{half}}" for half in "ab"]
            await store.transact([SetState(key=key, value=value) for key in keys])
            print(name, lane, number, flush=True)
    await asyncio.gather(*(lane(n) for n in range(8)))

asyncio.run(write(sys.argv[1]))
"""


async def test_what_was_acknowledged_survives_a_kill(file: Path) -> None:
    program = WRITER.format(root=str(Path(__file__).parents[3]), file=str(file))
    writers = [
        subprocess.Popen([sys.executable, "-P", "-c", program, name], stdout=subprocess.PIPE, env={**os.environ})
        for name in ("one", "two")
    ]
    said: dict[int, bytes] = {}
    try:
        for writer in writers:
            said[writer.pid] = b"".join([writer.stdout.readline() for _ in range(200)])
    finally:
        for writer in writers:
            writer.send_signal(signal.SIGKILL)
    lines = []
    for writer in writers:
        with writer.stdout as output:
            told = said[writer.pid] + output.read()
        writer.wait(30)
        lines += [line.split() for line in told.decode().rpartition("\n")[0].splitlines()]
    newest: dict[Any, int] = {}
    for name, lane, number in lines:
        newest[name, lane] = max(newest.get((name, lane), 0), int(number))
    assert len(newest) == 16
    store = opened(sqlite.SPEC, connectionString=str(file))
    await store.start()
    for (name, lane), number in newest.items():
        halves = await store.get_many([f"{name}-{lane}-a", f"{name}-{lane}-b"])
        values = [int(item.value) for item in halves]
        assert values[0] == values[1]
        assert values[0] >= number
    await store.close()
