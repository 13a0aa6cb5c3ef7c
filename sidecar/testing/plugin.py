"""The pytest plugin: the fixture `meshwire`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from sidecar.testing.mesh import Mesh


@pytest.fixture
def meshwire() -> Iterator[Mesh]:
    """A mesh of this test's own, without any app at first (docs/testing.md)."""
    from sidecar.testing.mesh import Mesh  # what is not used costs a test session nothing

    mesh = Mesh()
    try:
        yield mesh
    finally:
        mesh.close()
