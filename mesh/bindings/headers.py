"""Metadata of bindings as HTTP headers: external systems choose names and values, and no header may break."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import quote

_is_token = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch  # RFC 9110, 5.6.2
_UNSAFE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


def safe(metadata: Mapping[str, str]) -> list[tuple[str, str]]:
    """Metadata as headers that can be sent. A name that none can have is left out; control characters in a value are
    percent-encoded."""
    return [(name, printable(value)) for name, value in metadata.items() if _is_token(name)]


def printable(text: str) -> str:
    """`text` without control characters and lone surrogates: those are percent-encoded."""
    if text.isprintable():
        return text
    return _UNSAFE.sub(lambda match: quote(match[0], safe="", errors="surrogatepass"), text)
