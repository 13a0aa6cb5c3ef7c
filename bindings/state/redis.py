"""`state.redis`: items in a Redis, in Dapr's hashes, so that either can go on with the other's.

An item is a hash with the fields `data`, `version` (the ETag) and, once a first-write was asked for, `first-write`.
Dapr refuses later writes without an ETag to a key that has that mark; we leave the mark to it, and go by whether the
key exists. In the same way Dapr counts versions from 1 for each life of a key, and we take any number: an ETag of an
earlier life never comes back.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import random
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from bindings.redis import Server, fields, translated
from mesh.components import ComponentSpec, Field, Kind, Setup
from mesh.errors import clip
from mesh.ports.stores import (
    DeleteState,
    EtagMismatch,
    Expired,
    InvalidEtag,
    InvalidStoreKey,
    StateChange,
    StateFeature,
    StateItem,
    StoreError,
    StoreUnavailable,
    Unsupported,
    ValueTooLarge,
)

FEATURES = frozenset({StateFeature.ETAG, StateFeature.TRANSACTIONAL, StateFeature.TTL})

KEYS_AT_ONCE = 100
"""Keys that are read in one round trip."""
SCANNED_AT_ONCE = 1000
SCANS = 100
"""Most looks for one page of a list: about as many times `SCANNED_AT_ONCE` keys, in a store of others' keys."""
WAIT = 1000
"""Milliseconds until the replicas must have a strong write (Dapr)."""
MAX_VALUE = 512 << 20
"""Bytes that Redis takes in one piece, if it is not configured otherwise."""

_ANY, _ABSENT = b"*", b"-"
"""Conditions; the others are versions."""


class _Script:
    """Sent by its digest; in full only to a server that does not know it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.digest = hashlib.sha1(text.encode()).hexdigest()  # noqa: S324

    def by_digest(self, keys: Sequence[bytes], arguments: Sequence[bytes | str] = ()) -> Sequence[Any]:
        return ("EVALSHA", self.digest, len(keys), *keys, *arguments)

    def in_full(self, keys: Sequence[bytes], arguments: Sequence[bytes | str] = ()) -> Sequence[Any]:
        return ("EVAL", self.text, len(keys), *keys, *arguments)


# Data, version, and milliseconds since the epoch when it ends, or ''; a lone text names another kind of data. Before
# there were ETags, Dapr kept items as strings.
_READ = _Script("""
local item = redis.pcall('HMGET', KEYS[1], 'data', 'version')
if item.err then
  local kind = redis.call('TYPE', KEYS[1]).ok
  if kind ~= 'string' then return {kind} end
  item = {redis.call('GET', KEYS[1]), ''}
elseif not (item[1] and item[2]) then
  if redis.call('EXISTS', KEYS[1]) == 0 then return false end
  return {'hash'}
end
local left, ends = redis.call('PTTL', KEYS[1]), ''
if left >= 0 then
  local now = redis.call('TIME')
  ends = string.format('%.0f', now[1] * 1000 + math.floor(now[2] / 1000) + left)
end
return {item[1], item[2], ends}
""")

# For each key five arguments: condition, lifetime ('' as it is, '-1' for ever, seconds), new version ('' deletes),
# mark, data. Nothing is written before every condition was found to hold. Answers 0, or the number of the key whose
# condition did not, or {number, kind} for a key that holds other data. Of the commands only the first can fail: Redis
# looks for memory, disk and rights before a script writes, not between its writes.
_WRITE = _Script("""
local versions, strings = {}, {}
for i, key in ipairs(KEYS) do
  local at = i * 5 - 4
  local version = versions[key]
  if version == nil then
    version = redis.pcall('HGET', key, 'version')
    if type(version) == 'table' then
      local kind = redis.call('TYPE', key).ok
      if kind ~= 'string' then return {i, kind} end
      version, strings[key] = '', true
    elseif not version and redis.call('EXISTS', key) == 1 then
      return {i, 'hash'}
    end
  end
  local condition = ARGV[at]
  if condition == '-' then
    if version then return i end
  elseif condition ~= '*' and version ~= condition then
    return i
  end
  versions[key] = ARGV[at + 2] ~= '' and ARGV[at + 2]
end
local commands = {}
for key in pairs(strings) do table.insert(commands, {'DEL', key}) end
for i, key in ipairs(KEYS) do
  local at = i * 5 - 4
  if ARGV[at + 2] == '' then
    table.insert(commands, {'DEL', key})
  else
    table.insert(commands, {'HSET', key, 'data', ARGV[at + 4], 'version', ARGV[at + 2]})
    if ARGV[at + 3] ~= '' then table.insert(commands, {'HSET', key, 'first-write', 0}) end
    local ttl = ARGV[at + 1]
    if ttl == '-1' then
      table.insert(commands, {'PERSIST', key})
    elseif ttl ~= '' then
      table.insert(commands, {'EXPIRE', key, ttl})
    end
  end
end
for _, command in ipairs(commands) do
  local answer = redis.pcall(unpack(command))
  if type(answer) == 'table' then
    return redis.error_reply((string.gsub(answer.err, '^@user_script: %d+: %-', '')))  -- early versions say where
  end
end
return 0
""")


class _Cursor(msgspec.Struct, array_like=True):
    """Of a list: where the scan goes on, and keys that it has found already."""

    position: int
    found: Sequence[bytes] = ()


class RedisStateStore:
    """A `StateStore` in one Redis, or a cluster.

    A read is tried again as the settings say. A write is sent once: when the connection breaks, nobody knows whether
    it was made, and a second one could undo what others have done since.
    """

    max_transaction = None

    def __init__(self, server: Server, *, ttl: int | None) -> None:
        """`ttl` is the lifetime, in seconds, of items that are written without one; 0 or less is for ever."""
        self._server = server
        self._ttl = "" if ttl is None else _lifetime(ttl)
        self._max_value = MAX_VALUE
        self._closed = False
        # In a cluster the keys would have to be looked for node by node, while they move between them.
        self.features = FEATURES if server.is_cluster else FEATURES | {StateFeature.LIST}

    async def start(self) -> None:
        await self._server.start()
        self._max_value = await self._largest_value()

    async def ping(self) -> None:
        async with self._turn():
            await self._server.client.ping()

    async def close(self) -> None:
        self._closed = True
        await self._server.close()

    async def get(self, key: str, *, strong: bool = False, metadata: Mapping[str, str] = {}) -> StateItem | None:
        [item] = await self._read([(key, _key(key))])
        if isinstance(item, StoreError):
            raise item
        return item

    async def get_many(
        self, keys: Sequence[str], *, strong: bool = False, metadata: Mapping[str, str] = {}
    ) -> list[StateItem | StoreError | None]:
        found: dict[str, StateItem | StoreError | None] = {}
        good: list[tuple[str, bytes]] = []
        for key in dict.fromkeys(keys):
            try:
                good.append((key, _key(key)))
            except InvalidStoreKey as error:
                found[key] = error
        for first in range(0, len(good), KEYS_AT_ONCE):
            some = good[first : first + KEYS_AT_ONCE]
            found |= zip((key for key, _ in some), await self._read(some), strict=True)
        return [found[key] for key in keys]

    async def change(self, change: StateChange) -> None:
        await self._write([change])

    async def transact(self, changes: Sequence[StateChange], metadata: Mapping[str, str] = {}) -> None:
        """In a cluster all keys must lie in one slot."""
        await self._write(changes)

    async def list_items(
        self, key_prefix: str, *, limit: int, cursor: str | None = None
    ) -> tuple[Sequence[StateItem], str | None]:
        """In no order. Every page walks through keys of others too, so that one may have few items, or none."""
        prefix = _key(key_prefix) if key_prefix else b""
        start = _decoded(cursor, prefix)
        keys = list(start.found[:limit])
        rest = _Cursor(start.position, start.found[limit:])
        if not rest.found and (start.position or cursor is None) and len(keys) < limit:
            more, rest = await self._scan(prefix, limit - len(keys), start.position)
            keys += more
        named: list[tuple[str, bytes]] = []
        for key in dict.fromkeys(keys):
            try:
                named.append((key.decode(), key))
            except UnicodeDecodeError:
                continue  # no item of a state store
        items = [item for item in await self._read(named) if isinstance(item, StateItem)] if named else []
        return items, _encoded(rest) if rest.position or rest.found else None

    async def _scan(self, prefix: bytes, limit: int, position: int) -> tuple[Sequence[bytes], _Cursor]:
        """Keys that begin so, at most `limit`, and where to go on.

        Redis may find more keys than it is asked for. Then it is asked again, for fewer; what still is too many waits
        in the cursor.
        """
        pattern = re.sub(rb"([*?\[\]\\])", rb"\\\1", prefix) + b"*"
        keys: list[bytes] = []
        count = min(limit, SCANNED_AT_ONCE)
        for _ in range(SCANS):
            async with self._turn():
                following, batch = await self._server.client.scan(position, match=pattern, count=count)
            if len(keys) + len(batch) > limit:
                if keys:
                    break
                if count > 1:
                    count = count // 2
                    continue
                return batch[:limit], _Cursor(following, batch[limit:])
            keys += batch
            position = following
            if not position or len(keys) == limit:
                break
            if not batch:
                count = min(count * 2, SCANNED_AT_ONCE)
        return keys, _Cursor(position)

    async def _read(self, keys: Sequence[tuple[str, bytes]]) -> list[StateItem | StoreError | None]:
        from redis.exceptions import NoScriptError

        async with self._turn():
            answers = await self._ask([_READ.by_digest([encoded]) for _, encoded in keys])
            if any(isinstance(answer, NoScriptError) for answer in answers):
                answers = await self._ask([_READ.in_full([encoded]) for _, encoded in keys])
        items: list[StateItem | StoreError | None] = []
        for (key, _), answer in zip(keys, answers, strict=True):
            try:
                items.append(await _item(key, answer))
            except StoreError as error:
                items.append(error)
        return items

    async def _ask(self, commands: Sequence[Sequence[Any]]) -> Sequence[Any]:
        """Answers, or the errors that the server sent."""
        from redis.exceptions import ResponseError

        if len(commands) > 1:
            pipeline = self._server.client.pipeline(transaction=False)
            for command in commands:
                pipeline.execute_command(*command)
            answers: Sequence[Any] = await pipeline.execute(raise_on_error=False)
            return answers
        try:
            return [await self._server.client.execute_command(*commands[0])]
        except ResponseError as error:
            return [error]

    async def _write(self, changes: Sequence[StateChange]) -> None:
        keys = [_key(change.key) for change in changes]
        arguments = [argument for change in changes for argument in self._arguments(change)]
        strong = any(change.strong for change in changes)
        async with self._turn():
            if self._server.is_cluster:
                done = await self._write_in_cluster(keys, arguments, strong)
            else:
                done = await self._write_once(keys, arguments, strong)
        if isinstance(done, Sequence):
            number, kind = done
            raise _other_data(changes[number - 1].key, kind)
        if done:
            change = changes[done - 1]
            raise EtagMismatch(
                "the item was changed meanwhile, or does not exist" if change.etag else "the item exists already"
            )

    def _arguments(self, change: StateChange) -> Sequence[bytes | str]:
        if change.etag and not re.fullmatch(r"[0-9]{1,20}", change.etag):
            raise InvalidEtag(f"must be an unsigned integer (got '{clip(change.etag)}')")
        condition = change.etag or (_ABSENT if change.first_write else _ANY)
        if isinstance(change, DeleteState):
            return condition, "", "", "", ""
        if len(change.value) > self._max_value:
            raise ValueTooLarge(f"Redis takes no value of over {self._max_value} bytes")
        ttl = self._ttl if change.ttl is None else _lifetime(change.ttl)
        version = str(random.getrandbits(62) + 1)
        return condition, ttl, version, "1" if change.first_write else "", change.value

    async def _write_once(self, keys: Sequence[bytes], arguments: Sequence[bytes | str], strong: bool) -> Any:
        """On a connection of our own, which the library uses for nothing, and so not twice, meanwhile."""
        from redis.exceptions import NoScriptError

        pool = self._server.client.connection_pool
        connection = await pool.get_connection()
        try:
            try:
                done = await _say(connection, *_WRITE.by_digest(keys, arguments))
            except NoScriptError:
                done = await _say(connection, *_WRITE.in_full(keys, arguments))
            if strong and done == 0:
                await _await_replicas(connection, min(WAIT, int(self._server.settings["readTimeout"] * 500)))
            return done
        finally:
            await pool.release(connection)

    async def _write_in_cluster(self, keys: Sequence[bytes], arguments: Sequence[bytes | str], strong: bool) -> Any:
        from redis.exceptions import NoScriptError

        client = self._server.client
        if strong:
            raise Unsupported("strong consistency cannot be had in a cluster of Redis: ask for eventual")
        if len({client.keyslot(key) for key in keys}) > 1:
            raise Unsupported(
                "the keys of a transaction must lie in one slot of the cluster of Redis: give them a part in common, "
                "in braces, as in cart-{42} and order-{42}"
            )
        await client.initialize()
        node = client.get_node_from_key(keys[0])  # with a node that is named the library does not try again
        try:
            return await client.execute_command(*_WRITE.by_digest(keys, arguments), target_nodes=node)
        except NoScriptError:
            return await client.execute_command(*_WRITE.in_full(keys, arguments), target_nodes=node)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        if self._closed:
            raise StoreUnavailable("Redis: the store is closed")
        async with translated(), self._server.turn():
            yield

    async def _largest_value(self) -> int:
        """Many services do not let clients see the configuration."""
        from redis.exceptions import ResponseError

        async with self._turn():
            try:
                settings = await self._server.client.config_get("proto-max-bulk-len")
            except ResponseError:
                return MAX_VALUE
        return min([int(value) for value in settings.values()], default=MAX_VALUE)


async def _say(connection: Any, *command: Any) -> Any:
    await connection.send_command(*command)
    return await connection.read_response()


async def _await_replicas(connection: Any, limit: int) -> None:
    """Until all replicas that are there have what was written on this connection; `limit` in milliseconds."""
    replication = await _say(connection, "INFO", "replication")
    found = re.search(rb"connected_slaves:([0-9]+)", replication)
    replicas = int(found[1]) if found else 0
    if replicas and (have := await _say(connection, "WAIT", replicas, limit)) < replicas:
        raise StoreUnavailable(f"Redis: it is stored, but only {have} of {replicas} replicas had it within {limit} ms")


async def _item(key: str, answer: Any) -> StateItem | None:
    if isinstance(answer, Exception):
        async with translated():
            raise answer
    if answer is None:
        return None
    if len(answer) == 1:
        raise _other_data(key, answer[0])
    data, version, ends = answer
    return StateItem(
        key=key,
        value=data,
        etag=version.decode() or None,
        expires=int(ends) / 1000 if ends else None,
    )


def _other_data(key: str, kind: bytes) -> StoreError:
    """Dapr keeps items as documents of RedisJSON where there is that, and the content type of a request is JSON."""
    name = "a document of RedisJSON, which is not supported" if kind == b"ReJSON-RL" else f"a {kind.decode()} of others"
    return StoreError(f"Redis: under the key '{clip(key)}' there is no item but {name}")


def _lifetime(ttl: int) -> str:
    return str(ttl) if ttl > 0 else "-1"


def _key(key: str) -> bytes:
    if not key:
        raise InvalidStoreKey("the key is empty")
    try:
        return key.encode()
    except UnicodeEncodeError:
        raise InvalidStoreKey(f"the key '{clip(key)}' is no Unicode text") from None


def _encoded(cursor: _Cursor) -> str:
    return base64.urlsafe_b64encode(msgspec.msgpack.encode(cursor)).decode()


def _decoded(text: str | None, prefix: bytes) -> _Cursor:
    if text is None:
        return _Cursor(0)
    try:
        cursor = msgspec.msgpack.decode(base64.b64decode(text, altchars=b"-_", validate=True), type=_Cursor)
    except (msgspec.DecodeError, binascii.Error, ValueError):
        cursor = None
    if cursor is None or cursor.position < 0 or not all(key.startswith(prefix) for key in cursor.found):
        raise Expired("this cursor is not of this list; begin without a cursor")
    return cursor


def _open(setup: Setup) -> RedisStateStore:
    return RedisStateStore(Server(setup.settings), ttl=setup.settings["ttlInSeconds"])


SPEC = ComponentSpec(
    type="state.redis",
    title="Redis",
    about=(
        "State in a Redis, in Dapr's hashes: either can go on with the other's. A transaction is one script, and so "
        "happens whole or not at all; in a cluster its keys must lie in one slot. Redis alone decides what it keeps "
        "when it is restarted: see `appendonly` in its documentation. A strong write waits until all replicas have it. "
        "An item that is saved again without a lifetime keeps the one it had; ttlInSeconds -1 takes it away."
    ),
    open=_open,
    fields=(
        *fields(min_retry_interval=2.0),
        Field(
            "ttlInSeconds",
            "The lifetime of items that are saved without one; 0 or less is for ever.",
            Kind.INTEGER,
            maximum=2**31 - 1,
        ),
        Field(
            "queryIndexes",
            "Which members of items can be searched for.",
            refused="searching needs RediSearch, which is not supported: use state.postgresql",
        ),
    ),
    needs="redis",
    features=sorted(feature.value for feature in FEATURES | {StateFeature.LIST}),
    example="""\
apiVersion: dapr.io/v1alpha1
kind: Component
metadata:
  name: statestore
spec:
  type: state.redis
  version: v1
  metadata:
    - name: redisHost
      value: localhost:6379
    - name: redisPassword
      secretKeyRef:
        name: redis
        key: password
auth:
  secretStore: secrets
""",
)
