"""One ordered lane while this member works it: its consumer is read in order, each key's messages one after the other.

The consumer is the server's memory of what is done. Whoever gains the lane sets it back to the oldest message that is
not, so that no earlier one can come after a later one. Which message comes next is known by the consumer's own numbers:
when one is missing somebody else has taken it (a member that sleeps still has open pulls), and the consumer is made
anew, which ends those pulls. Guarded by `benchmarks/order.py`.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Container, Coroutine, Hashable
from typing import Any

from brokers.key_order import KeyOrder
from brokers.nats import codec, jetstream, ordered_progress
from brokers.nats.connection import Connection
from brokers.nats.consumer import ACK, HEARTBEAT, NatsMessage
from brokers.nats.ordered_progress import Arrival, Progress, Work
from brokers.nats.ordered_recall import recall
from mesh import addressing
from mesh.errors import BrokerUnavailable, MeshError
from mesh.fencing import FenceToken
from mesh.ports import Clock
from mesh.ports.tables import Conflict, Table

logger = logging.getLogger("meshwire.nats")

PREFETCH = 64
"""Messages that a lane reads ahead, whatever its group is doing."""
MAX_BATCH = 256
"""Messages that one pull asks for."""
MAX_ROUNDS = 3
"""Times that what a member hands over may come back without an attempt, before another member is to try."""
MAX_BYTES_PER_PULL = 4 * 1024 * 1024
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
"""Seconds between attempts to get at a consumer, or at a message."""

UNKEYED = addressing.UNKEYED.encode()

_NANOSECONDS = 1_000_000_000

_numbers = itertools.count(1)


class OrderedDelivery(NatsMessage):
    """One attempt at a message of a lane; see the `Delivery` port."""

    __slots__ = ("_failures", "_lane", "_settled", "_stamp", "_subject", "handed_over", "queue", "reply", "sequence")

    def __init__(
        self,
        lane: Lane,
        queue: Hashable,
        sequence: int,
        stamp: bytes,
        subject: bytes,
        reply: bytes,
        block: bytes,
        payload: bytes,
    ) -> None:
        """`queue` is shared by those that wait for each other; `stamp` says when it was stored, in nanoseconds."""
        super().__init__(block, payload)
        self._lane = lane
        self._subject = subject
        self._stamp = stamp
        self._failures = 0
        self._settled = False
        self.queue = queue
        self.sequence = sequence
        self.reply = reply
        self.handed_over = False

    @property
    def position(self) -> str:
        return str(self.sequence)

    @property
    def topic(self) -> str:
        return self._lane.topic_of(self._subject)

    @property
    def time(self) -> float:
        return int(self._stamp) / _NANOSECONDS

    @property
    def attempt(self) -> int:
        return self._failures + 1

    @property
    def size(self) -> int:
        return len(self._block) + len(self.payload or b"")

    def follows(self, failures: int) -> None:
        """So many attempts have failed."""
        self._failures = failures

    def again(self) -> OrderedDelivery:
        """The same message, to be settled anew."""
        return OrderedDelivery(
            self._lane,
            self.queue,
            self.sequence,
            self._stamp,
            self._subject,
            self.reply,
            self._block,
            self.payload or b"",
        )

    def ack(self) -> None:
        if not self._settled:
            self._settled = True
            self._lane.handled(self)

    def retry(self, delay: float) -> None:
        if not self._settled:
            self._settled = True
            self._lane.failed(self, delay)

    def release(self) -> None:
        if not self._settled:
            self._settled = True
            self._lane.released(self)


class Surroundings:
    """What the lanes of one member of a group share."""

    def __init__(
        self,
        connection: Connection,
        stream: str,
        table: Table | None,
        clock: Clock,
        *,
        restore_stream: Callable[[], Awaitable[str]],
        topic_of: Callable[[bytes], str],
        offer: Callable[[OrderedDelivery], None],
        settled: Callable[[OrderedDelivery], None],
        withdraw: Callable[[Container[OrderedDelivery]], None],
        concurrency: int,
        by_key: bool,
        stuck: Callable[[], None],
    ) -> None:
        """`topic_of` tells the topic of a subject. `offer` is given what may be handled now, and waits for a place;
        `settled` frees one. `withdraw` takes back what was offered and is not handed over. `stuck` is called when all
        that was handed over came back, `MAX_ROUNDS` times. Without `table` nothing is recorded."""
        self.connection = connection
        self.stream = stream
        self.table = table
        self.clock = clock
        self.restore_stream = restore_stream
        self.topic_of = topic_of
        self.offer = offer
        self.settled = settled
        self.withdraw = withdraw
        self.concurrency = concurrency
        self.by_key = by_key
        self.offered = 0
        """Messages of all lanes that are in hand, or could be."""
        self.hungry: set[Lane] = set()
        """Lanes that would read on if the group had less to do."""
        self._stuck = stuck
        self._released = 0  # in a row, with nothing handled between them

    def handled(self) -> None:
        self._released = 0

    def released(self) -> None:
        """A message came back from the app's side, without an attempt."""
        self._released += 1
        if self._released >= MAX_ROUNDS * max(1, min(self.concurrency, self.offered)):
            self._released = 0
            self._stuck()

    def feed(self) -> None:
        if self.offered < self.concurrency:
            hungry, self.hungry = self.hungry, set()
            for lane in hungry:
                lane.pull()


class Lane:
    """One tenure: from `gained` to `revoke` or `lost`.

    `begin` tells the stream, by when it was made, and the first message of the group: for a consumer that vanishes
    before anything is on record. `held` is asked at the last moment whether the tenure still lasts. `lost_stream` is
    called when the stream is not the one that it was: everything begins anew, with another object.
    """

    def __init__(
        self,
        around: Surroundings,
        config: dict[str, Any],
        token: FenceToken | None,
        *,
        begin: tuple[str, int],
        held: Callable[[], bool],
        lost_stream: Callable[[Lane], None],
    ) -> None:
        self._around = around
        self.topic_of = around.topic_of
        self._connection = around.connection
        self._config = config
        self.name: str = config["durable_name"]
        self._token = token
        self._begin_stream, self._begin = begin
        self._is_held = held
        self._lost_stream = lost_stream
        self._loop = asyncio.get_running_loop()
        self._order: KeyOrder[OrderedDelivery] = KeyOrder(self._offer, self._recall)
        self._work: Work | None = None
        self._offered: dict[OrderedDelivery, None] = {}
        self._timers: dict[int, Any] = {}  # of messages that wait for their next attempt
        self._tasks: set[asyncio.Task[None]] = set()  # recalls, and the record that is being written
        self._opening: asyncio.Task[None] | None = None
        self._writing: asyncio.Task[None] | None = None
        self._inbox = ""
        self._stop_listening: Callable[[], None] = _nothing
        self._delivered = 0
        self._requested = 0
        self._heard = 0.0
        self._pull_subject = f"$JS.API.CONSUMER.MSG.NEXT.{around.stream}.{self.name}".encode()
        self._ack_prefix = b""
        self._pause = 0.0
        self._opened = 0.0
        self._open = True
        self._void = False
        self._idle: asyncio.Future[None] | None = None

    # The tenure

    def start(self) -> None:
        self.reopen("")

    @property
    def held(self) -> bool:
        """Judged at this moment: also right when this process wakes up after a pause."""
        return self._open and self._is_held()

    async def revoke(self) -> None:
        """Take no more; return when what is in hand is settled and it is recorded what is done."""
        self._end()
        await self._close_tasks()
        await self.settled()
        if self._work is not None and self._work.changed and not self._void:
            await self._record()

    def lost(self) -> None:
        """Let go at once. What is in hand may still be acknowledged, which spares its repetition."""
        self._end()

    def void(self) -> None:
        """As `lost`; and what is in hand means nothing any more: its stream is gone."""
        self._void = True
        self._end()

    async def settled(self) -> None:
        """Returns when nothing is in hand."""
        if self._offered:
            self._idle = self._idle or self._loop.create_future()
            await asyncio.shield(self._idle)

    @property
    def in_hand(self) -> bool:
        return bool(self._offered)

    def _end(self) -> None:
        if not self._open:
            return
        self._open = False
        self._around.hungry.discard(self)
        self._stop_listening()
        self._stop_listening = _nothing
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        for task in (*self._tasks, self._opening):
            if task is not None and task is not self._writing:
                task.cancel()
        waiting = {delivery for delivery in self._offered if not delivery.handed_over}
        self._around.withdraw(waiting)
        for delivery in waiting:
            self._take_back(delivery)

    async def _close_tasks(self) -> None:
        await asyncio.gather(*self._tasks, *filter(None, [self._opening]), return_exceptions=True)

    # Getting at the consumer

    def reopen(self, reason: str) -> None:
        """Set the consumer back to the oldest message that is not done, and read on from there."""
        if not self._open or self._opening is not None:
            return
        if self._loop.time() - self._opened > 2 * LONGEST_PAUSE:
            self._pause = 0.0
        if reason:
            logger.warning("consumer %s: %s; setting it back", self.name, reason)
        self._stop_listening()  # also ends the open pulls: the server keeps none that nobody listens for
        self._stop_listening = _nothing
        self._opening = self._loop.create_task(self._reopen(), name=f"set back {self.name}")

    async def _reopen(self) -> None:
        try:
            while self.held:
                await asyncio.sleep(self._pause)
                self._pause = min(2 * self._pause or FIRST_PAUSE, LONGEST_PAUSE)
                try:
                    await self._set_back()
                    break
                except Conflict:
                    logger.warning("consumer %s: another member has it now", self.name)
                except BrokerUnavailable as error:
                    logger.debug("consumer %s: %s", self.name, error)
                except MeshError as error:
                    logger.error("consumer %s: %s", self.name, error)
        finally:
            self._opening = None
        if not self.held:
            return
        self._inbox = f"{self._connection.inbox}.o.{next(_numbers)}"
        self._stop_listening = self._connection.listen(self._inbox, self._on_message)
        self._requested = 0
        self._delivered = 0
        self._opened = self._heard = self._loop.time()
        self.pull()

    async def _set_back(self) -> None:
        """Raises `MeshError`; `Conflict` when the tenure has ended."""
        made = await self._around.restore_stream()
        if self._work is not None and self._work.stream != made:
            self._lost_stream(self)
            return
        earlier = await self._earlier() if self._work is None else None
        answer = await self._reset()
        if self._work is None:
            if answer is None and (earlier is None or earlier.stream != made):
                # Nobody has worked it. Or the stream was lost, and this is a new one: it is read from its beginning.
                await self._create(self._begin if made == self._begin_stream else 1)
                answer = await self._reset()
            floor = 0 if answer is None else int(answer["reset_seq"]) - 1
            self._work = Work(made, floor, earlier)
            # Before anything is handed over: this fails when another owns the lane. And what was recorded once is not
            # begun at another place, should the consumer vanish.
            await self._write(self._work.progress())
        if answer is None:
            await self._create(self._work.first)
        elif answer["num_waiting"]:
            await self._make_anew()

    async def _reset(self) -> dict[str, Any] | None:
        """From now on the consumer delivers what follows its floor. `None` when there is none: nats-server 2.15 would
        not answer then."""
        if await jetstream.update_consumer(self._connection, self._around.stream, self._config) is None:
            return None
        return await jetstream.call(self._connection, f"CONSUMER.RESET.{self._around.stream}.{self.name}")

    async def _earlier(self) -> Progress | None:
        if self._around.table is None:
            return None
        entry = await self._around.table.get(ordered_progress.progress_key(self.name))
        return None if entry is None else ordered_progress.read(entry)

    async def _make_anew(self) -> None:
        """Somebody has open pulls on the consumer, and would be sent what is this member's. They end with it."""
        if self._work is not None and self.held:
            await self._write(self._work.progress())  # with all that is needed to make it again
            await jetstream.delete_consumer(self._connection, self._around.stream, self.name)
            await self._create(self._work.first)

    async def _create(self, first: int) -> None:
        config = self._config | {"deliver_policy": "by_start_sequence", "opt_start_seq": max(1, first)}
        config.pop("opt_start_time", None)
        await jetstream.ensure_consumer(self._connection, self._around.stream, config)

    # Taking messages

    def pull(self) -> None:
        """Ask for as much as there is room for."""
        around = self._around
        if not self._open or self._opening is not None or not around.concurrency:
            return
        room = PREFETCH - len(self._offered) - self._order.waiting
        if around.by_key:
            room = max(room, 2 * around.concurrency - around.offered)
        room = min(room, MAX_BATCH) - self._requested
        if room <= 0:
            if not self._requested:
                around.hungry.add(self)
            return
        if self._requested and room < PREFETCH // 2:
            return
        self._requested += room
        self._connection.send(
            self._pull_subject,
            jetstream.pull_request(self._connection, room, MAX_BYTES_PER_PULL, HEARTBEAT),
            self._inbox.encode(),
        )

    def _on_message(self, subject: bytes, reply: bytes, block: bytes, payload: bytes) -> None:
        work = self._work
        if work is None or self._opening is not None or not self._open:
            return  # of a pull that has ended
        self._heard = self._loop.time()
        if not reply.startswith(b"$JS.ACK."):
            self._on_status(block)
            return
        # $JS.ACK[.<domain>.<account>].<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<time>.<pending>
        tokens = reply.split(b".")
        start = 5 if len(tokens) < 11 else 7
        if int(tokens[start + 1]) != self._delivered + 1:
            self.reopen("others take its messages")
            return
        self._delivered += 1
        self._requested -= 1
        sequence = int(tokens[start])
        arrival = work.take(sequence)
        if arrival is Arrival.NEW:
            if not self._ack_prefix:
                self._ack_prefix = b".".join(tokens[: start - 1])
            key: Hashable = None
            if self._around.by_key:
                partition = subject.rpartition(b".")[2]
                key = sequence if partition == UNKEYED else codec.key(block, payload)
                if key is None:
                    key = partition  # bytes, and so no key's equal
            delivery = OrderedDelivery(self, key, sequence, tokens[start + 2], subject, reply, block, payload)
            self._order.add(key, delivery, sequence=sequence, size=len(block) + len(payload))
        elif arrival is Arrival.DONE:
            self._connection.send(reply, ACK)
        self.pull()

    def _on_status(self, block: bytes) -> None:
        status = block[9:12]
        headers = codec.parse_block(block)
        if status == b"100":
            last = headers.get("nats-last-consumer")
            if last is not None and last.isdigit() and int(last) != self._delivered:
                self.reopen("others take its messages")
            return
        pending = headers.get("nats-pending-messages")
        if pending is not None and pending.isdigit():
            self._requested = max(0, self._requested - int(pending))
            self.pull()
        elif status == b"409" and b"Server Shutdown" in block:
            return  # the connection is about to end; the next one starts anew
        else:
            self.reopen(block.split(b"\r\n", 1)[0].decode("ascii", "replace"))

    def tick(self, now: float, stood_still: bool) -> None:
        """To be called each second."""
        if not self._open:
            return
        if stood_still:
            self._heard = now  # what the server sent meanwhile is yet to be read
        if self._connection.problem is not None or self._opening is not None:
            return
        if self._requested and now - self._heard > 2 * HEARTBEAT:
            self.reopen("no heartbeat")
            return
        self.pull()
        if self._work is not None and self._work.is_held_up() and self._writing is None:
            self._writing = self._run(self._record(), f"record of {self.name}")

    # Handing messages over

    def _offer(self, delivery: OrderedDelivery) -> bool:
        if not self._is_held():
            return True  # this process wakes up after a pause: `lost` is about to be called
        work = self._work
        if work is not None and work.attempts:
            delivery.follows(work.attempts.get(delivery.sequence, 0))
            if delivery.sequence in work.due:  # it failed where the lane was before
                self._wait(delivery, work.due[delivery.sequence] - self._around.clock.now())
                return True
        self._offered[delivery] = None
        self._around.offered += 1
        self._around.offer(delivery)
        return True

    def _take_back(self, delivery: OrderedDelivery) -> None:
        del self._offered[delivery]
        self._around.offered -= 1
        if not self._offered and self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    def handled(self, delivery: OrderedDelivery) -> None:
        self._take_back(delivery)
        self._around.handled()
        if not self._void:
            # Also when the tenure has ended: it was handled, and need not be again.
            self._connection.send(delivery.reply, ACK)
            if self._work is not None:
                self._work.finish(delivery.sequence)
        self._around.settled(delivery)
        if self._open:
            self._order.done(delivery.queue)
            self.pull()
            if self._around.hungry:
                self._around.feed()

    def failed(self, delivery: OrderedDelivery, delay: float) -> None:
        if self._work is not None and not self._void:
            self._work.fail(delivery.sequence, self._around.clock.now() + delay)
        self._put_off(delivery, delay)

    def released(self, delivery: OrderedDelivery) -> None:
        if delivery.handed_over:
            self._around.released()
        self._put_off(delivery, 0.0)

    def _put_off(self, delivery: OrderedDelivery, delay: float) -> None:
        """Its key stays blocked. Its place is another's meanwhile."""
        self._take_back(delivery)
        self._around.settled(delivery)
        if self._open:
            self._wait(delivery.again(), delay)
            if self._around.hungry:
                self._around.feed()

    def _wait(self, delivery: OrderedDelivery, delay: float) -> None:
        self._timers[delivery.sequence] = self._around.clock.call_later(
            max(0.0, delay), lambda: self._offer_now(delivery)
        )

    def _offer_now(self, delivery: OrderedDelivery) -> None:
        del self._timers[delivery.sequence]
        if self._work is not None:
            self._work.due.pop(delivery.sequence, None)
        self._offer(delivery)

    # Messages of which only the sequence was kept

    def _recall(self, key: Hashable, sequences: list[int]) -> None:
        self._run(self._fetch(key, sequences), f"recall of {self.name}")

    async def _fetch(self, key: Hashable, sequences: list[int]) -> None:
        found = await asyncio.gather(*(self._fetch_one(key, sequence) for sequence in sequences))
        if self._open:
            self._order.recalled(key, [(delivery, delivery.size) for delivery in found if delivery is not None])

    async def _fetch_one(self, key: Hashable, sequence: int) -> OrderedDelivery | None:
        pause = FIRST_PAUSE
        while True:
            try:
                stored = await recall(self._connection, self._around.stream, sequence)
                break
            except MeshError as error:
                logger.debug("consumer %s: message %d: %s", self.name, sequence, error)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        stamp = b"0" if stored is None else b"%d" % (stored.time * _NANOSECONDS)
        reply = b"%b.1.%d.1.%b.0" % (self._ack_prefix, sequence, stamp)
        if stored is not None:
            subject = stored.path.encode()
            return OrderedDelivery(self, key, sequence, stamp, subject, reply, stored.block, stored.payload)
        self._connection.send(reply, ACK)
        if self._work is not None:
            self._work.finish(sequence)
        return None

    # The record

    async def _record(self) -> None:
        """Store what is done, unless another does already. Never raises."""
        work = self._work
        if work is None:
            return
        try:
            await self._write(work.progress())
        except MeshError as error:  # then more will be repeated
            work.unwritten()
            logger.debug("consumer %s: its progress is not recorded: %s", self.name, error)
        finally:
            self._writing = None

    async def _write(self, progress: Progress) -> None:
        if self._around.table is None or self._token is None:
            return
        put = ordered_progress.record(ordered_progress.progress_key(self.name), progress)
        await self._around.table.commit([put], [self._token.check()])

    def _run(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task: asyncio.Task[None] = self._loop.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _nothing() -> None:
    pass
