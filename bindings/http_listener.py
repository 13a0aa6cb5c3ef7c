"""A small HTTP server for what outside systems post: every request is bounded in size and time, and so is their number.

It is a listener of its own, so that nothing else of the sidecar can be reached through it.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import lru_cache
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote

import httptools

from mesh.ports.stores import StoreUnavailable

logger = logging.getLogger("meshwire.bindings")

MAX_HEAD = 32 << 10
"""Bytes of request line and headers."""
REQUEST_LIMIT = 30.0
"""Seconds in which a request must be there, its wait on a connection that is kept open included."""
ANSWER_LIMIT = 60.0
"""Seconds that an answer may take, and be read in."""
CLOSE_LIMIT = 5.0
"""Seconds that open requests get to be answered at the end."""
LINGER_LIMIT, LINGER_BYTES = 2.0, 4 << 20
"""Seconds, and bytes, that are read on after a request was refused."""
MAX_CONNECTIONS = 512
_CHUNK = 64 << 10


class Request(NamedTuple):
    method: str
    path: str
    """Without percent-encoding."""
    query: Mapping[str, str]
    """The first value of each name."""
    headers: Mapping[str, str]
    """Names in lower case; the values of one that is repeated are joined with commas."""
    body: bytes


class Response(NamedTuple):
    status: int
    headers: Sequence[tuple[str, str]] = ()
    body: bytes = b""


Handle = Callable[[Request], Awaitable[Response]]


class HttpListener:
    def __init__(self, address: str, port: int, handle: Handle, *, max_body: int) -> None:
        """`max_body` in bytes."""
        self._address = address
        self._port = port
        self._handle = handle
        self._max_body = max_body
        self._connections: set[asyncio.Task[None]] = set()
        self._idle: set[asyncio.StreamWriter] = set()
        """Connections that have brought nothing of a request yet."""
        self._ending = False

    async def serve(self) -> None:
        """Until it is cancelled. Raises `StoreUnavailable` when the address cannot be had."""
        self._ending = False
        try:
            server = await asyncio.start_server(self._connected, self._address, self._port, limit=_CHUNK)
        except OSError as error:
            in_use = error.errno == errno.EADDRINUSE
            why = "it is in use by another program" if in_use else error.strerror or str(error)
            raise StoreUnavailable(f"cannot listen at {self._address}, port {self._port}: {why}") from None
        logger.info("listening for requests at %s", ", ".join(str(one.getsockname()) for one in server.sockets))
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            server.close()
            await self._close()

    async def _close(self) -> None:
        """Requests under way are answered; connections that only wait are cut off."""
        self._ending = True
        for writer in self._idle:
            writer.transport.abort()
        if self._connections:
            _, late = await asyncio.wait(self._connections, timeout=CLOSE_LIMIT)
            for task in late:
                task.cancel()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or self._ending or len(self._connections) >= MAX_CONNECTIONS:
            writer.transport.abort()
            return
        self._connections.add(task)
        try:
            await self._serve(reader, writer)
        except (OSError, TimeoutError):
            writer.transport.abort()
        finally:
            self._connections.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        incoming = _Incoming(writer, self._max_body)
        while not self._ending:
            taken = await self._next(incoming, reader, writer)
            if taken is None:
                if incoming.refused:
                    await _refuse(incoming.refused, reader, writer)
                return
            request, keep = taken
            async with asyncio.timeout(ANSWER_LIMIT):
                response = await self._answer(request)
                keep = keep and not self._ending
                _write(writer, response, keep=keep, head=request.method == "HEAD")
                await writer.drain()
            if not keep:
                return

    async def _next(
        self, incoming: _Incoming, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> tuple[Request, bool] | None:
        """The next request, and whether the connection is kept after it; `None` when there is none."""
        try:
            async with asyncio.timeout(REQUEST_LIMIT):
                while not (incoming.done or incoming.refused):
                    if not incoming.begun:
                        self._idle.add(writer)
                    chunk = await reader.read(_CHUNK)
                    self._idle.discard(writer)
                    if not chunk:
                        return None
                    incoming.feed(chunk)
        except TimeoutError:
            incoming.refused = 408 if incoming.begun else 0
            return None
        finally:
            self._idle.discard(writer)
        return incoming.done.pop(0) if incoming.done else None

    async def _answer(self, request: Request) -> Response:
        try:
            return await self._handle(request)
        except Exception:
            logger.exception("%s %r failed", request.method, request.path)
            return Response(500)


class _Incoming:
    """What a connection has brought: the callbacks of the parser."""

    def __init__(self, writer: asyncio.StreamWriter, max_body: int) -> None:
        self._writer = writer
        self._max_body = max_body
        self._parser = httptools.HttpRequestParser(self)
        self.done: list[tuple[Request, bool]] = []
        """Requests that are complete, and whether the connection is kept open after each."""
        self.refused = 0
        """The status for a request that is not taken; nothing more is read."""
        self.begun = False
        self._in_head = False
        self._head_size = 0

    def feed(self, chunk: bytes) -> None:
        self.begun = True
        if self._in_head:
            self._head_size += len(chunk)
        try:
            self._parser.feed_data(chunk)
        except httptools.HttpParserUpgrade:
            pass  # the offer is passed over, and the request answered
        except httptools.HttpParserError:
            self.refused = self.refused or 400
        if self._in_head and self._head_size > MAX_HEAD:
            self.refused = 431

    def on_message_begin(self) -> None:
        self._in_head = True
        self._head_size = 0
        self._url = b""
        self._headers: dict[str, str] = {}
        self._body = bytearray()

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        key, text = _lower(name), value.decode("latin-1")
        self._headers[key] = f"{self._headers[key]},{text}" if key in self._headers else text
        self._head_size += len(name) + len(value)
        if self._head_size > MAX_HEAD:
            self.refused = 431

    def on_headers_complete(self) -> None:
        self._in_head = False
        length = self._headers.get("content-length", "0")
        if length.isdigit() and int(length) > self._max_body:
            self.refused = self.refused or 413
        if not self.refused and self._headers.get("expect", "").lower() == "100-continue":
            self._writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        if len(self._body) + len(body) > self._max_body:
            self.refused = self.refused or 413
        if not self.refused:
            self._body += body

    def on_message_complete(self) -> None:
        if self.refused:
            return
        path, _, query = self._url.decode("latin-1").partition("?")
        request = Request(
            method=self._parser.get_method().decode("latin-1"),
            path=unquote(path) if "%" in path else path,
            query=dict(reversed(parse_qsl(query, keep_blank_values=True))) if query else {},
            headers=self._headers,
            body=bytes(self._body),
        )
        self.done.append((request, self._parser.should_keep_alive() and not self._parser.should_upgrade()))
        self.begun = False


async def _refuse(status: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer, and read on for a moment: a connection that is closed with bytes unread loses its answer."""
    _write(writer, Response(status), keep=False)
    async with asyncio.timeout(LINGER_LIMIT):
        await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
        left = LINGER_BYTES
        while left > 0 and (chunk := await reader.read(_CHUNK)):
            left -= len(chunk)


@lru_cache(1024)
def _lower(name: bytes) -> str:
    return name.decode("latin-1").lower()


def _write(writer: asyncio.StreamWriter, response: Response, *, keep: bool, head: bool = False) -> None:
    writer.write(_written(response.status, tuple(response.headers), response.body, keep, head))


@lru_cache(64)
def _written(status: int, headers: Sequence[tuple[str, str]], body: bytes, keep: bool, head: bool) -> bytes:
    """Answers are few: nearly all are the same."""
    phrase = HTTPStatus(status).phrase
    body = body or (b"" if status < 300 else f"{phrase}\n".encode())
    lines = [
        f"HTTP/1.1 {status} {phrase}",
        *(f"{name}: {value}" for name, value in headers),
        *(["content-type: text/plain; charset=utf-8"] if body else []),
        f"content-length: {len(body)}",
        f"connection: {'keep-alive' if keep else 'close'}",
    ]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (b"" if head else body)
