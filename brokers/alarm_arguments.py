"""What every `Alarms` checks before it asks its broker."""

from __future__ import annotations

import math
import re

from brokers.table_arguments import check_key, check_prefix
from mesh.errors import clip
from mesh.ports.alarms import MAX_ALARM_KEY_BYTES, Alarm
from mesh.ports.tables import InvalidKey, Key

_NOTE = re.compile(r"[a-z0-9-]+")


def check_alarm_key(key: Key) -> None:
    """Raises `InvalidKey` for what cannot name an alarm."""
    check_key(key)
    if len(key) < 2:
        raise InvalidKey(f"the key of an alarm has a kind and a name ('{clip(key[0])}' has one part)")
    size = sum(len(part.encode()) for part in key)
    if size > MAX_ALARM_KEY_BYTES:
        raise InvalidKey(f"the key '{clip('/'.join(key))}' has {size} bytes, of at most {MAX_ALARM_KEY_BYTES}")


def check_alarm(alarm: Alarm) -> None:
    """Raises `InvalidKey`, and `ValueError` for an alarm that breaks a rule of `Alarm`."""
    check_alarm_key(alarm.key)
    if not math.isfinite(alarm.due):
        raise ValueError(f"an alarm cannot be due at {alarm.due}")
    for name, value in alarm.headers.items():
        if not _NOTE.fullmatch(name):
            raise ValueError(f"the header '{clip(name)}' is not of letters, digits and '-' in lower case")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"the header '{name}' is no valid Unicode text") from None


def check_scan(prefix: Key, limit: int) -> None:
    """Raises `InvalidKey` for what no key of an alarm begins with, and `ValueError` for a page of nothing."""
    check_alarm_key((*prefix, "any"))
    check_prefix(prefix)
    if limit < 1:
        raise ValueError(f"a page of {limit} alarms")


def check_then(firing: Alarm, then: Alarm | None) -> None:
    """Raises `ValueError` for a next alarm that is not of the series of `firing`."""
    if then is not None:
        check_alarm(then)
        if then.key != firing.key:
            raise ValueError(f"the next alarm of {'/'.join(firing.key)} has the key {'/'.join(then.key)}")
