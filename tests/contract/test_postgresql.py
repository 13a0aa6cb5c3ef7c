"""What is particular to PostgreSQL: connections, servers that fail, queries, JSON that `jsonb` does not take."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bindings.state import postgresql
from bindings.state.postgresql import BytesStateStore, JsonStateStore
from mesh.errors import ConfigurationError
from mesh.ports.stores import (
    EtagMismatch,
    InvalidEtag,
    InvalidStoreKey,
    SetState,
    StateChange,
    StateItem,
    StoreError,
    StoreUnavailable,
)
from mesh.state import query
from tests.opened import opened
from tests.ports import free_port
from tests.servers.postgres import PASSWORD, PostgresServer, postgres

numbers = count(1)
V1, V2 = postgresql.SPECS


def make(server: PostgresServer, **more: str) -> JsonStateStore:
    store: JsonStateStore = opened(V1, **server.settings | {"tableName": f"own{next(numbers)}"} | more)
    return store


@pytest.fixture
async def store() -> AsyncIterator[JsonStateStore]:
    store = make(postgres())
    await store.start()
    yield store
    await store.close()


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    """One that the test may harm."""
    server = PostgresServer()
    server.start()
    yield server
    server.remove()


# Connection strings


@pytest.mark.parametrize(
    "form",
    [
        "host=127.0.0.1 port={port} user=postgres password='{quoted}' database=postgres",
        " host = 127.0.0.1 port={port} user=postgres dbname='postgres' password='{quoted}' options='-c a.b=database=x'",
        "postgres://postgres:{encoded}@127.0.0.1:{port}/postgres?sslmode=disable",
        "postgresql://postgres:{encoded}@127.0.0.1:{port}/postgres?connect_timeout=5",
    ],
)
async def test_forms_of_connection_strings(form: str) -> None:
    from urllib.parse import quote

    quoted = PASSWORD.replace("\\", "\\\\").replace("'", "\\'")
    text = form.format(port=postgres().port, quoted=quoted, encoded=quote(PASSWORD))
    store = opened(V2, connectionString=text, tablePrefix=f"own{next(numbers)}_")
    await store.start()
    await store.close()


async def test_parts_override_the_connection_string() -> None:
    text = "host=nowhere.invalid port=1 user=nobody password=wrong dbname=none sslmode=disable"
    store = opened(V2, connectionString=text, **postgres().settings, tablePrefix=f"own{next(numbers)}_")
    await store.start()
    await store.close()


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ({}, "it is needed, or else host"),
        ({"connectionString": "host=a password=hush hush"}, "neither of the form"),
        ({"connectionString": "postgresql://u:hush@[::1/x"}, "neither of the form"),
        ({"connectionString": "host=a password=hush pool_max_conns=3"}, "use maxConns"),
        ({"connectionString": "postgres://u:hush@a/b?pool_max_conns=3"}, "use maxConns"),
        ({"connectionString": "host=a password=hush hosst=b"}, "no option hosst"),
        ({"host": "a", "useAWSIAM": "true"}, "not supported"),
        ({"host": "a", "queryExecMode": "simple_protocol"}, "must be one of"),
        ({"host": "a", "timeout": "10ms"}, "at least 1"),
        ({"host": "a", "tableName": "state; DROP TABLE x"}, "no name of a table"),
        ({"host": "a", "tableName": "a.b.c"}, "no name of a table"),
        ({"host": "a", "tableName": "{table}"}, "no name of a table"),
        ({"host": "a", "tableName": '"100%s"'}, "no name of a table"),
        ({"host": "a", "metadataTableName": "--"}, "no name of a table"),
        ({"host": "a", "tablePrefix": "x"}, "no such setting"),
    ],
)
def test_settings_that_cannot_be(given: dict[str, str], rule: str) -> None:
    with pytest.raises(ConfigurationError, match=rule) as error:
        opened(V1, **given)
    assert "hush" not in str(error.value)


async def test_a_table_may_have_braces_in_its_name() -> None:
    store = make(postgres(), tableName='"{key} {0}"')
    await store.start()
    await store.change(SetState(key="a", value=b"1"))
    assert (await store.get_many(["a"]))[0] is not None
    await store.close()


# Servers that fail


async def test_a_server_that_is_not_there() -> None:
    begin = time.monotonic()
    for more in ({"port": str(free_port())}, {"password": "hush", "user": "postgres"}, {"database": "none"}):
        store = make(postgres(), **more)
        with pytest.raises(StoreError, match="PostgreSQL") as error:
            await store.start()
        assert "hush" not in str(error.value)
        assert PASSWORD not in str(error.value)
        await store.close()
    assert time.monotonic() - begin < 10  # an operation may take 20 s


async def test_a_server_that_is_restarted(server: PostgresServer) -> None:
    store = make(server)
    await store.start()
    await asyncio.gather(*(store.change(SetState(key=f"{n}", value=b"1")) for n in range(20)))
    server.stop()
    begin = time.monotonic()
    outcomes = await asyncio.gather(*(store.get(f"{n}") for n in range(20)), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {StoreUnavailable}
    assert PASSWORD not in str(outcomes[0])
    assert time.monotonic() - begin < 10  # an operation may take 20 s
    server.start()
    for _ in range(2):
        items = await asyncio.gather(*(store.get(f"{n}") for n in range(20)))  # at the first attempt
        assert all(item is not None for item in items)
        server.stop()
        server.start()  # the connections of before are there still, but lead nowhere
    await store.close()


async def test_a_server_that_is_frozen(server: PostgresServer) -> None:
    store = make(server, timeout="1s")
    await store.start()
    assert server.pid is not None
    pids = [
        server.pid,
        *(pid for (pid,) in server.execute("SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid()")),
    ]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    begin = time.monotonic()
    try:
        outcomes = await asyncio.gather(*(store.get("a") for _ in range(3)), return_exceptions=True)
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    assert {type(outcome) for outcome in outcomes} == {StoreUnavailable}
    assert time.monotonic() - begin < 15
    await store.change(SetState(key="a", value=b"1"))
    await store.close()


async def test_a_row_that_is_locked_for_long(store: JsonStateStore) -> None:
    impatient = make(postgres(), tableName=store._table, timeout="1s")
    await impatient.start()
    await store.change(SetState(key="a", value=b"1"))

    async def hold(connection: Any) -> None:
        async with connection.transaction():
            await connection.execute(f"UPDATE {store._table} SET isbinary = false".encode())  # noqa: S608
            with pytest.raises(StoreUnavailable, match="in time"):
                await impatient.change(SetState(key="a", value=b"2"))
            assert (await impatient.get("a")).value == b"1"  # type: ignore[union-attr]

    await store._connections.run(hold)
    await impatient.change(SetState(key="a", value=b"3"))
    assert (await store.get("a")).value == b"3"  # type: ignore[union-attr]
    await impatient.close()


async def test_connections_are_bounded_and_used_again(server: PostgresServer) -> None:
    store = make(server, maxConns="3", connectionMaxIdleTime="300ms")
    await store.start()

    def open_connections() -> int:
        [(number,)] = server.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'meshwire'")
        return int(number)

    await asyncio.gather(*(store.change(SetState(key=f"{n}", value=b"1")) for n in range(200)))
    assert open_connections() == 3
    async with asyncio.timeout(30):
        while open_connections():
            await asyncio.sleep(0.05)
    assert await store.get("1") is not None
    await store.close()
    async with asyncio.timeout(30):
        while open_connections():
            await asyncio.sleep(0.05)
    with pytest.raises(StoreUnavailable):
        await store.get("1")


@pytest.mark.parametrize("mode", ["cache_statement", "exec"])
async def test_prepared_statements_are_kept_only_if_wanted(mode: str) -> None:
    store = make(postgres(), queryExecMode=mode, maxConns="1")
    await store.start()
    for _ in range(10):
        await store.get("a")

    async def prepared(connection: Any) -> int:
        [(number,)] = await (await connection.execute("SELECT count(*) FROM pg_prepared_statements")).fetchall()
        return int(number)

    assert bool(await store._connections.run(prepared)) == (mode == "cache_statement")
    await store.close()


async def test_a_call_that_is_cancelled_leaves_a_connection_that_works(store: JsonStateStore) -> None:
    for delay in (0, 0.0005, 0.001, 0.002, 0.004, 0.008):
        tasks = [
            asyncio.create_task(store.transact([SetState(key=f"{n}", value=b"1"), SetState(key="x", value=b"1")]))
            for n in range(20)
        ]
        await asyncio.sleep(delay)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await store.change(SetState(key="x", value=b"2"))
        assert (await store.get("x")).value == b"2"  # type: ignore[union-attr]


# Concurrency


async def test_deadlocks_are_resolved(store: JsonStateStore) -> None:
    """Each transaction locks the same rows, half of them the other way round."""
    keys = [f"{n}" for n in range(10)]
    changes: list[list[StateChange]] = [
        [SetState(key=key, value=b"%d" % n) for key in (keys if n % 2 else reversed(keys))] for n in range(6)
    ]
    await asyncio.gather(*(store.transact(some) for some in changes))
    values = {item.value for item in await store.get_many(keys) if isinstance(item, StateItem)}
    assert len(values) == 1


async def test_of_transactions_with_the_same_etag_one_wins(store: JsonStateStore) -> None:
    await store.change(SetState(key="a", value=b"0"))
    item = await store.get("a")
    assert item is not None
    outcomes = await asyncio.gather(
        *(
            store.transact([SetState(key=f"b{n}", value=b"1"), SetState(key="a", value=b"1", etag=item.etag)])
            for n in range(20)
        ),
        return_exceptions=True,
    )
    assert sorted(str(type(outcome).__name__) for outcome in outcomes) == ["EtagMismatch"] * 19 + ["NoneType"]
    assert sum(found is not None for found in await store.get_many([f"b{n}" for n in range(20)])) == 1


# Keys, values and ETags


async def test_keys_that_cannot_be(store: JsonStateStore) -> None:
    for key in ("", "a\0b", "\ud800", os.urandom(5000).hex()):
        for attempt in (
            store.change(SetState(key=key, value=b"1")),
            store.transact([SetState(key="a", value=b"1"), SetState(key=key, value=b"1")]),
        ):
            with pytest.raises(InvalidStoreKey):
                await attempt
    bad, good = await store.get_many(["a\0b", "a"])
    assert isinstance(bad, InvalidStoreKey)
    assert good is None
    with pytest.raises(InvalidStoreKey):
        await store.list_items("a\0", limit=1)


@pytest.mark.parametrize("etag", ["x", "-1", "4294967296", "1.0", " 1", "١"])
async def test_etags_that_v1_never_makes(store: JsonStateStore, etag: str) -> None:
    with pytest.raises(InvalidEtag):
        await store.change(SetState(key="a", value=b"1", etag=etag))
    assert await store.get("a") is None


async def test_an_etag_that_v2_never_makes_is_that_of_another_value() -> None:
    store: BytesStateStore = opened(V2, **postgres().settings, tablePrefix=f"own{next(numbers)}_")
    await store.start()
    await store.change(SetState(key="a", value=b"1"))
    with pytest.raises(EtagMismatch, match="UUID"):
        await store.change(SetState(key="a", value=b"2", etag="1"))
    await store.close()


HARD_JSON = [
    *(b'"\\u0000"', b'{"\\u0000":1}', b'"\\ud800"', b'"\\ud83d\\ude00"', b"1e5000", b"1e400000", b"1E-20000", b"NaN"),
    *(
        b"9" * 200_000,
        b"[" * 900 + b"]" * 900,
        b"[" * 100_000,
        b"-0",
        b"-0.0",
        b"1.50",
        b'"\x01"',
        b'"\x7f"',
        b"\xef\xbb\xbf1",
    ),
    *(b'{"a":1,"a":2}', b"nul", b"1 2", b"'a'", b"[1,]", b'"\xff"', b"Infinity", b"01", b"+1", b".5", b"\x0b1"),
]


def meaning(text: bytes) -> Any:
    """Numbers exactly: PostgreSQL writes 1e20 as an integer."""
    return json.loads(text, parse_int=Decimal, parse_float=Decimal)


@pytest.mark.parametrize("value", HARD_JSON, ids=lambda value: repr(value[:12]))
async def test_json_that_is_hard_to_keep(store: JsonStateStore, value: bytes) -> None:
    await store.transact([SetState(key="a", value=value), SetState(key="b", value=b"1")])
    item = await store.get("a")
    assert item is not None
    assert item.value == value or meaning(item.value) == meaning(value)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


async def test_any_json_keeps_its_meaning_and_any_bytes_stay_as_they_are(store: JsonStateStore) -> None:
    contents: list[bytes] = []

    @settings(max_examples=300, deadline=None, derandomize=True, database=None)
    @given(st.builds(json.dumps, values, ensure_ascii=st.booleans()) | st.text() | st.binary())
    def collect(content: str | bytes) -> None:
        contents.append(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))

    collect()
    changes: list[StateChange] = [SetState(key=f"{n}", value=content) for n, content in enumerate(contents)]
    await store.transact(changes)
    for content, item in zip(contents, await store.get_many([change.key for change in changes]), strict=True):
        assert isinstance(item, StateItem)
        assert item.value == content or meaning(item.value) == meaning(content)


# Queries

PEOPLE: dict[str, Any] = {
    "ann": {"name": "Ann", "age": 9, "address": {"city": "Bern", "zip": "3000"}, "active": True, "nick": None},
    "bob": {"name": "Bob", "age": 10, "address": {"city": "Basel"}, "active": False},
    "cid": {"name": "Cid", "age": 100.5, "address": {"city": "Bern"}, "tags": ["a"]},
    "dan": {"name": "Dan", "age": "10", "address": "Bern"},
    "eve": "no object",
}


@pytest.fixture
async def people(store: JsonStateStore) -> JsonStateStore:
    for name, person in PEOPLE.items():
        await store.change(SetState(key=f"app1||{name}", value=json.dumps(person).encode()))
    await store.change(SetState(key="app1||raw", value=b"\x00"))
    await store.change(SetState(key="app2||other", value=json.dumps(PEOPLE["ann"]).encode()))
    await store.change(SetState(key="app1||gone", value=json.dumps(PEOPLE["ann"]).encode(), ttl=1))
    postgres().execute(f"UPDATE {store._table} SET expiredate = now() WHERE key = 'app1||gone'")  # noqa: S608
    return store


async def ask(store: JsonStateStore, **asked: Any) -> list[str]:
    found = await store.query(query.parse(json.dumps(asked).encode()), "app1||")
    return [item.key.removeprefix("app1||") for item in found.items]


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({}, "ann bob cid dan eve raw"),
        ({"EQ": {"name": "Ann"}}, "ann"),
        ({"EQ": {"age": 10}}, "bob"),
        ({"EQ": {"age": 10.0}}, "bob"),
        ({"EQ": {"age": "10"}}, "dan"),
        ({"EQ": {"active": True}}, "ann"),
        ({"EQ": {"nick": None}}, "ann"),
        ({"NEQ": {"name": "Ann"}}, "bob cid dan"),
        ({"NEQ": {"active": True}}, "bob"),
        ({"GT": {"age": 9}}, "bob cid"),
        ({"GTE": {"age": 9}}, "ann bob cid"),
        ({"LT": {"age": 100.5}}, "ann bob"),
        ({"LTE": {"age": 100.5}}, "ann bob cid"),
        ({"LT": {"name": "Bz"}}, "ann bob"),
        ({"IN": {"address.city": ["Basel", "Bern", 1, None]}}, "ann bob cid"),
        ({"EQ": {"address": "Bern"}}, "dan"),
        ({"AND": [{"EQ": {"address.city": "Bern"}}, {"GT": {"age": 50}}]}, "cid"),
        ({"OR": [{"EQ": {"name": "Dan"}}, {"AND": [{"EQ": {"age": 9}}, {"EQ": {"active": True}}]}]}, "ann dan"),
        ({"EQ": {"name' OR '1'='1": "x"}}, ""),
        ({"EQ": {"name": "' OR '1'='1"}}, ""),
        ({"EQ": {"%s %(key)s {}": "%s"}}, ""),
        ({"EQ": {"a,b}": 1}}, ""),
    ],
    ids=repr,
)
async def test_filters(people: JsonStateStore, asked: Any, found: str) -> None:
    assert sorted(await ask(people, filter=asked)) == found.split()


async def test_sorting(people: JsonStateStore) -> None:
    named = {"IN": {"name": ["Ann", "Bob", "Cid"]}}
    assert await ask(people, filter=named, sort=[{"key": "age"}]) == ["ann", "bob", "cid"]
    assert await ask(people, filter=named, sort=[{"key": "age", "order": "DESC"}]) == ["cid", "bob", "ann"]
    by_city = [{"key": "address.city"}, {"key": "name", "order": "DESC"}]
    assert await ask(people, filter=named, sort=by_city) == ["bob", "cid", "ann"]
    assert (await ask(people, sort=[{"key": "address.city", "order": "DESC"}]))[:3] == ["ann", "cid", "bob"]
    assert await ask(people, sort=[{"key": "a'b"}]) == await ask(people)


async def test_pages(people: JsonStateStore) -> None:
    seen: list[StateItem] = []
    token = None
    for _ in range(10):
        page = await people.query(query.parse(json.dumps({"page": {"limit": 2, "token": token}}).encode()), "app1||")
        seen += page.items
        token = page.token
        if token is None:
            break
    assert [item.key.removeprefix("app1||") for item in seen] == ["ann", "bob", "cid", "dan", "eve", "raw"]
    assert seen[0] == await people.get("app1||ann")
    assert seen[-1].value == b"\x00"
    with pytest.raises(StoreError, match="token"):
        await ask(people, page={"token": "x"})


async def test_no_more_items_than_fit_into_memory(people: JsonStateStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bindings.state.postgresql.MAX_RESULTS", 6)
    assert len(await ask(people)) == 6
    monkeypatch.setattr("bindings.state.postgresql.MAX_RESULTS", 5)
    assert len(await ask(people, page={"limit": 5})) == 5
    for limit in (0, 6, 2**31 - 1):
        with pytest.raises(StoreError, match="more than 5 items: ask for pages"):
            await ask(people, page={"limit": limit})


@pytest.mark.parametrize(
    "asked", [{"GT": {"active": True}}, {"LT": {"nick": None}}, {"EQ": {"name": "a\0"}}, {"EQ": {"a\0": 1}}], ids=repr
)
async def test_queries_that_cannot_be_answered(people: JsonStateStore, asked: Any) -> None:
    with pytest.raises(StoreError, match=r"NUL|compares"):
        await ask(people, filter=asked)
