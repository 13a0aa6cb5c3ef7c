"""State beyond Dapr, below `/mesh/v1/state/{store}`: lists, earlier values, and changes as server-sent events."""

from __future__ import annotations

import asyncio
import base64
import logging
import math
import re
from collections.abc import AsyncGenerator, Mapping
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl

import msgspec
from starlette.types import Receive, Scope, Send

from mesh import quantities
from mesh.codec.attributes import timestamp
from mesh.errors import ApiError, Code, clip
from mesh.ports import Clock
from mesh.ports.stores import Position, StateFeature
from mesh.state.block import Answer, ShownVersion, State
from mesh.state.component import StateComponent
from sidecar.api.state import is_json, item_metadata, send_item, send_json
from sidecar.http.routing import Router

log = logging.getLogger("meshwire.http")

EVENT_STREAM = b"text/event-stream"
DEFAULT_LIMIT, MOST = 100, 1000
"""Items of a page, or versions of a key."""
HEARTBEAT = 15.0
"""Seconds of silence after which a watch says that it is alive, and up to where it has seen everything."""
RESUMABLE = 55 * 60.0
"""Seconds for which a position of a watch is good: deletions that lie further back than an hour may be forgotten."""
PATIENCE = 10.0
"""Seconds that a watch may take to begin."""
MOST_WATCHES = 256
"""Watches of one sidecar at the same time."""

_EPOCH = datetime(1970, 1, 1)
_encode = msgspec.json.Encoder().encode


class StateExtrasApi:
    def __init__(self, state: State, clock: Clock) -> None:
        self._state = state
        self._clock = clock
        self._closing = asyncio.Event()
        self._watches = 0

    def add_to(self, router: Router) -> None:
        group = "mesh/state"
        router.add(("GET",), "/mesh/v1/state/{store}", self.list_or_watch, group=group)
        router.add(("GET",), "/mesh/v1/state/{store}/{key}", self.get, group=group)
        router.add(("GET",), "/mesh/v1/state/{store}/{key}/history", self.history, group=group)

    def close(self) -> None:
        """End every watch, so that the server need not wait for those who read them."""
        self._closing.set()

    # Lists and earlier values

    async def list_or_watch(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Which of the two is asked for by `Accept`, as an `EventSource` sends it."""
        component = self._component(scope)
        accept = b",".join(value for name, value in scope["headers"] if name == b"accept")
        if EVENT_STREAM in accept:
            await self._watch(component, scope, receive, send)
            return
        asked = _asked(scope, "prefix", "limit", "cursor")
        answers, cursor = await self._state.list_items(
            component, asked.get("prefix", ""), _limit(asked), asked.get("cursor") or None
        )
        content: dict[str, Any] = {"items": [_item(answer) for answer in answers]}
        await send_json(send, content | ({"cursor": cursor} if cursor else {}))

    async def get(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The item now; or as it was at a moment, or once a revision was made. 204 when there was none."""
        component = self._component(scope)
        key = scope["path_params"]["key"]
        asked = _asked(scope, "revision", "time")
        if not asked:
            await send_item(send, await self._state.get(component, key))
            return
        if len(asked) > 1:
            raise _invalid("give revision or time, not both")
        moment = None if "time" not in asked else _moment(asked["time"])
        await send_item(send, await self._state.as_of(component, key, asked.get("revision"), moment))

    async def history(self, scope: Scope, receive: Receive, send: Send) -> None:
        component = self._component(scope)
        asked = _asked(scope, "limit")
        versions = await self._state.history(component, scope["path_params"]["key"], _limit(asked))
        await send_json(send, {"versions": [_version(version) for version in versions]})

    def _component(self, scope: Scope) -> StateComponent:
        return self._state.component(scope["path_params"]["store"])

    # Watches

    async def _watch(self, component: StateComponent, scope: Scope, receive: Receive, send: Send) -> None:
        asked = _asked(scope, "prefix", "initial", "after")
        after, since = self._after(scope, asked)
        if self._watches >= MOST_WATCHES:
            message = f"{MOST_WATCHES} watches are open already: end one, or share one among several readers"
            raise ApiError(Code.STATE_READ, message, status=503)
        self._state.check_feature(component, StateFeature.WATCH, "watch its items")
        changes = self._state.watch(component, asked.get("prefix", ""), after)
        self._watches += 1
        try:
            await self._stream(component, changes, since, receive, send)
        finally:
            self._watches -= 1
            await changes.aclose()

    def _after(self, scope: Scope, asked: Mapping[str, str]) -> tuple[str | None, float]:
        """The ETag to go on from, and the moment up to which its reader had seen everything.

        `Last-Event-ID` is what an `EventSource` sends when it has lost its connection.
        """
        now = self._clock.now()
        given = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"last-event-id"), "")
        given = given or asked.get("after", "")
        if not given:
            try:
                return "0" if quantities.boolean(asked.get("initial", "false")) else None, now
            except ValueError as error:
                raise _invalid(f"initial {error}") from None
        etag, dash, moment = given.partition("-")
        if not dash or not re.fullmatch(r"[0-9]{1,15}", moment):
            raise _invalid(f"'{clip(given)}' is no position of a watch: give the id of an event as it came")
        if now - int(moment) > RESUMABLE:
            raise ApiError(
                Code.STATE_EXPIRED,
                f"the position {clip(given)} is older than {RESUMABLE / 60:g} minutes, so deletions since then may be "
                "forgotten: read everything again, with initial=true and without Last-Event-ID",
            )
        return etag, min(int(moment), now)

    async def _stream(
        self,
        component: StateComponent,
        changes: AsyncGenerator[ShownVersion | Position, None],
        since: float,
        receive: Receive,
        send: Send,
    ) -> None:
        """`since` is the moment of the positions until all that there was has been shown; from then on it is now."""
        ended = asyncio.create_task(self._ended(receive), name="end of a watch")
        following = asyncio.create_task(_next(changes), name="watch")
        position = ""
        is_current = False
        try:
            done, _ = await asyncio.wait({ended, following}, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                raise ApiError(
                    Code.STATE_READ,
                    f"state store {component.name}: the watch did not begin within {PATIENCE:g} s: the store does not "
                    "answer, or has very many items to look through for this prefix",
                    status=503,
                )
            if following in done:
                following.result()  # what cannot begin is answered as an error
            headers = [(b"content-type", EVENT_STREAM), (b"cache-control", b"no-store")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            # When the component is exchanged, the reader will ask the new one.
            while not ended.done() and self._state.components.get(component.name) is component:
                if following.done():
                    try:
                        change = following.result()
                    except ApiError as error:
                        await _send_piece(send, _failed(error))
                        break
                    if change is None:
                        break
                    is_current = is_current or isinstance(change, Position)
                    position = f"{change.etag}-{int(self._clock.now() if is_current else since)}"
                    await _send_piece(send, _event(change, position))
                    following = asyncio.create_task(_next(changes), name="watch")
                else:
                    if is_current:
                        position = f"{position.partition('-')[0]}-{int(self._clock.now())}"
                    await _send_piece(send, f": alive\nid: {position}\n\n".encode())
                await asyncio.wait({ended, following}, timeout=HEARTBEAT, return_when=asyncio.FIRST_COMPLETED)
            await send({"type": "http.response.body", "body": b""})
        finally:
            ended.cancel()
            following.cancel()
            await asyncio.gather(ended, following, return_exceptions=True)

    async def _ended(self, receive: Receive) -> None:
        """Returns when the reader has gone, or the sidecar is going."""
        closing = asyncio.create_task(self._closing.wait())
        gone = asyncio.create_task(_until_gone(receive))
        try:
            await asyncio.wait({closing, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            closing.cancel()
            gone.cancel()
            await asyncio.gather(closing, gone, return_exceptions=True)


async def _next(changes: AsyncGenerator[ShownVersion | Position, None]) -> ShownVersion | Position | None:
    return await anext(changes, None)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send_piece(send: Send, piece: bytes) -> None:
    await send({"type": "http.response.body", "body": piece, "more_body": True})


def _event(change: ShownVersion | Position, position: str) -> bytes:
    if isinstance(change, Position):
        kind, data = "current", b"{}"
    else:
        kind = "deleted" if change.value is None else "set"
        data = _encode(_version(change))
    return b"id: %b\nevent: %b\n%b\n" % (position.encode(), kind.encode(), _data_lines(data))


def _data_lines(data: bytes) -> bytes:
    """A line break of the value lies between tokens of its JSON, where any other blank would do."""
    lines = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    return b"".join(b"data: %b\n" % line for line in lines)


def _failed(error: ApiError) -> bytes:
    data = _encode({"errorCode": error.code.error_code, "message": error.message})
    return b"event: error\n%b\n" % _data_lines(data)


def _value(value: bytes) -> dict[str, Any]:
    """As CloudEvents have it: `data` is JSON, `data_base64` any bytes."""
    if is_json(value):
        return {"data": msgspec.Raw(value)}
    return {"data_base64": base64.b64encode(value).decode()}


def _item(answer: Answer) -> dict[str, Any]:
    item = answer.item
    if item is None:
        return {"key": answer.key, "error": answer.error}
    shown = {"key": answer.key, "etag": item.etag, **_value(item.value)}
    metadata = item_metadata(item)
    return shown | {"metadata": metadata} if metadata else shown


def _version(version: ShownVersion) -> dict[str, Any]:
    shown: dict[str, Any] = {"key": version.key, "etag": version.etag, "time": _shown_time(version.time)}
    if version.value is None:
        return shown | {"deleted": True}
    shown |= {"error": version.error} if version.error else _value(version.value)
    return shown | {"expires": _shown_time(version.expires)} if version.expires is not None else shown


def _shown_time(moment: float) -> str:
    """In microseconds, rounded up: what is asked for at the `time` of a version is that version."""
    whole = int(moment // 1)
    shown = _EPOCH + timedelta(seconds=whole, microseconds=math.ceil((moment - whole) * 1e6))
    return shown.isoformat(timespec="microseconds") + "Z"


def _moment(text: str) -> float:
    try:
        return timestamp(text)
    except ValueError:
        rule = "must be a time as RFC 3339 has it, such as 2026-05-04T12:30:00Z (a + in a query is written %2B)"
        raise _invalid(f"time {rule}, got '{clip(text)}'") from None


def _limit(asked: Mapping[str, str]) -> int:
    text = asked.get("limit", str(DEFAULT_LIMIT))
    if not re.fullmatch(r"[0-9]{1,10}", text) or not 1 <= int(text) <= MOST:
        raise _invalid(f"limit must be an integer from 1 to {MOST} (got '{clip(text)}')")
    return int(text)


def _asked(scope: Scope, *names: str) -> dict[str, str]:
    """The query parameters, of which there are these; the first value of a name wins."""
    try:
        pairs = parse_qsl(scope["query_string"].decode(), keep_blank_values=True, errors="strict")
    except UnicodeDecodeError:
        raise _invalid("the query is no UTF-8") from None
    for name, _ in pairs:
        if name not in names:
            raise _invalid(f"there is no parameter '{clip(name)}' (there are: {', '.join(names)})")
    return dict(reversed(pairs))


def _invalid(message: str) -> ApiError:
    return ApiError(Code.MALFORMED_REQUEST, message)
