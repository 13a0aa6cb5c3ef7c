"""Events that wake actors: a subscription whose route is `actor://<type>/<method>`.

The event's key (`partitionkey`) is the id of the actor, and the event is the body of the call. So the events of a key
reach their actor one after the other, by the same delivery plan as any other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from urllib.parse import unquote

from mesh.actors.callbacks import Call
from mesh.actors.names import MAX_TYPE, InvalidName, actor_name, check, method_path
from mesh.delivery.event_target import KEY
from mesh.errors import AppError, MeshError, clip
from mesh.ports import AppChannel, AppResponse, AppRoute, HeaderLines, Request, Response
from mesh.routing import ACTOR_ROUTE

GONE, NOT_NOW = 410, 503
"""What counts as the app's answer: the event can never be delivered; it may be later."""

CallActor = Callable[[Call], Awaitable[Response]]


class ActorRoute:
    """An `AppRoute`."""

    def __init__(self, path: str, headers: Sequence[tuple[str, str]], call: CallActor) -> None:
        """Raises `InvalidName`."""
        actor_type, slash, method = unquote(path.removeprefix(ACTOR_ROUTE)).partition("/")
        if not slash or not method:
            raise InvalidName(f"the route '{clip(path)}' must be {ACTOR_ROUTE}<type>/<method>")
        self._type = check("actorType", actor_type, MAX_TYPE)
        self._method = method_path(method)
        self._headers = [(name.encode(), value.encode()) for name, value in headers]
        self._call = call

    def send(
        self, body: bytes = b"", extra_headers: HeaderLines | None = None, *, timeout: float
    ) -> asyncio.Future[AppResponse]:
        return asyncio.get_running_loop().create_task(self._send(body, extra_headers or b"", timeout), name="event")

    async def _send(self, body: bytes, lines: bytes, timeout: float) -> AppResponse:
        headers, key = [*self._headers], ""
        for line in lines.split(b"\r\n"):
            name, colon, value = line.partition(b":")
            if name == KEY:
                key = unquote(value.strip().decode())
            elif colon:
                headers.append((name, value.strip()))
        try:
            actor = actor_name(self._type, key)
        except InvalidName:
            return AppResponse(GONE, (), b"the event has no partitionkey that can be the id of an actor")
        try:
            async with asyncio.timeout(timeout):
                response = await self._call(Call(actor, self._method, headers=headers, body=body))
        except TimeoutError:
            raise AppError(f"actor {actor} did not answer within {timeout:g} s") from None
        except MeshError as error:  # no owner, or an open circuit breaker
            return AppResponse(NOT_NOW, (), str(error).encode())
        assert isinstance(response.body, bytes)  # noqa: S101 - answers of actors are whole
        return AppResponse(response.status, response.headers, response.body)


class WithActors:
    """An `AppChannel` that takes routes of actors, too."""

    def __init__(self, channel: AppChannel, call: CallActor) -> None:
        self._channel = channel
        self._call = call
        self.header_lines = channel.header_lines
        self.request = channel.request
        self.probe = channel.probe
        self.wait_until_listening = channel.wait_until_listening
        self.close = channel.close

    def prepare(self, method: str, path: str, fixed_headers: Sequence[tuple[str, str]] = ()) -> AppRoute:
        if path.startswith(ACTOR_ROUTE):
            return ActorRoute(path, fixed_headers, self._call)
        return self._channel.prepare(method, path, fixed_headers)

    def call(
        self, request: Request, own_headers: Sequence[tuple[str, str]] = (), *, once: bool = False
    ) -> asyncio.Future[Response]:
        return self._channel.call(request, own_headers, once=once)
