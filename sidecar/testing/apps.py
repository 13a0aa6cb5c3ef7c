"""The app under test: any ASGI app, or plain functions by their topics, served on a real port and listened in on."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.lifespan.on import LifespanOn

from sidecar.http.server import HttpServer

Event = dict[str, Any]
"""A CloudEvent in its JSON form."""
Handler = Callable[[Event], object]
"""Handles one event, as a function or a coroutine function. What it returns is the app's answer: nothing, a word of
Dapr's (`SUCCESS`, `RETRY`, `DROP`), or a JSON object. What it raises is answered with 500."""

START_LIMIT = 10.0
STOP_GRACE = 1.0


class Seen(NamedTuple):
    """One request that the app got, and what it answered."""

    method: str
    path: str
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes
    status: int
    answer: bytes

    @property
    def event(self) -> Event | None:
        """The event that came with it, if there was one."""
        if self.headers.get("content-type") != "application/cloudevents+json":
            return None
        event: Event = json.loads(self.body)
        return event


def by_topic(handlers: Mapping[str, Handler], pubsub: str) -> ASGIApp:
    """An app that subscribes to the topics of `handlers`, and has each handle its own."""
    routes = []
    subscriptions = []
    for index, (topic, handler) in enumerate(handlers.items()):
        subscriptions.append({"pubsubname": pubsub, "topic": topic, "route": f"/{index}"})
        routes.append(Route(f"/{index}", _endpoint(handler), methods=["POST"]))

    async def subscribe(_request: Request) -> Response:
        return JSONResponse(subscriptions)

    return Starlette(routes=[Route("/dapr/subscribe", subscribe), *routes])


def _endpoint(handler: Handler) -> Callable[[Request], Awaitable[Response]]:
    async def handle(request: Request) -> Response:
        event = json.loads(await request.body())
        try:
            if inspect.iscoroutinefunction(handler):
                answer = await handler(event)
            else:  # in a thread: it may call its sidecar, and wait for the answer
                answer = await asyncio.to_thread(handler, event)
        except Exception as error:  # what an app does with its own faults is a 500
            return Response(f"{type(error).__name__}: {error}", 500)
        if answer is None:
            return Response(status_code=200)
        return JSONResponse({"status": answer} if isinstance(answer, str) else answer)

    return handle


def subscribing(app: ASGIApp, subscriptions: Sequence[Mapping[str, Any]]) -> ASGIApp:
    """`app`, with `subscriptions` for its answer to `GET /dapr/subscribe`."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == "/dapr/subscribe":
            await JSONResponse(list(subscriptions))(scope, receive, send)
        else:
            await app(scope, receive, send)

    return answer


class Recorder:
    """ASGI middleware that keeps what passes, beside the sidecar's questions about the app itself."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.seen: list[Seen] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith("/dapr/"):
            await self._app(scope, receive, send)
            return
        asked = bytearray()
        answered = bytearray()
        status = 500
        kept = False

        def keep() -> None:
            nonlocal kept
            kept = True
            headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
            self.seen.append(Seen(scope["method"], scope["path"], headers, bytes(asked), status, bytes(answered)))

        async def listen() -> Message:
            message = await receive()
            asked.extend(message.get("body", b""))
            return message

        async def speak(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            answered.extend(message.get("body", b""))
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                keep()  # before anybody can have the answer, and ask what was seen
            await send(message)

        try:
            await self._app(scope, listen, speak)
        finally:
            if not kept:
                keep()


class AppServer:
    """An ASGI app on a free port of this machine, its lifespan included."""

    def __init__(self, app: ASGIApp) -> None:
        self._server = HttpServer(app)
        config = Config(app, lifespan="auto", log_config=None)
        config.load()
        self._lifespan = LifespanOn(config)

    @property
    def port(self) -> int:
        assert self._server.port is not None
        return self._server.port

    async def start(self) -> None:
        """Returns when it listens. Raises `RuntimeError` when the app does not start."""
        async with asyncio.timeout(START_LIMIT):
            await self._lifespan.startup()
        if self._lifespan.should_exit:
            raise RuntimeError("the app did not start: see what its lifespan logged")
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(STOP_GRACE)
        async with asyncio.timeout(START_LIMIT):
            await self._lifespan.shutdown()
