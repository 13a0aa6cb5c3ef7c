"""A configured binding: what all bindings have in common, whatever system is behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import msgspec

from mesh.components import ComponentSpec, Elsewhere, Field, Kind, Settings, Setup, read_settings
from mesh.delivery import settings as delivery
from mesh.errors import clip
from mesh.invocation.target import InvalidTarget, peer
from mesh.ports import Peer
from mesh.ports.bindings import InputBinding, OutputBinding
from mesh.resources import Component

INPUT, OUTPUT = "input", "output"
EVERYBODY = "*"

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
    Field(
        "hostedBy",
        "The app that hosts the output binding, as `app` or `app.namespace`: all others call it over the broker of the "
        "mesh, and the type's own settings are read by that app only. Default: each app that has the component.",
    ),
    Field(
        "hostedFor",
        "At the app that hosts it: which other apps may call the output binding, as `app` or `app.namespace`; `*` is "
        "every app of the namespace. Default: none.",
        kind=Kind.LIST,
        default=(),
    ),
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
    host: str = ""
    """The other app that hosts the output: `app`, or `app.namespace`."""
    hosted_for: Sequence[str] = ()
    """The apps that may call the output, named so; `EVERYBODY` is every app of the namespace."""

    def serves(self, caller: Peer, namespace: str) -> bool:
        """Whether `caller` may call the output of an app of `namespace`."""
        if caller.namespace == namespace and not {EVERYBODY, caller.app_id}.isdisjoint(self.hosted_for):
            return True
        return f"{caller.app_id}.{caller.namespace}" in self.hosted_for


def is_elsewhere(manifest: Component, app_id: str) -> bool:
    """Whether another app than this one hosts the component. One of this name in another namespace is not meant."""
    return manifest.metadata.get("hostedBy", "").partition(".")[0] not in ("", app_id)


def directions(settings: Settings) -> frozenset[str]:
    """`INPUT` and `OUTPUT`, as far as the file has them; empty when it says nothing. For an `open` whose settings
    depend on it. Raises `ConfigurationError`."""
    given = frozenset(word.lower() for word in settings["direction"])
    for word in given - {INPUT, OUTPUT}:
        raise settings.fault("direction", f"must be {INPUT}, {OUTPUT}, or both (got '{clip(word)}')")
    return given


def statements_of(manifest: Component, app_id: str) -> delivery.Statements:
    """What a manifest says of deliveries to this app, whatever secrets it needs. Raises `ConfigurationError`, with the
    place."""
    if is_elsewhere(manifest, app_id):
        return {}
    known = [field for field in delivery.FIELDS if field in FIELDS]
    own = manifest.metadata.only({field.name.lower() for field in known})
    return delivery.of_component(read_settings(replace(manifest, metadata=own, references={}), delivery.FIELDS))


def make(setup: Setup, spec: ComponentSpec, opened: Any) -> BindingComponent:
    """The component of what `open` returned: an `InputBinding` when it has `run`, an `OutputBinding` when it has
    `invoke`, or both in one object. Raises `ConfigurationError`, with the place in the file."""
    wanted = directions(setup.settings)
    host, hosted_for = _apps(setup.settings, "hostedBy"), _apps(setup.settings, "hostedFor")
    for key, given in (("hostedBy", host), ("hostedFor", hosted_for)):
        if given and wanted == {INPUT}:
            raise setup.settings.fault(key, "is for an output, and the component is none")
    route = "/" + (setup.settings["route"] or setup.name).lstrip("/")
    if isinstance(opened, Elsewhere):
        return BindingComponent(name=setup.name, input=None, output=None, route=route, ask=False, host=host[0])
    can = {word for word, verb in ((INPUT, "run"), (OUTPUT, "invoke")) if callable(getattr(opened, verb, None))}
    for word in wanted - can:
        raise setup.settings.fault("direction", f"a component of type {spec.type} is no {word}")
    used = wanted or can
    statements = delivery.of_component(setup.settings)
    if statements and INPUT not in used:
        raise setup.settings.fault(next(iter(statements)), "is for an input, and the component is none")
    if hosted_for and OUTPUT not in used:
        raise setup.settings.fault("hostedFor", "is for an output, and the component is none")
    return BindingComponent(
        name=setup.name,
        input=cast(InputBinding, opened) if INPUT in used else None,
        output=cast(OutputBinding, opened) if OUTPUT in used else None,
        route=route,
        ask=not wanted,
        statements=statements,
        hosted_for=hosted_for,
    )


def _apps(settings: Settings, key: str) -> Sequence[str]:
    """The apps that a setting names. Raises `ConfigurationError`."""
    given = settings[key]
    names: Sequence[str] = [given] if isinstance(given, str) else given or ()
    for name in names:
        if name == EVERYBODY and key == "hostedFor":
            continue
        try:
            peer(name, "")
        except InvalidTarget as error:
            raise settings.fault(key, str(error)) from None
    return names


def capabilities(spec: ComponentSpec, component: BindingComponent) -> Sequence[str]:
    """Dapr's words, and those of the type."""
    sides = ("INPUT_BINDING", component.input), ("OUTPUT_BINDING", component.output or component.host)
    used = [word for word, side in sides if side]
    return [*used, *spec.features]
