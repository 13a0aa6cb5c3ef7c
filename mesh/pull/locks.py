"""Locks: an event in the hands of a client that pulled it, until it says what became of it, or its time is over."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from enum import Enum

from mesh import ids
from mesh.errors import AppError, MeshError, clip
from mesh.ports import AppResponse, Clock, Delivery, Timer

REMEMBERED = 10_000
"""Tokens that are no longer good and still recognized, so that a late client learns why."""
REJECTED = 410
"""The status of an answer that stands for a rejection: it is final."""


class UnknownToken(MeshError):
    """No lock has this token."""


class ForeignToken(MeshError):
    """The lock is held by another sidecar, or was held by one that is gone."""


class EndedLock(MeshError):
    """The lock was there, and is no longer."""


class End(Enum):
    """How a lock ended."""

    EXPIRED = "has expired: the event was counted as a failed attempt"
    ACKED = "was acknowledged already"
    RELEASED = "was released already"
    REJECTED = "was rejected already"


class Lock:
    """One event that was handed out, or is about to be."""

    __slots__ = ("answer", "body", "deadline", "delivery", "ends", "resting", "timer", "token")

    def __init__(self, delivery: Delivery, body: bytes, ends: Callable[[], None]) -> None:
        """`ends` is called once when it is in nobody's hands any more."""
        self.delivery = delivery
        self.body = body
        self.ends = ends
        self.token = ""
        self.deadline = 0.0
        """For the client, in seconds since the epoch; what counts is the timer."""
        self.timer: Timer | None = None
        self.resting = False
        """Released with a delay: no client has it, and none gets it yet."""
        self.answer: asyncio.Future[AppResponse] = asyncio.get_running_loop().create_future()
        """What the deliverer takes for the answer of an app."""

    def give_back(self) -> None:
        """To the group, without an attempt that counts."""
        if not self.answer.done():
            self.answer.cancel()
            self.ends()


class Locks:
    """All locks of this sidecar. A token is its name and 128 random bits."""

    def __init__(self, sidecar: str, clock: Clock) -> None:
        self._sidecar = sidecar
        self._clock = clock
        self._held: dict[str, Lock] = {}
        self._ended: OrderedDict[str, End] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, lock: Lock, seconds: float) -> None:
        """The client has it from now on, for so long."""
        lock.token = f"{self._sidecar}.{ids.random_id()}"
        self._held[lock.token] = lock
        self._ends_in(seconds, lock)

    def find(self, token: str) -> Lock:
        """Raises `UnknownToken`, `ForeignToken`, `EndedLock`."""
        lock = self._held.get(token)
        if lock is not None and not lock.resting:
            return lock
        ended = End.RELEASED if lock is not None else self._ended.get(token)
        if ended is not None:
            raise EndedLock(f"the lock {ended.value}")
        sidecar, dot, _ = token.rpartition(".")
        if dot and sidecar != self._sidecar:
            raise ForeignToken(
                f"the lock was given out by sidecar '{clip(sidecar)}', this is {self._sidecar}: ask that one; if it is "
                "gone, so is the lock"
            )
        raise UnknownToken(f"no lock has the token '{clip(token)}', or it ended long ago")

    def ack(self, token: str) -> None:
        """The event is done with. Raises as `find`, as all of these."""
        self._answer(self.find(token), End.ACKED, AppResponse(200, (), b""))

    def reject(self, token: str, reason: str) -> None:
        """It can never be handled: it becomes a dead letter."""
        self._answer(self.find(token), End.REJECTED, AppResponse(REJECTED, (), reason.encode()))

    def release(self, token: str, delay: float) -> None:
        """Somebody else may have it, in `delay` seconds. Until then it stays here: the broker would count it as an
        attempt."""
        lock = self.find(token)
        if delay > 0:
            lock.resting = True
            self._ends_in(delay, lock)
        else:
            self._forget(lock, End.RELEASED)
            lock.give_back()

    def renew(self, token: str, seconds: float) -> float:
        """The lock holds for `seconds` from now on. Returns when it ends, in seconds since the epoch."""
        lock = self.find(token)
        self._ends_in(seconds, lock)
        return lock.deadline

    def give_back_all(self) -> None:
        """The sidecar ends: others may have all of them at once."""
        for lock in list(self._held.values()):
            self._forget(lock, End.RELEASED)
            lock.give_back()

    def _ends_in(self, seconds: float, lock: Lock) -> None:
        """One timer for each lock, since it keeps the event; and only the timer decides: clocks are set back."""
        if lock.timer is not None:
            lock.timer.cancel()
        lock.deadline = self._clock.now() + seconds
        lock.timer = self._clock.call_later(seconds, lambda: self._over(lock))

    def _over(self, lock: Lock) -> None:
        if lock.resting:
            self._forget(lock, End.RELEASED)
            lock.give_back()
            return
        self._forget(lock, End.EXPIRED)
        if not lock.answer.done():
            lock.answer.set_exception(AppError("the lock expired before the client said what became of the event"))
            lock.ends()

    def _answer(self, lock: Lock, end: End, answer: AppResponse) -> None:
        self._forget(lock, end)
        if not lock.answer.done():
            lock.answer.set_result(answer)
            lock.ends()

    def _forget(self, lock: Lock, end: End) -> None:
        if lock.timer is not None:
            lock.timer.cancel()
        self._held.pop(lock.token, None)
        self._ended[lock.token] = end
        if len(self._ended) > REMEMBERED:
            self._ended.popitem(last=False)
