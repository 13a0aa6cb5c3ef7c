"""The plan of a subscription, from everything that says something of it."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from pathlib import Path

import pytest

from mesh import resources, subscriptions
from mesh.delivery import BackOff, Plan
from mesh.delivery.compile import Compiled, check_plan, plan_of
from mesh.delivery.settings import FIELDS
from mesh.errors import ConfigurationError, MeshError
from mesh.ports import Feature, Order, Topic
from mesh.pubsub import Component
from mesh.resiliency.targets import Resiliency
from sidecar.assembly import pubsubs_of

ALL = frozenset(Feature)


class Files:
    """Manifests as a user writes them, and the plan that they make."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.component: Mapping[str, str] = {}
        self.subscription: Mapping[str, str] = {}
        self.dead_letter = ""
        self.policies = "{}"
        self.targets = "{}"
        self.more = ""

    def load(self) -> tuple[Component, subscriptions.SubscriptionSpec, Resiliency]:
        """Raises `ConfigurationError`, and `AssertionError` with what was refused."""
        metadata = ", ".join(f"{{name: {name}, value: {value!r}}}" for name, value in self.component.items())
        own = ", ".join(f"{name}: {value!r}" for name, value in self.subscription.items())
        text = f"""\
            apiVersion: dapr.io/v1alpha1
            kind: Component
            metadata: {{name: shop}}
            spec: {{type: pubsub.meshwire, version: v1, metadata: [{metadata}]}}
            ---
            apiVersion: dapr.io/v2alpha1
            kind: Subscription
            metadata: {{name: s}}
            spec: {{pubsubname: shop, topic: A, routes: {{default: /a}}, deadLetterTopic: '{self.dead_letter}',
                metadata: {{{own}}}}}
            ---
            apiVersion: dapr.io/v1alpha1
            kind: Resiliency
            metadata: {{name: r}}
            spec: {{policies: {self.policies}, targets: {self.targets}}}
            """
        (self.folder / "all.yaml").write_text(textwrap.dedent(text))
        found = resources.load([self.folder], app_id="app", namespace="", environ={})
        components, clock = pubsubs_of(found.components, "app", "", ())
        parsed = subscriptions.from_manifests(found.subscriptions)
        if parsed.refused:
            raise ConfigurationError(parsed.refused[0])
        return components["shop"], parsed.specs[0], Resiliency(found.resiliency, clock=clock)

    def compiled(self, features: frozenset[Feature] = ALL) -> Compiled:
        component, spec, resiliency = self.load()
        return plan_of(spec, component, resiliency.inbound("shop", "pubsub"), "app", features)

    @property
    def plan(self) -> Plan:
        return self.compiled().plan


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


SHOP = "{components: {shop: {inbound: {retry: r, timeout: t, circuitBreaker: c}}}}"
POLICIES = (
    "{retries: {r: {duration: 3s, maxRetries: 4, matching: {httpStatusCodes: '500-599'}}}, "
    "timeouts: {t: 5s}, circuitBreakers: {c: {timeout: 9s}}}"
)


def test_without_a_word_an_event_is_tried_until_it_succeeds(files: Files) -> None:
    plan, origins = files.compiled()
    assert plan == Plan(order=Order.KEY)
    assert (plan.attempts, plan.back_off) == (None, BackOff(first=0.5, factor=2, longest=60, jitter=0.2))
    assert set(origins.values()) == {"default"}


def test_with_a_dead_letter_topic_there_is_one_attempt(files: Files) -> None:
    files.dead_letter = "dead"
    assert (files.plan.attempts, files.plan.dead_letter) == (1, Topic("shop", "dead"))


def test_the_inbound_policies_are_the_plan(files: Files) -> None:
    files.policies, files.targets = POLICIES, SHOP
    plan, origins = files.compiled()
    assert (plan.attempts, plan.back_off) == (5, BackOff(first=3, factor=1, longest=3, jitter=0))
    assert (plan.timeout, plan.retryable) == (5.0, (range(500, 600),))
    assert plan.breaker is not None
    assert plan.breaker.timeout == 9.0
    assert re.search(r"all.yaml:\d+: spec.policies.retries.r$", origins["attempts"])
    assert origins["timeout"].endswith(": spec.policies.timeouts.t")


@pytest.mark.parametrize(
    ("policy", "attempts"),
    [
        ("{duration: 1s}", None),
        ("{duration: 1s, maxRetries: -1}", None),
        ("{maxRetries: 0}", 1),
        ("{policy: exponential, maxRetries: 2}", 3),
        # Dapr: no retry begins later than 15 minutes after the first attempt.
        ("{policy: exponential}", 25),
        ("{policy: exponential, maxInterval: 1s, maxRetries: 100}", 101),
        ("{policy: exponential, maxInterval: 0, maxRetries: 100}", 101),
        ("{policy: exponential, maxInterval: 1s}", 901),
    ],
)
def test_how_many_attempts_a_retry_policy_is(files: Files, policy: str, attempts: int | None) -> None:
    files.policies, files.targets = f"{{retries: {{r: {policy}}}}}", "{components: {shop: {inbound: {retry: r}}}}"
    assert files.plan.attempts == attempts


def test_exponential_policies_keep_their_arithmetic(files: Files) -> None:
    files.policies = "{retries: {r: {policy: exponential, maxInterval: 4s}}}"
    files.targets = "{components: {shop: {inbound: {retry: r}}}}"
    assert files.plan.back_off == BackOff(first=0.5, factor=1.5, longest=4, jitter=0.5)


def test_everything_can_be_said_in_metadata(files: Files) -> None:
    files.component = {
        "maxAttempts": "7",
        "backOffInitialInterval": "1s",
        "backOffMultiplier": "3",
        "backOffMaxInterval": "10s",
        "backOffRandomizationFactor": "0.5",
        "handlerTimeout": "20s",
        "retryAfterMax": "0",
        "order": "strict",
        "deadLetterTopic": "dead",
        "broadcast": "true",
    }
    assert files.plan == Plan(
        attempts=7,
        back_off=BackOff(first=1, factor=3, longest=10, jitter=0.5),
        timeout=20.0,
        retry_after_max=0.0,
        order=Order.STRICT,
        concurrency=1,
        dead_letter=Topic("shop", "dead"),
        broadcast=True,
    )
    assert files.component.keys() | {"backOffPolicy", "backOffDuration", "concurrency"} == {f.name for f in FIELDS}


def test_the_subscription_goes_before_the_component_and_the_policies(files: Files) -> None:
    files.policies, files.targets = POLICIES, SHOP
    files.component = {"concurrency": "8", "order": "none"}
    files.subscription = {"maxAttempts": "2", "backOffDuration": "1s", "handlerTimeout": "1s", "concurrency": "9"}
    plan, origins = files.compiled()
    assert (plan.attempts, plan.back_off.first, plan.timeout, plan.concurrency) == (2, 1.0, 1.0, 9)
    assert plan.order is Order.NONE
    assert plan.breaker is not None  # what it says nothing of stays
    assert origins["attempts"].endswith("all.yaml:6: metadata.maxAttempts")
    assert origins["order"].endswith("all.yaml:4: metadata.order")


def test_policies_that_apply_by_their_name_are_the_least_specific(files: Files) -> None:
    files.policies = "{retries: {DefaultRetryPolicy: {duration: 9s, maxRetries: 1}}}"
    assert files.plan.attempts == 2
    files.component = {"maxAttempts": "5", "backOffDuration": "2s"}
    assert (files.plan.attempts, files.plan.back_off.first) == (5, 2.0)


def test_pauses_are_said_by_one_source(files: Files) -> None:
    files.component = {"backOffDuration": "9s"}
    files.subscription = {"backOffMaxInterval": "5s"}
    assert files.plan.back_off == BackOff(first=0.5, factor=2, longest=5, jitter=0.2)


def test_a_first_pause_beyond_the_usual_longest_is_the_longest(files: Files) -> None:
    files.component = {"backOffInitialInterval": "2m"}
    assert (files.plan.back_off.nominal(1), files.plan.back_off.nominal(9)) == (120.0, 120.0)


def test_the_topic_for_all_has_none_itself(files: Files) -> None:
    files.component = {"deadLetterTopic": "A"}
    assert (files.plan.dead_letter, files.plan.attempts) == (None, None)


@pytest.mark.parametrize(
    ("stated", "fault"),
    [
        ({"maxAttempts": "0"}, "metadata.maxAttempts: must be -1 or at least 1"),
        ({"maxAttempts": "-2"}, "metadata.maxAttempts: must be at least -1"),
        ({"maxAttempts": "99999999999999999999"}, "metadata.maxAttempts: "),
        ({"backOffDuration": "-1s"}, "metadata.backOffDuration: must be at least 0"),
        ({"backOffDuration": "300y"}, "metadata.backOffDuration: must be a duration"),
        ({"backOffDuration": "9999999h"}, "metadata.backOffDuration: must be "),
        ({"backOffDuration": "0"}, "metadata.backOffDuration: must be more than 0 when maxAttempts sets no limit"),
        ({"backOffPolicy": "linear"}, "metadata.backOffPolicy: must be one of constant, exponential"),
        ({"backOffPolicy": "exponential", "backOffDuration": "1s"}, "metadata.backOffDuration: an exponential"),
        ({"backOffPolicy": "constant", "backOffMultiplier": "2"}, "metadata.backOffMultiplier: a constant policy"),
        ({"backOffDuration": "1s", "backOffMaxInterval": "2s"}, "metadata.backOffMaxInterval: contradicts backOffD"),
        ({"backOffInitialInterval": "9s", "backOffMaxInterval": "2s"}, "must not be less than backOffInitialInterval"),
        ({"backOffMultiplier": "nan"}, "metadata.backOffMultiplier: "),
        ({"backOffMultiplier": "0.5"}, "metadata.backOffMultiplier: must be at least 1"),
        ({"backOffRandomizationFactor": "1.5"}, "metadata.backOffRandomizationFactor: must be at most 1"),
        ({"handlerTimeout": "0"}, "metadata.handlerTimeout: must be at least"),
        ({"retryAfterMax": "-1"}, "metadata.retryAfterMax: must be at least 0"),
        ({"concurrency": "0"}, "metadata.concurrency: must be at least 1"),
        ({"order": "strict", "concurrency": "4"}, "metadata.concurrency: contradicts order strict"),
        ({"order": "fifo"}, "metadata.order: must be one of none, key, strict"),
    ],
)
@pytest.mark.parametrize("place", ["component", "subscription"])
def test_what_cannot_be_meant_is_refused_with_its_place(
    files: Files, place: str, stated: dict[str, str], fault: str
) -> None:
    setattr(files, place, stated)
    with pytest.raises(MeshError) as caught:
        files.compiled()
    assert fault in str(caught.value)
    assert f"all.yaml:{4 if place == 'component' else 6}" in str(caught.value)


def test_a_component_and_a_policy_that_names_it_contradict_each_other(files: Files) -> None:
    files.policies, files.targets = POLICIES, SHOP
    files.component = {"maxAttempts": "3"}
    component, _, resiliency = files.load()
    with pytest.raises(
        ConfigurationError, match=r"all.yaml:4: metadata.maxAttempts: contradicts .*all.yaml:1[0-9]: spec"
    ):
        check_plan(component, resiliency)
    files.component = {"handlerTimeout": "3s"}
    component, _, resiliency = files.load()
    with pytest.raises(ConfigurationError, match=r"metadata.handlerTimeout: contradicts .*spec.policies.timeouts.t"):
        check_plan(component, resiliency)


@pytest.mark.parametrize("policy", ["{duration: 9000h}", "{policy: exponential, maxInterval: 9000h, maxRetries: 1}"])
def test_policies_whose_times_overflow_are_refused(files: Files, policy: str) -> None:
    files.policies, files.targets = f"{{retries: {{r: {policy}}}}}", "{components: {shop: {inbound: {retry: r}}}}"
    with pytest.raises(ConfigurationError, match=r"spec.policies.retries.r: pauses must be at most"):
        files.compiled()


@pytest.mark.parametrize("more", ["maxInterval: 1ns", "maxInterval: 0, maxRetries: 2147483647"])
def test_policies_with_too_many_attempts_are_refused_and_not_counted_one_by_one(files: Files, more: str) -> None:
    files.policies = f"{{retries: {{r: {{policy: exponential, {more}}}}}}}"
    files.targets = "{components: {shop: {inbound: {retry: r}}}}"
    with pytest.raises(ConfigurationError, match=r"spec.policies.retries.r: makes [0-9]+ attempts, at most 1000000"):
        files.compiled()


def test_a_pause_of_nothing_contradicts_no_limit_wherever_they_stand(files: Files) -> None:
    files.component = {"backOffDuration": "0", "maxAttempts": "3"}
    files.subscription = {"maxAttempts": "-1"}
    with pytest.raises(ConfigurationError, match=r"backOffDuration: a pause of 0 contradicts .*all.yaml:6: metadata"):
        files.compiled()


@pytest.mark.parametrize(
    ("stated", "feature"),
    [
        ({"order": "key"}, Feature.KEY_ORDER),
        ({"order": "strict"}, Feature.STRICT_ORDER),
        ({"broadcast": "true"}, Feature.BROADCAST),
    ],
)
def test_what_the_broker_cannot_is_refused(files: Files, stated: dict[str, str], feature: Feature) -> None:
    files.subscription = stated
    files.compiled()
    with pytest.raises(ConfigurationError, match=f"all.yaml:6: metadata.*cannot: {feature.value}"):
        files.compiled(ALL - {feature})


def test_order_by_key_is_only_a_default(files: Files) -> None:
    assert files.compiled(frozenset()).plan.order is Order.NONE
    files.subscription = {"broadcast": "true"}
    assert files.plan.order is Order.NONE


def test_dead_letter_topics_that_contradict_each_other(files: Files) -> None:
    files.dead_letter, files.subscription = "dead", {"deadLetterTopic": "other"}
    with pytest.raises(ConfigurationError, match=r"metadata.deadLetterTopic: contradicts deadLetterTopic 'dead'"):
        files.compiled()
    files.dead_letter, files.subscription = "A", {}
    with pytest.raises(ConfigurationError, match="deadLetterTopic: is the topic itself"):
        files.compiled()
    files.dead_letter = "dead"
    files.component = {"publishingScopes": "app=A"}
    with pytest.raises(ConfigurationError, match="dead letter topic dead is not allowed for app id app"):
        files.compiled()
