"""Books vans, one for each order."""

from typing import Any

from app import serve, tell

vans = dict[str, int]()  # stands for a database


def book(order: Any) -> Any:
    if order["id"] not in vans:
        vans[order["id"]] = len(vans) + 1
        tell(f"{order['id']}: van {vans[order['id']]}")
    return {"van": vans[order["id"]]}


serve({"book": book})
