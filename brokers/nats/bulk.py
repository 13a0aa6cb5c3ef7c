"""Streamed bodies over NATS: numbered chunks on a second connection, which small calls never wait for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from brokers.nats import request_codec
from brokers.nats.connection import Connection, Disconnected
from brokers.nats.mailbox import Mailbox, is_inbox
from brokers.streams import CHUNK, WINDOW, BodyReader, Credit, close_body, write
from mesh.errors import BrokerError, BrokerUnavailable
from mesh.ports import Body, PeerLost

CONNECT_LIMIT = 4.0
"""Seconds that a stream waits for the second connection to stand."""
CHUNK_HEADERS = 256
"""Bytes that a chunk may need beyond its own: a server with a small `max_payload` gets smaller chunks."""


class Bulk:
    """The second connection, made when the first stream asks for it, and the streams that are on it."""

    def __init__(self, main: Connection) -> None:
        self._main = main
        self._connection: Connection | None = None
        self._start: asyncio.Task[None] | None = None
        self._mailbox: Mailbox | None = None
        self._streams: dict[Callable[[str], None], Callable[[], bytes | None]] = {}
        self._closed = False

    async def ready(self) -> tuple[Connection, Mailbox]:
        """Raises `BrokerUnavailable`."""
        if self._closed:
            raise Disconnected("the connection to NATS is closed")
        if self._connection is None or self._mailbox is None or self._has_given_up():
            self._connection = self._main.another("bulk")
            self._connection.on_lost(self._on_lost)
            self._connection.on_denied(self._on_denied)
            self._mailbox = Mailbox(self._connection)
            self._start = asyncio.get_running_loop().create_task(self._connection.start(), name="nats bulk connection")
        await self._connection.wait_connected(CONNECT_LIMIT)
        return self._connection, self._mailbox

    def _has_given_up(self) -> bool:
        """Whether the server refused our credentials, of which a connection that never stood dies."""
        return self._start is not None and self._start.done() and self._start.exception() is not None

    async def close(self) -> None:
        self._closed = True
        if self._start is not None:
            self._start.cancel()
            await asyncio.gather(self._start, return_exceptions=True)
        if self._connection is not None:
            await self._connection.close()

    def join(self, fail: Callable[[str], None], address: Callable[[], bytes | None]) -> None:
        """Call `fail` with the reason when the connection is lost, or when we may not send to `address`."""
        self._streams[fail] = address

    def leave(self, fail: Callable[[str], None]) -> None:
        self._streams.pop(fail, None)

    def _on_lost(self, reason: str) -> None:
        for fail in list(self._streams):
            fail(f"the connection to NATS was lost: {reason}")

    def _on_denied(self, text: str) -> bool:
        denied = [
            fail
            for fail, address in self._streams.items()
            if (known := address()) is not None and f'"{known.decode().lower()}"' in text
        ]
        for fail in denied:
            fail(f"NATS refused: {text}; grant this user the permission")
        return bool(denied)


class Inflow:
    """A body that comes in. `body` is for its reader.

    `send_credit` tells the writer of so much credit, and with the first of it, of the address to write to. `broken`
    runs when the stream breaks off, `abandoned` when its reader closes it early, `complete` when all of it has come.
    """

    def __init__(
        self,
        bulk: Bulk,
        send_credit: Callable[[int, bytes], None],
        *,
        broken: Callable[[str], None],
        abandoned: Callable[[], None],
        complete: Callable[[], None],
    ) -> None:
        self._bulk = bulk
        self._send_credit = send_credit
        self._broken = broken
        self._complete = complete
        self._mailbox: Mailbox | None = None
        self._address = b""
        self._received = 0
        self.body = BodyReader(self._begin, self._grant, abandoned)

    async def _begin(self) -> None:
        try:
            _, self._mailbox = await self._bulk.ready()
        except BrokerError as error:
            self._break(str(error))
            return
        if self.body.over:
            return
        self._address = self._mailbox.open(self._on_frame)
        self._bulk.join(self._break, lambda: None)
        self._grant(WINDOW)

    def _grant(self, amount: int) -> None:
        try:
            self._send_credit(amount, self._address)
        except BrokerError as error:
            self._break(str(error))

    def _on_frame(self, _subject: bytes, _reply: bytes, block: bytes, payload: bytes) -> None:
        frame = request_codec.parse_frame(block)
        if frame is None or frame.value != b"%d" % self._received:
            self._break(f"chunk {self._received} of the body is missing")
        elif frame.kind == b"chunk":
            self._received += 1
            self.body.put(payload)
            if self.body.over:
                self._break("the far end sent more than it was allowed to")
        elif frame.kind == b"end":
            self.body.end()
            self.close()
            self._complete()

    def _break(self, reason: str) -> None:
        self.fail(PeerLost(reason))
        self._broken(reason)

    def fail(self, error: Exception) -> None:
        self.body.fail(error)
        self.close()

    def close(self) -> None:
        """Take no more."""
        self._bulk.leave(self._break)
        if self._mailbox is not None:
            self._mailbox.close(self._address)


class Outflow:
    """A body that goes out, once the far end has told where to and has granted credit."""

    def __init__(self, bulk: Bulk, broken: Callable[[str], None]) -> None:
        self._bulk = bulk
        self._broken = broken
        self._credit = Credit()
        self._address: bytes | None = None
        self._sent = 0

    def on_credit(self, frame: request_codec.Frame, address: bytes) -> None:
        """A `credit` frame has come, with `address` as its reply subject."""
        if self._address is None:
            if not is_inbox(address):
                return
            self._address = address
        if frame.value.isdigit() and len(frame.value) < 10:
            self._credit.grant(int(frame.value))

    async def write(self, body: Body) -> None:
        """Returns when the end of `body` is sent, and closes it in any case. Raises `PeerLost`, and what `body`
        raises."""
        try:
            await self._credit.spend(1)  # before the far end wants the body, nothing of it is touched
            connection, _ = await self._bulk.ready()
            limit = max(1, min(CHUNK, connection.max_payload - CHUNK_HEADERS))
            self._bulk.join(self._broken, lambda: self._address)
            await write(body, self._credit, lambda chunk: self._send(connection, chunk), limit)
            self._publish(connection, request_codec.end(self._sent), b"")
        except BrokerUnavailable as error:
            raise PeerLost(str(error)) from None
        finally:
            self._bulk.leave(self._broken)
            await close_body(body)

    def _send(self, connection: Connection, chunk: bytes) -> None:
        self._publish(connection, request_codec.chunk(self._sent), chunk)
        self._sent += 1

    def _publish(self, connection: Connection, block: bytes, payload: bytes) -> None:
        if self._address is None:
            raise PeerLost("the far end granted credit without an address")
        connection.publish(self._address, b"", block, payload)
