"""Taking messages from one durable consumer: a pull loop that outlives every fault of its server.

Pulls ask for as many messages as there is room for; heartbeats tell a silent server from an empty stream. A
consumer that was deleted is made again from where it stood. Guarded by `benchmarks/deliver.py`.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from brokers.nats import codec, jetstream
from brokers.nats.connection import Connection
from mesh.errors import BrokerUnavailable, MeshError
from mesh.event import Attributes
from mesh.ports import Mode

logger = logging.getLogger("meshwire.nats")

ACK_WAIT = 20.0
"""Seconds after which the server gives a message to another member when its holder is silent."""
HEARTBEAT = 5.0
"""Seconds between the server's heartbeats on an open pull; two missed ones mean that it is gone."""
MAX_BYTES_PER_PULL = 16 * 1024 * 1024
MAX_ACK_PENDING = 10_000
"""Messages of a group that may be unsettled or waiting for a retry; then the group waits for some to settle."""
MAX_RELEASED = 10_000
"""Messages of which is remembered how often they were given back."""
TICK = 1.0
"""Seconds between looks at heartbeats and at messages held for long."""
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
"""Seconds between attempts to mend a consumer, and before the next repair of one that did not last."""

ACK, NAK = b"+ACK", b"-NAK"

_NANOSECONDS = 1_000_000_000

_numbers = itertools.count(1)


class NatsMessage:
    """One message of the stream of events: what the ports `Record` and `Delivery` have in common."""

    __slots__ = ("_block", "_headers", "_mode", "payload")

    def __init__(self, block: bytes, payload: bytes) -> None:
        self._block = block
        self._headers: dict[str, str] | None = None
        self._mode: Mode | None = None
        self.payload: bytes | None = None if not payload and b"Meshwire-No-Data:" in block else payload

    def all_headers(self) -> dict[str, str]:
        if self._headers is None:
            self._headers = codec.parse_block(self._block)
        return self._headers

    @property
    def mode(self) -> Mode:
        if self._mode is None:
            self._mode = codec.mode(self.all_headers(), self.payload or b"")
        return self._mode

    @property
    def attributes(self) -> Attributes:
        return codec.decode_attributes(self.all_headers()) if self.mode is Mode.BINARY else {}

    @property
    def content_type(self) -> str | None:
        return self.all_headers().get("content-type")

    @property
    def headers(self) -> Mapping[str, str]:
        return codec.transport_headers(self.all_headers())

    @property
    def key(self) -> str | None:
        return codec.key(self._block, (self.payload or b"") if self.mode is Mode.STRUCTURED else b"")


class NatsDelivery(NatsMessage):
    """One message of a durable consumer; see the `Delivery` port."""

    __slots__ = ("_lane", "_reply", "_settled", "_subject", "_tokens", "handed_over", "held_since", "uncounted")

    def __init__(self, lane: Consumer, subject: bytes, reply: bytes, block: bytes, payload: bytes, now: float) -> None:
        # As in NatsMessage, without a second call: each of a hundred thousand a second comes here.
        self._block = block
        self._headers = None
        self._mode = None
        self.payload = None if not payload and b"Meshwire-No-Data:" in block else payload
        self._lane = lane
        self._subject = subject
        self._reply = reply
        self._settled = False
        self._tokens: list[bytes] | None = None
        self.held_since = now
        self.handed_over = False
        """Whether the handler has it; until then it waits for a free place."""
        self.uncounted = 0
        """Earlier deliveries that were given back without an attempt."""

    def _token(self, number: int) -> bytes:
        """A token of `$JS.ACK.<stream>.<consumer>.<delivered>.<stream seq>.…`, counted from `<stream>`.

        Behind a leaf node the domain and the account's hash stand before the stream.
        """
        if self._tokens is None:
            tokens = self._reply.split(b".")
            self._tokens = tokens[4:] if len(tokens) >= 11 else tokens[2:]
        return self._tokens[number]

    @property
    def position(self) -> str:
        return self._token(3).decode()

    @property
    def topic(self) -> str:
        return self._lane.topic_of(self._subject)

    @property
    def time(self) -> float:
        return int(self._token(5)) / _NANOSECONDS

    @property
    def attempt(self) -> int:
        return int(self._token(2)) - self.uncounted

    def ack(self) -> None:
        self._settle(ACK)

    def retry(self, delay: float) -> None:
        self._settle(b'-NAK {"delay": %d}' % max(0, int(delay * _NANOSECONDS)))

    def release(self) -> None:
        if not self._settled:
            self._lane.note_release(self.position)
            self._settle(NAK)

    def _settle(self, verdict: bytes) -> None:
        if not self._settled:
            self._settled = True
            self._lane.settled(self, self._reply, verdict)


class Consumer:
    """The pull loop over one durable consumer.

    `offer` gets each delivery. At most `limit` deliveries are taken from the server and not settled.
    `restore_stream` makes the stream if it is gone, and returns when it was made.
    """

    def __init__(
        self,
        connection: Connection,
        stream: str,
        config: dict[str, Any],
        offer: Callable[[NatsDelivery], None],
        on_settled: Callable[[NatsDelivery], None],
        restore_stream: Callable[[], Awaitable[str]],
        limit: int,
        topic_of: Callable[[bytes], str],
    ) -> None:
        self._connection = connection
        self._stream = stream
        self._config = config
        self.name: str = config["durable_name"]
        self._offer = offer
        self._on_settled = on_settled
        self._restore_stream = restore_stream
        self._limit = limit
        self.topic_of = topic_of
        self._loop = asyncio.get_running_loop()
        self._pull_subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{self.name}".encode()
        self._inbox = ""
        self._requested = 0
        self._released: dict[str, int] = {}
        """How often this member gave back the messages at these positions, without an attempt."""
        self._held: dict[NatsDelivery, None] = {}
        self._stream_made: str | None = None
        self._seen: int | None = None
        self._unacked: dict[int, None] = {}
        self._heard = 0.0
        self._ticked = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._repair: asyncio.Task[None] | None = None
        self._pause = 0.0
        self._mended = 0.0
        self._stops: list[Callable[[], None]] = []
        self._stop_listening: Callable[[], None] | None = None
        self._idle: asyncio.Future[None] | None = None
        self._open = False

    async def start(self) -> None:
        """Make the consumer if it is not there, and begin to pull. Raises `BrokerError`."""
        await self._create()
        self._open = True
        self._stops = [self._connection.on_reconnected(self._restart)]
        if self._limit:
            self._listen()
        self._ticked = self._loop.time()
        self._timer = self._loop.call_later(TICK, self._tick)

    def _listen(self) -> None:
        # Never the same: two members may share the connection, and pulls for an earlier one are to stay ended.
        self._inbox = f"{self._connection.inbox}.p.{next(_numbers)}"
        self._stop_listening = self._connection.listen(self._inbox, self._on_message)
        self._restart()

    def _unlisten(self) -> None:
        """The server gives to others what open pulls asked for; what is under way is given back."""
        if self._stop_listening is not None:
            self._stop_listening()
            self._stop_listening = None
            self._requested = 0

    def set_limit(self, limit: int) -> None:
        """With 0 nothing more is taken."""
        less = limit < self._limit
        self._limit = limit
        if not self._open:
            return
        if less:
            self._unlisten()  # open pulls ask for more than is wanted now
        if limit and self._stop_listening is None:
            self._listen()
        elif limit:
            self._pull()

    def note_release(self, position: str) -> None:
        """A delivery of this message is not to be counted."""
        self._released[position] = self._released.pop(position, 0) + 1
        if len(self._released) > MAX_RELEASED:
            del self._released[next(iter(self._released))]

    async def stop(self) -> None:
        """Stop pulling; return when all that is held has been settled."""
        self._stop_pulling()
        if self._repair is not None:
            await asyncio.gather(self._repair, return_exceptions=True)
        await self._connection.round_trip()  # what was under way is given back before the connection may end
        if self._held:
            self._idle = self._loop.create_future()
            await self._idle

    def cut(self) -> None:
        """Let go at once; what is held goes to other members."""
        self._stop_pulling()
        for delivery in list(self._held):
            delivery.release()
        if self._timer is not None:
            self._timer.cancel()

    def _stop_pulling(self) -> None:
        self._open = False
        self._unlisten()
        for stop in self._stops:
            stop()
        self._stops = []
        if self._repair is not None:
            self._repair.cancel()

    def settled(self, delivery: NatsDelivery, reply: bytes, verdict: bytes) -> None:
        self._held.pop(delivery, None)
        if reply:
            if verdict is ACK:
                self._unacked.pop(int(delivery.position), None)
                if self._released:
                    self._released.pop(delivery.position, None)
            elif len(self._unacked) > MAX_ACK_PENDING:
                # What other members acknowledge is never struck off here.
                self._unacked.pop(next(iter(self._unacked)))
            self._connection.send(reply, verdict)
        self._on_settled(delivery)
        if self._open:
            self._pull()
        elif not self._held and self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    def _pull(self) -> None:
        """Ask for more once half of the room is free, one pull for many messages, or when nothing is asked for:
        slow handlers may hold the other half for long."""
        room = self._limit - self._requested - len(self._held)
        if room <= 0 or (self._requested and room * 2 < self._limit) or self._repair is not None:
            return
        self._requested += room
        self._connection.send(
            self._pull_subject,
            jetstream.pull_request(self._connection, room, MAX_BYTES_PER_PULL, HEARTBEAT),
            self._inbox.encode(),
        )

    def _restart(self) -> None:
        """Open pulls ended with their connection, and nothing says so."""
        self._requested = 0
        self._heard = self._loop.time()
        if self._stop_listening is not None:
            self._pull()

    def _on_message(self, subject: bytes, reply: bytes, block: bytes, payload: bytes) -> None:
        self._heard = self._loop.time()
        if not reply.startswith(b"$JS.ACK."):
            self._on_status(block)
            return
        delivery = NatsDelivery(self, subject, reply, block, payload, self._heard)
        if not self._open or self._stop_listening is None:
            self.note_release(delivery.position)
            self._connection.send(reply, NAK)
            return
        self._requested -= 1
        if self._released:
            delivery.uncounted = self._released.get(delivery.position, 0)
        self._held[delivery] = None
        sequence = int(delivery.position)
        self._seen = max(self._seen or 0, sequence)
        self._unacked[sequence] = None
        self._offer(delivery)
        if self._open and not self._requested:
            self._pull()

    def _on_status(self, block: bytes) -> None:
        status = block[9:12]
        if status == b"100":
            return
        headers = codec.parse_block(block)
        pending = headers.get("nats-pending-messages")
        if pending is not None and pending.isdigit():
            self._requested = max(0, self._requested - int(pending))
            self._pull()
        elif status == b"409" and b"Server Shutdown" in block:
            return  # the connection is about to end; the next one starts anew
        else:
            self._begin_repair(block.split(b"\r\n", 1)[0].decode("ascii", "replace"))

    def _tick(self) -> None:
        now = self._loop.time()
        self._timer = self._loop.call_later(TICK, self._tick)
        if now - self._ticked > 2 * TICK:
            self._heard = now  # this process stood still, and has yet to read what the server sent meanwhile
        self._ticked = now
        for delivery in self._held:
            if now - delivery.held_since < ACK_WAIT / 3:
                break  # in the order of arrival: the rest is younger
            if delivery._reply:
                self._connection.send(delivery._reply, b"+WPI")
        if self._open and self._connection.problem is None and self._requested and now - self._heard > 2 * HEARTBEAT:
            self._begin_repair("no heartbeat")

    def _begin_repair(self, reason: str) -> None:
        if self._open and self._repair is None:
            if self._loop.time() - self._mended > 2 * LONGEST_PAUSE:
                self._pause = 0.0
            logger.warning("consumer %s: %s; looking after it", self.name, reason)
            self._repair = self._loop.create_task(self._mend(), name=f"mend {self.name}")

    async def _mend(self) -> None:
        try:
            while True:
                await asyncio.sleep(self._pause)
                self._pause = min(2 * self._pause or FIRST_PAUSE, LONGEST_PAUSE)
                try:
                    await self._create()
                    return
                except BrokerUnavailable as error:
                    logger.warning("consumer %s: %s", self.name, error)
                except MeshError as error:
                    logger.error("consumer %s: %s", self.name, error)
        finally:
            self._repair = None
            self._mended = self._loop.time()
            if self._open:
                self._restart()

    async def _create(self) -> None:
        """Make the consumer unless it exists. One that vanished goes on where nothing is missed."""
        made = await self._restore_stream()
        if self._stream_made not in (None, made):
            self._forget_stream()
        self._stream_made = made
        config = self._config
        if self._seen is not None:
            start = min(self._unacked, default=self._seen + 1)
            config = config | {"deliver_policy": "by_start_sequence", "opt_start_seq": start}
        info = await jetstream.ensure_consumer(self._connection, self._stream, config)
        self._seen = max(self._seen or 0, int(info["delivered"]["stream_seq"]))

    def _forget_stream(self) -> None:
        """The stream was lost with all that it held, and the new one counts from 1 again: settling what is in hand
        would settle another message there."""
        for delivery in self._held:
            delivery._reply = b""
        self._unacked.clear()
        self._released.clear()
        self._seen = 0
