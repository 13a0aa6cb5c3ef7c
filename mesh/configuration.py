"""The Configuration manifest: what the `--config` files say about the sidecar itself.

Read once, at start. What Dapr passes over without a word (an unknown field, a key given twice) is an error
here, with file, line and the nearest known name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mesh.access import AccessPolicy, read_access_policy
from mesh.errors import ConfigurationError, clip
from mesh.resources import OBJECT_METADATA, V1
from mesh.secrets import SecretScopes, read_scopes
from mesh.telemetry_settings import MetricsSettings, TracingSettings, read_metrics, read_tracing

if TYPE_CHECKING:
    from mesh.documents import Fields


@dataclass(frozen=True, kw_only=True, slots=True)
class ApiRule:
    """One entry of `api.allowed` or `api.denied`."""

    name: str
    version: str
    protocol: str = "http"

    def matches(self, group: str, route: str) -> bool:
        rule = f"{self.version}/{self.name}"
        return rule == group or route.lstrip("/").startswith(rule)


@dataclass(frozen=True, kw_only=True, slots=True)
class ApiLogging:
    """`logging.apiLogging`: which calls of the API are logged."""

    enabled: bool = False
    """Unless `--enable-api-logging` says otherwise."""
    omit_health_checks: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Configuration:
    """The Configuration manifest. Without one, everything is allowed."""

    api_allowed: tuple[ApiRule, ...] = ()
    api_denied: tuple[ApiRule, ...] = ()
    access: AccessPolicy | None = None
    """Who may call this app; `None` lets everybody in."""
    components_deny: tuple[str, ...] = ()
    """`type` or `type/version` of components that may not be loaded."""
    secret_scopes: SecretScopes = field(default_factory=SecretScopes)
    """Which secrets the app may read through the API."""
    hot_reload: bool = True
    """Whether changes to the files of `--resources-path` take effect while the sidecar runs."""
    api_logging: ApiLogging = ApiLogging()
    tracing: TracingSettings = field(default_factory=TracingSettings)
    metrics: MetricsSettings = field(default_factory=MetricsSettings)
    warnings: tuple[str, ...] = ()

    def serves(self, group: str, route: str) -> bool:
        """Whether an HTTP endpoint is on: `group` as `v1/publish`, `route` as `/v1.0/publish/{pubsub}/{topic}`.

        Dapr: denials first, then, with any allowance for HTTP, only what is allowed; health is always on.
        """
        if group.endswith("/healthz"):
            return True
        if any(rule.matches(group, route) for rule in self.api_denied if rule.protocol == "http"):
            return False
        allowed = [rule for rule in self.api_allowed if rule.protocol == "http"]
        return not allowed or any(rule.matches(group, route) for rule in allowed)


_SECTIONS = (
    *("httpPipeline", "appHttpPipeline", "tracing", "metric", "metrics", "mtls", "accessControl", "secrets"),
    *("nameResolution", "features", "api", "components", "logging", "wasm", "workflow"),
)
# To pass over one of these would open what the user closed.
_GUARDS = ("httpPipeline", "appHttpPipeline")
_READ = frozenset(
    ("accessControl", "api", "components", "features", "logging", "metric", "metrics", "secrets", "tracing")
)
HOT_RELOAD = "HotReload"


def load_configuration(paths: Sequence[Path], environ: Mapping[str, str]) -> Configuration:
    """The `--config` files, merged in order: mappings field by field, everything else replaced by the later.

    `$NAME` and `${NAME}` in the text are replaced from `environ` first; a name that is not set is empty (Dapr),
    with a warning. Raises `ConfigurationError` for a file that cannot be read or is no Configuration, for an
    unknown field, and for the sections that guard something and are not there yet.
    """
    warnings: list[str] = []
    denied: tuple[str, ...] = ()
    access: list[Fields] = []
    secret_scopes = SecretScopes()
    features = {HOT_RELOAD: True}
    api_logging = ApiLogging()
    tracing, metrics = TracingSettings(), MetricsSettings()
    rules: dict[str, tuple[ApiRule, ...]] = {}
    for path in paths:
        for document in _configuration_documents(path, environ, warnings):
            top = document.closed("apiVersion", "kind", "metadata", "spec")
            top.fields("metadata").closed(*OBJECT_METADATA)
            spec = top.fields("spec").closed(*_SECTIONS)
            api = spec.fields("api").closed("allowed", "denied")
            rules |= {side: tuple(_api_rules(api, side)) for side in api}
            components = spec.fields("components").closed("deny")
            denied = components.texts("deny") if "deny" in components else denied
            access.append(spec.fields("accessControl"))
            if spec.get("secrets") is not None:
                secret_scopes = read_scopes(spec.fields("secrets"))
            features |= _features(spec, warnings)
            api_logging = _api_logging(spec.fields("logging").closed("apiLogging").fields("apiLogging"), api_logging)
            tracing = read_tracing(spec.fields("tracing"), tracing)
            for alias in ("metric", "metrics"):  # of which the second wins (Dapr)
                metrics = read_metrics(spec.fields(alias), metrics)
            for section in [name for name in spec if name not in _READ]:
                if section in _GUARDS and _says_something(spec[section]):
                    raise spec.fault(section, "not there yet, and leaving it out would open what it guards")
                warnings.append(f"{spec.at(section)}: spec.{section} has no effect yet")
    return Configuration(
        api_allowed=rules.get("allowed", ()),
        api_denied=rules.get("denied", ()),
        access=read_access_policy(access),
        components_deny=denied,
        secret_scopes=secret_scopes,
        hot_reload=features[HOT_RELOAD],
        api_logging=api_logging,
        tracing=tracing,
        metrics=metrics,
        warnings=tuple(warnings),
    )


def _configuration_documents(path: Path, environ: Mapping[str, str], warnings: list[str]) -> Iterator[Fields]:
    from mesh.documents import Unreadable, parse

    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigurationError(f"--config {path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise ConfigurationError(f"--config {path}: not UTF-8") from None
    missing: dict[str, None] = {}

    def expand(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name not in environ:
            missing[name] = None
        return environ.get(name, "")

    text = re.sub(r"\$(?:\{([A-Za-z_]\w*)\}|([A-Za-z_]\w*))", expand, text, flags=re.ASCII)
    warnings += [f"{path}: the environment variable {name} is not set, so it is empty" for name in missing]
    for document in parse(text, str(path)):
        if isinstance(document, Unreadable):
            raise ConfigurationError(f"--config {document.reason}")
        if document.get("kind", "Configuration") != "Configuration" or document.get("apiVersion", V1) != V1:
            raise ConfigurationError(f"--config {document.at()}: must be kind Configuration of {V1}")
        yield document


def _api_rules(api: Fields, side: str) -> Iterator[ApiRule]:
    for entry in api.entries(side):
        rule = entry.closed("name", "version", "protocol")
        protocol = rule.text("protocol", "http").lower()
        if protocol not in ("http", "grpc"):
            raise rule.fault("protocol", f"must be http or grpc (got '{clip(protocol)}')")
        for required in ("name", "version"):
            if not rule.text(required):
                raise rule.fault(required, "an API rule needs it")
        yield ApiRule(name=rule.text("name"), version=rule.text("version"), protocol=protocol)


def _features(spec: Fields, warnings: list[str]) -> dict[str, bool]:
    """Names are compared as they are written (Dapr)."""
    features: dict[str, bool] = {}
    for entry in spec.entries("features"):
        feature = entry.closed("name", "enabled")
        name = feature.text("name")
        if name == HOT_RELOAD:
            features[name] = feature.flag("enabled")
        else:
            warnings.append(f"{feature.at('name')}: {feature.named('name')}: the feature '{clip(name)}' has no effect")
    return features


def _api_logging(fields: Fields, earlier: ApiLogging) -> ApiLogging:
    known = fields.closed("enabled", "obfuscateURLs", "omitHealthChecks")
    if known.get("obfuscateURLs") is not None and known.flag("obfuscateURLs"):
        raise known.fault("obfuscateURLs", "not there yet, and leaving it out would log what it hides")
    return ApiLogging(
        enabled=earlier.enabled if known.get("enabled") is None else known.flag("enabled"),
        omit_health_checks=(
            earlier.omit_health_checks if known.get("omitHealthChecks") is None else known.flag("omitHealthChecks")
        ),
    )


def _says_something(value: object) -> bool:
    """Whether any leaf is there: `{handlers: []}` says nothing."""
    if isinstance(value, Mapping):
        return any(_says_something(member) for member in value.values())
    return bool(value)
