"""A circuit breaker: it stops calling what keeps failing, and probes whether it works again.

Closed, it counts; when a failure makes the trip condition true it opens. Open, it refuses for `timeout` seconds.
Half-open, it lets `max_requests` calls through: if so many succeed in a row it closes, one failure opens it again.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from enum import Enum

from mesh.errors import MeshError, clip
from mesh.ports import Clock
from mesh.resiliency.trip import Counts, Trip

logger = logging.getLogger("meshwire.resiliency")


class BreakerOpen(MeshError):
    """The call was not made."""

    def __init__(self, text: str = "circuit breaker is open") -> None:
        super().__init__(text)


class TooManyProbes(BreakerOpen):
    """The breaker is half-open, and as many calls as it lets through are under way."""

    def __init__(self) -> None:
        super().__init__("too many requests")


class State(Enum):
    CLOSED = "closed"
    HALF_OPEN = "half-open"
    OPEN = "open"


def _default_trip(counts: Counts) -> bool:
    return counts.consecutive_failures > 5


@dataclass(frozen=True, kw_only=True, slots=True)
class BreakerSettings:
    """`policies.circuitBreakers.<name>`. Times in seconds."""

    max_requests: int = 1
    interval: float = 0.0
    """How long a closed breaker counts before it starts again from zero; 0 is for ever."""
    timeout: float = 60.0
    trip: Trip = _default_trip


Generation = int
"""Which period of the breaker a call belongs to: what ends in a later one says nothing any more."""


class Breaker:
    """The state of one target. `enter` before a call, then exactly one of `succeeded`, `failed`, `forget`."""

    __slots__ = ("_clock", "_counts", "_generation", "_name", "_settings", "_since", "_state")

    def __init__(self, name: str, settings: BreakerSettings, clock: Clock) -> None:
        self._name = name
        self._settings = settings
        self._clock = clock
        self._generation = 0
        self._state = State.CLOSED
        self._counts = Counts()
        self._since = clock.now()

    @property
    def state(self) -> State:
        self._pass_time()
        return self._state

    def enter(self) -> Generation:
        """Raises `BreakerOpen`, or `TooManyProbes`, when the call may not be made."""
        state = self.state
        if state is State.OPEN:
            raise BreakerOpen
        if state is State.HALF_OPEN and self._counts.requests >= self._settings.max_requests:
            raise TooManyProbes
        self._counts.requests += 1
        return self._generation

    def succeeded(self, generation: Generation) -> None:
        state = self.state
        if generation != self._generation:
            return
        counts = self._counts
        counts.total_successes += 1
        counts.consecutive_successes += 1
        counts.consecutive_failures = 0
        if state is State.HALF_OPEN and counts.consecutive_successes >= self._settings.max_requests:
            self._change(State.CLOSED)

    def failed(self, generation: Generation) -> None:
        state = self.state
        if generation != self._generation:
            return
        counts = self._counts
        counts.total_failures += 1
        counts.consecutive_failures += 1
        counts.consecutive_successes = 0
        if state is State.HALF_OPEN or self._settings.trip(counts):
            self._change(State.OPEN)

    def forget(self, generation: Generation) -> None:
        """The call ended without telling anything, such as when it was cancelled. Its place as a probe is free."""
        self._pass_time()
        if generation == self._generation:
            self._counts.requests -= 1

    def _pass_time(self) -> None:
        if self._state is State.CLOSED:
            if self._settings.interval and self._older_than(self._settings.interval):
                self._restart()
        elif self._state is State.OPEN and self._older_than(self._settings.timeout):
            self._change(State.HALF_OPEN)

    def _older_than(self, seconds: float) -> bool:
        # A clock that was set back must not keep the breaker open.
        return not self._since <= self._clock.now() < self._since + seconds

    def _change(self, state: State) -> None:
        logger.info("Circuit breaker %s changed state from %s to %s", clip(self._name), self._state.value, state.value)
        self._state = state
        self._restart()

    def _restart(self) -> None:
        self._generation += 1
        self._counts = Counts()
        self._since = self._clock.now()
