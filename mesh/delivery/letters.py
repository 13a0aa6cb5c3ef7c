"""Dead letters: a message that is not delivered any more, with what is known of why."""

from __future__ import annotations

import base64
from collections.abc import Callable
from enum import Enum
from typing import Protocol

import msgspec

from mesh.codec import json as json_codec
from mesh.envelope import LETTER_ATTRIBUTE
from mesh.errors import MeshError
from mesh.event import Attributes
from mesh.ids import utc_time
from mesh.ports import Group, Message, Mode, Record, Topic

KNATIVE = ("knativeerrordest", "knativeerrorcode", "knativeerrordata")
OWN = (
    LETTER_ATTRIBUTE,
    "meshwireattempts",
    "meshwirefirstfailure",
    "meshwirelastfailure",
    "meshwiresubscription",
)
NAMES = frozenset((*KNATIVE, *OWN))
"""The extension attributes that a letter has and its event has not."""


class Reason(Enum):
    """Why a message is delivered no more."""

    ATTEMPTS = "attempts"
    """Its attempts are exhausted."""
    REFUSED = "refused"
    """The app answered that trying again is of no use: 410, or a status that the retry policy does not match."""
    DROPPED = "dropped"
    """The app answered `DROP` or 404."""
    EXPIRED = "expired"
    UNROUTED = "unrouted"
    """No routing rule takes it, and there is no default route."""
    MALFORMED = "malformed"
    """It is no event, or one that cannot be routed or sent."""
    OVERSIZED = "oversized"
    """The broker never had it: an item of an input binding, larger than it takes."""


class Letter(msgspec.Struct, frozen=True, kw_only=True):
    """One message that one group gave up. Group and position identify it. Times in seconds since the epoch."""

    group: Group
    topic: Topic
    """The one it came by; that of the group unless the group's has wildcards."""
    position: str
    stored: float
    """When the broker stored the message."""
    message: Message
    """As it was. Its `dedupe_id` is that of this letter."""
    reason: Reason
    text: str
    """The last failure, in words."""
    status: int | None = None
    """Of the app's last answer; `None` when there was none."""
    excerpt: bytes = b""
    """How the body of that answer begins."""
    destination: str = ""
    """The path of the app that it was delivered to last; empty when it never was."""
    attempts: int = 0
    """Made, the failed ones of other replicas included; 0 when the app was never called."""
    first_failure: float
    """As far as the replica that gave it up knows."""
    last_failure: float


class DeadLetters(Protocol):
    """Where letters are kept until somebody looks after them."""

    async def keep(self, letter: Letter) -> None:
        """Returns when the letter is stored. One of the same group and position takes the place of the earlier.

        Raises `BrokerError`.
        """
        ...


def letter_id(group: Group, position: str) -> str:
    """The same whenever, and by whichever replica, this failure of this group is written down."""
    return "\0".join((*group.topic, group.app_id, *([group.name] if group.name else []), position))


def dead_letter(record: Record, group: Group) -> Message:
    """The message of a record: what cannot be read is kept too.

    Its `dedupe_id` is that of this failure of this group, so that a letter that is written again after a crash is
    stored once.
    """
    mode = record.mode
    try:
        attributes = record.attributes if mode is Mode.BINARY else {}
    except MeshError:
        mode, attributes = Mode.RAW, {}
    content_type = record.content_type if mode is Mode.RAW else None
    return Message(
        mode=mode,
        payload=record.payload,
        attributes=attributes,
        content_type=content_type if content_type is None or content_type.isprintable() else None,
        key=record.key,
        dedupe_id=letter_id(group, record.position),
        # Whoever may write to the broker chooses headers, and one that no log stores must not hold up the message.
        headers={name: text for name, text in record.headers.items() if f"{name}{text}".isprintable()},
    )


def extension_attributes(letter: Letter) -> Attributes:
    """What the letter says as attributes of its event: Knative's (delivery spec, "Dead letters") and ours."""
    group = letter.group
    attributes: Attributes = {
        "knativeerrordest": f"meshwire://{group.app_id}{letter.destination}",
        "knativeerrorcode": letter.status or 500,
        LETTER_ATTRIBUTE: letter.reason.value,
        "meshwireattempts": letter.attempts,
        "meshwirefirstfailure": utc_time(letter.first_failure),
        "meshwirelastfailure": utc_time(letter.last_failure),
        "meshwiresubscription": "/".join((group.app_id, *group.topic, *([group.name] if group.name else []))),
    }
    if letter.excerpt:
        attributes["knativeerrordata"] = base64.b64encode(letter.excerpt).decode()
    return attributes


def marked(letter: Letter) -> Message:
    """The message for a dead letter topic: the event as it was and the attributes of the letter. What is no event has
    no attributes, and stays as it is."""
    return _with_attributes(letter.message, lambda: extension_attributes(letter))


def strip(message: Message) -> Message:
    """Without the attributes of a letter: the event as its publisher made it."""
    return _with_attributes(message, dict)


def _with_attributes(message: Message, added: Callable[[], Attributes]) -> Message:
    if message.mode is Mode.BINARY:
        kept = {name: value for name, value in message.attributes.items() if name not in NAMES}
        return msgspec.structs.replace(message, attributes=kept | added())
    if message.mode is Mode.STRUCTURED and message.payload is not None:
        try:
            return msgspec.structs.replace(message, payload=_spliced(message.payload, added()))
        except MeshError:  # it is no event
            return message
    return message


def _spliced(body: bytes, added: Attributes) -> bytes:
    """The bytes of an event as they are with members put in at the end, unless letters' were among its own.

    Raises `InvalidEvent` when it is no JSON object.
    """
    members = json_codec.members(body)
    if not NAMES.isdisjoint(members):
        kept = {name: raw for name, raw in members.items() if name not in NAMES}
        body, members = json_codec.join_members(kept), kept
    if not added:
        return body
    end = body.rstrip()[:-1]
    return end + (b"," if members else b"") + msgspec.json.encode(added)[1:]
