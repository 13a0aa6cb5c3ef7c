"""What clients who pull ask for."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from mesh.codec.attributes import timestamp
from mesh.errors import MeshError, clip
from mesh.ports import NOW, OLDEST, Start

MAX_MESSAGES = 100
"""Messages of one answer, and tokens of one request."""
MAX_WAIT = 60.0
MAX_LOCK = 3600.0
"""Seconds; a delay of a release is no longer either."""
MAX_NAME = 64
"""Characters of the name of a group."""
MAX_REASON = 1024
"""Characters of the reason of a rejection."""


class InvalidRequest(MeshError):
    """A request that cannot be understood, or passes a limit."""


class Pull(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """Ask for events. Times in seconds."""

    group: str = ""
    max_messages: int = 1
    wait_seconds: float = 0.0
    lock_seconds: float = 60.0
    start: str | None = None
    """Where a group that is new begins: `now`, `oldest` or a time."""
    position: str | None = None
    """The same, as the position of an event."""

    @property
    def beginning(self) -> Start:
        """Raises `InvalidRequest`."""
        if self.position is not None:
            return Start(position=self.position)
        if self.start is None or self.start == "now":
            return NOW
        if self.start == "oldest":
            return OLDEST
        try:
            return Start(time=timestamp(self.start))
        except ValueError:
            rule = "must be now, oldest, or a time as RFC 3339 has it, such as 2026-05-04T12:30:00Z"
            raise InvalidRequest(f"start {rule} (got '{clip(self.start)}')") from None


class Tokens(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """Say what became of events: the body of `ack`."""

    lock_tokens: list[str]


class Release(Tokens, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    delay_seconds: float = 0.0
    """For which nobody gets the events."""


class Reject(Tokens, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    reason: str = ""
    """For the dead letter."""


class Renew(Tokens, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    seconds: float = 60.0
    """For which the locks hold from now on."""


T = TypeVar("T", bound=msgspec.Struct)


def parse_pull(body: bytes) -> Pull:
    """An empty body asks for one event. Raises `InvalidRequest`."""
    asked = _read(body or b"{}", Pull)
    if len(asked.group) > MAX_NAME or not (asked.group.isprintable() and asked.group.isascii()):
        raise InvalidRequest(f"group must be at most {MAX_NAME} printable ASCII characters (got '{clip(asked.group)}')")
    _within("maxMessages", asked.max_messages, 1, MAX_MESSAGES)
    _within("waitSeconds", asked.wait_seconds, 0, MAX_WAIT)
    _within("lockSeconds", asked.lock_seconds, 1, MAX_LOCK)
    if asked.start is not None and asked.position is not None:
        raise InvalidRequest("give start or position, not both")
    if asked.position is not None and not (0 < len(asked.position) <= MAX_REASON):
        raise InvalidRequest("position must be that of an event, as an answer or the journal tells it")
    _ = asked.beginning
    return asked


def parse_ack(body: bytes) -> Tokens:
    """Raises `InvalidRequest`, as all of these."""
    return _tokens(_read(body, Tokens))


def parse_release(body: bytes) -> Release:
    asked = _tokens(_read(body, Release))
    _within("delaySeconds", asked.delay_seconds, 0, MAX_LOCK)
    return asked


def parse_reject(body: bytes) -> Reject:
    asked = _tokens(_read(body, Reject))
    if len(asked.reason) > MAX_REASON:
        raise InvalidRequest(f"reason must be at most {MAX_REASON} characters")
    return asked


def parse_renew(body: bytes) -> Renew:
    asked = _tokens(_read(body, Renew))
    _within("seconds", asked.seconds, 1, MAX_LOCK)
    return asked


def _read(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"the body is no such request: {error}") from None


TokensT = TypeVar("TokensT", bound=Tokens)


def _tokens(asked: TokensT) -> TokensT:
    if not 1 <= len(asked.lock_tokens) <= MAX_MESSAGES:
        raise InvalidRequest(f"lockTokens must be 1 to {MAX_MESSAGES} tokens (got {len(asked.lock_tokens)})")
    return asked


def _within(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:  # also refuses what is not a number
        raise InvalidRequest(f"{name} must be from {least:g} to {most:g} (got {clip(value)})")
