"""Packs and ships what is paid."""

from typing import Any

from app import publish, serve, tell


def ship(event: Any) -> int:
    order = event["data"]
    tell(f"packing  {order['item']}")
    publish("shipments", "order.shipped", order)
    return 200


serve({"/ship": ship}, [{"pubsubname": "pubsub", "topic": "payments", "route": "/ship"}])
