"""The story of one event, from what each sidecar remembers of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from mesh.inquiry import Answers
from mesh.journal import testimony
from mesh.journal.steps import Step, What
from mesh.journal.testimony import Question, Testimony

_OF_A_DELIVERY = ("position", "attempt", "status", "outcome", "reason", "to")


class Story(NamedTuple):
    """As the API tells it."""

    content: dict[str, Any]
    known: bool
    """Whether anybody remembers anything of it."""


def tell(question: Question, answers: Answers) -> Story:
    """All steps by time. `complete` is false where something may be missing; `gaps` says what and why."""
    heard, gaps = _heard(answers)
    steps = [(step, name, told.app) for name, told in heard.items() for step in told.steps]
    steps.sort(key=lambda one: one[0].time)  # stable: the steps of one sidecar stay in their order
    stored = [step for step, _, _ in steps if step.what is What.STORED]
    if not stored:
        gaps.append("no sidecar that answered accepted it: it came some other way, or long ago, or where none is kept")
    gaps += _forgotten(heard, min((step.time for step, _, _ in steps), default=None))
    gaps += _missing(steps)
    content = {
        "source": question.source,
        "id": question.id,
        "complete": not gaps,
        **({"gaps": gaps} if gaps else {}),
        "subscriptions": list(_subscriptions(steps)),
        "steps": [line for step, name, app in steps for line in _lines(step, name, app)],
    }
    return Story(content, bool(steps))


def _heard(answers: Answers) -> tuple[dict[str, Testimony], list[str]]:
    """Who said what, and whose words are missing."""
    heard: dict[str, Testimony] = {}
    gaps = [f"sidecar {name} has a journal and did not answer" for name in answers.silent]
    for name, given in sorted(answers.given.items()):
        try:
            told = testimony.decode(given)
        except (ValueError, RecursionError):
            gaps.append(f"sidecar {name} gave an answer that cannot be read")
            continue
        heard[name] = told
        if told.sampled_out:
            gaps.append(f"sidecar {name} notes down a sample of all events, and this is not in it")
        if told.left_out:
            gaps.append(f"sidecar {name} left out {told.left_out} steps before the last")
    return heard, gaps


def _forgotten(heard: Mapping[str, Testimony], began: float | None) -> list[str]:
    """Who can have known more: whatever they remember of an event, they remember wholly."""
    return [
        f"sidecar {name} remembers nothing from before {shown(told.since)}"
        for name, told in heard.items()
        if not told.steps and not told.sampled_out and (began is None or told.since > began)
    ]


def _missing(steps: list[tuple[Step, str, str]]) -> Iterator[str]:
    """Attempts that were counted and that nobody tells: of a sidecar that is gone, or has forgotten the beginning."""
    told: dict[tuple[str, str, str, str], set[int]] = {}
    for step, _, _ in steps:
        if step.what is What.ATTEMPT:
            told.setdefault((step.app, step.topic.name, step.group, step.position), set()).add(step.attempt)
    for (app, topic, _, _), attempts in told.items():
        missing = max(attempts) - len(attempts)
        if missing > 0:
            yield f"of {max(attempts)} attempts of app {app} for topic {topic}, {missing} are not remembered"


def _subscriptions(steps: list[tuple[Step, str, str]]) -> Iterator[dict[str, Any]]:
    """How things stand in each subscription: its newest step, and how many attempts there were."""
    newest: dict[tuple[str, ...], Step] = {}
    attempts: dict[tuple[str, ...], int] = {}
    for step, _, _ in steps:
        if step.app:
            of = (step.app, *step.topic, step.group)
            newest[of] = step
            attempts[of] = attempts.get(of, 0) + (step.what in (What.STARTED, What.ATTEMPT))
    for (app, pubsub, topic, group), step in newest.items():
        ended = step.end or step.what
        state = step.outcome if ended is What.ATTEMPT else ended.value
        named = {"app": app, "pubsubname": pubsub, "topic": topic, **({"group": group} if group else {})}
        yield {**named, "state": state, "attempts": attempts[app, pubsub, topic, group]}


def _lines(step: Step, sidecar: str, app: str) -> Iterator[dict[str, Any]]:
    """The step as it is told; what was stored was accepted before."""
    common: dict[str, Any] = {
        "time": shown(step.time),
        "what": step.what.value,
        "app": step.app or app,
        "sidecar": sidecar,
        "pubsubname": step.topic.pubsub,
        "topic": step.topic.name,
        **({"group": step.group} if step.group else {}),
    }
    line = dict(common)
    if step.what in (What.STORED, What.REFUSED):
        yield {**common, "what": What.ACCEPTED.value}
        line["time"] = shown(step.time + step.duration)
    line |= {name: value for name in _OF_A_DELIVERY if (value := getattr(step, name))}
    if step.what is What.ATTEMPT:
        line["durationMs"] = round(1000 * step.duration, 3)
        if step.next:
            line["next"] = shown(step.time + step.duration + step.next)
    yield line
    if step.end is not None:
        yield {**common, "what": step.end.value, "time": shown(step.time + step.duration), "position": step.position}


def shown(moment: float) -> str:
    """RFC 3339, in UTC and microseconds."""
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
