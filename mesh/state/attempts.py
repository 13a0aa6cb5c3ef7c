"""The policies that stand around the operations of state stores."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from mesh.ports.stores import (
    EtagMismatch,
    Expired,
    InvalidEtag,
    InvalidStoreKey,
    StoreError,
    StoreUnavailable,
    Unsupported,
    ValueTooLarge,
)
from mesh.resiliency.policy import Policy, TimedOut
from mesh.resiliency.retry import Failure
from mesh.resiliency.targets import Direction, Resiliency
from mesh.state.component import StateComponent
from mesh.state.forwarding import OutboxFailed

T = TypeVar("T")


class InDoubt(StoreError):
    """An attempt at a change ended without an answer, and a further one met a conflict, perhaps with what the first
    one did. To take that for a conflict with others, and to do it again, could do it twice."""


_REFUSALS = (EtagMismatch, InDoubt, InvalidEtag, InvalidStoreKey, ValueTooLarge, Unsupported, Expired)
"""What the app asked for cannot be: that says nothing about the store, and will be so again."""


class Attempts:
    """Makes one attempt, or as many as the policy of the component says."""

    def __init__(self, resiliency: Resiliency) -> None:
        self._resiliency = resiliency

    def policy(self, component: StateComponent) -> Policy | None:
        """`None` when an attempt can as well be made without this class."""
        return self._resiliency.for_component(component.name, Direction.OUTBOUND, "state")

    async def read(self, component: StateComponent, attempt: Callable[[], Awaitable[T]]) -> T:
        """Raises as `attempt`, `TimedOut`, `BreakerOpen`."""
        policy = self.policy(component)
        return await attempt() if policy is None else await policy.run(attempt, failed=_judge)

    async def change(self, component: StateComponent, attempt: Callable[[], Awaitable[None]]) -> None:
        """As `read`, and `InDoubt`."""
        policy = self.policy(component)
        if policy is None:
            return await attempt()
        doubt = False

        async def doubted() -> None:
            nonlocal doubt
            try:
                await attempt()
            except EtagMismatch as error:
                if doubt:
                    raise InDoubt(
                        f"an attempt before ended without an answer, so it may have happened: {error}"
                    ) from error
                raise
            except (StoreUnavailable, asyncio.CancelledError):  # a time limit cancels
                doubt = True
                raise

        return await policy.run(doubted, failed=_judge)


def _judge(outcome: object) -> Failure | None:
    if not isinstance(outcome, Exception) or isinstance(outcome, _REFUSALS):
        return None
    return Failure() if isinstance(outcome, StoreError | TimedOut | OutboxFailed) else None
