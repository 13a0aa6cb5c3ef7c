"""One member of a group: it fetches, hands over as many as its handler may have, and commits what is done.

aiokafka keeps the membership; which partitions a member has is up to `assignor`. A partition that goes to another
member is handed over in good order: nothing more of it is delivered, what is in hand is waited for, the offset is
committed. Meanwhile all others go on.

Guarded by `benchmarks/deliver.py`.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import Any

import aiokafka.errors as errors
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.structs import OffsetAndMetadata

from brokers.kafka.assignor import Assignor, Claim
from brokers.kafka.committed import commit, committed
from brokers.kafka.connection import REQUEST_TIMEOUT, Connection, placed
from brokers.kafka.ending import stop
from brokers.kafka.lane import KafkaDelivery, Lane
from brokers.kafka.offsets import Progress, decode
from brokers.kafka.reading import Recalls, beginnings
from brokers.kafka.refusals import translated
from mesh.errors import BrokerError, BrokerUnavailable
from mesh.ports import OLDEST, Handler, Order, Start

logger = logging.getLogger("meshwire.kafka")

SESSION_TIMEOUT = 6.0
"""Seconds after which a member that is silent has lost its partitions: the least that servers allow by default."""
HEARTBEAT = 0.5
"""Seconds between heartbeats, by which a member also hears of those that come and go."""
COMMIT_INTERVAL = 0.1
"""Seconds between commits: what a crash repeats."""
DRAIN_LIMIT = 20.0
"""Seconds for what is in hand of a partition that goes to another member; what is not settled then comes to that one
too."""
WINDOW = 100_000
"""Offsets of a partition that may lie between the first message that is not done and the last one that was taken. At
more than that nothing is fetched until the first one is done."""
BATCH = 500
"""Messages that are taken at once."""
MOST_READY = 1000
"""Messages that wait for a free place, at which no more are taken."""
MOST_OPEN = 1000
"""Messages that are taken and not done, at which no more are taken while they become fewer at a good pace. Keys would
else queue up here faster than they are handled. Where they hardly move, some keys are blocked, and others looked for.
"""
GOOD_PACE, PACE_INTERVAL = 20, 0.02
"""At least so many done in so many seconds."""
PAUSE_NOTICE = 0.2
"""Seconds of pause after which a member tells the others that it takes nothing."""
USELESS_LIMIT = 2.0
"""Seconds for which all that was handed over came back without an attempt, before others are to have it."""
BREAK = 30.0
"""Seconds for which this member takes nothing then, while another is there."""
POLL = 1000
"""Milliseconds."""
FIRST_PAUSE, LAST_PAUSE = 0.1, 2.0
"""Seconds between attempts to mend something."""
FOUND_ATTEMPTS = 20
_FOR_EVER = 2**31 - 1


class KafkaSubscription(ConsumerRebalanceListener):  # type: ignore[misc]
    """See the `Subscription` port; it is also what the lanes are offered to. Without a `group` it has all partitions,
    and commits nothing."""

    def __init__(
        self,
        connection: Connection,
        handler: Handler,
        concurrency: int,
        *,
        kafka_topic: str,
        topic: str,
        group: str | None,
        order: Order,
        recalls: Recalls,
        restore_topic: Callable[[], Coroutine[Any, Any, int]],
        on_closed: Callable[[KafkaSubscription], None],
    ) -> None:
        self._connection = connection
        self._handler = handler
        self._concurrency = concurrency
        self._free = concurrency
        self._kafka_topic = kafka_topic
        self._topic = topic
        self._group = group
        self._order = order
        self._recalls = recalls
        self._restore_topic = restore_topic
        self._on_closed = on_closed
        self._loop = asyncio.get_running_loop()
        self._assignor = Assignor(order, self._claim)
        self._consumer: AIOKafkaConsumer = connection.consumer(**({} if group is None else self._membership(group)))
        self._owned: set[TopicPartition] = set()
        self._lanes: dict[TopicPartition, Lane] = {}
        self._dirty: set[Lane] = set()
        self._is_dirty = asyncio.Event()
        self._committing = asyncio.Lock()
        self._joining = True
        self._joined: asyncio.Future[None] = self._loop.create_future()
        self._takes = concurrency > 0
        self._useless_since = 0.0
        self._ready: deque[KafkaDelivery] = deque()
        self._handing_over = False
        self._room = asyncio.Event()
        self._open = True
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended: asyncio.Task[None] | None = None

    def _membership(self, group: str) -> dict[str, Any]:
        return {
            "group_id": group,
            "partition_assignment_strategy": (self._assignor,),
            "session_timeout_ms": int(SESSION_TIMEOUT * 1000),
            "heartbeat_interval_ms": int(HEARTBEAT * 1000),
            "rebalance_timeout_ms": int(2 * SESSION_TIMEOUT * 1000),
            "max_poll_interval_ms": _FOR_EVER,  # a handler takes as long as it takes
        }

    # Beginning

    async def start(self, partitions: int, start: Start) -> None:
        """Found the group, unless it is there, and join it. Raises `BrokerError`, `BrokerUnavailable`."""
        try:
            if self._group is None:
                await self._assign(placed(self._kafka_topic, range(partitions)), start)
            else:
                await self._join(placed(self._kafka_topic, range(partitions)), start)
        except BaseException:
            self.cut()
            await self.left()
            raise
        self._check_room()
        self._own(self._fetch(), "kafka fetch")

    async def _assign(self, partitions: list[TopicPartition], start: Start) -> None:
        consumer = self._consumer
        await self._connection.within(consumer.start())
        consumer.assign(partitions)
        begin = await self._connection.within(beginnings(consumer, partitions, start))
        for partition in partitions:
            self._add_lane(partition, Progress(begin[partition]))
            consumer.seek(partition, begin[partition])

    async def _join(self, partitions: list[TopicPartition], start: Start) -> None:
        consumer = self._consumer
        await self._connection.within(consumer.start())
        await self._found(partitions, start)
        consumer.subscribe([self._kafka_topic], listener=self)
        self._own(self._watch_joining(), "kafka join")
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT):
                await asyncio.shield(self._joined)
        except TimeoutError:  # a member that died holds all others up for as long as its session lasts
            logger.info("the group %s takes its time to let a member in", self._group)
        except errors.InconsistentGroupProtocolError:
            raise BrokerError(
                f"the group {self._group} has members with another order than '{self._order.value}'; "
                "they have to end first"
            ) from None
        except errors.KafkaError as error:
            raise translated(error) from error
        self._own(self._keep_committing(), "kafka commits")

    async def _watch_joining(self) -> None:
        """What keeps a member out for good, aiokafka tells those who wait for records."""
        try:
            await self._consumer._subscription.wait_for_assignment()
        except errors.KafkaError as error:
            if not self._joined.done():
                self._joined.set_exception(error)
                self._joined.exception()  # who waits may be gone

    async def _found(self, partitions: list[TopicPartition], start: Start) -> None:
        """Place the group where it has no place yet, while it has no members: from the first declaration on it misses
        nothing. None but members can do it once there are some; they have done it before they joined."""
        coordinator = self._consumer._coordinator
        for _ in range(FOUND_ATTEMPTS):
            stored = await self._connection.within(committed(coordinator, partitions))
            missing = [partition for partition in partitions if partition not in stored]
            if not missing:
                return
            # partitions that came later than the group are as old as whatever they hold
            begin = await self._connection.within(beginnings(self._consumer, missing, OLDEST if stored else start))
            places = {partition: OffsetAndMetadata(offset, "") for partition, offset in begin.items()}
            try:
                await self._connection.within(commit(coordinator, places))
            except BrokerUnavailable as error:
                if not isinstance(error.__cause__, errors.CommitFailedError):
                    raise
            else:
                return
            await asyncio.sleep(FIRST_PAUSE)
        raise BrokerUnavailable(f"the group {self._group} has members, and no place in {self._kafka_topic}")

    # Which partitions it has

    def _claim(self) -> Claim:
        owned = [(partition.topic, partition.partition) for partition in self._owned]
        return Claim(generation=self._consumer._coordinator.generation, owned=owned, takes=self._takes)

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """aiokafka takes all at each change; what is claimed comes back."""
        self._joining = True

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        self._joining = False
        if not self._open:
            return
        consumer = self._consumer
        self._owned = set(assigned)
        for partition in self._lanes.keys() - self._owned:
            self._lose(partition)
        for partition, lane in self._lanes.items():
            consumer.seek(partition, lane.progress.next)
            if lane.full or lane.leaving:
                consumer.pause(partition)
        if new := self._owned - self._lanes.keys():
            consumer.pause(*new)
            self._own(self._place(new), "kafka place")
        if released := {one for one in self._assignor.released & self._owned if not self._is_leaving(one)}:
            self._own(self._hand_over_partitions(released), "kafka hand over")
        if not self._joined.done():
            self._joined.set_result(None)

    def _is_leaving(self, partition: TopicPartition) -> bool:
        lane = self._lanes.get(partition)
        return lane is not None and lane.leaving

    def _lose(self, partition: TopicPartition) -> None:
        """It is no longer ours, or we let it go."""
        lane = self._lanes.pop(partition)
        self._owned.discard(partition)
        self._dirty.discard(lane)
        self._withdraw(lane)
        self._free += lane.void()
        self._hand_over_ready()

    async def _place(self, new: set[TopicPartition]) -> None:
        """Go on where the last one who had these has come to."""
        for pause in _pauses():
            try:
                coordinator = self._consumer._coordinator
                stored = await self._connection.within(committed(coordinator, new))
                if missing := [partition for partition in new if partition not in stored]:
                    begin = await self._connection.within(beginnings(self._consumer, missing, OLDEST))
                    stored |= {partition: OffsetAndMetadata(offset, "") for partition, offset in begin.items()}
                break
            except BrokerError as error:
                logger.warning("the group %s: where to begin is not known yet: %s", self._group, error)
            await asyncio.sleep(pause)
        for partition in new & self._consumer.assignment() & self._owned - self._lanes.keys():
            low, text = stored[partition]
            done, attempts = decode(low, text)
            lane = self._add_lane(partition, Progress(low, done), attempts)
            self._consumer.seek(partition, lane.progress.next)
            self._consumer.resume(partition)

    def _add_lane(self, partition: TopicPartition, progress: Progress, attempts: Any = None) -> Lane:
        lane = Lane(partition, self._topic, self._order, self, progress, attempts)
        self._lanes[partition] = lane
        return lane

    async def _hand_over_partitions(self, partitions: set[TopicPartition]) -> None:
        for partition in partitions - self._lanes.keys():
            self._owned.discard(partition)
        lanes = [self._lanes[partition] for partition in partitions & self._lanes.keys()]
        for lane in lanes:
            lane.leave()
            self._withdraw(lane)
        self._consumer.pause(*partitions & self._consumer.assignment())
        deadline = self._loop.time() + DRAIN_LIMIT
        while True:
            late = self._loop.time() >= deadline
            ending = [lane for lane in lanes if late or lane.idle.is_set()]
            lanes = [lane for lane in lanes if lane not in ending]
            await self._commit_last(ending)
            for lane in ending:
                if self._lanes.get(lane.partition) is lane:
                    self._lose(lane.partition)
            self._consumer._coordinator.request_rejoin()
            lanes = [lane for lane in lanes if self._lanes.get(lane.partition) is lane]
            if not lanes:
                return
            waits = [self._loop.create_task(lane.idle.wait()) for lane in lanes]
            try:
                await asyncio.wait(waits, timeout=deadline - self._loop.time(), return_when=asyncio.FIRST_COMPLETED)
                await asyncio.sleep(COMMIT_INTERVAL)  # more may end with it
            finally:
                for wait in waits:
                    wait.cancel()

    # Committing

    def changed(self, lane: Lane) -> None:
        if lane.full and lane.progress.window < WINDOW // 2:
            lane.full = False
            if lane.partition in self._consumer.assignment() and not lane.leaving:
                self._consumer.resume(lane.partition)
        if self._group is not None and lane not in self._dirty:
            self._dirty.add(lane)
            self._is_dirty.set()

    async def _keep_committing(self) -> None:
        while True:
            await self._is_dirty.wait()
            await asyncio.sleep(COMMIT_INTERVAL)
            if not self._joining:
                self._is_dirty.clear()
                try:
                    await self._commit(list(self._dirty))
                except BrokerError as error:
                    logger.info("the group %s: offsets are not committed yet: %s", self._group, error)
                    await asyncio.sleep(FIRST_PAUSE)
                if self._dirty:
                    self._is_dirty.set()

    async def _commit(self, lanes: Iterable[Lane], *, whole: bool = False) -> None:
        """Raises `BrokerError`, and then they are to be committed still."""
        async with self._committing:
            places = {}
            for lane in lanes:
                low, text, tells_all = lane.backed_up(whole=whole)
                places[lane.partition] = OffsetAndMetadata(low, text)
                if tells_all:
                    self._dirty.discard(lane)
            try:
                if places:
                    await self._connection.within(commit(self._consumer._coordinator, places))
            except BrokerError:
                self._dirty.update(lane for lane in lanes if self._lanes.get(lane.partition) is lane)
                raise

    async def _commit_last(self, lanes: list[Lane]) -> None:
        """Returns when these are committed, or lost, or when it takes too long: then what was done is repeated."""
        deadline = self._loop.time() + REQUEST_TIMEOUT
        for pause in _pauses():
            try:
                await self._commit([lane for lane in lanes if self._lanes.get(lane.partition) is lane], whole=True)
            except BrokerError as error:
                logger.info("the group %s: offsets are not committed yet: %s", self._group, error)
            else:
                return
            if self._loop.time() > deadline:
                return
            await asyncio.sleep(pause)

    # Fetching

    async def _fetch(self) -> None:
        consumer = self._consumer
        pauses = _pauses()
        while True:
            await self._room.wait()
            try:
                fetched = await consumer.getmany(timeout_ms=POLL, max_records=BATCH)
            except errors.OffsetOutOfRangeError as error:
                await self._begin_anew(error.args[0])
                continue
            except errors.NoOffsetForPartitionError:
                continue  # a new one, which is being placed
            except errors.KafkaError as error:
                logger.warning("%s: %s", self._kafka_topic, translated(error))
                await asyncio.sleep(next(pauses))
                continue
            if fetched:
                pauses = _pauses()
                for partition, records in fetched.items():
                    lane = self._lanes.get(partition)
                    if lane is not None and not lane.leaving:
                        lane.take(records)
                        if lane.progress.window >= WINDOW and not lane.full:
                            lane.full = True
                            consumer.pause(partition)
                            logger.warning(
                                "%s, partition %d: %d messages wait behind the one at offset %d; no more are fetched",
                                *(partition.topic, partition.partition, WINDOW, lane.progress.low),
                            )
                self._check_room()
                await self._catch_up()
                await asyncio.sleep(0)  # getmany does not wait while there is something
            elif consumer._client.cluster.partitions_for_topic(self._kafka_topic) is None:
                await self._mend_topic()

    async def _catch_up(self) -> None:
        """Returns when few messages are open, or when those that are hardly become fewer."""
        while (is_open := self._count_open()) >= MOST_OPEN:
            await asyncio.sleep(PACE_INTERVAL)
            if self._count_open() > is_open - GOOD_PACE:
                return

    def _count_open(self) -> int:
        return sum(lane.open for lane in self._lanes.values())

    async def _mend_topic(self) -> None:
        """Somebody deleted it, or its servers are away."""
        try:
            await self._restore_topic()
            await self._connection.within(self._consumer._client.force_metadata_update())
        except BrokerError as error:
            logger.warning("%s: %s", self._kafka_topic, error)
            await asyncio.sleep(LAST_PAUSE)

    async def _begin_anew(self, partitions: Iterable[TopicPartition]) -> None:
        """What a lane would fetch next is stored no more, or not any more: begin with the oldest."""
        mine = [partition for partition in partitions if partition in self._lanes]
        try:
            begin = await self._connection.within(beginnings(self._consumer, mine, OLDEST))
        except BrokerError as error:
            logger.warning("%s: %s", self._kafka_topic, error)
            await asyncio.sleep(LAST_PAUSE)
            return
        for partition in mine:
            lane = self._lanes.get(partition)
            if lane is None or partition not in self._consumer.assignment():
                continue
            logger.warning(
                "%s, partition %d: there is nothing at offset %d any more; going on with the oldest message, at %d",
                *(partition.topic, partition.partition, lane.progress.next, begin[partition]),
            )
            owned = self._owned
            self._lose(partition)
            owned.add(partition)
            fresh = self._add_lane(partition, Progress(begin[partition]))
            self._consumer.seek(partition, begin[partition])
            self.changed(fresh)

    def recall(self, lane: Lane, offsets: list[int], then: Callable[[list[Any]], None]) -> None:
        self._recalls.ask(lane.partition, offsets, then, lambda: not lane.leaving)

    # Handing over

    def set_concurrency(self, concurrency: int) -> None:
        self._free += concurrency - self._concurrency
        self._concurrency = concurrency
        if concurrency > 0 and not self._takes:
            self._say(takes=True)
        elif not concurrency and self._takes:
            self._loop.call_later(PAUSE_NOTICE, self._say_paused)
        self._hand_over_ready()

    def _say_paused(self) -> None:
        if not self._concurrency and self._takes:
            self._say(takes=False)

    def _note_release(self) -> None:
        """A member whose app is of no use would keep from all others what is for its partitions."""
        now = self._loop.time()
        if not self._useless_since:
            self._useless_since = now
        elif now - self._useless_since > USELESS_LIMIT and self._takes:
            logger.info("the group %s: nothing was taken for %d s; others may try", self._group, USELESS_LIMIT)
            self._say(takes=False)
            self._loop.call_later(BREAK, self._end_break)

    def _end_break(self) -> None:
        self._useless_since = 0.0
        if self._concurrency and not self._takes:
            self._say(takes=True)

    def _say(self, *, takes: bool) -> None:
        self._takes = takes
        if self._group is not None and self._open:
            self._consumer._coordinator.request_rejoin()

    def offer(self, delivery: KafkaDelivery) -> None:
        if self._free > 0 and not self._ready:
            self._hand_over(delivery)
        else:
            self._ready.append(delivery)

    def _hand_over(self, delivery: KafkaDelivery) -> None:
        self._free -= 1
        delivery.lane.hand_over(delivery)
        self._handler(delivery)

    def freed(self, *, released: bool = False) -> None:
        self._free += 1
        if released:
            self._note_release()
        else:
            self._useless_since = 0.0
        if self._ready:
            self._hand_over_ready()
        elif not self._room.is_set():
            self._check_room()

    def _hand_over_ready(self) -> None:
        """One after the other: a handler that settles at once does not come back in, as deep as the queue is long."""
        if self._handing_over:
            return
        self._handing_over = True
        try:
            while self._ready and self._free > 0 and self._open:
                self._hand_over(self._ready.popleft())
        finally:
            self._handing_over = False
        self._check_room()

    def _check_room(self) -> None:
        if self._open and self._free > 0 and len(self._ready) < MOST_READY:
            self._room.set()
        else:
            self._room.clear()

    def _withdraw(self, lane: Lane) -> None:
        self._ready = deque(delivery for delivery in self._ready if delivery.lane is not lane)

    # The end

    async def close(self) -> None:
        self._stop_taking()
        try:
            for lane in list(self._lanes.values()):
                await lane.idle.wait()
        finally:
            self.cut()
            await asyncio.shield(self.left())

    def _stop_taking(self) -> None:
        self._open = False
        self._room.clear()
        self._ready.clear()
        for lane in self._lanes.values():
            lane.leave()

    def cut(self) -> None:
        """Let go at once, whatever is in hand."""
        if self._ended is None:
            self._stop_taking()
            self._ended = self._loop.create_task(self._end(), name="kafka end")
            self._on_closed(self)

    async def left(self) -> None:
        """Returns when the other members know, after `cut`."""
        if self._ended is not None:
            await self._ended

    async def _end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._group is not None and self._lanes and self._connection.problem is None:
            await self._commit_last(list(self._lanes.values()))
        for lane in self._lanes.values():
            lane.void()
        await stop(self._consumer)

    def _own(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = self._loop.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("%s: %s failed", self._kafka_topic, task.get_name(), exc_info=error)


def _pauses() -> Iterator[float]:
    return itertools.chain((FIRST_PAUSE, 0.2, 0.5, 1.0), itertools.repeat(LAST_PAUSE))
