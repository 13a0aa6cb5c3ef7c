"""How far a group has come in one partition, where messages are done in any order.

Kafka keeps one offset for a group and partition, and a short text beside it. The offset is that of the first message
that is not done; the text tells what is done beyond it, and which attempts were made, as far as it has room. Who goes
on from there repeats what the text does not tell.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Mapping
from typing import NamedTuple

MAX_METADATA = 4096
"""Characters of the text that Kafka takes (`offset.metadata.max.bytes`)."""

Run = tuple[int, int]
"""Offsets from the first one up to the second one, which is not among them."""


class Attempt(NamedTuple):
    """What was tried with one message."""

    made: int
    due: float = 0.0
    """When it may be tried again; seconds since the epoch."""


class Progress:
    """Which offsets of a partition are taken, and which of these are done. Offsets that nothing is stored at, of which
    Kafka has many, are done as soon as a later one is taken. Every call takes the same short time, however many there
    are."""

    __slots__ = ("_beginnings", "_carried", "_ends", "low", "next")

    def __init__(self, low: int, done: Iterable[Run] = ()) -> None:
        """`low` is the first offset that is not done, `done` what is done beyond it, in order."""
        self.low = low
        """The first offset that is not done: what may be committed."""
        self.next = low
        """The first offset that is not taken."""
        self._ends: dict[int, int] = {}  # of runs of done offsets, none of them at `low`, by their beginnings
        self._beginnings: dict[int, int] = {}  # and the other way round
        self._carried = deque(done)  # not taken yet

    @property
    def window(self) -> int:
        """How many offsets lie between the first one that is not done and the last one that is taken."""
        return self.next - self.low

    def take(self, offset: int) -> bool:
        """The next message is at `offset`. False when it is done, or was taken, before."""
        if offset < self.next:
            return False
        if offset > self.next:
            self._finish(self.next, offset)
        self.next = offset + 1
        while self._carried and self._carried[0][1] <= offset:
            self._carried.popleft()
        if self._carried and self._carried[0][0] <= offset:
            self._finish(offset, offset + 1)
            return False
        return True

    def finish(self, offset: int) -> None:
        """The message at `offset`, which was taken, is done."""
        self._finish(offset, offset + 1)

    def _finish(self, beginning: int, end: int) -> None:
        beginning = self._beginnings.pop(beginning, beginning)
        if end in self._ends:
            end = self._ends.pop(end)
            del self._beginnings[end]
        if beginning == self.low:
            self.low = end
        else:
            self._ends[beginning] = end
            self._beginnings[end] = beginning

    def done(self) -> list[Run]:
        """What is done beyond `low`, in order."""
        later = [(max(beginning, self.next), end) for beginning, end in self._carried if end > self.next]
        return sorted(self._ends.items()) + later


def encode(low: int, done: Iterable[Run], attempts: Mapping[int, Attempt]) -> str:
    """The text beside the offset `low`: what is near to it comes first, and the rest is left out where room ends."""
    half = MAX_METADATA // 2
    tried = _joined(
        (f"{offset - low:x}.{made:x}.{round(due * 1000):x}" for offset, (made, due) in sorted(attempts.items())), half
    )
    runs, last = [], low
    for beginning, end in done:
        runs.append(f"{beginning - last:x}.{end - beginning:x}")
        last = end
    return f"1;{_joined(runs, MAX_METADATA - 3 - len(tried))};{tried}" if runs or tried else ""


def _joined(parts: Iterable[str], room: int) -> str:
    kept: list[str] = []
    for part in parts:
        room -= len(part) + 1
        if room < 0:
            break
        kept.append(part)
    return ",".join(kept)


_NUMBER = "[0-9a-f]{1,15}"
_RUN, _ATTEMPT = rf"{_NUMBER}\.{_NUMBER}", rf"{_NUMBER}\.{_NUMBER}\.{_NUMBER}"
_is_ours = re.compile(rf"1;((?:{_RUN}(?:,{_RUN})*)?);((?:{_ATTEMPT}(?:,{_ATTEMPT})*)?)").fullmatch


def decode(low: int, text: str | None) -> tuple[list[Run], dict[int, Attempt]]:
    """What `encode` has told. Nothing, where somebody else wrote the text."""
    found = _is_ours(text or "")
    if found is None:
        return [], {}
    runs, last = [], low
    for part in filter(None, found[1].split(",")):
        gap, length = (int(number, 16) for number in part.split("."))
        runs.append((last + gap, last + gap + length))
        last += gap + length
    attempts = {}
    for part in filter(None, found[2].split(",")):
        offset, made, due = (int(number, 16) for number in part.split("."))
        attempts[low + offset] = Attempt(made, due / 1000)
    return runs, attempts
