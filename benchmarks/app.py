"""The app that is called: as little as can answer HTTP, so that the sidecars alone are measured.

POST /echo            the body of the request
POST /upload          how many bytes came, in decimal
GET  /download/<n>    n bytes
PUT  /actors/…        the body of the request; actors of the type Bench
PUT  /actors/…/method/save?port=<port>&keys=<n>
                      the same, once n items were read and written in one transaction at the sidecar there
"""

from __future__ import annotations

import asyncio
import sys
from collections import defaultdict
from pathlib import Path
from urllib.parse import parse_qs

import httptools
import uvloop

from benchmarks.processes import Process

ECHO = "/echo"
UPLOAD = "/upload"
DOWNLOAD = "/download"
ACTORS = "/actors/"
ACTOR_TYPE = "Bench"
_CONFIG = b'{"entities": ["%b"]}' % ACTOR_TYPE.encode()

PIECE = bytes(256 * 1024)
SAVE = "/method/save?"
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
_NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"


_FAILED = b"HTTP/1.1 500 Not Saved\r\nContent-Length: 0\r\n\r\n"

_saving: set[asyncio.Task[None]] = set()
_idle: defaultdict[int, list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]] = defaultdict(list)
"""Connections to the sidecar at a port."""


async def _turn(port: int, url: str, keys: int, value: bytes) -> bool:
    """What an actor does with its state in a turn: whether all was read and saved."""
    reader, writer = _idle[port].pop() if _idle[port] else await asyncio.open_connection("127.0.0.1", port)
    operation = b'{"operation":"upsert","request":{"key":"k%d","value":%b}}'
    body = b"[%b]" % b",".join(operation % (number, value) for number in range(keys))
    asked = [b"GET %b/k%d HTTP/1.1\r\nHost: localhost\r\n\r\n" % (url.encode(), number) for number in range(keys)]
    head = b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % (url.encode(), len(body))
    asked.append(head + body)
    good = True
    for request in asked:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        good &= head[9:10] == b"2"
        if head[9:12] != b"204":
            await reader.readexactly(int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]))
    _idle[port].append((reader, writer))
    return good


class Connection(asyncio.Protocol):
    """One connection to the app."""

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._path = ""
        self._body: list[bytes] = []
        self._received = 0
        self._left = 0
        """Bytes of a download that are not written yet."""
        self._full = False
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._path = url.decode()
        self._body = []
        self._received = 0

    def on_body(self, body: bytes) -> None:
        self._received += len(body)
        if self._path == ECHO or self._path.startswith(ACTORS):
            self._body.append(body)

    def on_message_complete(self) -> None:
        if SAVE in self._path:
            saving = asyncio.get_running_loop().create_task(self._save(self._path, b"".join(self._body)))
            _saving.add(saving)
            saving.add_done_callback(_saving.discard)
        elif self._path == ECHO or self._path.startswith(ACTORS):
            self._transport.write(_HEAD % self._received + b"".join(self._body))
        elif self._path == UPLOAD:
            count = b"%d" % self._received
            self._transport.write(_HEAD % len(count) + count)
        elif self._path == "/dapr/config":
            self._transport.write(_HEAD % len(_CONFIG) + _CONFIG)
        elif self._path.startswith(DOWNLOAD + "/"):
            self._left = int(self._path.removeprefix(DOWNLOAD + "/"))
            self._transport.write(_HEAD % self._left)
            self._go_on()
        else:
            self._transport.write(_NOT_FOUND)

    async def _save(self, path: str, body: bytes) -> None:
        actor, _, query = path.partition(SAVE)
        asked = parse_qs(query)
        saved = await _turn(int(asked["port"][0]), f"/v1.0{actor}/state", int(asked["keys"][0]), body)
        self._transport.write(_HEAD % len(body) + body if saved else _FAILED)

    def _go_on(self) -> None:
        while self._left and not self._full:
            piece = PIECE[: self._left]
            self._left -= len(piece)
            self._transport.write(piece)

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        self._go_on()


class App(Process):
    """The app in a process of its own, which listens once it is made."""

    def __init__(self, port: int, log: Path) -> None:
        super().__init__([sys.executable, "-P", "-m", "benchmarks.app", str(port)], log)
        self.port = port
        self.wait_until_listening(port)


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
