"""The Requests port on NATS (docs/adr/0004-invocation-on-nats.md): the caller's side, and both under one roof."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from functools import lru_cache

from brokers.nats import request_codec
from brokers.nats.bulk import Bulk, Inflow, Outflow
from brokers.nats.connection import Connection, Disconnected
from brokers.nats.mailbox import Mailbox, is_inbox
from brokers.nats.service import Service
from brokers.streams import CHUNK, close_body
from mesh import addressing
from mesh.errors import BrokerError, MessageTooLarge
from mesh.ports import Body, NoResponder, Peer, PeerLost, Request, RequestHandler, Response

BEAT = 2.0
"""Seconds between two beats of a callee that works."""
MISSED_BEATS = 2.125
"""Silence, in times between beats, after which the callee counts as lost: two beats are missing."""
SWEEPS_PER_BEAT = 16
"""How often in the time between beats we look for callees that are silent."""

ASK_AGAIN = (0.0, 0.005)
"""Seconds after which the server is asked again when it says that nobody listens. It tries one member of a queue
group and says so, too, when that one's connection is just being closed."""


class NatsRequests:
    """Calls on the `connection` that the event log has; streamed bodies on a second one.

    `peer` is who we are: it stands in the address of every call, where the server's permissions can hold us to it.
    `beat` must be the same at all peers.
    """

    def __init__(
        self,
        connection: Connection,
        peer: Peer,
        *,
        prefix: str = addressing.DEFAULT_PREFIX,
        beat: float = BEAT,
    ) -> None:
        self.connection = connection
        self._peer = peer
        self._prefix = prefix
        self._beat = beat
        self.bulk = Bulk(connection)
        self.mailbox = Mailbox(connection, self._refuse)
        self._subject = lru_cache(maxsize=1024)(self._call_subject)
        self._stops = [
            self.mailbox.stop,
            connection.on_lost(self._on_lost),
            connection.on_denied(self._on_denied),
        ]
        self._loop = asyncio.get_running_loop()
        self._calls: set[OutgoingCall] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self._sweep_due = 0.0
        self._writers: set[asyncio.Task[None]] = set()
        self._services: set[Service] = set()
        self._closed = False

    async def serve(self, app_id: str, handler: RequestHandler, *, concurrency: int, instance: str = "") -> Service:
        peer = Peer(self._peer.namespace, app_id)
        service = Service(
            self.connection,
            self.bulk,
            self.mailbox,
            addressing.invocation_root(self._prefix, peer),
            peer,
            handler,
            instance=addressing.instance_token(instance),
            concurrency=concurrency,
            beat=self._beat,
            on_closed=self._services.discard,
        )
        self._services.add(service)
        await service.start()
        return service

    async def request(self, target: Peer, request: Request, *, instance: str = "") -> Response:
        call: OutgoingCall | None = None
        try:
            call = self._begin(target, request, instance)
            return await call.answer
        except BaseException as error:
            if call is not None:
                call.cancel(error)
            if call is None or call.writer is None:
                await close_body(request.body)
            raise

    def _begin(self, target: Peer, request: Request, instance: str) -> OutgoingCall:
        if self._closed:
            raise Disconnected("the connection to NATS is closed")
        call = OutgoingCall(self, target, self._subject(target, instance))
        try:
            streamed = self._send(call, request)
        except BaseException:
            self.mailbox.close(call.address)
            raise
        self._calls.add(call)
        if self._sweeper is None:
            self._plan_sweep()
        if streamed:
            call.send_body(request.body)
        return call

    def _call_subject(self, target: Peer, instance: str) -> bytes:
        root = addressing.invocation_root(self._prefix, target)
        caller = addressing.caller_token(self._peer, target.namespace)
        return (root + caller + addressing.instance_token(instance)).encode()

    def _send(self, call: OutgoingCall, request: Request) -> bool:
        """Whether the body is to be streamed."""
        body, target = request.body, call.target.app_id
        if isinstance(body, bytes) and len(body) <= CHUNK:
            try:
                block = request_codec.encode_request(request, self._peer, streamed=False, target=target)
                call.send(block, body)
            except MessageTooLarge:  # max_payload is below what we take for a chunk
                if not body:
                    raise
            else:
                return False
        call.send(request_codec.encode_request(request, self._peer, streamed=True, target=target), b"")
        return True

    def tell(self, address: bytes, block: bytes, payload: bytes = b"", reply: bytes = b"") -> None:
        """Send what may be lost: a callee that goes on is told again when its next beat comes."""
        try:
            self.connection.publish(address, reply, block, payload)
        except Disconnected:
            pass

    def _refuse(self, control: bytes, block: bytes) -> None:
        """Tell a callee that works on a call that is over. Credit that comes late wants no answer."""
        if block == request_codec.BEAT or request_codec.is_streamed(block):
            self.tell(control, request_codec.CANCEL)

    def forget(self, call: OutgoingCall) -> None:
        self._calls.discard(call)
        self.mailbox.close(call.address)

    def is_under_way(self, call: OutgoingCall) -> bool:
        return call in self._calls

    def start_writer(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        writer = self._loop.create_task(work, name="request body")
        self._writers.add(writer)
        writer.add_done_callback(self._writers.discard)
        return writer

    def _plan_sweep(self) -> None:
        self._sweep_due = self._loop.time() + self._beat / SWEEPS_PER_BEAT
        self._sweeper = self._loop.call_at(self._sweep_due, self._sweep)

    def _sweep(self) -> None:
        """Fail the calls whose callee is silent. What a loop that came late has not read yet counts as heard."""
        now = self._loop.time()
        late = now - self._sweep_due
        limit = self._beat * MISSED_BEATS
        for call in list(self._calls):
            if late > self._beat / SWEEPS_PER_BEAT:
                call.heard += late
            if now - call.heard > limit:
                call.cancel(PeerLost(f"{call.target.app_id} took the call and has been silent for {limit:g} s"))
        self._sweeper = None
        if self._calls:
            self._plan_sweep()

    def _on_lost(self, reason: str) -> None:
        for call in list(self._calls):
            call.fail(PeerLost(f"the connection to NATS was lost in the middle of a call: {reason}"))

    def _on_denied(self, text: str) -> bool:
        denied = [call for call in self._calls if f'"{call.subject.decode().lower()}"' in text]
        for call in denied:
            call.fail(BrokerError(f"NATS refused: {text}; grant this user the permission"))
        return bool(denied)

    async def close(self) -> None:
        self._closed = True
        for service in list(self._services):
            await service.cut()
        for call in list(self._calls):
            call.cancel(PeerLost("this end of the call was closed"))
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        await asyncio.gather(*self._writers, return_exceptions=True)
        await self.connection.round_trip()
        stops, self._stops = self._stops, []
        for stop in stops:
            stop()
        await self.bulk.close()


class OutgoingCall:
    """One call that waits for its answer, or whose streams still flow."""

    __slots__ = (
        "_again",
        "_block",
        "_inflow",
        "_outflow",
        "_payload",
        "_requests",
        "address",
        "answer",
        "control",
        "heard",
        "subject",
        "target",
        "writer",
    )

    def __init__(self, requests: NatsRequests, target: Peer, subject: bytes) -> None:
        loop = asyncio.get_running_loop()
        self._requests = requests
        self.target = target
        self.subject = subject
        self.address = requests.mailbox.open(self._on_message)
        self.answer: asyncio.Future[Response] = loop.create_future()
        self.heard = loop.time()
        self.control = b""
        """The callee's address for this call, once there is need of it."""
        self.writer: asyncio.Task[None] | None = None
        self._inflow: Inflow | None = None
        self._outflow: Outflow | None = None
        self._again = iter(ASK_AGAIN)

    def send(self, block: bytes, payload: bytes) -> None:
        """Send the call. Raises `Disconnected`, `MessageTooLarge`."""
        self._block, self._payload = block, payload
        self._requests.connection.publish(self.subject, self.address, block, payload)

    def _send_again(self) -> None:
        if self._requests.is_under_way(self):
            self._requests.tell(self.subject, self._block, self._payload, self.address)

    def _on_message(self, _subject: bytes, reply: bytes, block: bytes, payload: bytes) -> None:
        self.heard = asyncio.get_running_loop().time()
        frame = request_codec.parse_frame(block)
        if frame is not None:
            if frame.kind == b"error":
                self.fail(PeerLost(request_codec.error_text(frame)))
            elif frame.kind == b"credit" and self._outflow is not None:
                self._outflow.on_credit(frame, reply)
        elif not self.answer.done():
            self._on_answer(reply, block, payload)

    def _on_answer(self, reply: bytes, block: bytes, payload: bytes) -> None:
        if block.startswith(request_codec.NO_RESPONDERS):
            self._on_nobody(busy=block == request_codec.BUSY)
            return
        body: Body = payload
        if request_codec.is_streamed(block) and is_inbox(reply):
            self.control = reply
            self._inflow = Inflow(
                self._requests.bulk,
                self._ask_for_body,
                broken=lambda reason: self.cancel(PeerLost(reason)),
                abandoned=lambda: self.cancel(PeerLost("the body was closed")),
                complete=self._end,
            )
            body = self._inflow.body
        try:
            response = request_codec.decode_response(block, body)
        except request_codec.Malformed as malformed:
            self.cancel(PeerLost(f"{self.target.app_id}: {malformed}"))
            return
        if self._inflow is None:
            self._end()
        self.answer.set_result(response)

    def _on_nobody(self, *, busy: bool) -> None:
        pause = None if busy else next(self._again, None)
        if pause is not None:
            asyncio.get_running_loop().call_later(pause, self._send_again)
            return
        problem = "has too many calls waiting" if busy else "has no instance that serves these calls"
        self.fail(NoResponder(f"{self.target.app_id} in the namespace {self.target.namespace} {problem}"))

    def _ask_for_body(self, amount: int, address: bytes) -> None:
        self._requests.connection.publish(self.control, address, request_codec.credit(amount), b"")

    def send_body(self, body: Body) -> None:
        self._outflow = Outflow(self._requests.bulk, lambda reason: self.cancel(PeerLost(reason)))
        self.writer = self._requests.start_writer(self._write(self._outflow, body))

    async def _write(self, outflow: Outflow, body: Body) -> None:
        try:
            await outflow.write(body)
        except Exception as error:  # the body's own, for one
            self.cancel(error)

    def cancel(self, error: BaseException) -> None:
        """Break the call off, and tell the callee. Does nothing when the call is over."""
        if self._requests.is_under_way(self):
            cancel = b"%b.%b" % (self.subject, addressing.CANCEL.encode())
            self._requests.tell(cancel, b"NATS/1.0\r\n\r\n", self.address)
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """The call ends here."""
        self._end()
        if not self.answer.done():
            self.answer.set_exception(error)
        if self._inflow is not None and isinstance(error, Exception):
            self._inflow.fail(error)

    def _end(self) -> None:
        self._requests.forget(self)
        if self.writer is not None:
            self.writer.cancel()
