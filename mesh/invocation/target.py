"""Whom a request calls, and with which path (Dapr: naming the target of an invocation)."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import quote, unquote, unquote_to_bytes

from mesh.errors import MeshError, clip
from mesh.ports import Peer

_ROUTE = re.compile(rb"/+v1\.0/+invoke/+(.+?)/+method/(.*)", re.DOTALL).fullmatch
_URL = re.compile(r"(https?):/+([^/?#@\\\s]+)/?", re.IGNORECASE).fullmatch
_APP_ID = re.compile(r"[A-Za-z0-9_-]{1,64}").fullmatch
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})").search
_BAD_IN_METHOD = re.compile(rb"[#?\x00-\x1f\x7f]").search
_UNESCAPED = "/!$&'()*+,;=:@-._~"  # RFC 3986, 3.3: what a path may hold as it is


class InvalidTarget(MeshError):
    """The target, or the path that is called there, is none that can be called."""


class Named(NamedTuple):
    """A request that names a target."""

    target: str
    """As the client wrote it, decoded: an app id, `app.namespace`, the name of an HTTPEndpoint, or a URL."""
    method: bytes
    """The path to call there, as it was sent: see `method_path`."""


def named(headers: Sequence[tuple[bytes, bytes]], raw_path: bytes) -> Named | None:
    """The target that a request names; `None` when it names none. In this order: the header `dapr-app-id`, Basic
    credentials of the user `dapr-app-id`, a path `/v1.0/invoke/<target>/method/<method>`. Header names are in lower
    case, `raw_path` is the path as it was sent.
    """
    credentials = None
    for name, value in headers:
        if name == b"dapr-app-id" and value:
            return Named(value.decode("latin-1"), raw_path)
        if name == b"authorization":
            credentials = credentials or value
    if credentials is not None and (app := _user_names(credentials)):
        return Named(app, raw_path)
    return _route(raw_path)


def _user_names(credentials: bytes) -> str | None:
    """The password of the user `dapr-app-id` (`http://dapr-app-id:<target>@localhost:3500`)."""
    scheme, _, encoded = credentials.partition(b" ")
    if scheme.lower() != b"basic":
        return None
    try:
        parts = base64.b64decode(encoded.strip(), validate=True).decode().split(":")
    except (binascii.Error, ValueError):
        return None
    return parts[1] if len(parts) == 2 and parts[0] == "dapr-app-id" else None


@lru_cache(maxsize=512)
def _route(raw_path: bytes) -> Named | None:
    # The router's clean path is of no use here: it makes `http:/` of `http://`.
    match = _ROUTE(raw_path)
    return Named(unquote(match[1].decode("latin-1")), match[2]) if match else None


@lru_cache(maxsize=512)
def method_path(raw: bytes) -> str:
    """The path to call, in origin form: decoded (`%2F` is a `/`), runs of `/` collapsed, `.` and `..` resolved, no `/`
    at the end, and encoded again, so that nothing in it can mean another path or a query to the app.

    Raises `InvalidTarget` for `#`, `?` and control characters in it, and for a `%` that escapes nothing.
    """
    if bad := _BAD_ESCAPE(raw):
        shown = clip(raw[bad.start() : bad.start() + 3].decode("latin-1"))
        raise InvalidTarget(f"invalid method: invalid URL escape '{shown}'")
    decoded = unquote_to_bytes(raw)
    if bad := _BAD_IN_METHOD(decoded):
        raise InvalidTarget(f"invalid method: it has the character {bad[0].decode()!a} in it")
    kept: list[bytes] = []
    for segment in decoded.split(b"/"):
        if segment == b"..":
            del kept[-1:]
        elif segment not in (b"", b"."):
            kept.append(segment)
    return quote(b"/" + b"/".join(kept), safe=_UNESCAPED)


@lru_cache(maxsize=1024)
def url(target: str) -> str | None:
    """The origin (`https://host:port`) that a target names; `None` when it is no URL. Raises `InvalidTarget` for one
    with more than scheme, host and port."""
    if not target[:6].lower().startswith(("http:", "https:")):
        return None
    match = _URL(target)
    if match is None:
        raise InvalidTarget("a URL target has a scheme, a host and a port, and no more")
    return f"{match[1].lower()}://{match[2]}"


@lru_cache(maxsize=1024)
def peer(target: str, namespace: str) -> Peer:
    """The app that `app` or `app.namespace` names; `namespace` is the caller's own. Raises `InvalidTarget`."""
    app_id, dot, other = target.partition(".")
    if "." in other:
        raise InvalidTarget(f"invalid app id '{clip(target)}': it must be <app id> or <app id>.<namespace>")
    for part in (app_id, other) if dot else (app_id,):
        if not _APP_ID(part):
            raise InvalidTarget(f"invalid app id '{clip(target)}': must be 1 to 64 letters, digits, '-' or '_'")
    return Peer(other or namespace, app_id)
