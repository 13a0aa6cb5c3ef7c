"""Takes orders at POST /orders, has them paid, and hears what becomes of them."""

import uuid
from typing import Any

from app import invoke, serve, tell

PAID, REFUSED = 200, 402


def place(order: Any) -> int:
    order = {"id": uuid.uuid4().hex[:8], "item": order["item"], "price": order["price"]}
    tell(f"ordered  {order['item']}")
    status = invoke("payment", "pay", order)
    if status == PAID:
        tell(f"paid     {order['item']}")
        return 202
    tell(f"unpaid   {order['item']}: {status}")
    return REFUSED if status == REFUSED else 503


def shipped(event: Any) -> int:
    tell(f"shipped  {event['data']['item']}")
    return 200


def undeliverable(event: Any) -> int:
    tell(f"to fetch {event['data']['item']}")
    return 200


serve(
    {"/orders": place, "/shipped": shipped, "/undeliverable": undeliverable},
    [
        {"pubsubname": "pubsub", "topic": "shipments", "route": "/shipped"},
        {"pubsubname": "pubsub", "topic": "undeliverable", "route": "/undeliverable"},
    ],
)
