"""The memory of one sidecar: the newest stories, and no more than it may keep."""

from __future__ import annotations

from collections import OrderedDict

import msgspec

from mesh.journal.steps import Step

MAX_EVENTS = 50_000
MAX_BYTES = 48 * 1024 * 1024
MAX_STEPS = 100
"""Steps of one event that are kept: the first ones, and the newest."""
MAX_REASON = 300
"""Characters of a reason that are kept."""
OVERHEAD = 200
"""Bytes that a step takes beside its texts, and a story beside its steps: 600 were measured for a story of two."""


class _Noted(msgspec.Struct, gc=False):
    """A step, and the one before it: a story is its newest."""

    step: Step
    earlier: _Noted | None
    count: int
    left_out: int = 0
    size: int = 0
    """Of the whole story, in bytes."""


class Ring:
    """Stories by the identity of their event. The one that was longest without a new step is forgotten first."""

    def __init__(self, now: float, *, max_events: int = MAX_EVENTS, max_bytes: int = MAX_BYTES) -> None:
        self.since = now
        """What happened before, may have been forgotten; seconds since the epoch."""
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._stories: OrderedDict[str, _Noted] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._stories)

    @property
    def bytes(self) -> int:
        """About how much memory it takes."""
        return self._bytes

    def note(self, identity: str, step: Step) -> None:
        stories = self._stories
        earlier = stories.get(identity)
        size = OVERHEAD + _size(step.reason) + len(step.position) + _size(step.to)
        if earlier is None:
            size += OVERHEAD + _size(identity)
            stories[identity] = _Noted(step, None, 1, 0, size)
        else:
            stories.move_to_end(identity)
            if earlier.count < MAX_STEPS:
                stories[identity] = _Noted(step, earlier, earlier.count + 1, earlier.left_out, earlier.size + size)
            else:
                earlier.step = step
                earlier.left_out += 1
                size = 0  # in place of another
        self._bytes += size
        while self._bytes > self._max_bytes or len(stories) > self._max_events:
            _, forgotten = stories.popitem(last=False)
            self._bytes -= forgotten.size
            self.since = max(self.since, forgotten.step.time)

    def story(self, identity: str) -> tuple[list[Step], int]:
        """The steps, in order, and how many are left out before the last."""
        noted = self._stories.get(identity)
        if noted is None:
            return [], 0
        left_out = noted.left_out
        steps: list[Step] = []
        while noted is not None:
            steps.append(noted.step)
            noted = noted.earlier
        return steps[::-1], left_out


def _size(text: str) -> int:
    """Bytes in memory, at most: a text with one emoji takes four for each character."""
    return len(text) if text.isascii() else 4 * len(text)
