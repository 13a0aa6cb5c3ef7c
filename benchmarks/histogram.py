"""Latencies, counted in buckets whose width grows with the value."""

from __future__ import annotations

from collections.abc import Iterable

_SUB_BUCKETS = 32
"""Buckets for each doubling: a value is known to 1 part in 32."""
_BITS = _SUB_BUCKETS.bit_length()


def _bucket(value: int) -> int:
    shift = value.bit_length() - _BITS
    return value if shift <= 0 else shift * _SUB_BUCKETS + (value >> shift)


def _upper_end(bucket: int) -> int:
    """The largest value that falls into `bucket`."""
    shift = bucket // _SUB_BUCKETS - 1
    if shift <= 0:
        return bucket
    return ((bucket - shift * _SUB_BUCKETS + 1) << shift) - 1


class Histogram:
    """Counts of nanoseconds from 0 to a day, in constant memory. Quantiles err upwards, by less than 3.2 %."""

    _SIZE = _bucket(86_400_000_000_000) + 1

    def __init__(self) -> None:
        self._counts = [0] * self._SIZE

    def record(self, nanoseconds: int) -> None:
        """Raises `IndexError` for more than a day. Less than nothing (a clock that is off) counts as nothing."""
        self._counts[_bucket(nanoseconds) if nanoseconds > 0 else 0] += 1

    @property
    def count(self) -> int:
        return sum(self._counts)

    def quantile(self, share: float) -> int:
        """Nanoseconds that `share` (0 to 1) of all values do not pass. Raises `ValueError` when there are none."""
        if not 0 <= share <= 1:
            raise ValueError(f"a share is from 0 to 1 (got {share})")
        count = self.count
        if not count:
            raise ValueError("nothing was recorded")
        wanted = max(1, share * count)
        seen = 0
        for bucket, number in enumerate(self._counts):
            seen += number
            if seen >= wanted:
                return _upper_end(bucket)
        raise AssertionError("unreachable: the counts add up to the count")

    def add(self, other: Histogram) -> None:
        """Count what `other` counted, too."""
        self._counts = [ours + theirs for ours, theirs in zip(self._counts, other._counts, strict=True)]

    def pairs(self) -> list[tuple[int, int]]:
        """Bucket and count where there is one, for JSON; see `from_pairs`."""
        return [(bucket, number) for bucket, number in enumerate(self._counts) if number]

    @classmethod
    def from_pairs(cls, pairs: Iterable[tuple[int, int]]) -> Histogram:
        histogram = cls()
        for bucket, number in pairs:
            histogram._counts[bucket] = number
        return histogram
