"""A limit of events per second for one subscription of one replica."""

from __future__ import annotations

import math
from collections.abc import Callable

from mesh.delivery.flow import Flow
from mesh.ports import Clock, Delivery, Handler

BURST = 0.1
"""Seconds whose events may come at once after a quiet time; at least one event."""
WHO = "rate"
"""Whose limit of the flow it is."""


class Pace:
    """A token bucket in front of the handler: without a token no more is taken from the broker, rather than held here,
    out of the reach of other replicas. What comes all the same is a debt that is paid by waiting."""

    def __init__(self, flow: Flow, clock: Clock, in_hand: Callable[[], int]) -> None:
        """`flow` is that of the subscription; `in_hand` tells how many deliveries it has at the moment."""
        self._flow = flow
        self._clock = clock
        self._in_hand = in_hand
        self._bucket: _Bucket | None = None
        self._waiting = False

    @property
    def rate(self) -> float | None:
        """Events per second, if there is a limit."""
        return None if self._bucket is None else self._bucket.rate

    def limit(self, rate: float | None) -> None:
        """At most `rate` events per second from now on; `None` is no limit."""
        if rate != self.rate:
            self._bucket = None if rate is None else _Bucket(rate, self._clock.now())
            self._weigh()

    def around(self, handler: Handler) -> Handler:
        """What to give to the broker in place of `handler`."""

        def handle(delivery: Delivery) -> None:
            handler(delivery)
            if self._bucket is not None:
                self._bucket.tokens -= 1
                self._weigh()

        return handle

    def _weigh(self) -> None:
        """Allow as many as there are tokens, beside those in hand; look again when there will be more."""
        bucket = self._bucket
        if bucket is None:
            self._flow.limit(WHO, None)
            return
        tokens = bucket.fill(self._clock.now())
        # Without a token nothing may take the place of what is settled, so then it is 0, not what is in hand.
        self._flow.limit(WHO, 0 if tokens < 1 else self._in_hand() + math.floor(tokens))
        if tokens < bucket.burst and not self._waiting:
            self._waiting = True
            self._clock.call_later(bucket.time_to_next(), self._weigh_again)

    def _weigh_again(self) -> None:
        self._waiting = False
        self._weigh()


class _Bucket:
    __slots__ = ("_filled", "burst", "rate", "tokens")

    def __init__(self, rate: float, now: float) -> None:
        self.rate = rate
        self.burst = max(1.0, BURST * rate)
        self.tokens = 1.0
        self._filled = now

    def fill(self, now: float) -> float:
        """The tokens that there are now."""
        self.tokens = min(self.burst, self.tokens + max(0.0, now - self._filled) * self.rate)
        self._filled = now
        if abs(self.tokens - round(self.tokens)) < 1e-6:  # so that rounding keeps no timer waiting for a last bit
            self.tokens = float(round(self.tokens))
        return self.tokens

    def time_to_next(self) -> float:
        """Seconds until it is worth looking again: one token more, or half of a burst where that is more."""
        missing = min(self.burst, max(math.floor(self.tokens) + 1.0, self.burst / 2)) - self.tokens
        return max(missing, 1e-3) / self.rate
