"""Health, metadata and shutdown of the sidecar itself. Cold routes, carried by Starlette."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import request_response

from mesh.errors import ApiError, Code
from sidecar.health import Health
from sidecar.http.body import BodyTooLarge, read_body
from sidecar.http.responses import go_json
from sidecar.http.routing import Router

MAX_VALUE = 64 * 1024
"""Longest value, in bytes, that `PUT /v1.0/metadata/{key}` takes."""
MAX_EXTENDED = 256
"""How many pairs `PUT /v1.0/metadata/{key}` keeps; one more is refused."""


class HealthApi:
    def __init__(self, app_id: str, health: Health) -> None:
        self._app_id = app_id
        self._health = health

    def add_to(self, router: Router) -> None:
        router.add(("GET",), "/v1.0/healthz", request_response(self.healthz), group="v1/healthz")
        router.add(("GET",), "/v1.0/healthz/outbound", request_response(self.outbound), group="v1/healthz")

    async def healthz(self, request: Request) -> Response:
        missing = self._health.missing()
        if missing:
            raise ApiError(Code.HEALTH_NOT_READY, f"dapr is not ready: [{', '.join(missing)}]")
        asked = request.query_params.get("appid")
        if asked is not None and asked != self._app_id:
            raise ApiError(Code.HEALTH_APPID, "dapr app-id does not match")
        return Response(status_code=204)

    async def outbound(self, _request: Request) -> Response:
        problem = self._health.outbound_problem()
        if problem is not None:
            raise ApiError(Code.OUTBOUND_NOT_READY, f"dapr outbound is not ready: {problem}")
        return Response(status_code=204)


class MetadataApi:
    """`describe` gives the members of the metadata object (Dapr) but `extended`, which callers write here."""

    def __init__(
        self, describe: Callable[[], Mapping[str, Any]], version: str, extended: MutableMapping[str, str]
    ) -> None:
        self._describe = describe
        self._extended = extended
        extended["daprRuntimeVersion"] = version

    def add_to(self, router: Router) -> None:
        router.add(("GET",), "/v1.0/metadata", request_response(self.get), group="v1/metadata")
        router.add(("PUT",), "/v1.0/metadata/{key}", request_response(self.put), group="v1/metadata")

    async def get(self, _request: Request) -> Response:
        content = {**self._describe(), "extended": dict(sorted(self._extended.items()))}
        return Response(go_json(content), media_type="application/json")

    async def put(self, request: Request) -> Response:
        """The body is the value, as plain text."""
        key = request.path_params["key"]
        try:
            body = await read_body(request.receive, MAX_VALUE, request.scope)
        except BodyTooLarge:
            problem = f"failed to read request body: stream too large: the body is longer than {MAX_VALUE} bytes"
            raise ApiError(Code.BODY_READ, problem) from None
        if key not in self._extended and len(self._extended) >= MAX_EXTENDED:
            raise ApiError(Code.BODY_READ, f"there are {MAX_EXTENDED} metadata entries already; reuse one")
        self._extended[key] = body.decode("utf-8", "replace")
        return Response(status_code=204)


class ShutdownApi:
    """`POST /v1.0/shutdown`. With `dapr-force-shutdown: true` the process ends without draining anything (Dapr)."""

    def __init__(self, stop: Callable[[], None], exit_now: Callable[[], None]) -> None:
        self._stop = stop
        self._exit_now = exit_now

    def add_to(self, router: Router) -> None:
        router.add(("POST",), "/v1.0/shutdown", request_response(self.shutdown), group="v1/shutdown")

    async def shutdown(self, request: Request) -> Response:
        forced = request.headers.get("dapr-force-shutdown", "").lower() == "true"
        return Response(status_code=204, background=BackgroundTask(self._exit_now if forced else self._stop))
