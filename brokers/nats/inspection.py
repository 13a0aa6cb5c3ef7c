"""A look at a NATS server and at what Meshwire keeps there, for whoever searches a fault. Changes nothing."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec

from brokers.nats import jetstream
from brokers.nats.connection import Connection
from mesh import addressing
from mesh.errors import BrokerError, BrokerUnavailable

DEFAULT_PORT = 4222
KNOCK_LIMIT = 2.0
"""Seconds that a server may take to greet."""
MAX_PAGES = 40
"""Of consumers, 256 each, that are read."""
_NANOSECONDS = 1_000_000_000


class Lane(NamedTuple):
    """The state of one durable consumer that Meshwire made. Times in seconds."""

    app_id: str
    pubsub: str
    topic: str
    name: str
    waiting: int
    """Events that were not delivered yet."""
    unacked: int
    """Events that are delivered and not settled."""
    redelivered: int
    """Those of them that were delivered more than once."""
    pulls: int
    """Requests for more that members of the group have left at the server: 0 when nobody takes events."""
    oldest: float | None
    """Age of the oldest event that is not handled; `None` when all are."""


class Stream(NamedTuple):
    messages: int
    size: int
    max_size: int
    """In bytes; -1 is no limit."""
    max_age: float
    """In seconds; 0 is for ever."""


class Room(NamedTuple):
    """The storage of the account, in bytes."""

    used: int
    limit: int
    """-1 is none."""


async def knock(url: str) -> str:
    """The version of the NATS server at `url`, which tells it before any login. Raises `OSError` (a time-out is
    one), and `BrokerError` when something else listens there."""
    parts = urlsplit(url)
    async with asyncio.timeout(KNOCK_LIMIT):
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port or DEFAULT_PORT)
        try:
            greeting = await reader.readline()
        except ValueError:
            greeting = b""
        finally:
            writer.transport.abort()
    try:
        return str(msgspec.json.decode(greeting.removeprefix(b"INFO "), type=dict[str, Any])["version"])
    except (msgspec.DecodeError, KeyError):
        raise BrokerError("what listens there is no NATS server") from None


async def room(connection: Connection) -> Room:
    """Raises `BrokerError` when JetStream does not answer."""
    account = await jetstream.call(connection, "INFO")
    return Room(int(account.get("storage", 0)), int(account.get("limits", {}).get("max_storage", -1)))


async def stream(connection: Connection, prefix: str, namespace: str) -> Stream | None:
    """The stream of a namespace's events; `None` when there is none yet. Raises `BrokerError`."""
    try:
        info = await jetstream.call(connection, f"STREAM.INFO.{addressing.event_stream(prefix, namespace)}")
    except jetstream.Refused as refusal:
        if refusal.code == jetstream.STREAM_NOT_FOUND:
            return None
        raise
    state, config = info["state"], info["config"]
    max_age = config.get("max_age", 0) / _NANOSECONDS
    return Stream(state["messages"], state["bytes"], config.get("max_bytes", -1), max_age)


async def lanes(connection: Connection, prefix: str, namespace: str) -> list[Lane]:
    """The durable consumers of a namespace's stream. Raises `BrokerError`."""
    name = addressing.event_stream(prefix, namespace)
    found: list[Lane] = []
    offset = 0
    for _ in range(MAX_PAGES):
        page = await jetstream.call(connection, f"CONSUMER.LIST.{name}", {"offset": offset})
        consumers = page.get("consumers") or []
        ours = [info for info in consumers if "io.meshwire.app" in (info["config"].get("metadata") or {})]
        found += [await _lane(connection, name, info) for info in ours]
        offset += len(consumers)
        if not consumers or offset >= page.get("total", 0):
            break
    return found


async def _lane(connection: Connection, stream: str, info: dict[str, Any]) -> Lane:
    config = info["config"]
    labels = config["metadata"]
    waiting, unacked = info.get("num_pending", 0), info.get("num_ack_pending", 0)
    return Lane(
        labels["io.meshwire.app"],
        labels.get("io.meshwire.pubsub", ""),
        labels.get("io.meshwire.topic", ""),
        info["name"],
        waiting,
        unacked,
        info.get("num_redelivered", 0),
        info.get("num_waiting", 0),
        await _oldest(connection, stream, info) if waiting or unacked else None,
    )


async def _oldest(connection: Connection, stream: str, info: dict[str, Any]) -> float | None:
    """Age of the first event of the consumer behind all that it has acknowledged."""
    config = info["config"]
    first = info["ack_floor"]["stream_seq"] + 1
    ages = []
    for subject in config.get("filter_subjects") or [config.get("filter_subject", ">")]:
        request = {"seq": first, "next_by_subj": subject}
        try:
            message = (await jetstream.call(connection, f"STREAM.MSG.GET.{stream}", request))["message"]
        except BrokerUnavailable:
            raise
        except BrokerError:  # none there, or no permission to look
            continue
        ages.append(time.time() - datetime.fromisoformat(message["time"]).timestamp())
    return max(ages, default=None)
