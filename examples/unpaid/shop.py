"""A shop that cancels orders which are not paid in time, and counts its takings every evening."""

import json
import os
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SIDECAR = f"http://127.0.0.1:{os.environ.get('DAPR_HTTP_PORT', '3500')}"
PAY_WITHIN = os.environ.get("PAY_WITHIN", "15m")
paid: list[int] = []  # stands for a database


def ask(method: str, path: str, body: object = None, content_type: str = "application/json") -> int:
    sent = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(SIDECAR + path, sent, {"content-type": content_type}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


class Shop(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/dapr/subscribe":
            self.answer(200, [{"pubsubname": "pubsub", "topic": "unpaid", "route": "/unpaid"}])
            close_every_evening()  # there is a sidecar now
        else:
            self.answer(404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or b"{}")
        match self.path.split("/")[1:]:
            case ["orders"]:
                self.answer(order(body["number"], body["price"]))
            case ["orders", number, "pay"]:
                self.answer(pay(number, body["price"]))
            case ["unpaid"]:
                print(f"order {body['id']} cancelled: not paid within {PAY_WITHIN}\n", end="", flush=True)
                self.answer(200)
            case ["job", "closing"]:
                print(f"takings of {body['shop']}: {sum(paid)}\n", end="", flush=True)
                self.answer(200)
            case _:
                self.answer(404)

    def answer(self, status: int, content: Any = None) -> None:
        body = b"" if content is None else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def order(number: int, price: int) -> int:
    """The event that ends the order is on its way before the order is taken. The sidecar may be killed from here on."""
    event = {"specversion": "1.0", "id": str(number), "source": "/shop", "type": "order.unpaid", "data": price}
    path = f"/v1.0/publish/pubsub/unpaid?metadata.deliverAfter={PAY_WITHIN}"
    return ask("POST", path, event, "application/cloudevents+json")


def pay(number: str, price: int) -> int:
    """204 as long as the event can be taken back; 404 when the order was cancelled before."""
    status = ask("DELETE", f"/mesh/v1/scheduled/pubsub/unpaid/{number}")
    if status == 204:
        paid.append(price)
        print(f"order {number} paid\n", end="", flush=True)
    return status


def close_every_evening() -> None:
    job = {"schedule": "CRON_TZ=Europe/Berlin 0 0 18 * * *", "data": {"shop": "Berlin"}, "overwrite": True}
    print(f"job closing: {ask('POST', '/v1.0/jobs/closing', job)}", flush=True)


ThreadingHTTPServer(("127.0.0.1", int(os.environ["APP_PORT"])), Shop).serve_forever()
