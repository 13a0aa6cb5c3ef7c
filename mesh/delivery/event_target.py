"""Events of a subscription: to the app by Dapr's rules (docs/pubsub.md, "What the app gets" and "answers")."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from email.utils import parsedate_to_datetime
from urllib.parse import quote

from mesh import addressing, inbound
from mesh.delivery.target import EXCERPT, NO_LINES, Judgement, Prepared, Verdict
from mesh.errors import clip
from mesh.ports import AppChannel, AppResponse, AppRoute, Delivery, HeaderLines, Topic
from mesh.routing import ACTOR_ROUTE, Routing, Skipped

GONE = 410
KEY = b"meshwire-key"
"""The header, within this process, that tells an actor's route the key of the event: percent-encoded."""
ASKS_FOR_A_PAUSE = frozenset((429, 503))
"""Statuses whose `Retry-After` counts (Knative: delivery spec)."""

_first_value = json.JSONDecoder().raw_decode
_SUCCESS = [Judgement(Verdict.SUCCESS, status=status) for status in range(200, 300)]


class EventTarget:
    """A `Target`: one path of the app, or several to choose from."""

    def __init__(
        self,
        topic: Topic,
        to: str | Routing,
        channel: AppChannel,
        *,
        raw_payload: bool = False,
        headers: Sequence[tuple[str, str]] = (),
        app_id: str = "",
        together: Callable[[AppRoute], AppRoute] | None = None,
    ) -> None:
        """`headers` go with each event, beside those that every event has. Events that are for another app than
        `app_id` alone are passed over. `together` makes of a route one that takes several events in one call. Raises
        `MeshError` when a path cannot be called."""
        content_type = "application/cloudevents+json" if together is None else "application/json"
        fixed = [("content-type", content_type), ("pubsubname", topic.pubsub), *headers]

        def prepared(path: str) -> AppRoute:
            route = channel.prepare("POST", path, fixed)
            return route if together is None else together(route)

        self._bare = raw_payload and together is not None
        self._only = addressing.token(app_id)
        self._raw_from = topic if raw_payload else None
        self._path = ""
        self._route: AppRoute | None = None
        if isinstance(to, str):
            self._path = to
            self._route = prepared(to)
        else:
            self._routing = to
            self._routes = {path: prepared(path) for path in to.paths}

    def prepare(self, delivery: Delivery, now: float) -> Prepared | Skipped:
        headers = delivery.headers
        if headers and headers.get(addressing.ONLY_FOR, self._only) != self._only:
            return Skipped.OTHER
        event = inbound.read(delivery, self._raw_from, headers)
        if event.expires is not None and event.expires <= now:
            return Skipped.EXPIRED
        body = event.body
        if self._bare:  # Dapr: where several come in one call, raw bytes come as they are, and not as an event
            body = b'"%b"' % base64.b64encode(delivery.payload or b"")
        if self._route is not None:
            return Prepared(self._route, self._path, body, event.hop, _key_of(delivery, self._path))
        chosen = self._routing.choose(event.body)
        if isinstance(chosen, Skipped):
            return chosen
        return Prepared(self._routes[chosen], chosen, body, event.hop, _key_of(delivery, chosen))

    def judge(self, response: AppResponse, now: float) -> Judgement:
        return judge(response, now)


def _key_of(delivery: Delivery, path: str) -> HeaderLines:
    """The key of an event on its way to an actor, which it names."""
    if not path.startswith(ACTOR_ROUTE) or delivery.key is None:
        return NO_LINES
    return HeaderLines(b"%b: %b\r\n" % (KEY, quote(delivery.key, safe="").encode()))


def judge(response: AppResponse, now: float) -> Judgement:
    """Dapr: any 2xx is success unless its body is an object whose `status` says otherwise; 404 drops. Ours: 410 is not
    tried again."""
    status = response.status
    if not 200 <= status < 300:
        return refusal(response, now)
    body = response.body
    if not body or b"status" not in body.lower():
        return _SUCCESS[status - 200]
    word = _status_word(body)
    if word in ("", "SUCCESS"):
        return _SUCCESS[status - 200]
    verdict = Verdict.DROP if word == "DROP" else Verdict.RETRY
    return Judgement(verdict, f"the app answered the status '{clip(word)}'", status, body[:EXCERPT])


def refusal(response: AppResponse, now: float) -> Judgement:
    """What a status beyond 2xx means."""
    status = response.status
    verdict = Verdict.DROP if status == 404 else Verdict.RETRY
    pause = retry_after(response, now) if status in ASKS_FOR_A_PAUSE else None
    reason = f"the app answered {status}"
    return Judgement(verdict, reason, status, response.body[:EXCERPT], pause, final=status == GONE)


def retry_after(response: AppResponse, now: float) -> float | None:
    """Seconds, from either form of the header (RFC 9110, 10.2.3); `None` when there is none that can be read."""
    text = next((value for name, value in response.headers if name.lower() == b"retry-after"), b"").strip()
    if text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, parsedate_to_datetime(text.decode()).timestamp() - now)
    except (ValueError, OverflowError):
        return None


def _status_word(body: bytes) -> str:
    """The member `status` of an answer; empty where there is none that is a string. Only the first JSON value counts
    (Dapr)."""
    try:
        answer, _ = _first_value(body.decode().lstrip())
    except (ValueError, RecursionError):
        return ""
    if not isinstance(answer, dict):
        return ""
    word = next((value for name, value in answer.items() if name.lower() == "status"), None)
    return word if isinstance(word, str) else ""
