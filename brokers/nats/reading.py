"""Reading events again: pages of a topic, by direct gets (docs/adr/0001-events-on-nats.md).

Any replica of the stream answers, and may lag behind by a moment: that nothing follows is for the leader to say.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec

from brokers.nats import codec, jetstream
from brokers.nats.connection import Connection
from brokers.nats.consumer import NatsMessage
from brokers.nats.table_reads import MESSAGE_NOT_FOUND
from mesh.codec.attributes import timestamp
from mesh.errors import BrokerError, BrokerUnavailable
from mesh.ports import Page, Record, Start

PAGE_LIMIT = 10.0
"""Seconds for one page."""
SILENCE_LIMIT = 3.0
"""Seconds without any message of it."""
LAG_PAUSE = 0.01
"""Seconds until a replica is asked again that lags behind."""
PAGE_BYTES = 8 * 1024 * 1024
LAST_MOMENT = 9_000_000_000.0
"""The server counts nanoseconds in 63 bits, which end in the year 2262."""


class NatsRecord(NatsMessage):
    """A message at rest; see the `Record` port."""

    __slots__ = ("_topic_of",)

    def __init__(self, topic_of: Callable[[bytes], str], block: bytes, payload: bytes) -> None:
        super().__init__(block, payload)
        self._topic_of = topic_of

    @property
    def position(self) -> str:
        return self.all_headers()["nats-sequence"]

    @property
    def time(self) -> float:
        return timestamp(self.all_headers()["nats-time-stamp"])

    @property
    def topic(self) -> str:
        return self._topic_of(self.all_headers()["nats-subject"].encode())


def moment(time: float) -> str:
    """`time` as the server reads it.

    A microsecond early: what was stored at that very moment is not to be passed over because of a rounding.
    """
    return datetime.fromtimestamp(min(time, LAST_MOMENT) - 1e-6, UTC).isoformat(timespec="microseconds")


async def read_page(
    connection: Connection, stream: str, subjects: str, start: Start, limit: int, topic_of: Callable[[bytes], str]
) -> Page:
    """Up to `limit` messages of `subjects`, which may have wildcards. Raises `BrokerError`, `BrokerUnavailable`."""
    records: list[Record] = []
    try:
        async with asyncio.timeout(PAGE_LIMIT):
            while True:
                more = await _get(connection, stream, subjects, start, limit, topic_of, records)
                if records:
                    start = Start(position=str(int(records[-1].position) + 1))
                if more or await _is_followed(connection, stream, subjects, start):
                    if records:
                        return Page(records, start.position)
                    await asyncio.sleep(LAG_PAUSE)
                else:
                    return Page(records, None)
    except TimeoutError:
        raise BrokerUnavailable(f"the stream {stream} did not answer in time; {len(records)} messages came") from None


async def _get(
    connection: Connection,
    stream: str,
    subjects: str,
    start: Start,
    limit: int,
    topic_of: Callable[[bytes], str],
    records: list[Record],
) -> bool:
    """Append what one replica has. Whether it has more."""
    size = max(PAGE_BYTES, 2 * connection.max_payload)  # at least one message
    request: dict[str, Any] = {"batch": limit, "max_bytes": size, "next_by_subj": subjects}
    if start.position is not None:
        request["seq"] = max(1, int(start.position))
    elif start.time is None or start.time <= 0:
        request["seq"] = 1
    else:
        request["start_time"] = moment(start.time)
    answers: asyncio.Queue[tuple[bytes, bytes]] = asyncio.Queue()  # as many as were asked for
    inbox = connection.new_inbox()
    stop = connection.listen(inbox, lambda _subject, _reply, block, payload: answers.put_nowait((block, payload)))
    try:
        await connection.wait_connected(PAGE_LIMIT)
        connection.send(f"$JS.API.DIRECT.GET.{stream}".encode(), msgspec.json.encode(request), inbox.encode())
        while True:
            async with asyncio.timeout(SILENCE_LIMIT):
                block, payload = await answers.get()
            if not block.startswith(b"NATS/1.0\r\n"):
                return _has_more(stream, block)
            records.append(NatsRecord(topic_of, block, payload))
    finally:
        stop()


def _has_more(stream: str, block: bytes) -> bool:
    """What the last answer says: that is the end of the batch, or why there is none."""
    status = block[9:12]
    if status == b"404":
        return False
    if status == b"204":
        return int(codec.parse_block(block).get("nats-num-pending", "0")) > 0
    if status == b"503":
        raise BrokerUnavailable(f"nobody answers for the stream {stream}: it was removed, or has no leader right now")
    reason = block[9:].split(b"\r\n", 1)[0].decode("ascii", "replace")
    raise BrokerError(f"NATS refused to read the stream {stream}: {reason}")


async def _is_followed(connection: Connection, stream: str, subjects: str, start: Start) -> bool:
    """Whether the leader has a message at `start` or after it."""
    query: dict[str, Any] = {"last_by_subj": subjects}
    if start.position is not None:
        query = {"seq": max(1, int(start.position)), "next_by_subj": subjects}
    try:
        answer = await jetstream.call(connection, f"STREAM.MSG.GET.{stream}", query)
    except jetstream.Refused as refusal:
        if refusal.code == MESSAGE_NOT_FOUND:
            return False
        raise
    return start.time is None or timestamp(answer["message"]["time"]) >= start.time
