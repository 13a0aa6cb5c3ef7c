"""The functions of CEL's standard definitions that a rule can call."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime, timedelta, timezone, tzinfo
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from mesh import quantities
from mesh.codec.attributes import timestamp as instant
from mesh.errors import clip
from mesh.filters.cel.values import EPOCH, INT_MIN, RuleError, int64, name_of, no_overload, text_of_double

Run = Callable[..., Any]


class Function(NamedTuple):
    """`run` gets any values, raises `RuleError` for those that it is not for, and gives one of the type `returns`."""

    run: Run
    returns: str


_integer = re.compile(r"-?[0-9]{1,19}", re.ASCII).fullmatch
_double = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]{1,5})?", re.ASCII).fullmatch
_offset = re.compile(r"([-+]?)([0-9]{2}):([0-9]{2})", re.ASCII).fullmatch


def _size(value: Any) -> int:
    if type(value) not in (str, list, dict):
        raise no_overload("size()", value)
    return len(value)


def _on_texts(name: str, apply: Callable[[str, str], bool]) -> Run:
    def function(text: Any, part: Any) -> bool:
        if type(text) is not str or type(part) is not str:
            raise no_overload(f"{name}()", text, part)
        return apply(text, part)

    return function


def _int(value: Any) -> int:
    match value:
        case bool():
            pass
        case int():
            return value
        case float() if INT_MIN <= value < 2.0**63:
            return int(value)
        case float():
            raise RuleError(f"{text_of_double(value)} does not fit into an int")
        case str() if _integer(value):
            return int64(int(value))
        case datetime():
            return (value - EPOCH) // timedelta(seconds=1)
    raise _no_conversion("int", value)


def _to_double(value: Any) -> float:
    match value:
        case bool():
            pass
        case int() | float():
            return float(value)
        case str() if _double(value):
            return float(value)
    raise _no_conversion("double", value)


def _string(value: Any) -> str:
    match value:
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float():
            return text_of_double(value)
        case datetime():
            return value.isoformat().replace("+00:00", "Z")
        case timedelta():
            return f"{text_of_double(value.total_seconds())}s"
    raise _no_conversion("string", value)


def _bool(value: Any) -> bool:
    if type(value) is bool:
        return value
    try:
        return quantities.boolean(value) if type(value) is str else _refuse()
    except ValueError:
        raise _no_conversion("bool", value) from None


def _refuse() -> bool:
    raise ValueError


def _timestamp(value: Any) -> datetime:
    try:
        match value:
            case datetime():
                return value
            case bool():
                pass
            case int():
                return EPOCH + timedelta(seconds=value)
            case str():
                return EPOCH + timedelta(seconds=instant(value))
    except (ValueError, OverflowError):
        pass
    raise _no_conversion("timestamp", value)


def _duration(value: Any) -> timedelta:
    try:
        match value:
            case timedelta():
                return value
            case bool():
                pass
            case int():
                return timedelta(seconds=value)
            case str():
                return timedelta(seconds=quantities.duration(value, bare_unit=None))
    except (ValueError, OverflowError):
        pass
    raise _no_conversion("duration", value)


def _no_conversion(to: str, value: Any) -> RuleError:
    shown = f" '{clip(value)}'" if type(value) is str else ""
    return RuleError(f"no {to} can be made of the {name_of(value)}{shown}")


def _zone(name: Any) -> tzinfo:
    if type(name) is not str:
        raise no_overload("a time zone", name)
    if found := _offset(name):
        minutes = int(found[2]) * 60 + int(found[3])
        if minutes < 24 * 60:
            return timezone(timedelta(minutes=-minutes if found[1] == "-" else minutes))
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise RuleError(f"there is no time zone '{clip(name)}'") from None


def _on_time(
    name: str, of_time: Callable[[datetime], int], of_duration: Callable[[timedelta], int] | None = None
) -> Run:
    def function(value: Any, zone: Any = "UTC") -> int:
        if type(value) is datetime:
            try:
                return of_time(value.astimezone(_zone(zone)))
            except OverflowError:
                raise RuleError("the time is out of range") from None
        if type(value) is timedelta and of_duration is not None:
            return of_duration(value)
        raise no_overload(f"{name}()", value)

    return function


def _whole(unit: timedelta) -> Callable[[timedelta], int]:
    """How many whole units are in a duration, towards zero."""
    return lambda value: abs(value) // unit * (-1 if value < timedelta() else 1)


_TIMES: dict[str, Run] = {
    name: _on_time(name, *parts)  # type: ignore[arg-type]
    for name, parts in {
        "getFullYear": (lambda time: time.year,),
        "getMonth": (lambda time: time.month - 1,),
        "getDate": (lambda time: time.day,),
        "getDayOfMonth": (lambda time: time.day - 1,),
        "getDayOfWeek": (lambda time: time.isoweekday() % 7,),
        "getDayOfYear": (lambda time: time.timetuple().tm_yday - 1,),
        "getHours": (lambda time: time.hour, _whole(timedelta(hours=1))),
        "getMinutes": (lambda time: time.minute, _whole(timedelta(minutes=1))),
        "getSeconds": (lambda time: time.second, _whole(timedelta(seconds=1))),
        "getMilliseconds": (
            lambda time: time.microsecond // 1000,
            lambda value: value.microseconds // 1000,
        ),
    }.items()
}

GLOBAL: dict[tuple[str, int], Function] = {
    ("size", 1): Function(_size, "int"),
    ("int", 1): Function(_int, "int"),
    ("double", 1): Function(_to_double, "double"),
    ("string", 1): Function(_string, "string"),
    ("bool", 1): Function(_bool, "bool"),
    ("dyn", 1): Function(lambda value: value, "dyn"),
    ("timestamp", 1): Function(_timestamp, "timestamp"),
    ("duration", 1): Function(_duration, "duration"),
}
"""By name and number of arguments."""

MEMBER: dict[tuple[str, int], Function] = {
    ("size", 1): Function(_size, "int"),
    ("contains", 2): Function(_on_texts("contains", lambda text, part: part in text), "bool"),
    ("startsWith", 2): Function(_on_texts("startsWith", str.startswith), "bool"),
    ("endsWith", 2): Function(_on_texts("endsWith", str.endswith), "bool"),
    **{(name, count): Function(run, "int") for name, run in _TIMES.items() for count in (1, 2)},
}
"""Called on a value; by name and number of arguments, that value included."""
