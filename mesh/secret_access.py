"""Secrets: the building block behind every API that reads them. What the scopes deny is never asked of a store."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from mesh.errors import ApiError, Code, MeshError
from mesh.ports.stores import SecretStore, StoreError, Unsupported
from mesh.resiliency.policy import TimedOut
from mesh.resiliency.retry import Failure
from mesh.resiliency.targets import Direction, Resiliency
from mesh.secrets import SecretScopes

T = TypeVar("T")


class SecretAccess:
    """The secret stores of one app's sidecar. Every method raises `ApiError`, with Dapr's codes."""

    def __init__(self, stores: Mapping[str, SecretStore], scopes: SecretScopes, *, resiliency: Resiliency) -> None:
        """`stores` by the names of their components; it may change while this runs."""
        self._stores = stores
        self._scopes = scopes
        self._resiliency = resiliency

    async def get(self, name: str, key: str, metadata: Mapping[str, str] = {}) -> Mapping[str, str]:
        """The values of one secret, by their names."""
        store = self._store(name)
        if not self._scopes.permits(name, key):
            raise ApiError(Code.SECRET_DENIED, f'access denied by policy to get "{key}" from "{name}"')
        try:
            return await self._run(name, lambda: store.get(key, metadata))
        except MeshError as error:
            message = f"failed getting secret with key {key} from secret store {name}: {error}"
            raise ApiError(Code.SECRET_GET, message) from error

    async def get_all(self, name: str, metadata: Mapping[str, str] = {}) -> Mapping[str, Mapping[str, str]]:
        """Every secret that the app may read; the others are left out (Dapr)."""
        store = self._store(name)
        try:
            secrets = await self._run(name, lambda: store.get_all(metadata))
        except MeshError as error:
            message = f"failed getting secrets from secret store {name}: {error}"
            raise ApiError(Code.SECRET_GET, message) from error
        return {key: values for key, values in secrets.items() if self._scopes.permits(name, key)}

    def _store(self, name: str) -> SecretStore:
        store = self._stores.get(name)
        if store is not None:
            return store
        if not self._stores:
            raise ApiError(Code.SECRET_NOT_CONFIGURED, "secret store is not configured")
        raise ApiError(Code.SECRET_NOT_FOUND, f"failed finding secret store with key {name}")

    async def _run(self, name: str, attempt: Callable[[], Awaitable[T]]) -> T:
        policy = self._resiliency.for_component(name, Direction.OUTBOUND, "secretstores")
        return await attempt() if policy is None else await policy.run(attempt, failed=_judge)


def _judge(outcome: object) -> Failure | None:
    if isinstance(outcome, Unsupported):
        return None
    return Failure() if isinstance(outcome, StoreError | TimedOut) else None
