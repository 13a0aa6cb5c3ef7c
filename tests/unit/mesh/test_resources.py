import re
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.documents import Fields, Unreadable, as_text, parse
from mesh.errors import ConfigurationError
from mesh.resources import Component, Metadata, Resources, SecretReference, load

COMPONENT = """\
apiVersion: dapr.io/v1alpha1
kind: Component
metadata:
  name: bus
spec:
  type: pubsub.jetstream
  version: v1
"""
SUBSCRIPTION = """\
apiVersion: dapr.io/v2alpha1
kind: Subscription
metadata: {name: orders}
spec:
  pubsubname: bus
  topic: orders
  routes:
    default: /orders
"""

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n" for before, name in pairwise("abcdefghi")
)

Loads = Callable[..., Resources]


@pytest.fixture
def loads(tmp_path: Path) -> Loads:
    """Writes files and loads the folder."""

    def loads(*texts: str, environ: dict[str, str] | None = None, **options: Any) -> Resources:
        for number, text in enumerate(texts):
            (tmp_path / f"{number}.yaml").write_text(text)
        defaults = {"app_id": "app", "namespace": "default", "environ": environ or {}}
        return load([tmp_path], **(defaults | options))

    return loads


def with_metadata(yaml: str, type_: str = "pubsub.jetstream") -> str:
    entries = "".join(f"    {line}\n" for line in dedent(yaml).strip().splitlines())
    return COMPONENT.replace("pubsub.jetstream", type_) + "  metadata:\n" + entries


def test_a_full_component(loads: Loads, tmp_path: Path) -> None:
    text = (
        with_metadata("- name: natsURL\n  value: nats://h:4222\n- {name: Durable, value: true}")
        + "  ignoreErrors: true\n  initTimeout: 1m30s\nauth: {secretStore: vault}\nscopes: [app, other]\n"
    ).replace("name: bus", "name: bus\n  namespace: prod\n  labels: {a: b}")
    [bus] = loads(text).components
    assert bus == Component(
        name="bus",
        type="pubsub.jetstream",
        version="v1",
        metadata=bus.metadata,
        scopes=("app", "other"),
        namespace="prod",
        ignore_errors=True,
        init_timeout=90.0,
        origin=f"{tmp_path}/0.yaml:1",
    )
    assert dict(bus.metadata) == {"natsURL": "nats://h:4222", "Durable": "true"}
    assert bus.metadata["NATSurl"] == "nats://h:4222"
    assert "durable" in bus.metadata
    assert bus.metadata.get("missing") is None
    assert "4222" not in repr(bus)


@pytest.mark.parametrize(
    ("yaml", "text"),
    [
        ("true", "true"),
        ("Yes", "true"),
        ("off", "false"),
        ('"yes"', "yes"),
        ("5", "5"),
        ("0x1F", "31"),
        ("010", "8"),
        ("08", "8"),
        ("1_000", "1000"),
        ("-7", "-7"),
        ("12345678901234567890123", "12345678901234567890123"),
        ("1.10", "1.1"),
        ("1.0", "1"),
        ("1e3", "1000"),
        ("1e30", "1e+30"),
        ("0.000001", "0.000001"),
        (".5", "0.5"),
        ("1e999", "1e999"),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        (".inf", ".inf"),
        ("", ""),
        ("~", ""),
        ("null", ""),
        ('"null"', "null"),
        ("!!str 5", "5"),
        ("'a: b'", "a: b"),
        ("0x_", "0x_"),
        ("1.2.3", "1.2.3"),
        ("{b: 1, a: [true, x, null, é]}", '{"a":[true,"x",null,"é"],"b":1}'),
        ("|\n    two\n    lines\n", "two\nlines\n"),
    ],
)
def test_values_become_text_as_in_dapr(yaml: str, text: str) -> None:
    [document] = parse(f"value: {yaml}", "f")
    assert isinstance(document, Fields)
    assert as_text(document["value"]) == text


def test_names_are_found_in_any_case(loads: Loads) -> None:
    [bus] = loads(COMPONENT.replace("version", "VERSION").replace("spec", "Spec") + "  ignoreerrors: true\n").components
    assert bus.ignore_errors


def test_only_yaml_at_the_top_level_in_order(tmp_path: Path) -> None:
    for name in ("b.YAML", "a.yml", "c.json", "d.yaml.bak"):
        (tmp_path / name).write_text(COMPONENT.replace("bus", name[0]))
    (tmp_path / "sub.yaml").mkdir()
    (tmp_path / "sub.yaml" / "e.yaml").write_text(COMPONENT.replace("bus", "e"))
    resources = load([tmp_path], app_id="app", namespace="default", environ={})
    assert [component.name for component in resources.components] == ["a", "b"]


def test_many_documents_json_bom_and_foreign_kinds(loads: Loads, tmp_path: Path) -> None:
    text = (
        "\ufeff# head\n---\n"
        + COMPONENT
        + "--- # and JSON\n"
        + '{"apiVersion":"dapr.io/v1alpha1","kind":"Component","metadata":{"name":"j"},"spec":{"type":"state.redis"}}\n'
        + "----------\nkind: Deployment\napiVersion: apps/v1\nanything: [goes]\n"
        + "---\nkind: WorkflowAccessPolicy\napiVersion: dapr.io/v1alpha1\n"
        + "---\n"
        + SUBSCRIPTION
    )
    resources = loads(text.replace("\n", "\r\n"))
    assert [(c.name, c.origin) for c in resources.components] == [
        ("bus", f"{tmp_path}/0.yaml:3"),
        ("j", f"{tmp_path}/0.yaml:11"),
    ]
    assert [s.name for s in resources.subscriptions] == ["orders"]
    assert resources.warnings == (
        f"{tmp_path}/0.yaml:17: kind WorkflowAccessPolicy of dapr.io/v1alpha1 has no effect yet, skipped",
    )


@pytest.mark.parametrize("version", ["dapr/v1alpha1", "v1", ""])
def test_a_manifest_of_ours_with_a_wrong_version_is_told(loads: Loads, tmp_path: Path, version: str) -> None:
    resources = loads(f"kind: Resiliency\napiVersion: '{version}'\nmetadata: {{name: a}}\n")
    assert resources.warnings == (
        f"{tmp_path}/0.yaml:1: a Resiliency must have the apiVersion dapr.io/v1alpha1, skipped",
    )


@pytest.mark.parametrize(
    ("broken", "line", "reason"),
    [
        ("a: [1\nb: 2\n", 2, "did not find|expected"),
        ("a: 1\n b: 2\n", 2, "not allowed|did not find|expected"),
        ("\ta: 1\n", 1, "cannot start any token"),
        ("a: 'open\n", 2, "unexpected end"),
        ("a: \x00\n", 1, "control characters|not allowed|special characters"),
        ("a: *nothing\n", 1, "unknown anchor|undefined alias"),
        ("a: &a [*a]\n", 1, "unknown anchor|undefined alias"),
        ("a: !!python/object:os.system x\n", 1, "tag '.*' is not allowed"),
        ("a: !custom {b: 1}\n", 1, "tag '!custom' is not allowed"),
        ("a: !!int x\n", 1, "tag '.*int' is not allowed here"),
        ("a: 1\nb: 2\na: 3\n", 3, "'a' is given twice, first on line 10"),
        ("? [a]\n: b\n", 1, "a key must be a scalar"),
        ("- a\n- b\n", -1, "a document must be a mapping"),
        ("just text\n", -1, "a document must be a mapping"),
        ("a: " + "[" * 100_000 + "\n", 1, "nested deeper than 64"),
        ("a: 1\n...\nb: 2\n", 3, "a second document without ---|did not find"),
        (BOMB, 5, "more than 20000 values"),
        ("a: " + "x" * (1 << 20) + "\n", -1, "longer than 1 MiB"),
        ("<<: 5\n", 1, "<< takes a mapping"),
    ],
)  # fmt: skip
def test_a_broken_document_is_refused_with_its_line(
    loads: Loads, tmp_path: Path, broken: str, line: int, reason: str
) -> None:
    before = COMPONENT + "---\n# comment\n"
    with pytest.raises(ConfigurationError) as raised:
        loads(before + broken + "---\n" + SUBSCRIPTION)
    error = str(raised.value)
    found = re.match(rf"{re.escape(str(tmp_path))}/0\.yaml:(\d+): (.*)$", error, re.DOTALL)
    assert found, error
    assert re.search(reason, found[2]), error
    assert int(found[1]) == 9 + line, error


def test_files_that_are_no_text(loads: Loads, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"a: b\nc: \xff\n")
    with pytest.raises(ConfigurationError, match=rf"^{tmp_path}/x\.yaml:2: not UTF-8$"):
        loads(COMPONENT)
    with (tmp_path / "x.yaml").open("wb") as file:
        file.truncate((16 << 20) + 1)
    with pytest.raises(ConfigurationError, match=rf"^{tmp_path}/x\.yaml: longer than 16 MiB$"):
        loads(COMPONENT)


def test_aliases_and_merge_keys_work(loads: Loads) -> None:
    text = dedent("""\
        apiVersion: dapr.io/v1alpha1
        kind: Component
        metadata: {name: bus}
        spec:
          <<: &base {type: pubsub.old, version: v2}
          type: pubsub.jetstream
          metadata:
            - {name: a, value: &v {k: 1}}
            - {name: b, value: *v}
        """)
    [bus] = loads(text).components
    assert (bus.type, bus.version, bus.metadata["b"]) == ("pubsub.jetstream", "v2", '{"k":1}')


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (COMPONENT + "scope: [other]\n", r"0\.yaml:8: scope: unknown field, did you mean 'scopes'\?"),
        (
            COMPONENT + "  ignoreError: true\n",
            r"0\.yaml:8: spec\.ignoreError: unknown field, did you mean 'ignoreErrors'",
        ),
        (COMPONENT + "  zzz: true\n", r"spec\.zzz: unknown field \(known: type, version"),
        (COMPONENT.replace("name: bus", "nam: bus"), r"0\.yaml:4: metadata\.nam: unknown field, did you mean 'name'"),
        (COMPONENT + "  Type: x\n", r"0\.yaml:8: spec\.Type: given twice, the other is on line 6"),
        (COMPONENT.replace("name: bus", "labels: {}"), r"metadata: a component needs a name"),
        (COMPONENT + "  ignoreErrors: 'yes'\n", r"spec\.ignoreErrors: must be true or false \(got 'yes'\)"),
        (COMPONENT + "scopes: app\n", r"scopes: must be a list"),
        (COMPONENT + "scopes: [[app]]\n", r"scopes: must be a list of texts"),
        (COMPONENT + "  metadata: {a: b}\n", r"spec\.metadata: must be a list"),
        (with_metadata("- value: 5"), r"spec\.metadata\[0\]\.name: a metadata entry needs a name"),
        (
            with_metadata("- {name: a, valu: 5}"),
            r"0\.yaml:9: spec\.metadata\[0\]\.valu: unknown field, did you mean 'value'",
        ),
        (
            with_metadata("- {name: a}\n- {name: A}"),
            r"0\.yaml:10: spec\.metadata\[1\]\.name: 'A' is given twice, first on line 9",
        ),
        (with_metadata("- just"), r"spec\.metadata: entry 0 must be a mapping"),
        (COMPONENT.replace("type: pubsub.jetstream", "type: [x]"), r"spec\.type: must be text"),
        (COMPONENT.replace("pubsub.jet", "pubsubjet"), r"0\.yaml:6: spec\.type: incorrect type 'pubsubjetstream'"),
        (COMPONENT.replace("pubsub.jet", "Pubsub.jet"), "incorrect type"),
        (COMPONENT.replace("pubsub.jetstream", "nameresolution.mdns"), "incorrect type"),
        (COMPONENT.replace("type: pubsub.jetstream", "type:"), "incorrect type ''"),
        (
            with_metadata("- {name: p, secretKeyRef: {name: s, key: k}}"),
            r"0\.yaml:9: spec\.metadata\[0\]\.secretKeyRef: say with auth\.secretStore which secret store has 's'",
        ),
        (
            with_metadata("- {name: p, secretKeyRef: {key: k}}") + "auth: {secretStore: vault}\n",
            r"metadata\[0\]\.secretKeyRef: needs the name of a secret",
        ),
        (
            with_metadata("- {name: p, secretKeyRef: {name: s, kay: k}}") + "auth: {secretStore: vault}\n",
            r"secretKeyRef\.kay: unknown field, did you mean 'key'",
        ),
        (
            with_metadata("- {name: p, value: v, secretKeyRef: {name: s}}") + "auth: {secretStore: vault}\n",
            r"metadata\[0\]\.value: 'p' has a secretKeyRef too; keep one of the two",
        ),
        (with_metadata("- {name: p, value: 'x-{podName}'}"), r"needs the environment variable POD_NAME"),
        (SUBSCRIPTION.replace("routes:", "route:"), r"0\.yaml:7: spec\.route: unknown field, did you mean 'routes'"),
        (SUBSCRIPTION.replace("v2", "v1"), r"spec\.routes: unknown field, did you mean 'route'"),
        (SUBSCRIPTION.replace("default: /orders", "{}"), r"spec\.routes: a subscription needs a path"),
        (SUBSCRIPTION.replace("topic: orders", "topic: "), r"0\.yaml:6: spec\.topic: a subscription needs it"),
        (
            SUBSCRIPTION + "    rules: [{mach: x, path: y}]\n",
            r"spec\.routes\.rules\[0\]\.mach: unknown field, did you mean 'match'",
        ),
        (SUBSCRIPTION + "  bulkSubscribe: {enable: true}\n", r"spec\.bulkSubscribe\.enable: unknown field"),
    ],
)
def test_what_dapr_would_pass_over_is_an_error(loads: Loads, text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        loads(text)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"--resources-path .*nowhere: cannot be read: No such file"):
        load([tmp_path / "nowhere"], app_id="app", namespace="default", environ={})
    (tmp_path / "file.yaml").write_text(COMPONENT)
    with pytest.raises(ConfigurationError, match="Not a directory"):
        load([tmp_path / "file.yaml"], app_id="app", namespace="default", environ={})


def test_a_name_is_taken_by_the_first_that_this_app_loads(loads: Loads, tmp_path: Path) -> None:
    foreign, own = COMPONENT + "scopes: [other]\n", COMPONENT
    assert len(loads(foreign, own).components) == 1
    with pytest.raises(ConfigurationError, match=rf"1\.yaml:4: metadata\.name: 'bus' is taken by {tmp_path}/0\.yaml:1"):
        loads(own, foreign)


@pytest.mark.parametrize(
    ("namespace", "environ", "loaded"),
    [("prod", "prod", True), ("prod", "test", False), ("prod", None, True), ("prod", "", True), (None, "test", True)],
)
def test_namespaces_filter_components_only(
    loads: Loads, namespace: str | None, environ: str | None, loaded: bool
) -> None:
    extra = f"\n  namespace: {namespace}" if namespace else ""
    resources = loads(
        COMPONENT.replace("name: bus", f"name: bus{extra}"),
        SUBSCRIPTION.replace("{name: orders}", "{name: orders, namespace: elsewhere}"),
        environ={} if environ is None else {"NAMESPACE": environ},
    )
    assert len(resources.components) == loaded
    assert len(resources.subscriptions) == 1


def test_scopes_filter_both(loads: Loads) -> None:
    resources = loads(COMPONENT + "scopes: [other]\n", SUBSCRIPTION + "scopes: [other]\n")
    assert resources == Resources()
    assert len(loads(app_id="other").components) == 1


@pytest.mark.parametrize("name", ["a/b", "a%20b", ".", ".."])
def test_names_that_cannot_stand_in_a_path_are_skipped(loads: Loads, name: str) -> None:
    resources = loads(COMPONENT.replace("bus", f"'{name}'"))
    assert not resources.components
    assert "cannot stand in a URL path" in resources.warnings[0]


def test_ignore_errors_leaves_the_component_out(loads: Loads) -> None:
    resources = loads(with_metadata("- {name: p, secretKeyRef: {name: s}}") + "  ignoreErrors: true\n")
    assert not resources.components
    assert "component 'bus' is left out (ignoreErrors)" in resources.warnings[0]


def test_secrets_are_to_be_fetched(loads: Loads, tmp_path: Path) -> None:
    entries = "- {name: Url, value: x}\n- {name: Password, secretKeyRef: {name: db, key: pw}}\n"
    text = with_metadata(entries + "- {name: user, secretKeyRef: {name: root}}") + "auth: {secretStore: vault}\n"
    [bus] = loads(text).components
    assert dict(bus.metadata) == {"Url": "x", "Password": "", "user": ""}
    assert bus.references == {
        "password": SecretReference("vault", "db", "pw", f"{tmp_path}/0.yaml:10"),
        "user": SecretReference("vault", "root", "root", f"{tmp_path}/0.yaml:11"),
    }
    filled = bus.metadata.filled({"password": "p"})
    assert (dict(filled), filled.line("PASSWORD")) == ({"Url": "x", "Password": "p", "user": ""}, 10)


def test_a_fingerprint_is_of_what_a_manifest_says(loads: Loads) -> None:
    def fingerprint(text: str) -> str:
        return loads(text).components[0].fingerprint

    one = fingerprint(COMPONENT)
    assert one == fingerprint("# moved\n\n" + COMPONENT)
    assert one != fingerprint(COMPONENT.replace("v1\n", "v2\n"))
    templated = with_metadata("- {name: id, value: '{uuid}'}")
    assert fingerprint(templated) == fingerprint(templated)


def test_what_needs_a_restart_has_a_fingerprint(loads: Loads) -> None:
    endpoint = "apiVersion: dapr.io/v1alpha1\nkind: HTTPEndpoint\nmetadata: {name: e}\nspec: {baseUrl: http://h}\n"
    one = loads(COMPONENT, endpoint).restart_fingerprint
    assert one == loads(COMPONENT.replace("bus", "car"), endpoint).restart_fingerprint
    assert one != loads(COMPONENT, endpoint.replace("//h", "//i")).restart_fingerprint
    assert one != loads(COMPONENT, "# none").restart_fingerprint


def test_templates(loads: Loads) -> None:
    text = with_metadata(
        """
        - {name: a, value: "{appID}/{podName}/{uuid}/{uuid}/{unknown}"}
        - {name: b, value: "x-{namespace}"}
        """
    )
    [bus] = loads(text, namespace="prod", environ={"POD_NAME": "{appID}"}).components
    app, pod, first, second, unknown = bus.metadata["a"].split("/")
    assert (app, pod, unknown) == ("app", "{appID}", "{unknown}")
    assert first != second
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", first)
    assert bus.metadata["b"] == "x-prod.app"
    assert bus.namespace_scoped


def test_only_pubsub_components_become_namespace_scoped(loads: Loads) -> None:
    [store] = loads(with_metadata("- {name: b, value: '{namespace}'}", "state.redis")).components
    assert not store.namespace_scoped
    assert store.metadata["b"] == "default.app"


@pytest.mark.parametrize(
    ("environ", "reference", "value", "why"),
    [
        ({"X": "1"}, "X", "1", None),
        ({}, "X", "", "it is not set"),
        ({"APP_API_TOKEN": "t"}, "APP_API_TOKEN", "", "may not be read"),
        ({"DAPR_API_TOKEN": "t"}, "DAPR_API_TOKEN", "", "may not be read"),
        ({"dapr_x": "t"}, "dapr_x", "", "may not be read"),
        ({"A B": "t"}, "A B", "", "may not be read"),
        ({"X": "1", "DAPR_ENV_KEYS": "Y Z"}, "X", "", "DAPR_ENV_KEYS does not list it"),
        ({"X": "1", "DAPR_ENV_KEYS": "Y X"}, "X", "1", None),
    ],
)
def test_environment_references(
    loads: Loads, environ: dict[str, str], reference: str, value: str, why: str | None
) -> None:
    resources = loads(with_metadata(f"- {{name: a, envRef: {reference}}}"), environ=environ)
    assert resources.components[0].metadata["a"] == value
    assert [why in warning for warning in resources.warnings if why] == ([True] if why else [])
    assert bool(resources.warnings) == bool(why)
    assert not any("'t'" in warning for warning in resources.warnings)


def test_a_value_wins_over_an_environment_reference(loads: Loads) -> None:
    [bus] = loads(with_metadata("- {name: a, value: v, envRef: X}"), environ={"X": "1"}).components
    assert bus.metadata["a"] == "v"


@pytest.mark.parametrize(("text", "seconds"), [("2s", 2), ("", 5), ("-1s", 5), ("soon", 5), ("7", 5)])
def test_init_timeout(loads: Loads, text: str, seconds: float) -> None:
    resources = loads(COMPONENT + f"  initTimeout: '{text}'\n")
    assert resources.components[0].init_timeout == seconds
    assert len(resources.warnings) == (text in ("soon", "7"))


def test_unknown_metadata_is_reported_with_its_line(loads: Loads, tmp_path: Path) -> None:
    [bus] = loads(with_metadata("- {name: natsURL, value: x}\n- {name: durabel, value: x}")).components
    assert bus.unknown_metadata(["NatsUrl", "durableName"]) == [
        f"{tmp_path}/0.yaml:10: metadata.durabel: component 'bus' of type pubsub.jetstream has no such setting, "
        "did you mean 'durableName'?"
    ]
    assert bus.where("NATSURL") == f"{tmp_path}/0.yaml:9"


@pytest.mark.parametrize(
    ("denied", "version", "loaded"),
    [
        ([], "v1", True),
        (["state.redis"], "v1", True),
        (["pubsub.jetstream"], "v1", False),
        (["pubsub.jetstream/v1"], "v1", False),
        (["pubsub.jetstream/v2"], "v1", True),
        (["PUBSUB.jetstream"], "v1", True),
        (["state.redis"], "", False),
    ],
)
def test_denied_components(loads: Loads, denied: list[str], version: str, loaded: bool) -> None:
    resources = loads(COMPONENT.replace("version: v1", f"version: '{version}'"), denied=denied)
    assert len(resources.components) == loaded
    assert len(resources.warnings) == (not loaded)


def test_subscriptions_of_both_versions(loads: Loads) -> None:
    v1 = dedent("""\
        apiVersion: dapr.io/v1alpha1
        kind: Subscription
        spec:
          pubsubName: bus
          topic: 5
          route: old
          deadLetterTopic: dead
          metadata: {rawPayload: true, n: 1}
          bulkSubscribe: {enabled: true, maxMessagesCount: 10}
        """)
    rules = "    rules:\n    - match: event.type == 'x'\n      path: /x\n    - path: /y\n"
    old, new = loads(v1, SUBSCRIPTION + rules).subscriptions
    assert (old.topic, old.default, old.dead_letter_topic, old.bulk) == ("5", "old", "dead", (10, 0))
    assert old.metadata == {"rawPayload": "true", "n": "1"}
    assert new.rules == (("event.type == 'x'", "/x"), ("", "/y"))
    assert (new.name, new.default, new.bulk) == ("orders", "/orders", None)


def test_filters_of_a_subscription(loads: Loads) -> None:
    filters = "  filters:\n  - prefix: {type: order.}\n    not: {exact: {source: /x}}\n  - sql: number > 5\n"
    [found] = loads(SUBSCRIPTION + filters).subscriptions
    assert found.filters == [
        {"prefix": {"type": "order."}, "not": {"exact": {"source": "/x"}}},
        {"sql": "number > 5"},
    ]


def test_a_later_subscription_of_the_same_name_replaces_the_earlier(loads: Loads, tmp_path: Path) -> None:
    resources = loads(SUBSCRIPTION, SUBSCRIPTION.replace("/orders", "/other"))
    assert [s.default for s in resources.subscriptions] == ["/other"]
    assert resources.warnings == (
        f"{tmp_path}/1.yaml:1: subscription 'orders' replaces the one of {tmp_path}/0.yaml:1",
    )


@given(st.text(alphabet="ab: -[]{}&*!|>'\"#\n\t,?%@`<1.~", max_size=60) | st.text(max_size=60))
def test_any_text_parses_or_is_unreadable(text: str) -> None:
    for document in parse(text, "f"):
        assert isinstance(document, (Fields, Unreadable))
        if isinstance(document, Fields):
            as_text(document)


def test_no_folder_costs_no_yaml() -> None:
    code = (
        "import sys, mesh.configuration as c, mesh.resources as r;"
        "assert r.load([], app_id='a', namespace='n', environ={}) == r.Resources();"
        "assert c.load_configuration([], {}) == c.Configuration();"
        "sys.exit('yaml' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-P", "-c", code], timeout=30, check=False).returncode == 0


def test_metadata_is_a_mapping() -> None:
    metadata = Metadata({"Aa": "1"})
    assert (list(metadata), metadata["aA"], len(metadata), metadata.line("aa")) == (["Aa"], "1", 1, None)
    assert metadata == {"Aa": "1"}
