"""Turns carts into orders. Holds nothing: what happened so far is known to the cart, the payment and the delivery."""

from typing import Any

from app import Actor, Refused, invoke, publish, serve, tell


def add(wish: Any) -> Any:
    return Actor("Cart", wish["who"]).call("add", {"item": wish["item"], "price": wish["price"]})


def order(wish: Any) -> Any:
    """Each step may be done twice, so an order that did not get to its end is simply ordered again."""
    who = wish["who"]
    cart = Actor("Cart", who)
    order = cart.call("close")
    if order is None:
        raise Refused(409, f"the cart of {who} is empty")
    price = sum(item["price"] for item in order["items"])
    try:
        invoke("payment", "pay", {"id": order["id"], "price": price})
    except Refused as refusal:
        if refusal.status == 402:
            tell(f"{who} cannot pay {price}")
            cart.call("reopen", order)
        raise
    delivery = invoke("delivery", "book", {"id": order["id"]})
    publish("orders", "order.paid", order["id"], {"who": who, "van": delivery["van"], "items": order["items"]})
    cart.call("done", order)
    tell(f"{who} paid {price}")
    return {"order": order["id"], "van": delivery["van"]}


serve({"add": add, "order": order})
