"""How many deliveries a subscription may have in hand: one number, whoever has a wish about it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from mesh.ports import Clock, Delivery, Handler, Subscription, Timer

BURST = 0.1
"""Seconds whose events may come at once after a quiet time, at a limited rate; at least one event."""


class Gate:
    """The only one who sets the concurrency of a subscription: to the least that anybody wishes.

    A rate is kept by a token bucket in front of the handler: without a token no more is taken from the broker, rather
    than held here, out of the reach of other replicas. What comes all the same is a debt that is paid by waiting.
    """

    def __init__(self, most: int, clock: Clock, in_hand: Callable[[], int]) -> None:
        """`most` is what the subscription may have without any wish; `in_hand` how many it has at the moment."""
        self._most = most
        self._clock = clock
        self._in_hand = in_hand
        self._wishes: dict[str, int] = {}
        self.known = asyncio.Event()
        """Whether the wishes are those that the subscription may begin with; who has to find them out clears it."""
        self.known.set()
        self._subscription: Subscription | None = None
        self._bucket: _Bucket | None = None
        self._timer: Timer | None = None
        """When there are more tokens."""

    @property
    def allowed(self) -> int:
        """Deliveries in hand at once."""
        return min(self._most, *self._wishes.values()) if self._wishes else self._most

    @property
    def in_hand(self) -> int:
        """Deliveries that are not settled yet."""
        return self._in_hand()

    @property
    def rate(self) -> float | None:
        """Events per second, if there is a limit."""
        return None if self._bucket is None else self._bucket.rate

    def attach(self, subscription: Subscription) -> None:
        """From now on it gets what is wished; until then it should have been made with `allowed`."""
        self._subscription = subscription
        subscription.set_concurrency(self.allowed)
        self._weigh()

    def detach(self) -> None:
        """The subscription is being closed."""
        self._subscription = None
        self._stop_timer()

    def wish(self, who: str, most: int | None) -> None:
        """At most `most` in hand (0: take no more), until `who` wishes otherwise; `None` is no wish."""
        before = self.allowed
        if most is None:
            self._wishes.pop(who, None)
        else:
            self._wishes[who] = most
        allowed = self.allowed
        if allowed != before and self._subscription is not None:
            self._subscription.set_concurrency(allowed)

    def limit(self, rate: float | None) -> None:
        """At most `rate` events per second; `None` is no limit."""
        if rate == self.rate:
            return
        self._bucket = None if rate is None else _Bucket(rate, self._clock.now())
        self._stop_timer()  # at the rate before it may be due in an hour
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
        """Wish for as many as there are tokens, beside those in hand; look again when there will be more."""
        bucket = self._bucket
        if bucket is None:
            self.wish("rate", None)
            return
        now = self._clock.now()
        tokens = bucket.fill(now)
        # Without a token nothing may take the place of what is settled, so then it is 0, not what is in hand.
        self.wish("rate", 0 if tokens < 1 else self._in_hand() + math.floor(tokens))
        if tokens < bucket.burst and self._timer is None and self._subscription is not None:
            self._timer = self._clock.call_later(bucket.time_to_next(), self._weigh_again)

    def _weigh_again(self) -> None:
        self._timer = None
        self._weigh()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


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
        # A timer comes as late as it likes, but never early; rounding must not make it so.
        if abs(self.tokens - round(self.tokens)) < 1e-6:
            self.tokens = float(round(self.tokens))
        return self.tokens

    def time_to_next(self) -> float:
        """Seconds until it is worth looking again: one token more, or half of a burst where that is more."""
        missing = min(self.burst, max(math.floor(self.tokens) + 1.0, self.burst / 2)) - self.tokens
        return max(missing, 1e-3) / self.rate
