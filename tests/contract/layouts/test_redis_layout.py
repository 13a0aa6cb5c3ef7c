"""`state.redis` and Dapr on one server: what Dapr wrote is read, what we write is what Dapr reads.

`Dapr` does what Dapr's component does, by plain commands, with its rules for ETags.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from redis import Redis

from bindings.state import redis
from bindings.state.redis import RedisStateStore
from mesh.errors import ConfigurationError
from mesh.ports.stores import (
    DeleteState,
    EtagMismatch,
    Expired,
    InvalidEtag,
    InvalidStoreKey,
    SetState,
    StateFeature,
    StateItem,
    StoreError,
    StoreUnavailable,
    Unsupported,
    ValueTooLarge,
)
from tests.opened import opened
from tests.servers.redis import PASSWORD, RedisServer

A, B, C = "app1||a", "app1||b", "app1||c"


class Refused(Exception):
    pass


class Dapr:
    def __init__(self, client: Redis) -> None:
        self.run: Any = client.execute_command

    def set(self, key: str, data: str, etag: str = "0", first_write: bool = False) -> None:
        version = self.run("HGET", key, "version")
        marked = self.run("HEXISTS", key, "first-write")
        if version is not None and version != etag.encode() and (marked or etag != "0"):
            raise Refused
        self.run("HSET", key, "data", data)
        if first_write:
            self.run("HSET", key, "first-write", 0)
        self.run("HINCRBY", key, "version", 1)

    def get(self, key: str) -> tuple[bytes, str]:
        item = self.run("HGETALL", key)
        assert -(2**63) <= int(item[b"version"]) < 2**63 - 1_000_000  # it counts on
        return item[b"data"], item[b"version"].decode()


@pytest.fixture(scope="module")
def shared() -> Iterator[RedisServer]:
    server = RedisServer(proto_max_bulk_len="2mb")
    server.start()
    yield server
    server.remove()


@pytest.fixture
def server(shared: RedisServer) -> RedisServer:
    shared.run("FLUSHALL")
    return shared


@pytest.fixture
def dapr(server: RedisServer) -> Iterator[Dapr]:
    with Redis(port=server.port, password=PASSWORD, protocol=2, socket_timeout=5) as client:
        yield Dapr(client)


@pytest.fixture
async def store(server: RedisServer) -> AsyncIterator[RedisStateStore]:
    store: RedisStateStore = opened(redis.SPEC, **server.settings)
    await store.start()
    yield store
    await store.close()


@pytest.fixture
def own_server() -> Iterator[RedisServer]:
    """That the test may stop."""
    server = RedisServer()
    server.start()
    yield server
    server.remove()


async def value(store: RedisStateStore, key: str) -> bytes | None:
    item = await store.get(key)
    return None if item is None else item.value


async def test_what_dapr_wrote(dapr: Dapr, store: RedisStateStore) -> None:
    dapr.set(A, '{"b":1}')
    dapr.set(A, '{"b":2}')
    dapr.set(B, "1", first_write=True)
    dapr.set(C, "2")
    dapr.run("PEXPIRE", C, 60_000)
    dapr.run("SET", "app1||old", "3")
    now = time.time()
    a, b, c, old = await store.get_many([A, B, C, "app1||old"])
    assert a == StateItem(key=A, value=b'{"b":2}', etag="2")
    assert b == StateItem(key=B, value=b"1", etag="1")
    assert isinstance(c, StateItem)
    assert c.expires is not None
    assert now + 55 < c.expires < now + 65
    assert c.expires == (await store.get(C)).expires  # type: ignore[union-attr]
    assert old == StateItem(key="app1||old", value=b"3")
    with pytest.raises(EtagMismatch):
        await store.change(SetState(key=A, value=b"3", etag="1"))
    await store.change(SetState(key=A, value=b"3", etag="2"))
    await store.change(DeleteState(key=B, etag="1"))
    assert (await value(store, A), await value(store, B)) == (b"3", None)


async def test_what_dapr_reads(dapr: Dapr, store: RedisStateStore) -> None:
    await store.change(SetState(key=A, value=b'{"a": "\xff"}', ttl=60))
    item = await store.get(A)
    assert item is not None
    assert dapr.get(A) == (b'{"a": "\xff"}', item.etag)
    assert sorted(dapr.run("HKEYS", A)) == [b"data", b"version"]
    assert 59_000 < dapr.run("PTTL", A) <= 60_000
    assert item.etag
    dapr.set(A, "2", etag=item.etag)
    with pytest.raises(EtagMismatch):
        await store.change(SetState(key=A, value=b"3", etag=item.etag))
    with pytest.raises(Refused):
        dapr.set(A, "3", etag=item.etag)
    dapr.set(A, "4")
    assert await value(store, A) == b"4"


async def test_a_first_write_of_dapr(dapr: Dapr, store: RedisStateStore) -> None:
    """It marks the key for ever. Here an ETag is all that counts, and Dapr's own rule goes on to hold for Dapr."""
    dapr.set(A, "1", first_write=True)
    with pytest.raises(Refused):
        dapr.set(A, "2")
    with pytest.raises(EtagMismatch):
        await store.change(SetState(key=A, value=b"2", first_write=True))
    await store.change(SetState(key=A, value=b"2"))
    with pytest.raises(Refused):
        dapr.set(A, "3")
    data, etag = dapr.get(A)
    dapr.set(A, "3", etag=etag)
    assert (data, await value(store, A)) == (b"2", b"3")
    await store.change(DeleteState(key=A))
    dapr.set(A, "4")
    dapr.set(A, "5")


async def test_a_first_write_of_ours(dapr: Dapr, store: RedisStateStore) -> None:
    """Without the mark Dapr would take the key to be free for a first write of its own."""
    await store.change(SetState(key=A, value=b"1", first_write=True))
    with pytest.raises(Refused):
        dapr.set(A, "2", first_write=True)
    await store.transact([SetState(key=B, value=b"1", first_write=True)])
    with pytest.raises(Refused):
        dapr.set(B, "2", first_write=True)


async def test_an_etag_of_an_earlier_life_never_comes_back(dapr: Dapr, store: RedisStateStore) -> None:
    await store.change(SetState(key=A, value=b"1"))
    _, old = dapr.get(A)
    await store.change(DeleteState(key=A))
    await store.change(SetState(key=A, value=b"1"))
    with pytest.raises(EtagMismatch):
        await store.change(SetState(key=A, value=b"2", etag=old))


async def test_items_of_before_there_were_etags(dapr: Dapr, store: RedisStateStore) -> None:
    for key in (A, B, C):
        dapr.run("SET", key, "1")
    for change in (
        SetState(key=A, value=b"2", first_write=True),
        SetState(key=A, value=b"2", etag="1"),
        DeleteState(key=A, etag="1"),
    ):
        with pytest.raises(EtagMismatch):
            await store.change(change)
    await store.change(SetState(key=A, value=b"2"))
    await store.change(DeleteState(key=B))
    await store.transact(
        [SetState(key=C, value=b"2"), DeleteState(key=C), SetState(key=C, value=b"3", first_write=True)]
    )
    assert [await value(store, key) for key in (A, B, C)] == [b"2", None, b"3"]
    assert dapr.get(A)[0] == b"2"


@pytest.mark.parametrize("command", [("RPUSH", A, "1"), ("HSET", A, "other", "1"), ("ZADD", A, "1", "1")])
async def test_data_of_others_is_left_alone(dapr: Dapr, store: RedisStateStore, command: tuple[str, ...]) -> None:
    dapr.run(*command)
    before = dapr.run("DUMP", A)
    await store.change(SetState(key=B, value=b"1"))
    with pytest.raises(StoreError, match="no item but a"):
        await store.get(A)
    bad, good = await store.get_many([A, B])
    assert isinstance(bad, StoreError)
    assert isinstance(good, StateItem)
    for change in (SetState(key=A, value=b"1"), DeleteState(key=A)):
        with pytest.raises(StoreError, match="no item but a"):
            await store.change(change)
        with pytest.raises(StoreError, match="no item but a"):
            await store.transact([SetState(key=B, value=b"2"), change])
    assert (dapr.run("DUMP", A), await value(store, B)) == (before, b"1")
    items, _ = await store.list_items("app1||", limit=10)
    assert [item.key for item in items] == [B]


async def test_lifetimes(dapr: Dapr, store: RedisStateStore, server: RedisServer) -> None:
    await store.change(SetState(key=A, value=b"1", ttl=60))
    await store.change(SetState(key=A, value=b"2"))
    assert dapr.run("TTL", A) in (59, 60)  # Redis keeps it
    await store.change(SetState(key=A, value=b"3", ttl=-1))
    assert dapr.run("TTL", A) == -1
    for setting, expected in (("30", (29, 30)), ("-1", (-1,)), ("0", (-1,))):
        other = opened(redis.SPEC, **server.settings, ttlInSeconds=setting)
        await other.start()
        await store.change(SetState(key=A, value=b"4", ttl=90))
        await other.change(SetState(key=A, value=b"4"))
        assert dapr.run("TTL", A) in expected
        await other.transact([SetState(key=A, value=b"5", ttl=90)])
        assert dapr.run("TTL", A) in (89, 90)
        await other.close()
    await store.change(SetState(key=A, value=b"6", ttl=2**31 - 1))
    assert dapr.run("TTL", A) >= 2**31 - 2


async def test_a_transaction_for_which_there_is_no_memory_does_nothing(own_server: RedisServer) -> None:
    store = opened(redis.SPEC, **own_server.settings)
    await store.start()
    await store.change(SetState(key=A, value=b"1"))
    own_server.run("CONFIG", "SET", "maxmemory", "1")
    with pytest.raises(StoreUnavailable, match="memory"):
        await store.transact([SetState(key=B, value=b"1"), SetState(key=C, value=b"1")])
    assert await store.get_many([A, B, C]) == [await store.get(A), None, None]
    await store.transact([DeleteState(key=A), SetState(key=B, value=b"1")])  # what frees memory is let through, whole
    assert [await value(store, key) for key in (A, B)] == [None, b"1"]
    await store.close()


async def test_etags_and_keys_that_cannot_be(store: RedisStateStore) -> None:
    for etag in ("x", "-1", "1.0", "1 ", "9" * 30):
        with pytest.raises(InvalidEtag):
            await store.change(SetState(key=A, value=b"1", etag=etag))
    with pytest.raises(EtagMismatch):
        await store.change(SetState(key=A, value=b"1", etag="0"))
    for key in ("", "\ud800"):
        with pytest.raises(InvalidStoreKey):
            await store.get(key)
        with pytest.raises(InvalidStoreKey):
            await store.transact([SetState(key=A, value=b"1"), SetState(key=key, value=b"1")])
        assert isinstance((await store.get_many([key]))[0], InvalidStoreKey)
    await store.change(SetState(key="a\0b\r\n", value=b"\r\n\0"))
    assert await value(store, "a\0b\r\n") == b"\r\n\0"
    assert await store.get(A) is None


async def test_a_server_that_takes_smaller_values(store: RedisStateStore) -> None:
    with pytest.raises(ValueTooLarge, match="2097152"):
        await store.change(SetState(key=A, value=b"x" * (2 * 1024 * 1024 + 1)))
    await store.change(SetState(key=A, value=b"x" * 1024 * 1024))


async def test_a_server_that_forgot_the_scripts(store: RedisStateStore, server: RedisServer) -> None:
    await store.change(SetState(key=A, value=b"1"))
    server.run("SCRIPT", "FLUSH")
    assert await value(store, A) == b"1"
    server.run("SCRIPT", "FLUSH")
    assert [type(item) for item in await store.get_many([A, B, A])] == [StateItem, type(None), StateItem]
    server.run("SCRIPT", "FLUSH")
    await store.transact([SetState(key=A, value=b"2"), SetState(key=B, value=b"2")])
    assert await value(store, B) == b"2"


async def test_few_connections_for_many(server: RedisServer) -> None:
    store = opened(redis.SPEC, **server.settings, poolSize="2")
    await store.start()
    keys = [f"app1||{number}" for number in range(300)]
    async with asyncio.TaskGroup() as group:
        for key in keys:
            group.create_task(store.change(SetState(key=key, value=b"1")))
            group.create_task(store.get(key))
    clients: Any = server.run("CLIENT", "LIST")
    assert clients.count(b"name=meshwire") <= 2
    assert None not in await store.get_many(keys)
    await store.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.get(A)
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.change(SetState(key=A, value=b"1"))
    await store.close()


# Lists


@pytest.mark.parametrize("limit", [1, 2, 7, 100])
async def test_a_list_page_by_page(store: RedisStateStore, dapr: Dapr, limit: int) -> None:
    keys = [f"app1||a*[x]{number}" for number in range(60)]
    others = [f"app1||axx{number}" for number in range(300)]
    for key in (*keys, *others):
        dapr.set(key, "1")
    dapr.run("SET", b"app1||a*[x]\xff", "no text")
    found, cursor, pages = [], None, 0
    while True:
        items, cursor = await store.list_items("app1||a*[x]", limit=limit, cursor=cursor)
        assert len(items) <= limit
        found += [item.key for item in items]
        pages += 1
        if cursor is None:
            break
    assert sorted(found) == sorted(keys)
    assert pages < 3 * len(keys) / limit + 3
    for bad in ("", "0", "=", "AAAA", "wAGQ"):
        with pytest.raises(Expired):
            await store.list_items("app1||a", limit=limit, cursor=bad)


async def test_a_cursor_is_of_its_list(store: RedisStateStore, dapr: Dapr) -> None:
    """One that has keys in it hands out none of another prefix."""
    for number in range(500):
        dapr.set(f"app1||{number}", "1")
    cursors, cursor = [], None
    while cursor is not None or not cursors:
        _, cursor = await store.list_items("app1||", limit=1, cursor=cursor)
        cursors.append(cursor)
    outcomes = []
    for cursor in cursors[:-1]:
        try:
            outcomes.append(await store.list_items("app2||", limit=10, cursor=cursor))
        except Expired:
            outcomes.append(None)
    assert None in outcomes
    assert all(outcome is None or not outcome[0] for outcome in outcomes)


# Servers that fail


async def test_no_server(own_server: RedisServer) -> None:
    own_server.stop()
    store = opened(redis.SPEC, **own_server.settings)
    with pytest.raises(StoreUnavailable, match="cannot be reached"):
        await asyncio.wait_for(store.start(), 30)
    await store.close()


async def test_a_wrong_password(server: RedisServer) -> None:
    settings = server.settings | {"redisPassword": "a-secret-that-is-wrong"}
    store = opened(redis.SPEC, **settings)
    with pytest.raises(StoreError) as raised:
        await store.start()
    assert not isinstance(raised.value, StoreUnavailable)
    assert "secret" not in str(raised.value)
    await store.close()


async def test_a_server_that_is_gone_for_a_while(own_server: RedisServer) -> None:
    store = opened(redis.SPEC, **own_server.settings, redisMaxRetryInterval="10ms")
    await store.start()
    await asyncio.gather(*(store.change(SetState(key=A, value=b"1")) for _ in range(20)))
    own_server.kill()
    for attempt in (store.get(A), store.get_many([A, B]), store.change(SetState(key=A, value=b"2")), store.ping()):
        with pytest.raises(StoreUnavailable) as raised:
            await asyncio.wait_for(attempt, 30)
        assert PASSWORD not in str(raised.value)
    own_server.start()
    await asyncio.gather(*(store.change(SetState(key=f"app1||{n}", value=b"3")) for n in range(20)))
    assert await value(store, "app1||7") == b"3"
    await store.close()


async def test_a_server_that_does_not_answer(own_server: RedisServer) -> None:
    store = opened(redis.SPEC, **own_server.settings, readTimeout="200ms", redisMaxRetryInterval="10ms")
    await store.start()
    await store.change(SetState(key=A, value=b"1"))
    own_server.freeze()
    for attempt in (store.change(SetState(key=A, value=b"2")), store.get(A), store.get_many([A, B])):
        with pytest.raises(StoreUnavailable):
            await asyncio.wait_for(attempt, 30)
    own_server.thaw()
    async with asyncio.timeout(30):
        while await value(store, A) != b"2":  # it had it all the time
            await asyncio.sleep(0.01)
    await store.close()


class Between:
    """Passes on what is said to the server, and back, but when `loses` ends the connection instead of an answer to a
    script."""

    def __init__(self, target: int) -> None:
        self._target = target
        self.loses = False

    async def __aenter__(self) -> Between:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, asking = await asyncio.open_connection("127.0.0.1", self._target)
        try:
            while said := await reader.read(65536):
                asking.write(said)
                answer = await answers.read(65536)
                if self.loses and b"EVAL" in said:
                    break
                writer.write(answer)
        finally:
            writer.close()
            asking.close()


async def test_a_write_is_sent_once(server: RedisServer) -> None:
    """When the answer is lost, a second one could undo what others did since, or take its own work for another's."""
    async with Between(server.port) as between:
        settings = server.settings | {"redisHost": f"127.0.0.1:{between.port}", "redisMaxRetryInterval": "10ms"}
        store = opened(redis.SPEC, **settings)
        await store.start()
        await store.change(SetState(key=A, value=b"1"))
        item = await store.get(A)
        server.run("CONFIG", "RESETSTAT")
        between.loses = True
        for change in (
            SetState(key=A, value=b"2", etag=item.etag),
            SetState(key=B, value=b"2", first_write=True),
            SetState(key=B, value=b"3"),
        ):
            with pytest.raises(StoreUnavailable):
                await store.change(change)
        statistics: Any = server.run("INFO", "commandstats")
        assert statistics["cmdstat_evalsha"]["calls"] == 3
        between.loses = False
        assert [await value(store, key) for key in (A, B)] == [b"2", b"3"]
        await store.close()


async def test_a_strong_write_waits_for_the_replicas(own_server: RedisServer) -> None:
    replica = RedisServer(replicaof=f"127.0.0.1 {own_server.port}", masterauth=f'"{PASSWORD}"')
    replica.start()
    store = opened(redis.SPEC, **own_server.settings, readTimeout="500ms")
    await store.start()
    try:
        async with asyncio.timeout(20):
            while own_server.run("INFO", "replication").get("slave0", {}).get("state") != "online":  # type: ignore[attr-defined]
                await asyncio.sleep(0.05)
        for number in range(20):
            await store.change(SetState(key=A, value=str(number).encode(), strong=True))
            assert replica.run("HGET", A, "data") == str(number).encode()
        replica.freeze()
        with pytest.raises(StoreUnavailable, match="0 of 1 replicas"):
            await store.change(SetState(key=A, value=b"no", strong=True))
        with pytest.raises(StoreUnavailable, match="0 of 1 replicas"):
            await store.transact([DeleteState(key=A, strong=True)])
        await store.change(SetState(key=A, value=b"yes"))
        assert await value(store, A) == b"yes"
    finally:
        await store.close()
        replica.remove()


# Clusters


async def test_a_cluster() -> None:
    server = RedisServer(cluster_enabled="yes")
    server.start()
    server.run("CLUSTER", "ADDSLOTS", *map(str, range(16384)))
    store: RedisStateStore = opened(redis.SPEC, **server.settings, redisType="cluster")
    try:
        async with asyncio.timeout(30):
            while b"cluster_state:ok" not in server.run("CLUSTER", "INFO"):  # type: ignore[operator]
                await asyncio.sleep(0.05)
        await store.start()
        keys = [f"app1||{number}" for number in range(300)]
        await asyncio.gather(*(store.change(SetState(key=key, value=key.encode())) for key in keys))
        found = await store.get_many([*keys, "app1||none"])
        assert [item.value for item in found[:-1] if isinstance(item, StateItem)] == [key.encode() for key in keys]
        assert found[-1] is None
        item = await store.get(keys[0])
        assert item is not None
        await store.change(SetState(key=keys[0], value=b"2", etag=item.etag))
        with pytest.raises(EtagMismatch):
            await store.change(DeleteState(key=keys[0], etag=item.etag))
        pair = [SetState(key="app1||a{1}", value=b"1"), SetState(key="app1||b{1}", value=b"1", first_write=True)]
        await store.transact(pair)
        with pytest.raises(EtagMismatch):
            await store.transact(pair)
        with pytest.raises(Unsupported, match="in one slot"):
            await store.transact([SetState(key=A, value=b"1"), SetState(key=B, value=b"1")])
        assert await store.get_many([A, B]) == [None, None]
        with pytest.raises(Unsupported, match="strong"):
            await store.change(SetState(key=A, value=b"1", strong=True))
        assert StateFeature.LIST not in store.features
        server.run("SCRIPT", "FLUSH")
        await store.change(SetState(key=A, value=b"1"))
        server.run("SCRIPT", "FLUSH")
        assert len([item for item in await store.get_many([A, *keys]) if item]) == 301
        server.stop()
        with pytest.raises(StoreUnavailable):
            await asyncio.wait_for(store.change(SetState(key=A, value=b"2")), 30)
        with pytest.raises(StoreUnavailable):
            await asyncio.wait_for(store.get(A), 20)
    finally:
        await store.close()
        server.remove()


# Settings


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({}, "redisHost: a component of type state.redis needs it"),
        ({"redisHost": "a", "queryIndexes": "[]"}, "RediSearch"),
        ({"redisHost": "a", "ttlInSeconds": "1s"}, "ttlInSeconds"),
        ({"redisHost": "a", "ttlInSeconds": "2147483648"}, "must be at most"),
        ({"redisHost": "a", "consumerID": "x"}, "no such setting"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, str], rule: str) -> None:
    with pytest.raises(ConfigurationError, match=rule):
        opened(redis.SPEC, **settings)
