"""Stores that components bring: state, locks, configuration, secrets. Each suite runs over every implementation.

Every method may raise `StoreError`, with what went wrong, or `StoreUnavailable` when trying again may help.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from enum import Enum
from typing import Any, NamedTuple, Protocol

import msgspec

from mesh.errors import MeshError


class StoreError(MeshError):
    """A store did not do what it was asked to. The text goes to the client: no secrets, no addresses with any."""


class StoreUnavailable(StoreError):
    """The store cannot be reached, or did not answer in time. A change may or may not have happened."""


class EtagMismatch(StoreError):
    """The item is not what the ETag, or first-write, asks for. Nothing was changed."""


class InvalidEtag(StoreError):
    """The ETag is none that this store makes."""


class InvalidStoreKey(StoreError):
    """The store cannot hold an item under this key. Nothing was changed."""


class ValueTooLarge(StoreError):
    """The store takes no value, or transaction, of this size. Nothing was changed."""


class Unsupported(StoreError):
    """The store cannot do this at all."""


class Expired(StoreError):
    """A position or cursor lies before what the store still knows: start again from the present."""


class Store(Protocol):
    """What all stores have in common. Constructing one does no I/O."""

    async def start(self) -> None:
        """Connect and prepare. Raises `StoreError`, or `ConfigurationError` for a setting that cannot be obeyed."""
        ...

    async def ping(self) -> None:
        """Returns when the store answers."""
        ...

    async def close(self) -> None:
        """Let go. Safe after a `start` that failed, and twice."""
        ...


class StateFeature(Enum):
    """The value is the name in Dapr's metadata, for those that Dapr knows."""

    ETAG = "ETAG"
    TRANSACTIONAL = "TRANSACTIONAL"
    TTL = "TTL"
    QUERY = "QUERY_API"
    LIST = "MESHWIRE_LIST"
    WATCH = "MESHWIRE_WATCH"
    HISTORY = "MESHWIRE_HISTORY"
    FENCE = "MESHWIRE_FENCE"
    """Changes can be made to depend on a lease or lock that is still held."""
    OUTBOX = "MESHWIRE_OUTBOX"
    """Events are stored in the same transaction as the items, and forwarded from there."""


class StateItem(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    key: str
    value: bytes
    etag: str | None = None
    expires: float | None = None
    """Seconds since the epoch."""
    content_type: str = ""


class SetState(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Give a key a value. Keys are whole: `<prefix>||<key>`, or without a prefix (`keyPrefix: none`)."""

    key: str
    value: bytes
    etag: str | None = None
    """What the item must have, in either concurrency mode."""
    first_write: bool = False
    """Without an ETag: the key must not exist."""
    strong: bool = False
    """The write must be as safe as the store can make it before it is acknowledged."""
    ttl: int | None = None
    """Seconds, at least 1; -1 never expires; `None` was not said, which removes an earlier one (not in Redis)."""
    content_type: str = ""
    fence: str | None = None
    """With `FENCE` only: the token of a lease or lock that must still be held, else `EtagMismatch`."""
    metadata: Mapping[str, str] = {}
    """The rest of the item's metadata, for stores with settings of their own."""


class DeleteState(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Remove a key. Without an ETag a key that does not exist is no error."""

    key: str
    etag: str | None = None
    first_write: bool = False
    """Without an ETag: the key must not exist (Dapr: in-memory)."""
    strong: bool = False
    fence: str | None = None
    metadata: Mapping[str, str] = {}


StateChange = SetState | DeleteState


class StateStore(Store, Protocol):
    """Items by key. Whoever calls has checked what all stores have in common (`mesh.state.requests`): a store never
    sees an option that it does not declare. Every method may raise `InvalidStoreKey`.
    """

    @property
    def features(self) -> frozenset[StateFeature]: ...

    @property
    def max_transaction(self) -> int | None:
        """Most operations in one transaction; `None` is no bound."""
        ...

    async def get(self, key: str, *, strong: bool = False, metadata: Mapping[str, str] = {}) -> StateItem | None:
        """`None` when it does not exist or has expired. Without `strong` at least what this process wrote is seen."""
        ...

    async def get_many(
        self, keys: Sequence[str], *, strong: bool = False, metadata: Mapping[str, str] = {}
    ) -> list[StateItem | StoreError | None]:
        """One answer for each key, in the order of `keys`, which may repeat; an error for one does not harm the
        others. Raises `StoreError` when nothing can be had."""
        ...

    async def change(self, change: StateChange) -> None:
        """Returns when it is stored. Raises `EtagMismatch`, `InvalidEtag`, `ValueTooLarge`.

        An ETag must be that of the item, which must exist; `first_write` without one means that it must not exist.
        """
        ...

    async def transact(self, changes: Sequence[StateChange], metadata: Mapping[str, str] = {}) -> None:
        """Do all or none, as if one after the other. Called only where the feature is declared, with at least one
        change and at most `max_transaction`. Raises as `change`."""
        ...


class StateQuery(msgspec.Struct, frozen=True, kw_only=True):
    """What `mesh.state.query` made of a query."""

    filter: Any = None
    """A `mesh.state.query.Filter`; `None` is every item."""
    sort: Sequence[tuple[Sequence[str], bool]] = ()
    """Path into the value, and whether descending."""
    limit: int | None = None
    token: str | None = None
    """Of the page before."""


class QueryResult(NamedTuple):
    items: Sequence[StateItem]
    token: str | None


class QueryableStateStore(StateStore, Protocol):
    """Declares `QUERY`."""

    async def query(self, query: StateQuery, key_prefix: str, metadata: Mapping[str, str] = {}) -> QueryResult:
        """Only keys that begin with `key_prefix`. Raises `StoreError` for a query that this store cannot answer."""
        ...


class ListableStateStore(StateStore, Protocol):
    """Declares `LIST`."""

    async def list_items(
        self, key_prefix: str, *, limit: int, cursor: str | None = None
    ) -> tuple[Sequence[StateItem], str | None]:
        """As `Table.scan`. Raises `Expired` for a cursor that is not of this list."""
        ...


class StateVersion(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A value that a key was given, or its end."""

    key: str
    value: bytes | None
    """`None`: it was deleted, or has expired."""
    etag: str
    """Greater than that of every earlier version in the store, both read as numbers."""
    time: float
    """Seconds since the epoch."""
    expires: float | None = None
    content_type: str = ""


class Position(NamedTuple):
    """A watch has shown all that there was up to here."""

    etag: str


class WatchableStateStore(StateStore, Protocol):
    """Declares `WATCH`."""

    def watch(self, key_prefix: str, *, after: str | None = None) -> AsyncGenerator[StateVersion | Position, None]:
        """As `Table.watch`, for keys that begin with `key_prefix`. `after` is the ETag of a version or position
        since which changes are shown, "0" to see what there is now first, `None` to see only what comes.

        A `Position` comes once what there was has been shown. Raises `Expired` when `after` is not of this store.
        """
        ...


class HistoricStateStore(StateStore, Protocol):
    """Declares `HISTORY`."""

    async def history(self, key: str, *, limit: int) -> Sequence[StateVersion]:
        """The newest first, the present one included."""
        ...

    async def as_of(self, key: str, *, etag: str | None = None, time: float | None = None) -> StateItem | None:
        """The item as it was once the change with this ETag, of any key, was made; or at `time`. One is given.

        Raises `Expired` when that lies before what was kept, `InvalidEtag`.
        """
        ...


class OutboxRecord(NamedTuple):
    """An event that waits to be published."""

    id: str
    """Unique. Whoever publishes it names it so, so that a repeat is known as one."""
    event: bytes
    """A CloudEvent in the JSON format."""


class OutboxStateStore(StateStore, Protocol):
    """Declares `OUTBOX`."""

    async def transact_with(
        self, changes: Sequence[StateChange], records: Sequence[OutboxRecord], metadata: Mapping[str, str] = {}
    ) -> None:
        """As `transact`, the records among what is done."""
        ...

    def pending(self, key_prefix: str) -> AsyncGenerator[str, None]:
        """The ids of records that wait, of changes to keys with this prefix, then of those that come; until it is
        closed (`aclose`). Some may be shown more than once, or be gone by now."""
        ...

    async def record(self, key_prefix: str, record_id: str) -> OutboxRecord | None:
        """`None` once it is removed."""
        ...

    async def remove_record(self, key_prefix: str, record_id: str) -> None:
        """It is published. Another replica may have been first: that is no error."""
        ...


class UnlockStatus(Enum):
    """The value is the number of Dapr's API."""

    SUCCESS = 0
    LOCK_DOES_NOT_EXIST = 1
    BELONGS_TO_OTHERS = 2


class LockStore(Store, Protocol):
    async def try_lock(self, resource: str, owner: str, expiry: float) -> str | None:
        """The fencing token of the lock, which grows with each holder, or `""` where the store has none; `None`
        when it is held, by the same owner too. `expiry` in seconds. Resources are whole: `lock||<prefix>||<id>`."""
        ...

    async def unlock(self, resource: str, owner: str) -> UnlockStatus: ...


class ConfigurationItem(msgspec.Struct, frozen=True, kw_only=True):
    value: str
    """Empty for one that was deleted, and then the rest is too."""
    version: str = ""
    metadata: Mapping[str, str] = {}


class ConfigurationFeature(Enum):
    """The value is a capability in Dapr's metadata route."""

    WRITE = "WRITE"
    """Items can be set, removed and listed page by page."""


class ConfigurationStore(Store, Protocol):
    """Settings that apps share. Every method may raise `InvalidStoreKey`."""

    @property
    def features(self) -> frozenset[ConfigurationFeature]: ...

    async def get(self, keys: Sequence[str], metadata: Mapping[str, str] = {}) -> dict[str, ConfigurationItem]:
        """Those of `keys` that exist; all when `keys` is empty."""
        ...

    def watch(
        self, keys: Sequence[str], metadata: Mapping[str, str] = {}
    ) -> AsyncGenerator[Mapping[str, ConfigurationItem], None]:
        """Changes to `keys`, or to all when that is empty, until closed (`aclose`).

        The first mapping is empty, and comes as soon as whatever changes from then on will be shown. Of quick
        successions the newest is seen; a change may be shown twice. Raises `StoreError` when the store refuses, or
        cannot be reached at the beginning; a connection that is lost later is mended inside, and what changed
        meanwhile is shown. Ends when the store is closed.
        """
        ...


class WritableConfigurationStore(ConfigurationStore, Protocol):
    """Declares `WRITE`."""

    async def put(self, key: str, value: str, metadata: Mapping[str, str] = {}) -> str:
        """Give a key a value and metadata, in place of what it had. Returns its version. Raises `ValueTooLarge`."""
        ...

    async def delete(self, key: str) -> None:
        """Remove a key, whether it exists or not."""
        ...

    async def list_items(
        self, key_prefix: str, *, limit: int, cursor: str | None = None
    ) -> tuple[Mapping[str, ConfigurationItem], str | None]:
        """As `Table.scan`. Raises `Expired` for a cursor that is not of this list."""
        ...


class SecretStore(Store, Protocol):
    async def get(self, name: str, metadata: Mapping[str, str] = {}) -> dict[str, str]:
        """One entry named as the secret, or several for a secret of several values. Raises `StoreError` when there
        is none."""
        ...

    async def get_all(self, metadata: Mapping[str, str] = {}) -> dict[str, dict[str, str]]:
        """Every secret, as `get` has it. Raises `Unsupported`."""
        ...
