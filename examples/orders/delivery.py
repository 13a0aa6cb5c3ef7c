"""Books a van. Which events it gets, and where they go that it fails, stands in resources/delivery.yaml."""

from typing import Any

from app import serve, tell

TOO_HEAVY = {"piano"}


def book(event: Any) -> int:
    item = event["data"]["item"]
    if item in TOO_HEAVY:
        tell(f"no van   {item}")
        return 500  # a failure: the event goes to the dead letter topic
    tell(f"booked   {item}")
    return 200


serve({"/book": book}, [])
