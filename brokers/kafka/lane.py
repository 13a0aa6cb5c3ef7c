"""One partition in the hands of one member of a group: what is taken from it, in whose turn, and how far it has come.

Guarded by `benchmarks/deliver.py`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Protocol

from aiokafka.structs import TopicPartition

from brokers.kafka.codec import KafkaRecord, is_expired
from brokers.kafka.offsets import Attempt, Progress, encode
from brokers.key_order import KeyOrder
from mesh.ports import Order

MOST_WAITING, MOST_WAITING_BYTES = 1024, 4 * 1024 * 1024
"""Messages of a partition that are kept in memory while they wait for their turn, and as many that wait for a retry.
Of more than that only the offsets are kept, and they are read again when it is time."""
RECORD_OVERHEAD = 500
"""Bytes of a record in memory beside its key and value."""
RELEASE_PAUSE = 0.01
"""Seconds until a message that was given back comes again, so that an app which takes nothing does not keep us busy."""
LONGEST_TIMER = 24 * 3600.0
"""Seconds. What waits longer is looked at in between."""

_UNKEYED = object()


class Member(Protocol):
    """Whose lane it is."""

    def offer(self, delivery: KafkaDelivery) -> None:
        """Its turn has come."""
        ...

    def freed(self, *, released: bool = False) -> None:
        """One that was handed over has been settled."""
        ...

    def changed(self, lane: Lane) -> None:
        """There is something to be committed."""
        ...

    def recall(self, lane: Lane, offsets: list[int], then: Callable[[list[Any]], None]) -> None:
        """Read these again, and call `then` with what is still stored of them."""
        ...


class KafkaDelivery(KafkaRecord):
    """See the `Delivery` port."""

    __slots__ = ("_lane", "_settled", "attempt")

    def __init__(self, lane: Lane, stored: Any) -> None:
        # As in KafkaRecord, without a second call.
        self.stored = stored
        self.topic = lane.topic
        self._headers = None
        self._mode = None
        self._lane = lane
        self._settled = False
        self.attempt = 0

    @property
    def lane(self) -> Lane:
        return self._lane

    def ack(self) -> None:
        if not self._settled:
            self._settled = True
            self._lane.acked(self)

    def retry(self, delay: float) -> None:
        if not self._settled:
            self._settled = True
            self._lane.retried(self, delay)

    def release(self) -> None:
        if not self._settled:
            self._settled = True
            self._lane.released(self)

    def void(self) -> None:
        """Whatever is said of it from now on does nothing."""
        self._settled = True


class Lane:
    """See above. All of it happens in the event loop, and nothing waits."""

    def __init__(
        self,
        partition: TopicPartition,
        topic: str,
        order: Order,
        member: Member,
        progress: Progress,
        attempts: Mapping[int, Attempt] | None = None,
    ) -> None:
        self.partition = partition
        self.topic = topic
        self.progress = progress
        self.leaving = False
        """Nothing more is handed over."""
        self.idle = asyncio.Event()
        """Nothing of it is in hand."""
        self.idle.set()
        self.open = 0
        """Messages that are taken and not done."""
        self.full = False
        """For the member's use: whether it has stopped fetching for this lane."""
        self._order = order
        self._member = member
        self._loop = asyncio.get_running_loop()
        self._made = {offset: attempt.made for offset, attempt in (attempts or {}).items()}
        """Attempts of messages that are not done, those in hand included."""
        self._due = {offset: attempt.due for offset, attempt in (attempts or {}).items() if attempt.due}
        """When those that wait for a retry may be tried; by the clock on the wall, which their next holder has too."""
        self._timers: dict[
            int, tuple[asyncio.TimerHandle, Any, Hashable]
        ] = {}  # of those; their records, if kept; keys
        self._kept_bytes = 0
        self._keys: KeyOrder[KafkaDelivery] = KeyOrder(
            self._turn, self._recall_keyed, most=MOST_WAITING, most_bytes=MOST_WAITING_BYTES
        )
        self._in_hand: set[KafkaDelivery] = set()
        self._text = ""
        self._text_low = -1
        self._text_time = 0.0

    # What comes

    def take(self, records: Sequence[Any]) -> None:
        """The next ones of the partition."""
        take = self.progress.take
        for stored in records:
            if take(stored.offset):
                self.open += 1
                key = self._key(stored)
                if key is _UNKEYED:
                    self._turn(KafkaDelivery(self, stored))
                else:
                    self._keys.add(key, KafkaDelivery(self, stored), sequence=stored.offset, size=_size(stored))
        self._member.changed(self)

    def _key(self, stored: Any) -> Hashable:
        if self._order is Order.STRICT:
            return b""
        if self._order is Order.NONE or stored.key is None:
            return _UNKEYED
        return stored.key  # type: ignore[no-any-return]

    def _turn(self, delivery: KafkaDelivery) -> bool:
        """Nothing that it waits for is before it. False when it is not to be delivered at all."""
        offset = delivery.stored.offset
        if self.leaving:
            return True
        due = self._due.get(offset) if self._due else None
        if due is not None and due > time.time():
            self._wait(offset, delivery.stored)
        elif delivery.stored.headers and is_expired(delivery.stored, time.time()):
            self._forget(offset)
            return False
        else:
            self._member.offer(delivery)
        return True

    def _forget(self, offset: int) -> None:
        self._made.pop(offset, None)
        self._due.pop(offset, None)
        self.open -= 1
        self.progress.finish(offset)

    def _recall_keyed(self, key: Hashable, offsets: list[int]) -> None:
        def then(records: list[Any]) -> None:
            stored = {record.offset for record in records}
            for offset in offsets:
                if offset not in stored:
                    self._forget(offset)
            self._keys.recalled(key, [(KafkaDelivery(self, record), _size(record)) for record in records])

        self._member.recall(self, offsets, then)

    # What becomes of it

    def hand_over(self, delivery: KafkaDelivery) -> None:
        """The handler is about to get it."""
        offset = delivery.stored.offset
        delivery.attempt = self._made[offset] = self._made.get(offset, 0) + 1
        if self._due:
            self._due.pop(offset, None)
        if not self._in_hand:
            self.idle.clear()
        self._in_hand.add(delivery)

    def _let_go(self, delivery: KafkaDelivery) -> None:
        self._in_hand.discard(delivery)
        if not self._in_hand:
            self.idle.set()

    def acked(self, delivery: KafkaDelivery) -> None:
        self._let_go(delivery)
        self._done(delivery.stored)
        self._member.changed(self)
        self._member.freed()

    def _done(self, stored: Any) -> None:
        del self._made[stored.offset]
        self.open -= 1
        self.progress.finish(stored.offset)
        key = self._key(stored)
        if key is not _UNKEYED:
            self._keys.done(key)

    def retried(self, delivery: KafkaDelivery, delay: float) -> None:
        self._let_go(delivery)
        offset = delivery.stored.offset
        if delay > 0:
            self._due[offset] = time.time() + delay
            if not self.leaving:
                self._wait(offset, delivery.stored)
        else:
            self._loop.call_soon(self._again, delivery.stored)
        self._member.changed(self)
        self._member.freed()

    def released(self, delivery: KafkaDelivery) -> None:
        self._let_go(delivery)
        self._uncount(delivery.stored.offset)
        self._loop.call_later(RELEASE_PAUSE, self._again, delivery.stored)
        self._member.changed(self)
        self._member.freed(released=True)

    def _uncount(self, offset: int) -> None:
        self._made[offset] -= 1
        if not self._made[offset]:
            del self._made[offset]

    def _again(self, stored: Any) -> None:
        """It is its turn still, since it is not done."""
        if not self._turn(KafkaDelivery(self, stored)):
            key = self._key(stored)
            if key is not _UNKEYED:
                self._keys.done(key)

    def _wait(self, offset: int, stored: Any) -> None:
        size, key = _size(stored), self._key(stored)
        if len(self._timers) >= MOST_WAITING or self._kept_bytes + size > MOST_WAITING_BYTES:
            stored = None
        else:
            self._kept_bytes += size
        delay = min(max(0.0, self._due[offset] - time.time()), LONGEST_TIMER)
        # rounded up: an event loop's timer may come a moment early
        self._timers[offset] = self._loop.call_later(delay + 0.002, self._is_due, offset), stored, key

    def _is_due(self, offset: int) -> None:
        _, stored, key = self._timers.pop(offset)
        if stored is None:
            self._member.recall(self, [offset], lambda records: self._recalled(offset, key, records))
        else:
            self._kept_bytes -= _size(stored)
            self._again(stored)

    def _recalled(self, offset: int, key: Hashable, records: list[Any]) -> None:
        if records:
            self._again(records[0])
            return
        self._forget(offset)
        if key is not _UNKEYED:
            self._keys.done(key)

    # The end

    def leave(self) -> None:
        """Hand nothing more over. What is in hand may still be settled."""
        self.leaving = True
        for timer, _, _ in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def void(self) -> int:
        """Somebody else has it from now on: what is in hand is settled by nobody here. How many these were."""
        self.leave()
        number = len(self._in_hand)
        for delivery in self._in_hand:
            delivery.void()
        self._in_hand.clear()
        self.idle.set()
        return number

    def backed_up(self, *, whole: bool = False) -> tuple[int, str, bool]:
        """The offset to commit, the text that goes with it, and whether that tells all. While the offset stays, a long
        text is made anew once a second at most, unless `whole` asks for it."""
        low, now = self.progress.low, self._loop.time()
        anew = whole or low != self._text_low or now - self._text_time > 1.0 or len(self._text) < 256
        if anew:
            attempts = {offset: Attempt(made, self._due.get(offset, 0.0)) for offset, made in self._made.items()}
            self._text = encode(low, self.progress.done(), attempts)
            self._text_low, self._text_time = low, now
        return low, self._text, anew


def _size(stored: Any) -> int:
    return RECORD_OVERHEAD + len(stored.key or b"") + len(stored.value or b"")
