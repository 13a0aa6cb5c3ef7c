"""What `meshwire doctor` finds, and on whom."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

import msgspec

from sidecar.registry import Entry
from sidecar.settings import BrokerAddress


class Status(Enum):
    OK = "ok"
    FAILED = "failed"
    SKIPPED = "skipped"


class Finding(msgspec.Struct, frozen=True):
    check: str
    status: Status
    told: str
    advice: str = ""
    """Of a failure: what to do."""


class Patient(NamedTuple):
    """What to examine."""

    broker: BrokerAddress
    namespace: str
    prefix: str
    app_id: str | None
    """Only this app; `None`: all that run here."""
    running: Sequence[Entry]
    """The sidecars of this user in this mesh."""
    requests: BrokerAddress | None = None
    """Where calls between apps go, if not to `broker`."""


def ok(check: str, told: str) -> Finding:
    return Finding(check, Status.OK, told)


def failed(check: str, told: object, advice: str) -> Finding:
    return Finding(check, Status.FAILED, str(told), advice)


def skipped(check: str, told: str) -> Finding:
    return Finding(check, Status.SKIPPED, told)
