from __future__ import annotations

import logging

import pytest

from bindings.state.sweep import Sweep
from mesh.ports.stores import StoreUnavailable
from tests.virtual_clock import VirtualClock


async def test_it_sweeps_after_each_interval_and_sooner_after_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    clock = VirtualClock(0.0)
    times: list[float] = []
    failures = {20.0, 21.0, 23.0}

    async def sweep() -> None:
        times.append(clock.now())
        if clock.now() in failures:
            raise StoreUnavailable("it is down")

    sweeper = Sweep(10.0, sweep, clock, "state.test")
    sweeper.start()
    with caplog.at_level(logging.WARNING):
        for _ in range(47):
            await clock.advance(1)
    await sweeper.close()
    await clock.advance(100)
    assert times == [10, 20, 21, 23, 27, 37, 47]
    assert "state.test: expired items could not be removed, next attempt in 1 s: it is down" in caplog.messages


async def test_pauses_never_exceed_the_interval() -> None:
    clock = VirtualClock(0.0)
    times: list[float] = []

    async def sweep() -> None:
        times.append(clock.now())
        raise StoreUnavailable("it is down")

    sweeper = Sweep(3.0, sweep, clock, "state.test")
    sweeper.start()
    for _ in range(15):
        await clock.advance(1)
    await sweeper.close()
    await sweeper.close()
    assert times == [3, 4, 6, 9, 12, 15]


async def test_one_that_was_never_started_can_be_closed() -> None:
    async def sweep() -> None:
        raise AssertionError

    await Sweep(1.0, sweep, VirtualClock(), "state.test").close()
