"""Bodies of any size between two peers: chunks, credits and the two ends of a stream.

The reader grants credit, the writer spends it: what was sent and not yet read never passes `WINDOW`, so a reader
that stops also stops the writer. How chunks and credits travel is the broker's affair.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from mesh.ports import Body, BodyStream, PeerLost

CHUNK = 128 * 1024
"""Most bytes in one chunk. A body that is whole and no longer than this is not streamed."""
CHUNK_COST = 256
"""Credit that a chunk costs beyond its bytes, so that tiny ones are bounded as well."""
WINDOW = 3 * (CHUNK + CHUNK_COST)
"""Credit with which a stream begins (docs/adr/0005-stream-window.md)."""
GRANT = WINDOW // 4
"""Credit that is granted at once: fewer messages than one for each chunk."""


def is_whole(body: Body, limit: int = CHUNK) -> bool:
    """Whether `body` travels with its message."""
    return isinstance(body, bytes) and len(body) <= limit


async def close_body(body: Body) -> None:
    if not isinstance(body, bytes):
        await body.aclose()


class Credit:
    """What the writer of one stream may still send."""

    def __init__(self) -> None:
        self._available = 0
        self._more: asyncio.Future[None] | None = None

    def grant(self, amount: int) -> None:
        self._available += amount
        if self._more is not None and not self._more.done():
            self._more.set_result(None)

    async def spend(self, amount: int) -> None:
        """Returns when there is so much, and takes it. For one writer."""
        while self._available < amount:
            self._more = asyncio.get_running_loop().create_future()
            await self._more
        self._available -= amount


async def write(body: Body, credit: Credit, send: Callable[[bytes], None], chunk: int = CHUNK) -> None:
    """Send `body` in chunks of at most `chunk` bytes, each when there is credit for it. Pieces that are smaller are
    sent as they come. Raises what `body` and `send` raise; the body is the caller's to close."""
    if isinstance(body, bytes):
        await _write_piece(body, credit, send, chunk)
    else:
        async for piece in body:
            await _write_piece(piece, credit, send, chunk)


async def _write_piece(piece: bytes, credit: Credit, send: Callable[[bytes], None], chunk: int) -> None:
    for start in range(0, len(piece), chunk):
        part = piece if len(piece) <= chunk else piece[start : start + chunk]
        await credit.spend(len(part) + CHUNK_COST)
        send(part)
        await asyncio.sleep(0)  # small calls come in between, however much credit there is


class BodyReader(BodyStream):
    """The reading end of a stream, and a `BodyStream` for who reads.

    `begin` runs before the first read: no credit is granted for a body that nobody wants; `begin` grants the first,
    of `WINDOW`. `grant` passes further credit to the writer. `abandon` runs when the reader closes before the end.
    """

    def __init__(
        self, begin: Callable[[], Awaitable[None]], grant: Callable[[int], None], abandon: Callable[[], None]
    ) -> None:
        self._begin: Callable[[], Awaitable[None]] | None = begin
        self._grant = grant
        self._abandon = abandon
        self._chunks: deque[bytes] = deque()
        self._spare = WINDOW
        self._read = 0
        self._ended = False
        self._closed = False
        self._error: Exception | None = None
        self._news: asyncio.Future[None] | None = None

    def put(self, chunk: bytes) -> None:
        """The next chunk has come. A writer that spends more than it was granted breaks the stream."""
        self._spare -= len(chunk) + CHUNK_COST
        if self._spare < 0:
            self.fail(PeerLost("the far end sent more than it was allowed to"))
        elif not self.over:
            self._chunks.append(chunk)
            self._wake()

    def end(self) -> None:
        """The body is whole."""
        self._ended = True
        self._wake()

    def fail(self, error: Exception) -> None:
        """The body breaks off here. Does nothing when it is whole, or closed."""
        if not self.over:
            self._error = error
            self._chunks.clear()
            self._wake()

    @property
    def over(self) -> bool:
        """Nothing more will come."""
        return self._ended or self._closed or self._error is not None

    def _wake(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    def __aiter__(self) -> BodyReader:
        return self

    async def __anext__(self) -> bytes:
        if self._begin is not None and not self.over:
            begin, self._begin = self._begin, None
            await begin()
        while not self._chunks:
            if self._error is not None:
                raise self._error
            if self.over:
                raise StopAsyncIteration
            self._news = asyncio.get_running_loop().create_future()
            await self._news
        chunk = self._chunks.popleft()
        self._read += len(chunk) + CHUNK_COST
        if self._read >= GRANT and not self.over:
            self._spare += self._read
            self._grant(self._read)
            self._read = 0
        return chunk

    async def aclose(self) -> None:
        if self._closed:
            return
        over = self.over
        self._closed = True
        self._chunks.clear()
        self._wake()
        if not over:
            self._abandon()
