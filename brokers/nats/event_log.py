"""The EventLog port on NATS JetStream (docs/adr/0001-events-on-nats.md)."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Container, Sequence
from typing import Any

from brokers.event_arguments import check_start
from brokers.nats import codec, jetstream, ordered
from brokers.nats.connection import Connection, Reply
from brokers.nats.consumer import ACK_WAIT, MAX_ACK_PENDING, Consumer, NatsDelivery
from brokers.nats.ordered import OrderedLanes
from brokers.nats.ordered_lane import OrderedDelivery
from brokers.nats.reading import moment, read_page
from mesh import addressing
from mesh.clock import SystemClock
from mesh.errors import BrokerError, BrokerUnavailable, ConfigurationError
from mesh.ids import random_id
from mesh.ports import NOW, Backlog, Feature, Group, Handler, Message, Order, Page, Start, Topic
from mesh.ports.tables import Tables

logger = logging.getLogger("meshwire.nats")

PUBLISH_TIMEOUT = 15.0
"""Seconds that a publish may wait for its acknowledgement, reconnects and repeats included: longer than the
restart of a server and than the election of a stream's leader (4 to 10 s)."""
ATTEMPT_TIMEOUT = 2.0
"""Seconds after which a publish without an answer is sent once more. What reaches a stream without a leader is lost
in silence, so this is also how late an election's end may be noticed."""
FIRST_PAUSE, LAST_PAUSE = 0.02, 0.5
"""Seconds between repeats of a publish."""

SILENT = "a nats-server whose disk is full is silent too: its log says so"

DUPLICATE_WINDOW = 120.0
"""Seconds for which a caller's id is remembered."""
MAX_AGE = 7 * 24 * 3600.0
"""Seconds for which events are kept, unless the stream's operator says otherwise."""
MAX_CONSUMERS = 100_000
"""Set, since the server's default is a silent 1,000."""

UNKEYED_LANE, KEYED_LANE, WIDE_LANE = "u", "k", "w"
"""Events without and with a key; and all of them, where a pattern ends in `>`."""
INACTIVE = 30.0
"""Seconds after which the server forgets a group that does not last and has no member."""

_ORDERED = frozenset({Feature.KEY_ORDER, Feature.STRICT_ORDER})

_NANOSECONDS = 1_000_000_000


class NatsEventLog:
    """Events in one stream per namespace; a durable consumer for each lane of a group."""

    def __init__(
        self,
        connection: Connection,
        *,
        namespace: str = addressing.DEFAULT_NAMESPACE,
        prefix: str = addressing.DEFAULT_PREFIX,
        replicas: int = 1,
        tables: Tables | None = None,
    ) -> None:
        """`tables` are those of the same namespace. Order needs them: who works which part of a topic is on record."""
        self.features = frozenset(Feature) - (frozenset() if tables is not None else _ORDERED)
        self._tables = tables
        self._connection = connection
        self._namespace = namespace
        self._prefix = prefix
        self._stream = addressing.event_stream(prefix, namespace)
        self._stream_config: dict[str, Any] = {
            "name": self._stream,
            "subjects": [addressing.event_subjects(prefix, namespace)],
            "retention": "limits",
            "storage": "file",
            "discard": "old",
            "num_replicas": replicas,
            "max_age": int(MAX_AGE * _NANOSECONDS),
            "max_consumers": MAX_CONSUMERS,
            "duplicate_window": int(DUPLICATE_WINDOW * _NANOSECONDS),
            "allow_direct": True,
            "allow_msg_ttl": True,
        }
        self._stored = b'{"stream":"%b"' % self._stream.encode()
        """How the acknowledgement of the stream begins."""
        self._subscriptions: set[NatsSubscription] = set()
        self._stream_check: asyncio.Future[str] | None = None

    @property
    def problem(self) -> str | None:
        return self._connection.problem

    async def start(self) -> None:
        await self._connection.start()
        while True:
            try:
                await self._ensure_stream()
            except BrokerError as error:  # a cluster that is still electing its leader; a permission that is to come
                if isinstance(error, jetstream.NobodyAnswers) and not self._connection.has_jetstream:
                    raise ConfigurationError(str(error)) from None
                logger.warning("not ready yet: %s", error)
                await asyncio.sleep(LAST_PAUSE)
            else:
                return

    async def close(self) -> None:
        if self._subscriptions:
            cut = list(self._subscriptions)
            for subscription in cut:
                subscription.cut()
            await asyncio.gather(*(subscription.left() for subscription in cut))
            await self._connection.round_trip()
        await self._connection.close()

    async def publish(self, topic: Topic, message: Message) -> str:
        root = addressing.topic_root(self._prefix, self._namespace, topic)
        subject = root + addressing.partition_token(message.key)
        # Without a caller's id, our own repeats still share one, so that they are stored once.
        stored_as = random_id() if message.dedupe_id is None else addressing.stored_once(root, message.dedupe_id)
        headers = codec.encode(message, stored_as)
        payload = message.payload or b""
        try:
            return self._position(await self._connection.call(subject, headers, payload, ATTEMPT_TIMEOUT))
        except BrokerUnavailable as error:
            return await self._publish_again(subject, headers, payload, error)

    def _position(self, reply: Reply) -> str:
        """Where the message is stored. Raises unless `reply` says that it is. Anybody who hears it may answer it."""
        answer = reply.payload
        if answer.startswith(self._stored):
            # {"stream":"…", "seq":7} with "domain" and "duplicate" behind, where they apply
            first = answer.find(b'"seq":', len(self._stored)) + 6
            last = answer.find(b",", first)
            if last < 0:
                return answer[first:-1].decode()
            return "" if b'"duplicate"' in answer else answer[first:last].decode()
        if reply.no_responders:
            raise _NoStream("no JetStream stream took the event: it was removed, or it has no leader right now")
        if b'"error"' in reply.payload:
            jetstream.decode_answer(reply.payload)
        raise _NoStream(f"something else than the stream {self._stream} answered; who else serves its subjects?")

    async def _publish_again(self, subject: str, headers: bytes, payload: bytes, error: BrokerUnavailable) -> str:
        """Repeat a publish whose outcome is unknown until it is known, or until `PUBLISH_TIMEOUT`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + PUBLISH_TIMEOUT
        pause = FIRST_PAUSE
        while True:
            remaining = deadline - loop.time() - pause
            if remaining <= 0 or self._connection.closed:
                if type(error) is BrokerUnavailable:  # connected, the stream is there, and not even an error comes
                    raise BrokerUnavailable(f"{error}; {SILENT}") from None
                raise error
            await asyncio.sleep(pause)
            pause = min(2 * pause, LAST_PAUSE)
            timeout = ATTEMPT_TIMEOUT
            try:
                await self._connection.wait_connected(remaining)
                if isinstance(error, _NoStream):
                    await self._restore_stream()
                timeout = min(ATTEMPT_TIMEOUT, deadline - loop.time())
                return self._position(await self._connection.call(subject, headers, payload, timeout))
            except BrokerUnavailable as again:
                if type(again) is not BrokerUnavailable or timeout == ATTEMPT_TIMEOUT:
                    error = again  # else the last attempt, cut short: its silence says less than what was answered

    async def subscribe(
        self,
        group: Group,
        handler: Handler,
        *,
        concurrency: int,
        order: Order = Order.KEY,
        start: Start = NOW,
        lasting: bool = True,
    ) -> NatsSubscription:
        check_start(start)
        if order is not Order.NONE and self._tables is None:
            raise BrokerError("order needs tables: who works which part of a topic is on record there")
        subscription = NatsSubscription(handler, concurrency, self._subscriptions.discard)
        former = await self._former_lanes(group, order)
        if any(info["num_waiting"] for info in former):
            raise BrokerError(
                f"the group of {group.app_id} for the topic {group.topic.name} has members with another order than "
                f"'{order.value}'; they have to end first"
            )
        if former:  # the group had another order: what was not handled then is handled now
            start = Start(position=str(min(info["ack_floor"]["stream_seq"] for info in former) + 1))
        lanes: list[Consumer | OrderedLanes] = [
            Consumer(
                self._connection,
                self._stream,
                config,
                offer=subscription.offer,
                on_settled=subscription.settled,
                restore_stream=self._restore_stream,
                limit=concurrency,
                topic_of=self._topic_of(group.topic),
            )
            for config in self._lanes(group, order, start, lasting)
        ]
        if order is not Order.NONE:
            lanes.append(
                OrderedLanes(
                    self._connection,
                    self._stream,
                    self._tables if lasting else None,
                    group,
                    self._ordered_lanes(group, order, start, lasting),
                    by_key=order is Order.KEY,
                    clock=SystemClock(),
                    restore_stream=self._restore_stream,
                    topic_of=self._topic_of(group.topic),
                    offer=subscription.offer,
                    settled=subscription.settled,
                    withdraw=subscription.withdraw,
                    concurrency=concurrency,
                )
            )
        await subscription.start(lanes)
        self._subscriptions.add(subscription)
        await self._forget_lanes(group, [info["name"] for info in former])
        return subscription

    async def _former_lanes(self, group: Group, order: Order) -> list[dict[str, Any]]:
        """Consumers of the group from when it had another order."""
        own = {
            Order.NONE: (UNKEYED_LANE, KEYED_LANE, WIDE_LANE),
            Order.KEY: (UNKEYED_LANE, *ordered.KEYED_LANES),
            Order.STRICT: (ordered.STRICT_LANE,),
        }
        infos = await asyncio.gather(
            *(
                jetstream.find_consumer(self._connection, self._stream, addressing.durable(group, lane))
                for lane in ALL_LANES
                if lane not in own[order]
            )
        )
        return [info for info in infos if info is not None]

    async def _forget_lanes(self, group: Group, durables: list[str]) -> bool:
        """Whether there was any. What is on record of them goes first."""
        if durables and self._tables is not None:
            await ordered.forget_progress(self._tables, group, durables)
        removed = await asyncio.gather(
            *(jetstream.delete_consumer(self._connection, self._stream, durable) for durable in durables)
        )
        return any(removed)

    def _lanes(self, group: Group, order: Order, start: Start, lasting: bool) -> list[dict[str, Any]]:
        """The consumers that the members of a group share: one for events without a key, and one for those with one
        where they are in no order."""
        root = addressing.pattern_root(self._prefix, self._namespace, group.topic)
        deep = _is_deep(group.topic)  # at any depth, so that no filter can tell keys from parts of the topic
        if order is Order.STRICT or (order is Order.KEY and deep):
            return []
        if deep:
            return [self._lane(group, WIDE_LANE, [addressing.deep_filter(root)], start, lasting)]
        unkeyed = self._lane(group, UNKEYED_LANE, addressing.unkeyed_filter(root), start, lasting)
        if order is Order.KEY:
            return [unkeyed]
        return [unkeyed, self._lane(group, KEYED_LANE, addressing.keyed_filter(root), start, lasting)]

    def _ordered_lanes(self, group: Group, order: Order, start: Start, lasting: bool) -> list[dict[str, Any]]:
        """The consumers that one member of a group has at a time."""
        root = addressing.pattern_root(self._prefix, self._namespace, group.topic)
        lanes = ordered.lanes(root, order, deep=_is_deep(group.topic), lasting=lasting)
        return [
            self._lane(group, lane, subjects, start, lasting)
            | {"ack_wait": int(ordered.ACK_WAIT * _NANOSECONDS), "max_ack_pending": ordered.MAX_ACK_PENDING}
            for lane, subjects in lanes.items()
        ]

    def _lane(self, group: Group, lane: str, subjects: list[str], start: Start, lasting: bool) -> dict[str, Any]:
        return {
            "durable_name": addressing.durable(group, lane),
            "filter_subjects": subjects,
            **_beginning(start),
            "ack_policy": "explicit",
            "ack_wait": int(ACK_WAIT * _NANOSECONDS),
            "max_deliver": -1,
            "max_ack_pending": MAX_ACK_PENDING,
            **({} if lasting else {"inactive_threshold": int(INACTIVE * _NANOSECONDS)}),
            "metadata": {
                "io.meshwire.app": group.app_id,
                "io.meshwire.pubsub": group.topic.pubsub,
                "io.meshwire.topic": group.topic.name,
                **({"io.meshwire.group": group.name} if group.name else {}),
            },
        }

    def _topic_of(self, topic: Topic) -> Callable[[bytes], str]:
        if addressing.is_pattern(topic.name):
            return lambda subject: addressing.topic_name(self._prefix, self._namespace, subject.decode())
        return lambda _subject: topic.name

    async def unsubscribe(self, group: Group) -> bool:
        return await self._forget_lanes(group, [addressing.durable(group, lane) for lane in ALL_LANES])

    async def backlog(self, group: Group) -> Backlog | None:
        infos = await asyncio.gather(
            *(
                jetstream.find_consumer(self._connection, self._stream, addressing.durable(group, lane))
                for lane in ALL_LANES
            )
        )
        found = [info for info in infos if info is not None]
        if not found:
            return None
        return Backlog(sum(info["num_pending"] for info in found), sum(info["num_ack_pending"] for info in found))

    async def read(self, topic: Topic, start: Start, *, limit: int) -> Page:
        if check_start(start) == NOW:
            return Page([], None)
        root = addressing.pattern_root(self._prefix, self._namespace, topic)
        subjects = addressing.deep_filter(root) if _is_deep(topic) else f"{root}*"
        return await read_page(self._connection, self._stream, subjects, start, limit, self._topic_of(topic))

    async def _restore_stream(self) -> str:
        """As `_ensure_stream`, once the log has started: raises `BrokerError` only."""
        try:
            return await self._ensure_stream()
        except ConfigurationError as refusal:  # somebody changed the stream under our feet
            raise BrokerError(str(refusal)) from None

    async def _ensure_stream(self) -> str:
        """See `jetstream.ensure_stream`. One look at a time, shared by all who miss the stream."""
        if self._stream_check is None:
            self._stream_check = asyncio.ensure_future(self._check_stream())
        return await asyncio.shield(self._stream_check)

    async def _check_stream(self) -> str:
        try:
            return await jetstream.ensure_stream(self._connection, self._stream_config)
        finally:
            self._stream_check = None


ALL_LANES = (UNKEYED_LANE, KEYED_LANE, WIDE_LANE, *ordered.KEYED_LANES, ordered.STRICT_LANE)
"""Of a group, whatever its order."""


def _is_deep(topic: Topic) -> bool:
    """Whether it stands for topics at any depth."""
    return topic.name.rpartition(".")[2] == ">"


def _beginning(start: Start) -> dict[str, Any]:
    """Where a consumer begins that is made now."""
    if start.position is not None:
        return {"deliver_policy": "by_start_sequence", "opt_start_seq": max(1, int(start.position))}
    if start.time is None:
        return {"deliver_policy": "new"}
    if start.time <= 0:
        return {"deliver_policy": "all"}
    return {"deliver_policy": "by_start_time", "opt_start_time": moment(start.time)}


class _NoStream(BrokerUnavailable):
    """The stream did not answer: it is gone, it has no leader right now, or somebody else was faster."""


class NatsSubscription:
    """One member of a group: its lanes share `concurrency`. See the `Subscription` port."""

    def __init__(self, handler: Handler, concurrency: int, on_closed: Callable[[NatsSubscription], None]) -> None:
        self._handler = handler
        self._concurrency = concurrency
        self._free = concurrency
        self._on_closed = on_closed
        self._waiting: deque[NatsDelivery | OrderedDelivery] = deque()
        self._handing_over = False
        self._lanes: Sequence[Consumer | OrderedLanes] = []

    async def start(self, lanes: Sequence[Consumer | OrderedLanes]) -> None:
        self._lanes = lanes
        try:
            for lane in lanes:
                await lane.start()
        except BaseException:
            self.cut()
            raise

    def set_concurrency(self, concurrency: int) -> None:
        self._free += concurrency - self._concurrency
        self._concurrency = concurrency
        if not concurrency:
            self._give_back_waiting()
        for lane in self._lanes:
            lane.set_limit(concurrency)
        if not self._handing_over:
            self._hand_over_waiting()

    def offer(self, delivery: NatsDelivery | OrderedDelivery) -> None:
        if self._free > 0:
            self._hand_over(delivery)
        else:
            self._waiting.append(delivery)

    def _hand_over(self, delivery: NatsDelivery | OrderedDelivery) -> None:
        self._free -= 1
        delivery.handed_over = True
        self._handler(delivery)

    def settled(self, delivery: NatsDelivery | OrderedDelivery) -> None:
        if delivery.handed_over:
            self._free += 1
            if self._waiting and not self._handing_over:
                self._hand_over_waiting()

    def _hand_over_waiting(self) -> None:
        """One after the other: a handler that settles at once does not come back in, as deep as the queue is long."""
        self._handing_over = True
        try:
            while self._waiting and self._free > 0:
                self._hand_over(self._waiting.popleft())
        finally:
            self._handing_over = False

    def withdraw(self, deliveries: Container[object]) -> None:
        """Forget those that wait."""
        self._waiting = deque(delivery for delivery in self._waiting if delivery not in deliveries)

    def _give_back_waiting(self) -> None:
        waiting, self._waiting = self._waiting, deque()
        for delivery in waiting:
            delivery.release()

    async def close(self) -> None:
        self._give_back_waiting()
        try:
            await asyncio.gather(*(lane.stop() for lane in self._lanes))
        finally:
            self.cut()

    def cut(self) -> None:
        """Let go at once, whatever is in hand."""
        self._waiting.clear()
        for lane in self._lanes:
            lane.cut()
        self._on_closed(self)

    async def left(self) -> None:
        """Returns when the other members know, after `cut`."""
        await asyncio.gather(*(lane.left() for lane in self._lanes if isinstance(lane, OrderedLanes)))
