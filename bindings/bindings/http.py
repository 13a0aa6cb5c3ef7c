"""`bindings.http`: requests to one HTTP server, the address of which the component fixes."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote, urljoin, urlsplit

from bindings.bindings import client_tls
from bindings.invocations import flag
from mesh.components import ComponentSpec, Field, Kind, Settings, Setup
from mesh.errors import clip
from mesh.guarded_addresses import Forbidden, check_address
from mesh.ports.bindings import BindingError, InvalidOperation, Invocation, Result
from mesh.ports.stores import StoreUnavailable

if TYPE_CHECKING:
    import httpcore

OPERATIONS = ("create", "get", "head", "post", "put", "patch", "delete", "options", "trace")
CONNECT_TIMEOUT = 15.0
"""Seconds in which a connection must stand, as Dapr's."""
RESPONSE_TIMEOUT = 60.0
REDIRECTS = 10
"""How many are followed (Go's client)."""
CONNECTIONS = 64
MAX_HEADERS = 64 << 10
"""Bytes of the headers of a request."""

_JSON = "application/json; charset=utf-8"
_WITH_BODY = ("POST", "PUT", "PATCH")
_AS_GET, _SAME_AGAIN = (301, 302, 303), (307, 308)
_FRAMING = frozenset(
    (
        *("host", "content-length", "transfer-encoding", "connection", "keep-alive", "proxy-connection"),
        *("te", "trailer", "upgrade", "expect"),
    )
)
"""Headers of the connection, which are not the app's to set."""
_ANYWHERE = ("accept", "content-type", "user-agent", "traceparent", "tracestate", "baggage")
"""Headers that may go with a redirect to another server."""
_TRACE = ("traceparent", "tracestate", "baggage")
_OWN = ("path", "errorIfNot2XX")
_OWN_LOWER = frozenset(map(str.lower, _OWN))


class _Exchange(NamedTuple):
    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes


class HttpBinding:
    """An `OutputBinding`."""

    operations = OPERATIONS

    def __init__(self, settings: Settings) -> None:
        """Raises `ConfigurationError`, `ImportError`."""
        import httpcore

        self._library = httpcore
        self._settings = settings
        self._url = _checked_url(settings)
        self._limit: int = max(settings["maxResponseBodySize"], 0)
        self._tls: ssl.SSLContext | None = None
        self._slots = asyncio.Semaphore(CONNECTIONS)
        # A pool looks at each of its connections for each of the others, at every request: so each has its own.
        self._pools: list[httpcore.AsyncConnectionPool] = []
        self._idle: list[httpcore.AsyncConnectionPool] = []
        if bool(settings["securityToken"]) != bool(settings["securityTokenHeader"]):
            raise settings.fault("securityToken", "securityToken and securityTokenHeader need each other")
        self._secret = {}
        if header := settings["securityTokenHeader"]:
            try:
                self._secret = dict([_header(header, settings["securityToken"])])
            except InvalidOperation as error:
                raise settings.fault("securityTokenHeader", str(error)) from None

    async def start(self) -> None:
        """Sends nothing: any request may have an effect."""
        self._tls = await asyncio.to_thread(_tls, self._settings)

    async def ping(self) -> None:
        """Nothing is known of a server before an app asks it."""

    async def close(self) -> None:
        self._tls = None
        pools, self._pools, self._idle = self._pools, [], []
        for pool in pools:
            await pool.aclose()

    async def invoke(self, invocation: Invocation) -> Result:
        own = _own(invocation)
        exchange = self._exchange(invocation, own.text("path"))
        library = self._library
        try:
            async with asyncio.timeout(self._settings["responseTimeout"]):
                result, status = await self._follow(exchange)
        except TimeoutError:
            limit = self._settings["responseTimeout"]
            raise StoreUnavailable(f"the server did not answer within {limit:g} s") from None
        except Forbidden as error:
            raise BindingError(str(error)) from None
        except (library.UnsupportedProtocol, library.LocalProtocolError) as error:
            raise InvalidOperation(f"the request cannot be sent: {error}") from error
        except (library.NetworkError, library.TimeoutException, library.ProtocolError, OSError) as error:
            raise StoreUnavailable(f"the server cannot be reached: {str(error) or type(error).__name__}") from error
        if status // 100 != 2 and flag(own, "errorIfNot2XX", self._settings["errorIfNot2XX"]):
            raise BindingError(f"received status code {status}", result.metadata)
        return result

    def _exchange(self, invocation: Invocation, path: str) -> _Exchange:
        method = "POST" if invocation.operation == "create" else invocation.operation.upper()
        headers = {"accept": _JSON, **self._secret}
        if method in _WITH_BODY:
            headers["content-type"] = _JSON
        for name, value in invocation.metadata.items():
            if _is_header(name):
                headers |= [_header(name, value)]
            elif name.lower() in _TRACE:
                pass
            elif name.lower() not in _OWN_LOWER:
                raise InvalidOperation(
                    f"there is no metadata '{clip(name)}' (there is: {', '.join(_OWN)}; a header begins with a capital)"
                )
        for name in _TRACE:
            if value := invocation.text(name):
                headers |= [_header(name, value)]
        if sum(len(name) + len(value) for name, value in headers.items()) > MAX_HEADERS:
            raise InvalidOperation(f"the headers have over {MAX_HEADERS} characters")
        body = invocation.data if method in _WITH_BODY else b""
        return _Exchange(method, _joined(self._url, path), headers, body)

    async def _follow(self, exchange: _Exchange) -> tuple[Result, int]:
        """The answer, after redirects as Go's client follows them; each connection is checked anew."""
        for _ in range(REDIRECTS + 1):
            result, status = await self._send(exchange)
            location = next((v for k, v in result.metadata.items() if k.lower() == "location"), "")
            if not location or status not in (*_AS_GET, *_SAME_AGAIN):
                return result, status
            method, url, headers, body = exchange
            target = urljoin(url, location)
            if not _is_url(target):
                raise BindingError("the server redirects to what is no http(s) URL", result.metadata)
            if status in _AS_GET and method != "HEAD":
                method, body = "GET", b""
                headers = {name: value for name, value in headers.items() if name != "content-type"}
            if _origin(target) != _origin(url):  # what was meant for that server is not for this one
                headers = {name: value for name, value in headers.items() if name in _ANYWHERE}
            exchange = _Exchange(method, target, headers, body)
        raise BindingError(f"stopped after {REDIRECTS} redirects")

    async def _send(self, exchange: _Exchange) -> tuple[Result, int]:
        method, url, headers, body = exchange
        pairs = [(b"host", urlsplit(url).netloc.encode())]
        pairs += [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]
        if method in _WITH_BODY:
            pairs.append((b"content-length", b"%d" % len(body)))
        limits = {"connect": CONNECT_TIMEOUT, "pool": CONNECT_TIMEOUT}
        async with (
            self._connection() as connection,
            connection.stream(
                method, url.partition("#")[0], headers=pairs, content=body, extensions={"timeout": limits}
            ) as response,
        ):
            answer = bytearray()
            async for piece in response.aiter_stream():
                answer += piece
                if self._limit and len(answer) > self._limit:
                    raise BindingError(f"the answer is longer than maxResponseBodySize, {self._limit} bytes")
            return Result(data=bytes(answer), metadata=_answer_metadata(response)), response.status

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[httpcore.AsyncConnectionPool]:
        """The one that was used last, which is the most likely to stand."""
        async with self._slots:
            if self._tls is None:
                raise StoreUnavailable("the binding is closed")
            pool = self._idle.pop() if self._idle else self._new_pool(self._tls)
            try:
                yield pool
            finally:
                if self._tls is not None:
                    self._idle.append(pool)

    def _new_pool(self, tls: ssl.SSLContext) -> httpcore.AsyncConnectionPool:
        from bindings.guarded_connections import GuardedBackend

        pool = self._library.AsyncConnectionPool(
            ssl_context=tls, max_connections=1, keepalive_expiry=60.0, network_backend=GuardedBackend()
        )
        self._pools.append(pool)
        return pool


def _is_header(name: str) -> bool:
    """Dapr: metadata that begins with a capital is a header, even `Path`."""
    return "A" <= name[:1] <= "Z"


def _own(invocation: Invocation) -> Invocation:
    """The metadata that is none."""
    metadata = {name: value for name, value in invocation.metadata.items() if not _is_header(name)}
    return Invocation(operation=invocation.operation, metadata=metadata)


def _answer_metadata(response: Any) -> dict[str, str]:
    """Dapr: the headers, those of one name joined; `statusCode` and `status`."""
    phrase = response.extensions.get("reason_phrase", b"").decode("latin-1")
    if not phrase and response.status in set(HTTPStatus):
        phrase = HTTPStatus(response.status).phrase
    metadata = {"statusCode": str(response.status), "status": f"{response.status} {phrase}".strip()}
    for name, value in response.headers:
        key = "-".join(part.capitalize() for part in name.decode("latin-1").split("-"))
        text = value.decode("latin-1")
        metadata[key] = f"{metadata[key]}, {text}" if key in metadata else text
    return metadata


def _header(name: str, value: str) -> tuple[str, str]:
    """In lower case. Raises `InvalidOperation`."""
    if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
        raise InvalidOperation(f"'{clip(name)}' is no name of a header")
    if any((ord(character) < 32 and character != "\t") or ord(character) == 127 for character in value):
        raise InvalidOperation(f"the value of the header {clip(name)} has characters that no header can have")
    if name.lower() in _FRAMING:
        raise InvalidOperation(f"the header {clip(name)} is not the app's to set")
    return name.lower(), value


def _joined(url: str, path: str) -> str:
    """`path`, which may have a query, below `url`. Raises `InvalidOperation` for one that leads out of it."""
    if not path:
        return url
    inside, question, query = path.partition("?")
    if not re.fullmatch(r"[!-~]+", path) or "#" in path or "\\" in path:
        raise InvalidOperation("the metadata path has characters that must be written with %")
    if {".", ".."} & {unquote(segment) for segment in re.split(r"/|%2f|%5c", inside, flags=re.IGNORECASE)}:
        raise InvalidOperation("the metadata path has a segment '.' or '..', which could lead out of the url")
    base, has_query, base_query = url.partition("?")
    joined = base.rstrip("/") + "/" + inside.lstrip("/")
    queries = [text for text, given in ((base_query, has_query), (query, question)) if given]
    return joined + (f"?{'&'.join(queries)}" if queries else "")


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return (
            parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and parts.port != 0
            and "@" not in parts.netloc
            and re.fullmatch(r"[!-~]+", text) is not None
        )
    except ValueError:
        return False


def _origin(url: str) -> tuple[str, str | None, int]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)


def _checked_url(settings: Settings) -> str:
    url: str = settings["url"]
    if not _is_url(url) or "#" in url:
        raise settings.fault("url", "must be http(s)://host[:port][/path][?query], without user and fragment")
    try:
        check_address((urlsplit(url).hostname or "").strip("[]"))
    except Forbidden as error:
        raise settings.fault("url", str(error)) from None
    except ValueError:
        pass  # a name, of which more is known when it is called
    return url


def _tls(settings: Settings) -> ssl.SSLContext:
    """Raises `ConfigurationError`."""
    authorities = _pem(settings, "MTLSRootCA") if settings["MTLSRootCA"] else None
    context = client_tls.trusting(settings, "MTLSRootCA", authorities)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if settings["MTLSRenegotiation"] == "RenegotiateNever":
        context.options |= ssl.OP_NO_RENEGOTIATION
    if bool(settings["MTLSClientCert"]) != bool(settings["MTLSClientKey"]):
        raise settings.fault("MTLSClientCert", "MTLSClientCert and MTLSClientKey need each other")
    if settings["MTLSClientCert"]:
        certificate, key = _pem(settings, "MTLSClientCert"), _pem(settings, "MTLSClientKey")
        client_tls.show(context, settings, "MTLSClientCert", certificate, key)
    return context


def _pem(settings: Settings, name: str) -> str:
    """The setting itself, or what is in the file that it names (Dapr)."""
    text: str = settings[name]
    if "-----BEGIN " in text:
        return text
    try:
        return Path(text).read_text("ascii")
    except (OSError, ValueError):
        raise settings.fault(name, "it is neither PEM nor the name of a file with it") from None


def _open(setup: Setup) -> HttpBinding:
    return HttpBinding(setup.settings)


SPEC = ComponentSpec(
    type="bindings.http",
    title="HTTP",
    about=(
        "Output: requests to one HTTP server. The operation is the method in lower case; `create` is POST. The "
        "metadata `path` is put after the `url`, and cannot lead out of it; metadata that begins with a capital "
        "letter becomes a header. The answer's headers, `statusCode` and `status` come back as metadata, also with the "
        "error that a status other than 2xx is. Link-local addresses and those of the clouds' metadata services are "
        "refused, also behind names and redirects; a redirect to another server does not take headers of the app's or "
        "the token there. An answer that is too long is an error, where Dapr cuts it off."
    ),
    open=_open,
    fields=(
        Field("url", "The URL of the server, as `https://api.example.com/v1`.", required=True),
        Field(
            "responseTimeout", "Longest time for an answer, all of it.", Kind.DURATION, RESPONSE_TIMEOUT, minimum=0.001
        ),
        Field("maxResponseBodySize", "Longest body of an answer; 0 is without a limit.", Kind.SIZE, 100 << 20),
        Field("MTLSRootCA", "The authorities that the server's certificate must be of: PEM, or the name of a file."),
        Field("MTLSClientCert", "The certificate to show to the server: PEM, or the name of a file."),
        Field("MTLSClientKey", "The key of MTLSClientCert: PEM, or the name of a file.", secret=True),
        Field(
            "MTLSRenegotiation",
            "Whether the server may renegotiate TLS 1.2. `RenegotiateOnceAsClient` allows it as often as the server "
            "asks: the TLS library does not count.",
            Kind.CHOICE,
            "RenegotiateNever",
            choices=("RenegotiateNever", "RenegotiateOnceAsClient", "RenegotiateFreelyAsClient"),
        ),
        Field("securityToken", "A token for each request, in the header securityTokenHeader.", secret=True),
        Field("securityTokenHeader", "The header of the securityToken, as `X-Api-Key`."),
        Field(
            "errorIfNot2XX",
            "A status other than 2xx is an error; a request's metadata may say otherwise.",
            Kind.BOOL,
            True,
        ),
    ),
    needs="http",
    example="""\
apiVersion: dapr.io/v1alpha1
kind: Component
metadata:
  name: crm
spec:
  type: bindings.http
  version: v1
  metadata:
    - name: url
      value: https://crm.example.com/api
    - name: responseTimeout
      value: 5s
    - name: securityTokenHeader
      value: X-Api-Key
    - name: securityToken
      secretKeyRef:
        name: crm
        key: token
auth:
  secretStore: secrets
""",
)
