"""Streamed bodies over Kafka: numbered chunks among the other records, against credit."""

from __future__ import annotations

from collections.abc import Callable

from brokers.streams import CHUNK, WINDOW, BodyReader, Credit, close_body, write
from mesh.errors import BrokerError, BrokerUnavailable, MessageTooLarge
from mesh.ports import Body, HeaderList, PeerLost

MAX_BODY = 64 * 1024 * 1024
"""Bytes of a body, at most: the servers store all of it, and all its copies."""


class BodyTooLarge(MessageTooLarge):
    """A body passes what may go over Kafka."""

    def __init__(self, size: int) -> None:
        BrokerError.__init__(
            self,
            f"the body has {size} bytes or more, and {MAX_BODY} may go in one call over Kafka; send it in parts, or "
            "let calls go over NATS (MESHWIRE_REQUESTS)",
        )
        self.size = size
        self.limit = MAX_BODY


def check(headers: HeaderList, body: Body) -> None:
    """Raises `BodyTooLarge` for a body that is known to be."""
    size = len(body) if isinstance(body, bytes) else 0
    for name, value in headers:
        if name.lower() == b"content-length" and value.isdigit() and not isinstance(body, bytes):
            size = int(value[:20])
    if size > MAX_BODY:
        raise BodyTooLarge(size)


class Inflow:
    """A body that comes in. `body` is for its reader.

    `send_credit` grants the writer so much more. `broken` runs when the stream breaks off, `abandoned` when its reader
    closes it early, `complete` when all of it has come.
    """

    def __init__(
        self,
        send_credit: Callable[[int], None],
        *,
        broken: Callable[[str], None],
        abandoned: Callable[[], None],
        complete: Callable[[], None],
    ) -> None:
        self._send_credit = send_credit
        self._broken = broken
        self._complete = complete
        self._received = 0
        self.body = BodyReader(self._begin, self._grant, abandoned)

    async def _begin(self) -> None:
        self._grant(WINDOW)

    def _grant(self, amount: int) -> None:
        try:
            self._send_credit(amount)
        except BrokerError as error:
            self._break(str(error))

    def on_chunk(self, number: int, chunk: bytes) -> None:
        if number < self._received:
            return  # sent again by a producer that had not heard of its being stored
        if number > self._received or self.body.over:
            self._break(f"chunk {self._received} of the body is missing")
            return
        self._received += 1
        self.body.put(chunk)
        if self._is_broken():
            self._break("the far end sent more than it was allowed to")

    def _is_broken(self) -> bool:
        return self.body.over

    def on_end(self, count: int) -> None:
        if count != self._received:
            self._break(f"chunk {self._received} of the body is missing")
        else:
            self.body.end()
            self._complete()

    def _break(self, reason: str) -> None:
        self.body.fail(PeerLost(reason))
        self._broken(reason)


class Outflow:
    """A body that goes out, once the far end has granted credit."""

    def __init__(self, send: Callable[[str, int, bytes], None]) -> None:
        """`send` gets the kind of a frame (`chunk`, `end`), its number and its value."""
        self._send = send
        self._credit = Credit()
        self._sent = 0
        self._size = 0

    def grant(self, amount: int) -> None:
        if amount > 0:
            self._credit.grant(amount)

    async def write(self, body: Body) -> None:
        """Returns when the end of `body` is sent, and closes it in any case. Raises `PeerLost`, `BodyTooLarge`, and
        what `body` raises."""
        try:
            await self._credit.spend(1)  # before the far end wants the body, nothing of it is touched
            await write(body, self._credit, self._send_chunk, CHUNK)
            self._send("end", self._sent, b"")
        except BrokerUnavailable as error:
            raise PeerLost(str(error)) from None
        finally:
            await close_body(body)

    def _send_chunk(self, chunk: bytes) -> None:
        self._size += len(chunk)
        if self._size > MAX_BODY:
            raise BodyTooLarge(self._size)
        self._send("chunk", self._sent, chunk)
        self._sent += 1
