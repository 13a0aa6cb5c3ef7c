"""The delivery plan: what happens to a message after it left the broker.

One `Plan` per subscription says when a failed delivery is tried again and where it goes in the end; one
`Deliverer` carries it out: message to event, event to the app, the app's answer to a verdict. Callbacks all the
way on the good path; a task only where the broker must be asked. Guarded by `benchmarks/deliver.py`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import Mapping
from enum import Enum
from functools import partial

import msgspec

from mesh import inbound, spans
from mesh.envelope import hop_headers
from mesh.errors import AppError, AppUnreachable, BrokerError, MeshError, clip
from mesh.ports import (
    AppChannel,
    AppResponse,
    AppRoute,
    Clock,
    Delivery,
    EventLog,
    Group,
    HeaderLines,
    Message,
    Mode,
    Topic,
)
from mesh.routing import Routing, Skipped
from mesh.telemetry import NO_TRACER, SILENCE, UNTRACED, Span, Telemetry

logger = logging.getLogger("meshwire.delivery")

FIRST_RETRY = 0.5
LONGEST_RETRY = 60.0
"""Seconds between attempts: the first pause, and what doubling it leads to."""
JITTER = 0.2
"""Each pause is longer or shorter by up to this part of it, so that retries do not come in waves."""
HANDLER_TIMEOUT = 600.0
"""Seconds that the app may take for one event; the broker is kept waiting meanwhile."""
REDIAL_PAUSE = 0.25
"""Seconds after which an app that could not be reached is called again."""
HOLD_LIMIT = 5.0
"""Seconds for which an event waits for an app that cannot be reached, before another replica may have it."""
LOG_PAUSE = 1.0
"""Seconds between two log lines about failures of one subscription: a failing app must not fill a disk."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How one subscription treats its messages."""

    dead_letter: Topic | None = None
    """Where a message goes at its first failure (as in Dapr). Without it, a message is tried until it succeeds."""
    timeout: float = HANDLER_TIMEOUT
    """Seconds for one attempt."""

    def pause(self, attempt: int) -> float:
        """Seconds to wait after the failure of the `attempt`th delivery, counted from 1."""
        doubled = FIRST_RETRY * 2.0 ** min(attempt - 1, 10)
        return min(LONGEST_RETRY, doubled) * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - not a secret


class Verdict(Enum):
    """What an answer of the app means (Dapr: `SUCCESS`, `RETRY`, `DROP`)."""

    SUCCESS = "success"
    RETRY = "retry"
    DROP = "drop"


_first_value = json.JSONDecoder().raw_decode


def verdict(response: AppResponse) -> tuple[Verdict, str]:
    """The app's verdict on one event, with the reason in words unless it is success.

    Dapr: any 2xx is success unless its body is an object whose `status` says otherwise; 404 drops.
    """
    status = response.status
    if not 200 <= status < 300:
        reason = f"the app answered {status}"
        return (Verdict.DROP if status == 404 else Verdict.RETRY), reason
    body = response.body
    if not body or b"status" not in body.lower():
        return Verdict.SUCCESS, ""
    try:
        answer, _ = _first_value(body.decode().lstrip())
    except (ValueError, RecursionError):
        return Verdict.SUCCESS, ""
    if not isinstance(answer, dict):
        return Verdict.SUCCESS, ""
    word = next((value for name, value in answer.items() if name.lower() == "status"), None)
    if not isinstance(word, str) or word in ("", "SUCCESS"):
        return Verdict.SUCCESS, ""
    reason = f"the app answered the status '{clip(word)}'"
    return (Verdict.DROP if word == "DROP" else Verdict.RETRY), reason


def _said(response: AppResponse, judged: Verdict) -> str:
    """The verdict, if the app gave it in so many words (Dapr: the label `status` of its metrics)."""
    if not 200 <= response.status < 300 or (judged is Verdict.SUCCESS and b"SUCCESS" not in response.body):
        return ""
    return judged.value


def dead_letter(delivery: Delivery, group: Group) -> Message:
    """The message as it is, for a dead letter topic: what cannot be read is kept too.

    Its id is that of this failure of this group, so that a letter that is written again after a crash is stored once.
    """
    mode = delivery.mode
    try:
        attributes = delivery.attributes if mode is Mode.BINARY else {}
    except MeshError:
        mode, attributes = Mode.RAW, {}
    content_type = delivery.content_type if mode is Mode.RAW else None
    return Message(
        mode=mode,
        payload=delivery.payload,
        attributes=attributes,
        content_type=content_type if content_type is None or content_type.isprintable() else None,
        dedupe_id="\0".join((*group.topic, group.app_id, delivery.position)),
        # Whoever may write to the broker chooses headers, and one that no log stores must not hold up the message.
        headers={name: text for name, text in delivery.headers.items() if f"{name}{text}".isprintable()},
    )


class Deliverer:
    """Takes the deliveries of one subscription to the app; `handle` is the subscription's `Handler`."""

    def __init__(
        self,
        group: Group,
        to: str | Routing,
        plan: Plan,
        *,
        log: EventLog,
        channel: AppChannel,
        clock: Clock,
        raw_payload: bool = False,
        telemetry: Telemetry = SILENCE,
    ) -> None:
        """`to` is the path of the app where every event goes, or chooses among several. Raises `MeshError` when
        one of them cannot be called."""
        self._group = group
        self._topic = topic = group.topic
        self._plan = plan
        self._log = log
        self._channel = channel
        self._clock = clock
        self._raw_from = topic if raw_payload else None
        fixed = [("content-type", "application/cloudevents+json"), ("pubsubname", topic.pubsub)]
        self._route: AppRoute | None = None
        if isinstance(to, str):
            self._route = channel.prepare("POST", to, fixed)
        else:
            self._routing = to
            self._routes = {path: channel.prepare("POST", path, fixed) for path in to.paths}
        self._tracer = telemetry.tracer
        self._below_creation = telemetry.below_creation
        self._observed = telemetry is not SILENCE
        self._deliveries = telemetry.meter.deliveries(topic.pubsub, topic.name)
        self._dead_lettering: set[asyncio.Task[None]] = set()
        self._draining = False
        self._silent_until = 0.0
        self._unlogged = 0

    def drain(self) -> None:
        """From now on a failure is nobody's fault: the message goes back to the group, and to no dead letter topic."""
        self._draining = True

    async def close(self) -> None:
        """Returns when every dead letter that is under way is stored or given up."""
        if self._dead_lettering:
            await asyncio.gather(*self._dead_lettering)

    def handle(self, delivery: Delivery) -> None:
        self._deliver(delivery, None)

    def _deliver(self, delivery: Delivery, held_since: float | None) -> None:
        """`held_since` is when the app could first not be reached with this delivery."""
        span = UNTRACED
        try:
            event = inbound.read(delivery, self._raw_from)
            if event.expires is not None and event.expires <= self._clock.now():
                self._deliveries.expired()
                self._drop(delivery, "it expired before it could be delivered")
                return
            route = self._route or self._choose(delivery, event.body)
            if route is None:
                return
            hop = event.hop
            if self._tracer is not NO_TRACER:
                span = self._begin_span(delivery, hop)
                hop = {**hop, **hop_headers(span.context, None)}
            extra: HeaderLines | None = None
            if hop:
                extra = self._channel.header_lines(list(hop.items()))
            begun = self._deliveries.begin()
            call = route.send(event.body, extra, timeout=self._plan.timeout)
        except MeshError as error:
            span.end(str(error))
            self._fail(delivery, str(error))
        else:
            call.add_done_callback(partial(self._answered, delivery, held_since, span, begun))

    def _choose(self, delivery: Delivery, body: bytes) -> AppRoute | None:
        """The route for an event; `None` when it is not for the app, and is settled. Raises `MeshError`."""
        chosen = self._routing.choose(body)
        if isinstance(chosen, str):
            return self._routes[chosen]
        self._deliveries.skipped(chosen.value)
        if chosen is Skipped.RULES and self._plan.dead_letter is not None:
            self._fail(delivery, "no routing rule takes it, and there is no default route")
        else:
            logger.debug("event %s of topic %s is not for the app: %s", delivery.position, self._topic.name, chosen)
            delivery.ack()
        return None

    def _begin_span(self, delivery: Delivery, hop: Mapping[str, str]) -> Span:
        parent = spans.hop_context(hop)
        if self._below_creation:
            parent = spans.creation_context(spans.event_texts(delivery)) or parent
        return spans.processing(self._tracer, self._group, delivery, parent)

    def _answered(
        self,
        delivery: Delivery,
        held_since: float | None,
        span: Span,
        begun: float,
        call: asyncio.Future[AppResponse],
    ) -> None:
        if call.cancelled():
            span.end("cancelled")
            delivery.retry(0)
            return
        error = call.exception()
        if error is None:
            response = call.result()
            judged, reason = verdict(response)
            if self._observed:
                self._deliveries.end(begun, judged.value, _said(response, judged))
                if span.recording:
                    spans.describe_answer(span, response.status)
                span.end(reason or None)
            if judged is Verdict.SUCCESS:
                delivery.ack()
            elif judged is Verdict.DROP:
                self._drop(delivery, reason)
            else:
                self._fail(delivery, reason)
        elif isinstance(error, AppUnreachable):  # no attempt, so nothing to count, and a span that does not end
            self._hold(delivery, held_since, str(error))
        elif isinstance(error, AppError):
            self._deliveries.end(begun, Verdict.RETRY.value, "")
            span.end(str(error))
            self._fail(delivery, str(error))
        else:
            span.end(type(error).__name__)
            logger.error("event %s of topic %s", delivery.position, self._topic.name, exc_info=error)
            self._retry(delivery, "an error in the sidecar")

    def _hold(self, delivery: Delivery, held_since: float | None, reason: str) -> None:
        """The app saw nothing of it: that is no attempt. While events are held here, no more are taken."""
        now = self._clock.now()
        if self._draining or (held_since is not None and now - held_since > HOLD_LIMIT):
            delivery.retry(0)
        else:
            self._log_failure(delivery, reason, REDIAL_PAUSE)
            since = now if held_since is None else held_since
            self._clock.call_later(REDIAL_PAUSE, partial(self._deliver, delivery, since))

    def _drop(self, delivery: Delivery, reason: str) -> None:
        if self._plan.dead_letter is None:
            logger.info("event %s of topic %s dropped: %s", delivery.position, self._topic.name, reason)
            delivery.ack()
        else:
            self._fail(delivery, reason)

    def _fail(self, delivery: Delivery, reason: str) -> None:
        if self._plan.dead_letter is None or self._draining:
            self._retry(delivery, reason)
            return
        task = asyncio.get_running_loop().create_task(self._dead_letter(delivery, self._plan.dead_letter, reason))
        self._dead_lettering.add(task)
        task.add_done_callback(self._dead_lettering.discard)

    def _retry(self, delivery: Delivery, reason: str) -> None:
        pause = 0.0 if self._draining else self._plan.pause(delivery.attempt)
        self._log_failure(delivery, reason, pause)
        self._deliveries.retried()
        delivery.retry(pause)

    def _log_failure(self, delivery: Delivery, reason: str, pause: float) -> None:
        now = self._clock.now()
        if now < self._silent_until:
            self._unlogged += 1
            return
        more = f" ({self._unlogged} more failed since the last line)" if self._unlogged else ""
        logger.warning(
            "event %s of topic %s failed at attempt %d, again in %.2f s: %s%s",
            delivery.position,
            self._topic.name,
            delivery.attempt,
            pause,
            reason,
            more,
        )
        self._silent_until = now + LOG_PAUSE
        self._unlogged = 0

    async def _dead_letter(self, delivery: Delivery, target: Topic, reason: str) -> None:
        """Store the message on the dead letter topic as it is; only then is it done with here."""
        try:
            await self._log.publish(target, dead_letter(delivery, self._group))
        except BrokerError as error:
            self._retry(delivery, f"{reason}; and the dead letter topic {target.name} did not take it: {error}")
        else:
            logger.info(
                "event %s of topic %s went to the dead letter topic %s: %s",
                delivery.position,
                self._topic.name,
                target.name,
                reason,
            )
            self._deliveries.dead_lettered()
            delivery.ack()
