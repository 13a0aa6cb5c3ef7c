import pytest

from tests.unit.mesh.dead_letters.bench import Bench


@pytest.fixture
async def bench():
    async with Bench() as bench:
        yield bench
