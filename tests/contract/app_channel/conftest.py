from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import uvloop

from sidecar.channel import HttpAppChannel

IMPLEMENTATIONS = [HttpAppChannel]
"""The app channels under test: one line each."""


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture(params=IMPLEMENTATIONS)
async def open_channel(request: pytest.FixtureRequest) -> AsyncIterator[Callable[..., HttpAppChannel]]:
    """Makes channels to an app, by its port, and sees to it that nothing of them is left behind."""
    channels: list[HttpAppChannel] = []

    def make(port: int, address: str = "127.0.0.1", **settings: Any) -> HttpAppChannel:
        channels.append(request.param(address, port, **settings))
        return channels[-1]

    yield make
    for channel in channels:
        await asyncio.wait_for(channel.close(), 10)
        assert not channel._pool._open
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}
