"""Takes orders at POST /orders, and hears what becomes of them."""

import uuid
from typing import Any

from app import publish, serve


def place(order: Any) -> int:
    order = {"id": uuid.uuid4().hex[:8], "item": order["item"], "price": order["price"]}
    publish("orders", "order.placed", order)
    print(f"placed   {order['item']}")
    return 202


def shipped(event: Any) -> int:
    print(f"shipped  {event['data']['item']}")
    return 200


def refused(event: Any) -> int:
    print(f"refused  {event['data']['item']}")
    return 200


serve(
    {"/orders": place, "/shipped": shipped, "/refused": refused},
    [
        {"pubsubname": "pubsub", "topic": "shipments", "route": "/shipped"},
        {"pubsubname": "pubsub", "topic": "orders-refused", "route": "/refused"},
    ],
)
