"""Which policy a call has: the explicit target's, else the default ones by their names, else none."""

from __future__ import annotations

import difflib
import random
import re
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from enum import Enum
from typing import Generic, NamedTuple, TypeVar

from mesh.errors import ConfigurationError, clip
from mesh.ports import Clock
from mesh.resiliency.breaker import Breaker, BreakerSettings
from mesh.resiliency.manifest import ComponentTarget, Reference, ResiliencyManifest, Target
from mesh.resiliency.policy import Policy, RetryLog
from mesh.resiliency.retry import Retry

DEFAULT_BREAKERS = 10_000
"""Breakers that are remembered for all apps without a target of their own."""
COMPONENT_BREAKERS = 1_000

SERVICE_RETRIES = "DaprBuiltInServiceRetries"
INITIALIZATION_RETRIES = "DaprBuiltInInitializationRetries"
_LEAST_BUILT_IN_RETRIES = 3
_BUILT_IN = {
    SERVICE_RETRIES: Retry(duration=1.0, max_retries=3),
    INITIALIZATION_RETRIES: Retry(exponential=True, max_interval=1.0, max_retries=3, max_elapsed=10.0),
}
UNDER_POLICIES = ("bindings", "configuration", "lock", "pubsub", "secretstores", "state")
"""Categories of components that are called under policies. Whoever calls `for_component` for one more adds it."""
TELL_UNDER_POLICIES = ("bindings", "configuration", "pubsub")
"""Categories of components whose messages to the app go under policies."""
_NEVER = ("DaprBuiltInActor",)

_COMPONENT_TYPES = {
    "bindings": "Binding",
    "configuration": "Configuration",
    "conversation": "Conversation",
    "crypto": "Crypto",
    "lock": "Lock",
    "pubsub": "Pubsub",
    "secretstores": "Secretstore",
    "state": "Statestore",
}
_WORDS = {"timeouts": "Timeout", "retries": "Retry", "circuitBreakers": "CircuitBreaker"}

V = TypeVar("V")


class Direction(Enum):
    INBOUND = "Inbound"
    """From a component to the app: a delivery."""
    OUTBOUND = "Outbound"
    """From the app to a component."""


class _Parts(NamedTuple):
    """A target's policies, resolved. `size` is how many breakers the target may have."""

    timeout: float | None
    retry: Retry | None
    breaker: BreakerSettings | None
    size: int

    @property
    def has_effect(self) -> bool:
        return bool(self.timeout or self.breaker or (self.retry and self.retry.max_retries))


class Applied(NamedTuple, Generic[V]):
    """A policy that applies, and why."""

    value: V
    origin: str
    """`file:line: field` of the policy."""
    explicit: bool
    """A target names it; else it applies by its name."""


class InboundPolicies(NamedTuple):
    """What manifests say of deliveries from a component: data, for who carries them out."""

    timeout: Applied[float] | None = None
    retry: Applied[Retry] | None = None
    breaker: Applied[BreakerSettings] | None = None


class Resiliency:
    """All resiliency manifests of an app, merged; and the breakers' state.

    Of equal names the later manifest's policy or target counts, whole (Dapr).
    """

    def __init__(
        self,
        manifests: Sequence[ResiliencyManifest] = (),
        *,
        clock: Clock,
        random: Callable[[], float] = random.random,
    ) -> None:
        """`random` gives numbers from 0 up to 1 for the jitter.

        Raises `ConfigurationError` for a target that names a policy which no manifest has (Dapr does without it).
        """
        self._clock = clock
        self._random = random
        self._log = RetryLog(clock)
        self.warnings: list[str] = []
        """What has no effect and why, one line each, for the log."""
        self._timeouts: dict[str, float] = {}
        self._retries = dict(_BUILT_IN)
        self._circuit_breakers: dict[str, BreakerSettings] = {}
        self._of_components: list[tuple[str, str, ComponentTarget]] = []
        self._origins: dict[tuple[str, str], str] = {}
        apps: dict[str, Target] = {}
        actors: dict[str, Target] = {}
        components: dict[str, ComponentTarget] = {}
        for manifest in manifests:
            self._timeouts |= manifest.timeouts
            self._retries |= {name: self._adjusted(name, retry, manifest) for name, retry in manifest.retries.items()}
            self._circuit_breakers |= manifest.breakers
            self._warn_of_names(manifest)
            self._origins |= manifest.origins
            self._of_components += ((manifest.origin, *target) for target in manifest.components.items())
            apps |= manifest.apps
            actors |= manifest.actors
            components |= manifest.components
        self._targets = components
        self._apps = {name: self._resolve(target) for name, target in apps.items()}
        self._components = {
            (name, direction): self._resolve(side)
            for name, target in components.items()
            for direction, side in ((Direction.INBOUND, target.inbound), (Direction.OUTBOUND, target.outbound))
        }
        self._actors = {name: self._resolve(target) for name, target in actors.items()}
        self._actor_default = self._default("Actor", "")
        self._actor_breakers = {name: _Breakers(parts.size) for name, parts in self._actors.items()}
        self._breaker_of_each = {name for name, target in actors.items() if target.breaker_of_each}
        self._app_default = self._default("App", "")
        self._component_defaults = {
            (category, direction): self._default(*_component_levels(direction, type_))
            for category, type_ in _COMPONENT_TYPES.items()
            for direction in Direction
        }
        self._app_breakers = {name: _Breakers(parts.size) for name, parts in self._apps.items()}
        self._default_breakers = _Breakers(DEFAULT_BREAKERS)
        self._component_breakers = _Breakers(COMPONENT_BREAKERS)

    def without_effect(self, categories: Mapping[str, str]) -> list[str]:
        """One line for each target of a component that is never called under it.

        `categories` has the category of each component by its name.
        """
        lines: list[str] = []
        for origin, name, target in self._of_components:
            where, category = f"{origin}: spec.targets.components.{name}", categories.get(name)
            if category is None:
                lines.append(f"{where}: has no effect: there is no such component{_near(name, categories)}")
            elif category not in UNDER_POLICIES:
                lines.append(f"{where}: has no effect yet: components of {category} are not called under policies")
            elif category not in TELL_UNDER_POLICIES and any(policy.name for policy in _policies(target.inbound)):
                lines.append(f"{where}.inbound: has no effect: components of {category} do not call the app")
        return lines

    def for_app(self, app_id: str, method: str = "") -> Policy | None:
        """For a call of `method` (a path without query) of an app. `None` does nothing, and costs nothing.

        Each method has a breaker of its own (Dapr).
        """
        parts = self._apps.get(app_id, self._app_default)
        if not parts.has_effect:
            return None
        breaker = None
        if parts.breaker:
            breakers = self._app_breakers.get(app_id, self._default_breakers)
            breaker = breakers.get((app_id, method), f"{app_id}:{method}", parts.breaker, self._clock)
        return self._policy(f"endpoint[{app_id}, {app_id}:{method}]", parts, breaker)

    def for_endpoint(self, name: str, method: str = "") -> Policy | None:
        """For a call through an HTTPEndpoint or to a URL: they are targets among the apps (Dapr)."""
        return self.for_app(name, method)

    def for_actor(self, actor_type: str, actor_id: str) -> Policy | None:
        """For a call of an actor, the wait for its turn included: retries and breaker. `None` does nothing."""
        parts = self._actors.get(actor_type, self._actor_default)
        if not (parts.breaker or (parts.retry and parts.retry.max_retries)):
            return None
        breaker = None
        if parts.breaker:
            breakers = self._actor_breakers.get(actor_type, self._default_breakers)
            key = (actor_type, actor_id if actor_type in self._breaker_of_each else "")
            breaker = breakers.get(("actor", *key), "-".join(filter(None, key)), parts.breaker, self._clock)
        return self._policy(f"actor[{actor_type}, {actor_id}]", parts._replace(timeout=None), breaker)

    def for_turn(self, actor_type: str) -> Policy | None:
        """For the turn of an actor, once it has begun: the time limit (Dapr). `None` is no limit."""
        timeout = self._actors.get(actor_type, self._actor_default).timeout
        return self._policy(f"actor[{actor_type}]", _Parts(timeout, None, None, 0), None) if timeout else None

    def for_component(self, name: str, direction: Direction, category: str) -> Policy | None:
        """`category` is the first part of the component's type, as in `pubsub`. `None` does nothing.

        Both directions share one breaker (Dapr).
        """
        parts = self._components.get((name, direction)) or self._component_defaults[category, direction]
        if not parts.has_effect:
            return None
        breaker = None
        if parts.breaker:
            breaker = self._component_breakers.get(name, name, parts.breaker, self._clock)
        side = "input" if direction is Direction.INBOUND else "output"
        return self._policy(f"component[{name}] {side}", parts, breaker)

    def inbound(self, name: str, category: str) -> InboundPolicies:
        """What `for_component` of this direction would do, as data: for what is not done by calling again, but by
        having the broker deliver again. Each subscription has a breaker of its own."""
        target = self._targets.get(name)

        def applied(kind: str, policies: Mapping[str, V], reference: Reference | None) -> Applied[V] | None:
            if reference is not None:
                found = reference.name
            else:
                names = self._default_names(Direction.INBOUND, category, _WORDS[kind])
                found = next((name for name in names if name in policies), "")
            if not found:
                return None
            origin = self._origins.get((kind, found), f"built-in policy {found}")
            return Applied(policies[found], origin, reference is not None)

        timeout, retry, breaker = (None, None, None) if target is None else _policies(target.inbound)
        return InboundPolicies(
            applied("timeouts", self._timeouts, timeout),
            applied("retries", self._retries, retry),
            applied("circuitBreakers", self._circuit_breakers, breaker),
        )

    def built_in_for_app(self, app_id: str) -> Policy | None:
        """The retries of a service call that found nobody, inside `for_app` of an app without a target of its own;
        `None` for one that has it (Dapr: default policies do not count).
        """
        return None if app_id in self._apps else self.built_in(SERVICE_RETRIES)

    def built_in(self, name: str) -> Policy:
        """`SERVICE_RETRIES` or `INITIALIZATION_RETRIES`, as the user may have changed it."""
        return self._policy(name, _Parts(None, self._retries[name], None, 0), None)

    def _policy(self, name: str, parts: _Parts, breaker: Breaker | None) -> Policy:
        return Policy(
            name,
            self._clock,
            timeout=parts.timeout,
            retry=parts.retry,
            breaker=breaker,
            random=self._random,
            log=self._log,
        )

    def _resolve(self, target: Target) -> _Parts:
        return _Parts(
            _named(target.timeout, self._timeouts),
            _named(target.retry, self._retries),
            _named(target.circuit_breaker, self._circuit_breakers),
            target.breakers,
        )

    @staticmethod
    def _default_names(direction: Direction, category: str, kind: str) -> list[str]:
        return [f"Default{level}{kind}Policy" for level in _component_levels(direction, _COMPONENT_TYPES[category])]

    def _default(self, *levels: str) -> _Parts:
        """The first policy of each kind that is named after a level, the most specific first (Dapr)."""

        def first(policies: Mapping[str, V], kind: str) -> V | None:
            names = (f"Default{level}{kind}Policy" for level in levels)
            return next((policies[name] for name in names if name in policies), None)

        return _Parts(
            first(self._timeouts, "Timeout"),
            first(self._retries, "Retry"),
            first(self._circuit_breakers, "CircuitBreaker"),
            0,
        )

    def _adjusted(self, name: str, retry: Retry, manifest: ResiliencyManifest) -> Retry:
        if name not in _BUILT_IN or retry.max_retries >= _LEAST_BUILT_IN_RETRIES:
            return retry
        origin = manifest.origins["retries", name]
        self.warnings.append(
            f"{origin}: maxRetries of a built-in policy is at least {_LEAST_BUILT_IN_RETRIES}, "
            f"so {_LEAST_BUILT_IN_RETRIES} is used instead of {retry.max_retries}"
        )
        return replace(retry, max_retries=_LEAST_BUILT_IN_RETRIES)

    def _warn_of_names(self, manifest: ResiliencyManifest) -> None:
        """A name that only looks like one that is applied by itself would be passed over without a word."""
        for (kind, name), origin in manifest.origins.items():
            known = [f"Default{level}{_WORDS[kind]}Policy" for level in _LEVELS]
            if kind == "retries":
                known += _BUILT_IN
            if name.startswith(_NEVER):
                self.warnings.append(f"{origin}: has no effect: calls of actors wait for the next owner by themselves")
            elif name in known and "Component" in name and not name.startswith(_WITH_EFFECT):
                only = ", ".join(UNDER_POLICIES)
                self.warnings.append(f"{origin}: has no effect yet but on calls to components of {only}")
            elif name not in known and re.fullmatch(r"DaprBuiltIn.*|Default.*Policy", name):
                self.warnings.append(f"{origin}: no policy of this name applies by itself{_near(name, known)}")


_LEVELS = (
    *("", "Actor", "App", "Component", *(f"Component{direction.value}" for direction in Direction)),
    *(f"{type_}Component{direction.value}" for type_ in _COMPONENT_TYPES.values() for direction in Direction),
)


_WITH_EFFECT = (
    *(f"Default{_COMPONENT_TYPES[category]}ComponentOutbound" for category in UNDER_POLICIES),
    *(f"Default{_COMPONENT_TYPES[category]}ComponentInbound" for category in TELL_UNDER_POLICIES),
)


def _component_levels(direction: Direction, type_: str) -> tuple[str, ...]:
    return f"{type_}Component{direction.value}", f"Component{direction.value}", "Component", ""


def _policies(target: Target) -> tuple[Reference, Reference, Reference]:
    return target.timeout, target.retry, target.circuit_breaker


def _near(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def _named(reference: Reference, policies: Mapping[str, V]) -> V | None:
    if not reference.name:
        return None
    if reference.name not in policies:
        from mesh.documents import did_you_mean

        raise ConfigurationError(
            f"{reference.origin}: no manifest has a policy '{clip(reference.name)}'"
            f"{did_you_mean(reference.name, policies)}"
        )
    return policies[reference.name]


class _Breakers:
    """The breakers used last, up to `size`."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._breakers: OrderedDict[Hashable, Breaker] = OrderedDict()

    def get(self, key: Hashable, name: str, settings: BreakerSettings, clock: Clock) -> Breaker:
        breaker = self._breakers.get(key)
        if breaker is None:
            breaker = self._breakers[key] = Breaker(name, settings, clock)
            if len(self._breakers) > self._size:
                self._breakers.popitem(last=False)
        else:
            self._breakers.move_to_end(key)
        return breaker
