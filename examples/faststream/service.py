"""A warehouse without a sidecar: a FastStream service that is a peer of the mesh."""

import asyncio
import os

from faststream import FastStream
from pydantic import BaseModel

BROKER = os.environ.get("MESHWIRE_BROKER", "nats://127.0.0.1:4222")
if BROKER.startswith("kafka://"):
    from brokers.faststream.kafka import Event, Mesh, MeshBroker
else:
    from brokers.faststream import Event, Mesh, MeshBroker


class Order(BaseModel):
    id: int
    item: str


class Shipment(BaseModel):
    order: int
    parcel: str


mesh = Mesh("warehouse")
broker = MeshBroker(mesh, BROKER)
app = FastStream(broker)


@broker.subscriber(**mesh.topic("orders", dead_letter="orders-refused"))
@broker.publisher(mesh.subject("shipments"), headers={"ce-type": "shipment.sent"})
async def ship(order: Order, event: Event) -> Shipment:
    """Packs an order of whoever placed it."""
    print(f"order {order.id} of {event.get_source()}: {order.item}", flush=True)
    return Shipment(order=order.id, parcel=f"P{order.id:04}")


if __name__ == "__main__":
    asyncio.run(app.run())
