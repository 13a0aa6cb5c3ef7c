"""Replays of stored events: `/mesh/v1/replays` (docs/replay.md)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from starlette.types import ASGIApp, Receive, Scope, Send

from mesh.errors import ApiError, BrokerError, Code
from mesh.ports import Topic
from mesh.ports.tables import InvalidKey
from mesh.pubsub import DEFAULT_COMPONENT
from mesh.replay.replays import LEAST_RATE, MOST_RATE, Point, Replay, Replays
from mesh.runs import TooManyRuns
from mesh.subscriptions import delivery_path
from sidecar.api.dead_letters import run_content, run_not_found, send_run
from sidecar.api.state import send_json
from sidecar.api.strict import invalid, moment, order, query, shown_time
from sidecar.http.routing import Router


class _Point(msgspec.Struct, forbid_unknown_fields=True):
    time: str | None = None
    position: str | None = None

    def point(self, name: str) -> Point:
        """Raises `ApiError`."""
        if (self.time is None) == (self.position is None):
            raise invalid(f"{name} must have either time or position")
        return Point(self.position, None if self.time is None else moment(self.time, f"{name}.time"))


class _Replay(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    topic: str
    start: _Point = msgspec.field(name="from")
    pubsubname: str = DEFAULT_COMPONENT
    to: _Point | None = None
    app_id: str = ""
    route: str | None = None
    rate: float | None = None
    dry_run: bool = False


class ReplaysApi:
    def __init__(self, app_id: str, replays: Replays) -> None:
        self._app_id = app_id
        self._replays = replays

    def add_to(self, router: Router) -> None:
        for method, template, app in (
            ("GET", "/mesh/v1/replays", self.list_replays),
            ("POST", "/mesh/v1/replays", self.start),
            ("GET", "/mesh/v1/replays/{id}", self.show),
            ("DELETE", "/mesh/v1/replays/{id}", self.cancel),
        ):
            router.add((method,), template, _answered(app), group="mesh/replays")

    async def start(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = await order(scope, receive, _Replay)
        topic = Topic(asked.pubsubname, asked.topic)
        start = asked.start.point("from")
        to = None if asked.to is None else asked.to.point("to")
        if asked.rate is not None and not LEAST_RATE <= asked.rate <= MOST_RATE:
            raise invalid(f"rate must be from {LEAST_RATE:g} to {MOST_RATE:g} events per second (got {asked.rate:g})")
        if to is not None and None not in (start.time, to.time) and (to.time or 0.0) < (start.time or 0.0):
            raise invalid("to must not be before from")
        if asked.route is not None:
            try:
                delivery_path(asked.route)
            except ValueError as error:
                raise invalid(f"route: {error}") from None
        if asked.dry_run:
            number, complete = await self._replays.count(topic, start, to, app_id=asked.app_id)
            await send_json(send, {"matching": number, "complete": complete})
            return
        run = await self._replays.start(topic, start, to, app_id=asked.app_id, route=asked.route, rate=asked.rate)
        await send_run(send, _shown(run), status=202)

    async def list_replays(self, scope: Scope, receive: Receive, send: Send) -> None:
        runs = await self._replays.runs.all(self._target(scope))
        await send_json(send, {"replays": [_shown(run) for run in runs]})

    async def show(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _send_found(scope, send, await self._replays.runs.get(self._target(scope), scope["path_params"]["id"]))

    async def cancel(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _send_found(scope, send, await self._replays.runs.cancel(self._target(scope), scope["path_params"]["id"]))

    def _target(self, scope: Scope) -> str:
        """Whose replays they are."""
        return query(scope, "appId").get("appId", self._app_id)


async def _send_found(scope: Scope, send: Send, run: Replay | None) -> None:
    if run is None:
        raise run_not_found("replay", scope["path_params"]["id"])
    await send_run(send, _shown(run))


def _shown(run: Replay) -> dict[str, Any]:
    content = run_content(run)
    for name in ("from", "to"):
        if "time" in content[name]:
            content[name]["time"] = shown_time(content[name]["time"])
    if "reachedTime" in content:
        content["reachedTime"] = shown_time(content["reachedTime"])
    return content


def _answered(app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> ASGIApp:
    """With the errors of replays as the API has them."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await app(scope, receive, send)
        except InvalidKey as error:
            raise invalid(str(error)) from None
        except TooManyRuns as error:
            raise ApiError(Code.RUN_LIMIT, str(error)) from None
        except BrokerError as error:
            raise ApiError(Code.REPLAY, f"replays cannot be had right now: {error}") from error

    return answer
