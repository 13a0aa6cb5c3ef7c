"""Watches as server-sent events, over the end and the return of the server, and of the sidecar."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.e2e.mesh import JSON, LIMIT, Mesh, Sidecar

S, WATCH = "/v1.0/state/statestore", "/mesh/v1/state/statestore"


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    async with Mesh(tmp_path) as mesh:
        yield mesh


class Event(NamedTuple):
    id: str
    kind: str
    data: Any

    @property
    def seen(self) -> tuple[str, Any]:
        """Key and value; `None` of a deletion."""
        return self.data["key"], self.data.get("data")


class Reader:
    """What `curl -N` would show."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._text = ""

    async def event(self) -> Event:
        """The next event. Signs of life are passed over."""
        async with asyncio.timeout(LIMIT):
            while True:
                while "\n\n" not in self._text:
                    self._text += await self._chunk()
                block, _, self._text = self._text.partition("\n\n")
                fields = dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":"))
                if "event" in fields:
                    return Event(fields["id"], fields["event"], json.loads(fields["data"]))

    async def change(self) -> Event:
        """The next event that is not `current`."""
        while (event := await self.event()).kind == "current":
            pass
        return event

    async def _chunk(self) -> str:
        size = int(await self._reader.readline(), 16)
        chunk = await self._reader.readexactly(size + 2)
        assert size, "the watch has ended"
        return chunk[:-2].decode()


@asynccontextmanager
async def watch(sidecar: Sidecar, query: str, *headers: str) -> AsyncIterator[Reader]:
    reader, writer = await asyncio.open_connection("127.0.0.1", sidecar.port)
    try:
        lines = [f"GET {WATCH}?{query} HTTP/1.1", "host: localhost", "accept: text/event-stream", *headers]
        writer.write("\r\n".join([*lines, "", ""]).encode())
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), LIMIT)
        assert head.startswith(b"HTTP/1.1 200 "), head
        yield Reader(reader)
    finally:
        writer.transport.abort()


async def save(sidecar: Sidecar, key: str, value: object) -> None:
    answer = await sidecar.call("POST", S, [JSON], json.dumps([{"key": key, "value": value}]).encode())
    assert answer.status == 204, answer


async def test_a_watch_goes_on_when_the_server_is_back(mesh: Mesh) -> None:
    sidecar, other = await asyncio.gather(mesh.sidecar("shop", name="one"), mesh.sidecar("shop", name="two"))
    await save(sidecar, "cart-0", 0)
    async with watch(sidecar, "prefix=cart-&initial=true") as reader:
        assert (await reader.event()).seen == ("cart-0", 0)
        assert (await reader.event()).kind == "current"
        await save(sidecar, "other", 1)
        await save(other, "cart-1", "a\nb")
        assert (await reader.change()).seen == ("cart-1", "a\nb")
        mesh.server.kill()
        mesh.server.start()
        await save(other, "cart-2", 2)
        assert (await sidecar.call("DELETE", f"{S}/cart-0")).status == 204
        assert (await reader.change()).seen == ("cart-2", 2)
        gone = await reader.change()
        assert (gone.kind, gone.seen) == ("deleted", ("cart-0", None))


async def test_a_reader_goes_on_where_it_was(mesh: Mesh) -> None:
    sidecar, other = await asyncio.gather(mesh.sidecar("shop", name="one"), mesh.sidecar("shop", name="two"))
    async with watch(sidecar, "prefix=cart-") as reader:
        await save(sidecar, "cart-0", 0)
        last = await reader.change()
        assert last.seen == ("cart-0", 0)
        sidecar.kill()
    await save(other, "cart-1", 1)
    await save(other, "cart-2", 2)
    assert (await other.call("DELETE", f"{S}/cart-0")).status == 204
    for how in ([f"prefix=cart-&after={last.id}"], ["prefix=cart-", f"Last-Event-ID: {last.id}"]):
        async with watch(other, *how) as reader:
            changes = [await reader.event() for _ in range(4)]
        assert [change.kind for change in changes] == ["set", "set", "deleted", "current"]
        assert [change.seen for change in changes[:3]] == [("cart-1", 1), ("cart-2", 2), ("cart-0", None)]


async def test_positions_that_are_none(mesh: Mesh) -> None:
    sidecar = await mesh.sidecar("shop")
    await save(sidecar, "cart-0", 0)
    accept = ("accept", "text/event-stream")
    for position, status, named in [
        (f"1-{int(time.time()) - 3600}", 410, "initial=true"),
        ("yesterday", 400, "'yesterday' is no position of a watch"),
    ]:
        for query, headers in [(f"?after={position}", [accept]), ("", [accept, ("last-event-id", position)])]:
            answer = await sidecar.call("GET", f"{WATCH}{query}", headers)
            assert (answer.status, named in answer.json["message"]) == (status, True), answer
