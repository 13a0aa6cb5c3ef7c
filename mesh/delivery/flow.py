"""How many deliveries of a subscription may be in hand, when several have a say in it."""

from __future__ import annotations

from mesh.ports import Subscription


class Flow:
    """The smallest of all limits is what the subscription gets: the plan's, the circuit breaker's, the operator's."""

    def __init__(self, concurrency: int) -> None:
        self._concurrency = concurrency
        self._limits: dict[str, int] = {}
        self._subscription: Subscription | None = None

    @property
    def concurrency(self) -> int:
        return min((self._concurrency, *self._limits.values()))

    @property
    def limits(self) -> dict[str, int]:
        """Those in force, by who set them."""
        return dict(self._limits)

    def attach(self, subscription: Subscription) -> None:
        """From now on limits are applied to it; those that were set before are too."""
        self._subscription = subscription
        if self._limits:
            subscription.set_concurrency(self.concurrency)

    def limit(self, who: str, concurrency: int | None) -> None:
        """`who` allows at most this many from now on; 0 takes no more, `None` lifts the limit."""
        before = self.concurrency
        if concurrency is None:
            self._limits.pop(who, None)
        else:
            self._limits[who] = concurrency
        if self._subscription is not None and self.concurrency != before:
            self._subscription.set_concurrency(self.concurrency)
