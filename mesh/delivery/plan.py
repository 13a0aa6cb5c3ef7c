"""The delivery plan: everything that decides what becomes of a message after it left the broker, as plain data.

One per subscription, made once by `mesh.delivery.compile` from what the user wrote. Nothing else has attempts: the
broker delivers again when the plan says so, and never on its own account.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from mesh.ports import Order, Topic
from mesh.resiliency.breaker import BreakerSettings
from mesh.resiliency.retry import Codes

CONCURRENCY = 64
"""Events of one subscription in the hands of the app at once."""
HANDLER_TIMEOUT = 600.0
"""Seconds that the app may take for one event; the broker is kept waiting meanwhile."""
RETRY_AFTER_MAX = 300.0


class BackOff(msgspec.Struct, frozen=True, kw_only=True):
    """The pauses between attempts, in seconds."""

    first: float = 0.5
    factor: float = 2.0
    """What each pause is longer by than the one before; 1 is constant."""
    longest: float = 60.0
    """Where pauses stop growing, before they are spread."""
    jitter: float = 0.2
    """Each pause is longer or shorter by up to this part of it, so that retries do not come in waves."""

    def nominal(self, attempt: int) -> float:
        """The pause after the failure of the `attempt`th delivery, counted from 1, before it is spread."""
        if self.factor == 1 or not self.first:
            return min(self.first, self.longest)
        try:
            return min(self.longest, self.first * self.factor ** (attempt - 1))
        except OverflowError:
            return self.longest

    def pause(self, attempt: int, spread: float) -> float:
        """`spread` is a number from 0 up to 1: where between the shortest and the longest pause."""
        return self._spread(self.nominal(attempt), spread)

    def total(self, pauses: int, spread: float) -> float:
        """The first `pauses` pauses together. Counts only as far as they grow: there may be a million."""
        total = 0.0
        for attempt in range(1, pauses + 1):
            pause = self.nominal(attempt)
            if self.nominal(attempt + 1) == pause:
                total += pause * (pauses + 1 - attempt)
                break
            total += pause
        return self._spread(total, spread)

    def _spread(self, seconds: float, spread: float) -> float:
        return seconds * (1 - self.jitter + 2 * self.jitter * spread)


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How one subscription treats its messages. Times in seconds."""

    attempts: int | None = None
    """How often a message is delivered at most, the first time included. `None`: until it succeeds."""
    back_off: BackOff = BackOff()
    retryable: Codes = ()
    """The HTTP statuses that are worth another attempt; empty is all. A failure without one always is."""
    timeout: float = HANDLER_TIMEOUT
    """For one attempt."""
    retry_after_max: float = RETRY_AFTER_MAX
    """The longest `Retry-After` that is obeyed; 0 ignores them. The larger of it and the back-off is the pause."""
    breaker: BreakerSettings | None = None
    concurrency: int = CONCURRENCY
    order: Order = Order.NONE
    dead_letter: Topic | None = None
    """Where letters go beside the store; as it is on the broker."""
    broadcast: bool = False
    """Every replica gets every event, from the moment it subscribes until it ends."""

    def pause(self, attempt: int, retry_after: float | None = None) -> float:
        """Seconds to wait after the failure of the `attempt`th delivery, counted from 1."""
        pause = self.back_off.pause(attempt, random.random())  # noqa: S311 - not a secret
        return pause if retry_after is None else max(pause, min(retry_after, self.retry_after_max))

    def worth_another(self, attempt: int, status: int | None) -> bool:
        """Whether the failure of the `attempt`th delivery, with this HTTP status if any, is to be followed by one
        more."""
        if self.attempts is not None and attempt >= self.attempts:
            return False
        return status is None or not self.retryable or any(status in codes for codes in self.retryable)


class Scheduled(NamedTuple):
    """One attempt of a plan, in seconds after the first one, if the app answers at once."""

    attempt: int
    earliest: float
    latest: float
    """Beyond this only by the time that handlers take, `Retry-After`, and pauses of the whole subscription."""


def schedule(plan: Plan) -> Iterator[Scheduled]:
    """Every attempt at an event that always fails. Has no end where the plan has none."""
    earliest = latest = 0.0
    attempt = 1
    while True:
        yield Scheduled(attempt, earliest, latest)
        if attempt == plan.attempts:
            return
        earliest += plan.back_off.pause(attempt, 0.0)
        latest += plan.back_off.pause(attempt, 1.0)
        attempt += 1


def scheduled(plan: Plan, attempt: int) -> Scheduled:
    """One attempt of `schedule`."""
    earliest, latest = (plan.back_off.total(attempt - 1, spread) for spread in (0.0, 1.0))
    return Scheduled(attempt, earliest, latest)
