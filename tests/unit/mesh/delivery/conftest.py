from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.unit.mesh.delivery.bench import Bench


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    for call in bench.app.open:
        call.cancel()
    await bench.log.close()


@pytest.fixture(autouse=True)
def no_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.random", lambda: 0.5)
