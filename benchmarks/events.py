"""The event that every benchmark sends: 1 KiB of JSON with six attributes."""

from __future__ import annotations

import json

SIZE = 1024
"""Bytes of the event's data."""
TOPIC = "bench"

NUMBER = b"<---number--->"
"""Stands in a template for a number that no other event has, and is as long as one."""
MOMENT = b"<----moment----->"
"""Stands in a template for the moment, in nanoseconds of the monotonic clock, at which the event was to leave."""

_NUMBER_FORMAT = b"%%(number)0%dd" % len(NUMBER)
_MOMENT_FORMAT = b"%%(moment)0%dd" % len(MOMENT)


def _data() -> bytes:
    order = {"order": NUMBER.decode(), "sent": MOMENT.decode(), "note": ""}
    order["note"] = "x" * (SIZE - len(_json(order)))
    return _json(order)


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


DATA = _data()

ATTRIBUTES = {
    "ce-specversion": "1.0",
    "ce-id": f"bench-{NUMBER.decode()}",
    "ce-source": "/meshwire/benchmarks",
    "ce-type": "com.example.order.placed",
    "ce-time": "2026-11-22T12:00:00.000000Z",
}
STORED_HEADERS = ATTRIBUTES | {"ce-datacontenttype": "application/json"}
"""The event's six headers on NATS."""
HTTP_HEADERS = ATTRIBUTES | {"ce-subject": "orders/1", "Content-Type": "application/json"}
"""Those of a publish in binary mode: six of `ce-`, and the content type, which is an attribute too."""
PLAIN_HEADERS = {"Content-Type": "application/json"}
"""Those of a publish of a payload that is no event; the sidecar makes one of it."""


def request(path: str, headers: dict[str, str], body: bytes = DATA) -> bytes:
    """A template of an HTTP/1.1 request; see `Template`."""
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", *(f"{name}: {value}" for name, value in headers.items())]
    lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Template:
    """Bytes with places for a number and a moment. Every rendering has the same length."""

    def __init__(self, template: bytes) -> None:
        escaped = template.replace(b"%", b"%%")
        self._format = escaped.replace(NUMBER, _NUMBER_FORMAT).replace(MOMENT, _MOMENT_FORMAT)

    def render(self, number: int, moment: int) -> bytes:
        return self._format % {b"number": number, b"moment": moment}


PROBE = Template(DATA).render(0, 0)
"""Data that tries whether events come through, and is never measured."""

_SENT = b'"sent":"'
_ORDER = b'"order":"'


def moment(body: bytes) -> int:
    """The moment that `body` was rendered with, wherever in it the data stands. Raises `ValueError` without one."""
    start = body.index(_SENT) + len(_SENT)
    return int(body[start : start + len(MOMENT)])


def number(body: bytes) -> bytes | None:
    """The digits of the number that `body` was rendered with; `None` when it is no event of ours.

    A probe's are all zero.
    """
    start = body.find(_ORDER) + len(_ORDER)
    return body[start : start + len(NUMBER)] if start >= len(_ORDER) else None
