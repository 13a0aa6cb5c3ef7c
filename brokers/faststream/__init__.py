"""Python services that take part in the mesh without a sidecar: FastStream on NATS, and on Kafka (see `kafka`).

A `MeshBroker` is a FastStream broker, with everything that one can do; on it, the topics of a `Mesh` are subscribed and
published to like any other (docs/faststream.md):

    mesh = Mesh("warehouse")
    broker = MeshBroker(mesh, "nats://localhost:4222")

    @broker.subscriber(**mesh.topic("orders", dead_letter="orders-dead"))
    @broker.publisher(mesh.subject("shipments"), headers={"ce-type": "shipment.sent"})
    async def ship(order: Order, event: Event) -> Shipment: ...

What FastStream would do differently is done by the adapters that sidecars use, `NatsEventLog` and `KafkaEventLog`: how
messages are fetched and settled, so that a service and a sidecar of one app id are members of one group, and the
acknowledged publish. FastStream keeps what it is good at: handlers, validation, injection, middlewares, AsyncAPI.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from brokers.faststream.event import Event

if TYPE_CHECKING:
    from brokers.faststream.nats import Mesh, MeshBroker, MeshMessage

__all__ = ["Event", "Mesh", "MeshBroker", "MeshMessage"]


def __getattr__(name: str) -> Any:
    """What is for NATS is loaded when it is asked for: who uses Kafka need not have its client."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from brokers.faststream import nats

    return getattr(nats, name)
