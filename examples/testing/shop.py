"""A shop's checkout: charges each order, remembers it, and says that it was paid. Any ASGI framework would do."""

import json
import os
import urllib.request

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

LARGEST_ORDER = 1_000


class Bank:
    """Where the money comes from; a test has one of its own."""

    def charge(self, amount: int) -> None:
        raise ConnectionError("there is no bank in this example")


bank = Bank()


def call_sidecar(path: str, body: object) -> None:
    request = urllib.request.Request(
        f"http://127.0.0.1:{os.environ['DAPR_HTTP_PORT']}{path}",
        json.dumps(body).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=5):
        pass


async def subscriptions(request: Request) -> JSONResponse:
    return JSONResponse([{"pubsubname": "pubsub", "topic": "orders", "route": "/orders", "metadata": {}}])


async def order_placed(request: Request) -> JSONResponse:
    order = (await request.json())["data"]
    if order["amount"] > LARGEST_ORDER:
        return JSONResponse({"status": "DROP"})
    bank.charge(order["amount"])  # what it raises is a 500, and the order comes again
    await run_in_threadpool(call_sidecar, "/v1.0/state/statestore", [{"key": order["id"], "value": "paid"}])
    await run_in_threadpool(call_sidecar, "/v1.0/publish/pubsub/paid", {"order": order["id"]})
    return JSONResponse({"status": "SUCCESS"})


app = Starlette(
    routes=[
        Route("/dapr/subscribe", subscriptions),
        Route("/orders", order_placed, methods=["POST"]),
    ]
)
