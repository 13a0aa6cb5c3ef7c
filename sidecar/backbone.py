"""The broker of the mesh: which adapters a setting stands for. Only here and in `assembly` are any constructed."""

from __future__ import annotations

import os
import platform
from typing import TYPE_CHECKING, NamedTuple

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


def open_backbone(broker: BrokerAddress, me: Peer, *, prefix: str, replicas: int = 1) -> Backbone:
    if broker.kind == "memory":
        from brokers.memory import MemoryEventLog
        from brokers.memory_alarms import MemoryAlarmClocks
        from brokers.memory_requests import MemoryExchange, MemoryRequests
        from brokers.memory_tables import MemoryTables

        return Backbone(MemoryEventLog(), MemoryRequests(MemoryExchange(), me), MemoryTables(), MemoryAlarmClocks())
    if broker.kind == "kafka":
        return _on_kafka(broker, me, prefix=prefix, replicas=replicas)
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
    )


def open_event_log(broker: BrokerAddress, *, name: str, namespace: str, prefix: str) -> EventLog:
    """The event log of the backbone alone, not started. `name` is what the broker shows for this client."""
    if broker.kind == "memory":
        from brokers.memory import MemoryEventLog

        return MemoryEventLog()
    if broker.kind == "kafka":
        from brokers.kafka.event_log import KafkaEventLog

        return KafkaEventLog(_kafka_connection(broker, name), namespace=namespace, prefix=prefix)
    from brokers.nats.event_log import NatsEventLog
    from brokers.nats.tables import NatsTables

    connection = nats_connection(broker, name)
    tables = NatsTables(connection, namespace=namespace, prefix=prefix)
    return NatsEventLog(connection, namespace=namespace, prefix=prefix, tables=tables)


def _on_kafka(broker: BrokerAddress, me: Peer, *, prefix: str, replicas: int) -> Backbone:
    from brokers.kafka.event_log import KafkaEventLog
    from brokers.kafka.requests import KafkaRequests
    from brokers.kafka.tables import KafkaTables
    from brokers.table_alarms import TableAlarmClocks

    connection = _kafka_connection(broker, me.app_id, replicas)
    tables = KafkaTables(connection, namespace=me.namespace, prefix=prefix)
    return Backbone(
        KafkaEventLog(connection, namespace=me.namespace, prefix=prefix),
        KafkaRequests(connection, me, prefix=prefix),
        tables,
        TableAlarmClocks(tables, node=f"{platform.node()}:{os.getpid()}"),
    )


def _kafka_connection(broker: BrokerAddress, name: str, replicas: int = 1) -> KafkaConnection:
    from brokers.kafka.connection import Access
    from brokers.kafka.connection import Connection as KafkaConnection

    return KafkaConnection(Access(servers=broker.servers, replicas=replicas), name=name)


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
