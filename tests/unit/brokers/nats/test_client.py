"""What the client does in nats-py's place."""

import asyncio
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest

from brokers.nats.client import MeshClient


@pytest.mark.parametrize("error", [RuntimeError("the handler is closed"), ConnectionResetError("reset by peer")])
async def test_write_on_a_closed_socket_is_a_lost_connection(error):
    lost, aborted = [], []

    def refuse(_):
        raise error

    client = MeshClient(lost.append, lambda _: None)
    inner = SimpleNamespace(abort=lambda: aborted.append(True))
    client._transport = SimpleNamespace(write=refuse, _io_writer=SimpleNamespace(transport=inner))
    client.send(b"PING\r\n")
    await asyncio.sleep(0)
    client.send(b"PING\r\n")  # on a lost connection it is lost
    await asyncio.sleep(0)
    assert lost == [str(error)]
    assert aborted == [True]


@asynccontextmanager
async def connected(script):
    """A client, and what tells of its loss. Its server does as `script` says once the client has asked for a `PONG`."""
    over = asyncio.Event()

    async def serve(stream, answers):
        answers.write(b'INFO {"max_payload":1048576}\r\n')
        while await stream.readline() != b"PING\r\n":
            pass
        await script(stream, answers)
        answers.close()
        await answers.wait_closed()
        over.set()

    lost = asyncio.get_running_loop().create_future()
    async with await asyncio.start_server(serve, "127.0.0.1") as server, asyncio.timeout(30):
        client = MeshClient(lost.set_result, lambda _: None)
        port = server.sockets[0].getsockname()[1]
        await client.connect(f"nats://127.0.0.1:{port}", allow_reconnect=False, error_cb=ignore)
        yield client, lost
        await client.close()
        await over.wait()


async def ignore(_):
    pass


async def test_messages_go_past_nats_py_and_one_that_fails_costs_no_other(caplog):
    """Also when the first half of one has come before there is a `MessageReader`."""
    heard = asyncio.Queue()

    async def script(stream, answers):
        answers.write(b"PONG\r\nMSG a 9 5\r\nearly\r\nMS")
        while not (await stream.readline()).startswith(b"SUB "):
            pass
        answers.write(b"G a 1 3\r\nbad\r\nHMSG b 1 c 12 16\r\nNATS/1.0\r\n\r\ngood\r\nPING\r\n")
        heard.put_nowait(await stream.readline())

    def callback(*message):
        if message[3] == b"bad":
            raise ValueError("unheard of")
        heard.put_nowait(message)

    async with connected(script) as (client, lost):
        client.subscribe_direct("*", callback)
        assert await heard.get() == (b"b", b"c", b"NATS/1.0\r\n\r\n", b"good")
        assert await heard.get() == b"PONG\r\n"  # nats-py's answer to the ping
        assert "unexpected EOF" in await lost
    assert "a message could not be handled" in caplog.text


async def test_a_server_that_sends_nonsense_is_a_lost_connection():
    async def script(stream, answers):
        answers.write(b"PONG\r\nMSG a 1 none\r\n")
        await stream.read()

    async with connected(script) as (_, lost):
        assert (await lost).startswith("the server sent what is no NATS")


async def test_what_waits_to_be_written_when_the_connection_ends_is_not_written_to_what_is_closed():
    """nats-py does, and the error would be nobody's."""
    lost, written = [], []
    client = MeshClient(lost.append, lambda _: None)

    async def nothing():
        pass

    inner = SimpleNamespace(abort=lambda: None)
    client._transport = SimpleNamespace(
        writelines=written.append,
        drain=nothing,
        close=lambda: None,
        wait_closed=nothing,
        _io_writer=SimpleNamespace(transport=inner),
    )
    client._current_server, client._status = SimpleNamespace(), MeshClient.CONNECTED
    client._flush_queue = asyncio.Queue()
    client.options["allow_reconnect"] = False
    await client._send_command(b"PONG\r\n")
    await client._process_op_err(BrokenPipeError("broken pipe"))
    assert lost == ["broken pipe"]
    assert written == []
