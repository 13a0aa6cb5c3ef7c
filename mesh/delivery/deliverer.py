"""Carries out the plan: message to call, call to the app, the app's answer to what becomes of the message.

Callbacks all the way on the good path; a task only where the broker must be asked. Guarded by
`benchmarks/deliver.py`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Mapping
from functools import partial

import msgspec

from mesh import spans
from mesh.control.gate import Gate
from mesh.delivery.letters import DeadLetters, Letter, Reason, dead_letter, marked
from mesh.delivery.plan import Plan
from mesh.delivery.suspension import Suspension
from mesh.delivery.target import HeaderEncoder, Judgement, Prepared, Target, Verdict
from mesh.delivery.watch import DeliveryWatch, Outcome
from mesh.envelope import hop_headers
from mesh.errors import AppUnreachable, BrokerError, MeshError, MessageTooLarge
from mesh.ports import AppResponse, Clock, Delivery, EventLog, Group, HeaderLines, Message, Mode, Topic
from mesh.resiliency.breaker import BreakerOpen
from mesh.routing import Skipped
from mesh.telemetry import NO_TRACER, SILENCE, UNTRACED, Span, Telemetry

logger = logging.getLogger("meshwire.delivery")

REDIAL_PAUSE = 0.25
"""Seconds after which an app that could not be reached is called again."""
HOLD_LIMIT = 5.0
"""Seconds for which an event waits for an app that cannot be reached, before another replica may have it."""
LOG_PAUSE = 1.0
"""Seconds between two log lines about failures of one subscription: a failing app must not fill a disk."""
MAX_REMEMBERED = 10_000
"""Messages that have failed and come again: how many are remembered with the time of the first failure."""
MAX_UNBURIED = 1_000
"""Letters that nobody took yet: how many are remembered, so that the app is not called for them again."""
ATTEMPT_HEADER = "meshwire-attempt"
_FORGOTTEN = Message(mode=Mode.RAW, payload=None)
"""In place of the message of an unburied letter, which comes with it again."""


def _attempt_line(attempt: int) -> HeaderLines:
    return HeaderLines(f"{ATTEMPT_HEADER}: {attempt}\r\n".encode())


_FIRST_ATTEMPT = _attempt_line(1)


def _said(response: AppResponse, judged: Verdict) -> str:
    """The verdict, if the app gave it in so many words (Dapr: the label `status` of its metrics)."""
    if not 200 <= response.status < 300 or (judged is Verdict.SUCCESS and b"SUCCESS" not in response.body):
        return ""
    return judged.value


class _Call(msgspec.Struct, gc=False):
    """One attempt under way."""

    delivery: Delivery
    attempt: int
    prepared: Prepared
    held_since: float | None
    """When the app could first not be reached with this delivery."""
    started: float
    begun: float
    """What the meter wants back."""
    span: Span
    generation: int
    """Of the circuit breaker."""


class Deliverer:
    """Takes the deliveries of one group to the app; `handle` is the subscription's `Handler`."""

    def __init__(
        self,
        *,
        group: Group,
        target: Target,
        plan: Plan,
        log: EventLog,
        channel: HeaderEncoder,
        clock: Clock,
        dead_letters: DeadLetters | None = None,
        watch: DeliveryWatch | None = None,
        telemetry: Telemetry = SILENCE,
        gate: Gate | None = None,
    ) -> None:
        """`gate` is that of the subscription, which a circuit breaker closes and opens; without one, what comes while
        it is open waits here. Without `dead_letters` and without a dead letter topic, what is given up is tried again
        at the plan's pauses: nothing is lost."""
        self._group = group
        self._topic = group.topic
        self._target = target
        self._plan = plan
        self._log = log
        self._channel = channel
        self._clock = clock
        self._dead_letters = dead_letters
        self._gated = gate is not None
        self._watch = watch
        self._tracer = telemetry.tracer
        self._below_creation = telemetry.below_creation
        self._observed = telemetry is not SILENCE
        self._deliveries = telemetry.meter.deliveries(*group.topic)
        self._suspension = (
            None
            if plan.breaker is None
            else Suspension(f"delivery[{group.topic.pubsub}, {group.topic.name}]", plan.breaker, clock, gate)
        )
        self._first_failures: OrderedDict[str, float] = OrderedDict()
        self._unburied: OrderedDict[str, tuple[Letter, bool]] = OrderedDict()
        self._burying: set[asyncio.Task[None]] = set()
        self.in_hand = 0
        """Deliveries that are not settled yet."""
        self._draining = False
        self._silent_until = 0.0
        self._unlogged = 0

    def drain(self) -> None:
        """From now on a failure is nobody's fault: the message goes back to the group, and becomes no dead letter."""
        self._draining = True

    async def close(self) -> None:
        """Returns when every dead letter that is under way is stored or given up."""
        if self._suspension is not None:
            self._suspension.close()
        await asyncio.gather(*self._burying, return_exceptions=True)

    def abandon(self) -> None:
        """Before `close`: the dead letters under way are given up, and their events come again."""
        for task in self._burying:
            task.cancel()

    def handle(self, delivery: Delivery) -> None:
        self.in_hand += 1
        if self._unburied and (unburied := self._unburied.get(delivery.position)) is not None:
            letter, published = unburied
            self._bury(delivery, msgspec.structs.replace(letter, message=dead_letter(delivery, self._group)), published)
        else:
            self._deliver(delivery, None)

    def _deliver(self, delivery: Delivery, held_since: float | None) -> None:
        span, generation = UNTRACED, 0
        now = self._clock.now()
        prepared: Prepared | Skipped | None = None
        try:
            prepared = self._target.prepare(delivery, now)
            if isinstance(prepared, Skipped):
                self._skip(delivery, prepared)
                return
            if self._suspension is not None:
                generation = self._suspension.enter()
            hop = prepared.hop
            if self._tracer is not NO_TRACER:
                span = self._begin_span(delivery, hop)
                hop = {**hop, **hop_headers(span.context, None)}
            attempt = delivery.attempt
            lines = _FIRST_ATTEMPT if attempt == 1 else _attempt_line(attempt)
            if hop:
                lines = HeaderLines(lines + prepared.lines + self._channel.header_lines(list(hop.items())))
            elif prepared.lines:
                lines = HeaderLines(lines + prepared.lines)
            begun = self._deliveries.begin()
            call = prepared.route.send(prepared.body, lines, timeout=self._plan.timeout)
        except BreakerOpen:
            self._wait(delivery)
        except Exception as error:  # whatever it is, the broker waits for an answer
            reason = self._in_words(error, delivery)
            span.end(reason)
            if self._suspension is not None and isinstance(prepared, Prepared):
                self._suspension.forget(generation)
            judged = Judgement(Verdict.RETRY, reason)
            if self._watch is not None:
                self._watch.attempted(delivery, delivery.attempt, judged, 0.0, None)
            self._give_up(delivery, Reason.MALFORMED, judged, None)
        else:
            if self._watch is not None:
                self._watch.started(delivery, attempt, now)
            under_way = _Call(delivery, attempt, prepared, held_since, now, begun, span, generation)
            call.add_done_callback(partial(self._answered, under_way))

    def _begin_span(self, delivery: Delivery, hop: Mapping[str, str]) -> Span:
        parent = spans.hop_context(hop)
        if self._below_creation:
            parent = spans.creation_context(spans.event_texts(delivery)) or parent
        return spans.processing(self._tracer, self._group, delivery, parent)

    def _skip(self, delivery: Delivery, why: Skipped) -> None:
        """There is no call to make. With a dead letter topic what is late or taken by no rule goes there (Dapr)."""
        if self._watch is not None:
            self._watch.skipped(delivery, why)
        if why is Skipped.EXPIRED:
            self._deliveries.expired()
            reason, text = Reason.EXPIRED, "it expired before it could be delivered"
        else:
            self._deliveries.skipped(why.value)
            reason, text = Reason.UNROUTED, "no routing rule takes it, and there is no default route"
        if why in (Skipped.EXPIRED, Skipped.RULES) and self._plan.dead_letter is not None:
            self._give_up(delivery, reason, Judgement(Verdict.DROP, text), None)
        else:
            late = why is Skipped.EXPIRED
            level = logging.INFO if late else logging.DEBUG
            logger.log(level, "event %s of topic %s is not delivered: %s", delivery.position, self._topic.name, why)
            self._settle(delivery, Outcome.EXPIRED if late else Outcome.ACKED)

    def _answered(self, made: _Call, call: asyncio.Future[AppResponse]) -> None:
        delivery, span = made.delivery, made.span
        if call.cancelled():
            span.end("cancelled")
            if self._suspension is not None:
                self._suspension.forget(made.generation)
            self._release(delivery)
            return
        error = call.exception()
        if error is None:
            response = call.result()
            try:
                judged = self._target.judge(response, self._clock.now())
            except Exception as failure:
                judged = Judgement(Verdict.RETRY, self._in_words(failure, delivery), response.status)
            if self._observed:
                self._deliveries.end(made.begun, judged.verdict.value, _said(response, judged.verdict))
                if span.recording:
                    spans.describe_answer(span, response.status)
                span.end(judged.reason or None)
            if self._suspension is not None:
                self._suspension.learn(made.generation, failed=judged.verdict is Verdict.RETRY)
            if judged.verdict is Verdict.SUCCESS:
                if self._watch is not None:
                    self._tell(made, judged, None)
                self._settle(delivery, Outcome.ACKED)
            elif judged.verdict is Verdict.DROP:
                self._drop(made, judged)
            else:
                self._fail(made, judged)
        elif isinstance(error, AppUnreachable):  # no attempt, so nothing to count, and a span that does not end
            if self._suspension is not None:
                self._suspension.forget(made.generation)
            self._hold(delivery, made.held_since, str(error))
        else:
            self._deliveries.end(made.begun, Verdict.RETRY.value, "")
            if self._suspension is not None:
                self._suspension.learn(made.generation, failed=True)
            reason = self._in_words(error, delivery)
            span.end(reason)
            self._fail(made, Judgement(Verdict.RETRY, reason))

    def _in_words(self, error: BaseException, delivery: Delivery) -> str:
        """For people. What nobody foresaw is told whole in the log only."""
        if isinstance(error, MeshError):
            return str(error)
        logger.error("event %s of topic %s", delivery.position, self._topic.name, exc_info=error)
        return "an error in the sidecar"

    def _tell(self, made: _Call, judged: Judgement, next_in: float | None) -> None:
        if self._watch is not None:
            seconds = self._clock.now() - made.started
            self._watch.attempted(made.delivery, made.attempt, judged, seconds, next_in)

    def _wait(self, delivery: Delivery) -> None:
        """The circuit breaker lets nothing through. Behind a gate only what was on its way comes here."""
        if self._draining or self._gated:
            self._release(delivery)
        else:
            self._clock.call_later(REDIAL_PAUSE, partial(self._deliver, delivery, None))

    def _hold(self, delivery: Delivery, held_since: float | None, reason: str) -> None:
        """The app saw nothing of it: that is no attempt. While events are held here, no more are taken."""
        now = self._clock.now()
        if self._watch is not None:
            self._watch.held(delivery, reason, now)
        if self._draining or (held_since is not None and now - held_since > HOLD_LIMIT):
            self._release(delivery)
        else:
            self._log_failure(delivery, reason, REDIAL_PAUSE)
            since = now if held_since is None else held_since
            self._clock.call_later(REDIAL_PAUSE, partial(self._deliver, delivery, since))

    def _drop(self, made: _Call, judged: Judgement) -> None:
        """With a dead letter topic it goes there (Dapr), without one it is gone, as the app wants it."""
        delivery = made.delivery
        self._tell(made, judged, None)
        if self._plan.dead_letter is not None:
            self._give_up(delivery, Reason.DROPPED, judged, made.prepared)
        else:
            logger.info("event %s of topic %s dropped: %s", delivery.position, self._topic.name, judged.reason)
            self._settle(delivery, Outcome.DROPPED)

    def _fail(self, made: _Call, judged: Judgement) -> None:
        delivery, attempt, plan = made.delivery, made.attempt, made.prepared.plan or self._plan
        if self._draining:
            self._tell(made, judged, 0.0)
            self._release(delivery)
            return
        status = judged.status if judged.status is None or not 200 <= judged.status < 300 else None
        if not judged.final and plan.worth_another(attempt, status):
            pause = plan.pause(attempt, judged.retry_after)
            self._tell(made, judged, pause)
            self._retry(delivery, judged.reason, pause)
            return
        self._tell(made, judged, None)
        exhausted = not judged.final and plan.attempts is not None and attempt >= plan.attempts
        self._give_up(delivery, Reason.ATTEMPTS if exhausted else Reason.REFUSED, judged, made.prepared)

    def _retry(self, delivery: Delivery, reason: str, pause: float) -> None:
        """Through the broker: the place is free for other events meanwhile."""
        self._first_failures.setdefault(delivery.position, self._clock.now())
        if len(self._first_failures) > MAX_REMEMBERED:
            self._first_failures.popitem(last=False)
        self._log_failure(delivery, reason, pause)
        self._deliveries.retried()
        self.in_hand -= 1
        delivery.retry(pause)

    def _release(self, delivery: Delivery) -> None:
        if self._watch is not None:
            self._watch.settled(delivery, Outcome.RELEASED)
        self.in_hand -= 1
        delivery.release()

    def _settle(self, delivery: Delivery, outcome: Outcome) -> None:
        if self._first_failures:
            self._first_failures.pop(delivery.position, None)
        if self._watch is not None:
            self._watch.settled(delivery, outcome)
        self.in_hand -= 1
        delivery.ack()

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

    def _give_up(self, delivery: Delivery, reason: Reason, judged: Judgement, prepared: Prepared | None) -> None:
        """Never tried again. While the sidecar ends, that is for another to say."""
        if self._draining:
            self._release(delivery)
            return
        if self._plan.dead_letter is None and self._dead_letters is None:
            self._retry(delivery, judged.reason, self._plan.pause(delivery.attempt))
            return
        now = self._clock.now()
        group = self._group
        letter = Letter(
            group=group,
            topic=Topic(group.topic.pubsub, delivery.topic),
            position=delivery.position,
            stored=delivery.time,
            message=dead_letter(delivery, group),
            reason=reason,
            text=judged.reason,
            status=judged.status,
            excerpt=judged.excerpt,
            destination="" if prepared is None else prepared.path,
            attempts=delivery.attempt if prepared is not None else delivery.attempt - 1,
            first_failure=self._first_failures.get(delivery.position, now),
            last_failure=now,
        )
        self._bury(delivery, letter)

    def _bury(self, delivery: Delivery, letter: Letter, published: bool = False) -> None:
        task = asyncio.get_running_loop().create_task(self._store(delivery, letter, published))
        self._burying.add(task)
        task.add_done_callback(self._burying.discard)

    async def _store(self, delivery: Delivery, letter: Letter, published: bool) -> None:
        """Write the letter down, on the topic if there is one and in the store; only then is the message done with
        here. `published` says that the topic has it already."""
        topic = self._plan.dead_letter
        try:
            if topic is not None and not published:
                await self._publish(topic, letter)
                published = True
            if self._dead_letters is not None:
                await self._dead_letters.keep(letter)
        except Exception as error:
            if not isinstance(error, BrokerError):
                logger.error("the letter of event %s", letter.position, exc_info=error)
            self._unburied[letter.position] = msgspec.structs.replace(letter, message=_FORGOTTEN), published
            if len(self._unburied) > MAX_UNBURIED:
                self._unburied.popitem(last=False)
            where = "the store" if topic is None or published else f"the dead letter topic {topic.name}"
            self._retry(
                delivery,
                f"{letter.text}; and {where} did not take it: {error}",
                self._plan.pause(delivery.attempt),
            )
            return
        self._unburied.pop(letter.position, None)
        logger.info(
            "event %s of topic %s %s: %s",
            delivery.position,
            self._topic.name,
            "is given up" if topic is None else f"went to the dead letter topic {topic.name}",
            letter.text,
        )
        self._deliveries.dead_lettered()
        self._settle(delivery, Outcome.DEAD)

    async def _publish(self, topic: Topic, letter: Letter) -> None:
        try:
            await self._log.publish(topic, marked(letter))
        except MessageTooLarge:  # so the event does without the attributes, rather than the topic without the event
            await self._log.publish(topic, letter.message)
