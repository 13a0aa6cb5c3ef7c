"""Who wants to know what becomes of each message."""

from __future__ import annotations

from enum import Enum
from typing import Protocol

from mesh.delivery.target import Judgement
from mesh.ports import Record
from mesh.routing import Skipped


class Outcome(Enum):
    """How a delivery was settled."""

    ACKED = "acked"
    """The app has handled it, or it was not for the app."""
    DROPPED = "dropped"
    """The app did not want it, and there is no dead letter topic."""
    EXPIRED = "expired"
    """It was too late, and there is no dead letter topic."""
    DEAD = "dead"
    """It is a dead letter."""
    RELEASED = "released"
    """It went back to the group, without an attempt that counts."""


class DeliveryWatch(Protocol):
    """Told by the `Deliverer` of one group, in the event loop. Must neither block nor raise."""

    def skipped(self, record: Record, why: Skipped) -> None:
        """There was no call to make. `settled` follows."""
        ...

    def started(self, record: Record, attempt: int, now: float) -> None:
        """The app is called. `attempted` follows, or `held`, or `settled` where the call tells nothing."""
        ...

    def held(self, record: Record, why: str, now: float) -> None:
        """The app could not be reached, which is no attempt. It is called again soon, or `settled` follows."""
        ...

    def attempted(self, record: Record, attempt: int, found: Judgement, seconds: float, next_in: float | None) -> None:
        """The app answered, or did not, after `seconds`; or the message cannot be delivered. The next attempt comes in
        `next_in` seconds; `None`: there is none, and `settled` follows."""
        ...

    def settled(self, record: Record, outcome: Outcome) -> None: ...
