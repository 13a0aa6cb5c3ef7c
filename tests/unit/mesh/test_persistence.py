"""Attempts that are made again for as long as the broker refuses."""

import asyncio
import itertools
import logging

import pytest

from mesh.errors import BrokerError, MeshError
from mesh.persistence import SAY_AGAIN, Trouble, persist
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


async def test_a_trouble_that_goes_on_is_said_once_a_minute_and_another_one_at_once(caplog):
    clock = VirtualClock()
    trouble = Trouble(clock, log)
    for _ in range(3):
        for _ in range(100):
            trouble.say("nothing works", BrokerError("not yet"))
            await clock.advance(SAY_AGAIN / 100)
    assert caplog.messages == ["nothing works: not yet"] * 3
    trouble.say("nothing works", BrokerError("never"))
    assert caplog.messages[3:] == ["nothing works: never"]
