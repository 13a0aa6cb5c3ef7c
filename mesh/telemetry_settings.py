"""What the Configuration manifest and the environment say about tracing and metrics.

`spec.tracing` and `spec.metric` (or `metrics`) are Dapr's; so are the `OTEL_*` variables that fill in for them.
What Dapr leaves out without a word (an exporter without protocol, a rate that is no number) is an error here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from mesh.errors import ConfigurationError, clip
from mesh.quantities import duration

if TYPE_CHECKING:
    from mesh.documents import Fields

DEFAULT_RATE = 0.0001
EXPORT_TIMEOUT = 10.0
"""Seconds (OpenTelemetry: `OTEL_EXPORTER_OTLP_TIMEOUT`)."""

_BUCKETS = (
    *(1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 20, 25, 30, 40, 50, 65, 80, 100, 130, 160, 200, 250, 300, 400, 500, 650, 800),
    *(1000, 2000, 5000, 10000, 20000, 50000, 100000),
)
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HOST_PORT = re.compile(r"(?:[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")


@dataclass(frozen=True, kw_only=True, slots=True)
class OtlpSettings:
    """Where spans go by OTLP."""

    protocol: str
    """`grpc` or `http`."""
    endpoint: str
    """`host:port`."""
    path: str = "/v1/traces"
    """For `http`."""
    secure: bool = True
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    timeout: float = EXPORT_TIMEOUT
    """Seconds for one export."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TracingSettings:
    """`spec.tracing`, with the environment."""

    rate: float | None = None
    """The part of new traces that is sampled; 0 turns tracing off; `None` until `with_environment` has filled it."""
    stdout: bool = False
    zipkin: str | None = None
    """URL of a collector."""
    otlp: OtlpSettings | None = None
    service_name: str | None = None
    """`None`: the app id."""
    resource: Mapping[str, str] = field(default_factory=dict)
    """Further attributes of the service (OpenTelemetry: `OTEL_RESOURCE_ATTRIBUTES`)."""
    below_creation: bool = False
    """`deliveryParent: creation`: deliveries are children of the context in which their event was created, in place
    of the hop that brought it here."""

    @property
    def active(self) -> bool:
        return self.rate != 0 and (self.stdout or self.zipkin is not None or self.otlp is not None)


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelRule:
    """Rewrites the values of a metric's label: each pattern that is found is replaced."""

    metric: str
    """Without `dapr_`."""
    label: str
    replacements: tuple[tuple[re.Pattern[str], str], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricsSettings:
    """`spec.metric`."""

    enabled: bool = True
    error_codes: bool = False
    buckets: tuple[float, ...] = _BUCKETS
    """Upper bounds of latencies, in milliseconds."""
    every_path: bool = True
    """`http.increasedCardinality`: paths that match no pattern are told apart, too."""
    path_patterns: tuple[str, ...] = ()
    exclude_verbs: bool = False
    rules: tuple[LabelRule, ...] = ()


def read_tracing(fields: Fields, earlier: TracingSettings) -> TracingSettings:
    """`spec.tracing`; what it does not say stays as in `earlier`, the files before.

    Raises `ConfigurationError` naming file, line and field.
    """
    known = fields.closed("samplingRate", "stdout", "zipkin", "otel", "deliveryParent")
    parent = known.text("deliveryParent") or ("creation" if earlier.below_creation else "hop")
    if parent not in ("hop", "creation"):
        raise known.fault("deliveryParent", f"must be hop or creation (got '{clip(parent)}')")
    zipkin = known.fields("zipkin").closed("endpointAddress")
    otel = known.fields("otel").closed("endpointAddress", "protocol", "isSecure", "headers", "timeout")
    return TracingSettings(
        rate=_rate(known) if "samplingRate" in known else earlier.rate,
        stdout=_boolean(known, "stdout", earlier.stdout),
        zipkin=_zipkin(zipkin) if zipkin else earlier.zipkin,
        otlp=_otlp(otel) if otel else earlier.otlp,
        below_creation=parent == "creation",
    )


def with_environment(settings: TracingSettings, environ: Mapping[str, str]) -> TracingSettings:
    """What the files leave open, by the `OTEL_*` variables (Dapr: those of the exporter only where no file names an
    endpoint; with theirs everything is sampled, unless a file says otherwise). Raises `ConfigurationError`."""
    otlp, rate = settings.otlp, settings.rate
    if otlp is None:
        otlp = _otlp_from_environment(environ)
        if otlp is not None and rate is None:
            rate = 1.0
    return replace(
        settings,
        rate=DEFAULT_RATE if rate is None else rate,
        otlp=otlp,
        service_name=environ.get("OTEL_SERVICE_NAME") or None,
        resource=dict(_pairs("OTEL_RESOURCE_ATTRIBUTES", environ)),
    )


def read_metrics(fields: Fields, earlier: MetricsSettings) -> MetricsSettings:
    """`spec.metric` or `spec.metrics`; what it does not say stays as in `earlier`.

    Raises `ConfigurationError` naming file, line and field.
    """
    known = fields.closed("enabled", "recordErrorCodes", "http", "latencyDistributionBuckets", "workflow", "rules")
    if known.get("workflow") is not None:
        raise known.fault("workflow", "workflows are not there yet, nor their metrics: remove it")
    http = known.fields("http").closed("increasedCardinality", "pathMatching", "excludeVerbs")
    patterns = http.texts("pathMatching")
    for pattern in patterns:
        if not re.fullmatch(r"/(?:[^{}]|\{[A-Za-z_]\w*(?:\.\.\.)?\}|\{\$\})*", pattern):
            raise http.fault("pathMatching", f"must be paths such as /orders/{{id}} (got '{clip(pattern)}')")
    rules = tuple(rule for entry in known.entries("rules") for rule in _rules(entry.closed("name", "labels")))
    return MetricsSettings(
        enabled=_boolean(known, "enabled", earlier.enabled),
        error_codes=_boolean(known, "recordErrorCodes", earlier.error_codes),
        buckets=_buckets(known) or earlier.buckets,
        every_path=_boolean(http, "increasedCardinality", earlier.every_path),
        path_patterns=patterns or earlier.path_patterns,
        exclude_verbs=_boolean(http, "excludeVerbs", earlier.exclude_verbs),
        rules=rules or earlier.rules,
    )


def _boolean(fields: Fields, name: str, default: bool) -> bool:
    return default if fields.get(name) is None else fields.flag(name)


def _rate(fields: Fields) -> float | None:
    text = fields.text("samplingRate")
    if not text:
        return None
    try:
        rate = float(text)
    except ValueError:
        rate = -1.0
    if not 0 <= rate <= 1:
        raise fields.fault("samplingRate", f"must be a number from 0 to 1 (got '{clip(text)}')")
    return rate


def _zipkin(fields: Fields) -> str | None:
    url = fields.text("endpointAddress")
    if not url:
        return None
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not _HOST_PORT.fullmatch(parts.netloc) or not url.isprintable():
        raise fields.fault("endpointAddress", "must be a URL such as http://localhost:9411/api/v2/spans")
    return url


def _otlp(fields: Fields) -> OtlpSettings | None:
    endpoint = fields.text("endpointAddress")
    if not endpoint:
        return None
    if not _HOST_PORT.fullmatch(endpoint):
        raise fields.fault("endpointAddress", f"must be host:port, without scheme and path (got '{clip(endpoint)}')")
    protocol = fields.text("protocol")
    if protocol not in ("grpc", "http"):
        raise fields.fault("protocol", f"must be grpc or http (got '{clip(protocol)}')")
    timeout = EXPORT_TIMEOUT
    if text := fields.text("timeout"):
        try:
            timeout = duration(text)
        except ValueError:
            timeout = 0.0
        if timeout <= 0:
            raise fields.fault("timeout", f"must be a duration such as 10s (got '{clip(text)}')")
    headers = []
    for entry in fields.texts("headers"):
        name, equals, value = entry.partition("=")
        if not equals or not _is_header(name.strip(), value.strip()):
            raise fields.fault("headers", "each must be key=value, of a header's characters")  # the value is a secret
        headers.append((name.strip(), value.strip()))
    return OtlpSettings(
        protocol=protocol,
        endpoint=endpoint,
        secure=_boolean(fields, "isSecure", True),
        headers=tuple(headers),
        timeout=timeout,
    )


def _otlp_from_environment(environ: Mapping[str, str]) -> OtlpSettings | None:
    """By the `OTEL_EXPORTER_OTLP_…` variables, of which those for traces go first. A scheme says whether the
    connection is encrypted (OpenTelemetry); without one it is, unless `…_INSECURE` is `true` (Dapr)."""

    def find(name: str) -> tuple[str, str]:
        for variable in (f"OTEL_EXPORTER_OTLP_TRACES_{name}", f"OTEL_EXPORTER_OTLP_{name}"):
            if environ.get(variable):
                return variable, environ[variable].strip()
        return "", ""

    variable, url = find("ENDPOINT")
    if not url:
        return None
    scheme, separator, rest = url.rpartition("://")
    endpoint, _, path = rest.partition("/")
    if scheme.lower() not in ("", "http", "https") or not _HOST_PORT.fullmatch(endpoint):
        raise ConfigurationError(f"{variable}: must be http://host:port, https://host:port or host:port")
    base = path.rstrip("/")
    path = f"/{path}" if "TRACES" in variable and base else f"/{base}/v1/traces" if base else "/v1/traces"
    protocol = "http" if find("PROTOCOL")[1].startswith("http") else "grpc"
    timeout_variable, milliseconds = find("TIMEOUT")
    if milliseconds and not re.fullmatch(r"[1-9][0-9]{0,8}", milliseconds):
        raise ConfigurationError(f"{timeout_variable}: must be milliseconds (got '{clip(milliseconds)}')")
    headers_variable, _ = find("HEADERS")
    return OtlpSettings(
        protocol=protocol,
        endpoint=endpoint,
        path=path,
        secure=scheme.lower() == "https" if separator else find("INSECURE")[1] != "true",
        headers=_pairs(headers_variable, environ, are_headers=True) if headers_variable else (),
        timeout=int(milliseconds) / 1000 if milliseconds else EXPORT_TIMEOUT,
    )


def _pairs(variable: str, environ: Mapping[str, str], *, are_headers: bool = False) -> tuple[tuple[str, str], ...]:
    """`key=value,key=value`, percent-encoded (OpenTelemetry: as in W3C Baggage)."""
    pairs = []
    for member in filter(None, map(str.strip, environ.get(variable, "").split(","))):
        name, equals, value = (unquote(part).strip() for part in member.partition("="))
        if not equals or not name or (are_headers and not _is_header(name, value)):
            raise ConfigurationError(f"{variable}: must be a comma list of key=value, percent-encoded")
        pairs.append((name, value))
    return tuple(pairs)


def _is_header(name: str, value: str) -> bool:
    return bool(_HEADER.fullmatch(name)) and value.isprintable() and value.isascii()


def _buckets(fields: Fields) -> tuple[float, ...]:
    texts = fields.texts("latencyDistributionBuckets")
    try:
        bounds = tuple(float(text) for text in texts)
    except ValueError:
        bounds = (0.0,)
    if any(bound <= 0 for bound in bounds) or list(bounds) != sorted(set(bounds)) or len(bounds) > 100:
        raise fields.fault("latencyDistributionBuckets", "must be up to 100 growing numbers of milliseconds above 0")
    return bounds


def _rules(entry: Fields) -> Sequence[LabelRule]:
    metric = entry.text("name").removeprefix("dapr_").replace("/", "_")
    if not metric:
        raise entry.fault("name", "a rule needs the name of a metric")
    rules = []
    for label in entry.entries("labels"):
        label = label.closed("name", "regex")
        if not label.text("name"):
            raise label.fault("name", "a rule needs the name of a label")
        replacements = []
        patterns = label.fields("regex")
        for replacement in patterns:
            pattern = patterns.text(replacement)
            # Go's templates: $1, ${1} and ${name}
            template = re.sub(r"\$(?:\{(\w+)\}|(\w+))", r"\\g<\1\2>", replacement.replace("\\", r"\\"))
            try:
                compiled = re.compile(re.sub(r"\(\?<(?=[A-Za-z_])", "(?P<", pattern))
                re.compile("|" + compiled.pattern, compiled.flags).sub(template, "")
            except (re.error, IndexError) as error:
                raise patterns.fault(replacement, f"the pattern or what replaces it is none: {error}") from None
            replacements.append((compiled, template))
        rules.append(LabelRule(metric=metric, label=label.text("name"), replacements=tuple(replacements)))
    return rules
