"""Who may call the API: the token, or without one only programs of this machine, and no web page uninvited.

A web page can reach a port on loopback, as itself (it then has an `Origin`) or under a name of its own that it lets
resolve to 127.0.0.1 (it then has a foreign `Host`). With a token neither can do harm.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Collection
from ipaddress import ip_address

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mesh.errors import ApiError, Code, clip
from sidecar.http.responses import Headers, send_error, send_response, send_text
from sidecar.http.routing import clean_path

_HEALTH = frozenset((b"/v1.0/healthz", b"/v1.0/healthz/outbound"))
_WATCHED = frozenset((b"host", b"origin", b"sec-fetch-site", b"dapr-api-token"))
_VARY = (b"vary", b"Origin")
_PREFLIGHT_VARY = (b"vary", b"Origin, Access-Control-Request-Method, Access-Control-Request-Headers")
_METHODS = (b"access-control-allow-methods", b"HEAD, GET, POST, PUT, PATCH, DELETE")


class Guard:
    """ASGI middleware, the outermost but for `CatchErrors`.

    `token`: what every request must carry in `dapr-api-token`; else 401, plain text `invalid api token`. The header
    is then taken from the request. Without a token the header stays, a `Host` that is neither local nor one of
    `allowed_hosts` (names without port) is refused with 403, and so is an `Origin` that is neither our own nor
    allowed. Over a Unix socket, which no web page reaches, every `Host` will do.

    `allowed_origins`: Dapr's `--allowed-origins`. Empty: no CORS headers, a preflight is a request like others. `*`:
    all; else origins, in which one `*` stands for anything (`https://*.example.com`). CORS comes before the token.

    `GET /v1.0/healthz` and `GET /v1.0/healthz/outbound` pass unchecked: probes name the host they like.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        token: str | None = None,
        allowed_origins: Collection[str] = (),
        allowed_hosts: Collection[str] = (),
    ) -> None:
        self._app = app
        self._token = token.encode() if token else None
        self._any_origin = "*" in allowed_origins
        origins = [origin.lower().encode() for origin in allowed_origins]
        self._origins = frozenset(origins)
        self._origin_patterns = [origin.partition(b"*")[::2] for origin in origins if b"*" in origin]
        self._hosts = frozenset(host.lower().encode() for host in allowed_hosts)
        self._known_hosts: set[bytes] = {b"localhost", b"127.0.0.1", b"[::1]"} | self._hosts

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        host = origin = site = token = b""
        for name, value in scope["headers"]:
            if name in _WATCHED:
                if name == b"host":
                    host = value
                elif name == b"origin":
                    origin = value
                elif name == b"sec-fetch-site":
                    site = value
                elif not token:
                    token = value
        if origin and self._origins:
            if scope["method"] == "OPTIONS" and any(
                name == b"access-control-request-method" for name, _ in scope["headers"]
            ):
                return self._preflight(scope, origin, send)
            send = self._with_cors(origin, send)
        if self._token is not None:
            if not hmac.compare_digest(token, self._token) and not is_health_probe(scope):
                return send_text(send, 401, "invalid api token\n")
            if token:
                scope["headers"] = [header for header in scope["headers"] if header[0] != b"dapr-api-token"]
        elif (host.rpartition(b":")[0] or host) not in self._known_hosts and not self._host_allowed(scope, host):
            return send_error(send, _host_refused(host))
        elif (origin or site == b"cross-site") and not self._page_allowed(scope, host, origin):
            return send_error(send, _origin_refused(origin))
        return self._app(scope, receive, send)

    def _host_allowed(self, scope: Scope, host: bytes) -> bool:
        server = scope.get("server")
        return (server is not None and server[1] is None) or is_local(host, self._hosts) or is_health_probe(scope)

    def _page_allowed(self, scope: Scope, host: bytes, origin: bytes) -> bool:
        if origin and (origin == scope["scheme"].encode() + b"://" + host or self._origin_allowed(origin)):
            return True
        return is_health_probe(scope)

    def _origin_allowed(self, origin: bytes) -> bool:
        if self._any_origin:
            return True
        origin = origin.lower()
        return origin in self._origins or any(
            len(origin) >= len(start) + len(end) and origin.startswith(start) and origin.endswith(end)
            for start, end in self._origin_patterns
        )

    # CORS

    def _allow_origin(self, origin: bytes) -> Headers:
        if not self._origin_allowed(origin):
            return []
        return [(b"access-control-allow-origin", b"*" if self._any_origin else origin)]

    def _preflight(self, scope: Scope, origin: bytes, send: Send) -> Awaitable[None]:
        headers = [_PREFLIGHT_VARY, (b"content-length", b"0")]
        if allowed := self._allow_origin(origin):
            headers += allowed
            headers.append(_METHODS)
            headers += [
                (b"access-control-allow-headers", value)
                for name, value in scope["headers"]
                if name == b"access-control-request-headers"
            ]
        return send_response(send, 200, headers, b"")

    def _with_cors(self, origin: bytes, send: Send) -> Send:
        headers = [_VARY, *self._allow_origin(origin)]
        replaced = {name for name, _ in headers[1:]}  # an invoked app may have set its own, and two are invalid

        def send_with_cors(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                kept = [header for header in message.get("headers", ()) if header[0].lower() not in replaced]
                message = {**message, "headers": kept + headers}
            return send(message)

        return send_with_cors


def is_health_probe(scope: Scope) -> bool:
    """Whether the request is one of the two health probes, which need no token."""
    return scope["method"] == "GET" and clean_path(scope["raw_path"]) in _HEALTH


def is_local(host: bytes, allowed: Collection[bytes] = ()) -> bool:
    """Whether a `Host` header names this machine: `localhost`, `*.localhost` (RFC 6761), a loopback address, or
    one of `allowed` (lower case). A port does not matter, nor does a dot at the end."""
    name = host.lower()
    if name.startswith(b"["):
        name = name[1:].partition(b"]")[0]
    elif name.count(b":") == 1:
        name = name.partition(b":")[0]
    name = name.removesuffix(b".")
    if name == b"localhost" or name.endswith(b".localhost") or name in allowed:
        return True
    try:
        return ip_address(name.decode("ascii")).is_loopback
    except ValueError:
        return False


def _host_refused(host: bytes) -> ApiError:
    return ApiError(
        Code.HOST_REFUSED,
        f"the Host '{clip(host.decode('latin-1'))}' is not local; set an API token (DAPR_API_TOKEN), or allow the host",
    )


def _origin_refused(origin: bytes) -> ApiError:
    return ApiError(
        Code.ORIGIN_REFUSED,
        f"web pages of '{clip(origin.decode('latin-1') or 'another site')}' may not call this API; "
        "allow them with --allowed-origins",
    )
