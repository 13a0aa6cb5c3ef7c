"""Takes the money, when its bank answers: it does at the second attempt only."""

from typing import Any

from app import publish, serve, tell

LIMIT = 5000
attempted = set[str]()


def pay(order: Any) -> int:
    if order["price"] > LIMIT:
        tell(f"too dear {order['item']}")
        return 402
    if order["id"] not in attempted:
        attempted.add(order["id"])
        tell(f"no bank  {order['item']}")
        return 503  # the shop's sidecar asks again, as resources/resiliency.yaml says
    publish("payments", "order.paid", order)
    tell(f"paid     {order['item']}")
    return 200


serve({"/pay": pay}, [])
