"""Stored messages by their sequence: those of which a lane has kept nothing else."""

from __future__ import annotations

import msgspec

from brokers.nats import jetstream
from brokers.nats.connection import Connection
from brokers.nats.table_records import Stored, from_direct, from_leader

TIMEOUT = 5.0
MESSAGE_NOT_FOUND = 10037


async def recall(connection: Connection, stream: str, sequence: int) -> Stored | None:
    """`None` when it is gone: deleted or expired. `path` is the whole subject.

    Raises `BrokerUnavailable`, `BrokerError`.
    """
    request = {"seq": sequence}
    body = msgspec.json.encode(request)
    reply = await connection.call(f"$JS.API.DIRECT.GET.{stream}", b"", body, TIMEOUT)
    if reply.headers.startswith(b"NATS/1.0\r\n"):
        return from_direct("", reply.headers, reply.payload)
    # Any replica may have answered, and it may lag, or the stream allows no direct gets: only its leader knows.
    try:
        answer = await jetstream.call(connection, f"STREAM.MSG.GET.{stream}", request)
    except jetstream.Refused as refusal:
        if refusal.code == MESSAGE_NOT_FOUND:
            return None
        raise
    return from_leader("", answer["message"])
