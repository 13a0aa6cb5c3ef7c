import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import MeshError
from mesh.resiliency.breaker import Breaker, BreakerOpen, BreakerSettings, State
from mesh.resiliency.policy import Policy, TimedOut
from mesh.resiliency.retry import Failure, Retry, parse_codes
from mesh.resiliency.trip import parse_trip
from tests.virtual_clock import VirtualClock


class Broken(MeshError):
    pass


def judge(outcome: object) -> Failure | None:
    """An error is a failure, and so is a number that is a failing status."""
    if isinstance(outcome, Exception):
        return None if isinstance(outcome, LookupError) else Failure()
    return Failure(http_status=outcome) if isinstance(outcome, int) and outcome >= 400 else None


class Target:
    """Answers with what is listed, the last one for ever, and keeps the moments of the attempts."""

    def __init__(self, clock: VirtualClock, *answers: Any, takes: float = 0.0) -> None:
        self.clock = clock
        self.answers = itertools.chain(answers, itertools.repeat(answers[-1]))
        self.takes = takes
        self.start = clock.now()
        self.times: list[float] = []
        self.cancelled = 0

    async def __call__(self) -> Any:
        self.times.append(round(self.clock.now() - self.start, 6))
        answer = next(self.answers)
        try:
            if self.takes:
                await self.clock.sleep(self.takes)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if isinstance(answer, Exception):
            raise answer
        return answer


async def finish(clock: VirtualClock, call: Awaitable[Any], limit: float = 100_000) -> Any:
    task = asyncio.ensure_future(call)
    await clock.advance(limit)
    assert task.done()
    return await task


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


def grown(first: float, ceiling: float, n: int) -> list[float]:
    """Dapr's pauses without jitter: half a second, growing by half, to the ceiling."""
    pauses = [first]
    while len(pauses) < n:
        pauses.append(min(pauses[-1] * 1.5, ceiling))
    return pauses


@pytest.mark.parametrize(
    ("retry", "random", "takes", "times"),
    [
        (None, 0.5, 0, [0]),
        (Retry(max_retries=0), 0.5, 0, [0]),
        (Retry(duration=0.2, max_retries=3), 0.5, 0, [0, 0.2, 0.4, 0.6]),
        (Retry(duration=0.2, max_retries=3), 0.5, 1, [0, 1.2, 2.4, 3.6]),
        (Retry(duration=0, max_retries=2), 0.5, 0, [0, 0, 0]),
        (Retry(max_retries=2), 0.5, 0, [0, 5, 10]),
        (Retry(exponential=True, max_retries=4), 0.5, 0, [0, 0.5, 1.25, 2.375, 4.0625]),
        (Retry(exponential=True, max_retries=4), 0.0, 0, [0, 0.25, 0.625, 1.1875, 2.03125]),
        (Retry(exponential=True, max_retries=3), 1.0, 0, [0, 0.75, 1.875, 3.5625]),
        # The ceiling comes before the jitter, and not before the first pause.
        (Retry(exponential=True, max_interval=1, max_retries=4), 1.0, 0, [0, 0.75, 1.875, 3.375, 4.875]),
        (Retry(exponential=True, max_interval=0.2, max_retries=3), 0.5, 0, [0, 0.5, 0.7, 0.9]),
        # The pause that would pass `max_elapsed` is not made.
        (Retry(exponential=True, max_interval=1, max_elapsed=3.25), 0.5, 0, [0, 0.5, 1.25, 2.25, 3.25]),
        (Retry(exponential=True, max_interval=1, max_elapsed=3.2), 0.5, 0, [0, 0.5, 1.25, 2.25]),
        (Retry(exponential=True, max_interval=1, max_elapsed=3.2), 0.5, 1, [0, 1.5]),
    ],
)  # fmt: skip
async def test_the_moments_of_the_attempts(
    clock: VirtualClock, retry: Retry | None, random: float, takes: float, times: list[float]
) -> None:
    target = Target(clock, Broken("no"), takes=takes)
    with pytest.raises(Broken):
        await finish(clock, Policy("t", clock, retry=retry, random=lambda: random).run(target, failed=judge))
    assert target.times == times
    assert clock.pending == 0


async def test_exponential_gives_up_after_fifteen_minutes_without_a_limit_of_retries(clock: VirtualClock) -> None:
    target = Target(clock, Broken("no"))
    with pytest.raises(Broken):
        await finish(
            clock, Policy("t", clock, retry=Retry(exponential=True), random=lambda: 0.5).run(target, failed=judge)
        )
    expected = [0.0, *itertools.accumulate(grown(0.5, 60, 40))]
    assert target.times == pytest.approx([moment for moment in expected if moment <= 900])


async def test_constant_without_a_limit_goes_on_for_ever(clock: VirtualClock) -> None:
    target = Target(clock, *[Broken("no")] * 1000, "yes")
    assert await finish(clock, Policy("t", clock, retry=Retry(duration=60)).run(target, failed=judge)) == "yes"
    assert target.times[-1] == 60_000


@given(st.lists(st.floats(0, 1, exclude_max=True), min_size=20, max_size=20), st.floats(0.1, 100))
def test_exponential_pauses_stay_within_half_of_their_interval(randoms: list[float], ceiling: float) -> None:
    retry = Retry(exponential=True, max_interval=ceiling, max_elapsed=1e9, max_retries=20)
    pauses = list(retry.pauses(lambda: 0.0, iter(randoms).__next__))
    for pause, interval in zip(pauses, grown(0.5, ceiling, 20), strict=True):
        assert 0.5 * interval * (1 - 1e-9) <= pause <= 1.5 * interval * (1 + 1e-9)


@pytest.mark.parametrize(
    ("answers", "retry", "result", "attempts"),
    [
        ([200], Retry(max_retries=3), 200, 1),
        ([500, 503, 200], Retry(max_retries=3), 200, 3),
        ([500, Broken("no"), 200], Retry(max_retries=3), 200, 3),
        ([500, 501, 502, 503, 200], Retry(max_retries=3), 503, 4),
        ([500, 404, 200], Retry(max_retries=3, http_statuses=parse_codes("429,500-599", range(100, 600))), 404, 2),
        ([500, 429, 200], Retry(max_retries=3, http_statuses=parse_codes("429,500-599", range(100, 600))), 200, 3),
        ([404, 200], Retry(max_retries=3, grpc_codes=(range(1),)), 200, 2),
        ([Broken("no"), 200], Retry(max_retries=3, http_statuses=(range(500, 501),)), 200, 2),
    ],
)
async def test_what_is_tried_again(
    clock: VirtualClock, answers: list[Any], retry: Retry, result: int, attempts: int
) -> None:
    target = Target(clock, *answers)
    assert await finish(clock, Policy("t", clock, retry=retry).run(target, failed=judge)) == result
    assert len(target.times) == attempts


async def test_an_error_that_is_no_failure_is_raised_and_says_nothing_of_the_target(clock: VirtualClock) -> None:
    breaker = Breaker("t", BreakerSettings(trip=parse_trip("requests >= 2")), clock)
    target = Target(clock, KeyError("mine"), KeyError("mine"), Broken("its"))
    policy = Policy("t", clock, retry=Retry(max_retries=3), breaker=breaker)
    for _ in range(2):
        with pytest.raises(KeyError):
            await finish(clock, policy.run(target, failed=judge))
    assert len(target.times) == 2
    with pytest.raises(Broken):
        await finish(clock, Policy("t", clock, breaker=breaker).run(target, failed=judge))
    assert breaker.state is State.CLOSED


async def test_a_final_failure_is_not_tried_again_but_counts(clock: VirtualClock) -> None:
    breaker = Breaker("t", BreakerSettings(trip=parse_trip("true")), clock)
    target = Target(clock, 500)
    policy = Policy("t", clock, retry=Retry(max_retries=3), breaker=breaker)
    assert await finish(clock, policy.run(target, failed=lambda _: Failure(final=True)), 1) == 500
    assert len(target.times) == 1
    assert breaker.state is State.OPEN


async def test_failed_results_that_are_tried_again_are_discarded_before_the_pause(clock: VirtualClock) -> None:
    discarded: list[tuple[int, float]] = []

    async def discard(result: int) -> None:
        discarded.append((result, clock.now() - target.start))

    target = Target(clock, 500, Broken("no"), 502, 503)
    policy = Policy("t", clock, retry=Retry(duration=1, max_retries=3))
    assert await finish(clock, policy.run(target, failed=judge, discard=discard)) == 503
    assert discarded == [(500, 0), (502, 2)]


async def test_a_timeout_is_per_attempt_and_is_tried_again(clock: VirtualClock) -> None:
    target = Target(clock, 200, takes=3)
    policy = Policy("t", clock, timeout=2, retry=Retry(duration=1, max_retries=2))
    with pytest.raises(TimedOut, match=r"^context deadline exceeded$"):
        await finish(clock, policy.run(target, failed=judge))
    assert (target.times, target.cancelled) == ([0, 3, 6], 3)
    assert clock.pending == 0


@pytest.mark.parametrize("takes", [0.0, 1.9])
async def test_what_ends_in_time_leaves_no_timer(clock: VirtualClock, takes: float) -> None:
    target = Target(clock, 200, takes=takes)
    assert await finish(clock, Policy("t", clock, timeout=2).run(target, failed=judge), 1.95) == 200
    assert clock.pending == 0


async def test_a_judge_cannot_make_a_timeout_a_success_but_can_make_it_final(clock: VirtualClock) -> None:
    breaker = Breaker("t", BreakerSettings(trip=parse_trip("true")), clock)
    verdicts: Iterable[Callable[[object], Failure | None]] = (lambda _: None, lambda _: Failure(final=True))
    for verdict, attempts in zip(verdicts, (2, 1), strict=True):
        target = Target(clock, 200, takes=3)
        policy = Policy("t", clock, timeout=2, retry=Retry(duration=1, max_retries=1))
        with pytest.raises(TimedOut):
            await finish(clock, policy.run(target, failed=verdict))
        assert len(target.times) == attempts
    with pytest.raises(TimedOut):
        await finish(clock, Policy("t", clock, timeout=2, breaker=breaker).run(target, failed=lambda _: None), 10)
    assert breaker.state is State.OPEN


async def test_an_attempt_that_answers_its_cancellation(clock: VirtualClock) -> None:
    async def stubborn(outcome: Exception | int) -> int:
        try:
            await clock.sleep(10)
        except asyncio.CancelledError:
            if isinstance(outcome, int):
                return outcome
            raise outcome from None
        return 0

    async def call(outcome: Exception | int) -> tuple[object, int]:
        task = asyncio.current_task()
        assert task is not None
        try:
            result: object = await Policy("t", clock, timeout=2).run(lambda: stubborn(outcome), failed=judge)
        except TimedOut as error:
            result = error.__cause__
        return result, task.cancelling()

    error = Broken("while ending")
    assert await finish(clock, call(200)) == (200, 0)
    assert await finish(clock, call(error)) == (error, 0)


@pytest.mark.parametrize("moment", [0.5, 2.0, 2.5], ids=["attempt", "as it times out", "pause"])
async def test_cancelling_ends_the_whole_call_at_once(clock: VirtualClock, moment: float) -> None:
    target = Target(clock, 200, takes=9)
    breaker = Breaker("t", BreakerSettings(trip=parse_trip("requests >= 2")), clock)
    policy = Policy("t", clock, timeout=2, retry=Retry(duration=1, max_retries=5), breaker=breaker)
    task = asyncio.ensure_future(policy.run(target, failed=judge))
    await clock.settle()
    if moment == 2.0:  # the same turn of the loop as the timeout
        clock.call_later(2.0, task.cancel)
    await clock.advance(moment)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(target.times) == 1
    assert clock.pending == 0


async def test_a_cancelled_probe_does_not_block_the_breaker(clock: VirtualClock) -> None:
    breaker = Breaker("t", BreakerSettings(trip=parse_trip("true"), timeout=10), clock)
    policy = Policy("t", clock, breaker=breaker)
    assert await finish(clock, policy.run(Target(clock, 500), failed=judge), 10) == 500
    probe = asyncio.ensure_future(policy.run(Target(clock, 200, takes=5), failed=judge))
    await clock.advance(1)
    probe.cancel()
    await clock.settle()
    assert breaker.state is State.HALF_OPEN
    assert await finish(clock, policy.run(Target(clock, 200), failed=judge), 1) == 200
    assert breaker.state is State.CLOSED


async def test_every_attempt_counts_in_the_breaker_and_an_open_one_ends_the_retries(clock: VirtualClock) -> None:
    breaker = Breaker("t", BreakerSettings(trip=parse_trip("consecutiveFailures >= 3"), timeout=30), clock)
    policy = Policy("t", clock, retry=Retry(duration=1, max_retries=10), breaker=breaker)
    target = Target(clock, 500)
    with pytest.raises(BreakerOpen, match=r"^circuit breaker is open$"):
        await finish(clock, policy.run(target, failed=judge), 10)
    assert target.times == [0, 1, 2]
    with pytest.raises(BreakerOpen):
        await finish(clock, policy.run(target, failed=judge), 1)
    assert len(target.times) == 3


async def test_an_open_breaker_inside_ends_the_retries_outside(clock: VirtualClock) -> None:
    inner = Policy("i", clock, breaker=Breaker("t", BreakerSettings(trip=parse_trip("true"), timeout=30), clock))
    outer = Policy("o", clock, retry=Retry(duration=1, max_retries=10))
    target = Target(clock, 500)
    with pytest.raises(BreakerOpen):
        await finish(clock, outer.run(lambda: inner.run(target, failed=judge), failed=judge), 1.5)
    assert target.times == [0]


async def test_the_log_is_dapr_s_and_bounded(clock: VirtualClock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    await finish(clock, Policy("op", clock, retry=Retry(duration=2)).run(Target(clock, 500, 200), failed=judge))
    assert caplog.messages == [
        "Error processing operation op. Retrying in 2s…",
        "Recovered processing operation op after 2 attempts.",
    ]
    caplog.clear()
    policy = Policy("op", clock, retry=Retry(duration=0.01, max_retries=150))
    await finish(clock, policy.run(Target(clock, 500), failed=judge))
    assert len(caplog.messages) <= 23
    assert any("more lines about retries were left out" in message for message in caplog.messages)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("500, 501", "without blanks"),
        ("", "without blanks"),
        (",500", "without blanks"),
        ("5xx", "without blanks"),
        ("500-", "without blanks"),
        ("500-501-502", "without blanks"),
        ("99", "from 100 to 599"),
        ("500-600", "from 100 to 599"),
        ("599-500", "from the lower to the higher"),
        ("-1", "without blanks"),
    ],
)
def test_codes_that_are_none(text: str, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        parse_codes(text, range(100, 600))
