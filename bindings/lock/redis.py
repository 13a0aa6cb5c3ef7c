"""`lock.redis`: locks in a Redis, in Dapr's keys, so that its sidecars and ours exclude each other."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import cast

from bindings.redis import Server, fields, translated
from mesh.components import ComponentSpec, Setup
from mesh.ports.stores import StoreError, UnlockStatus

_UNLOCK = """
local owner = redis.call("get", KEYS[1])
if owner == false then return -1 end
if owner ~= ARGV[1] then return -2 end
return redis.call("del", KEYS[1])
"""
_STATUS = {
    1: UnlockStatus.SUCCESS,
    0: UnlockStatus.LOCK_DOES_NOT_EXIST,
    -1: UnlockStatus.LOCK_DOES_NOT_EXIST,
    -2: UnlockStatus.BELONGS_TO_OTHERS,
}


class RedisLockStore:
    """A `LockStore` in one Redis. The value of a lock's key is its owner; there is no fencing token."""

    def __init__(self, server: Server) -> None:
        self._server = server

    async def start(self) -> None:
        await self._server.start()
        async with translated():
            replication = await self._server.client.info("replication")
        if replication.get("connected_slaves") and not self._server.settings["failover"]:
            raise StoreError("Redis: this server has replicas, where a lock could be lost or held twice: use failover")

    async def ping(self) -> None:
        async with translated():
            await self._server.client.ping()

    async def close(self) -> None:
        await self._server.close()

    async def try_lock(self, resource: str, owner: str, expiry: float) -> str | None:
        async with translated():
            locked = await self._server.client.set(resource, owner, nx=True, px=round(expiry * 1000))
        return "" if locked else None

    async def unlock(self, resource: str, owner: str) -> UnlockStatus:
        async with translated():
            done = await cast(Awaitable[int], self._server.client.eval(_UNLOCK, 1, resource, owner))
        return _STATUS[done]


def _open(setup: Setup) -> RedisLockStore:
    server = Server(setup.settings)
    if server.is_cluster:
        raise setup.settings.fault("redisType", "locks in a cluster could be lost when a node fails over (Dapr, too)")
    return RedisLockStore(server)


SPEC = ComponentSpec(
    type="lock.redis",
    title="Redis",
    about=(
        "Locks in a Redis, with the keys that Dapr uses. They have no fencing token: a holder that was paused beyond "
        "the expiry does not notice, and nothing stops its writes. One server, or a master that sentinels watch over."
    ),
    open=_open,
    fields=fields(min_retry_interval=2.0, max_retry_interval=2.0),
    needs="redis",
    example="""\
apiVersion: dapr.io/v1alpha1
kind: Component
metadata:
  name: lockstore
spec:
  type: lock.redis
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
