"""How a sidecar notes down what becomes of its events: what it publishes, and what its subscriptions deliver."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from weakref import WeakSet

from mesh import addressing
from mesh.delivery.target import Judgement, Verdict
from mesh.delivery.watch import DeliveryWatch, Outcome
from mesh.errors import BrokerError
from mesh.journal.ring import MAX_REASON, Ring
from mesh.journal.steps import Step, What, identity
from mesh.journal.testimony import Question, Testimony
from mesh.ports import Clock, Group, Message, Record, Topic
from mesh.routing import Skipped

SAMPLE = 100
"""Of so many events a sampled journal notes down one: the same one in every sidecar."""


class Recorder:
    """The journal of one sidecar. Hot: each event costs a look at its source and id, and a step or two."""

    def __init__(self, app_id: str, clock: Clock, *, sampled: bool = False, ring: Ring | None = None) -> None:
        self.ring = Ring(clock.now()) if ring is None else ring
        self._app_id = app_id
        self._clock = clock
        self._one_of = SAMPLE if sampled else 1
        self._subscriptions: WeakSet[_Subscription] = WeakSet()

    def stored(self, topic: Topic, message: Message, position: str, began: float) -> None:
        """The broker has `message`, for which it was asked at `began`; `position` is empty where it does not say."""
        name = self.name(message)
        if name is not None:
            duration = self._clock.now() - began
            step = Step(what=What.STORED, time=began, topic=topic, position=position, duration=duration)
            self.ring.note(name, step)

    def refused(self, topic: Topic, message: Message, error: BrokerError, began: float) -> None:
        """The broker has it not, or perhaps."""
        name = self.name(message)
        if name is not None:
            duration = self._clock.now() - began
            step = Step(what=What.REFUSED, time=began, topic=topic, reason=_clipped(str(error)), duration=duration)
            self.ring.note(name, step)

    def watch(self, group: Group) -> DeliveryWatch:
        """What the deliverer of `group` is to tell."""
        subscription = _Subscription(self, self._clock, group)
        self._subscriptions.add(subscription)
        return subscription

    def testify(self, question: Question) -> Testimony:
        name = addressing.identity(question.source, question.id)
        steps, left_out = self.ring.story(name)
        for subscription in self._subscriptions:
            steps += subscription.in_hand(name)
        return Testimony(
            app=self._app_id,
            since=self.ring.since,
            sampled_out=not self._is_sampled(name),
            left_out=left_out,
            steps=steps,
        )

    def name(self, message: Message | Record) -> str | None:
        """Under which name to note it down; `None` when it is not to be."""
        name = identity(message)
        return name if name is not None and self._is_sampled(name) else None

    def _is_sampled(self, name: str) -> bool:
        return self._one_of == 1 or zlib.crc32(name.encode("utf-8", "surrogatepass")) % self._one_of == 0


_OUTCOMES = {
    Outcome.ACKED: What.ACKED,
    Outcome.DROPPED: What.DROPPED,
    Outcome.EXPIRED: What.EXPIRED,
    Outcome.DEAD: What.DEAD_LETTERED,
    Outcome.RELEASED: What.RELEASED,
}
_ALREADY_TOLD = frozenset((Outcome.ACKED, Outcome.EXPIRED))
"""How a delivery ends that was passed over, which says as much."""
_AT_ONCE = frozenset((Outcome.ACKED, Outcome.DROPPED))
"""What settles a delivery in the same moment in which its attempt is judged."""
_WHY = {
    Skipped.FILTER: "its filters do not let it through",
    Skipped.RULES: "no routing rule takes it, and there is no default route",
    Skipped.OTHER: "it is sent again for another app alone",
    Skipped.EXPIRED: "it expired before it could be delivered",
}
_RESENT = ((addressing.REDRIVEN, What.REDRIVEN), (addressing.REPLAYED, What.REPLAYED))


class _Subscription:
    """A `DeliveryWatch`."""

    def __init__(self, recorder: Recorder, clock: Clock, group: Group) -> None:
        self._recorder = recorder
        self._ring = recorder.ring
        self._clock = clock
        self._app = group.app_id
        self._group = group.name
        self._topic = group.topic
        self._last: tuple[Record | None, str | None] = (None, None)
        self._attempt: Step | None = None
        self._skipped: Record | None = None
        self._in_hand: dict[int, tuple[Record, int, float, str]] = {}

    def in_hand(self, name: str) -> Iterator[Step]:
        """What stands in the way of the event's end. Not noted down, since that would cost each event a step: it is
        looked for when somebody asks."""
        for record, attempt, since, why in self._in_hand.values():
            if self._recorder.name(record) == name:
                what = What.HELD if why else What.STARTED
                yield self._step(record, what, time=since, attempt=attempt, reason=_clipped(why))

    def started(self, record: Record, attempt: int, now: float) -> None:
        self._in_hand[id(record)] = record, attempt, now, ""

    def held(self, record: Record, why: str, now: float) -> None:
        self._in_hand[id(record)] = record, 0, now, why

    def skipped(self, record: Record, why: Skipped) -> None:
        self._note(record, What.EXPIRED if why is Skipped.EXPIRED else What.SKIPPED, reason=_WHY[why])
        self._skipped = record

    def attempted(self, record: Record, attempt: int, found: Judgement, seconds: float, next_in: float | None) -> None:
        self._in_hand.pop(id(record), None)
        name = self._name(record)
        if name is None:
            return
        began = self._clock.now() - seconds
        if attempt == 1 and (headers := record.headers):
            for header, what in _RESENT:
                if header in headers:
                    self._note(record, what, time=began, to=_clipped(headers[header]))
        reason, outcome = found.reason, found.verdict.value
        self._attempt = Step(
            what=What.ATTEMPT,
            time=began,
            topic=self._topic if record.topic == self._topic.name else Topic(self._topic.pubsub, record.topic),
            app=self._app,
            group=self._group,
            position=record.position,
            attempt=attempt,
            status=found.status or 0,
            duration=seconds,
            outcome=outcome if next_in is not None or outcome != Verdict.RETRY.value else "failed",
            reason=_clipped(reason) if reason else "",
            next=next_in or 0.0,
        )
        self._ring.note(name, self._attempt)

    def settled(self, record: Record, outcome: Outcome) -> None:
        """Mostly that of the attempt that was told just now: then it needs no step of its own."""
        self._in_hand.pop(id(record), None)
        if self._attempt is not None and record is self._last[0] and outcome in _AT_ONCE:
            self._attempt.end = _OUTCOMES[outcome]
        elif record is not self._skipped or outcome not in _ALREADY_TOLD:
            self._note(record, _OUTCOMES[outcome])
        self._last = None, None
        self._attempt = None
        self._skipped = None

    def _note(self, record: Record, what: What, *, time: float | None = None, reason: str = "", to: str = "") -> None:
        name = self._name(record)
        if name is not None:
            moment = self._clock.now() if time is None else time
            self._ring.note(name, self._step(record, what, time=moment, reason=reason, to=to))

    def _step(
        self, record: Record, what: What, *, time: float, attempt: int = 0, reason: str = "", to: str = ""
    ) -> Step:
        return Step(
            what=what,
            time=time,
            topic=Topic(self._topic.pubsub, record.topic),
            app=self._app,
            group=self._group,
            position=record.position,
            attempt=attempt,
            reason=reason,
            to=to,
        )

    def _name(self, record: Record) -> str | None:
        """The end of a delivery mostly comes right after its answer: the name is read once for both."""
        last, name = self._last
        if last is not record:
            name = self._recorder.name(record)
            self._last = record, name
            self._attempt = None
        return name


def _clipped(text: str) -> str:
    return text if len(text) <= MAX_REASON else text[: MAX_REASON - 1] + "…"
