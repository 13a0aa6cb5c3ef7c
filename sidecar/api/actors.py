"""Actors, by Dapr's routes: calls, state, timers, reminders; and who owns them, by Meshwire's own.

Calls are hot; guarded by `benchmarks/actors.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from starlette.types import Receive, Scope, Send

from mesh.actors.callbacks import REENTRANCY, Call
from mesh.actors.calls import Actors
from mesh.actors.directory import Directory
from mesh.actors.names import RESERVED, ActorName, InvalidName, actor_name, check, method_path
from mesh.actors.reminders import Reminders
from mesh.actors.schedules import Times
from mesh.actors.state import ActorState, NotActive, Operation
from mesh.actors.timers import Timers
from mesh.errors import ApiError, Code, MeshError
from mesh.invocation import headers as rules
from mesh.scheduling.scheduler import AlreadyScheduled
from mesh.trace import InvalidBaggage
from sidecar.api import strict
from sidecar.api.invoke import Attendance
from sidecar.api.plain_json import Malformed, check_utf8, read_array, read_object
from sidecar.api.request import context
from sidecar.api.state import send_item, send_json
from sidecar.http.body import BodyTooLarge, read_body
from sidecar.http.responses import Headers, send_response, send_text
from sidecar.http.routing import Router

GROUP = "v1.0/actors"
ROOT = "/v1.0/actors/{type}/{id}"
MOST_REMINDERS = 1000
"""Of one page."""

_ABSENT = msgspec.Raw(b"")
_NOTHING: Headers = []


class _Item(msgspec.Struct):
    key: str = ""
    value: msgspec.Raw = _ABSENT
    metadata: dict[str, str] | None = None
    etag: str | None = None


class _Operation(msgspec.Struct):
    operation: str = ""
    request: _Item | None = None


class _Schedule(msgspec.Struct):
    dueTime: str | None = None
    period: str | None = None
    ttl: str | None = None
    data: msgspec.Raw = _ABSENT
    callback: str | None = None
    overwrite: bool | None = None

    @property
    def times(self) -> Times:
        return Times(self.dueTime or "", self.period or "", self.ttl or "")


_decode_any = msgspec.json.Decoder().decode
_decode_operations = msgspec.json.Decoder(list[_Operation]).decode


class ActorsApi:
    def __init__(
        self,
        actors: Actors,
        directory: Directory,
        state: ActorState,
        timers: Timers,
        reminders: Reminders,
        max_body_size: int,
        *,
        is_closed: Callable[[], bool],
    ) -> None:
        """`max_body_size` in bytes; 0 is no limit."""
        self._actors = actors
        self._directory = directory
        self._state = state
        self._timers = timers
        self._reminders = reminders
        self._max_body_size = max_body_size
        self._is_closed = is_closed

    def add_to(self, router: Router) -> None:
        for methods, path, app in (
            (("GET", "POST", "PUT", "DELETE"), "/method/{method}", self.invoke),
            (("POST", "PUT"), "/state", self.transact),
            (("GET",), "/state/{key}", self.get_state),
            (("POST", "PUT"), "/reminders/{name}", self.create_reminder),
            (("GET",), "/reminders/{name}", self.get_reminder),
            (("DELETE",), "/reminders/{name}", self.delete_reminder),
            (("POST", "PUT"), "/timers/{name}", self.create_timer),
            (("DELETE",), "/timers/{name}", self.delete_timer),
        ):
            router.add(methods, ROOT + path, app, group=GROUP)
        router.add(("GET",), "/mesh/v1/actors", self.overview, group="mesh/actors")
        router.add(("GET",), "/mesh/v1/actors/{type}/{id}/reminders", self.list_reminders, group="mesh/actors")

    # Calls

    async def invoke(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._check_open()
        parameters = scope["path_params"]
        try:
            actor = actor_name(parameters["type"], parameters["id"])
            method = method_path(parameters["method"])
            asked = context(scope)
            body = await read_body(receive, self._max_body_size, scope)
        except (InvalidName, BodyTooLarge) as error:
            raise ApiError(Code.ACTOR_BAD_REQUEST, str(error)) from None
        except InvalidBaggage as error:
            await send_text(send, 400, str(error))
            return
        headers = rules.of_request(scope["headers"])
        if asked.trace is not None:
            headers += rules.trace_headers(asked.trace)
        if asked.baggage is not None:
            headers.append((b"baggage", asked.baggage.encode("latin-1")))
        chain = dict(scope["headers"]).get(REENTRANCY, b"").decode("latin-1")
        call = Call(actor, method, scope["query_string"].decode("latin-1"), headers, body, chain)
        try:
            with Attendance(receive, None):
                response = await self._actors.call(call)
        except MeshError as error:  # no owner, or an open circuit breaker
            raise ApiError(Code.ACTOR_INVOKE, f"error invoke actor method: {error}") from None
        assert isinstance(response.body, bytes)  # noqa: S101 - answers of actors are whole
        kept = [header for header in response.headers if header[0] != b"content-length"]
        kept.append((b"content-length", b"%d" % len(response.body)))
        if asked.trace is not None or asked.baggage is not None:
            names = {name for name, _ in kept}
            kept += [header for header in asked.echo() if header[0] not in names]
        await send_response(send, response.status, kept, response.body)

    # State

    async def transact(self, scope: Scope, receive: Receive, send: Send) -> None:
        actor = self._named(scope, reserved=False)
        try:
            body = await read_body(receive, self._max_body_size, scope)
            told = read_array(_Operation, body, _decode_operations)
        except (BodyTooLarge, Malformed) as error:
            raise ApiError(Code.MALFORMED_REQUEST, f"failed deserializing HTTP body: {error}") from None
        operations = [
            Operation(one.operation, item.key, bytes(item.value) or b"null", item.metadata or {}, item.etag or None)
            for one in told
            for item in (one.request or _Item(),)
        ]
        try:
            await self._state.transact(actor, operations)
        except NotActive as error:
            raise ApiError(Code.ACTOR_INSTANCE_MISSING, str(error)) from None
        except (MeshError, ValueError) as error:
            raise ApiError(Code.ACTOR_STATE_SAVE, f"error saving actor transaction state: {error}") from error
        await send_response(send, 204, _NOTHING, b"")

    async def get_state(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Dapr: without an ETag."""
        actor = self._named(scope, reserved=False)
        try:
            item = await self._state.get(actor, scope["path_params"]["key"])
        except (MeshError, ValueError) as error:
            raise ApiError(Code.ACTOR_STATE_GET, f"error getting actor state: {error}") from error
        await send_item(send, None if item is None else msgspec.structs.replace(item, etag=None))

    # Reminders

    async def create_reminder(self, scope: Scope, receive: Receive, send: Send) -> None:
        actor, asked = self._named(scope, reserved=False), await self._schedule(scope, receive)
        name = self._name(scope, "reminder name")
        self._check_hosted(actor)
        try:
            await self._reminders.create(actor, name, asked.times, _data(asked), overwrite=asked.overwrite is not False)
        except AlreadyScheduled:
            raise ApiError(Code.REMINDER_EXISTS, f"actor reminder already exists: {name}") from None
        except (MeshError, ValueError) as error:
            raise ApiError(Code.REMINDER_CREATE, f"error creating actor reminder: {error}") from error
        await send_response(send, 204, _NOTHING, b"")

    async def get_reminder(self, scope: Scope, receive: Receive, send: Send) -> None:
        actor, name = self._named(scope), self._name(scope, "reminder name")
        self._check_hosted(actor)
        try:
            found = await self._reminders.get(actor, name)
        except (MeshError, ValueError) as error:
            raise ApiError(Code.REMINDER_GET, f"error getting actor reminder: {error}") from error
        if found is None:
            raise ApiError(Code.REMINDER_NOT_FOUND, f"actor reminder not found: {name}")
        await send_json(send, found)

    async def delete_reminder(self, scope: Scope, receive: Receive, send: Send) -> None:
        actor = self._named(scope)
        await self._check_json(scope, receive)
        name = self._name(scope, "reminder name")
        self._check_hosted(actor)
        try:
            await self._reminders.delete(actor, name)
        except MeshError as error:
            raise ApiError(Code.REMINDER_DELETE, f"error deleting actor reminder: {error}") from error
        await send_response(send, 204, _NOTHING, b"")

    async def list_reminders(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Meshwire's own. `?limit=` and `?cursor=` for a page."""
        actor = self._named(scope)
        self._check_hosted(actor)
        asked = strict.query(scope, "limit", "cursor")
        limit = strict.whole(asked, "limit", 100, MOST_REMINDERS)
        try:
            found, cursor = await self._reminders.scan(actor, limit=limit, cursor=asked.get("cursor"))
        except ValueError as error:
            raise strict.invalid(f"cursor: {error}") from None
        except MeshError as error:
            raise ApiError(Code.REMINDER_GET, f"error listing actor reminders: {error}") from error
        listed = [{"name": name, **shown} for name, shown in found.items()]
        await send_json(send, {"reminders": listed, **({"cursor": cursor} if cursor else {})})

    # Timers

    async def create_timer(self, scope: Scope, receive: Receive, send: Send) -> None:
        actor, asked = self._named(scope, reserved=False), await self._schedule(scope, receive)
        name = self._name(scope, "timer name")
        try:
            if actor.type not in self._actors.own:
                raise ValueError("actor type not registered")
            self._timers.create(actor, name, asked.times, asked.callback or "", _data(asked))
        except ValueError as error:
            raise ApiError(Code.ACTOR_TIMER_CREATE, f"error creating actor timer: {error}") from None
        await send_response(send, 204, _NOTHING, b"")

    async def delete_timer(self, scope: Scope, receive: Receive, send: Send) -> None:
        actor = self._named(scope)
        await self._check_json(scope, receive)
        self._timers.delete(actor, self._name(scope, "timer name"))
        await send_response(send, 204, _NOTHING, b"")

    # What there is

    async def overview(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The types of the namespace: who hosts them, which partitions each owns, and how many actors are active, as
        they said last."""
        told: list[dict[str, Any]] = []
        for name in self._directory.types():
            hosts = self._directory.hosts(name)
            told.append(
                {
                    "type": name,
                    "hosts": [
                        {
                            "appID": host.app,
                            "instance": instance,
                            "partitions": [partition for partition, _ in host.partitions],
                            "active": host.active,
                        }
                        for instance, host in sorted(hosts.items())
                    ],
                }
            )
        await send_json(send, {"types": told})

    # What requests have in common

    def _named(self, scope: Scope, *, reserved: bool = True) -> ActorName:
        """Raises `ApiError`; also for types that are kept for workflows, unless `reserved`."""
        self._check_open()
        parameters: Mapping[str, str] = scope["path_params"]
        if not reserved and parameters["type"].startswith(RESERVED):
            message = f"actor type '{parameters['type']}' is reserved and cannot be used"
            raise ApiError(Code.ACTOR_TYPE_RESERVED, message)
        try:
            return actor_name(parameters["type"], parameters["id"])
        except InvalidName as error:
            raise ApiError(Code.ACTOR_BAD_REQUEST, str(error)) from None

    def _name(self, scope: Scope, kind: str) -> str:
        try:
            return check(kind, scope["path_params"]["name"])
        except InvalidName as error:
            raise ApiError(Code.ACTOR_BAD_REQUEST, str(error)) from None

    async def _schedule(self, scope: Scope, receive: Receive) -> _Schedule:
        try:
            return read_object(_Schedule, await read_body(receive, self._max_body_size, scope))
        except (BodyTooLarge, Malformed) as error:
            raise ApiError(Code.MALFORMED_REQUEST, f"failed deserializing HTTP body: {error}") from None

    async def _check_json(self, scope: Scope, receive: Receive) -> None:
        """Of a body that nobody asks for (Dapr)."""
        try:
            body = await read_body(receive, self._max_body_size, scope)
            if body:
                check_utf8(body)
                _decode_any(body)
        except (BodyTooLarge, Malformed, msgspec.DecodeError, RecursionError) as error:
            raise ApiError(Code.MALFORMED_REQUEST, f"failed deserializing HTTP body: {error}") from None

    def _check_hosted(self, actor: ActorName) -> None:
        if actor.type not in self._actors.own:
            raise ApiError(
                Code.REMINDER_NON_HOSTED, "operations on actor reminders are only possible on hosted actor types"
            )

    def _check_open(self) -> None:
        if self._is_closed():
            raise ApiError(Code.ACTOR_CLOSED, "actor runtime is closed")


def _data(asked: _Schedule) -> bytes:
    data = bytes(asked.data)
    return b"" if data == b"null" else data
