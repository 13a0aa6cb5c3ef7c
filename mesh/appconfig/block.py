"""Configuration: the building block behind every API that reads, follows and writes configuration items."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import NoReturn, TypeVar, cast

from mesh import ids
from mesh.appconfig.updates import Items, Subscription, Teller
from mesh.errors import ApiError, Code, MeshError
from mesh.ports import AppChannel, Clock
from mesh.ports.stores import (
    ConfigurationFeature,
    ConfigurationStore,
    Expired,
    InvalidStoreKey,
    StoreError,
    StoreUnavailable,
    ValueTooLarge,
    WritableConfigurationStore,
)
from mesh.resiliency.policy import TimedOut
from mesh.resiliency.retry import Failure
from mesh.resiliency.targets import Direction, Resiliency

MAX_SUBSCRIPTIONS = 256
"""Subscriptions of one app's sidecar at the same time."""

T = TypeVar("T")


class NotSubscribed(MeshError):
    """There is no subscription of this id."""


class AppConfiguration:
    """The configuration stores of one app's sidecar, and what the app follows in them.

    Every method raises `ApiError`, with Dapr's codes where Dapr has any.
    """

    def __init__(
        self,
        stores: Mapping[str, ConfigurationStore],
        *,
        channel: AppChannel | None,
        resiliency: Resiliency,
        clock: Clock,
    ) -> None:
        """`stores` by the names of their components; it may change while this runs: see `attach` and `detach`."""
        self._stores = stores
        self._teller = None if channel is None else Teller(channel, resiliency)
        self._resiliency = resiliency
        self._clock = clock
        self._subscriptions: dict[str, Subscription] = {}

    # Components

    def attach(self, store: ConfigurationStore) -> None:
        """A component has started: subscriptions to an earlier one of its name go over to it."""
        name = next((name for name, other in self._stores.items() if other is store), None)
        for subscription in self._subscriptions.values():
            if subscription.name == name:
                subscription.move(store)

    async def detach(self, store: ConfigurationStore) -> None:
        """A component is about to be closed. What nobody else of its name can be followed for ends."""
        for id_, subscription in list(self._subscriptions.items()):
            if await subscription.leave(store):
                self._subscriptions.pop(id_, None)

    # Dapr's API

    async def get(self, name: str, keys: Sequence[str], metadata: Mapping[str, str] = {}) -> Items:
        """Those of `keys` that exist; all when `keys` is empty."""
        store = self._store(name)
        try:
            return await self._run(name, lambda: store.get(keys, metadata))
        except MeshError as error:
            _fail(Code.CONFIGURATION_GET, f"failed to get {_listed(keys)} from Configuration store {name}", error)

    async def subscribe(self, name: str, keys: Sequence[str], metadata: Mapping[str, str] = {}) -> str:
        """The id of the subscription, once every change from then on will be told to the app."""
        store = self._store(name)
        teller = self._teller
        if teller is None:
            raise ApiError(
                Code.APP_CHANNEL_NIL, "app channel is not initialized. cannot subscribe to configuration updates"
            )
        id_ = ids.uuid4()
        subscription = Subscription(name, keys, metadata, self._clock, partial(teller.tell, id_, name))
        try:
            if len(self._subscriptions) >= MAX_SUBSCRIPTIONS:
                raise StoreError(f"the app has {MAX_SUBSCRIPTIONS} subscriptions already: end one, or join several")
            self._subscriptions[id_] = subscription
            await self._run(name, lambda: subscription.begin(store))
        except BaseException as error:
            self._subscriptions.pop(id_, None)
            if not isinstance(error, MeshError):
                raise
            prefix = f"failed to subscribe {_listed(keys)} from Configuration store {name}"
            _fail(Code.CONFIGURATION_SUBSCRIBE, prefix, error)
        return id_

    async def unsubscribe(self, name: str, id_: str) -> None:
        """Nothing is told any more once this returns. Raises `NotSubscribed`."""
        self._store(name)
        subscription = self._subscriptions.get(id_)
        if subscription is None or subscription.name != name:
            raise NotSubscribed(f"subscription with id {id_} does not exist")
        del self._subscriptions[id_]
        await subscription.end()

    # Beyond Dapr

    async def put(self, name: str, key: str, value: str, metadata: Mapping[str, str] = {}) -> str:
        """The new version of the item."""
        store = self._writable(name)
        try:
            return await self._run(name, lambda: store.put(key, value, metadata))
        except MeshError as error:
            self._fail_own(name, error)

    async def delete(self, name: str, key: str) -> None:
        store = self._writable(name)
        try:
            await self._run(name, lambda: store.delete(key))
        except MeshError as error:
            self._fail_own(name, error)

    async def list_items(self, name: str, prefix: str, limit: int, cursor: str | None) -> tuple[Items, str | None]:
        """At most `limit` items whose keys begin with `prefix`, and where the next page begins."""
        store = self._writable(name)
        try:
            return await self._run(name, lambda: store.list_items(prefix, limit=limit, cursor=cursor))
        except MeshError as error:
            self._fail_own(name, error)

    def _store(self, name: str) -> ConfigurationStore:
        store = self._stores.get(name)
        if store is not None:
            return store
        if not self._stores:
            raise ApiError(Code.CONFIGURATION_NOT_CONFIGURED, "configuration stores not configured")
        raise ApiError(Code.CONFIGURATION_NOT_FOUND, f"configuration store {name} not found")

    def _writable(self, name: str) -> WritableConfigurationStore:
        store = self._store(name)
        if ConfigurationFeature.WRITE not in store.features:
            raise ApiError(
                Code.CONFIGURATION_READ_ONLY,
                f"configuration store {name} cannot be written or listed here: use its own tools",
                resource=("configuration", name),
            )
        return cast(WritableConfigurationStore, store)

    async def _run(self, name: str, attempt: Callable[[], Awaitable[T]]) -> T:
        policy = self._resiliency.for_component(name, Direction.OUTBOUND, "configuration")
        return await attempt() if policy is None else await policy.run(attempt, failed=_judge)

    def _fail_own(self, name: str, error: MeshError) -> NoReturn:
        raise ApiError(
            Code.CONFIGURATION_WRITE,
            f"configuration store {name}: {error}",
            status=_STATUSES.get(type(error)),
            resource=("configuration", name),
        ) from error


_STATUSES: Mapping[type[MeshError], int] = {
    Expired: 410,
    StoreUnavailable: 503,
    InvalidStoreKey: 400,
    ValueTooLarge: 413,
}


def _judge(outcome: object) -> Failure | None:
    if isinstance(outcome, InvalidStoreKey | ValueTooLarge | Expired):
        return None  # what was asked for cannot be: that says nothing about the store
    return Failure() if isinstance(outcome, StoreError | TimedOut) else None


def _listed(keys: Sequence[str]) -> str:
    """As Go shows a list."""
    return f"[{' '.join(keys)}]"


def _fail(code: Code, prefix: str, error: MeshError) -> NoReturn:
    status = 400 if isinstance(error, InvalidStoreKey) else None
    raise ApiError(code, f"{prefix}: {error}", status=status) from error
