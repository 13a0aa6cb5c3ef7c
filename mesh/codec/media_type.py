"""Media types as `datacontenttype` and `Content-Type` carry them (RFC 2045 5.1, RFC 9110 8.3.1)."""

from __future__ import annotations

import re

# Possessive quantifiers throughout: callers choose the text, and no text may make the match backtrack.
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"  # noqa: S105
_QUOTED = r'"(?:[ !#-\[\]-~]|\\[ -~])*+"'
_PARAMETER = rf"[ \t]*+;[ \t]*+(?:({_TOKEN})=({_TOKEN}|{_QUOTED}))?+"

_media_type = re.compile(rf"{_TOKEN}/{_TOKEN}(?:{_PARAMETER})*+[ \t]*+").fullmatch
_parameters = re.compile(_PARAMETER).finditer


def is_media_type(text: str) -> bool:
    """Whether `text` is a media type, parameters included. ASCII only, so that it can always be an HTTP header."""
    return text == "application/json" or _media_type(text) is not None


def essence(content_type: str) -> str:
    """`type/subtype` in lower case, without parameters."""
    return content_type.partition(";")[0].strip().lower()


def charset(content_type: str) -> str | None:
    """The `charset` parameter in lower case, unquoted; `None` when there is none. The first one counts."""
    for parameter in _parameters(content_type, content_type.find(";") if ";" in content_type else len(content_type)):
        name, value = parameter.groups()
        if name is not None and name.lower() == "charset":
            return re.sub(r"\\(.)", r"\1", value[1:-1]).lower() if value[0] == '"' else value.lower()
    return None


def is_json(content_type: str | None) -> bool:
    """Whether the subtype is `json` or ends in `+json`; any top-level type, parameters ignored (CloudEvents JSON
    format 3.1). `None` is not JSON: only the JSON format lets a missing type mean that, and it asks for itself.
    """
    if content_type is None:
        return False
    if content_type == "application/json":
        return True
    subtype = essence(content_type).partition("/")[2]
    return subtype == "json" or subtype.endswith("+json")


def is_text(content_type: str) -> bool:
    """Whether the data is text by its type alone: `text/*` and XML."""
    kind = essence(content_type)
    return kind.startswith("text/") or kind == "application/xml" or kind.endswith("+xml")
