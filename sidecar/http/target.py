"""Request targets in absolute form (RFC 9112, 3.2.2), as clients write them for a proxy."""

from __future__ import annotations

import re
from typing import NamedTuple

_ABSOLUTE = re.compile(rb"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)([^#]*)", re.DOTALL).fullmatch
_AUTHORITY = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]+)(:[0-9]*)?").fullmatch


class InvalidTarget(ValueError):
    """The target is none that can be served."""


class AbsoluteTarget(NamedTuple):
    scheme: str
    """In lower case."""
    authority: bytes
    """Host, and port if given, as they were sent: what a `Host` header has."""
    path: bytes
    """The target in origin form: path and query."""


def parse_absolute(target: bytes) -> AbsoluteTarget:
    """Raises `InvalidTarget` when `target` is no URL of http or https, has no host (RFC 9110, 4.2.1), or has user
    information, which disguises hosts (RFC 9110, 4.2.4)."""
    match = _ABSOLUTE(target)
    if match is None or (scheme := match[1].decode().lower()) not in ("http", "https"):
        raise InvalidTarget("the request target must be a path or an http URL")
    authority: bytes = match[2]
    if b"@" in authority:
        raise InvalidTarget("the request target must not have user information before its host")
    if not _AUTHORITY(authority):
        raise InvalidTarget("the request target has no valid host")
    path: bytes = match[3]
    return AbsoluteTarget(scheme, authority, path if path.startswith(b"/") else b"/" + path)
