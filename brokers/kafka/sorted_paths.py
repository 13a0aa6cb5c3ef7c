"""Many texts in order, of which a few come and go at any time."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

_FULL = 1024
"""Texts of a bucket, at most: to put one in takes microseconds, however many there are in all."""


class SortedPaths:
    """A set of texts in the order of their code points."""

    def __init__(self) -> None:
        self._buckets: list[list[str]] = []
        self._lasts: list[str] = []  # of each bucket
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def add(self, path: str) -> None:
        """It must not be there."""
        self._length += 1
        if not self._buckets:
            self._buckets.append([path])
            self._lasts.append(path)
            return
        number = min(bisect_left(self._lasts, path), len(self._lasts) - 1)
        bucket = self._buckets[number]
        insort(bucket, path)
        if len(bucket) > _FULL:
            half = len(bucket) // 2
            self._buckets.insert(number + 1, bucket[half:])
            del bucket[half:]
            self._lasts.insert(number, bucket[-1])
        else:
            self._lasts[number] = bucket[-1]

    def remove(self, path: str) -> None:
        """It must be there."""
        self._length -= 1
        number = bisect_left(self._lasts, path)
        bucket = self._buckets[number]
        del bucket[bisect_left(bucket, path)]
        if bucket:
            self._lasts[number] = bucket[-1]
        else:
            del self._buckets[number], self._lasts[number]

    def between(self, low: str, high: str) -> Iterator[str]:
        """Those from `low` on and before `high`. The set must not change meanwhile."""
        number = bisect_left(self._lasts, low)
        for bucket in self._buckets[number:] if number < len(self._buckets) else ():
            for path in bucket[bisect_left(bucket, low) :]:
                if path >= high:
                    return
                yield path
