"""Reading JSON from the HTTP API of another system. The library is imported when a component is opened, not before."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from mesh.ports.stores import StoreError, StoreUnavailable

TIME_LIMIT = 10.0
"""Seconds for one answer, connecting included."""
MAX_ANSWER = 16 << 20
"""Bytes."""
CONNECTIONS = 8
MAX_TOKEN = 64 << 10
"""Bytes of a file with a token."""


class Answer(NamedTuple):
    status: int
    content: Any
    """`None` when it is no JSON."""


class JsonApi:
    """One server, asked under a token."""

    def __init__(
        self,
        system: str,
        url: str,
        headers: Callable[[], Mapping[str, str]],
        *,
        tls: ssl.SSLContext | None = None,
        server_name: str = "",
    ) -> None:
        """`system` is its name in errors; `url` is `http(s)://host[:port][/path]`, checked by `parse_url`. `headers`
        is called for each request, and may raise `StoreError`. `server_name` is what its certificate must be for,
        where that is not the host. Raises `ImportError`."""
        import httpcore

        parts = urlsplit(url)
        self._system = system
        self._url = (parts.scheme.encode(), (parts.hostname or "").encode(), parts.port)
        self._root = parts.path.rstrip("/")
        self._headers = headers
        self._extensions = {"sni_hostname": server_name} if server_name else {}
        self._library = httpcore
        self._pool = httpcore.AsyncConnectionPool(ssl_context=tls, max_connections=CONNECTIONS, keepalive_expiry=30.0)
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        self._host = f"{host}:{parts.port}" if parts.port else f"{host}"

    async def get(self, path: str, query: Mapping[str, str] = {}) -> Answer:
        """`path` is encoded, as by `encoded_path`. Raises `StoreUnavailable`, `StoreError`."""
        target = self._root + path + (f"?{urlencode(query)}" if query else "")
        url = self._library.URL(scheme=self._url[0], host=self._url[1], port=self._url[2], target=target.encode())
        headers = {"host": self._host, "accept": "application/json", **self._headers()}
        pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
        library = self._library
        try:
            async with (
                asyncio.timeout(TIME_LIMIT),
                self._pool.stream("GET", url, headers=pairs, extensions=self._extensions) as response,
            ):
                body = bytearray()
                async for piece in response.aiter_stream():
                    body += piece
                    if len(body) > MAX_ANSWER:
                        raise StoreError(f"{self._system}: the answer is longer than {MAX_ANSWER >> 20} MiB")
        except TimeoutError:
            raise StoreUnavailable(f"{self._system} did not answer within {TIME_LIMIT:g} s") from None
        except (library.NetworkError, library.TimeoutException, library.ProtocolError, OSError) as error:
            reason = str(error) or type(error).__name__
            raise StoreUnavailable(f"{self._system} cannot be reached: {reason}") from error
        try:
            return Answer(response.status, msgspec.json.decode(bytes(body)))
        except (msgspec.DecodeError, RecursionError):
            return Answer(response.status, None)

    async def close(self) -> None:
        await self._pool.aclose()


def parse_url(text: str) -> str:
    """Raises `ValueError` for what `JsonApi` cannot ask."""
    try:
        parts = urlsplit(text)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fits = False
    if not fits or not re.fullmatch(r"[!-~]+", text) or parts.username is not None or parts.query or parts.fragment:
        raise ValueError("must be http(s)://host[:port][/path], without user, query and fragment")
    return text


def encoded_path(*names: str) -> str:
    """One path, each name of which may have several segments with slashes between them.

    Raises `StoreError` for a name with an empty segment, `.` or `..`: a server may resolve them, and so find something
    else than what the name says and the secret scopes were asked about.
    """
    segments = [segment for name in names for segment in name.split("/")]
    if not {"", ".", ".."}.isdisjoint(segments) or any(ord(c) < 32 or ord(c) == 127 for name in names for c in name):
        raise StoreError("a name cannot have empty segments, '.', '..' or control characters")
    return "".join(f"/{quote(segment, safe='')}" for segment in segments)


def checked_token(text: str) -> str:
    """Raises `ValueError`, without showing it, for what cannot stand in a header."""
    token = text.strip()
    if not re.fullmatch(r"[!-~]+", token):
        raise ValueError("the token is empty, or has characters that no token has")
    return token


def read_token(path: Path) -> str:
    """The token in a file that somebody else keeps fresh. Raises `StoreError`."""
    try:
        with path.open("rb") as file:
            return checked_token(file.read(MAX_TOKEN).decode("ascii", "replace"))
    except OSError as error:
        raise StoreUnavailable(f"the token in {path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise StoreError(f"{path}: {error}") from None
