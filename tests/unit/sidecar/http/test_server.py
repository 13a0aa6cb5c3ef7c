from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path

import pytest

from mesh.errors import ConfigurationError
from sidecar.http.server import HttpServer, socket_path

pytestmark = pytest.mark.usefixtures("caplog")
REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def hello(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"hi"})


async def get(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    writer.write(REQUEST)
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
    return head + await asyncio.wait_for(reader.readexactly(2), 30)


async def test_it_serves_several_addresses_on_one_port_and_says_nothing_of_itself() -> None:
    server = HttpServer(hello, addresses=["127.0.0.1", "127.0.0.2"])
    await server.start()
    for address in ("127.0.0.1", "127.0.0.2"):
        reader, writer = await asyncio.open_connection(address, server.port)
        assert await get(reader, writer) == b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"
        writer.close()
    await server.stop(1)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", server.port)
    await server.stop(1)


async def test_no_address_is_all_addresses() -> None:
    server = HttpServer(hello, addresses=[""])
    await server.start()
    _, writer = await asyncio.open_connection("127.0.0.3", server.port)
    writer.close()
    await server.stop(1)


async def test_a_port_in_use_is_named_with_its_flag_and_nothing_stays_open() -> None:
    with socket.create_server(("127.0.0.2", 0)) as taken:
        port = taken.getsockname()[1]
        server = HttpServer(hello, addresses=["127.0.0.1", "127.0.0.2"], port=port, flag="--dapr-public-port")
        with pytest.raises(ConfigurationError, match=rf"127\.0\.0\.2, port {port}: .*in use.*--dapr-public-port"):
            await server.start()
        socket.create_server(("127.0.0.1", port)).close()


@pytest.mark.parametrize("address", ["203.0.113.7", "no-such-host.invalid"])
async def test_an_address_that_is_not_ours(address: str) -> None:
    with pytest.raises(ConfigurationError, match=address):
        await HttpServer(hello, addresses=[address]).start()


async def test_a_unix_socket_is_served_and_removed(tmp_path: Path) -> None:
    path = socket_path(tmp_path, "orders")
    assert path.name == "dapr-orders-http.socket"
    server = HttpServer(hello, unix_socket=path)
    await server.start()
    assert server.port is None
    reader, writer = await asyncio.open_unix_connection(path)
    assert (await get(reader, writer)).endswith(b"hi")
    writer.close()
    await server.stop(1)
    assert not path.exists()


async def test_a_stale_socket_is_replaced_and_one_in_use_is_not(tmp_path: Path) -> None:
    path = tmp_path / "a.socket"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    server = HttpServer(hello, unix_socket=path)
    await server.start()
    with pytest.raises(ConfigurationError, match="another sidecar"):
        await HttpServer(hello, unix_socket=path).start()
    await server.stop(1)


async def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(ConfigurationError, match="no socket"):
        await HttpServer(hello, unix_socket=path).start()
    assert path.read_text() == "data"


async def test_a_path_too_long_for_a_socket(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="--unix-domain-socket"):
        await HttpServer(hello, unix_socket=tmp_path / ("a" * 120)).start()


async def test_stop_lets_open_requests_finish_and_drops_idle_connections() -> None:
    entered, go_on = asyncio.Event(), asyncio.Event()

    async def app(scope, receive, send):
        entered.set()
        await go_on.wait()
        await hello(scope, receive, send)

    server = HttpServer(app)
    await server.start()
    idle, idle_writer = await asyncio.open_connection("127.0.0.1", server.port)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    answer = asyncio.create_task(get(reader, writer))
    await asyncio.wait_for(entered.wait(), 30)
    stop = asyncio.create_task(server.stop(10))
    assert await asyncio.wait_for(idle.read(), 30) == b""
    go_on.set()
    assert (await answer).endswith(b"\r\n\r\nhi")
    assert b"connection: close" in answer.result()
    await asyncio.wait_for(stop, 30)
    for each in (idle_writer, writer):
        each.close()


async def test_stop_cuts_off_what_takes_longer_than_the_grace() -> None:
    entered, cancelled = asyncio.Event(), asyncio.Event()

    async def app(scope, receive, send):
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    server = HttpServer(app)
    await server.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(REQUEST)
    await asyncio.wait_for(entered.wait(), 30)
    began = time.monotonic()
    await server.stop(0.1)
    assert 0.09 <= time.monotonic() - began < 10  # timers of uvloop count milliseconds
    assert cancelled.is_set()
    try:
        assert await reader.read() == b""
    except ConnectionResetError:
        pass
    writer.close()
