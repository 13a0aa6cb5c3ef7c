"""The rules that every attribute of a CloudEvent obeys (CloudEvents core 1.0.2, "Context Attributes").

Checked on each event that enters the mesh, so everything here is a compiled pattern or a method of `str`:
a typical event of eight attributes takes about 2 µs.
"""

from __future__ import annotations

import re
from calendar import monthrange
from collections.abc import Callable, Iterable
from datetime import date

from mesh.codec.media_type import is_media_type
from mesh.errors import InvalidEvent
from mesh.event import Attributes

REQUIRED = ("specversion", "id", "source", "type")
SPECVERSION = "1.0"

_REQUIRED = frozenset(REQUIRED)

INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1

_NONCHARACTERS = "\ufdd0-\ufdef" + "".join(chr(plane << 16 | 0xFFFE) + chr(plane << 16 | 0xFFFF) for plane in range(17))
_FORBIDDEN = re.compile(f"[\0-\x1f\x7f-\x9f\ud800-\udfff{_NONCHARACTERS}]")
"""What a String may not contain (CloudEvents core, "Type System"): controls, surrogates, noncharacters."""

_TIMESTAMP = re.compile(
    r"[0-9]{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01])"
    r"[Tt](?:[01][0-9]|2[0-3]):[0-5][0-9]:(?:[0-5][0-9]|60)(\.[0-9]+)?"
    r"(?:[Zz]|([+-])([01][0-9]|2[0-3]):([0-5][0-9]))"
)
_EPOCH = date(1970, 1, 1).toordinal()
_DAYS_IN_400_YEARS = 146_097


def _match_timestamp(text: str) -> re.Match[str] | None:
    match = _TIMESTAMP.fullmatch(text)
    if match and text[8:10] > "28" and int(text[8:10]) > monthrange(int(text[:4]), int(text[5:7]))[1]:
        return None
    return match


def timestamp(text: str) -> float:
    """Seconds since the epoch of an RFC 3339 timestamp, to the microsecond or so that a float holds. A leap second
    counts as the first second of the next minute. Raises `ValueError` for any other text.
    """
    match = _match_timestamp(text)
    if match is None:
        raise ValueError("must be an RFC 3339 timestamp")
    fraction, sign, hours, minutes = match.groups()
    year = int(text[:4])
    # The calendar repeats every 400 years; `date` knows no year 0.
    days = date(400 + year % 400, int(text[5:7]), int(text[8:10])).toordinal()
    days += (year // 400 - 1) * _DAYS_IN_400_YEARS - _EPOCH
    seconds = days * 86_400 + int(text[11:13]) * 3_600 + int(text[14:16]) * 60 + int(text[17:19])
    if sign:
        offset = int(hours) * 3_600 + int(minutes) * 60
        seconds += offset if sign == "-" else -offset
    return seconds + float(fraction or 0)


_uri = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:\S*").fullmatch
_uri_reference = re.compile(r"\S+").fullmatch

_RULES: dict[str, tuple[Callable[[str], object], str]] = {
    "specversion": (SPECVERSION.__eq__, "must be '1.0', the only version of CloudEvents that is understood"),
    "id": (len, "must not be empty"),
    "source": (_uri_reference, "must be a URI-reference: not empty, no white space"),
    "type": (len, "must not be empty"),
    "datacontenttype": (is_media_type, "must be a media type such as 'application/json' (RFC 2046)"),
    "dataschema": (_uri, "must be an absolute URI, with a scheme and without white space"),
    "subject": (len, "must not be empty; leave it out instead"),
    "time": (_match_timestamp, "must be an RFC 3339 timestamp such as '2024-05-01T12:34:56Z'"),
    # Of the extensions only those by which the mesh itself acts: order, expiry, claim check.
    "partitionkey": (len, "must not be empty; leave it out instead"),
    "sequence": (len, "must not be empty; leave it out instead"),
    "expirytime": (_match_timestamp, "must be an RFC 3339 timestamp such as '2024-05-01T12:34:56Z'"),
    "dataref": (_uri_reference, "must be a URI-reference: not empty, no white space"),
}


def check_name(name: str) -> None:
    """Raises `InvalidEvent` unless `name` may be the name of an attribute."""
    if name == "data":
        raise InvalidEvent(name, "is reserved, no attribute may have this name")
    if not (name.isalnum() and name.isascii() and name == name.lower()):
        raise InvalidEvent(name or "''", "an attribute name consists of the letters a-z and digits only")


def check(name: str, value: object) -> None:
    """Raises `InvalidEvent`, naming the attribute and the rule, unless `name` may have `value`."""
    rule = _RULES.get(name)
    if rule is None:
        check_name(name)
    # Exact types: a bool is an int in Python, but a Boolean is no Integer in CloudEvents.
    if type(value) is str:
        if not (value.isprintable() and value.isascii()) and (bad := _FORBIDDEN.search(value)):
            raise InvalidEvent(name, f"must not contain the character U+{ord(bad[0]):04X}", value)
        if rule is not None and not rule[0](value):
            raise InvalidEvent(name, rule[1], value)
    elif rule is not None:
        raise InvalidEvent(name, "must be a string", value)
    elif type(value) is int:
        if not INT32_MIN <= value <= INT32_MAX:
            raise InvalidEvent(name, "must be within the range of a 32-bit integer")
    elif type(value) is not bool:
        raise InvalidEvent(name, "must be a string, an integer or a boolean", value)


def check_version(value: object) -> None:
    """Raises `InvalidEvent` unless `value` is a `specversion` that we understand. Comes before everything else: of
    an event of another version nothing more is read.
    """
    if value != SPECVERSION:
        check("specversion", value)


def missing(names: Iterable[str]) -> InvalidEvent:
    """The error for an event that lacks the required attributes `names` (one at least)."""
    first, *others = names
    also = f", and so are {', '.join(others)}" if others else ""
    return InvalidEvent(first, f"a required attribute is missing{also}")


def check_all(attributes: Attributes) -> None:
    """Raises `InvalidEvent` for the first rule that `attributes` break as those of a whole event. The version comes
    first, then missing attributes, then each in its order.
    """
    if attributes.get("specversion") != SPECVERSION and "specversion" in attributes:
        check("specversion", attributes["specversion"])
    if not attributes.keys() >= _REQUIRED:
        raise missing(name for name in REQUIRED if name not in attributes)
    for name, value in attributes.items():
        # The fast path is what most attributes of most events are; `check` knows the rest, and what to say.
        rule = _RULES.get(name)
        if not (rule and type(value) is str and value.isascii() and value.isprintable() and rule[0](value)):
            check(name, value)
