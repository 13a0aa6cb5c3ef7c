"""Matching of paths by Dapr's rules.

A path is matched as it was sent, escaped: runs of `/` collapse, `.` and `..` segments resolve, a `/` at the end
goes; `%2F` does not split a segment. Only then are the parameters decoded, by the rules of a query (`+` is a
space). An unknown path and a wrong method both go to the fallback (Dapr: its invoke handler; there is no 405).

The hot function is `Router.match`: about 1.3 µs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from starlette.types import ASGIApp, Receive, Scope, Send

from mesh.errors import clip
from sidecar.http.responses import send_text


@dataclass(frozen=True, slots=True)
class Route:
    app: ASGIApp
    parameters: tuple[tuple[str, int], ...]
    """Name and index of the segment of each parameter."""
    tail: int
    """Index of the template's last segment: a `:path` parameter takes all from there."""


class _Node:
    """What can follow the segments that led here."""

    __slots__ = ("literals", "parameter", "routes", "tails")

    def __init__(self) -> None:
        self.literals: dict[bytes, _Node] = {}
        self.parameter: _Node | None = None
        self.routes: dict[str, Route] = {}
        """By method; `*` is any."""
        self.tails: dict[str, Route] = {}

    def find(self, segments: list[bytes], index: int, method: str) -> Route | None:
        if index == len(segments):
            return self.routes.get(method) or self.routes.get("*")
        following = self.literals.get(segments[index])
        if following is not None:
            route = following.find(segments, index + 1, method)
            if route is not None:
                return route
        if self.parameter is not None:
            route = self.parameter.find(segments, index + 1, method)
            if route is not None:
                return route
        if self.tails:
            return self.tails.get(method) or self.tails.get("*")
        return None

    def methods(self, segments: list[bytes], index: int) -> set[str]:
        """The methods that the path is served with."""
        if index == len(segments):
            return set(self.routes)
        found = set(self.tails)
        for following in (self.literals.get(segments[index]), self.parameter):
            if following is not None:
                found |= following.methods(segments, index + 1)
        return found


class BadEscape(ValueError):
    """A parameter cannot be decoded."""

    def __init__(self, name: str, raw: bytes, reason: str) -> None:
        shown = clip(raw.decode("utf-8", "backslashreplace"))
        super().__init__(f'failed to unescape request parameter "{name}" with value "{shown}". Error: {reason}')


def clean_path(raw_path: bytes) -> bytes:
    """The escaped path as it is matched: one `/` for a run of them, `.` and `..` resolved, no `/` at the end."""
    kept: list[bytes] = []
    for segment in raw_path.split(b"/"):
        if segment == b"..":
            del kept[-1:]
        elif segment not in (b"", b"."):
            kept.append(segment)
    return b"/" + b"/".join(kept)


_UNCLEAN = frozenset((b"", b".", b".."))
_PERCENT, _PLUS = b"%+"
_HEX = frozenset(b"0123456789abcdefABCDEF")


def unescape(name: str, raw: bytes) -> str:
    """The value of the parameter `name`, decoded as in a query. Raises `BadEscape`."""
    start = raw.find(b"%")
    while start >= 0:
        digits = raw[start + 1 : start + 3]
        if len(digits) < 2 or not _HEX.issuperset(digits):
            raise BadEscape(name, raw, f'invalid URL escape "%{clip(digits.decode("utf-8", "backslashreplace"))}"')
        start = raw.find(b"%", start + 3)
    try:
        return unquote_to_bytes(raw.replace(b"+", b" ")).decode()
    except UnicodeDecodeError:
        raise BadEscape(name, raw, "invalid UTF-8") from None


class Router:
    """An ASGI app that finds the app of a path and method.

    Literal segments beat parameters, segment by segment, among the routes that take the method (Dapr: `POST
    …/state/s/bulk` is the bulk route, `GET …/state/s/bulk` reads the key `bulk`). Parameters are put into
    `scope["path_params"]`, decoded; `scope["raw_path"]` stays as it came. The `fallback` gets whatever matches
    nothing. Without one that is answered as Dapr's public listener does, in plain text: 404, or 405 for a path that
    is served with other methods.
    """

    def __init__(
        self,
        fallback: ASGIApp | None = None,
        *,
        permits: Callable[[str, str], bool] = lambda _group, _template: True,
        around: Callable[[ASGIApp], ASGIApp] = lambda app: app,
    ) -> None:
        """`permits` says by group and template whether an endpoint is served at all (Dapr: API lists). `around` gives
        what is called in place of an endpoint."""
        self._fallback = fallback
        self._permits = permits
        self._around = around
        self._root = _Node()

    def add(self, methods: Iterable[str], template: str, app: ASGIApp, *, group: str) -> None:
        """Serve `template` with `app`, unless the API lists forbid it.

        `template` is such as `/v1.0/publish/{pubsubname}/{topic:path}`: `{name}` is one segment, `{name:path}` (at
        the end only) the rest of the path, one segment or more. The method `*` is any. `group` is version and name
        of the API for the allowed and denied lists, such as `v1/publish`. Raises `ValueError` for a template that
        is none, or is served already.
        """
        node = self._root
        parameters: list[tuple[str, int]] = []
        tail = False
        if not template.startswith("/") or clean_path(template.encode()) != template.encode():
            raise ValueError(f"{template!r} is no path template")
        for index, segment in enumerate(template.rstrip("/").split("/")):
            if tail:
                raise ValueError(f"{template!r}: nothing can follow a :path parameter")
            if not segment.startswith("{"):
                node = node.literals.setdefault(segment.encode(), _Node())
                continue
            name = segment[1:-1].removesuffix(":path")
            tail = segment.endswith(":path}")
            if segment[-1] != "}" or not name.isidentifier():
                raise ValueError(f"{template!r}: {segment!r} is no parameter")
            parameters.append((name, index))
            if not tail:
                node.parameter = node.parameter or _Node()
                node = node.parameter
        if not self._permits(group, template):
            return
        routes = node.tails if tail else node.routes
        for method in methods:
            if method in routes:
                raise ValueError(f"{method} {template} is served already")
            routes[method] = Route(self._around(app), tuple(parameters), index)

    def match(self, method: str, raw_path: bytes) -> tuple[ASGIApp, dict[str, str]] | None:
        """The app and the decoded parameters; `None` when nothing matches. Raises `BadEscape`."""
        # The straight way: tests are ordered and written for what they cost (`b"//" in path` is 0.2 µs alone).
        segments = raw_path.split(b"/")
        if not _UNCLEAN.isdisjoint(segments[1:]):
            segments = clean_path(raw_path).rstrip(b"/").split(b"/")
        node = self._root
        for segment in segments:
            following = node.literals.get(segment) or node.parameter
            if following is None:
                route = node.tails.get(method)
                break
            node = following
        else:
            route = node.routes.get(method)
        if route is None:  # the straight way down ends nowhere: search
            route = self._root.find(segments, 0, method)
            if route is None:
                return None
        parameters = route.parameters
        if route.tail < len(segments) - 1:
            segments[route.tail :] = [b"/".join(segments[route.tail :])]
        values = {}
        if _PERCENT in raw_path or _PLUS in raw_path or not raw_path.isascii():
            for name, index in parameters:
                values[name] = unescape(name, segments[index])
        else:
            for name, index in parameters:
                values[name] = segments[index].decode()
        return route.app, values

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        try:
            matched = self.match(scope["method"], scope["raw_path"])
        except BadEscape as error:
            return send_text(send, 400, str(error))
        if matched is None:
            return self._fallback(scope, receive, send) if self._fallback else self._refuse(scope, send)
        app, scope["path_params"] = matched
        return app(scope, receive, send)

    def _refuse(self, scope: Scope, send: Send) -> Awaitable[None]:
        methods = self._root.methods(clean_path(scope["raw_path"]).rstrip(b"/").split(b"/"), 0)
        if methods:
            return send_text(send, 405, "", [(b"allow", ", ".join(sorted(methods)).encode())])
        return send_text(send, 404, "404 page not found\n")
