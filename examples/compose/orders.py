"""The shop takes orders over HTTP and publishes each as an event. Standard library only."""

import json
import os
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SIDECAR = os.environ.get("DAPR_HTTP_ENDPOINT") or f"http://127.0.0.1:{os.environ.get('DAPR_HTTP_PORT', 3500)}"


class Orders(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.answer(204 if self.path == "/healthz" else 404)

    def do_POST(self) -> None:
        if self.path == "/orders":
            self.answer(*place(self.rfile.read(int(self.headers["content-length"]))))
        else:
            self.answer(404)

    def answer(self, status: int, content: object = None) -> None:
        body = b"" if content is None else json.dumps(content).encode() + b"\n"
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def place(order: bytes) -> tuple[int, object]:
    """Status and content of the answer to an order."""
    try:
        item, quantity = map(json.loads(order).get, ("item", "quantity"))
    except (ValueError, AttributeError):
        item = quantity = None
    if not isinstance(item, str) or not isinstance(quantity, int):
        return 400, {"error": 'an order looks like {"item": "apple", "quantity": 3}'}
    try:
        publish(order)
    except OSError as error:  # the sidecar is not there, or did not store the event: nothing was ordered
        return 503, {"error": f"try again: {error}"}
    return 202, {"item": item, "quantity": quantity}


def publish(order: bytes) -> None:
    """Returns when the broker has stored the event. Raises `OSError`."""
    headers = {"content-type": "application/json", "dapr-api-token": os.environ.get("DAPR_API_TOKEN", "")}
    request = urllib.request.Request(f"{SIDECAR}/v1.0/publish/pubsub/orders", order, headers)
    urllib.request.urlopen(request, timeout=15).close()


address = os.environ.get("APP_HOST", "127.0.0.1"), int(os.environ.get("APP_PORT", 8081))
ThreadingHTTPServer(address, Orders).serve_forever()
