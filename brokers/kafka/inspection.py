"""A look at the servers of Kafka and at what Meshwire keeps there, for whoever searches a fault. Changes nothing."""

from __future__ import annotations

import asyncio
from typing import NamedTuple
from urllib.parse import unquote

from aiokafka.protocol.metadata import MetadataRequest

from brokers.kafka.connection import Connection
from brokers.kafka.event_log import KafkaEventLog
from mesh import addressing
from mesh.ports import Backlog, Group, Topic

KNOCK_LIMIT = 2.0
"""Seconds that a server may take to accept a connection."""


class Cluster(NamedTuple):
    servers: int
    event_topics: int
    """Of the namespace."""
    leaderless: list[str]
    """Topics of the mesh with a partition that nobody leads."""


class Member(NamedTuple):
    """The state of one consumer group that Meshwire made."""

    group: Group
    members: int
    backlog: Backlog


async def knock(server: str) -> None:
    """Whether anything listens at `host:port`. Raises `OSError` (a time-out is one)."""
    host, _, port = server.rpartition(":")
    async with asyncio.timeout(KNOCK_LIMIT):
        _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    writer.transport.abort()


async def cluster(connection: Connection, prefix: str, namespace: str) -> Cluster:
    """Raises `BrokerError`, `BrokerUnavailable`."""
    admin = await connection.admin()
    answer = await connection.within(admin._send_request(MetadataRequest(None, allow_auto_topic_creation=False)))
    ours = f"{addressing.kafka_token(prefix)}.{addressing.kafka_token(namespace)}."
    leaders = {
        name: [leader for _, _, leader, *_ in partitions]
        for _, name, _, partitions in answer.topics
        if name.startswith(ours)
    }
    events = sum(name.startswith(f"{ours}event.") for name in leaders)
    return Cluster(len(answer.brokers), events, [name for name, found in leaders.items() if min(found, default=0) < 0])


async def groups(log: KafkaEventLog, connection: Connection, prefix: str, namespace: str) -> list[Member]:
    """The groups of the namespace's subscriptions. Raises `BrokerError`, `BrokerUnavailable`."""
    admin = await connection.admin()
    listed = await connection.within(admin.list_consumer_groups())
    found = []
    for name in sorted({entry[0] for entry in listed}):
        group = parse_group(prefix, namespace, name)
        if group is not None and (backlog := await log.backlog(group)) is not None:
            [answer] = await connection.within(admin.describe_consumer_groups([name]))
            found.append(Member(group, sum(len(described[5]) for described in answer.groups), backlog))
    return found


def parse_group(prefix: str, namespace: str, name: str) -> Group | None:
    """What `addressing.kafka_group` made a name of; `None` for what is not this namespace's."""
    whole, _, own = name.partition("#")
    parts = [unquote(part) for part in whole.split(".")]
    if len(parts) < 5 or parts[:2] != [prefix, namespace]:
        return None
    group = Group(parts[2], Topic(parts[3], ".".join(parts[4:])), unquote(own))
    return group if addressing.kafka_group(prefix, namespace, group) == name else None
