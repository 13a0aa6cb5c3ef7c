"""The broker of the mesh: which adapters a setting stands for. Only here and in `assembly` are any constructed."""

from __future__ import annotations

import asyncio
import os
import platform
from typing import TYPE_CHECKING, NamedTuple

from brokers.kafka import security
from mesh.ports import EventLog, Peer, Requests
from mesh.ports.alarms import AlarmClocks
from mesh.ports.tables import Tables
from sidecar.settings import BrokerAddress

if TYPE_CHECKING:
    from brokers.kafka.connection import Connection as KafkaConnection
    from brokers.nats.connection import Connection


class Backbone(NamedTuple):
    """The broker of the mesh, not started. All share the connection of the log, which is closed last."""

    log: EventLog
    requests: Requests
    tables: Tables
    alarms: AlarmClocks
    line: Connection | None = None
    """The connection of `requests`, where they go to a broker of their own (`MESHWIRE_REQUESTS`)."""
    connection: Connection | KafkaConnection | None = None
    """That of all others; none in memory."""

    @property
    def problem(self) -> str | None:
        """Why it cannot be used, or not all of it, in one line; `None` when it can."""
        problem = self.log.problem
        if problem is None and self.line is not None and self.line.problem is not None:
            problem = f"for calls between apps: {self.line.problem}"
        return problem

    async def start(self) -> None:
        """Returns when all connections stand. Raises `ConfigurationError` when waiting cannot help."""
        await asyncio.gather(self.log.start(), *(() if self.line is None else (self.line.start(),)))

    async def close(self) -> None:
        await self.alarms.close()
        await self.tables.close()
        await self.requests.close()
        if self.line is not None:
            await self.line.close()
        await self.log.close()


def open_backbone(
    broker: BrokerAddress,
    me: Peer,
    *,
    prefix: str,
    replicas: int = 1,
    requests: BrokerAddress | None = None,
    callers_verified: bool = False,
) -> Backbone:
    """`requests`: where calls between apps go, if not to `broker`; only beside Kafka. Raises `ConfigurationError` for
    a file that is needed to sign in and cannot be read. To be called in the event loop."""
    if broker.kind == "memory":
        from brokers.memory import MemoryEventLog
        from brokers.memory_alarms import MemoryAlarmClocks
        from brokers.memory_requests import MemoryExchange, MemoryRequests
        from brokers.memory_tables import MemoryTables

        return Backbone(MemoryEventLog(), MemoryRequests(MemoryExchange(), me), MemoryTables(), MemoryAlarmClocks())
    if broker.kind == "kafka":
        backbone = _on_kafka(broker, me, prefix=prefix, replicas=replicas, callers_verified=callers_verified)
        return backbone if requests is None else _with_requests(backbone, requests, me, prefix=prefix)
    from brokers.nats.alarms import NatsAlarmClocks
    from brokers.nats.event_log import NatsEventLog
    from brokers.nats.requests import NatsRequests
    from brokers.nats.tables import NatsTables

    connection = nats_connection(broker, me.app_id)
    tables = NatsTables(connection, namespace=me.namespace, prefix=prefix, replicas=replicas)
    return Backbone(
        NatsEventLog(connection, namespace=me.namespace, prefix=prefix, replicas=replicas, tables=tables),
        NatsRequests(connection, me, prefix=prefix),
        tables,
        NatsAlarmClocks(connection, namespace=me.namespace, prefix=prefix, replicas=replicas),
        connection=connection,
    )


def open_event_log(broker: BrokerAddress, *, name: str, namespace: str, prefix: str) -> EventLog:
    """The event log of the backbone alone, not started. `name` is what the broker shows for this client."""
    if broker.kind == "memory":
        from brokers.memory import MemoryEventLog

        return MemoryEventLog()
    if broker.kind == "kafka":
        from brokers.kafka.event_log import KafkaEventLog

        connection = kafka_connection(broker, name)
        return KafkaEventLog(connection, namespace=namespace, prefix=prefix, partitions=broker.partitions)
    from brokers.nats.event_log import NatsEventLog
    from brokers.nats.tables import NatsTables

    nats = nats_connection(broker, name)
    tables = NatsTables(nats, namespace=namespace, prefix=prefix)
    return NatsEventLog(nats, namespace=namespace, prefix=prefix, tables=tables)


def _on_kafka(broker: BrokerAddress, me: Peer, *, prefix: str, replicas: int, callers_verified: bool) -> Backbone:
    from brokers.kafka.event_log import KafkaEventLog
    from brokers.kafka.requests import KafkaRequests
    from brokers.kafka.tables import KafkaTables
    from brokers.table_alarms import TableAlarmClocks

    connection = kafka_connection(broker, me.app_id, replicas)
    tables = KafkaTables(connection, namespace=me.namespace, prefix=prefix)
    return Backbone(
        KafkaEventLog(connection, namespace=me.namespace, prefix=prefix, partitions=broker.partitions),
        KafkaRequests(connection, me, prefix=prefix, callers_verified=callers_verified),
        tables,
        TableAlarmClocks(tables, node=f"{platform.node()}:{os.getpid()}"),
        connection=connection,
    )


def _with_requests(backbone: Backbone, broker: BrokerAddress, me: Peer, *, prefix: str) -> Backbone:
    from brokers.nats.requests import NatsRequests

    line = nats_connection(broker, me.app_id)
    return backbone._replace(requests=NatsRequests(line, me, prefix=prefix), line=line)


def kafka_connection(broker: BrokerAddress, name: str, replicas: int = 1) -> KafkaConnection:
    from brokers.kafka.connection import Access
    from brokers.kafka.connection import Connection as KafkaConnection

    options = security.options(broker.security)
    return KafkaConnection(Access(servers=broker.servers, options=options, replicas=replicas), name=name)


def nats_connection(broker: BrokerAddress, name: str) -> Connection:
    from brokers.nats.connection import Connection, Lookup, Servers

    if broker.folder is None:
        servers = Servers(broker.servers)
        lookup = Lookup(lambda: servers)
    else:
        from brokers.nats import embedded

        folder = broker.folder

        def find() -> Servers | None:
            endpoint = embedded.endpoint(folder)
            return None if endpoint is None else Servers([endpoint.url], endpoint.token)

        lookup = Lookup(find, lambda: embedded.failure(folder))
    return Connection(lookup, name=name)
