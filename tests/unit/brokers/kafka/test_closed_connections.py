"""Requests over a connection that was closed a moment ago, on the loop that sidecars have."""

from __future__ import annotations

import asyncio

import pytest
import uvloop
from aiokafka.conn import AIOKafkaConnection
from aiokafka.errors import KafkaConnectionError
from aiokafka.protocol.admin import ApiVersionRequest

import brokers.kafka.connection  # noqa: F401 -- what is tested comes with it


async def send_when_closed() -> None:
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        connection = AIOKafkaConnection("127.0.0.1", port)
        connection._reader, connection._writer = await asyncio.open_connection("127.0.0.1", port)
        connection._read_task = asyncio.ensure_future(asyncio.Event().wait())  # it has not noticed
        connection._writer.transport.abort()
        await asyncio.sleep(0.01)
        with pytest.raises(KafkaConnectionError, match="closed"):
            connection.send(ApiVersionRequest())
        assert not connection.connected()


def test_it_is_a_lost_connection_and_no_error_of_the_program() -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(send_when_closed())
