"""What a process has on Kafka for calls: its presence, its places, a reader and an outbox (docs/adr/0012-kafka.md)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from typing import TypeAlias

import msgspec
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.structs import RecordMetadata

from brokers.kafka import presence
from brokers.kafka.connection import Connection, placed
from brokers.kafka.ending import stop
from brokers.kafka.outbox import OnFailed, OnStored, Outbox
from brokers.kafka.presence import Beat, Offer, Place, Presence
from brokers.kafka.reader import Reader
from mesh import addressing
from mesh.errors import BrokerError, BrokerUnavailable
from mesh.ids import random_id
from mesh.ports import NoResponder, Peer

logger = logging.getLogger("meshwire.kafka")

PARTITIONS = 16
"""Of the topics of calls and of answers. More instances than that share them."""
TOPIC = {"cleanup.policy": "delete", "message.timestamp.type": "LogAppendTime", "segment.ms": "600000"}
CALLS_TOPIC = TOPIC | {"retention.ms": "3600000"}
PRESENCE_TOPIC = TOPIC | {"retention.ms": "1200000"}
LOOK_BACK = 2.5 * presence.LONGEST_EVERY
"""Seconds of the log of presence that are read at first, where the servers find offsets by time."""
LIMIT = 5.0
"""Seconds that reading up to a record that is stored may take."""
FAREWELL_LIMIT = 2.0
CLAIMS = 8
"""Places that are tried for one that nobody else has claimed at the same time."""
SCAN = 30.0
"""Seconds between looks for topics of callers whose presence we do not see."""
_LOG_APPEND_TIME = 1

Record: TypeAlias = "ConsumerRecord[bytes, bytes]"
OnRecord = Callable[[Record], None]


class Register:
    """The presence of one namespace, as far as it was read."""

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self.partition = TopicPartition(topic, 0)
        self.presence = Presence()
        self.loaded = False


class _Listening:
    """An app whose calls come here."""

    def __init__(self, app: str, verified: bool, on_record: OnRecord) -> None:
        self.app = app
        self.verified = verified
        self.on_record = on_record
        self.topics: set[str] = set()


class Station:
    """`open`, then anything, then `close`. `on_left` gets the id of an instance that has said farewell, and up to where
    it has read; `on_topic_lost` the name of a topic of ours that is gone."""

    def __init__(
        self,
        connection: Connection,
        me: Peer,
        *,
        prefix: str,
        beat: float,
        on_left: Callable[[str, dict[str, dict[int, int]]], None],
        on_topic_lost: Callable[[str], None],
        on_reply: OnRecord,
    ) -> None:
        self.id = random_id()
        """Of this process and no other: what was sent to its predecessor is not for it."""
        self.connection = connection
        self.me = me
        self.prefix = prefix
        self.beat = beat
        self.outbox = Outbox(connection)
        self.reader = Reader(connection, self._on_refused)
        self.replies_topic = addressing.kafka_replies_topic(prefix, me)
        self._on_left = on_left
        self._on_topic_lost = on_topic_lost
        self._on_reply = on_reply
        self._loop = asyncio.get_running_loop()
        self._asker: AIOKafkaConsumer | None = None
        self._registers: dict[str, Register] = {}
        self._opening_registers: dict[str, asyncio.Lock] = {}
        self._places: dict[str, Place] = {}
        self._claiming = asyncio.Lock()
        self._listening: dict[str, _Listening] = {}
        self._offers: tuple[Offer, ...] = ()
        self._calls: tuple[str, ...] = ()
        self._own: dict[str, tuple[int, dict[str, str]]] = {}
        self._missing: set[str] = set()
        self._broker_time = 0.0
        """What is to be added to the time of a record for that of our loop."""
        self._began = 0
        """When our first record was stored, in milliseconds of the servers; 0 when they do not say."""
        self._scan_due = 0.0
        self._stuck = False
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def home(self) -> Presence:
        return self._registers[self.me.namespace].presence

    @property
    def replies_partition(self) -> int:
        return self._places[presence.replies_place(self.me.app_id)].partition

    # coming and going

    async def open(self) -> None:
        """Returns when others can see us, and we can be answered. Raises `BrokerError`."""
        await self.outbox.start()
        await self.reader.start()
        self._asker = self.connection.consumer(retry_backoff_ms=10)  # it asks again for each new topic
        await self.connection.within(self._asker.start())
        topic = addressing.kafka_presence_topic(self.prefix, self.me.namespace)
        await self._ensure(topic, 1, PRESENCE_TOPIC)
        stored = await self._publish(topic, Beat(self.me.app_id, every=self.beat))
        if stored.timestamp_type == _LOG_APPEND_TIME:
            self._began = stored.timestamp
            self._broker_time = self._loop.time() - stored.timestamp / 1000
        await self._load(self.me.namespace, topic)
        await self._claim_replies()
        await self.announce()
        self._own_task(self._keep_up(), "kafka presence")

    async def close(self) -> None:
        """Say farewell, and up to where everything was read, so that callers know what we have not seen."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.reader.pause()
        await self.outbox.flush(FAREWELL_LIMIT)  # whoever reads the farewell looks for nothing behind it
        if self._registers:
            left: dict[str, dict[int, int]] = {}
            for partition, position in self.reader.positions.items():
                left.setdefault(partition.topic, {})[partition.partition] = position
            try:
                self._send_beat(self._topic(), Beat(self.me.app_id, every=self.beat, left=left))
            except BrokerUnavailable as error:
                logger.debug("no farewell: %s", error)
        await self.outbox.flush(FAREWELL_LIMIT)
        asker, self._asker = self._asker, None
        ends = [self.outbox.close(), self.reader.close()]
        await asyncio.gather(*ends, *([stop(asker)] if asker is not None else []))

    def _own_task(self, work: Coroutine[None, None, None], name: str) -> None:
        task = self._loop.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ensure(self, topic: str, partitions: int, configuration: dict[str, str]) -> int:
        self._own[topic] = (partitions, configuration)
        return await self.connection.topics.ensure(topic, partitions, configuration)

    # presence

    async def announce(self) -> None:
        """Say how things are, and return when it was read back: whoever looks from now on sees it.

        Raises `BrokerError`, `BrokerUnavailable`.
        """
        stored = await self._publish(self._topic(), self._state())
        try:
            await self._passed(TopicPartition(self._topic(), 0), stored.offset + 1)
        except BrokerUnavailable:
            self._stuck = True
            raise

    def _topic(self) -> str:
        return self._registers[self.me.namespace].topic

    def _state(self) -> Beat:
        return Beat(self.me.app_id, every=self.beat, places=self._places, serves=self._offers, calls=self._calls)

    async def _publish(self, topic: str, beat: Beat) -> RecordMetadata:
        done: asyncio.Future[RecordMetadata] = self._loop.create_future()

        def on_stored(stored: RecordMetadata) -> None:
            if not done.done():
                done.set_result(stored)

        def on_failed(error: BrokerError) -> None:
            if not done.done():
                done.set_exception(error)

        self._send_beat(topic, beat, on_stored, on_failed)
        return await done

    def _send_beat(
        self,
        topic: str,
        beat: Beat,
        on_stored: OnStored | None = None,
        on_failed: OnFailed | None = None,
    ) -> None:
        self.outbox.send(topic, 0, (), presence.encode(beat), on_stored, on_failed, key=self.id.encode())

    async def _passed(self, partition: TopicPartition, offset: int) -> None:
        try:
            async with asyncio.timeout(LIMIT):
                await self.reader.passed(partition, offset)
        except TimeoutError:
            raise BrokerUnavailable(f"Kafka does not let {partition.topic} be read in time") from None

    async def register(self, namespace: str) -> Register | None:
        """The presence of a namespace, read up to now when this is the first time. `None` when nobody ever was there.

        Raises `BrokerError`, `BrokerUnavailable`.
        """
        found = self._registers.get(namespace)
        if found is not None and found.loaded:
            return found
        async with self._opening_registers.setdefault(namespace, asyncio.Lock()):
            found = self._registers.get(namespace)
            if found is None:
                topic = addressing.kafka_presence_topic(self.prefix, namespace)
                if await self.connection.topics.partitions(topic) is None:
                    del self._opening_registers[namespace]
                    return None
                found = await self._load(namespace, topic)
            return found

    async def refresh(self, register: Register) -> None:
        """Returns when all was read that stood in the log at the call. Raises `BrokerError`, `BrokerUnavailable`."""
        end = await self._ends([register.partition])
        await self._passed(register.partition, end[register.partition])

    async def catch_up(self) -> None:
        """Returns when all answers were read that were there at the call. Raises `BrokerError`, `BrokerUnavailable`."""
        partition = TopicPartition(self.replies_topic, self.replies_partition)
        end = await self._ends([partition])
        await self._passed(partition, end[partition])

    async def _load(self, namespace: str, topic: str) -> Register:
        register = Register(topic)
        start = 0
        if self._began and self.connection.offered.offsets_by_time:
            since = int(self._began - LOOK_BACK * 1000)
            assert self._asker is not None  # noqa: S101 - for mypy
            found = await self.connection.within(self._asker.offsets_for_times({register.partition: since}))
            if (place := found[register.partition]) is not None:
                start = place.offset
        self._registers[namespace] = register
        self.reader.follow(register.partition, start, lambda record: self._on_presence(register, record))
        try:
            await self.refresh(register)
        except BrokerError:
            self._registers.pop(namespace, None)
            raise
        register.loaded = True
        return register

    def _on_presence(self, register: Register, record: Record) -> None:
        if record.key is None or record.value is None:
            return
        try:
            id, beat = record.key.decode(), presence.decode(record.value)
        except (ValueError, msgspec.MsgspecError):
            return  # a stranger's
        now = self._loop.time()
        if id == self.id:
            for known in self._registers.values():
                known.presence.pulse += 1
        member = register.presence.apply(record.offset, id, beat, now)
        if not register.loaded and record.timestamp_type == _LOG_APPEND_TIME and self._began:
            member.was_heard(min(now, record.timestamp / 1000 + self._broker_time))
        if beat.left is not None:
            self._on_left(id, beat.left)
        for app in beat.calls:
            listening = self._listening.get(app)
            if listening is not None and listening.verified and register.presence is self.home:
                topic = addressing.kafka_invoke_topic(
                    self.prefix, Peer(self.me.namespace, app), Peer(self.me.namespace, beat.app)
                )
                if topic not in listening.topics:
                    listening.topics.add(topic)
                    self._own_task(self._follow_late(listening, topic), "kafka caller")

    async def _keep_up(self) -> None:
        while True:
            await asyncio.sleep(self.beat)
            try:
                await self._mend_topics()
                await self.announce()
                await self._mend_places()
                await self._scan()
            except BrokerError as error:
                logger.debug("presence: %s", error)
            if self._stuck:
                await self._restart_reader()
            for register in self._registers.values():
                register.presence.purge(self._loop.time())

    async def _restart_reader(self) -> None:
        """What is stored does not come: another consumer may have more luck."""
        try:
            await self.reader.start()
        except BrokerError as error:
            logger.debug("no other consumer: %s", error)
        else:
            self._stuck = False

    async def _mend_topics(self) -> None:
        """What somebody deletes under us is made again. It counts when it is seen twice: not all servers learn of a
        topic at once."""
        missing = await self.connection.topics.missing([*self._own])
        lost, self._missing = missing & self._missing, missing
        for topic in lost:
            logger.warning("the topic %s is gone; it is made again", topic)
            self.connection.topics.forget(topic)
            self._on_topic_lost(topic)
            await self._ensure(topic, *self._own[topic])
            self.reader.rewind(topic)

    async def _mend_places(self) -> None:
        """Whoever was silent for too long may have lost its place. What is still sent there is read all the same."""
        for name, place in list(self._places.items()):
            if place.term and self.home.holder(name, place.partition) != self.id:
                logger.info("the place %s %d was given to another instance", name, place.partition)
                listening = self._listening.get(name.removeprefix("invoke/")) if name.startswith("invoke/") else None
                await (self._claim_replies() if listening is None else self._claim_calls(listening))
                await self.announce()

    # places

    async def _claim(self, name: str, partitions: int, topics: dict[str, OnRecord]) -> None:
        """Have one of so many places for our own, and read it in all the topics that it is for."""
        async with self._claiming:
            old = self._places.get(name)
            for attempt in range(CLAIMS + 1):
                place = self.home.claim(name, partitions, self._loop.time())
                if attempt == CLAIMS:
                    place = Place(place.partition)
                self._places = self._places | {name: place}
                try:
                    stored = await self._publish(self._topic(), self._state())
                    await self._passed(TopicPartition(self._topic(), 0), stored.offset + 1)
                    if place.term and self.home.holder(name, place.partition) != self.id:
                        continue
                    await self._follow(place, topics)
                except BaseException:
                    rest = {other: known for other, known in self._places.items() if other != name}
                    self._places = rest if old is None else rest | {name: old}
                    raise
                if place.term:
                    since = self.home.members[self.id].since[name]
                    self._places = self._places | {name: Place(place.partition, place.term, since)}
                return

    async def _follow(self, place: Place, topics: dict[str, OnRecord]) -> None:
        ends: dict[TopicPartition, OnRecord] = {}
        for topic, on_record in topics.items():
            count = await self.connection.topics.partitions(topic)
            if count:
                ends[TopicPartition(topic, place.partition % count)] = on_record
        if ends:
            for partition, offset in (await self._ends(ends)).items():
                self.reader.follow(partition, offset, ends[partition])

    async def _ends(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        if self._asker is None:
            raise BrokerUnavailable("the connection to Kafka is closed")
        return dict(await self.connection.within(self._asker.end_offsets(list(partitions))))

    async def listen(self, app: str, verified: bool, on_record: OnRecord) -> None:
        """Read the calls to `app` that are for this instance. Raises `BrokerError`, `BrokerUnavailable`."""
        if app not in self._listening:
            listening = _Listening(app, verified, on_record)
            await self._claim_calls(listening)
            self._listening[app] = listening

    async def _claim_replies(self) -> None:
        count = await self._ensure(self.replies_topic, PARTITIONS, CALLS_TOPIC)
        await self._claim(presence.replies_place(self.me.app_id), count, {self.replies_topic: self._on_reply})

    async def _claim_calls(self, listening: _Listening) -> None:
        topic = addressing.kafka_invoke_topic(self.prefix, Peer(self.me.namespace, listening.app))
        count = PARTITIONS
        if listening.verified:
            listening.topics |= await self._topics_of_callers(topic)
        else:
            listening.topics.add(topic)
            count = await self._ensure(topic, PARTITIONS, CALLS_TOPIC)
        topics = dict.fromkeys(listening.topics, listening.on_record)
        await self._claim(presence.invoke_place(listening.app), count, topics)

    async def _topics_of_callers(self, topic: str) -> set[str]:
        admin = await self.connection.admin()
        return {name for name in await self.connection.within(admin.list_topics()) if name.startswith(f"{topic}.")}

    async def _scan(self) -> None:
        now = self._loop.time()
        if now < self._scan_due:
            return
        self._scan_due = now + SCAN
        for listening in list(self._listening.values()):
            if listening.verified:
                target = Peer(self.me.namespace, listening.app)
                topic = addressing.kafka_invoke_topic(self.prefix, target)
                for late in await self._topics_of_callers(topic) - listening.topics:
                    listening.topics.add(late)
                    await self._follow_late(listening, late)

    async def _follow_late(self, listening: _Listening, topic: str) -> None:
        """From its beginning: its first call may be there already. What is not for us is skipped."""
        try:
            self.connection.topics.forget(topic)
            count = await self.connection.topics.partitions(topic)
        except BrokerError as error:
            logger.debug("%s: %s", topic, error)
            count = None
        place = self._places.get(presence.invoke_place(listening.app))
        if count is None or place is None:
            listening.topics.discard(topic)
            return
        for partition in placed(topic, [place.partition % count]):
            self.reader.follow(partition, 0, listening.on_record)

    async def offer(self, offers: tuple[Offer, ...]) -> None:
        """Let others know what is served here. Raises `BrokerError`, `BrokerUnavailable`."""
        self._offers = offers
        await self.announce()

    async def address(self, target: Peer, offer: Offer, place: Place | None, chance: int) -> tuple[str, int]:
        """Topic and partition for a call to an instance. `chance` decides for one that reads all partitions.

        Raises `NoResponder`, `BrokerError`, `BrokerUnavailable`.
        """
        topic = addressing.kafka_invoke_topic(self.prefix, target, self.me if offer.verified else None)
        if offer.verified:
            count = await self.connection.topics.ensure(topic, PARTITIONS, CALLS_TOPIC)
            if target.namespace == self.me.namespace and target.app_id not in self._calls:
                self._calls = (*self._calls, target.app_id)
                await self.announce()
        else:
            found = await self.connection.topics.partitions(topic)
            if found is None:
                raise NoResponder(f"{target.app_id} in the namespace {target.namespace} has no topic for calls")
            count = found
        return topic, (chance if place is None else place.partition) % count

    def _on_refused(self, topic: str) -> None:
        for namespace, register in list(self._registers.items()):
            if register.partition.topic == topic and namespace != self.me.namespace:
                del self._registers[namespace]
