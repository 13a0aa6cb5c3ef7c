"""Bulk delivery: several events in one call of the app, each with an outcome of its own (Dapr: bulk subscribe).

To the deliverer it is a route like any other: what is sent is collected, goes out as one call, and each of its events
is answered as if it had been sent alone. So attempts, pauses and dead letters are those of the plan, event by event.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from mesh import ids
from mesh.ports import AppResponse, AppRoute, Clock, HeaderLines, Topic

DEFAULT_EVENTS = 100
DEFAULT_AWAIT = 1.0
"""Events of one call, and seconds that the first of them waits for more (Dapr)."""
MAX_EVENTS = 1_000
MAX_AWAIT = 60.0
MAX_BYTES = 2 << 20
"""Bytes of events in one call, the last one not counted."""
TYPE = "com.dapr.event.sent.bulk"

_encode = msgspec.json.Encoder().encode
_RETRY = AppResponse(200, (), b'{"status":"RETRY"}')


class Bulk(NamedTuple):
    """What a subscription asks for."""

    events: int = DEFAULT_EVENTS
    """Of one call, at most."""
    wait: float = DEFAULT_AWAIT
    """Seconds."""


class _Entry(NamedTuple):
    id: str
    event: bytes
    lines: HeaderLines | None
    answer: asyncio.Future[AppResponse]


class BulkRoute:
    """An `AppRoute` that sends what it is given in as few calls as may be."""

    def __init__(self, route: AppRoute, topic: Topic, bulk: Bulk, content_type: str, clock: Clock) -> None:
        """`route` is the way to the app, `content_type` that of each event."""
        self._route = route
        self._bulk = bulk
        self._content_type = content_type
        self._clock = clock
        self._names = {"pubsubname": topic.pubsub, "topic": topic.name, "type": TYPE}
        self._waiting: list[_Entry] = []
        self._size = 0
        self._timeout = 0.0
        self._batch = 0

    def send(
        self, body: bytes = b"", extra_headers: HeaderLines | None = None, *, timeout: float
    ) -> asyncio.Future[AppResponse]:
        answer: asyncio.Future[AppResponse] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Entry(ids.uuid4(), body, extra_headers, answer))
        self._size += len(body)
        self._timeout = timeout
        if len(self._waiting) >= self._bulk.events or self._size >= MAX_BYTES:
            self._flush()
        elif len(self._waiting) == 1:
            self._clock.call_later(self._bulk.wait, self._due(self._batch))
        return answer

    def _due(self, batch: int) -> Callable[[], None]:
        def flush() -> None:
            if batch == self._batch:
                self._flush()

        return flush

    def _flush(self) -> None:
        entries = [entry for entry in self._waiting if not entry.answer.cancelled()]
        self._waiting = []
        self._size = 0
        self._batch += 1
        if not entries:
            return
        try:
            call = self._route.send(self._body(entries), timeout=self._timeout)
        except Exception as error:  # that of all of them, not only of the one which made the batch full
            call = asyncio.get_running_loop().create_future()
            call.set_exception(error)
        call.add_done_callback(lambda done: _answer(entries, done))

    def _body(self, entries: list[_Entry]) -> bytes:
        shown = [
            {
                "entryId": entry.id,
                "event": msgspec.Raw(entry.event),
                "contentType": self._content_type,
                "metadata": _metadata(entry.lines),
            }
            for entry in entries
        ]
        return _encode({"id": ids.uuid4(), "metadata": {}, **self._names, "entries": shown})


def _metadata(lines: HeaderLines | None) -> dict[str, str]:
    """The header lines that would have gone with one event."""
    pairs = (line.partition(b": ") for line in (lines or b"").split(b"\r\n") if line)
    return {name.decode("latin-1"): value.decode("utf-8", "replace") for name, _, value in pairs}


def _answer(entries: list[_Entry], call: asyncio.Future[AppResponse]) -> None:
    """Each event's own answer. What the app does not speak of is to be tried again (Dapr)."""
    if call.cancelled():
        for entry in entries:
            entry.answer.cancel()
        return
    error = call.exception()
    statuses: dict[str, Any] = {}
    whole: AppResponse | None = None
    if error is None:
        whole = call.result()
        if 200 <= whole.status < 300:
            statuses = _statuses(whole.body)
            whole = None
    for entry in entries:
        if entry.answer.done():
            continue
        if error is not None:
            entry.answer.set_exception(error)
        else:
            entry.answer.set_result(whole or _single(statuses.get(entry.id)))


def _statuses(body: bytes) -> dict[str, Any]:
    try:
        listed = msgspec.json.decode(body)["statuses"]
        return {one["entryId"]: one.get("status") for one in listed}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError, TypeError, AttributeError):
        return {}


def _single(word: object) -> AppResponse:
    if word in ("SUCCESS", "DROP"):
        return AppResponse(200, (), b'{"status":"%b"}' % str(word).encode())
    return _RETRY
