"""Order per key: of the messages of one key one is in work, and the others wait behind it in the order they came.

It knows nothing of brokers, time or connections, and calls back at once. Of a key that waits for long only the sequence
numbers of its later messages are kept (they are *parked*), so that it neither holds up other keys nor fills the memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

M = TypeVar("M")

PER_KEY = 64
"""Messages that wait in memory behind one key."""
MOST = 4096
MOST_BYTES = 32 * 1024 * 1024
"""Messages, and bytes of them, that wait in memory behind all keys together. What comes when either is reached is
parked, so that the bytes exceed theirs by one message at most."""


class KeyOrder(Generic[M]):
    """Messages in, each offered when those before it with the same key are done.

    `offer` gets a message whose turn has come. It returns whether it took it: then `done` is called for the key later,
    or from within. A message that was not taken is forgotten, and the next one's turn has come.

    `recall` is asked for parked messages of a key, by their sequence numbers, and answers with `recalled`; it is asked
    again for the same key only then. Without it nothing is ever parked.
    """

    def __init__(
        self,
        offer: Callable[[M], bool],
        recall: Callable[[Hashable, list[int]], None] | None = None,
        *,
        per_key: int = PER_KEY,
        most: int = MOST,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self._offer = offer
        self._recall = recall
        self._per_key = per_key
        self._most = most
        self._most_bytes = most_bytes
        self._lines: dict[Hashable, _Line[M] | None] = {}  # of the keys in work; `None` where nothing has waited yet
        self._done: deque[Hashable] = deque()
        self._advancing = False
        self._bytes = 0
        self.waiting = 0
        """Messages in memory whose turn has not come."""

    def add(self, key: Hashable, message: M, *, sequence: int = 0, size: int = 0) -> None:
        """The next message of `key`. `sequence` is what `recall` would ask for, `size` in bytes."""
        if key not in self._lines:
            self._lines[key] = None
            if not self._offer(message):
                self.done(key)
            return
        line = self._lines[key]
        if line is None:
            line = self._lines[key] = _Line()
        if self._recall is not None and (line.parked or line.recalled_next or self._is_full(line)):
            line.parked.append(sequence)
        else:
            self._wait(line, message, size)

    def done(self, key: Hashable) -> None:
        """The message of `key` that was offered is done: it is the next one's turn."""
        # One after the other: who is done at once does not come back in, as deep as the line is long.
        self._done.append(key)
        if self._advancing:
            return
        self._advancing = True
        try:
            while self._done:
                self._advance(self._done.popleft())
        finally:
            self._advancing = False

    def recalled(self, key: Hashable, messages: Iterable[tuple[M, int]]) -> None:
        """What `recall` was asked for, in that order, with sizes; without those that are gone. Raises `ValueError` for
        what it was not asked for."""
        line = self._lines.get(key)
        if line is None or not line.recalled_next:
            raise ValueError(f"nothing of the key {key!r} is being recalled")
        line.recalled_next = 0
        for message, size in messages:
            self._wait(line, message, size)
        if line.idle:
            line.idle = False
            self.done(key)
        else:
            self._top_up(key, line)

    def _advance(self, key: Hashable) -> None:
        line = self._lines[key]
        if line is None:
            del self._lines[key]
            return
        while line.waiting:
            message, size = line.waiting.popleft()
            self.waiting -= 1
            self._bytes -= size
            if self._offer(message):
                self._top_up(key, line)
                return
        if line.parked or line.recalled_next:
            line.idle = True
            self._top_up(key, line)
        else:
            del self._lines[key]

    def _wait(self, line: _Line[M], message: M, size: int) -> None:
        line.waiting.append((message, size))
        self.waiting += 1
        self._bytes += size

    def _is_full(self, line: _Line[M]) -> bool:
        return len(line.waiting) >= self._per_key or self.waiting >= self._most or self._bytes >= self._most_bytes

    def _top_up(self, key: Hashable, line: _Line[M]) -> None:
        """Ask for parked messages once half of the line has gone, or only for the next one while memory is full."""
        if not line.parked or line.recalled_next or self._recall is None:
            return
        if self.waiting >= self._most or self._bytes >= self._most_bytes:
            number = 0 if line.waiting else 1
        else:
            number = self._per_key - len(line.waiting)
            if number * 2 < self._per_key:
                number = 0
        if number:
            wanted = [line.parked.popleft() for _ in range(min(number, len(line.parked)))]
            line.recalled_next = len(wanted)
            self._recall(key, wanted)


class _Line(Generic[M]):
    """What waits behind the message of a key that is in work."""

    __slots__ = ("idle", "parked", "recalled_next", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[tuple[M, int]] = deque()
        self.parked: deque[int] = deque()  # all later than those that wait
        self.recalled_next = 0
        """How many are being recalled: later than those that wait, earlier than those that are parked."""
        self.idle = False
        """Whether a turn has come while nothing was here."""
