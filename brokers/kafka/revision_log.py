"""Records in the order of their revisions, each until a newer one of the same key replaces it."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator

import msgspec

_SEGMENT = 1024
"""Records of a segment, at most: to tidy one up takes microseconds, however many there are in all."""


class Stored(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """The newest record of a key, or an earlier one. In a snapshot it is an array of these six."""

    path: str
    revision: int
    time: float
    value: bytes | None
    """`None` when the key was deleted, or has expired."""
    expires: float | None = None
    content_type: str = ""


class _Segment:
    __slots__ = ("left", "records", "revisions")

    def __init__(self) -> None:
        self.revisions = array("q")
        self.records: list[Stored | None] = []
        self.left = 0


class RevisionLog:
    """Revisions only grow. Each operation takes microseconds, however many records there are."""

    def __init__(self) -> None:
        self._segments: list[_Segment] = []
        self._firsts: list[int] = []  # no later than the first revision of each segment

    def append(self, record: Stored) -> None:
        segment = self._segments[-1] if self._segments else None
        if segment is None or len(segment.records) >= _SEGMENT:
            segment = _Segment()
            self._segments.append(segment)
            self._firsts.append(record.revision)
        segment.revisions.append(record.revision)
        segment.records.append(record)
        segment.left += 1

    def remove(self, revision: int) -> None:
        """The record with this revision must be there."""
        number = bisect_right(self._firsts, revision) - 1
        segment = self._segments[number]
        segment.records[bisect_left(segment.revisions, revision)] = None
        segment.left -= 1
        if not segment.left:
            del self._segments[number], self._firsts[number]
        elif len(segment.records) > 4 * segment.left and number + 1 < len(self._segments):
            segment.records = [record for record in segment.records if record is not None]
            segment.revisions = array("q", (record.revision for record in segment.records if record is not None))

    def copy(self) -> Iterator[Stored]:
        """All of them, in order, as of now: the log may change meanwhile."""
        copies = [segment.records.copy() for segment in self._segments]
        return (record for records in copies for record in records if record is not None)

    def after(self, revision: int) -> Iterator[Stored]:
        """Those with a greater one, in order. The log must not change meanwhile."""
        number = max(bisect_right(self._firsts, revision) - 1, 0)
        for segment in self._segments[number:]:
            start = bisect_right(segment.revisions, revision)
            for record in segment.records[start:] if start else segment.records:
                if record is not None:
                    yield record
