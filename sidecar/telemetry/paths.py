"""The `path` label of HTTP metrics, by Dapr's rules: concrete paths, but for names that nobody can bound."""

from __future__ import annotations

import re
from collections.abc import Sequence

_STORE = re.compile(r"(/v1\.0(?:-[a-z0-9]+)?/(?:state|secrets)/[^/]+)/.+")
_ACTOR = re.compile(r"(/v1\.0/actors/[^/]+)/[^/]+(/[^/]+)?.*")
_CALL_OF_ACTOR = re.compile(rb"(/v1\.0/actors/[^/]+/)[^/]+(/[^/]+).*").fullmatch
_WORKFLOW = re.compile(r"(/v1\.0(?:-[a-z0-9]+)?/workflows/[^/]+)/[^/]+(/.+)?")
_INVOKED = r"(?:/v1\.0/invoke/[^/]+/method)?"


class PathLabels:
    def __init__(self, patterns: Sequence[str], *, every_path: bool) -> None:
        """`patterns` are such as `/orders/{id}`; the most specific comes first by itself (Go's `ServeMux`). Without
        `every_path` a path that matches none has an empty label."""
        ordered = sorted(patterns, key=lambda pattern: (pattern.count("{"), -len(pattern)))
        self._patterns = [(re.compile(_INVOKED + _regex(pattern)), pattern) for pattern in ordered]
        self._every_path = every_path

    def stand_in(self, path: bytes) -> bytes:
        """A path with the same label, one for all the actors of a type."""
        if self._patterns or not path.startswith(b"/v1.0/actors/"):
            return path
        found = _CALL_OF_ACTOR(path)
        return b"%b{id}%b" % found.groups() if found else path

    def label(self, path: str) -> str:
        for pattern, label in self._patterns:
            if pattern.fullmatch(path):
                return label
        if not self._every_path:
            return ""
        if match := _STORE.fullmatch(path):
            return match[1]
        if match := _ACTOR.fullmatch(path):
            return f"{match[1]}/{{id}}{match[2] or ''}"
        if match := _WORKFLOW.fullmatch(path):
            return f"{match[1]}/{{instanceId}}{match[2] or ''}"
        return path


def _regex(pattern: str) -> str:
    """`{name}` is one segment, `{name...}` the rest, `{$}` the end, a `/` at the end everything below."""
    parts = []
    for part in re.split(r"(\{[^}]*\})", pattern):
        if part == "{$}":
            continue
        if part.endswith("...}"):
            parts.append(".*")
        elif part.startswith("{"):
            parts.append("[^/]+")
        else:
            parts.append(re.escape(part))
    return "".join(parts) + (".*" if pattern.endswith("/") else "")
