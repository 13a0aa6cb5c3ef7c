"""Which dead letters are meant: one filter for lists, purges and redrives."""

from __future__ import annotations

import msgspec

from mesh.codec import json as json_codec
from mesh.dead_letters.store import place
from mesh.delivery.letters import Letter, Reason
from mesh.errors import InvalidEvent
from mesh.ports import Mode, Topic
from mesh.ports.tables import Key
from mesh.spans import Stored

_WANTED = ("id", "source", "type", "partitionkey", "expirytime", "expiration")


class Filter(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """What a letter must be like; what is left out does not matter."""

    pubsubname: str | None = None
    topic: str | None = None
    """Of the subscription, as the app names it."""
    position: str | None = None
    """In the topic: with the two above it names one letter."""
    reason: Reason | None = None
    status: int | None = None
    """Of the app's last answer."""
    after: float | None = None
    before: float | None = None
    """It died at this moment or later; before this moment. Seconds since the epoch."""
    type: str | None = None
    source: str | None = None
    id: str | None = None
    """Of the event."""
    text: str | None = None
    """Somewhere in the stored event, its attributes, the last failure or the excerpt; in any letter case."""


class Row(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What is known of a letter without its event. Times in seconds since the epoch."""

    key: Key
    revision: int
    expires: float | None
    died: float
    subscription: Topic
    """What the group subscribes to, as it is on the broker."""
    topic: Topic
    """By which the message came."""
    reason: Reason
    text: str
    status: int | None
    attempts: int
    first_failure: float
    size: int
    """Bytes of the payload."""
    type: str
    source: str
    id: str
    """Of the event; empty where it is none."""
    redriven: str
    """The run that had sent the event again, before it died once more."""

    @property
    def order(self) -> tuple[float, Key]:
        return self.died, self.key


def texts(message: Stored) -> dict[str, str]:
    """Those attributes of an event by which letters and keys are told apart; none where there is no event.

    Raises `InvalidEvent` when the attributes of a stored record are none.
    """
    if message.mode is Mode.BINARY:
        found = message.attributes
        return {name: str(found[name]) for name in _WANTED if name in found}
    if message.mode is Mode.RAW or message.payload is None:
        return {}
    try:
        members = json_codec.members(message.payload)
    except InvalidEvent:
        return {}
    strings: dict[str, str] = {}
    for name in _WANTED:
        if name in members:
            try:
                strings[name] = msgspec.json.decode(members[name], type=str)
            except msgspec.DecodeError:
                continue
    return strings


def matches(wanted: Filter, row: Row, subscription: Topic) -> bool:
    """Whether a letter is meant, as far as can be told without its event: `text` is not looked for.

    `subscription` is that of the row as the app names it.
    """
    for asked, actual in (
        (wanted.pubsubname, subscription.pubsub),
        (wanted.topic, subscription.name),
        (None if wanted.position is None else place(wanted.position), row.key[-1]),
        (wanted.reason, row.reason),
        (wanted.status, row.status),
        (wanted.type, row.type),
        (wanted.source, row.source),
        (wanted.id, row.id),
    ):
        if asked is not None and asked != actual:
            return False
    if wanted.after is not None and row.died < wanted.after:
        return False
    return wanted.before is None or row.died < wanted.before


def contains(letter: Letter, text: str) -> bool:
    """Whether `text` is in what a person would see of the letter."""
    wanted = text.lower()
    message = letter.message
    shown = [*(f"{name}={value}" for name, value in message.attributes.items()), letter.text]
    if any(wanted in one.lower() for one in shown):
        return True
    sought = wanted.encode("utf-8", "replace")
    return any(sought in body.lower() for body in (message.payload or b"", letter.excerpt))
