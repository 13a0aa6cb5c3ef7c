"""`bindings.redis` for the contract suite of output bindings, against a real server."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from bindings.bindings.redis import SPEC
from mesh.ports.bindings import Invocation, Result
from tests.opened import opened
from tests.ports import free_port
from tests.servers.redis import RedisServer

Invoke = Callable[..., Awaitable[Result]]

_numbers = itertools.count(1)


class RedisKeys:
    name = "redis"
    refused = (
        Invocation(operation="get"),
        Invocation(operation="create", data=b"1", metadata={"key": "a", "ttlInSeconds": "soon"}),
        Invocation(operation="increment", metadata={"key": "a", "ttlInSeconds": "0"}),
        Invocation(operation="delete", metadata={"key": "a", "ttlInSeconds": "1"}),
        Invocation(operation="get", metadata={"key": "\ud800"}),
    )

    def start(self, folder: Path) -> None:
        self.server = RedisServer()
        self.server.start()

    def stop(self) -> None:
        self.server.remove()

    async def binding(self) -> Any:
        self._key = f"key{next(_numbers)}"
        return opened(SPEC, **self.server.settings)

    async def use(self, invoke: Invoke) -> None:
        key = self._key
        assert await invoke("get", key=key) == Result(data=b"")
        assert await invoke("create", b'"as it is"', key=key) == Result()
        assert self.server.run("GET", key) == b'"as it is"'
        assert self.server.run("TTL", key) == -1
        assert await invoke("get", key=key) == Result(data=b'"as it is"')
        assert await invoke("get", key=key, delete="true") == Result(data=b'"as it is"')
        assert self.server.run("EXISTS", key) == 0
        await invoke("create", b"1", key=key, ttlInSeconds="100")
        assert self.server.run("TTL", key) in (99, 100)
        await invoke("increment", key=key, ttlInSeconds="200")
        assert self.server.run("GET", key) == b"2"
        assert self.server.run("TTL", key) in (199, 200)
        assert await invoke("delete", key=key) == Result()
        assert self.server.run("EXISTS", key) == 0

    def unreachable(self) -> Any:
        return opened(SPEC, redisHost=f"127.0.0.1:{free_port()}", redisPassword="open-sesame")
