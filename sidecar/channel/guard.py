"""What may be written to the app: the one place that checks request lines and headers.

A header from outside can neither end its line, nor frame the request anew, nor speak in the sidecar's name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from mesh.errors import MeshError, clip
from mesh.ports import HeaderLines

Text = str | bytes
"""`str` is sent as UTF-8, which is what Dapr sends; `bytes` are sent as they are."""

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch  # RFC 9110, 5.6.2
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*").fullmatch  # RFC 9110, 5.5
_TARGET = re.compile(rb"/[!-\"$-~]*").fullmatch  # RFC 9112, 3.2.1, and what else apps get from browsers

_OF_THE_CONNECTION = frozenset(
    b"host content-length transfer-encoding connection keep-alive proxy-connection te trailer upgrade "
    b"http2-settings expect proxy-authorization proxy-authenticate".split()
)
_TOKEN_HEADER = b"dapr-api-token"


class UnsafeRequest(MeshError, ValueError):
    """A method, path or header cannot be written to the app as it is. Nothing was sent."""


def request_line(method: str, path: str) -> bytes:
    """The request line, without its CR LF. `path` is the target in origin form, percent-encoded, with its
    query. Raises `UnsafeRequest`."""
    if not _TOKEN(verb := _encoded(method)) or verb == b"CONNECT":
        raise UnsafeRequest(f"'{clip(method)}' is no method that an app can be called with")
    if not _TARGET(target := _encoded(path)):
        raise UnsafeRequest(
            f"the path '{clip(path)}' cannot be sent: it must begin with '/' and hold only visible ASCII characters "
            "other than '#'; percent-encode the rest"
        )
    return b"%b %b HTTP/1.1" % (verb, target)


def header_lines(headers: Iterable[tuple[Text, Text]], *, own: bool = False) -> HeaderLines:
    """Encode headers.

    Left out are the headers of the connection (`host`, `content-length`, `transfer-encoding`, `connection` and
    their like), the app token, which the channel adds, and all `dapr-*` unless `own` says that the sidecar itself
    speaks. `_` counts as `-` here: CGI, and so WSGI, makes them one.

    Raises `UnsafeRequest` for a name that is no token and for a control character in a value.
    """
    lines = []
    for name, value in headers:
        start = _line_start(name, own)
        if start is None:
            continue
        encoded = value if isinstance(value, bytes) else _encoded(value)
        if not _VALUE(encoded):
            # The value stays out of the message: it may be a credential.
            raise UnsafeRequest(f"the header '{clip(name)}' cannot be sent: its value holds a control character")
        lines.append(b"%b%b\r\n" % (start, encoded))
    return HeaderLines(b"".join(lines))


@lru_cache(maxsize=1024)
def _line_start(name: Text, own: bool) -> bytes | None:
    """`name: `, or `None` when this header is not the caller's to set."""
    encoded = name if isinstance(name, bytes) else _encoded(name)
    if not _TOKEN(encoded):
        raise UnsafeRequest(f"'{clip(name)}' is no header name (RFC 9110, 5.6.2)")
    folded = encoded.lower().replace(b"_", b"-")
    if folded in _OF_THE_CONNECTION or folded == _TOKEN_HEADER:
        return None
    if folded.startswith(b"dapr-") and not own:
        return None
    return encoded + b": "


def token_line(token: str) -> bytes:
    """The header line of the app token (Dapr: `APP_API_TOKEN`). Raises `UnsafeRequest`, without showing it."""
    encoded = _encoded(token)
    if not _VALUE(encoded):
        raise UnsafeRequest("the app token cannot be sent in a header: it holds a control character")
    return b"%b: %b\r\n" % (_TOKEN_HEADER, encoded)


def _encoded(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as exc:
        raise UnsafeRequest(f"{text[:20]!a} holds half a surrogate pair and cannot be encoded") from exc
