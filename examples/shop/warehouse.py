"""Packs what was ordered, when it comes to it: it may be away when that happens."""

from typing import Any

from app import serve, tell


def pack(event: Any) -> None:
    order = event["data"]
    tell(f"{' and '.join(item['item'] for item in order['items'])} for {order['who']} into van {order['van']}")


serve({"pack": pack}, topics={"orders": "/pack"})
