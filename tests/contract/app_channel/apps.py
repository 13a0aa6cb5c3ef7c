"""Little apps for the sidecar to call: each answers with exactly the bytes that a test wants."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple, cast

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Request(NamedTuple):
    line: str
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        """The only value of this header."""
        (value,) = [value for key, value in self.headers if key.lower() == name] or [None]
        return value


class Peer(asyncio.Protocol):
    """The app's end of one connection."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.buffer = b""
        self.closed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.app.peers.append(self)
        self.app.connected.set()
        if self.app.on_connect:
            self.app.on_connect(self)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if self.app.on_bytes:
            self.app.on_bytes(self)
        while request := self._take_request():
            self.app.requests.append(request)
            self.app.called.set()
            self.app.answer(self, request)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set()

    def send(self, data: bytes) -> None:
        self.transport.write(data)

    def close(self) -> None:
        """Close in order, after what was sent."""
        self.transport.close()

    def reset(self) -> None:
        """Break the connection (RST)."""
        raw = self.transport.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def _take_request(self) -> Request | None:
        head, end, rest = self.buffer.partition(b"\r\n\r\n")
        if not end:
            return None
        line, *lines = head.decode("utf-8").split("\r\n")
        headers = [(name, value) for name, _, value in (header.partition(": ") for header in lines)]
        length = next((int(value) for name, value in headers if name == "content-length"), 0)
        if len(rest) < length:
            return None
        self.buffer = rest[length:]
        return Request(line, headers, rest[:length])


class App:
    """`answer` is called with each whole request."""

    def __init__(self, answer: Callable[[Peer, Request], None]) -> None:
        self.answer = answer
        self.on_connect: Callable[[Peer], None] | None = None
        self.on_bytes: Callable[[Peer], None] | None = None
        self.peers: list[Peer] = []
        self.requests: list[Request] = []
        self.connected = asyncio.Event()
        self.called = asyncio.Event()
        self.port = 0

    async def calls(self, number: int) -> None:
        """Wait until this many requests have come."""
        while len(self.requests) < number:
            self.called.clear()
            await asyncio.wait_for(self.called.wait(), 30)

    async def all_closed(self) -> None:
        for peer in self.peers:
            await asyncio.wait_for(peer.closed.wait(), 30)


def says(data: bytes) -> Callable[[Peer, Request], None]:
    return lambda peer, request: peer.send(data)


def says_and_closes(data: bytes) -> Callable[[Peer, Request], None]:
    def answer(peer: Peer, request: Request) -> None:
        peer.send(data)
        peer.close()

    return answer


is_fine = says(OK)


def is_silent(peer: Peer, request: Request) -> None:
    """Never answers."""


@contextlib.asynccontextmanager
async def running(answer: Callable[[Peer, Request], None] = is_fine, host: str = "127.0.0.1") -> AsyncIterator[App]:
    app = App(answer)
    server = await asyncio.get_running_loop().create_server(lambda: Peer(app), host, 0)
    app.port = server.sockets[0].getsockname()[1]
    try:
        yield app
    finally:
        server.close()
        for peer in app.peers:
            peer.transport.abort()
        await app.all_closed()
