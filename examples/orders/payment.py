"""Takes the money. Which events it gets, and where they go that it fails, stands in resources/orders.yaml."""

from typing import Any

from app import publish, serve

LIMIT = 500


def pay(event: Any) -> int:
    order = event["data"]
    if order["price"] > LIMIT:
        print(f"too dear {order['item']}")
        return 500  # a failure: the event goes to the dead letter topic
    publish("payments", "order.paid", order)
    print(f"paid     {order['item']}")
    return 200


serve({"/pay": pay}, [])
