"""The lock API, answer by answer, and what a fencing token is good for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from brokers.memory_tables import MemoryTables
from mesh.clock import SystemClock
from mesh.locks.backbone import MeshLockStore
from mesh.locks.block import Locks
from mesh.locks.component import LockComponent
from mesh.ports import Clock
from mesh.ports.stores import LockStore, StoreError, StoreUnavailable, UnlockStatus
from mesh.ports.tables import Tables
from mesh.pubsub import PubSub
from mesh.resiliency.targets import Resiliency
from mesh.state.backbone import MeshStateStore
from mesh.state.block import State
from mesh.state.component import StateComponent
from sidecar.api.lock import LockApi
from sidecar.api.state import StateApi
from sidecar.http.responses import CatchErrors
from sidecar.http.routing import Router
from sidecar.http.server import HttpServer
from tests.api.conftest import Start
from tests.contract.nats_tables import NatsBacking
from tests.e2e.mesh import JSON, call
from tests.virtual_clock import VirtualClock

BODY = {"resourceId": "order 7", "lockOwner": "a", "expiryInSeconds": 30}


class BrokenLockStore:
    def __init__(self, error: StoreError) -> None:
        self._error = error

    async def start(self) -> None: ...

    async def ping(self) -> None: ...

    async def close(self) -> None: ...

    async def try_lock(self, resource: str, owner: str, expiry: float) -> str | None:
        raise self._error

    async def unlock(self, resource: str, owner: str) -> UnlockStatus:
        raise self._error


class LockServer:
    """Locks and state of `app1` over the same tables."""

    def __init__(self, tables: Tables, clock: Clock, components: Mapping[str, LockComponent] | None = None) -> None:
        if components is None:
            components = {
                "lockstore": component("lockstore", MeshLockStore(tables, "lockstore", scope="app1")),
                "broken": component("broken", BrokenLockStore(StoreUnavailable("it is down"))),
            }
        resiliency = Resiliency([], clock=clock)
        self._state_store = MeshStateStore(tables, "statestore", clock, key_prefix="app1||")
        state = State(
            "app1",
            {"statestore": StateComponent(name="statestore", store=self._state_store, key_prefix="app1||")},
            resiliency=resiliency,
            pubsub=PubSub("app1", {}, clock),
            clock=clock,
            namespace="default",
        )
        router = Router()
        LockApi(Locks(components, resiliency=resiliency), 4096).add_to(router)
        StateApi(state, 0).add_to(router)
        self._server = HttpServer(CatchErrors(router))

    async def __aenter__(self) -> LockServer:
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        async with asyncio.timeout(30):
            await self._server.stop(5)
            await self._state_store.close()

    async def call(self, method: str, target: str, body: object = b"") -> tuple[int, Any]:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        assert self._server.port
        answer = await call(self._server.port, method, target, [("content-type", "application/json")], content)
        return answer.status, json.loads(answer.body) if answer.body else None

    async def lock(self, store: str = "lockstore", **body: object) -> tuple[int, Any]:
        return await self.call("POST", f"/v1.0-alpha1/lock/{store}", BODY | body)

    async def unlock(self, store: str = "lockstore", **body: object) -> tuple[int, Any]:
        return await self.call("POST", f"/v1.0-alpha1/unlock/{store}", {**BODY, **body})


def component(name: str, store: LockStore, prefix: str = "lock||app1||") -> LockComponent:
    return LockComponent(name=name, store=store, prefix=prefix)


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
async def server(clock: VirtualClock) -> AsyncIterator[LockServer]:
    async with LockServer(MemoryTables(clock), clock) as server:
        yield server


async def test_lock_and_unlock(server: LockServer) -> None:
    status, answer = await server.lock()
    assert (status, answer["success"]) == (200, True)
    assert set(answer) == {"success", "fencingToken"}
    assert await server.lock() == (200, {"success": False})
    assert await server.lock(lockOwner="b") == (200, {"success": False})
    assert await server.unlock(lockOwner="b") == (200, {"status": 2})
    assert await server.unlock() == (200, {"status": 0})
    assert await server.unlock() == (200, {"status": 1})
    assert (await server.lock(lockOwner="b"))[1]["success"] is True


async def test_expiry(server: LockServer, clock: VirtualClock) -> None:
    await server.lock(expiryInSeconds=5)
    await clock.advance(4.9)
    assert await server.lock(lockOwner="b") == (200, {"success": False})
    await clock.advance(0.2)
    assert (await server.lock(lockOwner="b"))[1]["success"] is True


async def test_snake_case_text_for_a_number_and_unknown_fields(server: LockServer) -> None:
    body = {"resource_id": "r", "lock_owner": "a", "expiry_in_seconds": "5", "more": {"x": 1}}
    assert (await server.call("POST", "/v1.0-alpha1/lock/lockstore", body))[1]["success"] is True
    assert await server.call("POST", "/v1.0-alpha1/unlock/lockstore", body) == (200, {"status": 0})


def error(code: str, message: str) -> dict[str, str]:
    return {"errorCode": code, "message": message}


CHECKS = [
    # Each row breaks the rules of all those after it, too: this is the order of the checks.
    ({"expiryInSeconds": 0, "resourceId": "", "lockOwner": ""}, "nothing", 400, "ERR_MALFORMED_REQUEST",
     "ExpiryInSeconds is not positive in lock store nothing"),
    ({"resourceId": "", "lockOwner": ""}, "nothing", 400, "ERR_MALFORMED_REQUEST",
     "ResourceId is empty in lock store nothing"),
    ({"resourceId": "a||b", "lockOwner": ""}, "nothing", 400, "ERR_MALFORMED_REQUEST",
     "LockOwner is empty in lock store nothing"),
    ({"resourceId": "a||b"}, "nothing", 400, "ERR_LOCK_STORE_NOT_FOUND", "lock store nothing not found"),
    ({"resourceId": "a||b"}, "broken", 500, "ERR_TRY_LOCK",
     "failed to try acquiring lock: input key/keyPrefix 'a||b' can't contain '||'"),
    ({}, "broken", 500, "ERR_TRY_LOCK", "failed to try acquiring lock: it is down"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "store", "status", "code", "message"), CHECKS)
async def test_the_checks_of_lock(
    server: LockServer, body: dict[str, Any], store: str, status: int, code: str, message: str
) -> None:
    assert await server.lock(store, **body) == (status, error(code, message))


@pytest.mark.parametrize(("body", "store", "status", "code", "message"), CHECKS[1:])
async def test_the_checks_of_unlock(
    server: LockServer, body: dict[str, Any], store: str, status: int, code: str, message: str
) -> None:
    message = message.replace("try acquiring lock", "release lock")
    code = code.replace("ERR_TRY_LOCK", "ERR_UNLOCK")
    assert await server.unlock(store, **body) == (status, error(code, message))


async def test_no_store_at_all(clock: VirtualClock) -> None:
    missing = error("ERR_LOCK_STORE_NOT_CONFIGURED", "lock store is not configured")
    async with LockServer(MemoryTables(clock), clock, {}) as server:
        assert await server.lock(resourceId="") == (500, missing)
        assert await server.unlock(resourceId="") == (500, missing)
        assert (await server.lock(expiryInSeconds=-1))[0] == 400, "before anything about the store"


@pytest.mark.parametrize(
    "body",
    [
        b"{", b"[]", b"null", b"7", b'{"resourceId":7}', b"{} {}", b'{"resourceId":"\xff"}',
        b'{"resourceId":"a","resource_id":"b"}', b'{"expiryInSeconds":2147483648}', b'{"expiryInSeconds":1.5}',
        b'{"expiryInSeconds":"soon"}', b'{"expiryInSeconds":true}', b"[" * 5000,
    ],
)  # fmt: skip
async def test_bodies_that_are_none(server: LockServer, body: bytes) -> None:
    status, answer = await server.call("POST", "/v1.0-alpha1/lock/lockstore", body)
    assert (status, answer["errorCode"]) in ((400, "ERR_MALFORMED_REQUEST"), (400, "ERR_BODY_READ"))
    assert answer["message"].startswith(("failed deserializing HTTP body: ", "failed to read"))


@pytest.mark.parametrize("body", [b"", b"{}", b'{"expiryInSeconds":null}', b'{"ResourceId":"a"}'])
async def test_bodies_that_say_nothing(server: LockServer, body: bytes) -> None:
    status, answer = await server.call("POST", "/v1.0-alpha1/lock/lockstore", body)
    assert (status, answer["message"]) == (400, "ExpiryInSeconds is not positive in lock store lockstore")


async def test_a_resource_that_no_table_can_hold(server: LockServer) -> None:
    status, answer = await server.lock(resourceId="x" * 2000)
    assert (status, answer["errorCode"]) == (500, "ERR_TRY_LOCK")


@pytest.fixture(params=["memory", "nats"])
async def shared(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[LockServer]:
    """Over the system's clock."""
    clock = SystemClock()
    if request.param == "memory":
        async with LockServer(MemoryTables(clock), clock) as server:
            yield server
        return
    backing = NatsBacking()
    backing.start(tmp_path / "nats")
    tables = await backing.client("locks")
    try:
        async with LockServer(tables, clock) as server:
            yield server
    finally:
        await tables.close()
        backing.stop()


async def test_a_stale_holder_cannot_write(shared: LockServer) -> None:
    """By none of the ways to change state; and the present one can, by all of them."""
    stale = (await shared.lock(expiryInSeconds=1))[1]["fencingToken"]
    first = [{"key": "k", "value": "of a", "metadata": {"fencingToken": stale}}]
    assert await shared.call("POST", "/v1.0/state/statestore", first) == (204, None)
    async with asyncio.timeout(30):
        while not (taken := (await shared.lock(lockOwner="b"))[1])["success"]:
            await asyncio.sleep(0.05)
    for token in (stale, taken["fencingToken"], stale):
        fence = {"fencingToken": token}
        query = f"?metadata.fencingToken={token}"
        fenced = {"operation": "upsert", "request": {"key": "k", "value": token, "metadata": fence}}
        upsert = {"operation": "upsert", "request": {"key": "k", "value": token}}
        for method, path, body, refused in (
            ("POST", "", [{"key": "k", "value": token, "metadata": fence}], 409),
            ("POST", query, [{"key": "k", "value": token}], 409),
            ("POST", "/transaction", {"operations": [upsert], "metadata": fence}, 500),
            ("POST", "/transaction", {"operations": [fenced]}, 500),
            ("DELETE", f"/gone{query}", b"", 409),
        ):
            status, answer = await shared.call(method, f"/v1.0/state/statestore{path}", body)
            if token == stale:
                assert status == refused, (path, status, answer)
                assert "not held any more" in answer["message"]
            else:
                assert (status, answer) == (204, None), path
    assert await shared.call("GET", "/v1.0/state/statestore/k") == (200, taken["fencingToken"])


async def test_a_token_ends_with_its_unlock(shared: LockServer) -> None:
    token = (await shared.lock())[1]["fencingToken"]
    item = [{"key": "k", "value": 1, "metadata": {"fencingToken": token}}]
    assert (await shared.call("POST", "/v1.0/state/statestore", item))[0] == 204
    await shared.unlock()
    assert (await shared.call("POST", "/v1.0/state/statestore", item))[0] == 409


async def test_the_default_store_fences_the_default_state_store(start: Start) -> None:
    """In a whole sidecar, without any file."""
    api = await start()
    body = json.dumps(BODY).encode()
    locked = await api.call("POST", "/v1.0-alpha1/lock/lockstore", [JSON], body)
    token = json.loads(locked.body)["fencingToken"]
    target = f"/v1.0/state/statestore?metadata.fencingToken={token}"
    item = b'[{"key":"k","value":1}]'
    assert (await api.call("POST", target, [JSON], item)).status == 204
    unlocked = await api.call("POST", "/v1.0-alpha1/unlock/lockstore", [JSON], body)
    assert (unlocked.status, unlocked.body) == (200, b'{"status":0}')
    assert (await api.call("POST", target, [JSON], item)).status == 409
