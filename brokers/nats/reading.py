"""Reading events again: pages of a topic, by direct gets (docs/adr/0001-events-on-nats.md).

Any replica of the stream answers, and may lag behind its leader by a moment.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec

from brokers.nats import codec
from brokers.nats.connection import Connection
from brokers.nats.consumer import NatsMessage
from mesh.codec.attributes import timestamp
from mesh.errors import BrokerError, BrokerUnavailable
from mesh.ports import Page, Record, Start

PAGE_LIMIT = 10.0
"""Seconds for one page."""
SILENCE_LIMIT = 3.0
"""Seconds without any message of it."""
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
    request: dict[str, Any] = {"batch": limit, "max_bytes": PAGE_BYTES, "next_by_subj": subjects}
    if start.position is not None:
        request["seq"] = max(1, int(start.position))
    elif start.time is None or start.time <= 0:
        request["seq"] = 1
    else:
        request["start_time"] = moment(start.time)
    answers: asyncio.Queue[tuple[bytes, bytes]] = asyncio.Queue()  # as many as were asked for
    inbox = connection.new_inbox()
    stop = connection.listen(inbox, lambda _subject, _reply, block, payload: answers.put_nowait((block, payload)))
    records: list[Record] = []
    try:
        async with asyncio.timeout(PAGE_LIMIT):
            await connection.wait_connected(PAGE_LIMIT)
            connection.send(f"$JS.API.DIRECT.GET.{stream}".encode(), msgspec.json.encode(request), inbox.encode())
            while True:
                async with asyncio.timeout(SILENCE_LIMIT):
                    block, payload = await answers.get()
                if block.startswith(b"NATS/1.0\r\n"):
                    records.append(NatsRecord(topic_of, block, payload))
                else:
                    return _page(stream, records, block)
    except TimeoutError:
        raise BrokerUnavailable(f"the stream {stream} did not answer in time; {len(records)} messages came") from None
    finally:
        stop()


def _page(stream: str, records: list[Record], block: bytes) -> Page:
    """What the last answer says: that is the end of the batch, or why there is none."""
    status = block[9:12]
    if status == b"404":
        return Page([], None)
    if status == b"204":
        pending = int(codec.parse_block(block).get("nats-num-pending", "0"))
        last = int(records[-1].position) if records else 0
        return Page(records, str(last + 1) if pending and records else None)
    if status == b"503":
        raise BrokerUnavailable(f"nobody answers for the stream {stream}: it was removed, or has no leader right now")
    reason = block[9:].split(b"\r\n", 1)[0].decode("ascii", "replace")
    raise BrokerError(f"NATS refused to read the stream {stream}: {reason}")
