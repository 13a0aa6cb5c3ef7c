"""Components as a manifest makes them, for tests of what is behind them."""

from __future__ import annotations

from typing import Any

from bindings import registry
from brokers.memory_tables import MemoryTables
from mesh.clock import SystemClock
from mesh.components import ComponentSpec, Setup, read_settings
from mesh.ports import Clock
from mesh.resources import Component, Metadata
from sidecar.components import fields_of


def opened(spec: ComponentSpec, clock: Clock | None = None, **metadata: str) -> Any:
    """What `spec` opens for these settings; not started. Raises `ConfigurationError`."""
    clock = clock or SystemClock()
    component = Component(name="test", type=spec.type, metadata=Metadata(metadata), origin="test.yaml:1")
    return spec.open(
        Setup(
            name=component.name,
            version=spec.versions[0],
            settings=read_settings(component, fields_of(registry.CATEGORIES[spec.category](), spec)),
            app_id="app1",
            namespace="default",
            clock=clock,
            tables=MemoryTables(clock),
        )
    )
