import asyncio
from collections.abc import AsyncIterator

import pytest

from benchmarks import app, transfer
from benchmarks.events import request
from benchmarks.load import Load, Plan


@pytest.fixture
async def port() -> AsyncIterator[int]:
    server = await asyncio.get_running_loop().create_server(app.Connection, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()


async def ask(port: int, sent: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    body = await reader.readexactly(length)
    writer.close()
    await writer.wait_closed()
    return body


async def test_it_answers_with_the_body_that_it_got(port: int) -> None:
    assert await ask(port, request(app.ECHO, {}, b"hello")) == b"hello"


async def test_the_load_generator_and_it_understand_each_other(port: int) -> None:
    result = await Load(Plan(port=port, request=request(app.ECHO, {}), connections=2, requests=40)).run()
    assert result.statuses == {"200": 40}


@pytest.mark.parametrize("up", [True, False], ids=["up", "down"])
async def test_long_bodies_are_moved_whole(port: int, up: bool) -> None:
    plan = transfer.Plan(port=port, prefix="", size=5_000_001, up=up)
    assert (await asyncio.to_thread(asyncio.run, transfer._main(plan))).elapsed > 0


async def test_a_transfer_that_comes_to_nothing_is_an_error(port: int) -> None:
    plan = transfer.Plan(port=port, prefix="/elsewhere", size=10, up=False)
    with pytest.raises(RuntimeError, match="404"):
        await asyncio.to_thread(asyncio.run, transfer._main(plan))


async def test_a_body_that_is_cut_short_is_an_error() -> None:
    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(cut, "127.0.0.1", 0)
    plan = transfer.Plan(port=server.sockets[0].getsockname()[1], prefix="", size=10, up=False)
    with pytest.raises(RuntimeError, match="in the middle"):
        await asyncio.to_thread(asyncio.run, transfer._main(plan))
    server.close()
    await server.wait_closed()
