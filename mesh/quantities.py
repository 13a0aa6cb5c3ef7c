"""The texts in which Dapr's settings give durations, sizes, booleans and lists.

Every parser raises `ValueError` whose text is the rule that was broken; the caller names the setting.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal

from mesh.errors import clip

_UNITS = {"ns": 1, "us": 1_000, "µs": 1_000, "μs": 1_000, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_TERM = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
_GO_DURATION = re.compile(rf"([-+]?)(?:0|((?:{_TERM.pattern})+))")
_INT64 = 1 << 63

_SUFFIXES = {
    **{suffix: Decimal(10) ** power for suffix, power in zip("num", (-9, -6, -3), strict=True)},
    **{suffix: Decimal(1000) ** power for power, suffix in enumerate(("", "k", "M", "G", "T", "P", "E"))},
    **{suffix: Decimal(1024) ** power for power, suffix in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), 1)},
}
_QUANTITY = re.compile(r"([-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))([KMGTPE]i|[numkMGTPE]|[eE][-+]?[0-9]{1,2})?")

_TRUTHY = frozenset({"1", "true", "t", "y", "yes", "on"})
_GO_TRUE = frozenset({"1", "t", "T", "true", "TRUE", "True"})
_GO_FALSE = frozenset({"0", "f", "F", "false", "FALSE", "False"})


def duration(text: str, *, bare_unit: float | None = 1.0) -> float:
    """Seconds, from a Go duration such as `1h2m3.5s` or `250ms`, or from a bare integer.

    `bare_unit` is what an integer without unit counts, in seconds (Dapr: one second in most settings, a
    millisecond in resiliency); `None` where Dapr takes Go durations only.
    """
    if bare_unit is not None and re.fullmatch(r"[-+]?[0-9]{1,18}", text):
        return int(text) * bare_unit
    match = _GO_DURATION.fullmatch(text) if len(text) <= 100 else None
    if match is None:
        raise ValueError(f"must be a duration such as 30s, 1m30s or 250ms (got '{clip(text)}')")
    nanoseconds = sum(int(Decimal(number) * _UNITS[unit]) for number, unit in _TERM.findall(match[2] or ""))
    if nanoseconds >= _INT64:
        raise ValueError(f"must be a duration of less than 292 years (got '{clip(text)}')")
    return (-nanoseconds if match[1] == "-" else nanoseconds) / 1e9


def duration_text(seconds: float) -> str:
    """A Go duration, in the largest unit in which the number is whole."""
    for unit in ("h", "m", "s", "ms", "us"):
        number = seconds * 1e9 / _UNITS[unit]
        if number and number == int(number):
            return f"{int(number)}{unit}"
    return f"{seconds:g}s"


def quantity(text: str) -> int:
    """Bytes, from a Kubernetes quantity such as `4Mi`, `100k`, `1.5Gi` or `1e6`; fractions round away from zero."""
    match = _QUANTITY.fullmatch(text) if len(text) <= 100 else None
    if match is None:
        raise ValueError(f"must be a quantity such as 4Mi, 100k or 4096 (got '{clip(text)}')")
    number, suffix = Decimal(match[1]), match[2] or ""
    exact = number.scaleb(int(suffix[1:])) if re.match(r"[eE][-+0-9]", suffix) else number * _SUFFIXES[suffix]
    whole = int(exact)
    if whole != exact:
        whole += 1 if exact > 0 else -1
    if not -_INT64 <= whole < _INT64:
        raise ValueError(f"must fit in 64 bits (got '{clip(text)}')")
    return whole


def number(text: str) -> float:
    """A decimal number such as `0.5` or `2e3`; neither infinite nor NaN."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"must be a number such as 0.5 (got '{clip(text)}')")
    return value


def boolean(text: str) -> bool:
    """A flag's boolean, as Go's `strconv.ParseBool` reads it."""
    if text in _GO_TRUE:
        return True
    if text in _GO_FALSE:
        return False
    raise ValueError(f"must be true or false (got '{clip(text)}')")


def truthy(text: str) -> bool:
    """A component's boolean (Dapr: `1`, `true`, `t`, `y`, `yes` and `on` in any letter case; all else is false)."""
    return text.strip().lower() in _TRUTHY


def integer(text: str) -> int:
    """A decimal integer of at most 64 bits."""
    if not re.fullmatch(r"[-+]?[0-9]{1,19}", text) or not -_INT64 <= int(text) < _INT64:
        raise ValueError(f"must be an integer (got '{clip(text)}')")
    return int(text)


def comma_list(text: str) -> tuple[str, ...]:
    """The members of a comma list, without surrounding blanks and empty members."""
    return tuple(member for part in text.split(",") if (member := part.strip()))
