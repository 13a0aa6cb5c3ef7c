"""A circuit breaker around a subscription: while the app fails, no events are taken and no attempts are burnt."""

from __future__ import annotations

from mesh.control.gate import Gate
from mesh.ports import Clock
from mesh.resiliency.breaker import Breaker, BreakerSettings, Generation, State

BREAKER = "circuit breaker"
"""Who wishes for less."""
WAKE_PAUSE = 0.05


class Suspension:
    """Open, the subscription takes nothing; half-open, as many events as there are probes; closed, all it may."""

    def __init__(self, name: str, settings: BreakerSettings, clock: Clock, gate: Gate | None) -> None:
        self._breaker = Breaker(name, settings, clock)
        self._settings = settings
        self._clock = clock
        self._gate = gate
        self._state = State.CLOSED
        self._closed = False

    def enter(self) -> Generation:
        """Before a call; then exactly one of `learn` and `forget`. Raises `BreakerOpen` when there is to be none."""
        return self._breaker.enter()

    def learn(self, generation: Generation, *, failed: bool) -> None:
        """How the call ended."""
        (self._breaker.failed if failed else self._breaker.succeeded)(generation)
        self._follow()

    def forget(self, generation: Generation) -> None:
        """The call was none."""
        self._breaker.forget(generation)

    def close(self) -> None:
        """Nothing is to be limited any more."""
        self._closed = True

    def _follow(self) -> None:
        """Let in what the breaker's state allows."""
        state = self._breaker.state
        if self._gate is None or self._closed or state is self._state:
            return
        self._state = state
        if state is State.OPEN:
            self._gate.wish(BREAKER, 0)
            self._clock.call_later(self._settings.timeout, self._wake)
        elif state is State.HALF_OPEN:
            self._gate.wish(BREAKER, self._settings.max_requests)
        else:
            self._gate.wish(BREAKER, None)

    def _wake(self) -> None:
        self._follow()
        if self._state is State.OPEN and not self._closed:  # timers and the clock do not agree to the last bit
            self._clock.call_later(WAKE_PAUSE, self._wake)
