import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from textwrap import dedent, indent
from typing import Any

import pytest

from mesh.errors import ConfigurationError
from mesh.resiliency.breaker import BreakerOpen, State
from mesh.resiliency.policy import Policy
from mesh.resiliency.retry import Failure, Retry
from mesh.resiliency.targets import INITIALIZATION_RETRIES, UNDER_POLICIES, Direction, Resiliency
from mesh.resiliency.trip import Counts
from mesh.resources import Resources, load
from tests.virtual_clock import VirtualClock

IN, OUT = Direction.INBOUND, Direction.OUTBOUND
HEAD = "apiVersion: dapr.io/v1alpha1\nkind: Resiliency\nmetadata: {name: r}\n"
POLICIES = """\
policies:
  timeouts: {fast: 2s, slow: 5000, none: 0}
  retries:
    thrice: {policy: constant, duration: 200ms, maxRetries: 3, matching: {httpStatusCodes: "429,500-599"}}
    growing: {policy: Exponential, maxInterval: 15s}
    never: {maxRetries: 0}
  circuitBreakers:
    cb: {maxRequests: 2, interval: 8s, timeout: 30s, trip: consecutiveFailures >= 2}
    plain: {}
    other: {}
"""
Loads = Callable[..., Resources]
Builds = Callable[..., Resiliency]


@pytest.fixture
def loads(tmp_path: Path) -> Loads:
    def loads(*specs: str, tail: str = "", app_id: str = "app") -> Resources:
        for number, spec in enumerate(specs):
            (tmp_path / f"{number}.yaml").write_text(f"{HEAD}{tail}spec:\n{indent(dedent(spec), '  ')}")
        return load([tmp_path], app_id=app_id, namespace="default", environ={})

    return loads


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def builds(loads: Loads, clock: VirtualClock) -> Builds:
    def builds(*specs: str) -> Resiliency:
        return Resiliency(loads(*specs).resiliency, clock=clock)

    return builds


def with_targets(yaml: str) -> str:
    return POLICIES + "targets:\n" + indent(dedent(yaml), "  ")


def parts(policy: Policy | None) -> tuple[float | None, Retry | None, bool] | None:
    return None if policy is None else (policy.timeout, policy.retry, policy.breaker is not None)


THRICE = Retry(duration=0.2, max_retries=3, http_statuses=(range(429, 430), range(500, 600)))
GROWING = Retry(exponential=True, max_interval=15.0)


def test_what_a_manifest_says(loads: Loads, tmp_path: Path) -> None:
    [manifest] = loads(with_targets("apps: {a: {timeout: fast}}")).resiliency
    assert (manifest.name, manifest.origin) == ("r", f"{tmp_path}/0.yaml:1")
    assert manifest.timeouts == {"fast": 2.0, "slow": 5.0, "none": 0.0}
    assert manifest.retries == {"thrice": THRICE, "growing": GROWING, "never": Retry(max_retries=0)}
    breaker = manifest.breakers["cb"]
    assert (breaker.max_requests, breaker.interval, breaker.timeout) == (2, 8.0, 30.0)
    assert breaker.trip(Counts(consecutive_failures=2))
    plain = manifest.breakers["plain"]
    assert (plain.max_requests, plain.interval, plain.timeout) == (1, 0.0, 60.0)
    assert [plain.trip(Counts(consecutive_failures=n)) for n in (5, 6)] == [False, True]


def test_zero_is_the_default_of_a_breaker(loads: Loads) -> None:
    [manifest] = loads("policies: {circuitBreakers: {cb: {maxRequests: 0, timeout: 0s, interval: 0}}}").resiliency
    breaker = manifest.breakers["cb"]
    assert (breaker.max_requests, breaker.interval, breaker.timeout) == (1, 0.0, 60.0)


def test_apps(builds: Builds) -> None:
    resiliency = builds(
        with_targets(
            """\
            apps:
              a: {timeout: fast, retry: thrice, circuitBreaker: cb}
              b: {retry: growing}
              c: {timeout: none, retry: never}
              http://x.test: {timeout: slow}
            """
        )
    )
    assert parts(resiliency.for_app("a", "/m")) == (2.0, THRICE, True)
    assert parts(resiliency.for_app("b", "/m")) == (None, GROWING, False)
    assert resiliency.for_app("c", "/m") is None
    assert resiliency.for_app("unknown", "/m") is None
    assert parts(resiliency.for_endpoint("http://x.test", "/m")) == (5.0, None, False)
    assert resiliency.for_component("a", OUT, "state") is None
    assert resiliency.warnings == []


def test_components(builds: Builds) -> None:
    resiliency = builds(
        with_targets(
            """\
            components:
              a: {inbound: {retry: thrice}, outbound: {timeout: fast}}
              b: {outbound: {circuitBreaker: cb}, inbound: {circuitBreaker: cb, timeout: slow}}
            """
        )
    )
    assert parts(resiliency.for_component("a", IN, "pubsub")) == (None, THRICE, False)
    assert parts(resiliency.for_component("a", OUT, "pubsub")) == (2.0, None, False)
    inbound, outbound = (resiliency.for_component("b", side, "pubsub") for side in (IN, OUT))
    assert inbound
    assert outbound
    assert inbound.breaker is outbound.breaker is not None
    assert resiliency.warnings == []


def test_targets_of_components_without_effect(builds: Builds) -> None:
    resiliency = builds(
        with_targets(
            """\
            components:
              store: {outbound: {timeout: fast}}
              bus: {inbound: {retry: thrice}, outbound: {timeout: fast}}
              mask: {outbound: {timeout: fast}}
              lock: {inbound: {retry: thrice}, outbound: {timeout: fast}}
              stoer: {outbound: {timeout: fast}}
            """
        )
    )
    lines = resiliency.without_effect({"store": "state", "bus": "pubsub", "mask": "crypto", "lock": "lock"})
    assert [line.partition(": spec.targets.components.")[2] for line in lines] == [
        "mask: has no effect yet: components of crypto are not called under policies",
        "lock.inbound: has no effect: components of lock do not call the app",
        "stoer: has no effect: there is no such component; did you mean 'store'?",
    ]


def test_without_manifests_nothing_is_done_but_the_built_in_retries(clock: VirtualClock) -> None:
    resiliency = Resiliency(clock=clock)
    assert resiliency.for_app("a") is None
    assert resiliency.for_component("a", IN, "bindings") is None
    assert parts(resiliency.built_in_for_app("a")) == (None, Retry(duration=1.0, max_retries=3), False)
    initialization = Retry(exponential=True, max_interval=1.0, max_retries=3, max_elapsed=10.0)
    assert parts(resiliency.built_in(INITIALIZATION_RETRIES)) == (None, initialization, False)


def test_an_explicit_target_replaces_the_built_in_retries_and_default_policies(builds: Builds) -> None:
    resiliency = builds(
        """\
        policies: {timeouts: {DefaultAppTimeoutPolicy: 7s, DefaultTimeoutPolicy: 8s}}
        targets: {apps: {a: {}}, components: {c: {inbound: {}}}}
        """
    )
    assert resiliency.for_app("a") is None
    assert resiliency.built_in_for_app("a") is None
    assert parts(resiliency.for_app("b")) == (7.0, None, False)
    assert resiliency.built_in_for_app("b") is not None
    assert resiliency.for_component("c", OUT, "state") is None
    assert parts(resiliency.for_component("d", OUT, "state")) == (8.0, None, False)


LEVELS = ["PubsubComponentInbound", "ComponentInbound", "Component", ""]


@pytest.mark.parametrize("level", range(len(LEVELS)))
def test_default_policies_from_the_most_specific_name(builds: Builds, level: int) -> None:
    named = ", ".join(f"Default{name}TimeoutPolicy: {number + 1}s" for number, name in enumerate(LEVELS[level:]))
    others = "DefaultAppTimeoutPolicy: 90s, DefaultPubsubComponentOutboundTimeoutPolicy: 91s"
    resiliency = builds(f"policies: {{timeouts: {{{others}, {named}}}}}")
    assert parts(resiliency.for_component("x", IN, "pubsub")) == (1.0, None, False)
    applied = resiliency.inbound("x", "pubsub").timeout
    assert applied is not None
    assert (applied.value, applied.explicit) == (1.0, False)
    assert applied.origin.endswith(f": spec.policies.timeouts.Default{LEVELS[level]}TimeoutPolicy")


def test_what_is_said_of_deliveries_from_a_component(builds: Builds) -> None:
    resiliency = builds(
        with_targets(
            """\
            components:
              a: {inbound: {retry: thrice, timeout: fast}}
              b: {outbound: {retry: thrice}}
            """
        )
    )
    timeout, retry, breaker = resiliency.inbound("a", "pubsub")
    assert timeout is not None
    assert retry is not None
    assert (timeout.value, retry.value, breaker) == (2.0, THRICE, None)
    assert timeout.explicit
    assert retry.origin.endswith(": spec.policies.retries.thrice")
    assert resiliency.inbound("b", "pubsub") == resiliency.inbound("c", "pubsub") == (None, None, None)


def test_each_kind_of_default_policy_is_found_on_its_own(builds: Builds) -> None:
    resiliency = builds(
        """\
        policies:
          timeouts: {DefaultTimeoutPolicy: 1s}
          retries: {DefaultAppRetryPolicy: {maxRetries: 1}}
          circuitBreakers: {DefaultComponentCircuitBreakerPolicy: {}}
        """
    )
    assert parts(resiliency.for_app("x")) == (1.0, Retry(max_retries=1), False)
    assert parts(resiliency.for_component("x", OUT, "state")) == (1.0, None, True)


@pytest.mark.parametrize(
    ("category", "type_"),
    [
        *(("bindings", "Binding"), ("configuration", "Configuration"), ("conversation", "Conversation")),
        *(("crypto", "Crypto"), ("lock", "Lock"), ("pubsub", "Pubsub"), ("secretstores", "Secretstore")),
        ("state", "Statestore"),
    ],
)
def test_component_types_in_default_names(builds: Builds, category: str, type_: str) -> None:
    resiliency = builds(f"policies: {{timeouts: {{Default{type_}ComponentOutboundTimeoutPolicy: 1s}}}}")
    assert parts(resiliency.for_component("x", OUT, category)) == (1.0, None, False)
    assert resiliency.for_component("x", IN, category) is None
    warned = ["has no effect yet" in warning for warning in resiliency.warnings]
    assert warned == ([] if category in UNDER_POLICIES else [True])


def test_later_manifests_override_equal_names(builds: Builds) -> None:
    resiliency = builds(
        """\
        policies: {timeouts: {t: 1s, u: 1s}}
        targets: {apps: {a: {timeout: t}, b: {timeout: u}}}
        """,
        """\
        policies: {timeouts: {t: 2s}, retries: {r: {maxRetries: 1}}}
        targets: {apps: {b: {retry: r}}}
        """,
    )
    assert parts(resiliency.for_app("a")) == (2.0, None, False)
    assert parts(resiliency.for_app("b")) == (None, Retry(max_retries=1), False)


def test_scopes(loads: Loads) -> None:
    assert loads(POLICIES, tail="scopes: [other]\n").resiliency == ()
    assert len(loads(POLICIES, tail="scopes: [other]\n", app_id="other").resiliency) == 1
    with pytest.raises(ConfigurationError, match="scope: unknown field, did you mean 'scopes'"):
        loads(POLICIES, tail="scope: [app]\n")


def test_built_in_policies_may_be_changed_but_not_below_three_retries(builds: Builds, tmp_path: Path) -> None:
    resiliency = builds(
        """\
        policies:
          retries:
            DaprBuiltInServiceRetries: {duration: 50ms, maxRetries: -1}
            DaprBuiltInInitializationRetries: {policy: exponential, maxRetries: 9}
        """
    )
    assert resiliency.built_in_for_app("x")
    assert parts(resiliency.built_in_for_app("x")) == (None, Retry(duration=0.05, max_retries=3), False)
    assert resiliency.built_in(INITIALIZATION_RETRIES).retry == Retry(exponential=True, max_retries=9)
    assert resiliency.warnings == [
        f"{tmp_path}/0.yaml:7: spec.policies.retries.DaprBuiltInServiceRetries: "
        "maxRetries of a built-in policy is at least 3, so 3 is used instead of -1"
    ]


@pytest.mark.parametrize(
    ("yaml", "warning"),
    [
        ("timeouts: {DefaultApTimeoutPolicy: 1s}", "applies by itself; did you mean 'DefaultAppTimeoutPolicy'"),
        ("retries: {DefaultAppTimeoutPolicy: {}}", "no policy of this name applies by itself"),
        ("retries: {DaprBuiltInServiceRetry: {}}", "did you mean 'DaprBuiltInServiceRetries'"),
        ("timeouts: {DaprBuiltInServiceRetries: 1s}", "no policy of this name applies by itself"),
        ("retries: {DaprBuiltInActorNotFoundRetries: {}}", "has no effect: calls of actors wait"),
    ],
)
def test_names_that_only_look_as_if_they_had_an_effect(builds: Builds, yaml: str, warning: str) -> None:
    [found] = builds(f"policies: {{{yaml}}}").warnings
    assert warning in found


async def fail() -> int:
    return 500


async def finish(clock: VirtualClock, call: Awaitable[Any]) -> Any:
    task = asyncio.ensure_future(call)
    await clock.advance(1)
    return await task


async def trip(clock: VirtualClock, policy: Policy | None) -> None:
    assert policy is not None
    for _ in range(2):
        await finish(clock, policy.run(fail, failed=lambda _: Failure()))
    assert policy.breaker
    assert policy.breaker.state is State.OPEN


async def test_each_method_has_a_breaker_and_the_oldest_is_forgotten(builds: Builds, clock: VirtualClock) -> None:
    resiliency = builds(with_targets("apps: {a: {circuitBreaker: cb, circuitBreakerCacheSize: 2}}"))
    await trip(clock, resiliency.for_app("a", "/1"))

    def state(method: str) -> State:
        policy = resiliency.for_app("a", method)
        assert policy
        assert policy.breaker
        return policy.breaker.state

    assert state("/2") is State.CLOSED
    assert state("/1") is State.OPEN  # which makes /2 the oldest
    assert state("/3") is State.CLOSED
    assert state("/1") is State.OPEN
    assert [state("/2"), state("/3"), state("/1")] == [State.CLOSED] * 3


async def test_default_breakers_are_apart_by_app_and_component(builds: Builds, clock: VirtualClock) -> None:
    resiliency = builds("policies: {circuitBreakers: {DefaultCircuitBreakerPolicy: {trip: totalFailures > 1}}}")
    await trip(clock, resiliency.for_app("a", "/m"))
    await trip(clock, resiliency.for_component("a", IN, "pubsub"))
    again = resiliency.for_app("a", "/m")
    assert again
    with pytest.raises(BreakerOpen):
        await again.run(fail, failed=lambda _: Failure())
    for other in (resiliency.for_app("b", "/m"), resiliency.for_component("b", OUT, "pubsub")):
        assert other
        assert await other.run(fail, failed=lambda _: None) == 500


TARGET = "targets: {apps: {a: %s}}"


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("policy: {}", r"0\.yaml:5: spec\.policy: unknown field, did you mean 'policies'"),
        ("policies: {retry: {}}", r"spec\.policies\.retry: unknown field, did you mean 'retries'"),
        ("policies: []", r"spec\.policies: must be a mapping"),
        ("policies:\n  timeouts:\n    t: fast", r"0\.yaml:7: spec\.policies\.timeouts\.t: must be .*fast"),
        ("policies: {timeouts: {t: -1s}}", r"timeouts\.t: must not be negative"),
        ("policies: {timeouts: {t: {a: 1}}}", r"timeouts\.t: must be text"),
        ("policies: {timeouts: {t: 1.5}}", r"timeouts\.t: must be a duration"),
        ("policies: {retries: {r: 5}}", r"retries\.r: must be a mapping"),
        ("policies: {retries: {r: {maxRetry: 5}}}", r"retries\.r\.maxRetry: unknown field, did you mean 'maxRetries'"),
        ("policies: {retries: {r: {maxRetries: many}}}", r"maxRetries: must be a whole number from -1 to 2147483647"),
        ("policies: {retries: {r: {maxRetries: -2}}}", r"maxRetries: must be a whole number from -1"),
        ("policies: {retries: {r: {maxRetries: true}}}", r"maxRetries: must be a whole number from -1"),
        ("policies: {retries: {r: {maxRetries: 1.5}}}", r"maxRetries: must be a whole number from -1"),
        ("policies: {retries: {r: {policy: linear}}}", r"policy: must be constant or exponential \(got 'linear'\)"),
        ("policies: {retries: {r: {policy: exponential, duration: 5s}}}", r"duration: an exponential policy has none"),
        ("policies: {retries: {r: {maxInterval: 5s}}}", r"r\.maxInterval: a constant policy has none"),
        ("policies: {retries: {r: {duration: 0}}}", r"r\.duration: must be more than 0 when maxRetries sets no limit"),
        ("policies: {retries: {r: {policy: exponential, maxInterval: 0s}}}", r"r\.maxInterval: must be more than 0"),
        ("policies: {retries: {r: {matching: {codes: 5}}}}", r"matching\.codes: unknown field"),
        ("policies: {retries: {r: {matching: {httpStatusCodes: '5xx'}}}}", r"httpStatusCodes: must look like"),
        ("policies: {retries: {r: {matching: {httpStatusCodes: 600}}}}", r"codes go from 100 to 599"),
        ("policies: {retries: {r: {matching: {gRPCStatusCodes: 17}}}}", r"gRPCStatusCodes: codes go from 0 to 16"),
        ("policies: {circuitBreakers: {c: {trips: x}}}", r"c\.trips: unknown field, did you mean 'trip'"),
        ("policies: {circuitBreakers: {c: {trip: requests}}}", r"c\.trip: at character 1: must be true or false"),
        ("policies: {circuitBreakers: {c: {maxRequests: -1}}}", r"c\.maxRequests: must be a whole number from 0"),
        ("policies: {circuitBreakers: {c: {timeout: soon}}}", r"c\.timeout: must be a duration"),
        ("targets: {app: {}}", r"targets\.app: unknown field, did you mean 'apps'"),
        ("targets: {actors: {T: {circuitBreaker: b}}}", r"circuitBreaker: needs a circuitBreakerScope"),
        ("targets: {actors: {T: {circuitBreakerScope: type}}}", "has no effect without circuitBreaker"),
        (TARGET % "{retries: r}", r"apps\.a\.retries: unknown field, did you mean 'retry'"),
        (TARGET % "{circuitBreakerScope: id}", r"circuitBreakerScope: unknown field"),
        (TARGET % "{circuitBreakerCacheSize: 5}", r"circuitBreakerCacheSize: has no effect without circuitBreaker"),
        (TARGET % "{circuitBreaker: c, circuitBreakerCacheSize: -5}", r"must be a whole number from 0 to 100000"),
        (TARGET % "{retry: r}", r"0\.yaml:5: spec\.targets\.apps\.a\.retry: no manifest has a policy 'r'"),
        (POLICIES + TARGET % "{retry: trice}", r"no manifest has a policy 'trice', did you mean 'thrice'"),
        (POLICIES + TARGET % "{timeout: thrice}", r"a\.timeout: no manifest has a policy 'thrice'"),
        (POLICIES + TARGET % "{circuitBreaker: fast}", r"a\.circuitBreaker: no manifest has a policy 'fast'"),
        ("targets: {components: {c: {retry: r}}}", r"components\.c\.retry: unknown field"),
        ("targets: {components: {c: {outbound: {circuitBreakerCacheSize: 5}}}}", r"CacheSize: unknown field"),
        (
            with_targets("components: {c: {inbound: {circuitBreaker: cb}, outbound: {circuitBreaker: plain}}}"),
            r"c\.outbound\.circuitBreaker: 'plain' contradicts inbound\.circuitBreaker 'cb'",
        ),
    ],
)  # fmt: skip
def test_bad_manifests(builds: Builds, yaml: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        builds(yaml)
