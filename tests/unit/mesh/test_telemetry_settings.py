"""`spec.tracing`, `spec.metric` and the `OTEL_*` variables."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mesh.configuration import Configuration, load_configuration
from mesh.documents import Fields, parse
from mesh.errors import ConfigurationError
from mesh.telemetry_settings import (
    DEFAULT_RATE,
    MetricsSettings,
    OtlpSettings,
    TracingSettings,
    read_metrics,
    read_tracing,
    with_environment,
)


def fields(text: str) -> Fields:
    (document,) = parse(text, "x.yaml")
    assert isinstance(document, Fields)
    return document


def tracing(text: str = "{}", **environ: str) -> TracingSettings:
    return with_environment(read_tracing(fields(text), TracingSettings()), environ)


def metrics(text: str = "{}") -> MetricsSettings:
    return read_metrics(fields(text), MetricsSettings())


def test_defaults() -> None:
    assert tracing() == TracingSettings(rate=DEFAULT_RATE)
    assert not tracing().active
    assert metrics() == MetricsSettings()
    assert len(MetricsSettings().buckets) == 34


@pytest.mark.parametrize(
    ("text", "rate"), [('"1"', 1.0), ("0.5", 0.5), ('"0"', 0.0), ('""', DEFAULT_RATE), ("~", DEFAULT_RATE)]
)
def test_rates(text: str, rate: float) -> None:
    assert tracing(f"samplingRate: {text}").rate == rate


def test_everything() -> None:
    settings = tracing("""
        samplingRate: "1"
        stdout: true
        zipkin: {endpointAddress: "http://zipkin:9411/api/v2/spans"}
        otel: {endpointAddress: "otel:4317", protocol: grpc, isSecure: false, headers: ["a=b=c", "D = e"], timeout: 2s}
        deliveryParent: creation
    """)
    assert settings == TracingSettings(
        rate=1.0,
        stdout=True,
        zipkin="http://zipkin:9411/api/v2/spans",
        otlp=OtlpSettings(
            protocol="grpc", endpoint="otel:4317", secure=False, headers=(("a", "b=c"), ("D", "e")), timeout=2.0
        ),
        below_creation=True,
    )
    assert settings.active
    assert "b=c" not in repr(settings)


def test_rate_0_is_off() -> None:
    assert not tracing('{samplingRate: "0", stdout: true}').active


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("samplingRate: often", "x.yaml:1: samplingRate: must be a number from 0 to 1 (got 'often')"),
        ("samplingRate: 1.1", "samplingRate: must be"),
        ("samplingRate: -0.1", "samplingRate: must be"),
        ("samplingRate: nan", "samplingRate: must be"),
        ("stdout: maybe", "stdout: must be true or false"),
        ("smaplingRate: 1", "smaplingRate: unknown field, did you mean 'samplingRate'?"),
        ("zipkin: {endpointAddress: 'zipkin:9411'}", "zipkin.endpointAddress: must be a URL"),
        ("otel: {endpointAddress: 'h:1'}", "otel.protocol: must be grpc or http"),
        ("otel: {endpointAddress: 'h:1', protocol: smoke}", "otel.protocol: must be grpc or http (got 'smoke')"),
        ("otel: {endpointAddress: 'http://h:1', protocol: http}", "otel.endpointAddress: must be host:port"),
        ("otel: {endpointAddress: 'h:1', protocol: http, timeout: soon}", "otel.timeout: must be a duration"),
        ("otel: {endpointAddress: 'h:1', protocol: http, timeout: 0s}", "otel.timeout: must be a duration"),
        ("otel: {endpointAddress: 'h:1', protocol: http, headers: [secret]}", "otel.headers: each must be key=value"),
        ('otel: {endpointAddress: "h:1", protocol: http, headers: ["a=secret\\r\\nb: 1"]}', "otel.headers: each"),
        ("deliveryParent: nobody", "deliveryParent: must be hop or creation (got 'nobody')"),
    ],
)
def test_faults_of_tracing(text: str, problem: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(problem)) as raised:
        tracing(text)
    assert "secret" not in str(raised.value)


def test_the_environment_fills_in() -> None:
    settings = tracing(
        OTEL_EXPORTER_OTLP_ENDPOINT="collector:4318",
        OTEL_EXPORTER_OTLP_PROTOCOL="grpc",
        OTEL_EXPORTER_OTLP_TRACES_PROTOCOL="http/protobuf",
        OTEL_EXPORTER_OTLP_HEADERS="a=b%20c,d=e",
        OTEL_EXPORTER_OTLP_TIMEOUT="1500",
        OTEL_EXPORTER_OTLP_INSECURE="true",
        OTEL_SERVICE_NAME="shop",
        OTEL_RESOURCE_ATTRIBUTES="team=a%2Cb",
    )
    assert settings.otlp == OtlpSettings(
        protocol="http", endpoint="collector:4318", secure=False, headers=(("a", "b c"), ("d", "e")), timeout=1.5
    )
    assert (settings.rate, settings.service_name, settings.resource) == (1.0, "shop", {"team": "a,b"})


def test_a_rate_of_the_files_holds_for_the_environments_collector() -> None:
    assert tracing('samplingRate: "0.5"', OTEL_EXPORTER_OTLP_ENDPOINT="h:1").rate == 0.5


def test_an_endpoint_of_the_files_shuts_the_environment_out() -> None:
    settings = tracing(
        "otel: {endpointAddress: 'mine:1', protocol: http}",
        OTEL_EXPORTER_OTLP_ENDPOINT="theirs:2",
        OTEL_EXPORTER_OTLP_HEADERS="authorization=secret",
    )
    assert settings.otlp == OtlpSettings(protocol="http", endpoint="mine:1")
    assert settings.rate == DEFAULT_RATE


@pytest.mark.parametrize(
    ("environ", "endpoint", "path", "secure"),
    [
        ({"ENDPOINT": "http://h:4318"}, "h:4318", "/v1/traces", False),
        ({"ENDPOINT": "https://h:4318/"}, "h:4318", "/v1/traces", True),
        ({"ENDPOINT": "https://h/base/"}, "h", "/base/v1/traces", True),
        ({"TRACES_ENDPOINT": "http://h:4318/my/traces", "ENDPOINT": "other:1"}, "h:4318", "/my/traces", False),
        ({"ENDPOINT": "h:4318"}, "h:4318", "/v1/traces", True),
        ({"ENDPOINT": "h:4318", "INSECURE": "TRUE"}, "h:4318", "/v1/traces", True),
        ({"ENDPOINT": "http://h:4318", "INSECURE": "false"}, "h:4318", "/v1/traces", False),
    ],
)
def test_endpoints_of_the_environment(environ: dict[str, str], endpoint: str, path: str, secure: bool) -> None:
    otlp = tracing(**{f"OTEL_EXPORTER_OTLP_{name}": value for name, value in environ.items()}).otlp
    assert otlp is not None
    assert (otlp.endpoint, otlp.path, otlp.secure, otlp.protocol) == (endpoint, path, secure, "grpc")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "ftp://h:1"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://user:secret@h:1"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "secret"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "a=secret%0d%0ab"),
        ("OTEL_RESOURCE_ATTRIBUTES", "=1"),
    ],
)
def test_faults_of_the_environment(variable: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{variable}: must be") as raised:
        tracing(**{"OTEL_EXPORTER_OTLP_ENDPOINT": "h:1", variable: value})
    assert "secret" not in str(raised.value)


def test_metrics() -> None:
    settings = metrics(r"""
        enabled: false
        recordErrorCodes: true
        http: {increasedCardinality: false, pathMatching: ["/orders/{id}"], excludeVerbs: true}
        latencyDistributionBuckets: [1, 2.5, 10]
        rules:
          - name: dapr_http/server/latency
            labels:
              - name: path
                regex: {"/orders/${1}": '/o/(\d+)', "/n/$name": '/n/(?<name>\w)\w+'}
    """)
    assert not settings.enabled
    assert settings.error_codes
    assert not settings.every_path
    assert settings.path_patterns == ("/orders/{id}",)
    assert settings.exclude_verbs
    assert settings.buckets == (1.0, 2.5, 10.0)
    (rule,) = settings.rules
    assert (rule.metric, rule.label) == ("http_server_latency", "path")
    (first, replacement), (second, named) = rule.replacements
    assert first.sub(replacement, "/o/17") == "/orders/17"
    assert second.sub(named, "/n/abc") == "/n/a"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("enabled: perhaps", "enabled: must be true or false"),
        ("http: {pathMatching: [orders]}", "http.pathMatching: must be paths"),
        ("http: {pathMatching: ['/a/{b']}", "http.pathMatching: must be paths"),
        ("latencyDistributionBuckets: [2, 1]", "latencyDistributionBuckets: must be"),
        ("latencyDistributionBuckets: [0]", "latencyDistributionBuckets: must be"),
        ("latencyDistributionBuckets: [often]", "latencyDistributionBuckets: must be"),
        ("workflow: {latencyDistributionUnits: ms}", "workflow: workflows are not there yet"),
        ("rules: [{labels: []}]", "a rule needs the name of a metric"),
        ("rules: [{name: a, labels: [{regex: {b: c}}]}]", "a rule needs the name of a label"),
        ("rules: [{name: a, labels: [{name: x, regex: {b: '('}}]}]", "the pattern or what replaces it is none"),
        ("rules: [{name: a, labels: [{name: x, regex: {$1: b}}]}]", "the pattern or what replaces it is none"),
    ],
)
def test_faults_of_metrics(text: str, problem: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(problem)):
        metrics(text)


def load(folder: Path, *specs: str) -> Configuration:
    files = []
    for number, spec in enumerate(specs):
        file = folder / f"{number}.yaml"
        file.write_text(f"apiVersion: dapr.io/v1alpha1\nkind: Configuration\nspec: {spec}\n")
        files.append(file)
    return load_configuration(files, {})


def test_a_later_file_changes_what_it_names(tmp_path: Path) -> None:
    configuration = load(
        tmp_path,
        "{tracing: {samplingRate: '1', stdout: true}, metric: {enabled: false, recordErrorCodes: true}}",
        "{tracing: {stdout: false}, metric: {enabled: true}}",
    )
    assert configuration.tracing == TracingSettings(rate=1.0)
    assert configuration.metrics == MetricsSettings(error_codes=True)
    assert not configuration.warnings


def test_of_the_two_names_of_metrics_the_second_wins(tmp_path: Path) -> None:
    assert not load(tmp_path, "{metrics: {enabled: false}, metric: {enabled: true}}").metrics.enabled


def test_a_fault_names_file_and_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"0\.yaml:3: spec\.tracing\.samplingRate: must be"):
        load(tmp_path, "{tracing: {samplingRate: 7}}")
