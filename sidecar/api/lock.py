"""Locks, by Dapr's routes below `/v1.0-alpha1`."""

from __future__ import annotations

import msgspec
from starlette.types import Receive, Scope, Send

from mesh.locks.block import Locks
from sidecar.api import proto_json
from sidecar.api.proto_json import Int32
from sidecar.api.state import send_json
from sidecar.http.body import read_body
from sidecar.http.routing import Router


class _TryLock(msgspec.Struct):
    resourceId: str = ""
    lockOwner: str = ""
    expiryInSeconds: Int32 = 0


class _Unlock(msgspec.Struct):
    resourceId: str = ""
    lockOwner: str = ""


class LockApi:
    def __init__(self, locks: Locks, max_body_size: int) -> None:
        """`max_body_size` in bytes; 0 is no limit."""
        self._locks = locks
        self._max_body_size = max_body_size

    def add_to(self, router: Router) -> None:
        router.add(("POST",), "/v1.0-alpha1/lock/{store}", self.lock, group="v1alpha1/lock")
        router.add(("POST",), "/v1.0-alpha1/unlock/{store}", self.unlock, group="v1alpha1/unlock")

    async def lock(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Dapr's answer, and the fencing token of a lock that has one (Meshwire's own)."""
        asked = proto_json.decode(_TryLock, await read_body(receive, self._max_body_size, scope))
        token = await self._locks.try_lock(
            scope["path_params"]["store"], asked.resourceId, asked.lockOwner, asked.expiryInSeconds
        )
        answer: dict[str, object] = {"success": token is not None}
        await send_json(send, answer | ({"fencingToken": token} if token else {}))

    async def unlock(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = proto_json.decode(_Unlock, await read_body(receive, self._max_body_size, scope))
        status = await self._locks.unlock(scope["path_params"]["store"], asked.resourceId, asked.lockOwner)
        await send_json(send, {"status": status.value})
