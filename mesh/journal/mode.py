"""How much a sidecar notes down of its events."""

from __future__ import annotations

from enum import Enum


class JournalMode(Enum):
    """The values of `MESHWIRE_JOURNAL`."""

    OFF = "off"
    SAMPLED = "sampled"
    FULL = "full"
