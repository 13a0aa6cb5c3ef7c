"""A circuit breaker around a subscription: while the app fails, no events are taken and no attempts are burnt."""

from __future__ import annotations

from mesh.control.gate import Gate
from mesh.ports import Clock
from mesh.resiliency.breaker import Breaker, BreakerSettings, Generation, State

BREAKER = "circuit breaker"
"""Who wishes for less."""
WAKE_PAUSE = 0.05


class Suspension:
    """Open, the subscription takes nothing; half-open, as many events as there are probes, beside those whose calls
    from before are still under way; closed, all it may."""

    def __init__(self, name: str, settings: BreakerSettings, clock: Clock, gate: Gate | None) -> None:
        self._breaker = Breaker(name, settings, clock)
        self._settings = settings
        self._clock = clock
        self._gate = gate
        self._state = State.CLOSED
        self._closed = False
        self._under_way = 0
        self._probing: Generation | None = None
        self._probes = 0
        """Those of the calls under way that began half-open."""

    def enter(self) -> Generation:
        """Before a call; then exactly one of `learn` and `forget`. Raises `BreakerOpen` when there is to be none."""
        self._follow()  # the timer may be late, and a probe must be known as one
        generation = self._breaker.enter()
        self._under_way += 1
        if self._state is State.HALF_OPEN:
            if generation != self._probing:
                self._probing, self._probes = generation, 0
            self._probes += 1
        return generation

    def learn(self, generation: Generation, *, failed: bool) -> None:
        """How the call ended."""
        (self._breaker.failed if failed else self._breaker.succeeded)(generation)
        self._ended(generation)

    def forget(self, generation: Generation) -> None:
        """The call was none."""
        self._breaker.forget(generation)
        self._ended(generation)

    def _ended(self, generation: Generation) -> None:
        self._under_way -= 1
        if generation == self._probing:
            self._probes -= 1
        self._follow()

    def close(self) -> None:
        """Nothing is to be limited any more."""
        self._closed = True

    def _follow(self) -> None:
        """Let in what the breaker's state allows."""
        state = self._breaker.state
        changed, self._state = state is not self._state, state
        if self._gate is None or self._closed:
            return
        if state is State.HALF_OPEN:
            if changed:
                self._probing, self._probes = None, 0
            # A call of ten minutes that began before must not keep the place of a probe.
            self._gate.wish(BREAKER, self._settings.max_requests + self._under_way - self._probes)
        elif changed and state is State.OPEN:
            self._gate.wish(BREAKER, 0)
            self._clock.call_later(self._settings.timeout, self._wake)
        elif changed:
            self._gate.wish(BREAKER, None)

    def _wake(self) -> None:
        self._follow()
        if self._state is State.OPEN and not self._closed:  # timers and the clock do not agree to the last bit
            self._clock.call_later(WAKE_PAUSE, self._wake)
