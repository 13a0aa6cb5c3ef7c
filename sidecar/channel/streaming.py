"""Bodies in pieces: in both directions no faster than the slower side takes them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from mesh.errors import AppError
from mesh.ports import BodyStream

WHOLE = 128 * 1024
"""Answers that announce no more bytes than this are awaited whole: they travel in one message."""
BUFFERED = 128 * 1024
"""Bytes of an answer that are read ahead of its reader."""


class AnswerBody:
    """The pieces of an answer, for one reader. Raises `AppError` where the app broke off."""

    __slots__ = ("_abandon", "_ended", "_error", "_pieces", "_size", "_transport", "_waiter")

    def __init__(self, transport: asyncio.Transport, abandon: Callable[[], None]) -> None:
        """`abandon` breaks the call off whose answer is not wanted any more."""
        self._abandon = abandon
        self._transport = transport
        self._pieces: list[bytes] = []
        self._size = 0
        self._ended = False
        self._error: AppError | None = None
        self._waiter: asyncio.Future[None] | None = None

    # From the connection

    def feed(self, data: bytes) -> None:
        if not data:
            return
        if self._size <= BUFFERED < self._size + len(data):
            self._transport.pause_reading()
        self._pieces.append(data)
        self._size += len(data)
        self._wake()

    def end(self) -> None:
        self._ended = True
        self._wake()

    def fail(self, error: AppError) -> None:
        if not self._ended:
            self._error = error
            self.end()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # For the reader

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        while not self._pieces:
            if self._error is not None:
                raise self._error
            if self._ended:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        pieces = self._pieces
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if self._size > BUFFERED and not self._ended and not self._transport.is_closing():
            self._transport.resume_reading()
        self._pieces, self._size = [], 0
        return data

    async def aclose(self) -> None:
        """Read no more. Breaks the call off unless it is over."""
        if not self._ended:
            self._abandon()
        self._pieces = []


class Upload:
    """Writes the pieces of a request as fast as the app takes them. Owned by its call."""

    def __init__(self, pieces: BodyStream, length: int | None) -> None:
        """`length` is what was announced; without it the body is sent in chunks."""
        self._pieces = pieces
        self._length = length
        self._sent = 0
        self._task: asyncio.Task[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self.complete = False

    def start(self, transport: asyncio.Transport, on_failure: Callable[[str], None]) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run(transport, on_failure), name="upload to the app")

    def stop(self) -> None:
        """What was not sent never will be."""
        if self._task is not None and not self.complete:
            self._task.cancel()

    def pause(self) -> None:
        if self._writable is None:
            self._writable = asyncio.get_running_loop().create_future()

    def resume(self) -> None:
        writable, self._writable = self._writable, None
        if writable is not None and not writable.done():
            writable.set_result(None)

    async def _run(self, transport: asyncio.Transport, on_failure: Callable[[str], None]) -> None:
        try:
            async for piece in self._pieces:
                if piece:
                    self._write(transport, piece)
                if self._writable is not None:
                    await self._writable
            if self._length is None:
                transport.write(b"0\r\n\r\n")
            elif self._sent != self._length:
                raise AppError(f"it has {self._sent} bytes instead of {self._length}")
            self.complete = True
        except Exception as exc:
            # Whatever it was: the app must not take what came for the whole.
            self._task = None  # ends by itself
            on_failure(f"the body of the request was cut short: {exc}")
        finally:
            await self._pieces.aclose()

    def _write(self, transport: asyncio.Transport, piece: bytes) -> None:
        self._sent += len(piece)
        if self._length is None:
            transport.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        elif self._sent > self._length:
            raise AppError(f"it is longer than the {self._length} bytes that were announced")
        else:
            transport.write(piece)
