"""What a component type is: its settings, declared once, from which files are checked and documentation is made.

A component is one module with a `SPEC`. `ComponentSpec.open` is called with settings that were checked against the
declared fields, so that a component never sees a text that it cannot use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from mesh import quantities
from mesh.errors import ConfigurationError, clip
from mesh.ports import Clock
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
                return self._within(float(text))
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

    def _within(self, value: float) -> float:
        if self.minimum is not None and value < self.minimum:
            raise ValueError(f"must be at least {self.minimum:g} (got {value:g})")
        if self.maximum is not None and value > self.maximum:
            raise ValueError(f"must be at most {self.maximum:g} (got {value:g})")
        return value


class Settings(Mapping[str, Any]):
    """The values of all declared fields by their name: as the file has them, else their defaults."""

    __slots__ = ("_component", "_values")

    def __init__(self, component: Component, values: Mapping[str, Any]) -> None:
        self._component = component
        self._values = values

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
        return bool(self._component.metadata.get(name))

    def fault(self, name: str, rule: str) -> ConfigurationError:
        """The error for a setting that cannot be obeyed, with its place in the file."""
        return ConfigurationError(f"{self._component.where(name)}: metadata.{name}: {rule}")


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
