"""A mesh of real processes for tests: sidecars, `meshwire run`, nats-server, apps, and a load of events."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

from tests.contract.nats_server import NatsServer
from tests.ports import free_port

SIDECAR = [sys.executable, "-P", "-m", "sidecar"]
MESHWIRE = [sys.executable, "-P", "-c", "import sys; from sidecar.cli import main; sys.exit(main())"]
SINK = [sys.executable, "-P", str(Path(__file__).with_name("sink.py"))]
LIMIT = 45.0
"""Seconds within which whatever a test waits for happens, also on a busy machine."""

Headers = Iterable[tuple[str, str]]

_prefixes = itertools.count(1)


# HTTP, as a client


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes = b""

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @classmethod
    def parse(cls, raw: bytes) -> Answer:
        """`raw` is all that a server sent until it closed the connection; its first answer is taken."""
        head, end, body = raw.partition(b"\r\n\r\n")
        assert end, f"no answer but {raw!r}"
        status, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return cls(int(status.split(" ")[1]), headers, body[: int(headers.get("content-length", "0"))])


async def exchange(port: int, sent: bytes, *, half_close: bool = False, limit: float = LIMIT) -> bytes:
    """Send bytes as they are; return what came back until the server closed the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(sent)
        if half_close:
            writer.write_eof()
        return await asyncio.wait_for(reader.read(), limit)
    finally:
        writer.transport.abort()


async def call(
    port: int, method: str, target: str, headers: Headers = (), body: bytes = b"", *, host: str | None = None
) -> Answer:
    """One request. Nothing is checked or escaped on the way: `target` is what stands in the request line."""
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host or f'127.0.0.1:{port}'}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers]
    if body or method in ("POST", "PUT"):
        lines.append(f"Content-Length: {len(body)}")
    return Answer.parse(await exchange(port, "\r\n".join([*lines, "", ""]).encode("latin-1") + body))


JSON = ("content-type", "application/json")


# Apps


class Request(NamedTuple):
    """What the sidecar sent to the app."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def event(self) -> dict[str, Any]:
        event: dict[str, Any] = json.loads(self.body)
        return event


Reply = int | tuple[int, bytes]
Handler = Callable[[Request], Reply | Awaitable[Reply]]


class App:
    """An app in this process. `answer` decides on each event; `subscribe` is what `/dapr/subscribe` says."""

    def __init__(self, subscribe: object = (), answer: Handler = lambda _: 200, *, port: int = 0) -> None:
        self.subscribe = subscribe
        self.answer = answer
        self.port = port or free_port()
        self.requests: list[Request] = []
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.StreamWriter] = set()
        self._news = asyncio.Condition()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=1 << 24)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Hang up on everybody."""
        if self._server is not None:
            self._server.close()
            for writer in list(self._connections):
                writer.transport.abort()
            await self._server.wait_closed()
            self._server = None

    @property
    def events(self) -> list[Request]:
        return [request for request in self.requests if request.method == "POST"]

    async def got(self, count: int = 1, path: str | None = None, *, limit: float = LIMIT) -> list[Request]:
        """The events, once there are `count` of them (at `path`)."""

        def found() -> list[Request]:
            return [request for request in self.events if path in (None, request.path)]

        try:
            async with asyncio.timeout(limit), self._news:
                await self._news.wait_for(lambda: len(found()) >= count)
        except TimeoutError:
            raise AssertionError(f"{len(found())} events instead of {count}: {found()}") from None
        return found()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        try:
            while True:
                line, *fields = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").strip().split("\r\n")
                headers = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
                method, path, _ = line.split(" ")
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                status, content = await self._reply(Request(method, path, headers, body))
                writer.write(b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%b" % (status, len(content), content))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._connections.discard(writer)
            writer.close()

    async def _reply(self, request: Request) -> tuple[int, bytes]:
        async with self._news:
            self.requests.append(request)
            self._news.notify_all()
        if request.path == "/dapr/subscribe":
            return 200, self.subscribe if isinstance(self.subscribe, bytes) else json.dumps(self.subscribe).encode()
        if request.path == "/dapr/config":
            return 404, b""
        reply = self.answer(request)
        if not isinstance(reply, int | tuple):
            reply = await reply
        return (reply, b"") if isinstance(reply, int) else reply


def subscription(topic: str = "A", **more: object) -> dict[str, object]:
    return {"pubsubname": "pubsub", "topic": topic, "route": f"/{topic}", **more}


# Processes


class Process:
    """A child, its output kept in a file; may be started again after its end."""

    def __init__(self, folder: Path, name: str, command: list[str], environment: Mapping[str, str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.name = name
        self.command = command
        self.environment = {
            key: value for key, value in os.environ.items() if not key.startswith(("MESHWIRE_", "DAPR_", "APP_"))
        } | {"NAMESPACE": "", **environment}
        self.file = folder / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        with self.file.open("ab") as log:
            self._process = subprocess.Popen(
                self.command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        return self

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def code(self) -> int | None:
        """The exit code; negative for a signal, `None` while it runs."""
        return None if self._process is None else self._process.poll()

    @property
    def log(self) -> str:
        return self.file.read_text(errors="replace")

    def send(self, number: signal.Signals) -> None:
        if self.runs and self._process is not None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """As a crash does."""
        self.send(signal.SIGKILL)
        if self._process is not None:
            self._process.wait(LIMIT)

    async def end(self, number: signal.Signals | None = signal.SIGTERM, *, limit: float = LIMIT) -> int:
        """Send a signal, wait for the end, return the exit code."""
        assert self._process is not None
        if number is not None:
            self.send(number)
        await until(lambda: not self.runs, lambda: f"{self.name} does not end:\n{self.log}", limit)
        return self._process.wait()

    async def says(self, pattern: str, times: int = 1, *, limit: float = LIMIT) -> None:
        """Returns once the log has `pattern` in it."""
        await until(
            lambda: len(re.findall(pattern, self.log)) >= times, lambda: f"no {pattern!r} in:\n{self.log}", limit
        )


async def until(condition: Callable[[], object], complaint: Callable[[], str], limit: float = LIMIT) -> None:
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline, complaint()
        await asyncio.sleep(0.01)


class Sidecar(Process):
    """`python -m sidecar` on a port of its own."""

    def __init__(
        self,
        folder: Path,
        app_id: str,
        *flags: str,
        broker: str,
        app: int | None = None,
        name: str | None = None,
        **environment: str,
    ) -> None:
        self.app_id = app_id
        self.port = free_port()
        command = [*SIDECAR, "--app-id", app_id, "--dapr-http-port", str(self.port), *flags]
        if app is not None:
            command += ["--app-port", str(app)]
        environment = {"MESHWIRE_BROKER": broker, "MESHWIRE_HOME": str(folder / "home"), **environment}
        super().__init__(folder, name or app_id, command, environment)

    async def ready(self, *topics: str) -> Self:
        """Returns when the sidecar is healthy and subscribed to `topics`."""
        await until(self._is_healthy_or_gone, lambda: f"{self.name} is not healthy:\n{self.log}")
        while await self._status("/v1.0/healthz") != 204:
            assert self.runs, self.log
            await asyncio.sleep(0.01)
        for topic in topics:
            await self.says(rf"app is subscribed to the following topics: \[{re.escape(topic)}\]")
        return self

    def _is_healthy_or_gone(self) -> bool:
        return not self.runs or "HTTP server is running" in self.log

    async def _status(self, path: str) -> int:
        try:
            return (await call(self.port, "GET", path)).status
        except (OSError, AssertionError):
            return 0

    async def call(self, method: str, target: str, headers: Headers = (), body: bytes = b"") -> Answer:
        return await call(self.port, method, target, headers, body)

    async def publish(self, body: bytes, *headers: tuple[str, str], topic: str = "A", query: str = "") -> None:
        answer = await self.call("POST", f"/v1.0/publish/pubsub/{topic}{query}", headers or [JSON], body)
        assert answer.status == 204, answer


class Server(Protocol):
    """A broker that tests may end and start again."""

    @property
    def url(self) -> str: ...

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def kill(self) -> None: ...


class Mesh:
    """Sidecars around one nats-server; whatever was started is gone at the end. Around the `server` of somebody who
    starts and ends it, the mesh is one of several, with a prefix of its own."""

    def __init__(self, folder: Path, server: Server | None = None) -> None:
        self.folder = folder
        self.server = server or NatsServer(folder / "nats")
        self.processes: list[Process] = []
        self._owns_server = server is None
        self._environment = {} if server is None else {"MESHWIRE_PREFIX": f"mesh{next(_prefixes)}"}

    async def __aenter__(self) -> Self:
        if self._owns_server:
            self.server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
        if self._owns_server:
            self.server.kill()
        for process in self.processes:
            assert "Traceback" not in process.log, process.log

    def add(self, app_id: str, *flags: str, app: App | int | None = None, **options: str) -> Sidecar:
        """A sidecar that was not started."""
        port = app.port if isinstance(app, App) else app
        given = {"broker": self.server.url, **self._environment, **options}
        sidecar = Sidecar(self.folder, app_id, *flags, app=port, **given)
        self.processes.append(sidecar)
        return sidecar

    async def sidecar(
        self, app_id: str, *flags: str, app: App | int | None = None, topics: Iterable[str] = (), **options: str
    ) -> Sidecar:
        return await self.add(app_id, *flags, app=app, **options).start().ready(*topics)


class Run(Process):
    """`meshwire run` with an embedded broker in `home`; its API is on a port of its own."""

    def __init__(self, home: Path, app_id: str, *command: str, app_port: int | None = None, **environment: str) -> None:
        self.port = free_port()
        words = ["run", "--app-id", app_id, "--dapr-http-port", str(self.port)]
        words += [] if app_port is None else ["--app-port", str(app_port)]
        words += ["--", *command] if command else []
        super().__init__(home.parent, app_id, [*MESHWIRE, *words], {"MESHWIRE_HOME": str(home), **environment})

    async def publish(self, body: bytes) -> Answer:
        return await call(self.port, "POST", "/v1.0/publish/pubsub/A", [JSON], body)


def running(home: Path) -> dict[int, str]:
    """Whatever runs with `home` in its command or environment: process id and command."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command, environment = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
        except OSError:
            continue
        if os.fsencode(home) in command + environment:
            found[int(entry.name)] = command.replace(b"\0", b" ").decode(errors="replace")
    return found


# Load


class Load:
    """Publishes numbered events at a fixed rate over kept connections, and notes which were accepted.

    When answers are late (a broker is down) events are not sent later in a burst: they are never made.
    """

    def __init__(self, port: int, rate: float, *, lanes: int = 64, target: str = "/v1.0/publish/pubsub/A") -> None:
        self.accepted: set[int] = set()
        self.refused: Counter[bytes] = Counter()
        self.made = 0
        self._rate = rate
        self._port = port
        self._lanes = lanes
        self._head = b"POST %b HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n" % target.encode()
        self._idle: list[_Lane] = []
        self._busy: set[_Lane] = set()
        self._pacing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._pacing = asyncio.create_task(self._pace())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Make no more events; wait for the answers to those under way."""
        assert self._pacing is not None
        self._pacing.cancel()
        await asyncio.gather(self._pacing, return_exceptions=True)
        await until(lambda: not self._busy, lambda: f"{len(self._busy)} publishes were never answered")
        for lane in self._idle:
            lane.transport.abort()

    async def _pace(self) -> None:
        loop = asyncio.get_running_loop()
        started, passed = loop.time(), 0
        while True:
            due = int((loop.time() - started) * self._rate)
            while passed < due and (lane := await self._lane()) is not None:
                passed += 1
                self._send(lane)
            passed = max(passed, due - self._lanes)
            await asyncio.sleep(0.002)

    async def _lane(self) -> _Lane | None:
        if self._idle:
            return self._idle.pop()
        if len(self._busy) >= self._lanes:
            return None
        try:
            _, lane = await asyncio.get_running_loop().create_connection(lambda: _Lane(self), "127.0.0.1", self._port)
        except OSError:
            return None
        return lane

    def _send(self, lane: _Lane) -> None:
        body = b'{"n":%d}' % self.made
        lane.number = self.made
        self.made += 1
        self._busy.add(lane)
        lane.transport.write(b"%bcontent-length: %d\r\n\r\n%b" % (self._head, len(body), body))

    def answered(self, lane: _Lane, status: bytes) -> None:
        self._busy.discard(lane)
        if status == b"204":
            self.accepted.add(lane.number)
            self._idle.append(lane)
        else:
            self.refused[status] += 1
            lane.transport.abort()

    def lost(self, lane: _Lane) -> None:
        if lane in self._busy:
            self.refused[b"lost"] += 1
        self._busy.discard(lane)
        if lane in self._idle:
            self._idle.remove(lane)


class _Lane(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self, load: Load) -> None:
        self._load = load
        self._buffer = b""
        self.number = -1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if b"\r\n\r\n" in self._buffer:
            status, self._buffer = self._buffer[9:12], b""
            self._load.answered(self, status)

    def connection_lost(self, _: Exception | None) -> None:
        self._load.lost(self)
