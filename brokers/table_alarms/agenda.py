"""When the alarms of a kind are due: all that a member remembers of those that it does not have in hand."""

from __future__ import annotations

import heapq
from collections.abc import Collection
from math import inf
from typing import NamedTuple

from brokers.table_alarms.records import PARTITIONS, partition_of
from mesh.ports.tables import Key

SPARE = 8
"""Items of a heap that need not count without it being worth the trouble to drop them."""


class Item(NamedTuple):
    """An alarm. Of two that are due at once, the one set first comes first."""

    at: float
    revision: int
    key: Key
    """Of its entry."""


class Agenda:
    """A heap for each partition. What was set anew or cancelled stays in its heap until it comes up, or until such
    items are the greater part of the heap."""

    def __init__(self) -> None:
        self._newest: dict[Key, Item] = {}
        self._heaps: list[list[Item]] = [[] for _ in range(PARTITIONS)]
        self._counted = [0] * PARTITIONS  # items of each heap that are in `_newest`

    def __len__(self) -> int:
        return len(self._newest)

    def note(self, item: Item) -> None:
        """It is set, in place of what was set under its key."""
        partition = partition_of(item.key)
        self._drop(item.key, partition)
        self._newest[item.key] = item
        self._counted[partition] += 1
        heapq.heappush(self._heaps[partition], item)

    def forget(self, key: Key) -> None:
        """None is set under `key`."""
        self._drop(key, partition_of(key))

    def next(self, partitions: Collection[int]) -> float:
        """When the first of these partitions is due; never is `inf`."""
        heap = self._first(partitions)
        return heap[0].at if heap else inf

    def take(self, partitions: Collection[int], now: float) -> Item | None:
        """The first of these partitions if it is due by `now`: it is off the agenda."""
        heap = self._first(partitions)
        if not heap or heap[0].at > now:
            return None
        item = heapq.heappop(heap)
        del self._newest[item.key]
        self._counted[partition_of(item.key)] -= 1
        return item

    def put_back(self, item: Item) -> None:
        """After `take`, unless its key was noted since."""
        if item.key not in self._newest:
            self.note(item)

    def _first(self, partitions: Collection[int]) -> list[Item]:
        """The heap with the first item on top; none has any when it is empty."""
        first: list[Item] = []
        for partition in partitions:
            heap = self._heaps[partition]
            while heap and not self._counts(heap[0]):
                heapq.heappop(heap)
            if heap and (not first or heap[0] < first[0]):
                first = heap
        return first

    def _drop(self, key: Key, partition: int) -> None:
        if self._newest.pop(key, None) is None:
            return
        self._counted[partition] -= 1
        heap = self._heaps[partition]
        if len(heap) > 2 * self._counted[partition] + SPARE:
            heap[:] = filter(self._counts, heap)
            heapq.heapify(heap)

    def _counts(self, item: Item) -> bool:
        return self._newest.get(item.key) is item
