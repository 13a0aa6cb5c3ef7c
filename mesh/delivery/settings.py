"""What can be said of the delivery plan in the metadata of a pub/sub component and of a subscription: the same names
in both, Dapr's and its components' where they have one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from mesh.components import Field, Kind, Settings
from mesh.errors import ConfigurationError, clip
from mesh.ports import Order

MAX_PAUSE = 30 * 24 * 3600.0
"""Seconds. Longer pauses outlive what they wait for."""
MAX_ATTEMPTS = 1_000_000
MAX_CONCURRENCY = 10_000
UNLIMITED = -1

FIELDS = (
    Field(
        "maxAttempts",
        "How often an event is delivered at most, the first time included; `-1` is until it succeeds. Default: 1 with "
        "a dead letter topic, else `-1`.",
        Kind.INTEGER,
        minimum=UNLIMITED,
        maximum=MAX_ATTEMPTS,
    ),
    Field(
        "backOffPolicy",
        "How the pauses between attempts go on: `exponential` or `constant`. Default: exponential.",
        Kind.CHOICE,
        choices=("constant", "exponential"),
    ),
    Field(
        "backOffDuration",
        "The pause of a constant policy. Default: 5s.",
        Kind.DURATION,
        minimum=0,
        maximum=MAX_PAUSE,
    ),
    Field(
        "backOffInitialInterval",
        "The first pause of an exponential policy. Default: 500ms.",
        Kind.DURATION,
        minimum=0.001,
        maximum=MAX_PAUSE,
    ),
    Field(
        "backOffMultiplier",
        "What each pause of an exponential policy is longer by than the one before. Default: 2.",
        Kind.NUMBER,
        minimum=1,
        maximum=100,
    ),
    Field(
        "backOffMaxInterval",
        "Where the pauses of an exponential policy stop growing. Default: 60s.",
        Kind.DURATION,
        minimum=0.001,
        maximum=MAX_PAUSE,
    ),
    Field(
        "backOffRandomizationFactor",
        "The part of itself that each pause is longer or shorter by, at random. Default: 0.2, of a constant policy 0.",
        Kind.NUMBER,
        minimum=0,
        maximum=1,
    ),
    Field(
        "handlerTimeout",
        "What the app may take for one event, as one attempt. Default: 10m.",
        Kind.DURATION,
        minimum=0.001,
        maximum=MAX_PAUSE,
    ),
    Field(
        "retryAfterMax",
        "The longest `Retry-After` of an app that is obeyed; `0` ignores them. Default: 5m.",
        Kind.DURATION,
        minimum=0,
        maximum=MAX_PAUSE,
    ),
    Field(
        "order",
        "Which events are handled one after another: `key`, `none` or `strict`. Default: `key` where the broker can.",
        Kind.CHOICE,
        choices=tuple(order.value for order in Order),
    ),
    Field(
        "concurrency",
        "How many events of a subscription each replica has in hand at once. Default: 64.",
        Kind.INTEGER,
        minimum=1,
        maximum=MAX_CONCURRENCY,
    ),
    Field(
        "broadcast",
        "Whether every replica gets every event, instead of one of them. Default: false.",
        Kind.BOOL,
    ),
    Field(
        "deadLetterTopic",
        "The topic of the same component that gets what is given up.",
    ),
)
NAMES = {field.name.lower(): field for field in FIELDS}
EXPONENTIAL_ONLY = ("backOffInitialInterval", "backOffMultiplier", "backOffMaxInterval")


class Stated(NamedTuple):
    """One setting that somebody has written down."""

    value: Any
    origin: str
    """Where, for people: `file:line: metadata.<name>`."""


Statements = Mapping[str, Stated]
"""By the names of `FIELDS`."""


def of_component(settings: Settings) -> Statements:
    """What the manifest of a component says of deliveries. Raises `ConfigurationError`, with the place."""
    stated = {
        field.name: Stated(settings[field.name], settings.place(field.name))
        for field in FIELDS
        if settings.given(field.name)
    }
    check(stated)
    return stated


def of_subscription(metadata: Mapping[str, str], where: str) -> Statements:
    """What the metadata of a subscription says, which begins with `where` in errors. Raises `ConfigurationError`."""
    stated: dict[str, Stated] = {}
    for key, text in metadata.items():
        field = NAMES.get(key.lower())
        if field is None or not text:
            continue
        origin = f"{where}: metadata.{clip(key)}"
        if key != field.name:
            # Dapr knows the keys of a subscription in one spelling only, and so do those who read this later.
            raise ConfigurationError(f"{origin}: write it '{field.name}'")
        try:
            stated[field.name] = Stated(field.read(text), origin)
        except ValueError as error:
            raise ConfigurationError(f"{origin}: {error}") from None
    check(stated)
    return stated


def check(stated: Statements) -> None:
    """Raises `ConfigurationError` for settings that contradict each other."""
    attempts = stated.get("maxAttempts")
    if attempts is not None and attempts.value == 0:
        raise ConfigurationError(f"{attempts.origin}: must be -1 or at least 1 (got 0)")
    policy, duration = stated.get("backOffPolicy"), stated.get("backOffDuration")
    constant = policy.value == "constant" if policy is not None else duration is not None
    if duration is not None and not constant:
        raise ConfigurationError(f"{duration.origin}: an exponential policy has none: it has backOffInitialInterval")
    for name in EXPONENTIAL_ONLY:
        if constant and name in stated:
            rule = "contradicts backOffDuration" if policy is None else "a constant policy has none"
            raise ConfigurationError(f"{stated[name].origin}: {rule}; a constant pause is backOffDuration alone")
    first, longest = stated.get("backOffInitialInterval"), stated.get("backOffMaxInterval")
    if first is not None and longest is not None and first.value > longest.value:
        raise ConfigurationError(
            f"{longest.origin}: must not be less than backOffInitialInterval (got {longest.value:g} s and "
            f"{first.value:g} s)"
        )
    if duration is not None and not duration.value and (attempts is None or attempts.value == UNLIMITED):
        raise ConfigurationError(f"{duration.origin}: must be more than 0 when maxAttempts sets no limit")
    order, concurrency = stated.get("order"), stated.get("concurrency")
    if order is not None and concurrency is not None and order.value == "strict" and concurrency.value != 1:
        raise ConfigurationError(f"{concurrency.origin}: contradicts order strict, which has one event in hand at once")
