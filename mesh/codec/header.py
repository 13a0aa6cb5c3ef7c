"""Attribute values as header values (CloudEvents HTTP binding 3.1.3.2; the NATS binding uses the same coding)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import unquote_to_bytes

from mesh.errors import InvalidEvent
from mesh.event import Attributes, AttributeValue

_needs_coding = re.compile(r"[^!#$&-~]").search
_bad_escape = re.compile(r"%(?![0-9A-Fa-f]{2})").search
_quoted_string = re.compile(r'"((?:[^"\\]|\\.)*+)"', re.DOTALL).fullmatch
_quoted_pair = re.compile(r"\\(.)", re.DOTALL)

_CODED = [chr(byte) if 0x21 <= byte <= 0x7E and byte not in b'"%' else f"%{byte:02X}" for byte in range(256)]


def encode(value: AttributeValue) -> str:
    """The canonical string of `value`, percent-encoded where a header needs it: space, `"`, `%`, and whatever is not
    printable ASCII. `value` obeys `attributes.check`.
    """
    if isinstance(value, str):
        text = value
    elif isinstance(value, bool):
        return "true" if value else "false"
    else:
        return str(value)
    return "".join([_CODED[byte] for byte in text.encode()]) if _needs_coding(text) else text


def encode_all(attributes: Attributes) -> dict[str, str]:
    """`encode` for each value. Most values need no coding, and it is cheaper to find that out for all together."""
    try:
        joined = "".join(attributes.values())  # type: ignore[arg-type]
    except TypeError:  # an integer or a boolean
        return {name: encode(value) for name, value in attributes.items()}
    if joined.isascii() and joined.isprintable() and not (" " in joined or '"' in joined or "%" in joined):
        return attributes  # type: ignore[return-value]
    return {name: encode(value) for name, value in attributes.items()}


def decode(raw: bytes, name: str) -> str:
    """The text of a header value: quotes removed, then percent-decoded once, then strictly UTF-8. The rules for
    attribute values are not applied yet. Raises `InvalidEvent` naming `name`.
    """
    if not raw.isascii():
        raise InvalidEvent(name, "a header value must be ASCII; percent-encode its UTF-8 bytes", raw)
    text = raw.decode()
    if text[:1] == '"':
        quoted = _quoted_string(text)
        if quoted is None:
            raise InvalidEvent(name, "the value opens a quoted string and does not properly end it", text)
        text = _quoted_pair.sub(r"\1", quoted[1])
    if "%" not in text:
        return text
    if _bad_escape(text):
        raise InvalidEvent(name, "a '%' must be followed by two hexadecimal digits", text)
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        raise InvalidEvent(name, "the percent-encoded bytes are not UTF-8", text) from None


def decode_all(values: Mapping[str, bytes]) -> Attributes:
    """`decode` for each value, by the name that goes with it. Most values need no decoding, and then it is much
    cheaper to find that out, and to decode, for all of them together.
    """
    joined = b"\0".join(values.values())
    if joined.isascii() and b"%" not in joined and b'"' not in joined:
        texts = joined.decode().split("\0")
        if len(texts) == len(values):  # else a value contains NUL
            return dict(zip(values, texts, strict=True))
    return {name: decode(value, name) for name, value in values.items()}


def decode_texts(values: Mapping[str, str]) -> Attributes:
    """As `decode_all`, for values that are text already."""
    joined = "".join(values.values())
    if joined.isascii() and "%" not in joined and '"' not in joined:
        return dict(values)
    return {name: decode(value.encode(), name) for name, value in values.items()}
