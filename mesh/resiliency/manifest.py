"""Resiliency manifests, read from YAML.

Stricter than Dapr: an unknown field, a field without effect where it stands, and a value that cannot be meant are
errors with file and line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

from mesh.errors import clip
from mesh.quantities import duration
from mesh.resiliency.breaker import BreakerSettings
from mesh.resiliency.retry import GRPC_CODES, HTTP_STATUSES, Codes, Retry, parse_codes
from mesh.resiliency.trip import parse_trip

if TYPE_CHECKING:
    from mesh.documents import Fields

KINDS = ("timeouts", "retries", "circuitBreakers")
ACTOR_BREAKERS = 5000
"""As `APP_BREAKERS`, for a type of actors."""
APP_BREAKERS = 100
"""Breakers that are remembered for an app, one per method (Dapr: `circuitBreakerCacheSize`)."""
MAX_BREAKERS = 100_000
MAX_COUNT = (1 << 31) - 1

V = TypeVar("V")


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """Where a target names a policy."""

    name: str = ""
    """Empty is none."""
    origin: str = ""
    """`file:line: field`, for an error about the name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """Which policies a target names."""

    timeout: Reference = Reference()
    retry: Reference = Reference()
    circuit_breaker: Reference = Reference()
    breakers: int = APP_BREAKERS
    """Apps and actors only."""
    breaker_of_each: bool = False
    """Actors only: each has a breaker of its own; else one serves the type."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ComponentTarget:
    inbound: Target = Target()
    """Component to app: deliveries."""
    outbound: Target = Target()
    """App to component."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ResiliencyManifest:
    """One manifest. Names refer to policies of any manifest; `mesh.resiliency.targets` resolves them."""

    name: str = ""
    timeouts: Mapping[str, float] = field(default_factory=dict)
    """Seconds; 0 is no limit."""
    retries: Mapping[str, Retry] = field(default_factory=dict)
    breakers: Mapping[str, BreakerSettings] = field(default_factory=dict)
    apps: Mapping[str, Target] = field(default_factory=dict)
    """By app id, name of an HTTPEndpoint, or URL."""
    actors: Mapping[str, Target] = field(default_factory=dict)
    """By type."""
    components: Mapping[str, ComponentTarget] = field(default_factory=dict)
    origins: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """`file:line: field` of each policy, by kind (as in `retries`) and name."""
    origin: str = ""
    """`file:line`."""


def read_manifest(spec: Fields, name: str, origin: str) -> ResiliencyManifest:
    """Raises `ConfigurationError`."""
    spec = spec.closed("policies", "targets")
    policies = spec.fields("policies").closed(*KINDS)
    timeouts, retries, breakers = (policies.fields(kind) for kind in KINDS)
    targets = spec.fields("targets").closed("apps", "actors", "components")
    return ResiliencyManifest(
        name=name,
        timeouts={key: _duration(timeouts, key) for key in timeouts},
        retries=_members(retries, _retry),
        breakers=_members(breakers, _breaker),
        apps=_members(targets.fields("apps"), _app),
        actors=_members(targets.fields("actors"), _actor),
        components=_members(targets.fields("components"), _component),
        origins={
            (kind, name): f"{group.at(name)}: {group.named(name)}"
            for kind, group in zip(KINDS, (timeouts, retries, breakers), strict=True)
            for name in group
        },
        origin=origin,
    )


def _members(fields: Fields, read: Callable[[Fields], V]) -> dict[str, V]:
    return {key: read(fields.fields(key)) for key in fields}


def _duration(fields: Fields, key: str, default: float = 0.0) -> float:
    """Seconds. A bare integer counts milliseconds (Dapr: all durations of this manifest)."""
    text = fields.text(key)
    try:
        seconds = duration(text, bare_unit=0.001) if text else default
    except ValueError as error:
        raise fields.fault(key, str(error)) from None
    if seconds < 0:
        raise fields.fault(key, f"must not be negative (got '{clip(text)}')")
    return seconds


def _integer(fields: Fields, key: str, default: int, least: int, most: int = MAX_COUNT) -> int:
    value = fields.get(key)
    if value is None:
        return default
    if type(value) is not int or not least <= value <= most:
        raise fields.fault(key, f"must be a whole number from {least} to {most} (got '{clip(fields.text(key))}')")
    return value


def _retry(fields: Fields) -> Retry:
    fields = fields.closed("policy", "duration", "maxInterval", "maxRetries", "matching")
    policy = fields.text("policy", "constant").lower()
    if policy not in ("constant", "exponential"):
        raise fields.fault("policy", f"must be constant or exponential (got '{clip(policy)}')")
    exponential = policy == "exponential"
    if exponential and "duration" in fields:
        raise fields.fault("duration", "an exponential policy has none: its pauses start at 500ms; cap: maxInterval")
    if not exponential and "maxInterval" in fields:
        raise fields.fault("maxInterval", "a constant policy has none: its pause is duration")
    max_retries = _integer(fields, "maxRetries", -1, -1)
    key, default = ("maxInterval", 60.0) if exponential else ("duration", 5.0)
    pause = _duration(fields, key, default)
    if not pause and max_retries < 0:
        raise fields.fault(key, "must be more than 0 when maxRetries sets no limit")
    matching = fields.fields("matching").closed("httpStatusCodes", "gRPCStatusCodes")
    return Retry(
        exponential=exponential,
        max_retries=max_retries,
        http_statuses=_codes(matching, "httpStatusCodes", HTTP_STATUSES),
        grpc_codes=_codes(matching, "gRPCStatusCodes", GRPC_CODES),
        **({"max_interval": pause} if exponential else {"duration": pause}),
    )


def _codes(matching: Fields, key: str, valid: range) -> Codes:
    text = matching.text(key)
    try:
        return parse_codes(text, valid) if text else ()
    except ValueError as error:
        raise matching.fault(key, str(error)) from None


def _breaker(fields: Fields) -> BreakerSettings:
    """Dapr: 0 is the default of `maxRequests` and `timeout`."""
    fields = fields.closed("maxRequests", "interval", "timeout", "trip")
    settings = BreakerSettings(
        max_requests=_integer(fields, "maxRequests", 1, 0) or 1,
        interval=_duration(fields, "interval"),
        timeout=_duration(fields, "timeout") or 60.0,
    )
    if not (condition := fields.text("trip")):
        return settings
    try:
        trip = parse_trip(condition)
    except ValueError as error:
        raise fields.fault("trip", f"{error} (in '{clip(condition)}')") from None
    return replace(settings, trip=trip)


def _app(fields: Fields) -> Target:
    fields = fields.closed("timeout", "retry", "circuitBreaker", "circuitBreakerCacheSize")
    if "circuitBreakerCacheSize" in fields and not fields.text("circuitBreaker"):
        raise fields.fault("circuitBreakerCacheSize", "has no effect without circuitBreaker")
    return _target(fields, _integer(fields, "circuitBreakerCacheSize", APP_BREAKERS, 0, MAX_BREAKERS) or APP_BREAKERS)


def _actor(fields: Fields) -> Target:
    fields = fields.closed("timeout", "retry", "circuitBreaker", "circuitBreakerScope", "circuitBreakerCacheSize")
    if not fields.text("circuitBreaker"):
        for key in ("circuitBreakerScope", "circuitBreakerCacheSize"):
            if key in fields:
                raise fields.fault(key, "has no effect without circuitBreaker")
        return _target(fields)
    scope = fields.text("circuitBreakerScope").lower()
    if scope not in ("type", "id", "both"):
        raise fields.fault("circuitBreaker", "needs a circuitBreakerScope: type, or id (both is the same)")
    size = _integer(fields, "circuitBreakerCacheSize", ACTOR_BREAKERS, 0, MAX_BREAKERS) or ACTOR_BREAKERS
    return replace(_target(fields, size), breaker_of_each=scope != "type")


def _component(fields: Fields) -> ComponentTarget:
    fields = fields.closed("inbound", "outbound")
    sides = {side: fields.fields(side).closed("timeout", "retry", "circuitBreaker") for side in ("inbound", "outbound")}
    inbound, outbound = (_target(side) for side in sides.values())
    names = {side.circuit_breaker.name for side in (inbound, outbound)} - {""}
    if len(names) > 1:
        raise sides["outbound"].fault(
            "circuitBreaker",
            f"'{clip(outbound.circuit_breaker.name)}' contradicts inbound.circuitBreaker "
            f"'{clip(inbound.circuit_breaker.name)}': one breaker serves both directions of a component",
        )
    return ComponentTarget(inbound=inbound, outbound=outbound)


def _target(fields: Fields, breakers: int = APP_BREAKERS) -> Target:
    timeout, retry, breaker = (
        Reference(name=fields.text(kind), origin=f"{fields.at(kind)}: {fields.named(kind)}")
        for kind in ("timeout", "retry", "circuitBreaker")
    )
    return Target(timeout=timeout, retry=retry, circuit_breaker=breaker, breakers=breakers)
