"""A whole sidecar in this process: the real HTTP server, the broker in memory, and an app if a test wants one."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import pytest

from sidecar import flags
from sidecar.assembly import assemble
from sidecar.runtime import End, Runtime
from sidecar.settings import Settings
from tests.e2e.mesh import JSON, Answer, App, Headers, call
from tests.ports import free_port


class Api:
    """The API of the sidecar of the app `app1`."""

    def __init__(self, *arguments: str, app: App | None = None, environ: Mapping[str, str] = {}) -> None:
        self.port = free_port()
        self.app = app
        self.exits = 0
        words = ["--app-id=app1", f"--dapr-http-port={self.port}", *arguments]
        words += [] if app is None else [f"--app-port={app.port}"]
        settings = Settings.from_environment(flags.parse(words), {"MESHWIRE_BROKER": "memory", **environ})
        self.runtime: Runtime = assemble(settings, {}, self._exit_now)
        self.running = asyncio.create_task(self.runtime.run())

    def _exit_now(self) -> None:
        self.exits += 1

    async def listening(self) -> None:
        async with asyncio.timeout(30):
            while True:
                try:
                    await self.call("GET", "/v1.0/healthz")
                except OSError:
                    await asyncio.sleep(0.005)
                else:
                    return

    async def ready(self) -> None:
        """Returns when everything is up and the app's subscriptions stand."""
        await self.listening()
        async with asyncio.timeout(30):
            while (await self.call("GET", "/v1.0/healthz")).status != 204:
                await asyncio.sleep(0.005)

    async def stop(self) -> End:
        self.runtime.stop()
        async with asyncio.timeout(30):
            return await self.running

    async def call(
        self, method: str, target: str, headers: Headers = (), body: bytes = b"", *, host: str | None = None
    ) -> Answer:
        return await call(self.port, method, target, headers, body, host=host)

    async def publish(self, body: bytes, *headers: tuple[str, str], topic: str = "A", query: str = "") -> Any:
        """Publish on Dapr's route; what the app got."""
        assert self.app is not None
        before = len(self.app.events)
        answer = await self.call("POST", f"/v1.0/publish/pubsub/{topic}{query}", headers or [JSON], body)
        assert (answer.status, answer.body) == (204, b""), answer
        return (await self.app.got(before + 1))[-1]


Start = Callable[..., Awaitable[Api]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Starts an `Api` and waits until it is ready."""
    started: list[Api] = []

    async def start(*arguments: str, app: App | None = None, **environ: str) -> Api:
        started.append(Api(*arguments, app=app, environ=environ))
        await started[-1].ready()
        return started[-1]

    yield start
    for api in started:
        if not api.running.done():
            await api.stop()


@pytest.fixture
async def api(start: Start) -> Api:
    return await start()
