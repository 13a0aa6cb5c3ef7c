"""The one place where a delivery plan is made: from the component, the subscription and the resiliency manifests.

Of each value the most specific source counts: the subscription, then the resiliency policies that name the component
as a target, the component, resiliency policies that apply by their name, the default. The pauses are one value: whoever
says anything of them says all. The *inbound retry policy is the plan*: its attempts are those of the plan, not some
within each of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from mesh import addressing
from mesh.delivery.plan import CONCURRENCY, HANDLER_TIMEOUT, RETRY_AFTER_MAX, BackOff, Plan
from mesh.delivery.settings import EXPONENTIAL_ONLY, MAX_ATTEMPTS, MAX_PAUSE, UNLIMITED, Stated, Statements
from mesh.errors import ConfigurationError
from mesh.ports import Feature, Order, Topic
from mesh.resiliency.retry import JITTER, MULTIPLIER, Retry
from mesh.resiliency.targets import InboundPolicies, Resiliency

if TYPE_CHECKING:
    from mesh.pubsub import Component
    from mesh.subscriptions import SubscriptionSpec

DEFAULT = "default"
_BACK_OFF = ("backOffPolicy", "backOffDuration", *EXPONENTIAL_ONLY, "backOffRandomizationFactor")
_ORDERS = {Order.KEY: Feature.KEY_ORDER, Order.STRICT: Feature.STRICT_ORDER}


class Compiled(NamedTuple):
    plan: Plan
    origins: Mapping[str, str]
    """Where each value of the plan was said, by the plan's own names; `DEFAULT` where it was not."""


def plan_of(
    spec: SubscriptionSpec,
    component: Component,
    policies: InboundPolicies,
    app_id: str,
    features: frozenset[Feature],
) -> Compiled:
    """As `compile_plan`, for a subscription of an app; raises `ConfigurationError` also for topics that cannot be."""
    address = component.address(spec.topic)
    if addressing.is_pattern(address.name):
        if Feature.WILDCARDS not in features:
            raise ConfigurationError(
                f"topic {spec.topic} has a wildcard: the broker of this component cannot: {Feature.WILDCARDS.value}"
            )
        addressing.check_pattern(address.name)
    else:
        addressing.check_topic(address.name)
    return _for_bulk(spec, _with_dead_letter(spec, component, policies, app_id, features))


def _for_bulk(spec: SubscriptionSpec, compiled: Compiled) -> Compiled:
    """Events that go to the app together are in no order, and as many must be in hand as one call takes."""
    if spec.bulk is None:
        return compiled
    plan, origins = compiled
    if plan.order is not Order.NONE and origins["order"] != DEFAULT:
        raise ConfigurationError(
            f"{origins['order']}: order '{plan.order.value}' contradicts bulkSubscribe: events of one call have none"
        )
    concurrency = plan.concurrency if origins["concurrency"] != DEFAULT else max(plan.concurrency, spec.bulk.events)
    return Compiled(msgspec.structs.replace(plan, order=Order.NONE, concurrency=concurrency), origins)


def _with_dead_letter(
    spec: SubscriptionSpec,
    component: Component,
    policies: InboundPolicies,
    app_id: str,
    features: frozenset[Feature],
) -> Compiled:
    stated = _dead_letter(spec, component)
    if stated is None:
        return compile_plan(component.delivery, spec.delivery, policies, features=features)
    if not component.scopes.may_publish(app_id, stated.value):
        raise ConfigurationError(
            f"its dead letter topic {stated.value} is not allowed for app id {app_id}; "
            "allow publishing to it in the component's scopes"
        )
    target = component.address(stated.value)
    addressing.check_topic(target.name)
    return compile_plan(
        component.delivery,
        spec.delivery,
        policies,
        features=features,
        dead_letter=target,
        dead_letter_origin=stated.origin,
    )


def check_plan(component: Component, resiliency: Resiliency) -> None:
    """Whether a subscription that says nothing of its own could have a plan. Raises `ConfigurationError`."""
    policies = resiliency.inbound(component.name, "pubsub")
    compile_plan(component.delivery, {}, policies, features=component.log.features)


def _dead_letter(spec: SubscriptionSpec, component: Component) -> Stated | None:
    """The dead letter topic as the app names it."""
    own = None if spec.dead_letter_topic is None else Stated(spec.dead_letter_topic, f"{spec.origin}: deadLetterTopic")
    stated = spec.delivery.get("deadLetterTopic")
    if own is not None and stated is not None and own.value != stated.value:
        raise ConfigurationError(f"{stated.origin}: contradicts deadLetterTopic '{own.value}' beside the metadata")
    own = own or stated
    if own is None:
        of_all = component.delivery.get("deadLetterTopic")
        return None if of_all is None or of_all.value == spec.topic else of_all
    if own.value == spec.topic:
        raise ConfigurationError(f"{own.origin}: is the topic itself, where what is given up would come back for ever")
    return own


def compile_plan(
    component: Statements,
    subscription: Statements,
    policies: InboundPolicies,
    *,
    features: frozenset[Feature],
    dead_letter: Topic | None = None,
    dead_letter_origin: str = DEFAULT,
) -> Compiled:
    """The plan of one subscription. `features` are those of the component's log; `dead_letter` was settled by the
    caller, who knows which topics the app may publish to.

    Raises `ConfigurationError`, with the place, for what contradicts itself, overflows, or the log cannot do.
    """
    merged = _Merged(component, subscription, policies)
    merged.check_layers()
    retry, retry_origin = merged.retry()
    attempts, pauses = merged.find("maxAttempts"), merged.layer_of(_BACK_OFF)
    origins = {"deadLetterTopic": DEFAULT if dead_letter is None else dead_letter_origin}

    if attempts is not None:
        limit = None if attempts.value == UNLIMITED else int(attempts.value)
        origins["attempts"] = attempts.origin
    elif retry is not None:
        limit = attempts_of(retry)
        origins["attempts"] = retry_origin
        if limit is not None and limit > MAX_ATTEMPTS:
            raise ConfigurationError(
                f"{retry_origin}: makes {limit} attempts, at most {MAX_ATTEMPTS} may be for deliveries: set maxRetries"
            )
    else:
        limit = None if dead_letter is None else 1
        origins["attempts"] = DEFAULT

    if pauses:
        back_off, origins["backOff"] = _back_off(pauses), next(iter(pauses.values())).origin
    elif retry is not None:
        back_off, origins["backOff"] = _back_off_of(retry, retry_origin), retry_origin
    else:
        back_off, origins["backOff"] = BackOff(), DEFAULT
    if limit is None and not back_off.first:
        raise ConfigurationError(f"{origins['backOff']}: a pause of 0 contradicts {origins['attempts']}: no limit")

    timeout = merged.timeout()
    order, broadcast = merged.find("order"), merged.find("broadcast")
    concurrency, retry_after = merged.find("concurrency"), merged.find("retryAfterMax")
    if broadcast is not None and broadcast.value and Feature.BROADCAST not in features:
        raise ConfigurationError(f"{broadcast.origin}: the broker of this component cannot: {Feature.BROADCAST.value}")
    spread = broadcast is not None and bool(broadcast.value)
    breaker = policies.breaker
    origins |= {
        "timeout": timeout.origin,
        "retryAfterMax": DEFAULT if retry_after is None else retry_after.origin,
        "order": DEFAULT if order is None else order.origin,
        "concurrency": DEFAULT if concurrency is None else concurrency.origin,
        "broadcast": DEFAULT if broadcast is None else broadcast.origin,
        "retryable": retry_origin if retry is not None and retry.http_statuses else DEFAULT,
        "breaker": DEFAULT if breaker is None else breaker.origin,
    }
    ordered = _order(order, features, spread)
    most = 1 if ordered is Order.STRICT else CONCURRENCY if concurrency is None else int(concurrency.value)
    return Compiled(
        Plan(
            attempts=limit,
            back_off=back_off,
            retryable=() if retry is None else retry.http_statuses,
            timeout=timeout.value,
            retry_after_max=RETRY_AFTER_MAX if retry_after is None else retry_after.value,
            breaker=None if breaker is None else breaker.value,
            concurrency=most,
            order=ordered,
            dead_letter=dead_letter,
            broadcast=spread,
        ),
        origins,
    )


class _Merged:
    """The sources in the order in which they count."""

    def __init__(self, component: Statements, subscription: Statements, policies: InboundPolicies) -> None:
        self._component = component
        self._subscription = subscription
        self._policies = policies

    def find(self, name: str) -> Stated | None:
        return self._subscription.get(name) or self._component.get(name)

    def layer_of(self, names: tuple[str, ...]) -> dict[str, Stated]:
        """What the more specific source says of things that only make sense together."""
        for layer in (self._subscription, self._component):
            found = {name: layer[name] for name in names if name in layer}
            if found:
                return found
        return {}

    def retry(self) -> tuple[Retry | None, str]:
        applied = self._policies.retry
        return (None, DEFAULT) if applied is None else (applied.value, applied.origin)

    def timeout(self) -> Stated:
        stated, applied = self.find("handlerTimeout"), self._policies.timeout
        if stated is not None:
            return stated
        if applied is None or not applied.value:  # Dapr: 0 is no limit, and every wait has one
            return Stated(HANDLER_TIMEOUT, DEFAULT)
        if applied.value > MAX_PAUSE:
            raise ConfigurationError(f"{applied.origin}: must be at most {MAX_PAUSE:g} s (got {applied.value:g} s)")
        return Stated(applied.value, applied.origin)

    def check_layers(self) -> None:
        """A component and a policy that names it stand side by side: neither is more specific than the other."""
        retry, timeout = self._policies.retry, self._policies.timeout
        for applied, names in ((retry, ("maxAttempts", *_BACK_OFF)), (timeout, ("handlerTimeout",))):
            if applied is None or not applied.explicit:
                continue
            stated = next((self._component[name] for name in names if name in self._component), None)
            if stated is not None:
                raise ConfigurationError(f"{stated.origin}: contradicts {applied.origin}; keep the one or the other")


def attempts_of(retry: Retry) -> int | None:
    """The first attempt and the retries, as far as they begin within `max_elapsed` at pauses of their mean length.

    Counted in advance, so that it holds whichever replica makes an attempt, and can be told before anything runs.
    """
    limit = None if retry.max_retries < 0 else retry.max_retries + 1
    if not retry.exponential:
        return limit
    pauses = _exponential(retry)
    attempt, elapsed = 1, pauses.nominal(1)
    while elapsed <= retry.max_elapsed and (pause := pauses.nominal(attempt)) < pauses.longest:
        attempt += 1
        elapsed += pauses.nominal(attempt)
    if elapsed <= retry.max_elapsed:  # from here on all pauses are the same, and there may be millions
        if not pause:
            return limit
        attempt += int((retry.max_elapsed - elapsed) // pause) + 1
    return attempt if limit is None else min(attempt, limit)


def _exponential(retry: Retry) -> BackOff:
    return BackOff(first=retry.initial_interval, factor=MULTIPLIER, longest=retry.max_interval, jitter=JITTER)


def _back_off_of(retry: Retry, origin: str) -> BackOff:
    longest = retry.max_interval if retry.exponential else retry.duration
    if longest > MAX_PAUSE:
        raise ConfigurationError(f"{origin}: pauses must be at most {MAX_PAUSE:g} s (got {longest:g} s)")
    if retry.exponential:
        return _exponential(retry)
    return BackOff(first=retry.duration, factor=1, longest=retry.duration, jitter=0)


def _back_off(stated: Mapping[str, Stated]) -> BackOff:
    def value(name: str, default: float) -> Any:
        return stated[name].value if name in stated else default

    defaults = BackOff()
    policy = stated.get("backOffPolicy")
    if "backOffDuration" in stated or (policy is not None and policy.value == "constant"):
        duration = value("backOffDuration", 5.0)
        return BackOff(first=duration, factor=1, longest=duration, jitter=value("backOffRandomizationFactor", 0.0))
    first = value("backOffInitialInterval", defaults.first)
    return BackOff(
        first=first,
        factor=value("backOffMultiplier", defaults.factor),
        longest=value("backOffMaxInterval", max(first, defaults.longest)),
        jitter=value("backOffRandomizationFactor", defaults.jitter),
    )


def _order(stated: Stated | None, features: frozenset[Feature], broadcast: bool) -> Order:
    if stated is None:
        return Order.KEY if Feature.KEY_ORDER in features and not broadcast else Order.NONE
    order = Order(stated.value)
    needed = _ORDERS.get(order)
    if needed is not None and needed not in features:
        raise ConfigurationError(f"{stated.origin}: the broker of this component cannot: {needed.value}")
    return order
