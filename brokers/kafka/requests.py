"""The Requests port on Kafka (docs/adr/0012-kafka.md): the caller's side, and both under one roof."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine, Iterable
from contextlib import suppress

from brokers.call_head import Malformed
from brokers.kafka import bodies, request_codec
from brokers.kafka.bodies import Inflow, Outflow
from brokers.kafka.connection import Connection
from brokers.kafka.presence import MISSED_BEATS, Member
from brokers.kafka.request_codec import Frame
from brokers.kafka.service import IncomingCall, Service, Services
from brokers.kafka.station import Record, Register, Station
from brokers.streams import close_body, is_whole
from mesh import addressing
from mesh.errors import BrokerError, BrokerUnavailable
from mesh.ids import random_id
from mesh.ports import Body, NoResponder, Peer, PeerLost, Request, RequestHandler, Response

BEAT = 2.0
"""Seconds between two signs of life of an instance, and of either end of a call that takes long."""
TICKS_PER_BEAT = 8
"""How often in that time we look who is silent, and whom to tell that we are there."""
CONNECT_LIMIT = 5.0
"""Seconds that a call waits for the connection to stand."""


class KafkaRequests:
    """Calls as records of Kafka, each to one instance that presence shows.

    `me` is who we are. With `callers_verified` calls are taken on topics of their callers alone, so that the servers'
    permissions say who may call, and as whom; how an app is called is for its callees to decide.
    """

    def __init__(
        self,
        connection: Connection,
        me: Peer,
        *,
        prefix: str = addressing.DEFAULT_PREFIX,
        callers_verified: bool = False,
        beat: float = BEAT,
    ) -> None:
        self.connection = connection
        self._me = me
        self._prefix = prefix
        self._beat = beat
        self._loop = asyncio.get_running_loop()
        self._station: Station | None = None
        self._opening: asyncio.Task[Station] | None = None
        self._services = Services(self._plan_tick, verified=callers_verified)
        self._calls: dict[str, OutgoingCall] = {}
        self._left_behind: list[tuple[OutgoingCall, str]] = []
        self._writers: set[asyncio.Task[None]] = set()
        self._ticker: asyncio.TimerHandle | None = None
        self._tick_due = 0.0
        self._closed = False

    async def start(self) -> None:
        """Be there before the first call, which does it otherwise. Raises `BrokerError`, `BrokerUnavailable`."""
        await self._ready()

    async def _ready(self) -> Station:
        if self._closed:
            raise BrokerUnavailable("the connection to Kafka is closed")
        if self._station is not None:
            return self._station
        if self._opening is None or self._opening.done():
            self._opening = self._loop.create_task(self._open(), name="kafka calls")
        return await asyncio.shield(self._opening)

    async def _open(self) -> Station:
        await self.connection.wait_connected(CONNECT_LIMIT)
        station = Station(
            self.connection,
            self._me,
            prefix=self._prefix,
            beat=self._beat,
            on_left=self._on_left,
            on_topic_lost=self._on_topic_lost,
            on_reply=self._on_reply,
        )
        try:
            await station.open()
        except BaseException:
            await station.close()
            raise
        self._station = station
        return station

    async def serve(self, app_id: str, handler: RequestHandler, *, concurrency: int, instance: str = "") -> Service:
        station = await self._ready()
        service = Service(self._services, Peer(self._me.namespace, app_id), instance, handler, concurrency)
        await self._services.add(station, service)
        return service

    async def request(self, target: Peer, request: Request, *, instance: str = "") -> Response:
        call: OutgoingCall | None = None
        try:
            addressing.kafka_invoke_topic(self._prefix, target)  # no app has an impossible name
            bodies.check(request.headers, request.body)
            station = await self._ready()
            if self.connection.problem is not None:
                raise BrokerUnavailable(f"no connection to Kafka: {self.connection.problem}")
            call = OutgoingCall(self, station, target, request, instance)
            await call.begin()
            return await call.answer
        except BaseException as error:
            if call is not None:
                call.cancel(error)
            if call is None or call.writer is None:
                await close_body(request.body)
            raise

    def add(self, call: OutgoingCall) -> None:
        self._calls[call.id] = call
        self._plan_tick()

    def forget(self, call: OutgoingCall) -> None:
        self._calls.pop(call.id, None)

    def is_under_way(self, call: OutgoingCall) -> bool:
        return call.id in self._calls

    def start_writer(self, work: Coroutine[None, None, None], name: str = "request body") -> asyncio.Task[None]:
        writer = self._loop.create_task(work, name=name)
        self._writers.add(writer)
        writer.add_done_callback(self._writers.discard)
        return writer

    # what comes

    def _on_reply(self, record: Record) -> None:
        headers = request_codec.read(record.headers)
        frame = request_codec.parse_frame(headers)
        if frame is not None and frame.kind == "beat":
            for text in (record.value or b"").decode("latin-1").split():
                if (call := self._calls.get(text)) is not None:
                    call.on_sign()
            return
        call = self._calls.get(headers.get(request_codec.CALL, b"").decode("latin-1"))
        if call is None:
            return  # it is over, or was our predecessor's
        if frame is None:
            call.on_answer(headers, record.value or b"")
        else:
            call.on_frame(frame, record.value or b"")

    def _on_left(self, id: str, left: dict[str, dict[int, int]]) -> None:
        for call in list(self._calls.values()):
            if call.callee == id:
                call.on_left(left.get(call.topic, {}).get(call.partition, 0))

    def hear_out(self, call: OutgoingCall) -> None:
        """Its callee has left, and may have answered before: that comes by another topic than the farewell."""
        self._left_behind.append((call, call.callee))
        if len(self._left_behind) == 1:
            self.start_writer(self._hear_out(), "last words")

    async def _hear_out(self) -> None:
        calls, self._left_behind = self._left_behind, []
        if self._station is not None:
            with suppress(BrokerError):
                await self._station.catch_up()
        for call, callee in calls:
            if self.is_under_way(call) and call.callee == callee:
                call.fail(PeerLost(f"the instance of {call.target.app_id} that took the call is gone"))

    def _on_topic_lost(self, topic: str) -> None:
        for call in list(self._calls.values()):
            if topic == call.reply_topic:
                call.cancel(PeerLost(f"the topic of the answers, {topic}, was deleted in the middle of a call"))

    # silence, on either side

    def _plan_tick(self) -> None:
        if self._ticker is None:
            self._tick_due = self._loop.time() + self._beat / TICKS_PER_BEAT
            self._ticker = self._loop.call_at(self._tick_due, self._tick)

    def _tick(self) -> None:
        """Fail the calls whose far end is silent, and tell far ends that we are there. Quick calls see none of it. What
        a loop that came late has not read yet counts as heard."""
        now = self._loop.time()
        late = now - self._tick_due
        calls, served = list(self._calls.values()), self._services.calls
        everything: list[OutgoingCall | IncomingCall] = [*calls, *served]
        if late > self._beat / TICKS_PER_BEAT:
            for each in everything:
                each.heard += late
        limit = self._beat * MISSED_BEATS
        for call in calls:
            if now - call.heard > limit or call.has_lost_its_callee(now):
                call.on_silence(limit)
        for incoming in served:
            if incoming.beats and now - incoming.heard > limit:
                incoming.abandon()
        self._send_beats(now, ((call, (call.topic, call.partition)) for call in self._calls.values() if call.topic))
        self._send_beats(now, ((incoming, incoming.reply) for incoming in self._services.calls))
        self._ticker = None
        if self._calls or self._services.calls:
            self._plan_tick()

    def _send_beats(self, now: float, calls: Iterable[tuple[OutgoingCall | IncomingCall, tuple[str, int]]]) -> None:
        """One record for all the calls of a partition."""
        due: dict[tuple[str, int], list[str]] = {}
        for call, address in calls:
            if now - call.spoke >= self._beat * (1 - 1 / TICKS_PER_BEAT):
                call.spoke = now
                due.setdefault(address, []).append(call.id)
        for (topic, partition), ids in due.items():
            try:
                assert self._station is not None  # noqa: S101 - calls have one
                self._station.outbox.send(topic, partition, request_codec.frame("beat"), " ".join(ids).encode())
            except BrokerUnavailable:
                return

    async def close(self) -> None:
        self._closed = True
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.gather(self._opening, return_exceptions=True)
        await self._services.cut()
        for call in list(self._calls.values()):
            call.cancel(PeerLost("this end of the call was closed"))
        if self._ticker is not None:
            self._ticker.cancel()
            self._ticker = None
        for writer in self._writers:
            writer.cancel()
        await asyncio.gather(*self._writers, return_exceptions=True)
        station, self._station = self._station, None
        if station is not None:
            await station.close()


class OutgoingCall:
    """One call that waits for its answer, or whose streams still flow."""

    __slots__ = (
        "_inflow",
        "_left",
        "_offset",
        "_outflow",
        "_register",
        "_request",
        "_requests",
        "_station",
        "_streamed",
        "_tried",
        "answer",
        "callee",
        "heard",
        "id",
        "instance",
        "partition",
        "reply_topic",
        "spoke",
        "taken",
        "target",
        "topic",
        "writer",
    )

    def __init__(
        self, requests: KafkaRequests, station: Station, target: Peer, request: Request, instance: str
    ) -> None:
        loop = asyncio.get_running_loop()
        self._requests = requests
        self._station = station
        self._request = request
        self.target = target
        self.instance = instance
        self.id = random_id()
        self.answer: asyncio.Future[Response] = loop.create_future()
        self.heard = self.spoke = loop.time()
        self.taken = False
        """Whether the callee has said anything about it."""
        self.callee = ""
        """The id of the instance that has the call."""
        self.topic = ""
        self.partition = 0
        self.reply_topic = station.replies_topic
        self.writer: asyncio.Task[None] | None = None
        self._streamed = not is_whole(request.body)
        self._tried: list[str] = []
        self._register: Register | None = None
        self._offset: int | None = None
        self._left: int | None = None
        self._inflow: Inflow | None = None
        self._outflow: Outflow | None = None

    async def begin(self) -> None:
        """Send the call. Raises `NoResponder`, `BrokerError`, `MessageTooLarge`."""
        self._register = await self._station.register(self.target.namespace)
        member = await self._callee()
        offer = member.offer(self.target.app_id, self.instance)
        place = member.beat.places.get(f"invoke/{self.target.app_id}")
        chance = random.getrandbits(20)
        topic, partition = await self._station.address(self.target, offer, place, chance)
        request = self._request
        headers = request_codec.encode_request(request, self.target, self.id, streamed=self._streamed)
        me = self._station.me
        headers += [
            ("ce_source", me.app_id.encode()),
            (request_codec.TO, member.id.encode()),
            (request_codec.FROM, self._station.id.encode()),
            (request_codec.CALLER, addressing.caller_token(me, self.target.namespace).encode()),
            (request_codec.REPLY_TOPIC, self.reply_topic.encode()),
            (request_codec.REPLY, b"%d" % self._station.replies_partition),
        ]
        if self.instance:
            headers.append((request_codec.NAME, self.instance.encode()))
        self.topic, self.partition, self.callee = topic, partition, member.id
        self._offset = self._left = None
        self.taken = False
        self._tried.append(member.id)
        self.heard = self.spoke = asyncio.get_running_loop().time()
        body = request.body if isinstance(request.body, bytes) and not self._streamed else b""
        self._station.outbox.send(topic, partition, headers, body, self._on_stored, self._on_unsent)
        self._requests.add(self)
        if self._streamed and self.writer is None:
            self._outflow = Outflow(self._send_frame)
            self.writer = self._requests.start_writer(self._write(self._outflow))

    async def _callee(self) -> Member:
        """An instance that serves what is called. Before it says that there is none, it reads what is said by now."""
        register, app, now = self._register, self.target.app_id, asyncio.get_running_loop().time
        if register is not None:
            found = register.presence.take(app, self.instance, now(), self._tried)
            if found is None:
                await self._station.refresh(register)
                found = register.presence.take(app, self.instance, now(), self._tried)
            if found is not None:
                return found
        raise self._nobody(f"has no instance {self.instance}" if self.instance else "has no instance that serves calls")

    def _nobody(self, problem: str) -> NoResponder:
        return NoResponder(f"{self.target.app_id} in the namespace {self.target.namespace} {problem}")

    def _on_stored(self, stored: object) -> None:
        self._offset = stored.offset  # type: ignore[attr-defined]
        if self._left is not None:
            self.on_left(self._left)

    def _on_unsent(self, error: BrokerError) -> None:
        """Nobody knows whether it was stored, unless it was refused."""
        if self._requests.is_under_way(self):
            self.fail(PeerLost(str(error)) if isinstance(error, BrokerUnavailable) else error)

    # what comes

    def on_sign(self) -> None:
        """The callee works on it."""
        self.heard = asyncio.get_running_loop().time()
        self.taken = True

    def on_answer(self, headers: dict[str, bytes], payload: bytes) -> None:
        if self.answer.done():
            return
        self.on_sign()
        body: Body = payload
        if request_codec.STREAM in headers:
            self._inflow = Inflow(
                self._ask_for_body,
                broken=lambda reason: self.cancel(PeerLost(reason)),
                abandoned=lambda: self.cancel(PeerLost("the body was closed")),
                complete=self._end,
            )
            body = self._inflow.body
        try:
            response = request_codec.decode_response(headers, body)
        except Malformed as malformed:
            self.cancel(PeerLost(f"{self.target.app_id}: {malformed}"))
            return
        if self._inflow is None:
            self._end()
        self.answer.set_result(response)

    def on_frame(self, frame: Frame, value: bytes) -> None:
        self.on_sign()
        if frame.kind == "error":
            self.fail(PeerLost(value.decode("utf-8", "replace")))
        elif frame.kind == "refused":
            if value == b"busy":
                self.fail(self._nobody("has too many calls waiting"))
            else:
                self._try_another()
        elif frame.kind == "credit" and self._outflow is not None:
            self._outflow.grant(frame.number)
        elif self._inflow is not None and frame.kind == "chunk":
            self._inflow.on_chunk(frame.number, value)
        elif self._inflow is not None and frame.kind == "end":
            self._inflow.on_end(frame.number)

    def on_left(self, read: int) -> None:
        """The callee is gone. What stands at `read` or behind, it has never seen."""
        self._left = read
        if self._offset is None:
            return
        if self._offset >= read:
            self._try_another()
        else:
            self._requests.hear_out(self)

    def _try_another(self) -> None:
        """Nothing was handed to a handler: another instance may have the call."""
        if not self.answer.done():
            self._requests.forget(self)
            self._requests.start_writer(self._begin_again(), "call again")

    async def _begin_again(self) -> None:
        try:
            if not self.answer.done():
                await self.begin()
        except Exception as error:
            self.fail(error)

    def has_lost_its_callee(self, now: float) -> bool:
        """Whether it was sent to one that was dead by then, or died before it said anything."""
        if self.taken or self._register is None:
            return False
        member = self._register.presence.members.get(self.callee)
        return member is not None and self._register.presence.is_silent(member, now)

    def on_silence(self, limit: float) -> None:
        if self._register is not None and (member := self._register.presence.members.get(self.callee)) is not None:
            member.suspect = True
        how = f"took the call and has been silent for {limit:g} s" if self.taken else "is silent, and may have the call"
        self.cancel(PeerLost(f"{self.target.app_id} {how}"))

    # bodies

    def _ask_for_body(self, amount: int) -> None:
        self._send_frame("credit", amount, b"")

    def _send_frame(self, kind: str, number: int, value: bytes) -> None:
        frame = request_codec.frame(kind, self.id, number)
        self._station.outbox.send(self.topic, self.partition, frame, value, None, self._on_unsent)

    async def _write(self, outflow: Outflow) -> None:
        try:
            await outflow.write(self._request.body)
        except Exception as error:  # the body's own, for one
            self.cancel(error)

    # ends

    def cancel(self, error: BaseException) -> None:
        """Break the call off, and tell the callee. Does nothing when the call is over."""
        if self._requests.is_under_way(self):
            try:
                frame = request_codec.frame("cancel", self.id)
                self._station.outbox.send(self.topic, self.partition, frame, b"")
            except BrokerUnavailable:
                pass
        self.fail(error)

    def fail(self, error: BaseException) -> None:
        """The call ends here."""
        self._end()
        if not self.answer.done():
            self.answer.set_exception(error)
            self.answer.exception()  # nobody may wait for it any more
        if self._inflow is not None and isinstance(error, Exception):
            self._inflow.body.fail(error)

    def _end(self) -> None:
        self._requests.forget(self)
        if self.writer is not None:
            self.writer.cancel()
