from __future__ import annotations

import asyncio
import logging

import pytest

from mesh.errors import MeshError
from sidecar.app_health import AppHealth
from tests.virtual_clock import VirtualClock

CHECK = {"enabled": True, "path": "/health", "interval": 5.0, "timeout": 0.5, "threshold": 3}


class Channel:
    """An app whose health the test decides."""

    def __init__(self, well=True):
        self.well = well
        self.probes = []

    async def probe(self, path, *, timeout):
        self.probes.append((path, timeout))
        if isinstance(self.well, MeshError):
            raise self.well
        return self.well


class Owner:
    """Notes what it is told. `hold` keeps its callbacks from returning."""

    def __init__(self):
        self.told = []
        self.running = 0
        self.hold = asyncio.Event()
        self.hold.set()

    async def on_healthy(self):
        await self._note("healthy")

    async def on_unhealthy(self):
        await self._note("unhealthy")

    async def _note(self, word):
        self.told.append(word)
        self.running += 1
        assert self.running == 1, "two callbacks at once"
        try:
            await self.hold.wait()
        finally:
            self.running -= 1


@pytest.fixture
def clock():
    return VirtualClock()


@pytest.fixture
def owner():
    return Owner()


@pytest.fixture
async def watch(clock, owner):
    started = []

    async def start(channel, **check):
        health = AppHealth(channel, clock, **(check or CHECK))
        started.append(health)
        await health.start(owner.on_healthy, owner.on_unhealthy)
        await clock.settle()
        return health

    yield start
    for health in started:
        await health.stop()
    assert clock.pending == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_without_a_check_the_app_is_healthy_at_once(watch, owner, clock):
    channel = Channel(well=False)
    health = await watch(channel, enabled=False)
    await clock.advance(3600)
    assert health.healthy
    assert owner.told == ["healthy"]
    assert channel.probes == []


async def test_without_a_check_start_passes_errors_on(clock, owner):
    async def fails():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await AppHealth(Channel(), clock, enabled=False).start(fails, owner.on_unhealthy)


async def test_unhealthy_until_the_first_success_and_probed_at_every_interval(watch, owner, clock):
    channel = Channel(well=False)
    health = await watch(channel)
    assert not health.healthy
    assert channel.probes == [("/health", 0.5)]
    await clock.advance(49)
    assert len(channel.probes) == 10
    assert owner.told == []  # it was never healthy
    channel.well = True
    await clock.advance(1)
    assert health.healthy
    assert owner.told == ["healthy"]
    await clock.advance(100)
    assert owner.told == ["healthy"]


async def test_only_failures_in_a_row_count(watch, owner, clock):
    channel = Channel()
    health = await watch(channel)
    for well in (False, False, True, False, False, True):
        channel.well = well
        await clock.advance(5)
        assert health.healthy
    channel.well = False
    await clock.advance(10)
    assert health.healthy
    await clock.advance(5)
    assert not health.healthy
    assert owner.told == ["healthy", "unhealthy"]


async def test_one_success_restores(watch, owner, clock):
    channel = Channel()
    health = await watch(channel)
    channel.well = False
    await clock.advance(60)
    assert not health.healthy
    channel.well = True
    await clock.advance(5)
    assert health.healthy
    assert owner.told == ["healthy", "unhealthy", "healthy"]


async def test_a_slow_callback_does_not_hold_up_the_probes_and_comes_before_the_next(watch, owner, clock):
    channel = Channel()
    owner.hold.clear()
    health = await watch(channel)
    channel.well = False
    await clock.advance(15)
    assert not health.healthy
    assert owner.told == ["healthy"]
    owner.hold.set()
    await clock.settle()
    assert owner.told == ["healthy", "unhealthy"]


async def test_a_change_that_is_undone_in_the_meantime_is_not_told(watch, owner, clock):
    channel = Channel()
    owner.hold.clear()
    await watch(channel)
    channel.well = False
    await clock.advance(15)
    channel.well = True
    await clock.advance(5)
    owner.hold.set()
    await clock.settle()
    assert owner.told == ["healthy"]


async def test_a_callback_that_fails_does_not_end_the_watch(clock, owner, caplog):
    async def fails():
        raise RuntimeError("boom")

    channel = Channel()
    health = AppHealth(channel, clock, **CHECK)
    await health.start(fails, owner.on_unhealthy)
    await clock.settle()
    assert "boom" in caplog.text
    channel.well = False
    await clock.advance(15)
    assert owner.told == ["unhealthy"]
    await health.stop()


async def test_a_probe_that_cannot_be_made_is_a_failure(watch, owner, clock, caplog):
    channel = Channel(well=MeshError("the path cannot be sent"))
    health = await watch(channel)
    await clock.advance(5)
    assert not health.healthy
    assert len(channel.probes) == 2
    assert "the path cannot be sent" in caplog.text


async def test_stop_ends_a_running_callback_and_the_probes(watch, owner, clock, caplog):
    caplog.set_level(logging.ERROR)
    channel = Channel()
    owner.hold.clear()
    health = await watch(channel)
    assert owner.running == 1
    await health.stop()
    assert owner.running == 0
    probes = len(channel.probes)
    await clock.advance(60)
    assert len(channel.probes) == probes
    await health.stop()
    assert not caplog.records
