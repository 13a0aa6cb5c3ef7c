"""Takes the money, once for each order."""

from typing import Any

from app import Refused, serve, tell

LIMIT = 1000
paid = set[str]()  # stands for a database


def pay(order: Any) -> Any:
    if order["price"] > LIMIT:
        raise Refused(402, f"{order['price']} is more than {LIMIT}")
    if order["id"] not in paid:
        paid.add(order["id"])
        tell(f"{order['id']}: {order['price']}")
    return {"paid": True}


serve({"pay": pay})
