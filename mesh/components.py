"""What a component type is: its settings, declared once, from which files are checked and documentation is made.

A component is one module with a `SPEC`. `ComponentSpec.open` is called with settings that were checked against the
declared fields, so that a component never sees a text that it cannot use.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from mesh import quantities
from mesh.errors import ConfigurationError, clip
from mesh.ports import Clock, EventLog
from mesh.ports.alarms import AlarmClocks
from mesh.ports.tables import Tables
from mesh.resources import Component


class Kind(Enum):
    """How the text of a setting is read."""

    TEXT = "text"
    BOOL = "bool"
    """Dapr's truthy words."""
    INTEGER = "integer"
    NUMBER = "number"
    DURATION = "duration"
    """A Go duration, or a bare integer that counts `bare_unit` seconds."""
    SIZE = "size"
    """A Kubernetes quantity."""
    LIST = "list"
    """Texts with commas between them, blanks around each removed."""
    CHOICE = "choice"
    """One of the field's `choices`, in any letter case."""


@dataclass(frozen=True, slots=True)
class Field:
    """One setting of a component."""

    name: str
    about: str
    """One sentence for the documentation."""
    kind: Kind = Kind.TEXT
    default: Any = None
    """The value, not its text, when the setting is absent or empty."""
    required: bool = False
    secret: bool = False
    """Documented as one to take from a secret store, and never shown."""
    choices: Sequence[str] = ()
    aliases: Sequence[str] = ()
    bare_unit: float = 1.0
    minimum: float | None = None
    maximum: float | None = None
    refused: str = ""
    """Why a setting of Dapr's cannot be obeyed yet: with another value than the default it ends the start."""

    def read(self, text: str) -> Any:
        """The value of a text that is not empty. Raises `ValueError` with the rule that it breaks."""
        match self.kind:
            case Kind.TEXT:
                return text
            case Kind.BOOL:
                return quantities.truthy(text)
            case Kind.INTEGER:
                return self._within(quantities.integer(text))
            case Kind.NUMBER:
                return self._within(quantities.number(text))
            case Kind.DURATION:
                return self._within(quantities.duration(text, bare_unit=self.bare_unit))
            case Kind.SIZE:
                return self._within(quantities.quantity(text))
            case Kind.LIST:
                return quantities.comma_list(text)
            case Kind.CHOICE:
                for choice in self.choices:
                    if choice.lower() == text.lower():
                        return choice
                raise ValueError(f"must be one of {', '.join(self.choices)} (got '{clip(text)}')")

    def default_text(self) -> str:
        """The default as a file would have it; empty where there is none."""
        match self.default:
            case None | "":
                return ""
            case bool():
                return "true" if self.default else "false"
            case float() if self.kind is Kind.DURATION:
                return quantities.duration_text(self.default)
            case float():
                return f"{self.default:g}"
            case tuple() | list():
                return ",".join(self.default)
            case _:
                return str(self.default)

    def _within(self, value: float) -> float:
        if self.minimum is not None and value < self.minimum:
            raise ValueError(f"must be at least {self.minimum:g} (got {value:g})")
        if self.maximum is not None and value > self.maximum:
            raise ValueError(f"must be at most {self.maximum:g} (got {value:g})")
        return value


class Settings(Mapping[str, Any]):
    """The values of all declared fields by their name: as the file has them, else their defaults."""

    __slots__ = ("_component", "_keys", "_values")

    def __init__(self, component: Component, values: Mapping[str, Any], keys: Mapping[str, str] = {}) -> None:
        """`keys` has the key in the file of each field that stands there under one of its aliases."""
        self._component = component
        self._values = values
        self._keys = keys

    @property
    def origin(self) -> str:
        """`file:line` of the manifest."""
        return self._component.origin

    @property
    def namespace_scoped(self) -> bool:
        """As `Component.namespace_scoped`."""
        return self._component.namespace_scoped

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Settings({', '.join(self)})"  # values may be secret

    def given(self, name: str) -> bool:
        """Whether the file has the setting, and not empty."""
        return bool(self._component.metadata.get(self._key(name)))

    def present(self, name: str) -> bool:
        """Whether the file has the setting, be it empty."""
        return self._key(name) in self._component.metadata

    def reference(self, name: str) -> str | None:
        """The name of the secret that the setting is taken from; `None` when the file has the value itself."""
        reference = self._component.references.get(self._key(name).lower())
        return None if reference is None else reference.name

    def place(self, name: str) -> str:
        """`file:line: metadata.<key>` of a setting that the file has."""
        key = self._key(name)
        return f"{self._component.where(key)}: metadata.{key}"

    def fault(self, name: str, rule: str) -> ConfigurationError:
        """The error for a setting that cannot be obeyed, with its place in the file."""
        return ConfigurationError(f"{self.place(name)}: {rule}")

    def _key(self, name: str) -> str:
        return self._keys.get(name, name)


def read_settings(component: Component, fields: Sequence[Field]) -> Settings:
    """What a manifest says about `fields`.

    Raises `ConfigurationError`, with the place: for a setting that no field has, one that is missing, one that
    cannot be read, and one that is given under two of its names.
    """
    unknown = component.unknown_metadata(name for known in fields for name in (known.name, *known.aliases))
    if unknown:
        raise ConfigurationError("; ".join(unknown))
    values: dict[str, Any] = {}
    keys: dict[str, str] = {}
    settings = Settings(component, values, keys)
    for known in fields:
        given = [key for key in (known.name, *known.aliases) if component.metadata.get(key)]
        if len(given) > 1:
            raise settings.fault(given[1], f"{given[0]} is the same setting, and is given too")
        if given and given[0] != known.name:
            keys[known.name] = given[0]
        values[known.name] = _read(component, known, settings, given)
    return settings


def _read(component: Component, known: Field, settings: Settings, given: Sequence[str]) -> Any:
    if not given:
        if known.required:
            raise settings.fault(known.name, f"a component of type {component.type} needs it")
        return known.default
    try:
        value = known.read(component.metadata[given[0]])
    except ValueError as error:
        rule = str(error)
        if known.secret or settings.reference(known.name) is not None:
            rule = re.sub(r" \(got .*\)$", "", rule, flags=re.DOTALL)
        raise settings.fault(known.name, rule) from None
    if known.refused and value != known.default:
        raise settings.fault(known.name, known.refused)
    return value


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """What a component is made of."""

    name: str
    version: str
    settings: Settings
    app_id: str
    namespace: str
    clock: Clock
    tables: Tables
    """Those of the backbone."""
    alarms: AlarmClocks | None = None
    """Those of the backbone, in a sidecar."""
    events: EventLog | None = None
    """That of the backbone, in a sidecar."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ComponentSpec:
    """A type of component."""

    type: str
    """`<category>.<implementation>`, the implementation in lower case."""
    title: str
    about: str
    """A paragraph for the documentation: what it is for, what it can and cannot do."""
    open: Callable[[Setup], Any]
    """Makes the component without doing any I/O. Raises `ConfigurationError`."""
    versions: Sequence[str] = ("v1",)
    fields: Sequence[Field] = ()
    needs: str = ""
    """The extra that its library comes with: `pip install "meshwire[<needs>]"`."""
    features: Sequence[str] = field(default=())
    """As Dapr's metadata route names them, and Meshwire's own."""
    example: str = ""
    """A manifest, for the documentation."""
    shared: bool = False
    """What `open` returns is the backbone's own: it is there before the component, and outlives it."""

    @property
    def category(self) -> str:
        return self.type.partition(".")[0]


def _as_it_is(_setup: Setup, _spec: ComponentSpec, opened: Any) -> Any:
    return opened


def _features(spec: ComponentSpec, _made: Any) -> Sequence[str]:
    return spec.features


class Elsewhere:
    """Stands for a component that another app hosts: nothing is opened here."""

    async def start(self) -> None: ...

    async def ping(self) -> None: ...

    async def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Category:
    """What the components of one building block have in common, whatever is behind them."""

    name: str
    """The first part of the type, as in `state`."""
    title: str
    fields: Sequence[Field] = ()
    """Settings of all its types, beside their own."""
    make: Callable[[Setup, ComponentSpec, Any], Any] = _as_it_is
    """What the building block uses, from what `ComponentSpec.open` returned. Raises `ConfigurationError`."""
    is_elsewhere: Callable[[Component, str], bool] = lambda _manifest, _app_id: False
    """Whether another app than this one hosts the component. Then its own settings are that app's business: they are
    not looked at, its secrets are not fetched, and `make` gets an `Elsewhere`."""
    capabilities: Callable[[ComponentSpec, Any], Sequence[str]] = _features
    """What a component, as `make` returned it, can do: a word for each, as in `ComponentSpec.features`."""
