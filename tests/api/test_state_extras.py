"""`/mesh/v1/state`: times and positions that are sent back, and what is no item of the store."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

from mesh.codec.attributes import timestamp
from sidecar.api.state_extras import _shown_time
from tests.api.state_server import StateServer

S, X = "/v1.0/state/statestore", "/mesh/v1/state/statestore"


@pytest.fixture
async def server() -> AsyncIterator[StateServer]:
    async with StateServer() as server:
        yield server


async def save(server: StateServer, **values: Any) -> None:
    items = [{"key": key, "value": value} for key, value in values.items()]
    assert (await server.call("POST", S, json.dumps(items).encode())).status == 204


# Times


async def test_the_time_of_a_version_finds_it(server: StateServer) -> None:
    for value in range(5):
        await save(server, a=value)
    versions = (await server.call("GET", f"{X}/a/history")).json["versions"]
    assert [version["data"] for version in versions] == [4, 3, 2, 1, 0]
    for version in versions:
        answer = await server.call("GET", f"{X}/a?time={version['time']}")
        assert (answer.status, answer.headers.get("etag")) == (200, version["etag"])


def test_a_time_is_never_shown_as_an_earlier_one() -> None:
    choice = random.Random(1)
    for _ in range(10_000):
        moment = choice.uniform(0, 4e9)
        assert moment <= timestamp(_shown_time(moment)) < moment + 2e-6
    assert _shown_time(1777897800.0) == "2026-05-04T12:30:00.000000Z"
    assert _shown_time(0.9999999) == "1970-01-01T00:00:01.000000Z"
