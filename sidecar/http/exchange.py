"""One HTTP request and its answer: the `receive` and `send` of an ASGI call."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Protocol

from starlette.types import ASGIApp, Message, Scope
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from sidecar.http.body import ClientGone
from sidecar.http.responses import ResponseAborted

log = logging.getLogger("meshwire.http")

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


@lru_cache(maxsize=512)
def _header_name(name: bytes) -> bytes:
    if not _TOKEN.fullmatch(name):
        raise RuntimeError(f"{name!r} is no name of a header")
    return name.lower() + b": "


def _checked(section: bytes, lines: int) -> bytes:
    """A header section of so many lines: every CR and LF is one of ours, so no value splits the response."""
    if section.count(b"\n") != lines or section.count(b"\r") != lines or b"\0" in section:
        raise RuntimeError("a header of the response has a line break or NUL in its value")
    return section


_FRAMING = frozenset((b"content-length: ", b"transfer-encoding: ", b"connection: "))


class Connection(Protocol):
    """What an exchange asks of its connection."""

    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    flow: FlowControl

    def close(self) -> None:
        """Close when everything written is sent."""
        ...

    def on_exchange_complete(self, exchange: Exchange) -> None:
        """The answer to `exchange` is written."""
        ...


class Exchange:
    """Made by the connection when the headers of a request are complete; `run` is a task of the server's.

    `discard`: a body that the app does not read is read over when it is declared to be no longer; else the connection
    ends with the answer.
    """

    __slots__ = (
        "_chunked",
        "_chunks",
        "_discard",
        "_ended",
        "_expects_continue",
        "_remaining",
        "_size",
        "_trailers",
        "_waiter",
        "connection",
        "disconnected",
        "flow",
        "keep_alive",
        "more_body",
        "response_complete",
        "response_started",
        "scope",
        "transport",
    )

    def __init__(
        self, connection: Connection, scope: Scope, *, keep_alive: bool, expects_continue: bool, discard: int
    ) -> None:
        self.connection = connection
        self.scope = scope
        self.transport = connection.transport
        self.flow = connection.flow
        self.keep_alive = keep_alive
        self.more_body = True
        """The client has not sent all of its body yet."""
        self.disconnected = False
        self.response_started = False
        self.response_complete = False
        self._expects_continue = expects_continue
        self._discard = discard
        self._chunks: list[bytes] = []
        self._size = 0
        self._ended = False
        """The app has been given the last piece of the body."""
        self._waiter: asyncio.Future[None] | None = None
        self._chunked = False
        self._trailers = False
        """Trailers follow the body (ASGI: `http.response.trailers`); they need chunks."""
        self._remaining = 0

    # From the connection

    def feed(self, chunk: bytes) -> None:
        if self.response_complete or self.disconnected:
            return
        self._chunks.append(chunk)
        self._size += len(chunk)
        if self._size > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        self._wake()

    def feed_end(self) -> None:
        self.more_body = False
        self._wake()

    def disconnect(self) -> None:
        self.disconnected = True
        self._wake()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # To the app

    async def run(self, app: ASGIApp) -> None:
        try:
            await app(self.scope, self.receive, self.send)
        except (ResponseAborted, ClientGone):
            self.connection.close()
        except asyncio.CancelledError:
            self.transport.abort()
            raise
        except Exception:
            log.exception("%s %s failed", self.scope["method"], self.scope["path"])
            await self._give_up()
        else:
            if not self.response_complete and not self.disconnected:
                log.error("%s %s was not answered completely", self.scope["method"], self.scope["path"])
                await self._give_up()

    async def _give_up(self) -> None:
        if self.response_started:
            self.connection.close()
        else:
            headers = [(b"content-length", b"0"), (b"connection", b"close")]
            await self.send({"type": "http.response.start", "status": 500, "headers": headers})
            await self.send({"type": "http.response.body", "body": b""})

    async def receive(self) -> Message:
        while not (self.disconnected or self.response_complete):
            if self._chunks or not (self.more_body or self._ended):
                chunks = self._chunks
                body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
                self._chunks = []
                self._size = 0
                self._ended = not self.more_body
                return {"type": "http.request", "body": body, "more_body": self.more_body}
            if self._expects_continue:
                self._expects_continue = False
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.flow.resume_reading()
            self._waiter = self.connection.loop.create_future()
            await self._waiter
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        kind = message["type"]
        if not self.response_started:
            if kind != "http.response.start":
                raise RuntimeError(f"expected http.response.start, got {kind}")
            self.transport.write(self._head(message["status"], message.get("headers", ())))
            self._trailers = self._chunked and message.get("trailers", False)
            self.response_started = True
        elif kind == "http.response.trailers" and self._trailers:
            lines = [piece for name, value in message["headers"] for piece in (_header_name(name), value, b"\r\n")]
            self.transport.write(_checked(b"".join([b"0\r\n", *lines, b"\r\n"]), len(lines) // 3 + 2))
            self._complete()
        elif kind != "http.response.body" or self.response_complete:
            raise RuntimeError(f"unexpected {kind}: the response is complete or under way")
        else:
            self._write_body(message.get("body", b""), message.get("more_body", False))

    def _head(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
        content = [STATUS_LINE[status]]
        lines = 2
        length: int | None = None
        if self.more_body and not self._discardable():
            self.keep_alive = False
        for name, value in headers:
            start = _header_name(name)
            if start in _FRAMING:
                if start == b"content-length: ":
                    if length is not None:
                        raise RuntimeError("two Content-Length headers in a response")
                    length = int(value)
                elif start == b"transfer-encoding: ":
                    continue  # ASGI: the server frames the response
                elif b"close" in value.lower():
                    self.keep_alive = False
                    continue
            content += (start, value, b"\r\n")
            lines += 1
        bodiless = status in (204, 304) or self.scope["method"] == "HEAD"
        if not bodiless:
            if length is not None:
                self._remaining = length
            elif self.scope["http_version"] == "1.1":
                self._chunked = True
                content.append(b"transfer-encoding: chunked\r\n")
                lines += 1
            else:
                self._remaining = -1  # until the connection closes
                self.keep_alive = False
        if not self.keep_alive:
            content.append(b"connection: close\r\n")
            lines += 1
        content.append(b"\r\n")
        return _checked(b"".join(content), lines)

    def _discardable(self) -> bool:
        if self._expects_continue:
            return False
        for name, value in self.scope["headers"]:
            if name == b"content-length":
                return int(value) <= self._discard
        return False

    def _write_body(self, body: bytes, more: bool) -> None:
        if self._chunked:
            chunk = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            if not more and self._trailers:
                self.transport.write(chunk)
                return
            self.transport.write(chunk if more else chunk + b"0\r\n\r\n")
        elif self._remaining < 0:
            self.transport.write(body)
        elif self.scope["method"] != "HEAD":
            self._remaining -= len(body)
            if self._remaining < 0:
                raise RuntimeError("the body of the response is longer than its Content-Length")
            self.transport.write(body)
        if not more:
            if not self._chunked and self._remaining > 0:
                raise RuntimeError("the body of the response is shorter than its Content-Length")
            self._complete()

    def _complete(self) -> None:
        self.response_complete = True
        self._chunks = []
        self._wake()
        self.connection.on_exchange_complete(self)
