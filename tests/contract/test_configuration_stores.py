"""The contract of `ConfigurationStore`, and what is special to some."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any, cast

import nats
import pytest

from bindings.configuration import following, postgresql, redis
from mesh import addressing
from mesh.appconfig import backbone
from mesh.errors import ConfigurationError
from mesh.ports.stores import (
    ConfigurationFeature,
    ConfigurationItem,
    ConfigurationStore,
    Expired,
    InvalidStoreKey,
    StoreError,
    StoreUnavailable,
    ValueTooLarge,
    WritableConfigurationStore,
)
from tests.contract.configuration_stores import (
    CONFIGURATION_BACKINGS,
    ConfigurationBacking,
    MeshOverMemory,
    MeshOverNats,
    Postgres,
    Redis,
)
from tests.opened import opened
from tests.ports import free_port

LIMIT = 20.0
names = (f"store{number}" for number in count(1))

ODD_KEYS = [
    *("with.dots", ".", "..", "*", ">", "a.*", "a.>", " ", "a/b", "%", "%2E", "~", "$JS.API", "é", "日本語", "😀"),
    *("line\nbreak", "'", '"', "\\", "[*]", "h?llo", "UPPER", "upper", "a||b", "__keyspace@0__:x", "k" * 500),
]
ODD_VALUES = ["", " ", "☃", "a||b", "||", '{"value": "x"}', "two\nlines", "x" * 100_000]

Watch = AsyncGenerator[Mapping[str, ConfigurationItem], None]


@pytest.fixture(scope="module", params=CONFIGURATION_BACKINGS, ids=lambda backing: backing.name)
def backing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConfigurationBacking]:
    started = request.param()
    started.start(tmp_path_factory.mktemp(started.name))
    yield started
    started.stop()


class Side:
    """One store of the backing, and what others do to it."""

    def __init__(self, backing: ConfigurationBacking) -> None:
        self.backing = backing
        self.name = next(names)
        self.ends: list[ConfigurationStore] = []
        self.watches: list[Watch] = []

    async def connect(self) -> ConfigurationStore:
        """One more process's end, started."""
        end = await self.backing.store(self.name)
        self.ends.append(end)
        await asyncio.wait_for(end.start(), LIMIT)
        return end

    async def write(self, key: str, value: str, **metadata: str) -> None:
        await self.backing.write(self.name, key, value, metadata)

    async def remove(self, key: str) -> None:
        await self.backing.remove(self.name, key)

    async def watch(self, store: ConfigurationStore, *keys: str, **metadata: str) -> Watch:
        """One that stands."""
        watch = store.watch(keys, metadata)
        self.watches.append(watch)
        assert await following_of(watch) == {}
        return watch

    async def close(self) -> None:
        for watch in self.watches:
            await watch.aclose()
        for end in self.ends:
            await asyncio.wait_for(end.close(), LIMIT)


async def following_of(watch: Watch) -> Mapping[str, ConfigurationItem]:
    return await asyncio.wait_for(anext(watch), LIMIT)


async def shown(watch: Watch, **wanted: str) -> None:
    """Returns once the watch has shown these values, in any order and in as many steps as it likes."""
    seen: dict[str, str] = {}
    async with asyncio.timeout(LIMIT):
        while not wanted.items() <= seen.items():
            seen |= {key: item.value for key, item in (await anext(watch)).items()}
    assert seen.keys() <= wanted.keys(), seen


@pytest.fixture
async def side(backing: ConfigurationBacking) -> AsyncIterator[Side]:
    side = Side(backing)
    yield side
    await side.close()


@pytest.fixture
async def store(side: Side) -> ConfigurationStore:
    return await side.connect()


def values(items: Mapping[str, ConfigurationItem]) -> dict[str, str]:
    return {key: item.value for key, item in items.items()}


# Reading


async def test_an_empty_store_has_nothing(store: ConfigurationStore) -> None:
    assert await store.get([]) == {}
    assert await store.get(["a", "b"]) == {}
    await store.ping()


async def test_unknown_keys_are_left_out(side: Side, store: ConfigurationStore) -> None:
    await side.write("a", "1")
    await side.write("b", "2")
    assert values(await store.get(["b", "nobody"])) == {"b": "2"}
    assert values(await store.get(["a", "b", "a"])) == {"a": "1", "b": "2"}
    assert values(await store.get([])) == {"a": "1", "b": "2"}
    await side.remove("a")
    assert values(await store.get([])) == {"b": "2"}


async def test_each_value_has_a_version_of_its_own(side: Side, store: ConfigurationStore) -> None:
    await side.write("a", "same")
    first = (await store.get(["a"]))["a"]
    await side.write("a", "same")
    second = (await store.get(["a"]))["a"]
    assert first.value == second.value == "same"
    assert int(second.version) > int(first.version)


async def test_keys_of_any_kind(side: Side, store: ConfigurationStore) -> None:
    for key in ODD_KEYS:
        await side.write(key, f"value of {key}")
    expected = {key: f"value of {key}" for key in ODD_KEYS}
    assert values(await store.get([])) == expected
    assert values(await store.get(ODD_KEYS)) == expected
    for key in ODD_KEYS:
        assert values(await store.get([key])) == {key: f"value of {key}"}


async def test_values_of_any_kind(side: Side, store: ConfigurationStore) -> None:
    for number, value in enumerate(ODD_VALUES):
        if len(value) > 4000 and isinstance(side.backing, Postgres):
            continue  # its notifications are short, and the trigger of the documentation fails for more
        await side.write(f"key{number}", value)
        assert values(await store.get([f"key{number}"])) == {f"key{number}": value}


async def test_metadata(side: Side, store: ConfigurationStore) -> None:
    if not side.backing.metadata:
        pytest.skip("items of this store have none")
    await side.write("a", "1", unit="ms", owner="é")
    await side.write("b", "2")
    items = await store.get([])
    assert items["a"].metadata == {"unit": "ms", "owner": "é"}
    assert items["b"].metadata == {}


async def test_what_is_no_key(store: ConfigurationStore) -> None:
    with pytest.raises(InvalidStoreKey, match="no valid Unicode"):
        await store.get(["half \ud800"])
    with pytest.raises(InvalidStoreKey, match="no valid Unicode"):
        await anext(store.watch(["half \ud800"]))


# Watching


async def test_changes_are_shown(side: Side, store: ConfigurationStore) -> None:
    await side.write("a", "before")
    watch = await side.watch(store, "a", "b")
    await side.write("c", "not asked for")
    await side.write("a", "1")
    change = await following_of(watch)
    assert values(change) == {"a": "1"}
    assert change["a"] == (await store.get(["a"]))["a"]
    await side.write("b", "new")
    await shown(watch, b="new")
    await side.remove("a")
    assert await following_of(watch) == {"a": ConfigurationItem(value="")}


async def test_all_keys_can_be_watched(side: Side, store: ConfigurationStore) -> None:
    watch = await side.watch(store)
    for key in ODD_KEYS:
        await side.write(key, "1")
    await shown(watch, **dict.fromkeys(ODD_KEYS, "1"))


async def test_one_key_can_be_watched(side: Side, store: ConfigurationStore) -> None:
    watch = await side.watch(store, "a")
    await side.write("ab", "1")
    await side.write("a", "1")
    await shown(watch, a="1")


async def test_watches_do_not_disturb_each_other(side: Side, store: ConfigurationStore) -> None:
    first, second = await side.watch(store, "a"), await side.watch(await side.connect(), "a")
    await side.write("a", "1")
    await shown(first, a="1")
    await shown(second, a="1")
    await first.aclose()
    await side.write("a", "2")
    await shown(second, a="2")


async def test_of_quick_successions_the_newest_is_seen(side: Side, store: ConfigurationStore) -> None:
    watch = await side.watch(store, "a")
    for number in range(20):
        await side.write("a", str(number))
    seen = []
    while not seen or seen[-1] != 19:
        seen.append(int((await following_of(watch))["a"].value))
    assert seen == sorted(seen)


async def test_closing_the_store_ends_its_watches(side: Side, store: ConfigurationStore) -> None:
    if isinstance(side.backing, MeshOverMemory):
        pytest.skip("the tables are somebody else's to close")
    watch = await side.watch(store, "a")
    ending = asyncio.create_task(cast(Any, anext(watch, None)))
    await asyncio.sleep(0)
    await store.close()
    assert await asyncio.wait_for(ending, LIMIT) is None


async def test_a_lost_connection_is_mended(side: Side, store: ConfigurationStore) -> None:
    if not side.backing.durable:
        pytest.skip("nothing to lose")
    await side.write("stays", "1")
    await side.write("goes", "1")
    await side.write("changes", "1")
    watch = await side.watch(store)
    side.backing.crash()
    waiting = asyncio.create_task(shown(watch, goes="", changes="2", comes="1"))
    await asyncio.sleep(0.3)
    side.backing.recover()
    await side.remove("goes")
    await side.write("changes", "2")
    await side.write("comes", "1")
    await waiting
    await side.write("changes", "3")
    await shown(watch, changes="3")
    assert values(await store.get([])) == {"stays": "1", "changes": "3", "comes": "1"}


async def test_a_store_that_is_down(side: Side, store: ConfigurationStore) -> None:
    if not isinstance(side.backing, Redis | Postgres):
        pytest.skip("tables wait for their broker")
    side.backing.crash()
    try:
        with pytest.raises(StoreUnavailable):
            await store.get(["a"])
        with pytest.raises(StoreUnavailable):
            await anext(store.watch(["a"]))
        with pytest.raises(StoreUnavailable):
            await store.ping()
        closed = opened(
            redis.SPEC if isinstance(side.backing, Redis) else postgresql.SPEC,
            **side.backing.server.settings,
            **({} if isinstance(side.backing, Redis) else {"table": side.name}),
        )
        with pytest.raises(StoreUnavailable):
            await closed.start()
        await closed.close()
        await closed.close()
    finally:
        side.backing.recover()
    assert await store.get(["a"]) == {}


# Writing


def writable(store: ConfigurationStore) -> WritableConfigurationStore:
    if ConfigurationFeature.WRITE not in store.features:
        pytest.skip("the store declares no WRITE")
    return cast(WritableConfigurationStore, store)


async def test_what_is_put_is_got(side: Side, store: ConfigurationStore) -> None:
    writer = writable(store)
    for number, (key, value) in enumerate(zip(ODD_KEYS, ODD_VALUES * 9, strict=False)):
        metadata = {"number": str(number)} if number % 2 else {}
        version = await writer.put(key, value, metadata)
        item = ConfigurationItem(value=value, version=version, metadata=metadata)
        assert await (await side.connect()).get([key]) == {key: item}
    await writer.put("a", "1", {"old": "1"})
    await writer.put("a", "2")
    assert (await store.get(["a"]))["a"].metadata == {}
    await writer.delete("a")
    await writer.delete("a")
    assert await store.get(["a"]) == {}


async def test_bad_puts(store: ConfigurationStore) -> None:
    writer = writable(store)
    for key in ("", "k" * 2000, "\ud800"):
        with pytest.raises(InvalidStoreKey):
            await writer.put(key, "1")
        with pytest.raises(InvalidStoreKey):
            await writer.delete(key)
    with pytest.raises(ValueTooLarge):
        await writer.put("a", "x" * 300_000)
    assert await store.get([]) == {}


async def test_lists(store: ConfigurationStore) -> None:
    writer = writable(store)
    for number in range(25):
        await writer.put(f"a{number}", str(number))
    await writer.put("b", "1")
    found: dict[str, str] = {}
    cursor, pages = None, 0
    while pages == 0 or cursor is not None:
        items, cursor = await writer.list_items("a", limit=10, cursor=cursor)
        assert len(items) <= 10
        found |= values(items)
        pages += 1
    assert found == {f"a{number}": str(number) for number in range(25)}
    with pytest.raises(Expired):
        await writer.list_items("a", limit=10, cursor="nonsense")


async def test_more_items_than_can_be_read_at_once(store: ConfigurationStore, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = writable(store)
    monkeypatch.setattr(backbone, "MAX_ITEMS", 5)
    monkeypatch.setattr(backbone, "PAGE", 2)
    for number in range(6):
        await writer.put(f"a{number}", "1")
    with pytest.raises(StoreError, match="more than 5 items"):
        await store.get([])
    assert len(await store.get(["a1", "a2"])) == 2


# Each of its kind


@pytest.fixture(scope="module")
def on_nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MeshOverNats]:
    started = MeshOverNats()
    started.start(tmp_path_factory.mktemp("nats"))
    yield started
    started.stop()


async def test_a_plain_nats_client_takes_part(on_nats: MeshOverNats, caplog: pytest.LogCaptureFixture) -> None:
    """As docs/configuration-api.md says."""
    side = Side(on_nats)
    store = writable(await side.connect())
    client = await nats.connect(on_nats._backing._server.url)
    try:
        root = f"mesh.configuration.state.{side.name}.configuration"
        watch = await side.watch(store)
        stream = client.jetstream()
        await stream.publish(f"{root}.color", b"blue")
        await shown(watch, color="blue")
        await stream.publish(f"{root}.log%2Elevel", b"debug")
        await shown(watch, **{"log.level": "debug"})
        body, kind = b'{"value":"10","metadata":{"unit":"ms"}}', backbone.WITH_METADATA
        await stream.publish(f"{root}.pause", body, headers={"ce-datacontenttype": kind})
        change = await following_of(watch)
        assert (change["pause"].value, change["pause"].metadata) == ("10", {"unit": "ms"})
        await stream.publish(f"{root}.color", b"", headers={"ce-type": addressing.STATE_DELETED})
        assert await following_of(watch) == {"color": ConfigurationItem(value="")}

        await stream.publish(f"{root}.bad", b"\xff")
        await stream.publish(f"{root}.worse", b"[]", headers={"ce-datacontenttype": kind})
        await stream.publish(f"{root}.too.deep", b"1")
        await stream.publish(f"{root}.good", b"1")
        await shown(watch, good="1")
        assert values(await store.get([])) == {"log.level": "debug", "pause": "10", "good": "1"}
        assert "bad is left out" in caplog.text

        await store.put("ours", "1")
        message = await stream.get_last_msg(f"mesh-configuration-state-{side.name}", f"{root}.ours")
        assert message.data == b"1"
        assert message.headers["ce-type"] == addressing.STATE_SET
        assert message.headers["ce-datacontenttype"] == backbone.TEXT
    finally:
        await client.close()
        await side.close()


@pytest.fixture(scope="module")
def on_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    started = Redis()
    started.start(tmp_path_factory.mktemp("redis"))
    yield started
    started.stop()


async def test_the_layout_of_redis(on_redis: Redis, caplog: pytest.LogCaptureFixture) -> None:
    side = Side(on_redis)
    store = await side.connect()
    on_redis.run(side.name, "SET", "plain", "1")
    on_redis.run(side.name, "SET", "versioned", "1||v7")
    on_redis.run(side.name, "SET", "several", "a||b||2")
    on_redis.run(side.name, "SET", "bare", "1||")
    on_redis.run(side.name, "HSET", "hash", "field", "1")
    on_redis.run(side.name, "SET", "bytes", b"\xff")
    assert await store.get([]) == {
        "plain": ConfigurationItem(value="1"),
        "versioned": ConfigurationItem(value="1", version="v7"),
        "several": ConfigurationItem(value="a||b", version="2"),
        "bare": ConfigurationItem(value="1"),
    }
    assert "is left out" in caplog.text
    assert await store.get(["hash"]) == {}
    await side.close()


async def test_what_is_deleted_overwritten_or_expires_in_redis(on_redis: Redis) -> None:
    side = Side(on_redis)
    watch = await side.watch(await side.connect())
    on_redis.run(side.name, "SET", "a", "1", "PX", "50")
    await shown(watch, a="1")
    await shown(watch, a="")
    on_redis.run(side.name, "SET", "b", "1")
    await shown(watch, b="1")
    on_redis.run(side.name, "RENAME", "b", "c")
    await shown(watch, b="", c="1")
    on_redis.run(side.name, "SET", "c", "1")  # as it is
    on_redis.run(side.name, "DEL", "c")
    on_redis.run(side.name, "HSET", "c", "field", "1")
    await shown(watch, c="")
    await side.close()


async def test_redis_keeps_the_notifications_that_it_sends_already(on_redis: Redis) -> None:
    on_redis.server.run("CONFIG", "SET", "notify-keyspace-events", "El")
    side = Side(on_redis)
    await side.watch(await side.connect(), "a")
    _, flags = cast(Sequence[bytes], on_redis.server.run("CONFIG", "GET", "notify-keyspace-events"))
    assert set(b"ElKg$xe") == set(flags)
    await side.close()


async def test_a_redis_that_takes_no_orders(on_redis: Redis, caplog: pytest.LogCaptureFixture) -> None:
    on_redis.server.run("CONFIG", "SET", "notify-keyspace-events", "KA")
    acl = ("ACL", "SETUSER", "app", "on", ">secret word", "allkeys", "allchannels", "+@all", "-config")
    on_redis.server.run(*acl)
    side = Side(on_redis)
    settings = {**on_redis.server.settings, "redisUsername": "app", "redisPassword": "secret word"}
    store = opened(redis.SPEC, **settings, redisDB=str(on_redis.database(side.name)))
    await store.start()
    side.ends.append(store)
    watch = await side.watch(store, "a")
    assert "notify-keyspace-events KEA" in caplog.text
    assert "secret word" not in caplog.text
    await side.write("a", "1")
    await shown(watch, a="1")
    await side.close()


async def test_a_frozen_redis_is_noticed(
    on_redis: Redis, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(redis, "SILENCE", 0.2)
    side = Side(on_redis)
    watch = await side.watch(await side.connect(), "a")
    waiting = asyncio.create_task(shown(watch, a="1"))
    await asyncio.sleep(0.5)
    assert "cannot be followed" not in caplog.text  # it answers
    on_redis.server.freeze()
    try:
        async with asyncio.timeout(LIMIT):
            while "does not answer" not in caplog.text:
                await asyncio.sleep(0.05)
    finally:
        on_redis.server.thaw()
    await side.write("a", "1")
    await waiting
    await side.close()


async def test_too_much_to_follow_in_redis(on_redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "MAX_ITEMS", 2)
    side = Side(on_redis)
    store = await side.connect()
    for key in "abc":
        await side.write(key, "1")
    with pytest.raises(StoreError, match="more than 2 items"):
        await anext(store.watch([]))
    watch = await side.watch(store, "a")
    await side.write("a", "2")
    await shown(watch, a="2")
    await side.close()


def test_a_cluster_of_redis_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"redisType: changes cannot be followed in a cluster"):
        opened(redis.SPEC, redisHost="localhost:6379", redisType="cluster")


@pytest.fixture(scope="module")
def on_postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    started = Postgres()
    started.start(tmp_path_factory.mktemp("postgres"))
    yield started
    started.stop()


@pytest.fixture
async def postgres(on_postgres: Postgres) -> AsyncIterator[tuple[Side, ConfigurationStore, Callable[..., None]]]:
    side = Side(on_postgres)
    yield side, await side.connect(), lambda sql, *row: on_postgres.execute(side.name, sql, *row)
    await side.close()


InPostgres = tuple[Side, ConfigurationStore, Callable[..., None]]
INSERT = "INSERT INTO {table} VALUES (%s, %s, %s, %s)"


async def test_the_highest_numeric_version_counts(postgres: InPostgres) -> None:
    side, store, execute = postgres
    watch = await side.watch(store)
    for version in ("9", "10", "2", "beta", "-"):
        execute(INSERT, "a", f"value {version}", version, None)
    assert await store.get([]) == {"a": ConfigurationItem(value="value 10", version="10")}
    await shown(watch, a="value 10")
    execute("DELETE FROM {table} WHERE version = '10'")
    await shown(watch, a="value 9")  # Dapr: the row that was deleted
    execute(INSERT, "b", "1", "none", "[1]")
    assert await store.get(["b"]) == {"b": ConfigurationItem(value="1", version="none")}


async def test_metadata_of_the_request_chooses(postgres: InPostgres) -> None:
    side, store, execute = postgres
    execute(INSERT, "a", "1", "1", '{"stage": "test", "n": 5, "deep": {"x": [1]}}')
    execute(INSERT, "a", "2", "2", '{"stage": "live"}')
    execute(INSERT, "b", "3", "1", None)
    assert values(await store.get([])) == {"a": "2", "b": "3"}
    assert values(await store.get([], {"stage": "test"})) == {"a": "1"}
    assert values(await store.get(["a", "b"], {"stage": "test", "n": "5", "PgNotifyChannel": "x"})) == {"a": "1"}
    assert await store.get([], {"stage": "no ' such"}) == {}
    item = (await store.get(["a"], {"stage": "test"}))["a"]
    assert item.metadata == {"stage": "test", "n": "5", "deep": '{"x":[1]}'}
    watch = await side.watch(store, "a", stage="live")
    execute(INSERT, "a", "4", "4", '{"stage": "test"}')
    execute(INSERT, "a", "5", "5", '{"stage": "live"}')
    await shown(watch, a="5")


async def test_notifications_of_other_shapes(postgres: InPostgres) -> None:
    side, store, execute = postgres
    watch = await side.watch(store, "a", pgNotifyChannel="other")
    execute(INSERT, "a", "1", "1", None)
    for payload in ("", "null", "[]", '{"data": 5}', '{"data": {"key": 7}}'):  # whatever it says, something happened
        execute("UPDATE {table} SET value = %s", f"after {payload}")
        execute("SELECT pg_notify('other', %s)", payload)
        await shown(watch, a=f"after {payload}")


async def test_channels_of_postgresql(postgres: InPostgres, on_postgres: Postgres) -> None:
    side, store, _ = postgres
    for channel in ("no-name", 'a"; DROP TABLE x', "é", "x" * 64):
        with pytest.raises(StoreError, match="is no name of a channel"):
            await anext(store.watch([], {"pgNotifyChannel": channel}))
        with pytest.raises(ConfigurationError, match=r"notifyChannel: '.*is no name of a channel"):
            opened(postgresql.SPEC, **on_postgres.server.settings, table="t", notifyChannel=channel)
    without = opened(postgresql.SPEC, **on_postgres.server.settings, table=side.name)
    side.ends.append(without)
    await without.start()
    with pytest.raises(StoreError, match="set notifyChannel in the component, or pgNotifyChannel"):
        await anext(without.watch([]))
    await side.watch(without, PGNOTIFYCHANNEL="config")


async def test_tables_of_postgresql(on_postgres: Postgres) -> None:
    for table in ("a; DROP TABLE b", "a b", "a.b.c", ""):
        with pytest.raises(ConfigurationError, match=r"table: "):
            opened(postgresql.SPEC, **on_postgres.server.settings, table=table)
    missing = opened(postgresql.SPEC, **on_postgres.server.settings, table="nowhere")
    with pytest.raises(StoreError, match='relation "nowhere" does not exist'):
        await missing.start()
    await missing.close()
    on_postgres.server.execute("CREATE TABLE narrow (key text, value text)")
    narrow = opened(postgresql.SPEC, **on_postgres.server.settings, table="narrow")
    with pytest.raises(StoreError, match='column "version" does not exist'):
        await narrow.start()
    await narrow.close()


async def test_zero_characters_in_postgresql(postgres: InPostgres) -> None:
    _, store, _ = postgres
    with pytest.raises(InvalidStoreKey, match="zero character"):
        await store.get(["a\0"])
    with pytest.raises(InvalidStoreKey, match="zero character"):
        await store.get([], {"a": "\0"})


async def test_a_postgresql_that_is_not_there() -> None:
    nowhere = opened(
        postgresql.SPEC, host="127.0.0.1", port=str(free_port()), user="x", password="open sesame", table="t"
    )
    with pytest.raises(StoreUnavailable) as raised:
        await nowhere.start()
    assert "open sesame" not in str(raised.value)
    await nowhere.close()


# What follows from hints


async def test_a_refusal_later_on_is_waited_out(caplog: pytest.LogCaptureFixture) -> None:
    """A table that is gone for a moment: nothing is forgotten."""
    from tests.virtual_clock import VirtualClock

    clock = VirtualClock()
    items = {"a": ConfigurationItem(value="1"), "b": ConfigurationItem(value="1")}
    hints: asyncio.Queue[str | StoreError | None] = asyncio.Queue()

    async def listen() -> AsyncGenerator[str | None, None]:
        yield None
        while True:
            hint = await hints.get()
            if isinstance(hint, StoreError):
                raise hint
            yield hint

    async def read(keys: Sequence[str]) -> Mapping[str, ConfigurationItem]:
        return {key: item for key, item in items.items() if key in keys or not keys}

    watch = following.follow([], listen=listen, read=read, is_closed=lambda: False, clock=clock, store="it")
    assert await anext(watch) == {}
    hints.put_nowait(StoreError("no such table"))
    waiting: asyncio.Task[Any] = asyncio.create_task(cast(Any, anext(watch)))
    await clock.settle()
    assert not waiting.done()
    items["a"] = ConfigurationItem(value="2")
    del items["b"]
    await clock.advance(following.FIRST_PAUSE)
    assert await waiting == {"a": ConfigurationItem(value="2"), "b": ConfigurationItem(value="")}
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    await watch.aclose()
