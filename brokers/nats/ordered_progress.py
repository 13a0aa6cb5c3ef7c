"""What is done of an ordered lane: in memory while it is worked, and as a record for who works it next.

The server knows it too, by acknowledgements. But to hand a lane over, its consumer goes back to the oldest message that
is not acknowledged, and with it to later ones that were done. The record tells them apart. Without it, or with an old
one, more is repeated, and nothing is lost: what it says to be done stays so.
"""

from __future__ import annotations

from enum import Enum

import msgspec

from mesh.errors import BrokerError
from mesh.ports.tables import Entry, Key, Put

KIND = "order"
MAX_OPEN = 1000
"""Messages that a record lists as not done. What comes after the last one is left out of it."""
JSON = "application/json"


class Progress(msgspec.Struct, frozen=True):
    """The record. Stored data: fields are only ever added. Messages are known by their sequence in the stream."""

    stream: str
    """When the stream was made: in another one, the same numbers are other messages."""
    upto: int
    """Every message up to here is done, but those in `open`."""
    open: list[int] = []
    """In order."""
    attempts: dict[int, int] = {}
    """How often those have failed that have."""
    due: dict[int, float] = {}
    """When to try again those that wait for it; seconds since the epoch."""


def progress_key(durable: str) -> Key:
    return (KIND, durable)


def record(key: Key, progress: Progress, *, expected: int | None = None) -> Put:
    """What stores it; `expected` as in `Put`."""
    return Put(key=key, value=msgspec.json.encode(progress), content_type=JSON, expected=expected)


def read(entry: Entry) -> Progress:
    """Raises `BrokerError` for what no version before this one wrote."""
    try:
        return _decode(entry.value)
    except msgspec.DecodeError as error:
        raise BrokerError(f"{'/'.join(entry.key)} cannot be read: {error}") from None


_decode = msgspec.json.Decoder(Progress).decode


class Arrival(Enum):
    NEW = "not seen yet, or not done by whoever worked the lane before"
    HELD = "taken already and not done"
    DONE = "done"


class Work:
    """What this member knows of the messages of a lane that it works."""

    def __init__(self, stream: str, floor: int, earlier: Progress | None) -> None:
        """Everything up to `floor` is done, says the server; `earlier` is what the last record says, which may be of
        another stream."""
        self.stream = stream
        self.attempts: dict[int, int] = {}
        """How often each message has failed that has."""
        self.due: dict[int, float] = {}
        """When to try again those that wait for it; seconds since the epoch."""
        self._seen = floor
        self._taken: dict[int, None] = {}
        self._expected: set[int] = set()  # those not done before, until they come
        self._changed = False
        self._first_at_last_look = 0
        if earlier is not None and earlier.stream == stream:
            self._seen = max(floor, earlier.upto)
            self._expected = {sequence for sequence in earlier.open if sequence > floor}
            self.attempts = {sequence: count for sequence, count in earlier.attempts.items() if sequence > floor}
            self.due = {sequence: when for sequence, when in earlier.due.items() if sequence > floor}

    @property
    def first(self) -> int:
        """The earliest message that may not be done."""
        return min(min(self._taken, default=self._seen + 1), min(self._expected, default=self._seen + 1))

    def take(self, sequence: int) -> Arrival:
        """A message has come. They come in order, and again from `first` on whenever a consumer is set back."""
        if sequence > self._seen:
            self._seen = sequence
            self._expected.clear()  # what has not come by now is gone from the stream
        elif sequence in self._taken:
            return Arrival.HELD
        elif sequence in self._expected:
            self._expected.remove(sequence)
        else:
            return Arrival.DONE
        self._taken[sequence] = None
        return Arrival.NEW

    def finish(self, sequence: int) -> None:
        """A message that was taken is done."""
        del self._taken[sequence]
        if self.attempts:
            self.attempts.pop(sequence, None)
        self._changed = True

    def fail(self, sequence: int, due: float) -> None:
        self.attempts[sequence] = self.attempts.get(sequence, 0) + 1
        self.due[sequence] = due
        self._changed = True

    def is_held_up(self) -> bool:
        """Whether a message is not done that was the earliest one at the last call already, and the last record is out
        of date: only then the server may not know enough."""
        first = self.first
        held_up = first == self._first_at_last_look and first <= self._seen and self._changed
        self._first_at_last_look = first
        return held_up

    @property
    def changed(self) -> bool:
        """Whether anything was done, or has failed, since the last record."""
        return self._changed

    def progress(self) -> Progress:
        """The record of this moment."""
        self._changed = False
        undone = sorted({*self._taken, *self._expected})
        upto = self._seen
        if len(undone) > MAX_OPEN:
            upto = undone[MAX_OPEN] - 1
            undone = undone[:MAX_OPEN]
        attempts = {sequence: self.attempts[sequence] for sequence in undone if sequence in self.attempts}
        due = {sequence: self.due[sequence] for sequence in undone if sequence in self.due}
        return Progress(self.stream, upto, undone, attempts, due)

    def unwritten(self) -> None:
        """The record could not be stored."""
        self._changed = True
