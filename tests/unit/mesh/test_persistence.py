"""Attempts that are made again for as long as the broker refuses."""

import asyncio
import itertools
import logging

import pytest

from mesh.errors import BrokerError, MeshError
from mesh.persistence import persist
from tests.virtual_clock import VirtualClock

log = logging.getLogger("meshwire.test")


async def test_pauses_grow_until_it_succeeds(caplog):
    clock = VirtualClock()
    moments = []

    async def attempt():
        moments.append(clock.now())
        if len(moments) < 10:
            raise BrokerError("not yet")
        return "done"

    working = asyncio.create_task(persist(attempt, clock, "nothing works", log))
    await clock.advance(3600)
    assert await working == "done"
    pauses = [later - earlier for earlier, later in itertools.pairwise(moments)]
    assert pauses == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    assert caplog.messages[0] == "nothing works, again in 0.5 s: not yet"
    assert len(caplog.messages) == 9


@pytest.mark.parametrize("error", [MeshError("a fault of ours"), ValueError("a fault")])
async def test_other_errors_are_raised(error):
    async def attempt():
        raise error

    with pytest.raises(type(error)):
        await persist(attempt, VirtualClock(), "nothing works", log)
