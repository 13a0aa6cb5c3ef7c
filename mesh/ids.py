"""Identifiers and the time of day, cheap enough for every event.

Random bytes are drawn from the operating system in blocks; the formatted time is kept for its second.
"""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime

_BLOCK = 4096

_pool = b""
_used = 0


def random_id() -> str:
    """128 random bits as 32 hexadecimal digits."""
    global _pool, _used
    if _used >= len(_pool):
        _pool = os.urandom(_BLOCK)
        _used = 0
    start = _used
    _used = start + 16
    return _pool[start:_used].hex()


def uuid4() -> str:
    """A random UUID (RFC 9562, version 4) in its usual form."""
    digits = random_id()
    variant = "89ab"[int(digits[16], 16) & 3]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"


def _forget() -> None:
    """A forked child must not repeat its parent's identifiers."""
    global _pool, _used
    _pool, _used = b"", 0


os.register_at_fork(after_in_child=_forget)

_second = -1
_local_time = ""


def local_time() -> str:
    """Now, as RFC 3339 in whole seconds with the offset of this machine's zone (`Z` for UTC), as Dapr writes it."""
    global _second, _local_time
    now = int(time.time())
    if now != _second:
        _local_time = datetime.fromtimestamp(now, UTC).astimezone().isoformat(timespec="seconds").replace("+00:00", "Z")
        _second = now
    return _local_time


def utc_time(moment: float) -> str:
    """`moment` (seconds since the epoch) as RFC 3339 in UTC and whole seconds.

    Raises `OverflowError` or `ValueError` beyond the year 9999.
    """
    return datetime.fromtimestamp(int(moment), UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
