"""`bindings.redis`: keys of a Redis (Dapr)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from bindings.invocations import check_metadata, flag, required
from bindings.redis import Server, fields, translated
from mesh.components import ComponentSpec, Setup
from mesh.errors import clip
from mesh.ports.bindings import InvalidOperation, Invocation, Result
from mesh.ports.stores import StoreUnavailable

KNOWN = {
    "create": ("key", "ttlInSeconds"),
    "get": ("key", "delete"),
    "delete": ("key",),
    "increment": ("key", "ttlInSeconds"),
}
MAX_TTL = 10**12
"""Seconds; Redis counts milliseconds in 64 bits."""
_READ_AND_DELETE = 'local value = redis.call("get", KEYS[1]) redis.call("del", KEYS[1]) return value'
"""GETDEL, which servers before 6.2 do not have."""


class RedisBinding:
    """An `OutputBinding`."""

    operations: Sequence[str] = tuple(KNOWN)

    def __init__(self, server: Server) -> None:
        self._server = server
        self._closed = False

    async def start(self) -> None:
        await self._server.start()

    async def ping(self) -> None:
        await self._server.start()

    async def close(self) -> None:
        self._closed = True
        await self._server.close()

    async def invoke(self, invocation: Invocation) -> Result:
        """The value is the data as it is (Dapr: a string with its quotes)."""
        check_metadata(invocation, KNOWN[invocation.operation])
        key = required(invocation, "key")
        try:
            key.encode()
        except UnicodeEncodeError:
            raise InvalidOperation(f"the key '{clip(key)}' is no valid Unicode text") from None
        ttl = _ttl(invocation.text("ttlInSeconds"))
        if self._closed:
            raise StoreUnavailable("Redis: the connections are closed")
        async with self._server.turn():
            return await self._run(invocation, key, ttl)

    async def _run(self, invocation: Invocation, key: str, ttl: int | None) -> Result:
        client: Any = self._server.client
        async with translated():
            match invocation.operation:
                case "create":
                    await client.set(key, invocation.data, ex=ttl)
                case "delete":
                    await client.delete(key)
                case "increment":
                    await client.incr(key)
                    if ttl is not None:
                        await client.expire(key, ttl)
                case _ if flag(invocation, "delete", False):
                    return Result(data=await client.eval(_READ_AND_DELETE, 1, key) or b"")
                case _:
                    return Result(data=await client.get(key) or b"")
        return Result()


def _ttl(text: str) -> int | None:
    if not text:
        return None
    if not re.fullmatch("[0-9]{1,12}", text) or not 0 < int(text) < MAX_TTL:
        raise InvalidOperation(f"metadata ttlInSeconds: a number of seconds, at least 1 (got '{clip(text)}')")
    return int(text)


def _open(setup: Setup) -> RedisBinding:
    return RedisBinding(Server(setup.settings))


SPEC = ComponentSpec(
    type="bindings.redis",
    title="Redis",
    about=(
        "Output: `create`, `get` (with `delete: true` the key is removed at once), `delete` and `increment`, each for "
        "the `key` in the metadata; `create` and `increment` take `ttlInSeconds`. A key that is not there reads as "
        "empty."
    ),
    open=_open,
    fields=fields(),
    needs="redis",
    example="""\
apiVersion: dapr.io/v1alpha1
kind: Component
metadata:
  name: cache
spec:
  type: bindings.redis
  version: v1
  metadata:
  - name: redisHost
    value: localhost:6379
  - name: redisPassword
    secretKeyRef:
      name: redis
      key: password
  - name: direction
    value: output
auth:
  secretStore: secrets
""",
)
