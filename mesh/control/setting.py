"""What was set for a subscription, and holds for all replicas of the app and over restarts: a record in its table."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta

from mesh.errors import MeshError, clip
from mesh.ports.tables import Key

KIND = "subscription"

MAX_RATE = 1_000_000.0
MIN_RATE = 0.001
MAX_CONCURRENCY = 10_000
MAX_WAIT = 60.0
"""Seconds that a request to drain may wait."""


class InvalidAction(MeshError):
    """An action on a subscription that cannot be done, and why."""


class Name(NamedTuple):
    """Which subscription of the app."""

    pubsub: str
    topic: str
    """As the app names it."""
    group: str = ""

    @property
    def key(self) -> Key:
        return (KIND, *self) if self.group else (KIND, self.pubsub, self.topic)


def name_of(key: Key) -> Name | None:
    """The subscription that a record with this key is about."""
    return Name(*key[1:]) if len(key) in (3, 4) else None


class Setting(msgspec.Struct, frozen=True, omit_defaults=True):
    """The value of the record. Stored data: fields are only ever added."""

    paused: bool = False
    draining: bool = False
    """Paused by an order to drain: whoever looks wants to know when nothing is in hand any more."""
    rate: Annotated[float, Meta(ge=MIN_RATE, le=MAX_RATE)] | None = None
    """Events per second of each replica."""
    concurrency: Annotated[int, Meta(ge=1, le=MAX_CONCURRENCY)] | None = None
    """Events in hand at once, of each replica."""

    @property
    def stopped(self) -> bool:
        return self.paused or self.draining


NOTHING = Setting()

encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Setting).decode


def decode(value: bytes) -> Setting:
    """Raises `ValueError` for what is no setting: whoever may write to the broker can write anything."""
    try:
        return _decode(value)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


class Action(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """What a request asks for."""

    action: str
    group: str = ""
    rate: float | msgspec.UnsetType | None = msgspec.UNSET
    """`None` takes the limit away."""
    concurrency: int | msgspec.UnsetType | None = msgspec.UNSET
    wait_seconds: float = 0.0
    """How long to wait until nothing is in hand any more."""


ACTIONS = ("pause", "resume", "drain", "limit")


def parse(body: bytes) -> Action:
    """Raises `InvalidAction`, with what is wrong."""
    try:
        asked = msgspec.json.decode(body, type=Action)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidAction(f'the body must be an object such as {{"action": "pause"}}: {error}') from None
    if asked.action not in ACTIONS:
        raise InvalidAction(f"there is no action '{clip(asked.action)}' (there are: {', '.join(ACTIONS)})")
    if asked.action == "limit":
        if asked.rate is msgspec.UNSET and asked.concurrency is msgspec.UNSET:
            raise InvalidAction("limit needs a rate (events per second), a concurrency, or both; null takes one away")
    elif asked.rate is not msgspec.UNSET or asked.concurrency is not msgspec.UNSET:
        raise InvalidAction(f"rate and concurrency belong to the action limit, not to {asked.action}")
    if isinstance(asked.rate, float | int) and not MIN_RATE <= asked.rate <= MAX_RATE:
        raise InvalidAction(
            f"rate must be from {MIN_RATE:g} to {MAX_RATE:g} events per second (got {asked.rate:g}); pause takes none"
        )
    if isinstance(asked.concurrency, int) and not 1 <= asked.concurrency <= MAX_CONCURRENCY:
        raise InvalidAction(
            f"concurrency must be from 1 to {MAX_CONCURRENCY} (got {clip(asked.concurrency)}); pause takes none"
        )
    if asked.wait_seconds and asked.action != "drain":
        raise InvalidAction(f"waitSeconds belongs to the action drain, not to {asked.action}")
    if not 0 <= asked.wait_seconds <= MAX_WAIT:
        raise InvalidAction(f"waitSeconds must be from 0 to {MAX_WAIT:g} (got {asked.wait_seconds:g})")
    return asked


def changed(setting: Setting, asked: Action) -> Setting:
    """`setting`, once `asked` is done."""
    match asked.action:
        case "pause":
            return msgspec.structs.replace(setting, paused=True, draining=False)
        case "drain":
            return msgspec.structs.replace(setting, paused=False, draining=True)
        case "resume":
            return msgspec.structs.replace(setting, paused=False, draining=False)
    return Setting(
        setting.paused,
        setting.draining,
        setting.rate if asked.rate is msgspec.UNSET else asked.rate,
        setting.concurrency if asked.concurrency is msgspec.UNSET else asked.concurrency,
    )
