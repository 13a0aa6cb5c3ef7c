"""What actors keep: items in a state store, written only under the lease that the turn began with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from mesh import addressing
from mesh.actors.calls import Actors
from mesh.actors.names import ActorName
from mesh.errors import ConfigurationError, MeshError
from mesh.ports.stores import DeleteState, SetState, StateChange, StateItem
from mesh.state.component import SEPARATOR, StateComponent

UPSERT, DELETE = "upsert", "delete"


class NotActive(MeshError):
    """The actor is not active on this sidecar, so nothing may be written for it."""


class Operation(NamedTuple):
    """One of a transaction."""

    operation: str
    key: str
    value: bytes = b""
    metadata: Mapping[str, str] = {}
    etag: str | None = None


class ActorState:
    """The store is the component that says `actorStateStore`, else the backbone's own table."""

    def __init__(self, actors: Actors, components: Mapping[str, StateComponent], default: StateComponent) -> None:
        """`components` by name; it may change while this runs."""
        self._actors = actors
        self._components = components
        self._default = default

    @property
    def component(self) -> StateComponent:
        marked = (component for component in self._components.values() if component.actor_state_store)
        return next(marked, self._default)

    async def get(self, actor: ActorName, key: str) -> StateItem | None:
        """The newest value, whoever wrote it. Types of other apps have none here. Raises `StoreError`."""
        if actor.type not in self._actors.own:
            return None
        component = self.component
        item = await component.store.get(_stored(actor, _checked(key)), strong=True)
        if item is None or component.cipher is None:
            return item
        return msgspec.structs.replace(item, value=component.cipher.decrypt(item.value))

    async def transact(self, actor: ActorName, operations: Sequence[Operation]) -> None:
        """All or none. Raises `NotActive`, `StoreError`, `ValueError` for what cannot be asked."""
        hosting = self._actors.hostings.get(actor.type)
        fence = None if hosting is None else hosting.fence(actor.id)
        if fence is None:
            raise NotActive("actor instance is missing")
        component = self.component
        token = fence.encode()
        changes = [_change(component, actor, operation, token) for operation in operations]
        limit = component.store.max_transaction
        if limit is not None and len(changes) > limit:
            raise ValueError(f"the transaction has {len(changes)} operations, the store takes {limit}")
        if changes:
            await component.store.transact(changes)


def check_stores(components: Iterable[StateComponent]) -> None:
    """Raises `ConfigurationError` when more than one is to keep the state of actors."""
    marked = sorted(component.name for component in components if component.actor_state_store)
    if len(marked) > 1:
        raise ConfigurationError(f"actorStateStore: one state store keeps the state of actors, not {', '.join(marked)}")


def _change(component: StateComponent, actor: ActorName, operation: Operation, fence: str) -> StateChange:
    """Raises `ValueError`."""
    key = _stored(actor, _checked(operation.key))
    if operation.operation == DELETE:
        return DeleteState(key=key, etag=operation.etag, fence=fence)
    if operation.operation != UPSERT:
        raise ValueError(f"operation type {operation.operation!r} not supported")
    value = operation.value if component.cipher is None else component.cipher.encrypt(operation.value)
    return SetState(
        key=key,
        value=value,
        etag=operation.etag,
        ttl=_ttl(operation.metadata),
        content_type="application/json",
        fence=fence,
    )


def _ttl(metadata: Mapping[str, str]) -> int | None:
    text = next((value for name, value in metadata.items() if name.lower() == "ttlinseconds"), "")
    if not text:
        return None
    if (
        not text.removeprefix("-").isdecimal()
        or not text.isascii()
        or len(text) > 10
        or (int(text) < 1 and text != "-1")
    ):
        raise ValueError(
            f"ttlInSeconds must be a number of seconds greater than 0, or -1 for never (got {text[:80]!r})"
        )
    return int(text)


def _checked(key: str) -> str:
    """Raises `ValueError`."""
    if not key:
        raise ValueError("the key is empty")
    return key


def _stored(actor: ActorName, key: str) -> str:
    """What stands before the first separator is the table, which the leases are in, too. An id has no separator in
    it as it is stored, so that no two actors share a key."""
    scope = addressing.actors_scope(actor.type)
    return f"{scope}{SEPARATOR}{addressing.token(actor.id)}{SEPARATOR}{key}"
