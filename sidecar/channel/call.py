"""What is asked of the app: a call is the future of its answer."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from mesh.errors import AppError, clip
from mesh.ports import AppResponse, HeaderList, Response
from sidecar.channel.streaming import WHOLE, AnswerBody, Upload


class CallHolder(Protocol):
    """Who has a call in hand: the pool while it waits for a connection, then the connection."""

    def call_off(self, call: Call) -> None:
        """Nobody wants the answer any more."""
        ...


class Call(asyncio.Future[Any]):
    """A call is the future of its answer, an `AppResponse`, so that a small one costs no second object."""

    __slots__ = ("body", "deadline", "head", "holder", "replay", "without_body")

    holder: CallHolder
    head: bytes
    body: bytes
    deadline: float
    """By the clock of the loop."""
    replay: bool
    without_body: bool
    """The answer has none, whatever its headers say (HEAD)."""
    upload: Upload | None = None
    """Writes a body that comes in pieces."""

    @property
    def name(self) -> str:
        """Begins its error messages, as in "POST /orders": without the query, which may hold secrets."""
        request_line = self.head[: self.head.index(b" HTTP/1.1\r\n")]
        return clip(request_line.partition(b"?")[0].decode())

    def takes_head(self, length: int | None) -> bool:
        """Whether the answer is wanted before its body, which says that it has `length` bytes, is there."""
        return False

    def begin(self, transport: asyncio.Transport, status: int, headers: HeaderList, body: bytes) -> AnswerBody:
        """The head of such an answer is there, and the beginning of its body."""
        raise AssertionError("this call takes whole answers only")

    def succeed(self, status: int, headers: HeaderList, body: bytes, trailers: HeaderList) -> None:
        """The answer is there. Without its trailers: nobody beside the sidecar's streamed calls passes them on."""
        self.set_result(AppResponse(status, headers, body))

    def cancel(self, msg: object = None) -> bool:
        if not super().cancel(msg):
            return False
        self.holder.call_off(self)
        return True

    def fail(self, what: str, error: type[AppError] = AppError) -> None:
        """`AppUnreachable` says that the app has seen nothing of the call."""
        if not self.done():
            self.set_exception(error(f"{self.name}: {what}"))


class StreamedCall(Call):
    """A call whose answer is there when its head is. Its request may be in pieces: `upload`."""

    __slots__ = ("answer", "upload")

    answer: AnswerBody | None
    """Set once the body is handed out while it still comes."""
    upload: Upload | None

    def takes_head(self, length: int | None) -> bool:
        return length is None or length > WHOLE

    def succeed(self, status: int, headers: HeaderList, body: bytes, trailers: HeaderList) -> None:
        if self.upload is not None:
            self.upload.stop()
        if self.answer is not None:
            self.answer.end()
        else:
            self.set_result(Response(status=status, headers=headers, body=body, trailers=trailers))

    def begin(self, transport: asyncio.Transport, status: int, headers: HeaderList, body: bytes) -> AnswerBody:
        """The head is there, the body only in part."""
        self.answer = AnswerBody(transport, self._abandon)
        self.answer.feed(body)
        self.set_result(Response(status=status, headers=headers, body=self.answer))
        return self.answer

    def fail(self, what: str, error: type[AppError] = AppError) -> None:
        if self.upload is not None:
            self.upload.stop()
        if self.answer is not None:
            self.answer.fail(error(f"{self.name}: {what}"))
        else:
            super().fail(what, error)

    def cancel(self, msg: object = None) -> bool:
        if self.upload is not None and not self.done():
            self.upload.stop()
        return super().cancel(msg)

    def _abandon(self) -> None:
        self.fail("its answer was not read to the end")
        self.holder.call_off(self)
