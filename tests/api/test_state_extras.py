"""`/mesh/v1/state`: times and positions that are sent back, and what is no item of the store."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import pytest

from mesh.codec.attributes import timestamp
from mesh.ports.stores import Position, StateFeature
from mesh.ports.tables import Put
from mesh.state.component import StateComponent
from sidecar.api.state_extras import _shown_time
from tests.api.state_server import BrokenStore, StateServer
from tests.virtual_clock import VirtualClock

S, X = "/v1.0/state/statestore", "/mesh/v1/state/statestore"


@pytest.fixture
async def server() -> AsyncIterator[StateServer]:
    async with StateServer() as server:
        yield server


async def save(server: StateServer, **values: Any) -> None:
    items = [{"key": key, "value": value} for key, value in values.items()]
    assert (await server.call("POST", S, json.dumps(items).encode())).status == 204


class Watch:
    """A watch, of which each event is its id, its type and its data."""

    def __init__(self, server: StateServer, query: str = "", last_id: str = "") -> None:
        self._port = server.port
        self._head = f"GET {X}{query} HTTP/1.1\r\nhost: localhost\r\naccept: text/event-stream\r\n"
        self._head += f"last-event-id: {last_id}\r\n\r\n" if last_id else "\r\n"
        self.status = 0

    async def __aenter__(self) -> Watch:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writer.write(self._head.encode())
        self.status = int((await self._until(b"\r\n\r\n")).split(b" ")[1])
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.transport.abort()

    async def _until(self, end: bytes) -> bytes:
        return await asyncio.wait_for(self._reader.readuntil(end), 30)

    async def event(self) -> tuple[str, str, Any]:
        size = int(await self._until(b"\r\n"), 16)
        lines = (await self._reader.readexactly(size + 2)).decode().splitlines()
        fields = dict(line.split(": ", 1) for line in lines if line)
        return fields["id"], fields["event"], json.loads(fields["data"])


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


async def test_a_time_before_what_is_kept_says_what_is(server: StateServer) -> None:
    await save(server, a=1)
    answer = await server.call("GET", f"{X}/a?time=2001-01-01T00:00:00Z")
    assert (answer.status, answer.json["errorCode"]) == (410, "ERR_STATE_POSITION_EXPIRED")
    assert answer.json["message"] == (
        "state store statestore: the value of then is not known any more: of each key 5 values are kept, from when the "
        "setting history was given; a greater one keeps more from now on"
    )


@pytest.mark.parametrize(
    ("path", "accept", "end"),
    [
        (
            "/a/history",
            "*/*",
            'cannot tell earlier values; use one of type state.meshwire with the setting history: "16"',
        ),
        ("/a?revision=1", "*/*", 'earlier values; use one of type state.meshwire with the setting history: "16"'),
        ("", "text/event-stream", "cannot watch its items; use one of type state.meshwire"),
    ],
)
async def test_what_a_store_cannot_do_another_can(server: StateServer, path: str, accept: str, end: str) -> None:
    answer = await server.call("GET", f"/mesh/v1/state/memory{path}", b"", ("accept", accept))
    assert (answer.status, answer.json["errorCode"]) == (501, "ERR_STATE_FEATURE_NOT_SUPPORTED")
    assert answer.json["message"].endswith(end)


# What is no item


async def test_a_record_that_no_key_names_is_no_item(server: StateServer) -> None:
    """A stranger has written it to the broker, at `….statestore.q.x`."""
    await save(server, x=1)
    await server.tables.table("app1").commit([Put(key=("state", "statestore", "q", "x"), value=b"2")])
    await save(server, y=3)
    items = (await server.call("GET", X)).json["items"]
    assert [(item["key"], item["data"]) for item in items] == [("x", 1), ("y", 3)]
    async with Watch(server, "?initial=true") as watch:
        assert [(await watch.event())[2].get("data") for _ in range(3)] == [1, 3, None]


# Positions


async def test_a_position_is_not_renewed_before_all_until_now_was_shown(server: StateServer) -> None:
    """Else it could be renewed for ever past deletions that are forgotten before they were sent."""
    await save(server, a=1)
    async with Watch(server) as watch:
        etag, _, moment = (await watch.event())[0].partition("-")
    earlier = int(moment) - 3000
    await save(server, b=2, c=3)
    async with Watch(server, last_id=f"{etag}-{earlier}") as watch:
        moments = [(await watch.event())[0].partition("-")[2] for _ in range(2)]
        assert moments == [str(earlier)] * 2
        position, kind, _ = await watch.event()
        assert kind == "current"
        assert int(position.partition("-")[2]) >= int(moment)
        await save(server, d=4)
        assert int((await watch.event())[0].partition("-")[2]) >= int(moment)
    async with Watch(server, last_id=f"{etag}-99999999999") as watch:  # as from a clock that was wrong
        assert int((await watch.event())[0].partition("-")[2]) < int(moment) + 60


async def test_what_begins_with_what_there_is_has_the_position_of_its_beginning() -> None:
    clock = VirtualClock()
    async with StateServer(clock=clock) as server:
        await save(server, a=1, b=2)
        began = int(clock.now())
        async with Watch(server, "?initial=true") as watch:
            assert [(await watch.event())[0].partition("-")[2] for _ in range(3)] == [str(began)] * 3
            await clock.advance(60)
            await save(server, a=3)
            assert (await watch.event())[0].partition("-")[2] == str(began + 60)


# Parameters


@pytest.mark.parametrize("query", ["prefix=%FF", "cursor=%C3", "%80=1"])
async def test_a_parameter_that_is_no_text(server: StateServer, query: str) -> None:
    answer = await server.call("GET", f"{X}?{query}")
    assert (answer.status, answer.json["errorCode"]) == (400, "ERR_MALFORMED_REQUEST")
    assert "the query is no UTF-8" in answer.json["message"]


async def test_a_watch_that_does_not_begin_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent(BrokenStore):
        async def watch(self, key_prefix: str, *, after: str | None = None) -> AsyncGenerator[Position, None]:
            await asyncio.Event().wait()
            yield Position("1")

    monkeypatch.setattr("sidecar.api.state_extras.PATIENCE", 0.01)
    async with StateServer(StateComponent(name="statestore", store=Silent(StateFeature.WATCH))) as server:
        answer = await server.call("GET", X, b"", ("accept", "text/event-stream"))
        assert answer.status == 503
        assert "the store does not answer, or has very many items to look through" in answer.json["message"]
