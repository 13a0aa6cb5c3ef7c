"""The lock store on the broker itself: `lock.meshwire`.

A lock is a record with a TTL, `("lock", <component>, <id>)` in the table of its prefix; its value is the owner, and its
revision the fencing token. State that is kept under the same prefix can be written on condition of it.
"""

from __future__ import annotations

from mesh.components import ComponentSpec, Setup
from mesh.errors import BrokerUnavailable, MeshError
from mesh.fencing import FenceToken
from mesh.locks.component import LOCK, SEPARATOR, prefix
from mesh.ports.stores import InvalidStoreKey, StoreError, StoreUnavailable, UnlockStatus
from mesh.ports.tables import ABSENT, Conflict, Delete, InvalidKey, Key, Put, Table, Tables

KIND = "lock"
UNLOCK_ATTEMPTS = 3
"""How often an unlock looks again, when the lock changes hands under it."""


class MeshLockStore:
    """A `LockStore` over the tables of the backbone, which somebody else opens and closes."""

    def __init__(self, tables: Tables, component: str, *, scope: str) -> None:
        """`scope` is where most locks will be."""
        self._tables = tables
        self._component = component
        self._scope = scope

    async def start(self) -> None:
        pass

    async def ping(self) -> None:
        try:
            await self._tables.table(self._scope).get((KIND, self._component, "ping"))
        except MeshError as error:
            raise _translated(error) from error

    async def close(self) -> None:
        pass

    async def try_lock(self, resource: str, owner: str, expiry: float) -> str | None:
        scope, table, key = self._address(resource)
        put = Put(key=key, value=owner.encode(), content_type="text/plain", ttl=max(expiry, 1.0), expected=ABSENT)
        try:
            [revision] = await table.commit([put])
        except Conflict:
            return None
        except MeshError as error:
            raise _translated(error) from error
        return FenceToken(scope, key, revision).encode()

    async def unlock(self, resource: str, owner: str) -> UnlockStatus:
        _, table, key = self._address(resource)
        for _ in range(UNLOCK_ATTEMPTS):
            try:
                entry = await table.get(key)
                if entry is None:
                    return UnlockStatus.LOCK_DOES_NOT_EXIST
                if entry.value != owner.encode():
                    return UnlockStatus.BELONGS_TO_OTHERS
                await table.commit([Delete(key=key, expected=entry.revision)])
            except Conflict:
                continue  # it expired; and another may have it already
            except MeshError as error:
                raise _translated(error) from error
            return UnlockStatus.SUCCESS
        raise StoreUnavailable("the lock changed hands again and again")

    def _address(self, resource: str) -> tuple[str, Table, Key]:
        scope, rest = _split(resource)
        if not rest:
            raise InvalidStoreKey("the id of a resource is empty")
        return scope, self._tables.table(scope), (KIND, self._component, rest)


def _translated(error: MeshError) -> StoreError:
    """An error of the tables in the words of stores."""
    match error:
        case InvalidKey():
            return InvalidStoreKey(str(error))
        case BrokerUnavailable():
            return StoreUnavailable(str(error))
    return StoreError(str(error))


def _split(resource: str) -> tuple[str, str]:
    """Scope and id of a resource; without a prefix the scope is the empty one."""
    scope, separator, rest = resource.removeprefix(LOCK).partition(SEPARATOR)
    return (scope, rest) if separator else ("", scope)


def _open(setup: Setup) -> MeshLockStore:
    scope, _ = _split(prefix(setup))
    return MeshLockStore(setup.tables, setup.name, scope=scope)


SPEC = ComponentSpec(
    type="lock.meshwire",
    title="Meshwire",
    about=(
        "Locks on the broker of the mesh, with nothing to install. The answer of a lock has a `fencingToken`, which "
        "the state store on the broker takes: a holder that is late can write no more. Without a file there is one "
        "under the name `lockstore`."
    ),
    open=_open,
    features=("MESHWIRE_FENCE",),
    example="""\
apiVersion: dapr.io/v1alpha1
kind: Component
metadata:
  name: lockstore
spec:
  type: lock.meshwire
  version: v1
  metadata:
  - name: keyPrefix
    value: name
""",
)
