"""Stored events of a topic, from one place to another, as deliveries: a subscription that has an end."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Mapping
from functools import partial

from mesh.dead_letters.selection import texts
from mesh.errors import InvalidEvent
from mesh.event import Attributes
from mesh.ports import Clock, EventLog, Handler, Mode, Order, Record, Start, Topic

PAGE = 128
"""Events that are read together."""
OPEN = 512
"""Events that are read and not settled, at most."""
RELEASE_PAUSE = 1.0
"""Seconds after which an event that was given back without an attempt is delivered again."""


class Playback:
    """A `Subscription`; `run` does the reading. Nothing of it is at the broker: where it stands is `reached`."""

    def __init__(
        self,
        log: EventLog,
        topic: Topic,
        start: Start,
        end: Start,
        handler: Handler,
        *,
        order: Order,
        clock: Clock,
        headers: Mapping[str, str] = {},
    ) -> None:
        """Delivered are events that were stored at `end.time` or before, and up to that with the position of `end`.
        What is stored later than the last read is not waited for. `headers` are put beside those of each event."""
        self._log = log
        self._topic = topic
        self._next: Start | None = start
        self._end = end
        self._handler = handler
        self._order = order
        self._clock = clock
        self.headers = headers
        self._concurrency = 0
        self._in_hand: set[_Replayed] = set()
        self._open: OrderedDict[str, _Replayed] = OrderedDict()
        self._ready: deque[_Replayed] = deque()
        self._lanes: dict[str, deque[_Replayed]] = {}
        self._news = asyncio.Event()
        self._dispatching = False
        self._closed = False
        self.handled = 0
        """Events that are done with."""
        self.time: float | None = None
        """When the newest event that was read was stored."""

    @property
    def reached(self) -> str | None:
        """Everything before this position is done with; `None` before the first event and after the last."""
        first = next(iter(self._open), None)
        return first if first is not None else None if self._next is None else self._next.position

    @property
    def done(self) -> bool:
        return self._next is None and not self._open

    async def run(self) -> None:
        """Returns when all is read and settled. Raises `BrokerError`."""
        while not self.done:
            self._news.clear()
            if self._next is not None and len(self._open) < OPEN:
                await self._read(self._next)
            else:
                await self._news.wait()

    async def _read(self, start: Start) -> None:
        page = await self._log.read(self._topic, start, limit=PAGE)
        following = None if page.next is None else Start(position=page.next)
        for record in page.records:
            if self._end.time is not None and record.time > self._end.time:
                following = None
                break
            self._take(record)
            if record.position == self._end.position:
                following = None
                break
        self._next = following
        self._dispatch()

    def _take(self, record: Record) -> None:
        self.time = record.time
        event = _Replayed(self, record)
        self._open[record.position] = event
        if (key := self._key(record)) is None:
            self._ready.append(event)
            return
        event.lane = key
        if key in self._lanes:
            self._lanes[key].append(event)
        else:
            self._lanes[key] = deque()
            self._ready.append(event)

    def _key(self, record: Record) -> str | None:
        """Events with the same are delivered one after another."""
        if self._order is Order.NONE:
            return None
        if self._order is Order.STRICT:
            return ""
        try:
            return texts(record).get("partitionkey")
        except InvalidEvent:
            return None

    def set_concurrency(self, concurrency: int) -> None:
        self._concurrency = concurrency
        self._dispatch()

    async def close(self) -> None:
        """Deliver no more. Returns when what is in hand is settled, in whatever way."""
        self._closed = True
        while self._in_hand:
            self._news.clear()
            await self._news.wait()

    def _dispatch(self) -> None:
        if self._dispatching:  # a handler that settles at once comes back here
            return
        self._dispatching = True
        try:
            while self._ready and not self._closed and len(self._in_hand) < self._concurrency:
                event = self._ready.popleft()
                event.attempt += 1
                self._in_hand.add(event)
                self._handler(event)
        finally:
            self._dispatching = False

    def let_go(self, event: _Replayed) -> bool:
        """Whether it was in hand until now."""
        if event not in self._in_hand:
            return False
        self._in_hand.remove(event)
        self._news.set()
        return True

    def finish(self, event: _Replayed) -> None:
        del self._open[event.position]
        self.handled += 1
        if event.lane is not None:
            waiting = self._lanes[event.lane]
            if waiting:
                self._ready.append(waiting.popleft())
            else:
                del self._lanes[event.lane]
        self._dispatch()

    def again(self, event: _Replayed, delay: float) -> None:
        self._clock.call_later(delay, partial(self._make_ready, event))
        self._dispatch()

    def _make_ready(self, event: _Replayed) -> None:
        self._ready.appendleft(event)
        self._dispatch()


class _Replayed:
    """A `Delivery`."""

    __slots__ = ("_playback", "_record", "attempt", "lane")

    def __init__(self, playback: Playback, record: Record) -> None:
        self._playback = playback
        self._record = record
        self.attempt = 0
        self.lane: str | None = None

    @property
    def mode(self) -> Mode:
        return self._record.mode

    @property
    def attributes(self) -> Attributes:
        return self._record.attributes

    @property
    def payload(self) -> bytes | None:
        return self._record.payload

    @property
    def content_type(self) -> str | None:
        return self._record.content_type

    @property
    def headers(self) -> Mapping[str, str]:
        return {**self._record.headers, **self._playback.headers}

    @property
    def key(self) -> str | None:
        return self._record.key

    @property
    def position(self) -> str:
        return self._record.position

    @property
    def topic(self) -> str:
        return self._record.topic

    @property
    def time(self) -> float:
        return self._record.time

    def ack(self) -> None:
        if self._playback.let_go(self):
            self._playback.finish(self)

    def retry(self, delay: float) -> None:
        if self._playback.let_go(self):
            self._playback.again(self, delay)

    def release(self) -> None:
        if self._playback.let_go(self):
            self.attempt -= 1
            self._playback.again(self, RELEASE_PAUSE)


async def count(log: EventLog, topic: Topic, start: Start, end: Start, *, most: int) -> tuple[int, bool]:
    """How many events there are, and whether those are all: no more than `most` are counted. Raises `BrokerError`."""
    number = 0
    following: Start | None = start
    while following is not None:
        page = await log.read(topic, following, limit=min(4 * PAGE, most + 1 - number))
        for record in page.records:
            if end.time is not None and record.time > end.time:
                return number, True
            if number == most:
                return number, False
            number += 1
            if record.position == end.position:
                return number, True
        following = None if page.next is None else Start(position=page.next)
    return number, True
