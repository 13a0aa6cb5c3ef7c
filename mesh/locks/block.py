"""Locks: the building block behind every API that takes them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar, cast

from mesh.errors import ApiError, Code, MeshError, clip
from mesh.locks.component import SEPARATOR, LockComponent
from mesh.ports.stores import InvalidStoreKey, StoreError, UnlockStatus
from mesh.resiliency.policy import TimedOut
from mesh.resiliency.retry import Failure
from mesh.resiliency.targets import Direction, Resiliency

T = TypeVar("T")


class Locks:
    """The lock stores of one app's sidecar. Every method raises `ApiError`, with Dapr's codes, in Dapr's order."""

    def __init__(self, components: Mapping[str, LockComponent], *, resiliency: Resiliency) -> None:
        """`components` by name; it may change while this runs."""
        self.components = components
        self._resiliency = resiliency

    async def try_lock(self, store: str, resource: str, owner: str, expiry: int) -> str | None:
        """Lock `resource` for `owner`, for `expiry` seconds. Its fencing token, or `""` where the store has none;
        `None` when it is held, by the same owner too."""
        if expiry <= 0:
            raise ApiError(Code.MALFORMED_REQUEST, f"ExpiryInSeconds is not positive in lock store {store}")
        component = self._component(store, resource, owner)
        try:
            stored = _stored(component, resource)
            return await self._run(component, lambda: component.store.try_lock(stored, owner, expiry))
        except MeshError as error:
            raise ApiError(Code.LOCK_TRY, f"failed to try acquiring lock: {error}") from error

    async def unlock(self, store: str, resource: str, owner: str) -> UnlockStatus:
        component = self._component(store, resource, owner)
        try:
            stored = _stored(component, resource)
            return await self._run(component, lambda: component.store.unlock(stored, owner))
        except MeshError as error:
            raise ApiError(Code.LOCK_UNLOCK, f"failed to release lock: {error}") from error

    def _component(self, store: str, resource: str, owner: str) -> LockComponent:
        if not self.components:
            raise ApiError(Code.LOCK_NOT_CONFIGURED, "lock store is not configured")
        for name, value in (("ResourceId", resource), ("LockOwner", owner)):
            if not value:
                raise ApiError(Code.MALFORMED_REQUEST, f"{name} is empty in lock store {store}")
        component = self.components.get(store)
        if component is None:
            raise ApiError(Code.LOCK_NOT_FOUND, f"lock store {store} not found")
        return component

    async def _run(self, component: LockComponent, attempt: Callable[[], Awaitable[T]]) -> T:
        policy = self._resiliency.for_component(component.name, Direction.OUTBOUND, "lock")
        if policy is None:
            return await attempt()
        return cast(T, await policy.run(attempt, failed=_judge))


def _stored(component: LockComponent, resource: str) -> str:
    """The resource as the store knows it. Raises `InvalidStoreKey` for one that names another app's."""
    if SEPARATOR in resource:
        raise InvalidStoreKey(f"input key/keyPrefix '{clip(resource)}' can't contain '{SEPARATOR}'")
    return component.prefix + resource


def _judge(outcome: object) -> Failure | None:
    if isinstance(outcome, InvalidStoreKey):
        return None
    return Failure() if isinstance(outcome, StoreError | TimedOut) else None
