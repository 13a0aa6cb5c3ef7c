"""The callee's side of calls over NATS: a member of an app's queue group (docs/adr/0004-invocation-on-nats.md)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from brokers.nats import request_codec
from brokers.nats.bulk import Bulk, Inflow, Outflow
from brokers.nats.connection import Connection, Disconnected
from brokers.nats.mailbox import Mailbox, is_inbox
from brokers.streams import close_body, is_whole
from brokers.workers import Workers
from mesh import addressing
from mesh.errors import BrokerError, MeshError, MessageTooLarge
from mesh.ports import Body, Peer, RequestHandler, Response

logger = logging.getLogger("meshwire.nats")

BEATS_PER_TICK = 0.125
"""How often we look for calls that want a beat, as a part of the time between beats."""
ANSWER_LIMIT = 4.0
"""Seconds that a finished answer waits for a lost connection to come back; its caller waits no longer either."""


class Service:
    """A `Server`: answers the calls to one app."""

    def __init__(
        self,
        connection: Connection,
        bulk: Bulk,
        mailbox: Mailbox,
        root: str,
        peer: Peer,
        handler: RequestHandler,
        *,
        instance: str,
        concurrency: int,
        beat: float,
        on_closed: Callable[[Service], None],
    ) -> None:
        """`instance` is the `addressing.instance_token` of the calls to take."""
        self.connection = connection
        self.bulk = bulk
        self.mailbox = mailbox
        self.peer = peer
        self.handler = handler
        self._root = root
        self._instance = instance
        self._beat = beat
        self._workers = Workers(concurrency, f"call to {peer.app_id}")
        self._calls: dict[bytes, IncomingCall] = {}
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._on_closed = on_closed
        self._denied: str | None = None
        self._stops: list[Callable[[], None]] = []
        self._stop_taking: Callable[[], None] | None = None

    @property
    def _calls_to_take(self) -> str:
        return f"{self._root}*{self._instance}"

    async def start(self) -> None:
        """Returns when the server sends us calls. Raises `BrokerError`."""
        queue = "" if self._instance else addressing.token(self.peer.app_id)
        self._stop_taking = self.connection.listen(self._calls_to_take, self._on_request, queue)
        self._stops = [
            self.connection.listen(f"{self._calls_to_take}.{addressing.CANCEL}", self._on_cancel),
            self.connection.on_lost(self._on_lost),
            self.connection.on_denied(self._on_denied),
        ]
        await self.connection.round_trip()
        if self._denied is not None:
            await self.cut()
            raise BrokerError(f"NATS refused: {self._denied}; grant this user the permission")

    async def close(self) -> None:
        self._take_no_more()
        try:
            await self.connection.round_trip()  # what the server had sent us already has come, and is answered
            await self._workers.drain()
        finally:
            await self.cut()

    async def cut(self) -> None:
        """Let go at once of whatever is under way."""
        self._take_no_more()
        await self._workers.cut()
        self._calls.clear()
        stops, self._stops = self._stops, []
        for stop in stops:
            stop()
        if self._timer is not None:
            self._timer.cancel()
        self._on_closed(self)

    def _take_no_more(self) -> None:
        stop, self._stop_taking = self._stop_taking, None
        if stop is not None:
            stop()

    def _on_request(self, subject: bytes, reply: bytes, block: bytes, payload: bytes) -> None:
        if not is_inbox(reply) or reply in self._calls:
            logger.warning("a call to %s cannot be answered: its reply subject is no inbox", self.peer.app_id)
            return
        token = subject[len(self._root) : len(subject) - len(self._instance)]
        call = IncomingCall(self, token, reply, block, payload, self._loop.time())
        if not self._workers.submit(call):
            self.say(reply, request_codec.BUSY)
            return
        self._calls[reply] = call
        if self._timer is None:
            self._timer = self._loop.call_later(self._beat * BEATS_PER_TICK, self._tick)

    def _on_cancel(self, subject: bytes, _reply: bytes, _block: bytes, payload: bytes) -> None:
        call = self._calls.get(payload)
        end = f"{self._instance}.{addressing.CANCEL}"
        if call is not None and subject == b"%b%b%b" % (self._root.encode(), call.token, end.encode()):
            self.abandon(call)

    def _on_lost(self, reason: str) -> None:
        """Streams lose credits with a connection. Other calls go on: their answers can wait for the next one."""
        for call in list(self._calls.values()):
            if call.streaming:
                call.lost = f"{self.peer.app_id} lost its connection to NATS: {reason}"
                self._workers.withdraw(call)

    def _on_denied(self, text: str) -> bool:
        subject = self._calls_to_take.lower()
        if f'"{subject}"' not in text and f'"{subject}.{addressing.CANCEL}"' not in text:
            return False
        self._denied = text
        return True

    def _tick(self) -> None:
        """Send the beats that are due: to callers whose call takes long, and to them only."""
        now = self._loop.time()
        for call in list(self._calls.values()):
            if now - call.heard_of >= self._beat * (1 - BEATS_PER_TICK):
                call.heard_of = now
                self.say(call.reply, request_codec.BEAT, call.control())
        self._timer = self._loop.call_later(self._beat * BEATS_PER_TICK, self._tick) if self._calls else None

    def abandon(self, call: IncomingCall) -> None:
        """Nobody waits for the answer."""
        call.gone = True
        self._workers.withdraw(call)
        self.forget(call)

    def forget(self, call: IncomingCall) -> None:
        self._calls.pop(call.reply, None)
        call.let_go()

    def say(self, address: bytes, block: bytes, reply: bytes = b"") -> None:
        """Send what may be lost: whoever waits for it hears no beats then."""
        try:
            self.connection.publish(address, reply, block, b"")
        except Disconnected:
            pass


class IncomingCall:
    """One call in the hands of this instance: a `Job`."""

    def __init__(self, service: Service, token: bytes, reply: bytes, block: bytes, payload: bytes, now: float) -> None:
        self._service = service
        self.token = token
        """How the address shows the caller."""
        self.reply = reply
        self._block = block
        self._payload = payload
        self.size = len(block) + len(payload)
        self.task: asyncio.Task[None] | None = None
        self.heard_of = now
        """When the caller last got something from us."""
        self.gone = False
        self.lost: str | None = None
        """Why the call cannot go on, for its caller to hear once there is a connection again."""
        self._control = b""
        self._inflow: Inflow | None = None
        self._outflow: Outflow | None = None

    @property
    def streaming(self) -> bool:
        return self._inflow is not None or self._outflow is not None

    def control(self) -> bytes:
        """Our address for this call. When nobody listens at the caller's, the server tells us here."""
        if not self._control:
            self._control = self._service.mailbox.open(self._on_control)
        return self._control

    def _on_control(self, _subject: bytes, reply: bytes, block: bytes, _payload: bytes) -> None:
        frame = request_codec.parse_frame(block)
        if frame is None:
            if block.startswith(request_codec.NO_RESPONDERS):
                self._service.abandon(self)
        elif frame.kind == b"cancel":
            self._service.abandon(self)
        elif frame.kind == b"credit" and self._outflow is not None:
            self._outflow.on_credit(frame, reply)

    async def run(self) -> None:
        problem: str | None = None
        try:
            await self._answer()
        except asyncio.CancelledError:
            problem = self.lost or f"{self._service.peer.app_id} is shutting down"
            raise
        except MeshError as error:
            problem = str(error)
        except Exception:
            logger.exception("a call to %s failed", self._service.peer.app_id)
            problem = f"{self._service.peer.app_id} failed to answer; its log says why"
        finally:
            if problem is not None and not self.gone:
                await self._excuse(problem)
            self._service.forget(self)

    async def _excuse(self, problem: str) -> None:
        """Tell the caller that there will be no answer. Only a lost connection is worth waiting for another."""
        if self.lost is None:
            self._service.say(self.reply, request_codec.error(problem))
            return
        try:
            await self._publish(request_codec.error(problem), b"")
        except BrokerError as error:
            logger.warning("the caller of %s hears of it by silence only: %s", self._service.peer.app_id, error)

    async def _answer(self) -> None:
        service = self._service
        caller = addressing.parse_caller(self.token.decode("utf-8", "replace"), service.peer.namespace)
        body: Body = self._payload
        if request_codec.is_streamed(self._block):
            self._inflow = Inflow(
                service.bulk, self._ask_for_body, broken=self._broken, abandoned=lambda: None, complete=lambda: None
            )
            body = self._inflow.body
        request = request_codec.decode_request(self._block, body, caller)
        self._block = self._payload = b""
        response = await service.handler(request)
        try:
            await self._send(response)
        except BaseException:
            await close_body(response.body)
            raise

    async def _send(self, response: Response) -> None:
        service = self._service
        if is_whole(response.body):
            assert isinstance(response.body, bytes)  # noqa: S101 - for mypy
            block = request_codec.encode_response(response, service.peer, streamed=False)
            try:
                await self._publish(block, response.body)
            except MessageTooLarge:  # max_payload is below what we take for a chunk
                if not response.body:
                    raise
            else:
                return
        self._outflow = Outflow(service.bulk, self._broken)
        await self._publish(request_codec.encode_response(response, service.peer, streamed=True), b"", self.control())
        await self._outflow.write(response.body)

    async def _publish(self, block: bytes, payload: bytes, reply: bytes = b"") -> None:
        connection = self._service.connection
        try:
            connection.publish(self.reply, reply, block, payload)
        except Disconnected:
            await connection.wait_connected(ANSWER_LIMIT)
            connection.publish(self.reply, reply, block, payload)

    def _ask_for_body(self, amount: int, address: bytes) -> None:
        self._service.connection.publish(self.reply, address, request_codec.credit(amount), b"")

    def _broken(self, reason: str) -> None:
        """A stream of this call cannot go on, and so the call cannot."""
        if not self.gone:
            self._service.say(self.reply, request_codec.error(reason))
            self._service.abandon(self)

    def let_go(self) -> None:
        """The call is over: what is left of it takes no more."""
        if self._inflow is not None:
            self._inflow.close()
            self._inflow.body.fail(MeshError("the call is over"))
        if self._control:
            self._service.mailbox.close(self._control)
            self._control = b""
