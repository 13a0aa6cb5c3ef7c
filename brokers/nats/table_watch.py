"""Following the changes to a scope's stream, in order and without a gap, over every fault of its server.

Each watch has a consumer of its own, in the server's memory, which is made anew from the last message seen as soon as
anything seems wrong. It is a pull consumer: a slow reader asks for no more, and nothing piles up.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable

from brokers.nats import jetstream
from brokers.nats.connection import Connection
from brokers.nats.retry import LAST_PAUSE
from brokers.nats.scopes import ScopeStream, Standing
from brokers.nats.table_records import Stored, record
from mesh.errors import BrokerError, BrokerUnavailable
from mesh.ids import random_id
from mesh.ports.tables import ABSENT, Current, Entry, Gone

logger = logging.getLogger("meshwire.nats")

HEARTBEAT = 1.0
"""Seconds between the server's heartbeats on an open pull; two missed ones mean that it is gone."""
PULL = 256
"""Messages asked for at once."""
PULL_BYTES = 1024 * 1024
INACTIVE = 60.0
"""Seconds after which the server forgets the consumer of a watch that has gone, or that reads nothing."""

_NANOSECONDS = 1_000_000_000


class Watches:
    """The watches of one scope."""

    def __init__(self, connection: Connection, stream: ScopeStream) -> None:
        self._connection = connection
        self._stream = stream
        self._feeds: set[_Feed] = set()
        self._closed = asyncio.Event()

    def close(self) -> None:
        """All watches end."""
        self._closed.set()
        for feed in self._feeds:
            feed.woken.set()

    async def watch(
        self, path: str, after: int | None, lost: Callable[[], None]
    ) -> AsyncGenerator[Entry | Gone | Current, None]:
        """See `Table.watch`; `path` is that of the prefix."""
        position = after
        created = ""
        while not self._closed.is_set():
            try:
                standing = await self._stream.restore()
                if position is None:
                    position = standing.last
                elif position > standing.last or standing.created != created != "":
                    position = ABSENT  # another stream, which counts from 1 again
                created = standing.created
                feed = _Feed(self._connection, self._stream, path, position, lost)
                self._feeds.add(feed)
            except BrokerUnavailable as error:
                logger.debug("watch of %s: %s", self._stream.name, error)
                await self._pause()
                continue
            try:
                from_nothing = position == ABSENT
                await feed.open()
                async for change in self._follow(feed, standing):
                    if isinstance(change, Current):
                        from_nothing = False
                    else:
                        position = change.revision
                    if not (from_nothing and isinstance(change, Gone)):
                        yield change
                position = max(position, feed.position)
                if feed.denial:
                    raise BrokerError(f"NATS refused: {feed.denial}; grant this user the permission")
                if feed.fruitless:
                    await self._pause()  # whatever ends it at once may well do so again
            except BrokerUnavailable as error:
                logger.debug("watch of %s: %s", self._stream.name, error)
                await self._pause()
            finally:
                self._feeds.discard(feed)
                feed.close()

    async def _follow(self, feed: _Feed, standing: Standing) -> AsyncGenerator[Entry | Gone | Current, None]:
        """What one consumer delivers, until it is of no more use."""
        current = feed.pending == 0
        if current:
            yield Current(standing.last)
        while not self._closed.is_set():
            stored = feed.take()
            if stored is None:
                if feed.broken:
                    return
                if not current and feed.idle:
                    # What was to come was removed meanwhile.
                    current = True
                    yield Current(max(standing.last, feed.position))
                await feed.woken.wait()
                feed.woken.clear()
                continue
            if not current and stored.sequence > standing.last:
                current = True
                yield Current(standing.last)
            change = record(stored)
            if change is not None:
                yield change
            if not current and feed.pending == 0:
                current = True
                yield Current(max(standing.last, stored.sequence))

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(LAST_PAUSE):
                await self._closed.wait()
        except TimeoutError:
            pass


class _Feed:
    """One consumer, and what it has delivered and nobody has taken yet."""

    def __init__(
        self, connection: Connection, stream: ScopeStream, path: str, after: int, lost: Callable[[], None]
    ) -> None:
        self._connection = connection
        self._stream = stream
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._name = random_id()
        self._inbox = connection.new_inbox()
        self._next = f"$JS.API.CONSUMER.MSG.NEXT.{stream.name}.{self._name}"
        root = stream.root
        self._config = {
            "name": self._name,
            "filter_subjects": [f"{root}{path}", f"{root}{path}.>"] if path else [f"{root}>"],
            "ack_policy": "none",
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": int(INACTIVE * _NANOSECONDS),
            "deliver_policy": "by_start_sequence",  # each subject has one message: the newest of each from there on
            "opt_start_seq": after + 1,
        }
        self.position = after
        """The sequence of the last message taken."""
        self.pending = 0
        """How many there were behind it."""
        self.idle = False
        """Whether the server had nothing to send for a while."""
        self.broken = False
        self.denial = ""
        """The permission that is missing, as the server says."""
        self.woken = asyncio.Event()
        self._waiting: deque[tuple[Stored, int]] = deque()
        self._delivered = 0
        self._asked = 0
        self._heard = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._stops: list[Callable[[], None]] = []

    async def open(self) -> None:
        """Raises `BrokerError`."""
        request = {"stream_name": self._stream.name, "config": self._config, "action": ""}
        self._stops = [
            self._connection.listen(self._inbox, self._on_message),
            self._connection.on_lost(lambda _reason: self._break()),
            self._connection.on_denied(self._on_denied),
        ]
        try:
            info = await jetstream.call(self._connection, f"CONSUMER.CREATE.{self._stream.name}.{self._name}", request)
        except jetstream.Refused as refusal:
            if refusal.code == jetstream.STREAM_NOT_FOUND:
                raise BrokerUnavailable(str(refusal)) from None
            raise
        self.pending = int(info["num_pending"])
        self._heard = self._loop.time()
        self._timer = self._loop.call_later(HEARTBEAT, self._tick)
        self._pull()

    def close(self) -> None:
        for stop in self._stops:
            stop()
        self._stops = []
        if self._timer is not None:
            self._timer.cancel()
        subject = f"$JS.API.CONSUMER.DELETE.{self._stream.name}.{self._name}"
        self._connection.send(subject.encode(), b"", self._inbox.encode())  # answers go nowhere; none is needed

    @property
    def fruitless(self) -> bool:
        """Whether nothing ever came."""
        return not self._delivered

    def take(self) -> Stored | None:
        """The next message, if there is one. What is left in the queue of a feed that broke comes first."""
        if not self._waiting:
            return None
        stored, self.pending = self._waiting.popleft()
        self.position = stored.sequence
        if not self._asked and not self.broken and len(self._waiting) < PULL // 2:
            self._pull()
        return stored

    def _pull(self) -> None:
        self._asked = PULL
        self._heard = self._loop.time()
        self._connection.send(
            self._next.encode(),
            jetstream.pull_request(self._connection, PULL, PULL_BYTES, HEARTBEAT),
            self._inbox.encode(),
        )

    def _on_message(self, subject: bytes, reply: bytes, block: bytes, payload: bytes) -> None:
        self._heard = self._loop.time()
        if not reply.startswith(b"$JS.ACK."):
            self._on_status(block)
            return
        if self.broken:
            return
        # $JS.ACK.<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<time>.<pending>; behind a leaf node,
        # the domain and the account's hash stand before the stream, and a random token at the end.
        tokens = reply.split(b".")
        sequence, number, time, pending = tokens[7:11] if len(tokens) >= 11 else tokens[5:9]
        if int(number) != self._delivered + 1:
            self._break()
            return
        self._delivered += 1
        self._asked -= 1
        self.idle = False
        path = subject[len(self._stream.root) :].decode()
        self._waiting.append((Stored(path, int(sequence), int(time) / 1e9, block, payload), int(pending)))
        if not self._asked and len(self._waiting) < PULL // 2:
            self._pull()
        self.woken.set()

    def _on_status(self, block: bytes) -> None:
        status = block[9:12]
        if status == b"100":
            self.idle = True
            self.woken.set()
        elif b"Nats-Pending-Messages" in block:
            self._asked = 0
            if len(self._waiting) < PULL // 2:
                self._pull()
        else:
            self._break()

    def _on_denied(self, text: str) -> bool:
        if f'"{self._next.lower()}"' not in text:
            return False
        self.denial = text
        self._break()
        return True

    def _tick(self) -> None:
        self._timer = self._loop.call_later(HEARTBEAT, self._tick)
        if self._asked and self._loop.time() - self._heard > 2.5 * HEARTBEAT:
            self._break()

    def _break(self) -> None:
        if not self.broken:
            self.broken = True
            self.woken.set()
            self._lost()
