import logging
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.resiliency.breaker import Breaker, BreakerOpen, BreakerSettings, State, TooManyProbes
from mesh.resiliency.trip import parse_trip
from tests.virtual_clock import VirtualClock


class Time(VirtualClock):
    def pass_(self, seconds: float) -> None:
        self._now += seconds


def make(clock: Time, **settings: object) -> Breaker:
    return Breaker("it", BreakerSettings(**settings), clock)  # type: ignore[arg-type]


def call(breaker: Breaker, *, ok: bool) -> None:
    generation = breaker.enter()
    (breaker.succeeded if ok else breaker.failed)(generation)


def test_it_opens_after_the_sixth_failure_in_a_row_by_default(caplog: pytest.LogCaptureFixture) -> None:
    clock = Time()
    breaker = make(clock)
    with caplog.at_level(logging.INFO):
        for ok in [False] * 5 + [True] + [False] * 5:
            call(breaker, ok=ok)
        assert breaker.state is State.CLOSED
        call(breaker, ok=False)
    assert breaker.state is State.OPEN
    assert caplog.messages == ["Circuit breaker it changed state from closed to open"]
    with pytest.raises(BreakerOpen, match=r"^circuit breaker is open$"):
        breaker.enter()
    clock.pass_(59.9)
    assert breaker.state is State.OPEN
    clock.pass_(0.1)
    assert breaker.state is State.HALF_OPEN


def half_open(clock: Time, **settings: object) -> Breaker:
    breaker = make(clock, trip=parse_trip("true"), **settings)
    call(breaker, ok=False)
    clock.pass_(60)
    return breaker


def test_half_open_lets_a_bounded_number_through_and_closes_when_all_of_them_succeed() -> None:
    breaker = half_open(Time(), max_requests=2)
    first, second = breaker.enter(), breaker.enter()
    with pytest.raises(TooManyProbes, match=r"^too many requests$"):
        breaker.enter()
    breaker.succeeded(first)
    assert breaker.state is State.HALF_OPEN
    breaker.succeeded(second)
    assert breaker.state is State.CLOSED


def test_one_failed_probe_opens_it_for_the_whole_time_again() -> None:
    clock = Time()
    breaker = half_open(clock, max_requests=2)
    call(breaker, ok=True)
    call(breaker, ok=False)
    clock.pass_(59)
    assert breaker.state is State.OPEN


def test_a_forgotten_probe_gives_its_place_to_another() -> None:
    breaker = half_open(Time())
    breaker.forget(breaker.enter())
    call(breaker, ok=True)
    assert breaker.state is State.CLOSED


def test_what_began_in_an_earlier_period_does_not_count() -> None:
    clock = Time()
    breaker = make(clock, trip=parse_trip("consecutiveFailures >= 2"))
    late = [breaker.enter() for _ in range(3)]
    call(breaker, ok=False)
    call(breaker, ok=False)
    clock.pass_(60)
    assert breaker.state is State.HALF_OPEN
    breaker.failed(late[0])
    breaker.succeeded(late[1])
    breaker.forget(late[2])
    assert breaker.state is State.HALF_OPEN
    call(breaker, ok=True)
    assert breaker.state is State.CLOSED


def test_an_interval_starts_the_counting_again() -> None:
    clock = Time()
    breaker = make(clock, interval=10, trip=parse_trip("totalFailures >= 2"))
    call(breaker, ok=False)
    clock.pass_(10)
    call(breaker, ok=False)
    assert breaker.state is State.CLOSED
    clock.pass_(9.9)
    call(breaker, ok=False)
    assert breaker.state is State.OPEN


def test_a_clock_that_is_set_back_does_not_keep_it_open() -> None:
    clock = Time()
    breaker = make(clock, trip=parse_trip("true"))
    call(breaker, ok=False)
    clock.pass_(-3600)
    assert breaker.state is State.HALF_OPEN


def test_requests_counts_those_under_way() -> None:
    breaker = make(Time(), trip=parse_trip("requests >= 3"))
    first, second, third = breaker.enter(), breaker.enter(), breaker.enter()
    breaker.forget(third)
    breaker.failed(first)
    assert breaker.state is State.CLOSED
    breaker.enter()
    breaker.failed(second)
    assert breaker.state is State.OPEN


@dataclass
class Model:
    """The rules again, as plainly as can be: the events since the last change are kept and counted anew."""

    max_requests: int
    interval: int
    timeout: int
    threshold: int
    state: str = "closed"
    since: int = 0
    period: int = 0
    entered: int = 0
    ends: list[bool] = field(default_factory=list)

    def restart(self, now: int, state: str) -> None:
        self.state, self.since, self.entered, self.ends = state, now, 0, []
        self.period += 1

    def tick(self, now: int) -> None:
        if self.state == "closed" and self.interval and now >= self.since + self.interval:
            self.restart(now, "closed")
        if self.state == "open" and now >= self.since + self.timeout:
            self.restart(now, "half-open")

    def enter(self, now: int) -> int | None:
        self.tick(now)
        if self.state == "open" or (self.state == "half-open" and self.entered >= self.max_requests):
            return None
        self.entered += 1
        return self.period

    def end(self, now: int, period: int, ok: bool | None) -> None:
        self.tick(now)
        if period != self.period:
            return
        if ok is None:
            self.entered -= 1
            return
        self.ends.append(ok)
        if self.state == "half-open":
            if not ok:
                self.restart(now, "open")
            elif self.ends.count(True) >= self.max_requests:
                self.restart(now, "closed")
        elif not ok and len(self.ends) >= self.threshold and not any(self.ends[-self.threshold :]):
            self.restart(now, "open")


steps = st.lists(
    st.just(("enter", 0)) | st.tuples(st.sampled_from(["ok", "fail", "forget"]), st.integers(0, 5))
    | st.tuples(st.just("wait"), st.integers(1, 8)),
    max_size=80,
)  # fmt: skip


@given(steps, st.integers(1, 3), st.sampled_from([0, 7]), st.integers(1, 9), st.integers(1, 3))
def test_against_the_model(
    steps: list[tuple[str, int]], max_requests: int, interval: int, timeout: int, threshold: int
) -> None:
    clock, start = Time(), Time().now()
    trip = parse_trip(f"consecutiveFailures >= {threshold}")
    breaker = make(clock, max_requests=max_requests, interval=interval, timeout=timeout, trip=trip)
    model = Model(max_requests, interval, timeout, threshold)
    under_way: list[tuple[int, int]] = []
    for step, number in steps:
        now = int(clock.now() - start)
        if step == "wait":
            clock.pass_(number)
            model.tick(now + number)
        elif step == "enter":
            period = model.enter(now)
            if period is None:
                with pytest.raises(TooManyProbes if model.state == "half-open" else BreakerOpen):
                    breaker.enter()
            else:
                under_way.append((breaker.enter(), period))
        elif under_way:
            generation, period = under_way.pop(number % len(under_way))
            end = {"ok": breaker.succeeded, "fail": breaker.failed, "forget": breaker.forget}[step]
            end(generation)
            model.end(now, period, {"ok": True, "fail": False, "forget": None}[step])
        assert breaker.state.value == model.state
