"""One group from which clients of this sidecar pull."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from mesh import addressing, inbound
from mesh.control.gate import Gate
from mesh.delivery.target import EXCERPT, Judgement, Prepared, Verdict
from mesh.ports import AppResponse, Clock, Delivery, HeaderLines, Timer
from mesh.pull.locks import REJECTED, Lock, Locks
from mesh.routing import Skipped

PROMPT = 0.3
"""Seconds that the broker gets for its first answer, also when the client would not wait."""
LINGER = 0.02
"""Seconds from the first event to the answer, in which more may come."""
IDLE_LIMIT = 20.0
"""Seconds without a client after which a group is left, and its keys are for other sidecars; it keeps its place."""
DEMAND = "demand"
"""Whose wish of the gate it is: what clients have in hand and ask for, and no event more."""

_SUCCESS = Judgement(Verdict.SUCCESS)


class _Asking:
    """A client that waits."""

    __slots__ = ("done", "locks", "open")

    def __init__(self, wanted: int) -> None:
        self.open = wanted
        self.locks: list[Lock] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def finish(self) -> None:
        if not self.done.done():
            self.done.set_result(None)


class Clients:
    """The `Target` of a group that is pulled from: whoever asks first gets the event, and answers for it."""

    def __init__(self, app_id: str, locks: Locks, clock: Clock, idle: Callable[[], None]) -> None:
        """`idle` is called when for `IDLE_LIMIT` nobody has asked or had anything in hand."""
        self._only = addressing.token(app_id)
        self._locks = locks
        self._clock = clock
        self._idle = idle
        self._asking: deque[_Asking] = deque()
        self._in_hand = 0
        self._leaving: Timer | None = None
        self._closed = False
        self.gate: Gate | None = None

    @property
    def in_hand(self) -> int:
        return self._in_hand

    async def pull(self, wanted: int, wait: float, lock_seconds: float) -> Sequence[Lock]:
        """Up to `wanted` events: those that come until there are so many, `LINGER` after the first one, or none within
        `wait` seconds. Cancelled, it gives back what it had."""
        asking = _Asking(wanted)
        self._asking.append(asking)
        self._wish()
        if self._closed:
            asking.finish()
        timer = self._clock.call_later(max(wait, PROMPT), asking.finish)
        try:
            await asking.done
        except asyncio.CancelledError:
            self._leave(asking)
            for lock in asking.locks:
                lock.give_back()
            raise
        finally:
            timer.cancel()  # it would keep the events until the longest wait is over
        self._leave(asking)
        if self._closed:
            for lock in asking.locks:
                lock.give_back()
            return ()
        for lock in asking.locks:
            self._locks.hold(lock, lock_seconds)
        return asking.locks

    def turn_away(self) -> None:
        """All who wait go away empty, also those who come later."""
        self._closed = True
        if self._leaving is not None:
            self._leaving.cancel()
        for asking in self._asking:
            asking.finish()

    # Target

    def prepare(self, delivery: Delivery, now: float) -> Prepared | Skipped:
        headers = delivery.headers
        if headers and headers.get(addressing.ONLY_FOR, self._only) != self._only:
            return Skipped.OTHER
        event = inbound.read(delivery, None, headers)
        if event.expires is not None and event.expires <= now:
            return Skipped.EXPIRED
        return Prepared(_Offer(self, delivery), "", event.body, event.hop)

    def judge(self, response: AppResponse, now: float) -> Judgement:
        if response.status != REJECTED:
            return _SUCCESS
        return Judgement(Verdict.RETRY, "the client rejected it", excerpt=response.body[:EXCERPT], final=True)

    def hand_out(self, delivery: Delivery, body: bytes) -> Lock:
        """To the client that waits for longest. Without one, it goes back."""
        lock = Lock(delivery, body, self._ended)
        self._in_hand += 1
        asking = next((one for one in self._asking if one.open and not one.done.done()), None)
        if asking is None:
            lock.give_back()
            return lock
        asking.locks.append(lock)
        asking.open -= 1
        if not asking.open:
            asking.finish()
        elif len(asking.locks) == 1:
            self._clock.call_later(LINGER, asking.finish)
        return lock

    def _leave(self, asking: _Asking) -> None:
        self._asking.remove(asking)
        self._wish()

    def _ended(self) -> None:
        self._in_hand -= 1
        self._wish()

    def _wish(self) -> None:
        if self.gate is not None:
            self.gate.wish(DEMAND, self._in_hand + sum(asking.open for asking in self._asking))
        if self._leaving is not None:
            self._leaving.cancel()
            self._leaving = None
        if not (self._asking or self._in_hand or self._closed):
            self._leaving = self._clock.call_later(IDLE_LIMIT, self._idle)


class _Offer:
    """An `AppRoute` for one delivery: its call is answered by a client."""

    __slots__ = ("_clients", "_delivery")

    def __init__(self, clients: Clients, delivery: Delivery) -> None:
        self._clients = clients
        self._delivery = delivery

    def send(
        self, body: bytes = b"", extra_headers: HeaderLines | None = None, *, timeout: float
    ) -> asyncio.Future[AppResponse]:
        """Without the time limit of the plan: the lock has its own."""
        return self._clients.hand_out(self._delivery, body).answer
