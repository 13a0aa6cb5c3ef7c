"""`state.in-memory`: items in this process, gone with it. The reference of the contract of `StateStore`."""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right, insort
from collections.abc import Mapping, Sequence
from itertools import count, islice

from mesh import ids
from mesh.components import ComponentSpec, Setup
from mesh.errors import clip
from mesh.ports import Clock
from mesh.ports.stores import (
    DeleteState,
    EtagMismatch,
    Expired,
    InvalidStoreKey,
    SetState,
    StateChange,
    StateFeature,
    StateItem,
    StoreError,
)
from mesh.ports.tables import MAX_KEY_BYTES

FEATURES = frozenset({StateFeature.ETAG, StateFeature.TRANSACTIONAL, StateFeature.TTL, StateFeature.LIST})
_CURSOR = "after:"


class MemoryStateStore:
    """A `StateStore` that nobody else can see."""

    features = FEATURES
    max_transaction = None

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._items: dict[str, StateItem] = {}
        self._keys: list[str] = []  # in order
        self._expiries: list[tuple[float, int, StateItem]] = []  # a heap
        self._order = count()

    async def start(self) -> None:
        pass

    async def ping(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def get(self, key: str, *, strong: bool = False, metadata: Mapping[str, str] = {}) -> StateItem | None:
        _check_key(key)
        self._expire()
        return self._items.get(key)

    async def get_many(
        self, keys: Sequence[str], *, strong: bool = False, metadata: Mapping[str, str] = {}
    ) -> list[StateItem | StoreError | None]:
        self._expire()
        return [self._item_or_error(key) for key in keys]

    def _item_or_error(self, key: str) -> StateItem | StoreError | None:
        try:
            _check_key(key)
        except InvalidStoreKey as error:
            return error
        return self._items.get(key)

    async def change(self, change: StateChange) -> None:
        await self.transact([change])

    async def transact(self, changes: Sequence[StateChange], metadata: Mapping[str, str] = {}) -> None:
        self._expire()
        outcome: dict[str, StateItem | None] = {}
        for change in changes:
            key = change.key
            _check_key(key)
            _check(change, outcome[key] if key in outcome else self._items.get(key))
            outcome[key] = self._item(change) if isinstance(change, SetState) else None
        for key, item in outcome.items():
            self._put(key, item)

    async def list_items(
        self, key_prefix: str, *, limit: int, cursor: str | None = None
    ) -> tuple[Sequence[StateItem], str | None]:
        self._expire()
        first = bisect_left(self._keys, key_prefix)
        if cursor is not None:
            last_seen = cursor.removeprefix(_CURSOR)
            if last_seen == cursor or not last_seen.startswith(key_prefix):
                raise Expired("this cursor is not of this list; begin without a cursor")
            first = bisect_right(self._keys, last_seen)
        found = [key for key in islice(self._keys, first, first + limit + 1) if key.startswith(key_prefix)]
        following = _CURSOR + found[limit - 1] if len(found) > limit else None
        return [self._items[key] for key in found[:limit]], following

    def _item(self, change: SetState) -> StateItem:
        expires = self._clock.now() + change.ttl if change.ttl is not None and change.ttl > 0 else None
        return StateItem(
            key=change.key,
            value=change.value,
            etag=ids.uuid4(),
            expires=expires,
            content_type=change.content_type,
        )

    def _put(self, key: str, item: StateItem | None) -> None:
        existed = self._items.pop(key, None) is not None
        if item is not None:
            self._items[key] = item
            if not existed:
                insort(self._keys, key)
            if item.expires is not None:
                heapq.heappush(self._expiries, (item.expires, next(self._order), item))
                self._forget_replaced()
        elif existed:
            del self._keys[bisect_left(self._keys, key)]

    def _expire(self) -> None:
        now = self._clock.now()
        while self._expiries and self._expiries[0][0] <= now:
            _, _, item = heapq.heappop(self._expiries)
            if self._items.get(item.key) is item:
                self._put(item.key, None)

    def _forget_replaced(self) -> None:
        if len(self._expiries) > 2 * len(self._items) + 64:
            self._expiries = [expiry for expiry in self._expiries if self._items.get(expiry[2].key) is expiry[2]]
            heapq.heapify(self._expiries)


def _check_key(key: str) -> None:
    """A longer one could be written and listed, but stands in no path by which it is read or deleted."""
    size = len(key.encode("utf-8", "surrogatepass"))
    if size > MAX_KEY_BYTES:
        raise InvalidStoreKey(f"the key '{clip(key)}' has {size} bytes, of at most {MAX_KEY_BYTES}")


def _check(change: SetState | DeleteState, item: StateItem | None) -> None:
    if change.etag:
        if item is None or item.etag != change.etag:
            raise EtagMismatch("the item was changed meanwhile, or does not exist")
    elif change.first_write and item is not None:
        raise EtagMismatch("the item exists already")


def _open(setup: Setup) -> MemoryStateStore:
    return MemoryStateStore(setup.clock)


SPEC = ComponentSpec(
    type="state.in-memory",
    title="In-memory",
    about="State in the memory of one sidecar: nobody else sees it, and it is gone with the process. For tests.",
    open=_open,
    features=sorted(feature.value for feature in FEATURES),
    example="""\
apiVersion: dapr.io/v1alpha1
kind: Component
metadata:
  name: statestore
spec:
  type: state.in-memory
  version: v1
""",
)
