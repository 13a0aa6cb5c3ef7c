"""Which types of components there are: our own by the table below, others by Python entry points.

Nothing is imported before a manifest, or the documentation, asks for it. A package of somebody else's joins by an
entry point of the group `meshwire.components` with the type as its name and a `ComponentSpec`, or a sequence of them
(one for each version), as its value.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points

from mesh.components import Category, ComponentSpec
from mesh.errors import ConfigurationError, clip

GROUP = "meshwire.components"

BUILT_IN: Mapping[str, str] = {
    "bindings.aws.dynamodb": "bindings.bindings.aws_dynamodb",
    "bindings.aws.s3": "bindings.bindings.aws_s3",
    "bindings.aws.sqs": "bindings.bindings.aws_sqs",
    "bindings.cron": "mesh.bindings.cron",
    "bindings.files": "bindings.bindings.files",
    "bindings.http": "bindings.bindings.http",
    "bindings.kafka": "bindings.bindings.kafka",
    "bindings.localstorage": "bindings.bindings.localstorage",
    "bindings.mqtt3": "bindings.bindings.mqtt3",
    "bindings.nats": "bindings.bindings.nats",
    "bindings.postgresql": "bindings.bindings.postgresql",
    "bindings.redis": "bindings.bindings.redis",
    "bindings.smtp": "bindings.bindings.smtp",
    "bindings.sqlite": "bindings.bindings.sqlite",
    "bindings.webhook": "bindings.bindings.webhook",
    "configuration.meshwire": "mesh.appconfig.backbone",
    "configuration.postgresql": "bindings.configuration.postgresql",
    "configuration.redis": "bindings.configuration.redis",
    "lock.meshwire": "mesh.locks.backbone",
    "lock.redis": "bindings.lock.redis",
    "pubsub.in-memory": "bindings.pubsub.in_memory",
    "pubsub.meshwire": "mesh.pubsub_component",
    "secretstores.hashicorp.vault": "bindings.secretstores.hashicorp_vault",
    "secretstores.kubernetes": "bindings.secretstores.kubernetes",
    "secretstores.local.env": "bindings.secretstores.local_env",
    "secretstores.local.file": "bindings.secretstores.local_file",
    "state.aws.dynamodb": "bindings.state.aws_dynamodb",
    "state.in-memory": "bindings.state.in_memory",
    "state.meshwire": "mesh.state.backbone",
    "state.postgresql": "bindings.state.postgresql",
    "state.redis": "bindings.state.redis",
    "state.sqlite": "bindings.state.sqlite",
}
"""Module of each type. It has a `SPEC`, or `SPECS` when the versions of a type differ."""

ALIASES: Mapping[str, str] = {
    "bindings.mqtt": "bindings.mqtt3",
    "bindings.postgres": "bindings.postgresql",
    "configuration.postgres": "configuration.postgresql",
    "state.postgres": "state.postgresql",
    "state.sqlite3": "state.sqlite",
}
"""Dapr's other names."""

_EXTRAS = {
    "aiobotocore": "aws",
    "aiokafka": "kafka",
    "aiomqtt": "mqtt",
    "aiosmtplib": "smtp",
    "botocore": "aws",
    "cryptography": "crypto",
    "httpcore": "http",
    "psycopg": "postgresql",
    "redis": "redis",
    "watchfiles": "files",
}


def _pubsub() -> Category:
    from mesh import pubsub_component as common

    return Category(name="pubsub", title="Pub/sub", fields=common.FIELDS, make=common.make)


def _state() -> Category:
    from mesh.ports.stores import StateFeature
    from mesh.state import component as common

    def capabilities(_spec: ComponentSpec, component: common.StateComponent) -> Sequence[str]:
        features = sorted(feature.value for feature in component.features)
        actors = component.features >= {StateFeature.ETAG, StateFeature.TRANSACTIONAL, StateFeature.FENCE}
        return [*features, "ACTOR"] if actors else features

    return Category(
        name="state", title="State stores", fields=common.FIELDS, make=common.make, capabilities=capabilities
    )


def _lock() -> Category:
    from mesh.locks import component as common

    return Category(name="lock", title="Locks", fields=common.FIELDS, make=common.make)


def _bindings() -> Category:
    from mesh.bindings import component as common

    return Category(
        name="bindings",
        title="Bindings",
        fields=common.FIELDS,
        make=common.make,
        is_elsewhere=common.is_elsewhere,
        capabilities=common.capabilities,
    )


CATEGORIES: Mapping[str, Callable[[], Category]] = {
    "secretstores": lambda: Category(name="secretstores", title="Secret stores"),
    "pubsub": _pubsub,
    "state": _state,
    "configuration": lambda: Category(name="configuration", title="Configuration stores"),
    "lock": _lock,
    "bindings": _bindings,
}
"""In the order in which components start: what others refer to comes first."""


def find(type_: str, version: str) -> ComponentSpec:
    """`version` in lower case.

    Raises `ConfigurationError` for a type or a version that there is not, that several packages bring, or of a
    category that is not there yet, and when its library is missing.
    """
    type_ = ALIASES.get(type_, type_)
    category = type_.partition(".")[0]
    found = specs(type_)
    if not found or category not in CATEGORIES:
        raise ConfigurationError(f"there are no components of type {clip(type_)}{_what_there_is(type_, category)}")
    versions = [known for spec in found for known in spec.versions]
    if version == "v0":
        version = versions[0]  # Dapr: it is the first one
    fitting = [spec for spec in found if version in spec.versions]
    if len(fitting) > 1:
        raise ConfigurationError(
            f"{len(fitting)} packages bring components of type {type_}, {version}: keep one of them"
        )
    if fitting:
        return fitting[0]
    raise ConfigurationError(
        f"components of type {type_} have no version {clip(version)} (there is: {', '.join(versions)})"
    )


def _what_there_is(type_: str, category: str) -> str:
    known = {name.removeprefix(f"{category}."): name for name in names() if name.startswith(f"{category}.")}
    if category not in CATEGORIES or not known:
        return f"; the category {clip(category)} is not there yet"
    near = difflib.get_close_matches(type_.removeprefix(f"{category}."), known, n=1)
    meant = f", did you mean '{known[near[0]]}'?" if near else ""
    return f"{meant} (there are: {', '.join(known.values())})"


def names() -> list[str]:
    """Every type, of our own and of packages that are installed."""
    return sorted({*BUILT_IN, *(point.name for point in _foreign())})


def specs(type_: str) -> Sequence[ComponentSpec]:
    """One for each group of versions that are alike; none for a type that there is not. Raises as `find`."""
    if type_ in BUILT_IN:
        try:
            module = importlib.import_module(BUILT_IN[type_])
        except ImportError as error:
            raise missing_library(type_, error) from error
        found = getattr(module, "SPECS", None) or [module.SPEC]
        return [spec for spec in found if spec.type == type_]
    return [spec for point in _foreign() if point.name == type_ for spec in _load(point)]


def missing_library(what: str, error: ImportError, extra: str = "") -> ConfigurationError:
    """What to install when `what` cannot be imported."""
    extra = extra or _EXTRAS.get((error.name or "").partition(".")[0], "")
    remedy = f'pip install "meshwire[{extra}]"' if extra else "install what it needs"
    return ConfigurationError(f"{what} needs a library that is not installed: {remedy} ({error})")


def _foreign() -> Iterable[EntryPoint]:
    return [point for point in entry_points(group=GROUP) if point.name not in BUILT_IN]


def _load(point: EntryPoint) -> Sequence[ComponentSpec]:
    origin = f"{point.name}, which the package {point.dist.name if point.dist else '?'} brings as {point.value},"
    try:
        found = point.load()
    except ImportError as error:
        raise missing_library(origin, error) from error
    except Exception as error:
        raise ConfigurationError(f"{origin} cannot be loaded: {type(error).__name__}: {error}") from error
    brought = [found] if isinstance(found, ComponentSpec) else found
    if not isinstance(brought, Sequence) or not all(
        isinstance(spec, ComponentSpec) and spec.type == point.name for spec in brought
    ):
        raise ConfigurationError(f"{origin} must be a ComponentSpec of type {point.name}, or a sequence of them")
    return brought
