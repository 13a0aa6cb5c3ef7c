"""When to try again, and after what pause."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from mesh.errors import clip

INITIAL_INTERVAL = 0.5
MULTIPLIER = 1.5
JITTER = 0.5
"""Exponential pauses are spread evenly over ±50 %."""
MAX_ELAPSED = 900.0
HTTP_STATUSES = range(100, 600)
GRPC_CODES = range(17)


class Failure(NamedTuple):
    """A call that failed, as far as a policy is concerned."""

    http_status: int | None = None
    grpc_code: int | None = None
    final: bool = False
    """Whether it must not be tried again, whatever the policy says."""


Codes = tuple[range, ...]


def parse_codes(text: str, valid: range) -> Codes:
    """`429,500-599` as ranges. Raises `ValueError` whose text is the rule that was broken."""
    codes = []
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]{1,3})(?:-([0-9]{1,3}))?", part)
        if match is None:
            raise ValueError(f"must look like 429,500-599, without blanks (got '{clip(part)}' in '{clip(text)}')")
        first, last = int(match[1]), int(match[2] or match[1])
        if first not in valid or last not in valid:
            raise ValueError(f"codes go from {valid[0]} to {valid[-1]} (got '{part}')")
        if last < first:
            raise ValueError(f"a range goes from the lower to the higher code (got '{part}')")
        codes.append(range(first, last + 1))
    return tuple(codes)


@dataclass(frozen=True, kw_only=True, slots=True)
class Retry:
    """`policies.retries.<name>`. Times in seconds."""

    exponential: bool = False
    duration: float = 5.0
    """Every pause, unless exponential."""
    initial_interval: float = INITIAL_INTERVAL
    max_interval: float = 60.0
    """Exponential: pauses stop growing here, before they are spread."""
    max_elapsed: float = MAX_ELAPSED
    """Exponential: no retry begins later than this after the first attempt began."""
    max_retries: int = -1
    """Attempts after the first; -1 has no limit."""
    http_statuses: Codes = ()
    grpc_codes: Codes = ()
    """The codes that are worth another attempt; empty is all."""

    def applies(self, failure: Failure) -> bool:
        """Whether `failure` is worth another attempt; one that carries no code always is (Dapr)."""
        return not failure.final and all(
            code is None or not codes or any(code in one for one in codes)
            for code, codes in ((failure.http_status, self.http_statuses), (failure.grpc_code, self.grpc_codes))
        )

    def pauses(self, elapsed: Callable[[], float], random: Callable[[], float]) -> Iterator[float]:
        """The pause before each retry; ends when there is to be no other.

        `elapsed` gives the seconds since the first attempt began, `random` a number from 0 up to 1.
        """
        interval = self.initial_interval
        for _ in itertools.count() if self.max_retries < 0 else range(self.max_retries):
            if not self.exponential:
                yield self.duration
                continue
            pause = interval * (1 - JITTER + 2 * JITTER * random())
            interval = min(interval * MULTIPLIER, self.max_interval)
            if elapsed() + pause > self.max_elapsed:
                return
            yield pause
