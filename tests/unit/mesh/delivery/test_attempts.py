"""Attempts happen when the plan said they would, and exactly so often; what is given up becomes a letter."""

from __future__ import annotations

import asyncio
import time
from itertools import islice

import pytest

from brokers.memory import MemoryEventLog
from mesh.delivery import BackOff, Deliverer, EventTarget, Judgement, Letter, Outcome, Plan, Reason
from mesh.delivery.bulk import Bulk, BulkRoute
from mesh.delivery.explanation import explain
from mesh.delivery.letters import NAMES, strip
from mesh.delivery.plan import schedule, scheduled
from mesh.errors import AppError, AppUnreachable, MeshError
from mesh.ports import AppResponse, Group, Message, Mode, Record
from mesh.resiliency.breaker import BreakerSettings
from mesh.resiliency.retry import parse_codes
from mesh.routing import Skipped
from tests.unit.mesh.delivery.bench import DEAD, EVENT, TOPIC, Bench, Store, answer

THRICE = Plan(attempts=3, back_off=BackOff(first=2, factor=1))


def busy(pause: bytes, status: int = 503) -> AppResponse:
    return AppResponse(status, [(b"Retry-After", pause)], b"")


PLANS = [
    THRICE,
    Plan(attempts=7, back_off=BackOff(first=0.1, factor=3, longest=4, jitter=0)),
    Plan(attempts=5),
    Plan(attempts=1, dead_letter=DEAD),
]


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("spread", [0.0, 0.5, 0.999999])
async def test_attempts_happen_at_the_times_that_explain_tells_once_each(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, plan: Plan, spread: float
) -> None:
    monkeypatch.setattr("random.random", lambda: spread)
    told = explain("pubsub", "A", "here", plan, {}).attempts
    store = Store()
    await bench.subscribe(plan, store=store)
    bench.app.answers = [answer(500)] * 100
    await bench.publish()
    await bench.clock.advance(10 * 3600)
    assert len(bench.app.times) == len(told) == plan.attempts
    for moment, attempt in zip(bench.app.times, told, strict=True):
        assert attempt.earliest - 0.002 <= moment <= attempt.latest + 0.002
    assert store.only.attempts == plan.attempts


@pytest.mark.parametrize("plan", PLANS)
def test_the_last_attempt_is_told_without_counting_up_to_it(plan: Plan) -> None:
    *_, last = schedule(plan)
    assert scheduled(plan, last.attempt) == pytest.approx(last)
    began = time.process_time()
    for factor in (1.0, 100.0):
        many = Plan(attempts=1_000_000, back_off=BackOff(first=30, factor=factor, longest=30))
        assert "(attempt 1000000)" in explain("pubsub", "A", "here", many, {}).then
    assert time.process_time() - began < 0.05


async def test_without_a_limit_attempts_follow_explain_for_as_long_as_one_looks(bench: Bench) -> None:
    plan = Plan(back_off=BackOff(jitter=0))
    await bench.subscribe(plan)
    bench.app.answers = [answer(500)] * 50
    await bench.publish()
    await bench.clock.advance(1000)
    expected = [one.earliest for one in islice(schedule(plan), len(bench.app.times))]
    assert bench.app.times == expected
    assert len(expected) > 15
    assert explain("pubsub", "A", "here", plan, {}).then == "and so on until it succeeds, after pauses of 60 s"


async def test_each_attempt_tells_its_number(bench: Bench) -> None:
    await bench.subscribe(Plan(back_off=BackOff(first=1, factor=1)))
    bench.app.answers = [answer(500)] * 9
    await bench.publish()
    await bench.clock.advance(60)
    lines = [headers.split(b"\r\n")[0] for _, _, headers in bench.app.calls]
    assert lines == [b"meshwire-attempt: %d" % attempt for attempt in range(1, 11)]


async def test_exhausted_is_not_lost(bench: Bench) -> None:
    store = Store()
    await bench.subscribe(THRICE, store=store)
    began = bench.clock.now()
    bench.app.answers = [answer(500), answer(502), AppResponse(503, [], b"x" * 2000)]
    await bench.publish()
    await bench.clock.advance(60)
    letter = store.only
    assert (letter.reason, letter.text, letter.status) == (Reason.ATTEMPTS, "the app answered 503", 503)
    assert (letter.attempts, letter.excerpt, letter.destination) == (3, b"x" * 1024, "/A")
    assert (letter.first_failure - began, letter.last_failure - began) == (0, 4)
    assert (letter.group.app_id, letter.topic) == ("app", TOPIC)
    assert letter.message.payload == EVENT
    async with asyncio.timeout(30):
        await bench.subscription.close()


async def test_a_topic_gets_the_event_with_what_is_known_and_the_store_has_it_too(bench: Bench) -> None:
    store = Store()
    await bench.subscribe(Plan(attempts=1, dead_letter=DEAD), store=store)
    bench.app.answers = [AppResponse(500, [], b"no stock")]
    await bench.publish()
    (message,) = bench.dead
    assert message.payload == EVENT[:-1] + (
        b',"knativeerrordest":"meshwire://app/A","knativeerrorcode":500,"meshwirereason":"attempts",'
        b'"meshwireattempts":1,"meshwirefirstfailure":"2023-11-14T22:13:20Z",'
        b'"meshwirelastfailure":"2023-11-14T22:13:20Z","meshwiresubscription":"app/pubsub/A",'
        b'"knativeerrordata":"bm8gc3RvY2s="}'
    )
    assert strip(message).payload == EVENT
    assert store.only.message.payload == EVENT


async def test_binary_events_get_attributes(bench: Bench) -> None:
    await bench.subscribe(Plan(attempts=1, dead_letter=DEAD))
    attributes = {"specversion": "1.0", "id": "1", "source": "/a", "type": "t"}
    bench.app.answers = [AppError("broke off")]
    await bench.log.publish(TOPIC, Message(mode=Mode.BINARY, payload=b"1", attributes=dict(attributes)))
    await bench.clock.settle()
    (message,) = bench.dead
    assert message.attributes["knativeerrorcode"] == 500
    assert message.attributes.keys() - NAMES == attributes.keys()
    assert strip(message).attributes == attributes


async def test_the_letter_of_a_letter_has_its_own_attributes_once(bench: Bench) -> None:
    await bench.subscribe(Plan(attempts=1, dead_letter=DEAD))
    bench.app.answers = [answer(500), answer(503)]
    await bench.publish()
    await bench.publish(bench.dead[0].payload or b"")
    body = bench.dead[1].payload or b""
    assert body.count(b"knativeerrorcode") == 1
    assert b'"knativeerrorcode":503' in body
    assert b'"data":1' in body


@pytest.mark.parametrize("failure", [answer(410), answer(400)])
async def test_some_answers_are_final(bench: Bench, failure: AppResponse) -> None:
    store = Store()
    await bench.subscribe(Plan(attempts=9, retryable=parse_codes("410,500-599", range(100, 600))), store=store)
    bench.app.answers = [answer(500), failure]
    await bench.publish()
    await bench.clock.advance(60)
    assert bench.app.times == [0.0, 0.5]
    assert (store.only.reason, store.only.attempts) == (Reason.REFUSED, 2)


@pytest.mark.parametrize("failure", [answer(200, b'{"status":"RETRY"}'), AppError("no answer in time")])
async def test_failures_without_a_status_are_always_tried_again(bench: Bench, failure: AppResponse) -> None:
    await bench.subscribe(Plan(retryable=parse_codes("500-599", range(100, 600))))
    bench.app.answers = [failure]
    await bench.publish()
    await bench.clock.advance(60)
    assert bench.app.times == [0.0, 0.5]


@pytest.mark.parametrize(
    ("response", "pause"),
    [
        (busy(b"7"), 7.0),
        (busy(b" 7 ", 429), 7.0),
        (busy(b"Tue, 14 Nov 2023 22:13:32 GMT"), 12.0),
        (busy(b"Tue, 14 Nov 2023 22:13:00 GMT"), 0.5),
        (busy(b"0"), 0.5),
        (busy(b"99999999999999999999"), 300.0),
        (busy(b"soon"), 0.5),
        (busy(b"\xff"), 0.5),
        (busy(b"-7"), 0.5),
        (busy(b"7", 500), 0.5),
    ],
)
async def test_an_app_may_ask_for_a_longer_pause(bench: Bench, response: AppResponse, pause: float) -> None:
    await bench.subscribe(Plan())
    bench.app.answers = [response]
    await bench.publish()
    await bench.clock.advance(400)
    assert bench.app.times == [0.0, pause]


async def test_asking_for_a_pause_can_be_ignored(bench: Bench) -> None:
    await bench.subscribe(Plan(retry_after_max=0))
    bench.app.answers = [busy(b"7")]
    await bench.publish()
    await bench.clock.advance(60)
    assert bench.app.times == [0.0, 0.5]


async def test_a_poison_message_does_not_hold_up_its_neighbours(bench: Bench) -> None:
    store = Store()
    await bench.subscribe(Plan(attempts=4, concurrency=1), store=store)
    bench.app.answers = [answer(500)]
    await bench.publish(b'{"poison":1}')
    for _ in range(20):
        await bench.publish()
    assert [moment for moment in bench.app.times if moment == 0.0] == [0.0] * 21
    bench.app.answers = [answer(500)] * 3
    await bench.clock.advance(60)
    assert bench.app.times[21:] == [0.5, 1.5, 3.5]
    assert store.only.message.payload == b'{"poison":1}'


async def test_what_is_no_event_is_a_letter_at_once(bench: Bench) -> None:
    store = Store()
    await bench.subscribe(Plan(), store=store)
    await bench.publish(b"plain")
    await bench.clock.advance(600)
    letter = store.only
    assert (letter.reason, letter.attempts, letter.message.payload) == (Reason.MALFORMED, 0, b"plain")
    assert bench.app.calls == []


async def test_without_any_place_for_letters_a_bad_event_stays(bench: Bench) -> None:
    await bench.subscribe(THRICE)
    bench.app.answers = [answer(500)] * 20
    await bench.publish()
    await bench.clock.advance(19)
    assert bench.app.times == [2.0 * attempt for attempt in range(10)]


async def test_dropped_without_a_topic_is_no_letter(bench: Bench) -> None:
    store = Store()
    await bench.subscribe(THRICE, store=store)
    bench.app.answers = [answer(404)]
    await bench.publish()
    await bench.clock.advance(60)
    assert (len(bench.app.calls), store.letters) == (1, {})


@pytest.mark.parametrize("dead_letter", [None, DEAD])
async def test_a_store_that_is_away_costs_neither_the_letter_nor_a_call(bench: Bench, dead_letter: object) -> None:
    store = Store()
    store.failures = 3
    await bench.subscribe(Plan(attempts=1, dead_letter=dead_letter), store=store)  # type: ignore[arg-type]
    bench.app.answers = [answer(500)] * 9
    await bench.publish()
    assert store.letters == {}
    await bench.clock.advance(600)
    assert (store.only.attempts, bench.app.times) == (1, [0.0])
    assert len(bench.dead) == (dead_letter is not None)
    async with asyncio.timeout(30):
        await bench.subscription.close()


async def test_an_event_too_large_for_attributes_goes_without(bench: Bench) -> None:
    bench.log = MemoryEventLog(bench.clock, max_message_size=len(EVENT))
    await bench.subscribe(Plan(attempts=1, dead_letter=DEAD))
    bench.app.answers = [answer(500)]
    await bench.publish()
    assert [letter.payload == EVENT for letter in bench.dead] == [False, True]
    assert bench.deliverer.in_hand == 0


async def test_a_store_that_is_broken_holds_nothing_up(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Store):
        async def keep(self, letter: Letter) -> None:
            if not self.letters:
                self.letters[letter.position] = letter
                raise RuntimeError("a bug")

    await bench.subscribe(Plan(attempts=1), store=Broken())
    bench.app.answers = [answer(500)]
    await bench.publish()
    assert "a bug" in caplog.text
    await bench.clock.advance(60)
    assert (bench.deliverer.in_hand, len(bench.app.calls)) == (0, 1)


async def test_an_app_that_ends_costs_no_letter(bench: Bench) -> None:
    store = Store()
    await bench.subscribe(Plan(attempts=1, dead_letter=DEAD), store=store)
    bench.app.answers = [None]
    await bench.publish()
    bench.live.drain()
    ending = asyncio.create_task(bench.live.end())
    await bench.clock.settle()
    bench.app.open[0].set_result(answer(500))
    async with asyncio.timeout(30):
        await ending
    assert (store.letters, bench.dead) == ({}, [])


async def test_letters_under_way_at_the_end_are_given_up_with_their_events(bench: Bench) -> None:
    class Slow(Store):
        stopped = False

        async def keep(self, _letter: Letter) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                self.stopped = True

    store = Slow()
    await bench.subscribe(Plan(attempts=1), store=store)
    bench.app.answers = [answer(500)]
    await bench.publish()
    ending = asyncio.create_task(bench.live.end())
    await bench.clock.settle()
    ending.cancel()
    await asyncio.gather(ending, return_exceptions=True)
    assert store.stopped
    backlog = await bench.log.backlog(Group("app", TOPIC))
    assert backlog is not None
    assert backlog.unsettled == 1


async def test_more_attempts_than_the_plan_has_are_still_exhausted(bench: Bench) -> None:
    """A plan may have become shorter while its event waited."""
    store = Store()
    await bench.subscribe(Plan(attempts=5, back_off=BackOff(first=2, factor=1)), store=store)
    bench.app.answers = [answer(500)] * 3
    await bench.publish()
    await bench.clock.advance(3)
    bench.deliverer._plan = Plan(attempts=2)
    await bench.clock.advance(2)
    assert (store.only.reason, store.only.attempts) == (Reason.ATTEMPTS, 3)


# What nobody foresaw


@pytest.mark.parametrize("step", ["prepare", "judge"])
async def test_a_bug_of_ours_leaves_nothing_in_hand(
    bench: Bench, step: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    store = Store()
    monkeypatch.setattr(EventTarget, step, fail)
    await bench.subscribe(Plan(attempts=2), store=store)
    await bench.publish()
    await bench.clock.advance(60)
    assert store.only.text == "an error in the sidecar"
    assert "a bug" in caplog.text
    assert (bench.deliverer.in_hand, len(bench.app.calls)) == (0, 2 if step == "judge" else 0)
    async with asyncio.timeout(30):
        await bench.live.end()


async def test_a_call_that_cannot_be_made_fails_each_event_of_its_batch(bench: Bench) -> None:
    def fail(*_: object, timeout: float) -> asyncio.Future[AppResponse]:
        raise MeshError(f"no call within {timeout:g} s")

    bench.app.send = fail  # type: ignore[method-assign]
    route = BulkRoute(bench.app, TOPIC, Bulk(events=2), "application/json", bench.clock)
    first = route.send(EVENT, timeout=3)
    second = route.send(EVENT, timeout=3)
    late = route.send(EVENT, timeout=3)
    await bench.clock.advance(2)
    assert [str(call.exception()) for call in (first, second, late)] == ["no call within 3 s"] * 3


# Circuit breaker

OPENS_AT_3 = BreakerSettings(timeout=30.0, max_requests=2, trip=lambda counts: counts.consecutive_failures >= 3)


async def test_a_failing_app_pauses_its_subscription_and_burns_no_attempts(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    store = Store()
    await bench.subscribe(Plan(attempts=9, concurrency=4, breaker=OPENS_AT_3), store=store)
    bench.app.answers = [answer(500)] * 3
    for _ in range(3):
        await bench.publish()
    assert bench.live.gate.allowed == 0
    for _ in range(10):
        await bench.publish()
    await bench.clock.advance(29)
    assert len(bench.app.calls) == 3
    bench.app.answers = [None, None]
    await bench.clock.advance(2)
    assert len(bench.app.calls) == 5  # as many probes as there may be
    for probe in bench.app.open:
        probe.set_result(answer(200))
    await bench.clock.advance(60)
    assert bench.live.gate.allowed == 4
    assert len(bench.app.calls) == 3 + 13
    assert store.letters == {}
    told = [record.message for record in caplog.records if "Circuit breaker" in record.message]
    assert [line.partition("from ")[2] for line in told] == [
        "closed to open",
        "open to half-open",
        "half-open to closed",
    ]


async def test_without_a_gate_what_comes_while_the_breaker_is_open_waits(bench: Bench) -> None:
    await bench.log.start()
    group = Group("app", TOPIC)
    deliverer = Deliverer(
        group=group,
        target=EventTarget(TOPIC, "/A", bench.app),  # type: ignore[arg-type]
        plan=Plan(breaker=OPENS_AT_3),
        log=bench.log,
        channel=bench.app,  # type: ignore[arg-type]
        clock=bench.clock,
    )
    await bench.log.subscribe(group, deliverer.handle, concurrency=4)
    bench.app.answers = [answer(500)] * 3
    for _ in range(10):
        await bench.publish()
    await bench.clock.advance(29)
    assert len(bench.app.calls) == 3
    await bench.clock.advance(60)
    assert len(bench.app.calls) == 13


async def test_a_probe_that_fails_keeps_the_subscription_paused(bench: Bench) -> None:
    await bench.subscribe(Plan(back_off=BackOff(first=1, factor=1), breaker=OPENS_AT_3))
    bench.app.answers = [answer(500)] * 4
    await bench.publish()
    await bench.clock.advance(3)
    assert bench.app.times == [0.0, 1.0, 2.0]
    await bench.clock.advance(30)
    assert (bench.app.times[3:], bench.live.gate.allowed) == ([32.0], 0)
    await bench.clock.advance(40)
    assert bench.app.times[4:] == [62.0]


async def test_an_app_that_cannot_be_reached_is_no_failure_of_the_breaker(bench: Bench) -> None:
    from mesh.errors import AppUnreachable

    await bench.subscribe(Plan(breaker=OPENS_AT_3))
    bench.app.answers = [AppUnreachable("refused")] * 8
    await bench.publish()
    await bench.clock.advance(60)
    assert len(bench.app.calls) == 9
    assert bench.live.gate.allowed == 64


# Watch


class Watch:
    def __init__(self) -> None:
        self.seen: list[object] = []

    def skipped(self, _record: Record, why: Skipped) -> None:
        self.seen.append(why)

    def started(self, _record: Record, _attempt: int, _now: float) -> None:
        pass

    def held(self, _record: Record, why: str, _now: float) -> None:
        self.seen.append(why)

    def attempted(
        self, _record: Record, attempt: int, found: Judgement, _seconds: float, next_in: float | None
    ) -> None:
        self.seen.append((attempt, found.status or found.reason, next_in))

    def settled(self, _record: Record, outcome: Outcome) -> None:
        self.seen.append(outcome)


async def told(bench: Bench, plan: Plan, payload: bytes = EVENT, store: Store | None = None) -> list[object]:
    watch = Watch()
    await bench.subscribe(plan, store=store, watch=watch)
    await bench.publish(payload)
    await bench.clock.advance(600)
    return watch.seen


async def test_a_watch_is_told_of_retries_and_success(bench: Bench) -> None:
    bench.app.answers = [answer(500), answer(204)]
    assert await told(bench, Plan()) == [(1, 500, 0.5), (2, 204, None), Outcome.ACKED]


async def test_a_watch_is_told_of_an_app_that_cannot_be_reached(bench: Bench) -> None:
    bench.app.answers = [AppUnreachable("nobody listens"), answer(200)]
    assert await told(bench, Plan()) == ["nobody listens", (1, 200, None), Outcome.ACKED]


async def test_a_watch_is_told_of_letters(bench: Bench) -> None:
    bench.app.answers = [AppError("broke off"), answer(500)]
    plan = Plan(attempts=2)
    assert await told(bench, plan, store=Store()) == [(1, "broke off", 0.5), (2, 500, None), Outcome.DEAD]


async def test_a_watch_is_told_of_what_is_dropped_and_late(bench: Bench) -> None:
    bench.app.answers = [answer(404)]
    assert await told(bench, Plan()) == [(1, 404, None), Outcome.DROPPED]


async def test_a_watch_is_told_of_what_is_late(bench: Bench) -> None:
    late = b'{"id":"1","expiration":"2023-11-14T22:13:20Z"}'
    assert await told(bench, Plan(), late) == [Skipped.EXPIRED, Outcome.EXPIRED]


async def test_while_it_ends_nothing_is_given_up(bench: Bench) -> None:
    store = Store()
    await bench.subscribe(Plan(attempts=1, dead_letter=DEAD), store=store)
    bench.live.drain()
    ending = asyncio.create_task(bench.live.end())
    await bench.publish(b"plain")
    await bench.clock.settle()
    bench.live.deliverer.handle(Handed())  # type: ignore[arg-type]
    await ending
    assert (store.letters, bench.dead, Handed.released) == ({}, [], 1)


class Handed:
    """A delivery of what is no event, that the broker had sent already."""

    mode, payload, headers, position, attempt = Mode.STRUCTURED, b"plain", dict[str, str](), "9", 1
    released = 0

    def release(self) -> None:
        Handed.released += 1


async def test_a_call_from_before_does_not_keep_the_place_of_the_probe(bench: Bench) -> None:
    breaker = BreakerSettings(timeout=30.0, max_requests=1, trip=lambda counts: counts.consecutive_failures >= 3)
    await bench.subscribe(Plan(attempts=9, concurrency=8, breaker=breaker), store=Store())
    bench.app.answers = [None, answer(500), answer(500), answer(500), None]
    for _ in range(6):
        await bench.publish()
    assert (len(bench.app.calls), bench.live.gate.allowed) == (4, 0)
    await bench.clock.advance(31)
    assert (len(bench.app.calls), bench.live.gate.allowed) == (5, 2)
    old, probe = bench.app.open
    old.set_result(answer(200))
    await bench.clock.settle()
    assert (len(bench.app.calls), bench.live.gate.allowed) == (5, 1)
    probe.set_result(answer(200))
    await bench.clock.settle()
    assert bench.live.gate.allowed == 8
    await bench.clock.advance(600)
    assert bench.deliverer.in_hand == 0
