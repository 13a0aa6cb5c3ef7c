"""Takes orders at POST /orders, has them paid, and hears what becomes of them."""

import uuid
from typing import Any

from app import invoke, serve

PAID, REFUSED = 200, 402


def place(order: Any) -> int:
    order = {"id": uuid.uuid4().hex[:8], "item": order["item"], "price": order["price"]}
    print(f"ordered  {order['item']}")
    status = invoke("payment", "pay", order)
    if status == PAID:
        print(f"paid     {order['item']}")
        return 202
    print(f"unpaid   {order['item']}: {status}")
    return REFUSED if status == REFUSED else 503


def shipped(event: Any) -> int:
    print(f"shipped  {event['data']['item']}")
    return 200


def undeliverable(event: Any) -> int:
    print(f"to fetch {event['data']['item']}")
    return 200


serve(
    {"/orders": place, "/shipped": shipped, "/undeliverable": undeliverable},
    [
        {"pubsubname": "pubsub", "topic": "shipments", "route": "/shipped"},
        {"pubsubname": "pubsub", "topic": "undeliverable", "route": "/undeliverable"},
    ],
)
