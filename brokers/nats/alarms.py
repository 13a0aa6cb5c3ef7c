"""The Alarms port on NATS JetStream: messages that the server holds (docs/adr/0007-schedules.md).

An alarm is a schedule of the server's in the stream of its scope. When it is due the server moves it to another
subject of the stream, where a durable consumer for each kind takes it. Settled, it is deleted.
"""

from __future__ import annotations

import asyncio
import base64
import time
import zlib
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar

import msgspec

from brokers.alarm_arguments import check_alarm, check_alarm_key, check_scan
from brokers.nats import codec, jetstream, table_records
from brokers.nats.connection import Connection
from brokers.nats.consumer import ACK_WAIT, MAX_ACK_PENDING, Consumer
from brokers.nats.firings import NatsAlarmSubscription
from brokers.nats.retry import ATTEMPT_TIMEOUT, OPERATION_TIMEOUT, Retry
from brokers.nats.scopes import ScopeStream
from brokers.nats.table_reads import Reader
from mesh import addressing
from mesh.errors import BrokerUnavailable, MessageTooLarge, clip
from mesh.ids import random_id
from mesh.ports.alarms import Alarm, AlarmPage, FiringHandler, SetAlarm
from mesh.ports.tables import ABSENT, Conflict, Key

SOON = 1.0
"""Seconds. An alarm that becomes due within them is not replaced: the server may already be at it, and would then
remove what came in its place. It is awaited instead. Also how far two clocks may part after they were compared."""
SOONEST = 0.25
"""The least of that, for an alarm that was set shortly before it is due: half of that time. Clocks are compared anew
then. Otherwise a series that fires every second would always be about to."""
LOOK_AGAIN = 0.05
"""Seconds between looks at an alarm that is awaited."""

MAX_PAGE, MAX_PAGE_BYTES = 1000, 4 * 1024 * 1024
"""Alarms of one page, and bytes of payload after which it ends early."""

TOMBSTONE_TTL = 3600
"""Seconds for which a cancellation is remembered: longer than it takes to set the next alarm of a series."""
SLACK = 512
"""Bytes that the next alarm of a series may be longer than the first one."""
LATEST = datetime(2262, 1, 1, tzinfo=UTC).timestamp()
"""The server counts 64-bit nanoseconds: what is due later would fire at once."""
EARLIEST = datetime(2000, 1, 1, tzinfo=UTC).timestamp()
"""What is due long before the epoch would never fire."""

NO_MESSAGE, NO_SEQUENCE, NOT_DELETED = 10037, 10043, 10057
WRONG_SEQUENCE, WRITTEN_NOW = 10071, 10164
"""`err_code`s: nothing there to read, nor to delete, or no more; the subject's last message is another, or about to
be."""

_NANOSECONDS = 1_000_000_000

T = TypeVar("T")


class NatsAlarmClocks:
    """`AlarmClocks` of a namespace, over a connection that somebody else starts and closes."""

    def __init__(
        self,
        connection: Connection,
        *,
        namespace: str = addressing.DEFAULT_NAMESPACE,
        prefix: str = addressing.DEFAULT_PREFIX,
        replicas: int = 1,
    ) -> None:
        self._connection = connection
        self._namespace = namespace
        self._prefix = prefix
        self._replicas = replicas
        self._scopes: dict[str, NatsAlarms] = {}

    def alarms(self, scope: str) -> NatsAlarms:
        """Raises `InvalidKey` for a scope that cannot be named."""
        alarms = self._scopes.get(scope)
        if alarms is None:
            stream = ScopeStream(
                self._connection,
                prefix=self._prefix,
                namespace=self._namespace,
                scope=scope,
                replicas=self._replicas,
            )
            source = table_records.source(self._prefix, self._namespace, scope)
            alarms = self._scopes[scope] = NatsAlarms(self._connection, stream, scope, source)
        return alarms

    async def close(self) -> None:
        for alarms in self._scopes.values():
            await alarms.close()


class _Found(NamedTuple):
    """The newest message of a key."""

    sequence: int
    alarm: Alarm | None
    """`None` for a cancellation."""
    fired: bool
    event_id: str
    stored: float = 0.0
    """When, by the server's clock."""

    @property
    def place(self) -> int:
        """What the sequence of the last message at the alarm's own address is."""
        return 0 if self.fired else self.sequence


class _Fence(NamedTuple):
    """A message is stored only when the last one of `subject` (its own, if empty) has this sequence."""

    sequence: int
    subject: str = ""

    def lines(self) -> bytes:
        lines = b"Nats-Expected-Last-Subject-Sequence: %d\r\n" % self.sequence
        if self.subject:
            lines += b"Nats-Expected-Last-Subject-Sequence-Subject: %b\r\n" % self.subject.encode()
        return lines


class _Overtaken(Exception):
    """The fence does not hold."""


class NatsAlarms:
    """`Alarms` of one scope."""

    def __init__(self, connection: Connection, stream: ScopeStream, scope: str, source: str) -> None:
        self._connection = connection
        self._stream = stream
        self._scope = scope
        self._root = stream.root
        self._source = source
        self._reader = Reader(connection, stream)
        self._subscriptions: set[NatsAlarmSubscription] = set()

    async def set(self, alarm: Alarm, *, expected: int | None = None) -> int:
        check_alarm(alarm)
        event_id, path = random_id(), addressing.alarm_path(alarm.key)
        subject = addressing.alarm_subject(self._root, path)
        block = self._block(alarm, path, event_id)
        self._check_size(len(block) + len(alarm.payload))
        if expected in (None, ABSENT):
            try:  # most keys are new, and then one message does it
                vacant = _Fence(0, addressing.alarm_filter(self._root, path))
                return await self._store(subject, block, alarm.payload, vacant)
            except _Overtaken:
                pass
        return await self._bounded(self._replace(alarm, expected, subject, block, event_id))

    async def _replace(self, alarm: Alarm, expected: int | None, subject: str, block: bytes, event_id: str) -> int:
        while True:
            found = await self._settled(alarm.key)
            if found is not None and found.event_id == event_id:
                return found.sequence  # an earlier attempt was stored, and only its answer was lost
            _check_expected(alarm.key, found, expected)
            try:
                revision = await self._store(subject, block, alarm.payload, _Fence(found.place if found else 0))
            except _Overtaken:
                continue
            if found is not None and found.fired:
                await self.forget(found.sequence)
            return revision

    async def cancel(self, key: Key, *, expected: int | None = None) -> bool:
        check_alarm_key(key)
        return await self._bounded(self._cancel(key, expected))

    async def _cancel(self, key: Key, expected: int | None) -> bool:
        path = addressing.alarm_path(key)
        subject, tombstone = addressing.alarm_subject(self._root, path), self._tombstone(path)
        while True:
            found = await self._settled(key)
            _check_expected(key, found, expected)
            if found is None or found.alarm is None:
                return False
            try:
                await self._store(subject, tombstone, b"", _Fence(found.place))
            except _Overtaken:
                continue
            if found.fired:
                await self.forget(found.sequence)
            return True

    async def get(self, key: Key) -> SetAlarm | None:
        check_alarm_key(key)
        found = await self._find(key)
        if found is None or found.alarm is None:
            return None
        return SetAlarm(found.alarm, found.sequence, found.fired)

    async def scan(self, prefix: Key, *, limit: int, cursor: str | None = None) -> AlarmPage:
        check_scan(prefix, limit)
        within = f"{addressing.alarm_filter(self._root, addressing.alarm_path(prefix))}.>"
        mark = f"{zlib.crc32(within.encode()):08x}"
        start = 1 if cursor is None else _read_cursor(cursor, mark)
        stored, ended = await self._reader.following(
            start, within.removeprefix(self._root), min(limit, MAX_PAGE), MAX_PAGE_BYTES
        )
        alarms: list[SetAlarm] = []
        for message in stored:
            headers = codec.parse_block(message.block)
            found = self._decode(self._root + message.path, message.sequence, headers, message.payload)
            if found is not None and found.alarm is not None:
                alarms.append(SetAlarm(found.alarm, found.sequence, found.fired))
        return AlarmPage(alarms, None if ended else f"{mark}{stored[-1].sequence + 1}")

    async def serve(self, kind: str, handler: FiringHandler, *, concurrency: int) -> NatsAlarmSubscription:
        check_alarm_key((kind, "any"))
        await self._repeat(self._stream.ensure)
        subscription = NatsAlarmSubscription(self, handler, concurrency, self._subscriptions.discard)
        config = {
            "durable_name": addressing.alarm_durable(kind),
            "filter_subjects": [f"{addressing.due_subject(self._root, addressing.token(kind))}.>"],
            "deliver_policy": "all",
            "ack_policy": "explicit",
            "ack_wait": int(ACK_WAIT * _NANOSECONDS),
            "max_deliver": -1,
            "max_ack_pending": MAX_ACK_PENDING,
            "metadata": {"io.meshwire.scope": self._scope, "io.meshwire.kind": kind},
        }
        await subscription.start(
            Consumer(
                self._connection,
                self._stream.name,
                config,
                offer=subscription.members.offer,
                on_settled=subscription.members.settled,
                restore_stream=self._restore_stream,
                limit=concurrency,
                topic_of=bytes.decode,
            )
        )
        self._subscriptions.add(subscription)
        return subscription

    async def close(self) -> None:
        self._stream.closed = True
        for subscription in list(self._subscriptions):
            subscription.cut()

    async def follow(self, sequence: int, then: Alarm) -> None:
        """Set the next alarm of a series whose due message has this sequence, unless that is not the newest of its key:
        then the key was set or cancelled. That nobody does so between the look and the store, the fence says."""
        path = addressing.alarm_path(then.key)
        subject, block = addressing.alarm_subject(self._root, path), self._block(then, path, random_id())
        newest = await self._find(then.key)
        if newest is not None and newest.sequence == sequence:
            try:
                await self._store(subject, block, then.payload, _Fence(0))
            except _Overtaken:
                pass

    async def forget(self, sequence: int) -> None:
        """Delete a message, if it is still there."""
        try:
            await self._ask("STREAM.MSG.DELETE", {"seq": sequence, "no_erase": True})
        except jetstream.Refused as refusal:
            if refusal.code != NO_SEQUENCE and not (refusal.code == NOT_DELETED and "no message" in str(refusal)):
                raise

    def decode_due(self, headers: Mapping[str, str], payload: bytes) -> Alarm | None:
        """The alarm that the server moved to where it is due; `None` for what came there on another way."""
        address = addressing.parse_alarm(self._root, headers.get("nats-scheduler", ""))
        return None if address is None else _read_alarm(address[0], headers, payload)

    async def _settled(self, key: Key) -> _Found | None:
        """As `_find`, but no alarm that the server may be about to move: it is awaited."""
        while True:
            found = await self._find(key)
            if found is None or found.fired or found.alarm is None:
                return found
            soon = max(SOONEST, min(SOON, (found.alarm.due - found.stored) / 2))
            standing = await (self._stream.ensure() if soon == SOON else self._stream.restore())
            left = found.alarm.due - time.time() - standing.ahead
            if left > soon:
                return found
            await asyncio.sleep(min(LOOK_AGAIN + max(0.0, left), SOON))

    async def _find(self, key: Key) -> _Found | None:
        """The newest message of a key, asked of the stream's leader."""
        try:
            newest = addressing.alarm_filter(self._root, addressing.alarm_path(key))
            answer = await self._ask("STREAM.MSG.GET", {"last_by_subj": newest})
        except jetstream.Refused as refusal:
            if refusal.code == NO_MESSAGE:
                return None
            raise
        message = answer["message"]
        headers = codec.parse_block(base64.b64decode(message.get("hdrs", "")))
        payload = base64.b64decode(message.get("data", ""))
        found = self._decode(message["subject"], int(message["seq"]), headers, payload)
        return found and found._replace(stored=datetime.fromisoformat(message["time"]).timestamp())

    def _decode(self, subject: str, sequence: int, headers: Mapping[str, str], payload: bytes) -> _Found | None:
        address = addressing.parse_alarm(self._root, subject)
        if address is None:
            return None
        key, fired = address
        alarm = _read_alarm(key, headers, payload) if fired or "nats-schedule" in headers else None
        return _Found(sequence, alarm, fired, headers.get("ce-id", ""))

    def _block(self, alarm: Alarm, path: str, event_id: str) -> bytes:
        """The header block of an alarm, but for its fence and its end."""
        description = msgspec.json.encode((alarm.due, alarm.headers)).decode()
        moment = _date(alarm.due)
        return (
            f"NATS/1.0\r\nNats-Schedule: @at {moment}\r\n"
            f"Nats-Schedule-Target: {addressing.due_subject(self._root, path)}\r\n"
            f"{self._event(addressing.SCHEDULE_FIRED, path, event_id)}ce-time: {moment}\r\n"
            f"Meshwire-Alarm: {description}\r\n"
        ).encode()

    def _tombstone(self, path: str) -> bytes:
        event = self._event(addressing.SCHEDULE_CANCELLED, path, random_id())
        return f"NATS/1.0\r\nNats-TTL: {TOMBSTONE_TTL}\r\n{event}".encode()

    def _event(self, event_type: str, path: str, event_id: str) -> str:
        return (
            f"Nats-Msg-Id: {event_id}\r\nce-specversion: 1.0\r\nce-id: {event_id}\r\nce-source: {self._source}\r\n"
            f"ce-type: {event_type}\r\nce-subject: {path.replace('%', '%25')}\r\n"
        )

    def _check_size(self, size: int) -> None:
        limit = self._connection.max_payload - SLACK
        if self._connection.problem is None and size > limit:
            raise MessageTooLarge(size, limit)

    async def _store(self, subject: str, block: bytes, payload: bytes, fence: _Fence) -> int:
        """The sequence under which the message is stored. Raises `_Overtaken`."""
        headers = b"%b%b\r\n" % (block, fence.lines())
        try:
            try:
                return await self._store_once(subject, headers, payload)
            except BrokerUnavailable as error:
                return await self._repeat(lambda: self._store_once(subject, headers, payload), error)
        except jetstream.Refused as refusal:
            if refusal.code in (WRONG_SEQUENCE, WRITTEN_NOW):
                raise _Overtaken from None
            raise

    async def _store_once(self, subject: str, headers: bytes, payload: bytes) -> int:
        await self._stream.ensure()
        reply = await self._connection.call(subject, headers, payload, ATTEMPT_TIMEOUT)
        if reply.no_responders:
            await self._stream.restore()
            raise BrokerUnavailable(f"the stream {self._stream.name} did not take the message; try again")
        answer = jetstream.decode_answer(reply.payload)
        if answer.get("stream") != self._stream.name:
            raise BrokerUnavailable(
                f"something else than the stream {self._stream.name} answered; what else serves its subjects?"
            )
        return int(answer["seq"])

    async def _ask(self, verb: str, request: dict[str, Any]) -> dict[str, Any]:
        async def attempt() -> dict[str, Any]:
            await self._stream.ensure()
            try:
                return await jetstream.call(self._connection, f"{verb}.{self._stream.name}", request)
            except jetstream.Refused as refusal:
                if refusal.code != jetstream.STREAM_NOT_FOUND:
                    raise
                await self._stream.restore()
                raise BrokerUnavailable(str(refusal)) from None

        return await self._repeat(attempt)

    async def _repeat(self, attempt: Callable[[], Awaitable[T]], error: BrokerUnavailable | None = None) -> T:
        """Try until it succeeds or is refused, or patience ends. `error` is how a first attempt has ended."""
        retry = Retry(self._connection, closed=lambda: self._stream.closed)
        while True:
            if error is not None:
                await retry.after(error)
            try:
                return await attempt()
            except BrokerUnavailable as again:
                error = again

    async def _bounded(self, operation: Coroutine[Any, Any, T]) -> T:
        try:
            return await asyncio.wait_for(operation, 2 * OPERATION_TIMEOUT)
        except TimeoutError:
            raise BrokerUnavailable(
                "the alarm is about to become due and does not, or others never stop changing it; "
                "is the server's clock right?"
            ) from None

    async def _restore_stream(self) -> str:
        return (await self._stream.restore()).created


def _check_expected(key: Key, found: _Found | None, expected: int | None) -> None:
    """Raises `Conflict` unless `expected` is the revision of the alarm that is set."""
    if expected is not None:
        revision = ABSENT if found is None or found.alarm is None else found.sequence
        if expected != revision or (found is not None and found.fired):
            raise Conflict(key)


def _read_alarm(key: Key, headers: Mapping[str, str], payload: bytes) -> Alarm:
    """An alarm that a program without a sidecar has set may lack what we add: it has no notes, and is due."""
    try:
        due, notes = msgspec.json.decode(headers.get("meshwire-alarm", "[0,{}]"), type=tuple[float, dict[str, str]])
    except msgspec.MsgspecError:
        due, notes = 0.0, {}
    return Alarm(key=key, due=due, payload=payload, headers=notes)


def _date(due: float) -> str:
    """RFC 3339, within what the server can count."""
    moment = datetime.fromtimestamp(min(max(due, EARLIEST), LATEST), UTC)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _read_cursor(cursor: str, mark: str) -> int:
    number = cursor.removeprefix(mark)
    if number == cursor or not number.isdigit() or len(number) > 20:
        raise ValueError(f"the cursor '{clip(cursor)}' is not of this scan")
    return int(number)
