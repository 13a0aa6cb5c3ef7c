"""What the four apps share: an HTTP server that is called, and a way to call and to publish. Standard library only."""

import json
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Handler = Callable[[Any], int]
"""Gets the JSON that was sent and returns the status to answer: of an event 2xx is handled, 404 dropped, else again."""

SIDECAR = f"http://127.0.0.1:{os.environ.get('DAPR_HTTP_PORT', 3500)}"

current = threading.local()
"""The request that this thread works on: its `traceparent` goes on with whatever we send."""


def serve(handlers: dict[str, Handler], subscriptions: list[dict[str, str]]) -> None:
    """Serve `handlers`, by path, on the port that the sidecar was told."""

    class App(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path == "/dapr/subscribe":
                self.answer(200, subscriptions)
            else:
                self.answer(404)

        def do_POST(self) -> None:
            current.traceparent = self.headers.get("traceparent")
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            handler = handlers.get(self.path)
            self.answer(404 if handler is None else handler(body))

        def answer(self, status: int, content: object = None) -> None:
            data = b"" if content is None else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    ThreadingHTTPServer(("127.0.0.1", int(os.environ["APP_PORT"])), App).serve_forever()


def tell(line: str) -> None:
    """Print a line, and let none of another request's get into it."""
    print(line + "\n", end="")


def invoke(app_id: str, method: str, order: dict[str, Any]) -> int:
    """Call a method of another app, wherever it runs; returns the status that it answered."""
    try:
        return send(f"/v1.0/invoke/{app_id}/method/{method}", order, "application/json")
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def publish(topic: str, kind: str, order: dict[str, Any]) -> None:
    """Publish an event of type `kind` about `order`; returns when the broker has stored it.

    The event has an id of its own, so that it is one event also where we publish it twice.
    """
    event = {
        "specversion": "1.0",
        "id": f"{order['id']}-{kind}",
        "source": os.environ["APP_ID"],
        "type": kind,
        "datacontenttype": "application/json",
        "data": order,
    }
    send(f"/v1.0/publish/pubsub/{topic}", event, "application/cloudevents+json")


def send(path: str, content: object, content_type: str) -> int:
    headers = {"content-type": content_type}
    if getattr(current, "traceparent", None):
        headers["traceparent"] = current.traceparent
    request = urllib.request.Request(SIDECAR + path, json.dumps(content).encode(), headers)
    with urllib.request.urlopen(request, timeout=15) as answer:
        return int(answer.status)
