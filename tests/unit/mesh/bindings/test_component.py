"""What all bindings have in common: direction, route, capabilities."""

from __future__ import annotations

import pytest

from bindings import registry
from brokers.memory_tables import MemoryTables
from mesh.bindings.component import BindingComponent
from mesh.clock import SystemClock
from mesh.components import ComponentSpec, Elsewhere, Setup, read_settings
from mesh.errors import ConfigurationError
from mesh.resources import Component, Metadata

CATEGORY = registry.CATEGORIES["bindings"]()


class Source:
    async def run(self) -> None: ...


class Sink:
    async def invoke(self) -> None: ...


class Both(Source, Sink): ...


@pytest.mark.parametrize(
    ("host", "elsewhere"),
    [("", False), ("app1", False), ("app1.test", False), ("billing", True), ("billing.test", True), ("App1", True)],
)
def test_who_hosts_it(host: str, elsewhere: bool) -> None:
    metadata = Metadata({"HostedBy": host} if host else {})
    assert CATEGORY.is_elsewhere(Component(name="orders", type="bindings.test", metadata=metadata), "app1") is elsewhere


def test_one_that_is_hosted_elsewhere() -> None:
    component, capabilities = made(Elsewhere, hostedBy="billing.test", direction="input, output", hostedFor="*")
    assert (component.host, component.input, component.output) == ("billing.test", None, None)
    assert capabilities == ["OUTPUT_BINDING", "LEASED"]


@pytest.mark.parametrize(
    ("kind", "metadata", "message"),
    [
        (Both, {"hostedFor": "shop", "direction": "input"}, "metadata.hostedFor: .*is for an output"),
        (Source, {"hostedFor": "shop"}, "metadata.hostedFor: .*is for an output"),
        (Both, {"hostedBy": "app1", "direction": "input"}, "metadata.hostedBy: .*is for an output"),
        (Elsewhere, {"hostedBy": "billing", "direction": "input"}, "metadata.hostedBy: .*is for an output"),
        (Elsewhere, {"hostedBy": "a/b"}, "metadata.hostedBy: .*invalid app id 'a/b'"),
        (Elsewhere, {"hostedBy": "*"}, r"metadata.hostedBy: .*invalid app id '\*'"),
        (Sink, {"hostedFor": "shop, a.b.c"}, "metadata.hostedFor: .*invalid app id 'a.b.c'"),
    ],
)
def test_hosting_that_cannot_be(kind: type[object], metadata: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        made(kind, **metadata)


def made(kind: type[object], **metadata: str) -> tuple[BindingComponent, list[str]]:
    spec = ComponentSpec(type="bindings.test", title="", about="", open=lambda _setup: kind(), features=("LEASED",))
    manifest = Component(name="orders", type=spec.type, metadata=Metadata(metadata), origin="test.yaml:3")
    clock = SystemClock()
    setup = Setup(
        name=manifest.name,
        version="v1",
        settings=read_settings(manifest, CATEGORY.fields),
        app_id="app1",
        namespace="default",
        clock=clock,
        tables=MemoryTables(clock),
    )
    component = CATEGORY.make(setup, spec, spec.open(setup))
    return component, list(CATEGORY.capabilities(spec, component))


@pytest.mark.parametrize(
    ("kind", "direction", "words", "ask"),
    [
        (Source, None, ["INPUT_BINDING"], True),
        (Sink, None, ["OUTPUT_BINDING"], True),
        (Both, None, ["INPUT_BINDING", "OUTPUT_BINDING"], True),
        (Both, "input", ["INPUT_BINDING"], False),
        (Both, "output", ["OUTPUT_BINDING"], False),
        (Both, "Input, OUTPUT", ["INPUT_BINDING", "OUTPUT_BINDING"], False),
    ],
)
def test_what_it_is_used_for(kind: type[object], direction: str | None, words: list[str], ask: bool) -> None:
    component, capabilities = made(kind, **({"direction": direction} if direction else {}))
    assert capabilities == [*words, "LEASED"]
    assert (component.input is not None, component.output is not None) == (words[0][0] == "I", words[-1][0] == "O")
    assert component.ask is ask


@pytest.mark.parametrize(
    ("kind", "direction", "rule"),
    [
        (Both, "sideways", r"test\.yaml.*metadata\.direction: must be input, output, or both \(got 'sideways'\)"),
        (Source, "input, output", "a component of type bindings.test is no output"),
        (Sink, "input", "a component of type bindings.test is no input"),
    ],
)
def test_a_direction_that_cannot_be_had(kind: type[object], direction: str, rule: str) -> None:
    with pytest.raises(ConfigurationError, match=rule):
        made(kind, direction=direction)


def test_the_route() -> None:
    assert made(Source)[0].route == "/orders"
    assert made(Source, route="a/b")[0].route == made(Source, route="/a/b")[0].route == "/a/b"
