"""A configured binding: what all bindings have in common, whatever system is behind them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import msgspec

from mesh.components import ComponentSpec, Field, Kind, Settings, Setup
from mesh.delivery import settings as delivery
from mesh.errors import clip
from mesh.ports.bindings import InputBinding, OutputBinding

INPUT, OUTPUT = "input", "output"

FIELDS: Sequence[Field] = (
    Field(
        "direction",
        "What the component is used for: `input`, `output`, or `input, output`. An input that stands here is started "
        "without asking the app whether it wants it. Without a direction it is whatever its type can do, and the app "
        "is asked.",
        kind=Kind.LIST,
        default=(),
    ),
    Field("route", "The path of the app that the items of an input are posted to; the component's name by default."),
    *(field for field in delivery.FIELDS if field.name not in ("broadcast", "deadLetterTopic")),
)
"""The settings of every binding, beside its own: those of deliveries too, for an input."""


class BindingComponent(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    input: InputBinding | None
    output: OutputBinding | None
    route: str
    """The path on the app of an input, `/` included."""
    ask: bool
    """The app is asked whether it wants the input: nothing says so (Dapr: `direction`)."""
    statements: delivery.Statements = {}
    """What the manifest says of deliveries."""


def directions(settings: Settings) -> frozenset[str]:
    """`INPUT` and `OUTPUT`, as far as the file has them; empty when it says nothing. For an `open` whose settings
    depend on it. Raises `ConfigurationError`."""
    given = frozenset(word.lower() for word in settings["direction"])
    for word in given - {INPUT, OUTPUT}:
        raise settings.fault("direction", f"must be {INPUT}, {OUTPUT}, or both (got '{clip(word)}')")
    return given


def make(setup: Setup, spec: ComponentSpec, opened: Any) -> BindingComponent:
    """The component of what `open` returned: an `InputBinding` when it has `run`, an `OutputBinding` when it has
    `invoke`, or both in one object. Raises `ConfigurationError`, with the place in the file."""
    can = {word for word, verb in ((INPUT, "run"), (OUTPUT, "invoke")) if callable(getattr(opened, verb, None))}
    wanted = directions(setup.settings)
    for word in wanted - can:
        raise setup.settings.fault("direction", f"a component of type {spec.type} is no {word}")
    used = wanted or can
    statements = delivery.of_component(setup.settings)
    if statements and INPUT not in used:
        raise setup.settings.fault(next(iter(statements)), "is for an input, and the component is none")
    return BindingComponent(
        name=setup.name,
        input=cast(InputBinding, opened) if INPUT in used else None,
        output=cast(OutputBinding, opened) if OUTPUT in used else None,
        route="/" + (setup.settings["route"] or setup.name).lstrip("/"),
        ask=not wanted,
        statements=statements,
    )


def capabilities(spec: ComponentSpec, component: BindingComponent) -> Sequence[str]:
    """Dapr's words, and those of the type."""
    used = [word for word, side in (("INPUT_BINDING", component.input), ("OUTPUT_BINDING", component.output)) if side]
    return [*used, *spec.features]
