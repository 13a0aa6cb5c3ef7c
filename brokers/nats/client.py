"""nats-py's client with a hot path of our own: synchronous sends, and deliveries without a queue.

nats-py spends most of its time on its parser, on headers, on a queue and a task per subscription, and on a future per
flush. `MessageReader`, `subscribe_direct` and `send` skip them. The overridden methods are private in nats-py, hence
its pinned version. Guarded by `benchmarks/`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from nats.aio.client import Client

from brokers.nats.reader import MessageReader

logger = logging.getLogger("meshwire.nats")

UNDER_WAY = 2.0
"""Seconds in which whatever the server sent before it read an `UNSUB` has come."""

DirectCallback = Callable[[bytes, bytes, bytes, bytes], None]
"""Called with subject, reply subject, header block and payload; the last three may be empty."""


class MeshClient(Client):
    """One connection to one server. It never reconnects: `Connection` makes a new one instead.

    `on_lost` is called once, with the reason, as soon as the connection cannot be used any more; `on_denied`
    with the server's text (in lower case: nats-py folds it) when a permission is missing.
    """

    def __init__(self, on_lost: Callable[[str], None], on_denied: Callable[[str], None]) -> None:
        super().__init__()
        self._on_lost: Callable[[str], None] | None = on_lost
        self._on_denied = on_denied
        self._direct: dict[int, DirectCallback] = {}
        self._outgoing: list[bytes] = []
        self._loop = asyncio.get_running_loop()

    def subscribe_direct(self, subject: str, callback: DirectCallback, queue: str = "") -> int:
        """Subscribe, as a member of the group `queue` if there is one; `callback` runs as soon as a message is
        read, and must not block."""
        self._sid += 1
        self._direct[self._sid] = callback
        self.send(b"SUB %b %b %d\r\n" % (subject.encode(), queue.encode(), self._sid))
        return self._sid

    def unsubscribe_direct(self, sid: int) -> None:
        """Unsubscribe; `callback` still gets what is under way."""
        self.send(b"UNSUB %d\r\n" % sid)
        self._loop.call_later(UNDER_WAY, self._direct.pop, sid, None)

    def send(self, command: bytes) -> None:
        """Write `command`, a whole protocol line with its payload, at the end of this turn of the loop.

        What one turn sends leaves in one system call. On a lost connection it is lost.
        """
        if not self._outgoing:
            self._loop.call_soon(self._write)
        self._outgoing.append(command)

    def _write(self) -> None:
        outgoing, self._outgoing = self._outgoing, []
        if self._transport is None or self._on_lost is None:
            return
        try:
            self._transport.write(b"".join(outgoing))
        except (OSError, RuntimeError) as error:  # uvloop: the socket was closed, and nothing has told us yet
            self._break(str(error) or type(error).__name__)

    def abandon(self) -> None:
        """Cut the connection at once. A polite close would wait for a frozen server to read what is buffered."""
        self._on_lost = None
        self._pending, self._pending_data_size = [], 0  # nats-py's own, which it would write to what is closed by then
        writer = getattr(self._transport, "_io_writer", None)
        if writer is not None:
            writer.transport.abort()

    def _lost(self, reason: str) -> None:
        on_lost, self._on_lost = self._on_lost, None
        if on_lost is not None:
            on_lost(reason)

    async def _read_loop(self) -> None:
        """Put `MessageReader` in place before nats-py reads anything, and leave the rest to nats-py: pings, errors, the
        end of the connection."""
        stream, transport = self._transport._io_reader, self._transport._io_writer.transport  # type: ignore[union-attr]
        messages = MessageReader(transport.get_protocol(), self._deliver, self._break)
        transport.set_protocol(messages)
        early = bytes(stream._buffer)
        stream._buffer.clear()
        messages.data_received(early)
        await super()._read_loop()

    def _deliver(self, sid: int, subject: bytes, reply: bytes, headers: bytes, payload: bytes) -> None:
        callback = self._direct.get(sid)
        if callback is None:
            return
        try:
            callback(subject, reply, headers, payload)
        except Exception:  # raised further, it would cost the messages behind this one
            logger.exception("a message could not be handled")

    def _break(self, reason: str) -> None:
        self._lost(reason)
        self.abandon()

    async def _process_err(self, err_msg: str) -> None:
        text = err_msg.strip("' ")
        if "permissions violation" in text:
            self._on_denied(text)
            return
        self._lost(text)
        await super()._process_err(err_msg)

    async def _process_op_err(self, e: Exception) -> None:
        self._break(str(e) or type(e).__name__)
        await super()._process_op_err(e)
