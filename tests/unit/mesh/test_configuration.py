from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from mesh.configuration import ApiLogging, ApiRule, Configuration, load_configuration
from mesh.errors import ConfigurationError


@pytest.fixture
def configured(tmp_path: Path) -> Callable[..., Configuration]:
    def configured(*specs: str, environ: dict[str, str] | None = None) -> Configuration:
        paths = []
        for number, spec in enumerate(specs):
            paths.append(tmp_path / f"{number}.yaml")
            body = "".join(f"  {line}\n" for line in dedent(spec).splitlines())
            paths[-1].write_text(f"apiVersion: dapr.io/v1alpha1\nkind: Configuration\nspec:\n{body}")
        return load_configuration(paths, environ or {})

    return configured


Configured = Callable[..., Configuration]


def test_api_rules_and_merging(configured: Configured) -> None:
    configuration = configured(
        """\
        api:
          allowed: [{name: state, version: v1, protocol: http}]
          denied: [{name: invoke, version: v1}]
        workflow: {maxConcurrentWorkflowInvocations: 1, statePolicy: {any: 1h}}
        """,
        """\
        api: {allowed: [{name: publish, version: v1.0, protocol: HTTP}, {name: state, version: v1, protocol: grpc}]}
        components: {deny: [state.redis]}
        workflow: {maxConcurrentWorkflowInvocations: 2}
        """,
    )
    assert configuration.api_allowed == (
        ApiRule(name="publish", version="v1.0"),
        ApiRule(name="state", version="v1", protocol="grpc"),
    )
    assert configuration.api_denied == (ApiRule(name="invoke", version="v1"),)
    assert configuration.components_deny == ("state.redis",)
    assert all("spec.workflow has no effect yet" in warning for warning in configuration.warnings)


PUBLISH, INVOKE = ("v1/publish", "/v1.0/publish/{pubsub}/{topic}"), ("v1/invoke", "/v1.0/invoke/{id}/method/{path}")


@pytest.mark.parametrize(
    ("allowed", "denied", "served"),
    [
        ([], [], [PUBLISH, INVOKE]),
        ([("v1", "publish", "http")], [], [PUBLISH]),
        ([("v1.0", "publish", "http")], [], [PUBLISH]),
        ([("v1", "publish", "grpc")], [], [PUBLISH, INVOKE]),
        ([], [("v1", "publish", "http")], [INVOKE]),
        ([], [("v1", "publish", "grpc")], [PUBLISH, INVOKE]),
        ([("v1", "publish", "http")], [("v1.0", "publish", "http")], []),
        ([("v1", "healthz", "http")], [("v1", "healthz", "http")], []),
    ],
)
def test_which_apis_are_served(allowed: list[Any], denied: list[Any], served: list[Any]) -> None:
    def rules(rows: list[Any]) -> tuple[ApiRule, ...]:
        return tuple(ApiRule(version=version, name=name, protocol=protocol) for version, name, protocol in rows)

    configuration = Configuration(api_allowed=rules(allowed), api_denied=rules(denied))
    assert [endpoint for endpoint in (PUBLISH, INVOKE) if configuration.serves(*endpoint)] == served
    assert configuration.serves("v1/healthz", "/v1.0/healthz")


def test_environment_expansion(configured: Configured) -> None:
    configuration = configured(
        "components: {deny: [$A, '${B}-$A', '$ $1 $$ ${', x$C]}",
        environ={"A": "one", "B": "two"},
    )
    assert configuration.components_deny == ("one", "two-one", "$ $1 $$ ${", "x")
    assert "the environment variable C is not set" in configuration.warnings[0]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("traceing: {}", r"0\.yaml:4: spec\.traceing: unknown field, did you mean 'tracing'"),
        ("api: {allow: []}", r"spec\.api\.allow: unknown field, did you mean 'allowed'"),
        ("api: {denied: [{name: state}]}", r"spec\.api\.denied\[0\]\.version: an API rule needs it"),
        ("api: {denied: [{name: a, version: v1, protocol: tcp}]}", "must be http or grpc"),
        ("secrets: {scopes: [{defaultAccess: deny}]}", r"scopes\[0\]\.storeName: a scope needs the name of its secret"),
        ("secrets: {scopes: [{storeName: a}, {storeName: a}]}", r"scopes\[1\]\.storeName: 'a' has a scope already"),
        ("secrets: {scopes: [{storeName: a, defaultAccess: none}]}", r"defaultAccess: must be allow or deny"),
        ("secrets: {scope: []}", r"spec\.secrets\.scope: unknown field, did you mean 'scopes'"),
        ("features: [{name: HotReload, enabled: maybe}]", r"features\[0\]\.enabled: must be true or false"),
        ("components: {deny: state}", r"spec\.components\.deny: must be a list"),
        ("accessControl: {defaultAction: no}", r"0\.yaml:4: spec\.accessControl\.defaultAction: must be allow or deny"),
        ("httpPipeline: {handlers: [{name: oauth}]}", r"spec\.httpPipeline: not there yet"),
        ("a: [", r"--config .*0\.yaml:\d+: "),
    ],
)
def test_bad_configurations(configured: Configured, spec: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        configured(spec)


def test_api_logging(configured: Configured) -> None:
    assert configured("logging: {}").api_logging == ApiLogging()
    both = configured(
        "logging: {apiLogging: {enabled: true, omitHealthChecks: true, obfuscateURLs: false}}",
        "logging: {apiLogging: {enabled: false}}",
    )
    assert both.api_logging == ApiLogging(enabled=False, omit_health_checks=True)
    assert both.warnings == ()
    with pytest.raises(ConfigurationError, match=r"0\.yaml:4: spec\.logging\.apiLogging\.obfuscateURLs: not there yet"):
        configured("logging: {apiLogging: {obfuscateURLs: true}}")


def test_secret_scopes(configured: Configured) -> None:
    scopes = configured(
        """
        secrets:
          scopes:
          - {storeName: some, allowedSecrets: [a, b], deniedSecrets: [b], defaultAccess: allow}
          - {storeName: most, deniedSecrets: [a]}
          - {storeName: none, defaultAccess: Deny}
        """
    ).secret_scopes
    permitted = {store: [key for key in "abc" if scopes.permits(store, key)] for store in ("some", "most", "none", "x")}
    assert permitted == {"some": ["a"], "most": ["b", "c"], "none": [], "x": ["a", "b", "c"]}


def test_the_last_secret_scopes_count(configured: Configured) -> None:
    scopes = configured("secrets: {scopes: [{storeName: s, defaultAccess: deny}]}", "api: {}").secret_scopes
    assert not scopes.permits("s", "a")
    scopes = configured("secrets: {scopes: [{storeName: s, defaultAccess: deny}]}", "secrets: {}").secret_scopes
    assert scopes.permits("s", "a")


def test_features(configured: Configured) -> None:
    assert configured("features: []").hot_reload
    assert not configured("features: [{name: HotReload, enabled: false}]").hot_reload
    assert configured(
        "features: [{name: HotReload, enabled: false}]", "features: [{name: HotReload, enabled: true}]"
    ).hot_reload
    [warning] = configured("features: [{name: hotReload, enabled: false}]").warnings
    assert "spec.features[0].name: the feature 'hotReload' has no effect" in warning


def test_an_empty_guard_guards_nothing(configured: Configured) -> None:
    assert "spec.httpPipeline has no effect yet" in configured("httpPipeline: {handlers: []}").warnings[0]


def test_configuration_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    with pytest.raises(ConfigurationError, match=r"--config .*c\.yaml: cannot be read: No such file"):
        load_configuration([path], {})
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigurationError, match="not UTF-8"):
        load_configuration([path], {})
    path.write_text("apiVersion: dapr.io/v1alpha1\nkind: Component\n")
    with pytest.raises(ConfigurationError, match=r"c\.yaml:1: must be kind Configuration"):
        load_configuration([path], {})
    path.write_text("")
    assert load_configuration([path], {}) == Configuration()
