"""Python services that take part in the mesh without a sidecar: FastStream on NATS.

A `MeshBroker` is a FastStream `NatsBroker`, with everything that one can do; on it, the topics of a `Mesh` are
subscribed and published to like any other subject (docs/faststream.md):

    mesh = Mesh("warehouse")
    broker = MeshBroker(mesh, "nats://localhost:4222")

    @broker.subscriber(**mesh.topic("orders", dead_letter="orders-dead"))
    @broker.publisher(mesh.subject("shipments"), headers={"ce-type": "shipment.sent"})
    async def ship(order: Order, event: Event) -> Shipment: ...

What FastStream would do differently is done by the adapter that sidecars use, `NatsEventLog`: its pull loop (that
of FastStream waits for the slowest message of a batch before it asks for more, and spins when its consumer is
gone), its consumers, so that a service and a sidecar of one app id are members of one group, and its acknowledged
publish. FastStream keeps what it is good at: handlers, validation, injection, middlewares, AsyncAPI.
"""

from brokers.faststream.event import Event
from brokers.faststream.nats import Mesh, MeshBroker, MeshMessage

__all__ = ["Event", "Mesh", "MeshBroker", "MeshMessage"]
