"""A policy at work: `retry(breaker(timeout(call)))`, so each attempt has the timeout and counts in the breaker."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeVar, cast

from mesh.errors import MeshError, clip
from mesh.ports import Clock
from mesh.resiliency.breaker import Breaker, BreakerOpen
from mesh.resiliency.retry import Failure, Retry

logger = logging.getLogger("meshwire.resiliency")

T = TypeVar("T")

Judge = Callable[[T | Exception], Failure | None]
"""Tells whether what an attempt returned or raised is a failure of the target.

`None` for a result is a success. `None` for an error says nothing about the target (the caller's mistake, say): it is
raised as it is, not retried and not counted. A timeout is always a failure; the judge may only make it `final`.
"""

LOGGED_PER_SECOND = 10
"""Lines about retries; further ones are only counted."""


class TimedOut(MeshError):
    """An attempt took longer than the policy allows, and was cancelled. It may have done its work."""

    def __init__(self) -> None:
        super().__init__("context deadline exceeded")


class RetryLog:
    """Says what is tried again, in Dapr's words, at most `LOGGED_PER_SECOND` times a second."""

    __slots__ = ("_clock", "_lines", "_since")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._since = clock.now()
        self._lines = 0

    def retrying(self, name: str, pause: float, why: object) -> None:
        if self._has_room():
            logger.info("Error processing operation %s. Retrying in %.3gs…", clip(name), pause)
            logger.debug("Error for operation %s was: %s", clip(name), why)

    def recovered(self, name: str, attempts: int) -> None:
        if self._has_room():
            logger.info("Recovered processing operation %s after %d attempts.", clip(name), attempts)

    def _has_room(self) -> bool:
        now = self._clock.now()
        if not self._since <= now < self._since + 1:
            if self._lines > LOGGED_PER_SECOND:
                logger.info("%d more lines about retries were left out", self._lines - LOGGED_PER_SECOND)
            self._since, self._lines = now, 0
        self._lines += 1
        return self._lines <= LOGGED_PER_SECOND


class _Outcome(NamedTuple):
    result: object
    error: Exception | None
    failure: Failure | None


class Policy:
    """What is done around the calls to one target. Holds nothing between calls but its breaker."""

    __slots__ = ("_clock", "_log", "_random", "breaker", "name", "retry", "timeout")

    def __init__(
        self,
        name: str,
        clock: Clock,
        *,
        timeout: float | None = None,
        retry: Retry | None = None,
        breaker: Breaker | None = None,
        random: Callable[[], float] = random.random,
        log: RetryLog | None = None,
    ) -> None:
        """`name` is for the log. `timeout` in seconds. `random` gives numbers from 0 up to 1 for the jitter."""
        self.name = name
        self.timeout = timeout
        self.retry = retry
        self.breaker = breaker
        self._clock = clock
        self._random = random
        self._log = log or RetryLog(clock)

    async def run(
        self,
        attempt: Callable[[], Awaitable[T]],
        *,
        failed: Judge[T],
        discard: Callable[[T], Awaitable[None]] | None = None,
    ) -> T:
        """Make the call, and make it again as long as the policy says.

        Returns the result of the last attempt, a failed one too (Dapr: the last real response is handed on); raises
        what the last attempt raised, `TimedOut`, or `BreakerOpen` as soon as the breaker refuses. A failed result
        that is tried again is given to `discard` first. Cancelling ends the attempt or the pause under way.

        The time limit ends when `attempt` returns: a body that streams on after that is not cut off by it.
        """
        started = self._clock.now()
        pauses = self.retry and self.retry.pauses(lambda: self._clock.now() - started, self._random)
        attempts = 0
        while True:
            attempts += 1
            result, error, failure = await self._attempt(attempt, failed)
            pause = None
            if failure is not None and pauses and self.retry and self.retry.applies(failure):
                pause = next(pauses, None)
            if pause is None:
                break
            self._log.retrying(self.name, pause, error or failure)
            if error is None and discard is not None:
                await discard(cast(T, result))
            await self._clock.sleep(pause)
        if error is not None:
            raise error
        if failure is None and attempts > 1:
            self._log.recovered(self.name, attempts)
        return cast(T, result)

    async def _attempt(self, attempt: Callable[[], Awaitable[T]], failed: Judge[T]) -> _Outcome:
        """One attempt, counted in the breaker. Raises what refuses or ends the whole call."""
        breaker = self.breaker
        generation = breaker.enter() if breaker else 0
        counted = False
        try:
            outcome = await self._timed(attempt, failed)
            if breaker and (outcome.failure or not outcome.error):
                counted = True
                (breaker.failed if outcome.failure else breaker.succeeded)(generation)
            return outcome
        finally:
            if breaker and not counted:
                breaker.forget(generation)

    async def _timed(self, attempt: Callable[[], Awaitable[T]], failed: Judge[T]) -> _Outcome:
        try:
            result = await (_within(self.timeout, attempt, self._clock) if self.timeout else attempt())
        except TimedOut as error:
            return _Outcome(None, error, failed(error) or Failure())
        except BreakerOpen:  # of a policy inside this one: it has been decided there
            raise
        except Exception as error:
            return _Outcome(None, error, failed(error))
        return _Outcome(result, None, failed(result))


async def _within(seconds: float, attempt: Callable[[], Awaitable[T]], clock: Clock) -> T:
    """`asyncio.timeout`, on our clock."""
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - a coroutine that awaits runs in a task
    cancelled_before = task.cancelling()
    expired = False

    def expire() -> None:
        nonlocal expired
        expired = True
        task.cancel()

    timer = clock.call_later(seconds, expire)
    try:
        result = await attempt()
    except (asyncio.CancelledError, Exception) as error:
        # The cancellation is taken back, and is ours only if nobody else asked for one meanwhile.
        if expired and task.uncancel() <= cancelled_before:
            raise TimedOut from error
        raise
    finally:
        timer.cancel()
    if expired:  # and the attempt made it all the same
        task.uncancel()
    return result
