"""The client's own way to write, on a socket that is gone."""

import asyncio
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
