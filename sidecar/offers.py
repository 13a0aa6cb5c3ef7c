"""What a broker offers, and what is done where it lacks something (docs/brokers.md)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import msgspec

from mesh.addressing import DEFAULT_NAMESPACE
from mesh.errors import BrokerUnavailable
from mesh.ports import Feature, Peer
from mesh.ports.tables import TableFeature
from sidecar.backbone import Backbone, open_backbone
from sidecar.settings import BrokerAddress

if TYPE_CHECKING:
    from brokers.kafka.connection import Connection as KafkaConnection
    from brokers.kafka.probe import Offered
    from brokers.nats.connection import Connection as NatsConnection

NAME = "meshwire-brokers"
LIMIT = 10.0
"""Seconds that a broker has for its answers."""

WITHOUT: Mapping[Feature | TableFeature, str] = {
    Feature.DEDUPE: "what is published twice is stored twice: an app drops what it has handled, by source and id",
    Feature.DURABLE: "its end is the end of all events and groups: for tests",
    Feature.TTL: "events are delivered though they have expired",
    Feature.KEY_ORDER: "`order: key` is refused; events come in any order",
    Feature.STRICT_ORDER: "`order: strict` is refused; on Kafka topics of one partition have it",
    Feature.READ: "replays, and subscriptions that begin at a time, are refused",
    Feature.BROADCAST: "`broadcast` is refused",
    Feature.WILDCARDS: "topics with `*` or `>` are refused: subscribe to each by its name",
    Feature.ANY_MEMBER: "a replica gets the events of its own partitions; when it takes none for 2 s, others get them",
    TableFeature.DURABLE: "its end is the end of all state, leases and jobs: for tests",
    TableFeature.HISTORY: "the setting `history` of a state store is refused",
}
"""What the lack of a feature means."""

SERVERS = {
    "idempotence": (
        "stores once what is sent again because its acknowledgement was lost",
        "such an event may be stored twice; changes of tables carry ids and are done once",
    ),
    "transactions": (
        "hides what other programs' transactions have not committed",
        "such records are delivered too; Meshwire itself uses no transactions",
    ),
    "offsets_by_time": ("finds messages by their time", "`READ` is lacking"),
    "delete_records": (
        "forgets the beginning of a log on request",
        "the logs of tables only grow; who starts reads a snapshot and what comes after it",
    ),
    "ends": (
        "tells where a log ends, also of records that came together",
        "whoever reads a table writes a mark into its log first, and waits for it",
    ),
    "wakes": (
        "ends a waiting fetch with the first record",
        "fetches wait for 5 ms only: an idle consumer asks 200 times a second",
    ),
}
"""What the members of Kafka's `Offered` mean, and what their lack does."""


class Row(msgspec.Struct, frozen=True, omit_defaults=True):
    """Something that a broker may be able to do."""

    name: str
    offered: bool
    means: str
    instead: str = ""
    """Where it is not offered: what is done then."""


class Fact(msgspec.Struct, frozen=True):
    name: str
    told: str


class Offer(msgspec.Struct, frozen=True):
    """What a broker offers to a mesh."""

    broker: str
    """Its address, without credentials."""
    kind: str
    """`nats`, `kafka`, `memory` or `embedded`."""
    events: Sequence[Row]
    tables: Sequence[Row]
    servers: Sequence[Row]
    """What was found out about the servers of Kafka, beyond the protocol's core."""
    foundations: Sequence[Fact]
    """What calls, tables, alarms, leases and locks rest on."""
    limits: Sequence[Fact]


async def look(broker: BrokerAddress, *, prefix: str, requests: BrokerAddress | None = None) -> Offer:
    """Connect, ask, and leave; nothing is stored. `requests` as for `open_backbone`.

    Raises `ConfigurationError` when waiting cannot help, `BrokerError` for a NATS server without JetStream,
    `BrokerUnavailable` after `LIMIT` seconds.
    """
    backbone = open_backbone(broker, Peer(DEFAULT_NAMESPACE, NAME), prefix=prefix, requests=requests)
    connections = [connection for connection in (backbone.connection, backbone.line) if connection is not None]
    async with AsyncExitStack() as leaving:
        leaving.push_async_callback(backbone.tables.close)
        for connection in connections:
            leaving.push_async_callback(connection.close)
        try:
            async with asyncio.timeout(LIMIT):
                await asyncio.gather(*(connection.start() for connection in connections))
                return await _offer(broker, backbone, requests)
        except TimeoutError:
            problem = backbone.problem or "busy"
            raise BrokerUnavailable(f"{broker} did not answer within {LIMIT:g} s: {problem}") from None


async def _offer(broker: BrokerAddress, backbone: Backbone, requests: BrokerAddress | None) -> Offer:
    servers: Sequence[Row] = ()
    if broker.kind == "memory":
        facts = _of_memory()
    elif broker.kind == "kafka":
        kafka: KafkaConnection = backbone.connection  # type: ignore[assignment]
        servers = list(_probed(kafka.offered))
        facts = _of_kafka(broker, requests)
    else:
        nats: NatsConnection = backbone.connection  # type: ignore[assignment]
        facts = await _of_nats(nats)
    return Offer(
        broker=str(broker),
        kind=broker.kind,
        events=list(rows(Feature, backbone.log.features)),
        tables=list(rows(TableFeature, backbone.tables.table(NAME).features)),
        servers=servers,
        foundations=[Fact(*fact) for fact in facts[0].items()],
        limits=[Fact(*fact) for fact in facts[1].items()],
    )


def rows(
    features: type[Feature] | type[TableFeature], declared: frozenset[Feature] | frozenset[TableFeature]
) -> Iterator[Row]:
    """One for each feature of the port."""
    for feature in features:
        offered = feature in declared
        yield Row(feature.name, offered, feature.value, "" if offered else WITHOUT[feature])


def _probed(found: Offered) -> Iterator[Row]:
    for name, (means, instead) in SERVERS.items():
        offered: bool = getattr(found, name)
        yield Row(name, offered, means, "" if offered else instead)


Facts = tuple[Mapping[str, str], Mapping[str, str]]
"""What all rests on, and the limits."""


def _of_memory() -> Facts:
    alone = "this process: other sidecars are not reached"
    return {"calls": alone, "tables": alone, "alarms": alone, "leases and locks": alone}, {"an event": "none"}


async def _of_nats(connection: NatsConnection) -> Facts:
    from brokers.nats import event_log, inspection
    from mesh.quantities import duration_text

    await inspection.room(connection)  # whether there is JetStream at all
    return {
        "calls": "subjects and queue groups; nothing is stored",
        "tables": "a JetStream stream for each scope",
        "alarms": "scheduled messages of JetStream: the server watches the time",
        "leases and locks": "entries of tables",
    }, {
        "an event, or a change of a table": f"{connection.max_payload} bytes, headers included (max_payload)",
        "a call": "none: bodies are streamed",
        "events are kept": duration_text(event_log.MAX_AGE),
    }


def _of_kafka(broker: BrokerAddress, requests: BrokerAddress | None) -> Facts:
    from brokers.kafka.bodies import MAX_BODY
    from brokers.kafka.tables import RESERVED
    from brokers.kafka.topics import MAX_REQUEST

    own = "topics for calls, answers and presence; no consumer groups"
    return {
        "calls": own if requests is None else f"NATS at {requests}",
        "tables": "a topic of one partition for each scope: a log that every process follows",
        "alarms": "entries of tables: the members of an app watch the time",
        "leases and locks": "entries of tables",
    }, {
        "an event": f"{MAX_REQUEST} bytes, headers included; less where the topic takes less (max.message.bytes)",
        "a commit of a table, all changes together": f"{MAX_REQUEST - RESERVED} bytes",
        "a call": f"bodies of {MAX_BODY} bytes" if requests is None else "none: bodies are streamed",
        "partitions of a new topic for events": f"{broker.partitions}: as many replicas of an app share it",
    }
