"""What every event log checks of what it is asked."""

from __future__ import annotations

from math import inf

from mesh.errors import BrokerError, clip
from mesh.ports import Start

_MAX_DIGITS = 19
"""Those of a number of 63 bits."""


def check_start(start: Start, *, most_digits: int = _MAX_DIGITS) -> Start:
    """Raises `BrokerError` where nothing can begin: a position that is no number of a message, or no moment of time."""
    position, time = start
    if position is not None and not (position.isascii() and position.isdigit() and len(position) <= most_digits):
        raise BrokerError(f"'{clip(position)}' is no position of this log: those are numbers")
    if time is not None and not -inf < time < inf:
        raise BrokerError(f"{time} is no moment to begin at")
    return start
