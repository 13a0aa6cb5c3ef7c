"""Events that are to be published later: `/mesh/v1/scheduled` lists, shows and cancels them (docs/scheduled.md)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from mesh.delayed.events import DelayedEvent, DelayedEvents
from mesh.errors import ApiError, BrokerError, Code, clip
from mesh.ports import Topic
from mesh.ports.tables import InvalidKey
from sidecar.api.dead_letters import message_content
from sidecar.api.state import send_json
from sidecar.api.strict import invalid, query, shown_time, whole
from sidecar.http.responses import send_response
from sidecar.http.routing import Router

GROUP = "mesh/v1/scheduled"
DEFAULT_LIMIT, MOST = 100, 1000
"""Events of a page."""


class ScheduledApi:
    def __init__(self, events: DelayedEvents) -> None:
        self._events = events

    def add_to(self, router: Router) -> None:
        one = "/mesh/v1/scheduled/{pubsub}/{topic}/{id}"
        router.add(("GET",), "/mesh/v1/scheduled", _answered(self.list_events), group=GROUP)
        router.add(("GET",), one, _answered(self.show), group=GROUP)
        router.add(("DELETE",), one, _answered(self.cancel), group=GROUP)

    async def list_events(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = query(scope, "pubsub", "topic", "limit", "cursor")
        pubsub, topic = asked.get("pubsub"), asked.get("topic")
        if topic and not pubsub:
            raise invalid("topic: say of which pubsub")
        limit, cursor = whole(asked, "limit", DEFAULT_LIMIT, MOST), asked.get("cursor")
        try:
            page = await self._events.scan(*filter(None, (pubsub, topic)), limit=limit, cursor=cursor)
        except ValueError as error:
            raise invalid(f"cursor: {error}") from None
        rows = [_row(one) for one in page.events]
        await send_json(send, {"scheduled": rows} | ({"cursor": page.cursor} if page.cursor else {}))

    async def show(self, scope: Scope, receive: Receive, send: Send) -> None:
        """All with this id, with their events: there may be several sources."""
        query(scope)
        topic, event_id = _named(scope)
        found = await self._events.find(topic, event_id)
        if not found:
            raise _not_found(topic, event_id)
        await send_json(send, {"scheduled": [_row(one) | message_content(one.held.message) for one in found]})

    async def cancel(self, scope: Scope, receive: Receive, send: Send) -> None:
        source = query(scope, "source").get("source")
        topic, event_id = _named(scope)
        if not await self._events.cancel(topic, event_id, source):
            raise _not_found(topic, event_id)
        await send_response(send, 204, [], b"")


def _answered(app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> ASGIApp:
    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await app(scope, receive, send)
        except InvalidKey as error:
            raise invalid(str(error)) from None
        except BrokerError as error:
            raise ApiError(Code.SCHEDULED, f"scheduled events cannot be had right now: {error}") from error

    return answer


def _named(scope: Scope) -> tuple[Topic, str]:
    parameters = scope["path_params"]
    return Topic(parameters["pubsub"], parameters["topic"]), parameters["id"]


def _not_found(topic: Topic, event_id: str) -> ApiError:
    where = f"{clip(topic.name)} of {clip(topic.pubsub)}"
    message = f"no event '{clip(event_id)}' is scheduled for topic {where}: it was published or cancelled, or never was"
    return ApiError(Code.SCHEDULED_NOT_FOUND, message)


def _row(one: DelayedEvent) -> dict[str, Any]:
    schedule, held = one.schedule, one.held
    rule = schedule.recurrence
    series = {
        "deliverEvery": None if rule is None else rule.text,
        "deliverTimes": schedule.repeats,
        "deliverUntil": shown_time(schedule.until),
        "occurrence": None if rule is None else one.number,
    }
    return {
        "name": one.name,
        "pubsubname": one.topic.pubsub,
        "topic": one.topic.name,
        "id": one.id,
        "source": held.source,
        "type": held.type,
        "due": shown_time(one.due),
        "created": shown_time(held.created),
        "size": len(held.message.payload or b""),
        **{name: value for name, value in series.items() if value is not None},
    }
