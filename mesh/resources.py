"""The manifests that a user gives: components, subscriptions, resiliency policies and HTTP endpoints.

Read at start, and again when a file has changed. What to load follows Dapr; what Dapr passes over without a word (an
unknown field, a key given twice) is an error here, with file, line and the nearest known name.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mesh.errors import ConfigurationError, clip
from mesh.quantities import duration, integer

if TYPE_CHECKING:
    from mesh.documents import Fields
    from mesh.http_endpoint import HttpEndpoint
    from mesh.resiliency.manifest import ResiliencyManifest

CATEGORIES = (
    "state",
    "pubsub",
    "bindings",
    "secretstores",
    "configuration",
    "lock",
    "crypto",
    "middleware",
    "conversation",
)
DEFAULT_INIT_TIMEOUT = 5.0

V1, _V2 = "dapr.io/v1alpha1", "dapr.io/v2alpha1"
_KINDS = ("Component", "Subscription", "Resiliency", "HTTPEndpoint")
# What Kubernetes keeps beside the name, without meaning to us.
OBJECT_METADATA = (
    *("name", "namespace", "labels", "annotations", "creationTimestamp", "deletionGracePeriodSeconds"),
    *("deletionTimestamp", "finalizers", "generateName", "generation", "managedFields", "ownerReferences"),
    *("resourceVersion", "selfLink", "uid"),
)


class Metadata(Mapping[str, str]):
    """A component's settings: found in any letter case, listed as the user wrote them."""

    __slots__ = ("_lines", "_values")

    def __init__(self, values: Mapping[str, str] = {}, lines: Mapping[str, int] = {}) -> None:
        self._values = {key.lower(): (key, value) for key, value in values.items()}
        self._lines = {key.lower(): line for key, line in lines.items()}

    def __getitem__(self, key: str) -> str:
        return self._values[key.lower()][1]

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and key.lower() in self._values

    def __iter__(self) -> Iterator[str]:
        return (key for key, _ in self._values.values())

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Metadata({', '.join(self)})"  # values may be secret

    def line(self, key: str) -> int | None:
        return self._lines.get(key.lower())

    def only(self, keys: Container[str]) -> Metadata:
        """Those of `keys`, which are in lower case."""
        return Metadata({key: value for key, value in self.items() if key.lower() in keys}, self._lines)

    def filled(self, values: Mapping[str, str]) -> Metadata:
        """These settings, some with another value."""
        return Metadata({**self, **{self._values[key.lower()][0]: value for key, value in values.items()}}, self._lines)


class SecretReference(NamedTuple):
    """`secretKeyRef`: a value that a secret store has."""

    store: str
    name: str
    key: str
    """Which of the values that a secret may have."""
    where: str
    """`file:line`."""


class Templates(NamedTuple):
    """What stands for `{uuid}`, `{podName}`, `{namespace}` and `{appID}` in the settings of components (Dapr)."""

    app_id: str
    namespace: str
    pod: str | None

    def fill(self, text: str) -> str:
        """Raises `ValueError` with what is missing."""
        return re.sub(r"\{(uuid|podName|namespace|appID)\}", self._one, text)

    def _one(self, match: re.Match[str]) -> str:
        match match[1]:
            case "uuid":
                return str(uuid.uuid4())
            case "namespace":
                return f"{self.namespace}.{self.app_id}"  # Dapr: not the namespace alone
            case "appID":
                return self.app_id
            case _:
                if not self.pod:
                    raise ValueError("{podName} needs the environment variable POD_NAME")
                return self.pod


@dataclass(frozen=True, kw_only=True, slots=True)
class Component:
    """A component manifest, templates and environment references resolved; secrets are still to be fetched."""

    name: str
    type: str
    """`<category>.<implementation>`, the implementation in lower case."""
    version: str = "v1"
    metadata: Metadata = field(default_factory=Metadata)
    references: Mapping[str, SecretReference] = field(default_factory=dict)
    """The secrets to fetch, by the key of the setting in lower case; until then those settings are empty."""
    scopes: tuple[str, ...] = ()
    namespace: str = ""
    ignore_errors: bool = False
    """Whether the start goes on without the component when it cannot be had."""
    init_timeout: float = DEFAULT_INIT_TIMEOUT
    """Seconds."""
    namespace_scoped: bool = False
    """Pub/sub only: some metadata value had `{namespace}`, so topics are prefixed with the namespace (Dapr)."""
    origin: str = ""
    """`file:line`."""
    fingerprint: str = field(default="", compare=False)
    """Two manifests with the same one say the same, wherever they stand."""

    def where(self, key: str) -> str:
        """`file:line` of a metadata key."""
        line = self.metadata.line(key)
        return f"{self.origin.rpartition(':')[0]}:{line}" if line else self.origin

    def unknown_metadata(self, known: Iterable[str]) -> list[str]:
        """One line for each metadata key that is not in `known`, with its place and the nearest known key."""
        from mesh.documents import did_you_mean

        known = tuple(known)
        lower = {name.lower() for name in known}
        return [
            f"{self.where(key)}: metadata.{clip(key)}: component '{self.name}' of type {self.type} has no such setting"
            f"{did_you_mean(key, known)}"
            for key in self.metadata
            if key.lower() not in lower
        ]


@dataclass(frozen=True, kw_only=True, slots=True)
class SubscriptionManifest:
    """A subscription manifest of either version as the user wrote it; `mesh.subscriptions` judges it."""

    name: str
    pubsub: str
    topic: str
    rules: tuple[tuple[str, str], ...] = ()
    """`match` and `path` of each rule, in order."""
    default: str = ""
    """`route` of v1alpha1, `routes.default` of v2alpha1."""
    dead_letter_topic: str = ""
    filters: Sequence[object] = ()
    """As written; `mesh.filters.dialects` judges them."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    bulk: tuple[int, int] | None = None
    """`maxMessagesCount` and `maxAwaitDurationMs`, 0 where there is none; `None` unless it is enabled."""
    scopes: tuple[str, ...] = ()
    origin: str = field(default="", compare=False)
    """`file:line`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EndpointToComplete:
    """An HTTPEndpoint manifest that lacks its secrets."""

    name: str
    origin: str
    references: tuple[SecretReference, ...]
    complete: Callable[[Mapping[SecretReference, str]], HttpEndpoint]
    """With the values of all `references`. Raises `ConfigurationError` for one that cannot stand where it should."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    components: tuple[Component, ...] = ()
    subscriptions: tuple[SubscriptionManifest, ...] = ()
    resiliency: tuple[ResiliencyManifest, ...] = ()
    http_endpoints: tuple[HttpEndpoint, ...] = ()
    endpoints_to_complete: tuple[EndpointToComplete, ...] = ()
    warnings: tuple[str, ...] = ()
    """What was passed over and why, one line each, for the log."""
    restart_fingerprint: str = ""
    """Of all that cannot be changed while a sidecar runs: resiliency, HTTP endpoints, Configurations."""


def load(
    paths: Sequence[Path], *, app_id: str, namespace: str, environ: Mapping[str, str], denied: Sequence[str] = ()
) -> Resources:
    """What the folders `paths` hold for this app (Dapr: loading components from disk).

    Only the top level of each folder, files ending `.yaml` or `.yml` in any case, sorted by name. `namespace`
    fills the templates; manifests are filtered by namespace only where `environ` sets `NAMESPACE`. `denied` is
    `components.deny` of the configuration.

    Raises `ConfigurationError` for a folder that is missing, a document that is no YAML (Dapr: passed over with a
    warning), a component name that is taken, and a manifest of this app's that says something unknown or impossible.
    A component with `ignoreErrors` that cannot be had is passed over with a warning.
    """
    loader = _Loader(app_id, namespace, environ, denied)
    for path in paths:
        loader.folder(path)
    return Resources(
        components=tuple(loader.components.values()),
        subscriptions=tuple(loader.subscriptions.values()),
        resiliency=tuple(loader.resiliency),
        http_endpoints=tuple(loader.http_endpoints.values()),
        endpoints_to_complete=tuple(loader.endpoints_to_complete.values()),
        warnings=tuple(loader.warnings),
        restart_fingerprint=" ".join(loader.of_a_restart),
    )


class _Refused(Exception):
    """A component that cannot be had; fatal unless it says `ignoreErrors`."""


class _Loader:
    def __init__(self, app_id: str, namespace: str, environ: Mapping[str, str], denied: Sequence[str]) -> None:
        self.app_id = app_id
        self.templates = Templates(app_id, namespace, environ.get("POD_NAME"))
        self.environ = environ
        self.denied = denied
        self.components: dict[str, Component] = {}
        self.subscriptions: dict[str, SubscriptionManifest] = {}
        self.resiliency: list[ResiliencyManifest] = []
        self.http_endpoints: dict[str, HttpEndpoint] = {}
        self.endpoints_to_complete: dict[str, EndpointToComplete] = {}
        self.warnings: list[str] = []
        self.of_a_restart: list[str] = []

    def folder(self, path: Path) -> None:
        try:
            files = sorted(file for file in path.iterdir() if file.suffix.lower() in (".yaml", ".yml"))
        except OSError as error:
            raise ConfigurationError(f"--resources-path {path}: cannot be read: {error.strerror}") from error
        for file in files:
            if file.is_file():
                self.file(file)

    def file(self, path: Path) -> None:
        from mesh.documents import Unreadable, read

        for document in read(path):
            if isinstance(document, Unreadable):  # who knows what it was: a default must not take its place
                raise ConfigurationError(document.reason)
            self.document(document)

    def document(self, document: Fields) -> None:
        kind, version = document.get("kind"), document.get("apiVersion")
        if kind in ("Configuration", "HTTPEndpoint", "Resiliency"):
            self.of_a_restart.append(_fingerprint(document))
        if kind == "Component" and version == V1:
            self.component(document)
        elif kind == "Subscription" and version in (V1, _V2):
            self.subscription(document, version)
        elif kind == "Resiliency" and version == V1:
            self.resiliency_manifest(document)
        elif kind == "HTTPEndpoint" and version == V1:
            self.http_endpoint(document)
        elif isinstance(version, str) and version.startswith("dapr.io/"):
            self.warnings.append(f"{document.at()}: kind {clip(kind)} of {clip(version)} has no effect yet, skipped")
        elif kind in _KINDS:
            self.warnings.append(f"{document.at()}: a {kind} must have the apiVersion {V1}, skipped")

    def named(
        self, top: Fields, noun: str, taken: Mapping[str, Component | HttpEndpoint | EndpointToComplete]
    ) -> str | None:
        """The name under which this app has the resource; `None` when it is not for this app."""
        about = top.fields("metadata").closed(*OBJECT_METADATA)
        own = self.environ.get("NAMESPACE")
        name, namespace = about.text("name"), about.text("namespace")
        if own and namespace and namespace != own:
            return None
        if not name:
            raise top.fault("metadata", f"{noun} needs a name")
        if name in (".", "..") or "/" in name or "%" in name:
            self.warnings.append(
                f"{about.at('name')}: the name '{clip(name)}' of {noun} cannot stand in a URL path, skipped"
            )
            return None
        if name in taken:
            raise about.fault("name", f"'{clip(name)}' is taken by {taken[name].origin}")
        scopes = top.texts("scopes")
        return None if scopes and self.app_id not in scopes else name

    def component(self, document: Fields) -> None:
        # Before the filters: a misspelt `scopes` must not hand the component to everybody.
        top = document.closed("apiVersion", "kind", "metadata", "spec", "auth", "scopes")
        name = self.named(top, "a component", self.components)
        if name is None:
            return
        spec = top.fields("spec").closed("type", "version", "ignoreErrors", "initTimeout", "metadata")
        ignore_errors = spec.flag("ignoreErrors")
        store = top.fields("auth").closed("secretStore").text("secretStore")
        try:
            if self._is_denied(spec, name):
                return
            type_ = self._type(spec)
            metadata, references, scoped = self._metadata(spec, store)
        except _Refused as refused:
            if not ignore_errors:
                raise ConfigurationError(f"{refused}") from None
            self.warnings.append(f"{refused}; component '{name}' is left out (ignoreErrors)")
            return
        self.components[name] = Component(
            name=name,
            type=type_,
            version=spec.text("version", "v1").lower() or "v1",
            metadata=metadata,
            references=references,
            scopes=top.texts("scopes"),
            namespace=top.fields("metadata").closed(*OBJECT_METADATA).text("namespace"),
            ignore_errors=ignore_errors,
            init_timeout=self._init_timeout(spec),
            namespace_scoped=scoped and type_.startswith("pubsub."),
            origin=document.at(),
            fingerprint=_fingerprint(document),
        )

    def _is_denied(self, spec: Fields, name: str) -> bool:
        """Dapr: compared as written; with any denial, a component without version is not loaded either."""
        type_, version = spec.text("type"), spec.text("version")
        if not self.denied or not (not version or type_ in self.denied or f"{type_}/{version}" in self.denied):
            return False
        why = "components.deny names its type" if version else "components.deny is set and it gives no version"
        self.warnings.append(f"{spec.at('type')}: component '{name}' is left out: {why}")
        return True

    @staticmethod
    def _type(spec: Fields) -> str:
        category, dot, implementation = spec.text("type").partition(".")
        if category not in CATEGORIES or not dot or not implementation:
            raise _Refused(
                spec.fault(
                    "type",
                    f"incorrect type '{clip(spec.text('type'))}': must be <category>.<implementation>, "
                    f"the category one of {', '.join(CATEGORIES)}",
                )
            )
        return f"{category}.{implementation.lower()}"

    def _init_timeout(self, spec: Fields) -> float:
        text = spec.text("initTimeout")
        try:
            seconds = duration(text, bare_unit=None) if text else 0.0
        except ValueError as error:
            self.warnings.append(f"{spec.at('initTimeout')}: spec.initTimeout: {error}; 5s is used")
            seconds = 0.0
        return seconds if seconds > 0 else DEFAULT_INIT_TIMEOUT

    def _metadata(self, spec: Fields, store: str) -> tuple[Metadata, dict[str, SecretReference], bool]:
        values: dict[str, str] = {}
        lines: dict[str, int] = {}
        seen: dict[str, int] = {}
        references: dict[str, SecretReference] = {}
        scoped = False
        for item in spec.entries("metadata"):
            entry = item.closed("name", "value", "secretKeyRef", "envRef")
            name = entry.text("name")
            if not name:
                raise entry.fault("name", "a metadata entry needs a name")
            if name.lower() in seen:
                raise entry.fault("name", f"'{clip(name)}' is given twice, first on line {seen[name.lower()]}")
            seen[name.lower()] = lines[name] = entry.line
            value = self._value(entry, name, store)
            if isinstance(value, SecretReference):
                references[name.lower()] = value
                value = ""
            scoped = scoped or "{namespace}" in value
            try:
                values[name] = self.templates.fill(value)
            except ValueError as error:
                raise _Refused(entry.fault("value", str(error))) from None
        return Metadata(values, lines), references, scoped

    def _value(self, entry: Fields, name: str, store: str) -> str | SecretReference:
        from mesh.documents import as_text

        if entry.get("secretKeyRef") is not None:
            return self._reference(entry, name, store)
        value, reference = as_text(entry.get("value")), entry.text("envRef")
        if value or not reference:
            return value
        allowed = self.environ.get("DAPR_ENV_KEYS")
        upper = reference.upper()
        if upper == "APP_API_TOKEN" or upper.startswith("DAPR_") or " " in reference:
            why = "this variable may not be read"
        elif allowed and reference not in allowed.split():
            why = "DAPR_ENV_KEYS does not list it"
        elif reference not in self.environ:
            why = "it is not set"
        else:
            return self.environ[reference]
        self.warnings.append(f"{entry.at('envRef')}: envRef {clip(reference)} is left empty: {why}")
        return ""

    def _reference(self, entry: Fields, name: str, store: str) -> SecretReference:
        for other in ("value", "envRef"):
            if entry.get(other):
                raise entry.fault(other, f"'{clip(name)}' has a secretKeyRef too; keep one of the two")
        fields = entry.fields("secretKeyRef").closed("name", "key")
        secret = fields.text("name")
        if not secret:
            raise entry.fault("secretKeyRef", "needs the name of a secret")
        if not store:
            raise _Refused(
                entry.fault("secretKeyRef", f"say with auth.secretStore which secret store has '{clip(secret)}'")
            )
        return SecretReference(store, secret, fields.text("key") or secret, entry.at("secretKeyRef"))

    def subscription(self, document: Fields, version: str) -> None:
        top = document.closed("apiVersion", "kind", "metadata", "spec", "scopes")
        scopes = top.texts("scopes")
        if scopes and self.app_id not in scopes:
            return
        name = top.fields("metadata").closed(*OBJECT_METADATA).text("name")
        route = "route" if version == V1 else "routes"
        spec = top.fields("spec").closed(
            "pubsubname", "topic", route, "deadLetterTopic", "metadata", "bulkSubscribe", "filters"
        )
        for required in ("pubsubname", "topic"):
            if not spec.text(required):
                raise spec.fault(required, "a subscription needs it")
        rules: list[tuple[str, str]] = []
        if version == V1:
            default = spec.text("route")
        else:
            routes = spec.fields("routes").closed("rules", "default")
            default = routes.text("default")
            for item in routes.entries("rules"):
                rule = item.closed("match", "path")
                rules.append((rule.text("match"), rule.text("path")))
        if not rules and not default:
            raise spec.fault(route, "a subscription needs a path to deliver to")
        bulk = spec.fields("bulkSubscribe").closed("enabled", "maxMessagesCount", "maxAwaitDurationMs")
        metadata = spec.fields("metadata")
        manifest = SubscriptionManifest(
            name=name,
            pubsub=spec.text("pubsubname"),
            topic=spec.text("topic"),
            rules=tuple(rules),
            default=default,
            dead_letter_topic=spec.text("deadLetterTopic"),
            filters=spec.sequence("filters"),
            metadata={key: metadata.text(key) for key in metadata},
            bulk=(_whole(bulk, "maxMessagesCount"), _whole(bulk, "maxAwaitDurationMs"))
            if bulk.flag("enabled")
            else None,
            scopes=scopes,
            origin=document.at(),
        )
        key = name or manifest.origin
        if key in self.subscriptions:
            self.warnings.append(
                f"{manifest.origin}: subscription '{clip(name)}' replaces the one of "
                f"{self.subscriptions.pop(key).origin}"
            )
        self.subscriptions[key] = manifest

    def resiliency_manifest(self, document: Fields) -> None:
        from mesh.resiliency.manifest import read_manifest

        top = document.closed("apiVersion", "kind", "metadata", "spec", "scopes")
        name = top.fields("metadata").closed(*OBJECT_METADATA).text("name")
        manifest = read_manifest(top.fields("spec"), name, document.at())
        scopes = top.texts("scopes")
        if not scopes or self.app_id in scopes:
            self.resiliency.append(manifest)

    def http_endpoint(self, document: Fields) -> None:
        from mesh.http_endpoint import read_endpoint

        top = document.closed("apiVersion", "kind", "metadata", "spec", "auth", "scopes")
        store = top.fields("auth").closed("secretStore").text("secretStore")
        name = self.named(top, "an HTTPEndpoint", {**self.http_endpoints, **self.endpoints_to_complete})
        if name is None:
            return
        spec, origin = top.fields("spec"), document.at()
        references: dict[SecretReference, str] = {}

        def value(entry: Fields, key: str) -> str:
            found = self._value(entry, key, store)
            return found if isinstance(found, str) else references.setdefault(found, _SECRET_TO_COME)

        def complete(secrets: Mapping[SecretReference, str]) -> HttpEndpoint:
            def secret_or_value(entry: Fields, key: str) -> str:
                found = self._value(entry, key, store)
                return found if isinstance(found, str) else secrets[found]

            return read_endpoint(spec, name, origin, secret_or_value)

        try:
            endpoint = read_endpoint(spec, name, origin, value)
        except _Refused as refused:
            raise ConfigurationError(f"{refused}") from None
        if references:
            self.endpoints_to_complete[name] = EndpointToComplete(
                name=name, origin=origin, references=tuple(references), complete=complete
            )
        else:
            self.http_endpoints[name] = endpoint


_SECRET_TO_COME = "-----BEGIN SECRET-----"  # noqa: S105
"""Passes for any secret, so that the rest of a manifest can be checked before there are any."""


def _fingerprint(document: Fields) -> str:
    from mesh.documents import as_text

    return hashlib.sha256(as_text(document).encode()).hexdigest()


__all__ = [
    "Component",
    "EndpointToComplete",
    "Metadata",
    "Resources",
    "SecretReference",
    "SubscriptionManifest",
    "Templates",
    "load",
]


def _whole(fields: Fields, key: str) -> int:
    """A whole number; 0 where there is none. Raises `ConfigurationError`."""
    try:
        return integer(fields.text(key) or "0")
    except ValueError as error:
        raise fields.fault(key, str(error)) from None
