"""Hosts the carts. Each is an actor: two things that are done to one cart are done one after the other."""

from typing import Any

from app import Actor, serve, tell


def add(cart: Actor, item: Any) -> Any:
    held = content(cart)
    held["items"].append(item)
    cart.save(held)
    tell(f"{cart.id} takes {item['item']}")
    return {"items": len(held["items"])}


def close(cart: Actor, _: Any) -> Any:
    """The order that the cart becomes. Asked again before that is done, it is the same order; what is added
    meanwhile belongs to the next."""
    held = content(cart)
    if held["order"] is None and held["items"]:
        held["orders"] += 1
        held["order"] = {"id": f"{cart.id}-{held['orders']}", "items": held["items"]}
        held["items"] = []
        cart.save(held)
    return held["order"]


def done(cart: Actor, order: Any) -> None:
    held = content(cart)
    if held["order"] == order:
        cart.save(held | {"order": None})


def reopen(cart: Actor, order: Any) -> None:
    held = content(cart)
    if held["order"] == order:
        cart.save(held | {"order": None, "items": order["items"] + held["items"]})


def content(cart: Actor) -> Any:
    return cart.load() or {"items": [], "order": None, "orders": 0}


serve(actors={"Cart": {"add": add, "close": close, "done": done, "reopen": reopen}})
