"""The callee's side of calls over Kafka (docs/adr/0012-kafka.md)."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable

from brokers.kafka import bodies, request_codec
from brokers.kafka.bodies import Inflow, Outflow
from brokers.kafka.presence import Offer
from brokers.kafka.request_codec import Frame
from brokers.kafka.station import Record, Station
from brokers.streams import close_body, is_whole
from brokers.workers import Workers
from mesh import addressing
from mesh.errors import BrokerError, BrokerUnavailable, MeshError
from mesh.ports import Body, Peer, PeerLost, RequestHandler, Response

logger = logging.getLogger("meshwire.kafka")

REMEMBERED = 4_096
"""Calls that are known after they ended: a producer that was cut off may send one twice."""


class Services:
    """All that one process serves."""

    def __init__(self, on_busy: Callable[[], None], *, verified: bool) -> None:
        self.verified = verified
        self._on_busy = on_busy
        self._station: Station | None = None
        self._services: dict[tuple[str, str], list[Service]] = {}
        self._calls: dict[str, IncomingCall] = {}
        self._ended: OrderedDict[str, None] = OrderedDict()
        self._loop = asyncio.get_running_loop()

    @property
    def station(self) -> Station:
        if self._station is None:
            raise BrokerUnavailable("the connection to Kafka is closed")
        return self._station

    @property
    def calls(self) -> list[IncomingCall]:
        return list(self._calls.values())

    async def add(self, station: Station, service: Service) -> None:
        """Returns when callers can find it. Raises `BrokerError`."""
        self._station = station
        key = (service.peer.app_id, service.instance)
        self._services.setdefault(key, []).append(service)
        try:
            await station.listen(
                service.peer.app_id, self.verified, lambda record: self.on_record(service.peer, record)
            )
            await station.offer(self._offers())
        except BaseException:
            self.discard(service)
            raise

    def discard(self, service: Service) -> None:
        key = (service.peer.app_id, service.instance)
        members = self._services.get(key, [])
        if service in members:
            members.remove(service)
        if not members:
            self._services.pop(key, None)

    async def withdraw(self, service: Service) -> None:
        """Returns when callers know that it takes no more, if they can be told at all."""
        self.discard(service)
        try:
            await self.station.offer(self._offers())
        except BrokerError as error:
            logger.debug("%s could not say that it leaves: %s", service.peer.app_id, error)

    def _offers(self) -> tuple[Offer, ...]:
        return tuple(Offer(app, instance, self.verified) for app, instance in self._services)

    async def cut(self) -> None:
        for services in list(self._services.values()):
            for service in list(services):
                await service.cut()
        self._services.clear()

    def on_record(self, target: Peer, record: Record) -> None:
        """A record from a topic of calls to `target`: a call, or a frame about one."""
        headers = request_codec.read(record.headers)
        frame = request_codec.parse_frame(headers)
        id = headers.get(request_codec.CALL, b"").decode("latin-1")
        if frame is None:
            if headers.get(request_codec.TO) == self.station.id.encode() and id:
                self._on_call(target, id, headers, record)
        elif frame.kind == "beat":
            now = self._loop.time()
            for text in (record.value or b"").decode("latin-1").split():
                call = self._calls.get(text)
                if call is not None and call.topic == record.topic:
                    call.heard = now
        else:
            call = self._calls.get(id)
            if call is not None and call.topic == record.topic:
                call.on_frame(frame, record.value or b"")

    def _on_call(self, target: Peer, id: str, headers: dict[str, bytes], record: Record) -> None:
        if id in self._calls or id in self._ended:
            return
        try:
            caller = addressing.parse_caller(headers[request_codec.CALLER].decode(), target.namespace)
            partition = int(headers[request_codec.REPLY])
            # the name of the topic tells who may have written this; nobody else's may stand in the header
            if self.verified and record.topic != addressing.kafka_invoke_topic(self.station.prefix, target, caller):
                raise MeshError(f"{caller.app_id} does not send its calls to {record.topic}")
        except (KeyError, ValueError, MeshError) as fault:
            logger.warning("a call to %s cannot be answered: %s", target.app_id, fault or type(fault).__name__)
            return
        call = IncomingCall(self, target, caller, partition, id, headers, record)
        members = self._services.get((target.app_id, headers.get(request_codec.NAME, b"").decode("utf-8", "replace")))
        if not members:
            call.say("refused", b"left")
            return
        members.append(members.pop(0))
        call.service = members[-1]
        if not call.service.workers.submit(call):
            call.say("refused", b"busy")
            return
        self._calls[id] = call
        self._on_busy()

    def forget(self, call: IncomingCall) -> None:
        if self._calls.pop(call.id, None) is not None:
            self._ended[call.id] = None
            if len(self._ended) > REMEMBERED:
                self._ended.popitem(last=False)
        call.let_go()


class Service:
    """A `Server`: answers the calls to one app, or to one instance of it."""

    def __init__(
        self, services: Services, peer: Peer, instance: str, handler: RequestHandler, concurrency: int
    ) -> None:
        self.peer = peer
        self.instance = instance
        self.handler = handler
        self.workers = Workers(concurrency, f"call to {peer.app_id}")
        self._services = services

    async def close(self) -> None:
        try:
            await self._services.withdraw(self)
            await self.workers.drain()
        finally:
            await self.cut()

    async def cut(self) -> None:
        """Let go at once of whatever is under way."""
        self._services.discard(self)
        await self.workers.cut()
        for call in self._services.calls:
            if call.service is self:  # it never began
                call.say("error", f"{self.peer.app_id} is shutting down".encode())
                self._services.forget(call)


class IncomingCall:
    """One call in the hands of this instance: a `Job`."""

    service: Service

    def __init__(
        self,
        services: Services,
        target: Peer,
        caller: Peer,
        partition: int,
        id: str,
        headers: dict[str, bytes],
        record: Record,
    ) -> None:
        self._services = services
        self._station = services.station
        self._loop = asyncio.get_running_loop()
        self.target = target
        self.caller = caller
        self.id = id
        self.topic = record.topic
        self.reply = (addressing.kafka_replies_topic(self._station.prefix, caller), partition)
        self._headers = headers
        self._payload = record.value or b""
        self.size = len(self._payload) + sum(map(len, headers.values()))
        self.task: asyncio.Task[None] | None = None
        self.heard = self.spoke = self._loop.time()
        """When the caller was heard of, and when it last got something from us."""
        self.beats = request_codec.FROM in headers
        """The caller says every now and then that it still waits."""
        self._gone = False
        self._inflow: Inflow | None = None
        self._outflow: Outflow | None = None

    def on_frame(self, frame: Frame, value: bytes) -> None:
        self.heard = self._loop.time()
        if frame.kind == "cancel":
            self.abandon()
        elif frame.kind == "credit" and self._outflow is not None:
            self._outflow.grant(frame.number)
        elif self._inflow is not None and frame.kind == "chunk":
            self._inflow.on_chunk(frame.number, value)
        elif self._inflow is not None and frame.kind == "end":
            self._inflow.on_end(frame.number)

    def abandon(self) -> None:
        """Nobody waits for the answer."""
        self._gone = True
        self.service.workers.withdraw(self)
        self._services.forget(self)

    async def run(self) -> None:
        problem: str | None = None
        try:
            await self._answer()
        except asyncio.CancelledError:
            problem = f"{self.target.app_id} is shutting down"
            raise
        except MeshError as error:
            problem = str(error)
        except Exception:
            logger.exception("a call to %s failed", self.target.app_id)
            problem = f"{self.target.app_id} failed to answer; its log says why"
        finally:
            if problem is not None and not self._gone:
                self.say("error", request_codec.error_value(problem))
            self._services.forget(self)

    async def _answer(self) -> None:
        headers, payload = self._headers, self._payload
        self._headers, self._payload = {}, b""
        body: Body = payload
        if request_codec.STREAM in headers:
            self._inflow = Inflow(
                self._ask_for_body, broken=self._broken, abandoned=lambda: None, complete=lambda: None
            )
            body = self._inflow.body
        request = request_codec.decode_request(headers, body, self.caller)
        response = await self.service.handler(request)
        try:
            await self._send(response)
        except BaseException:
            await close_body(response.body)
            raise

    async def _send(self, response: Response) -> None:
        bodies.check(response.headers, response.body)
        whole = is_whole(response.body)
        headers = request_codec.encode_response(response, self.id, self.target, streamed=not whole)
        if not whole:
            self._outflow = Outflow(self._send_frame)
        self._station.outbox.send(
            *self.reply,
            headers,
            response.body if isinstance(response.body, bytes) and whole else b"",
            None,
            self._on_lost,
        )
        if self._outflow is not None:
            await self._outflow.write(response.body)

    def _send_frame(self, kind: str, number: int, value: bytes) -> None:
        frame = request_codec.frame(kind, self.id, number)
        self._station.outbox.send(*self.reply, frame, value, None, self._on_lost)

    def _ask_for_body(self, amount: int) -> None:
        self._send_frame("credit", amount, b"")

    def _on_lost(self, error: BrokerError) -> None:
        """What we say does not reach the caller, who finds out by our silence."""
        logger.warning("%s cannot answer %s: %s", self.target.app_id, self.caller.app_id, error)
        if not self._gone:
            self.abandon()

    def say(self, kind: str, value: bytes) -> None:
        """Send what may be lost: whoever waits for it hears no beats then."""
        try:
            self._station.outbox.send(*self.reply, request_codec.frame(kind, self.id), value)
        except BrokerUnavailable:
            pass

    def _broken(self, reason: str) -> None:
        """A stream of this call cannot go on, and so the call cannot."""
        if not self._gone:
            self.say("error", request_codec.error_value(reason))
            self.abandon()

    def let_go(self) -> None:
        """The call is over: what is left of it takes no more."""
        if self._inflow is not None:
            self._inflow.body.fail(PeerLost("the call is over"))
