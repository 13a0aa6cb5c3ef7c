"""The names of actors, and where a call of one goes (Dapr: characters that actor routes refuse)."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import quote

from mesh.errors import MeshError, clip

MAX_TYPE = 128
MAX_ID = 512
"""Bytes of UTF-8 of the longest type, and id."""

RESERVED = "dapr.internal."
"""How types begin that are kept for workflows (Dapr)."""

_BAD_IN_NAME = re.compile(r"[/\\#?\x00-\x1f\x7f\ud800-\udfff]").search
_BAD_IN_METHOD = re.compile(r"[#?\x00-\x1f\x7f\ud800-\udfff]").search
_is_plain = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,63}").fullmatch
"""Most names are, and need neither be looked at more closely nor be encoded."""
_UNESCAPED = "!$&'()*+,;=:@-._~|"


class InvalidName(MeshError):
    """A type, id, method, or name of a timer or reminder that none can have."""


class ActorName(NamedTuple):
    type: str
    id: str

    @property
    def path(self) -> str:
        """Of the actor, at the app."""
        return f"/actors/{_encoded(self.type)}/{_encoded(self.id)}"

    def __str__(self) -> str:
        return f"{self.type}/{self.id}"


def _encoded(text: str) -> str:
    return text if _is_plain(text) else quote(text, safe=_UNESCAPED)


def check(kind: str, text: str, limit: int = MAX_ID) -> str:
    """`text`, if it can name something in one segment of a path. `kind` is what Dapr calls it in errors.
    `limit` in bytes, at least 64."""
    if _is_plain(text):
        return text
    if not text or text in (".", "..") or _BAD_IN_NAME(text) or len(text.encode("utf-8", "surrogatepass")) > limit:
        raise InvalidName(f"invalid request: invalid {kind}: '{clip(text)}'")
    return text


def actor_name(actor_type: str, actor_id: str) -> ActorName:
    """Raises `InvalidName`."""
    return ActorName(check("actorType", actor_type, MAX_TYPE), check("actorId", actor_id))


@lru_cache(maxsize=1024)
def method_path(method: str) -> str:
    """A method as the end of a path: slashes are kept, runs of them collapsed, `.` and `..` resolved, and nothing in it
    can mean a query. Raises `InvalidName`."""
    if _BAD_IN_METHOD(method):
        raise InvalidName(f"invalid request: invalid method: '{clip(method)}'")
    kept: list[str] = []
    for segment in method.split("/"):
        if segment == "..":
            del kept[-1:]
        elif segment not in ("", "."):
            kept.append(segment)
    if not kept:
        raise InvalidName(f"invalid request: invalid method: '{clip(method)}'")
    return quote("/".join(kept), safe=f"/{_UNESCAPED}")
