"""What the three apps share: an HTTP server that takes events, and a way to publish. Standard library only."""

import json
import os
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Handler = Callable[[Any], int]
"""Gets the JSON that was sent and returns the status to answer: 2xx for handled, 404 for dropped, else again."""

SIDECAR = f"http://127.0.0.1:{os.environ.get('DAPR_HTTP_PORT', 3500)}"


def serve(handlers: dict[str, Handler], subscriptions: list[dict[str, str]]) -> None:
    """Serve `handlers`, by path, on the port that `--app-port` names."""

    class App(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path == "/dapr/subscribe":
                self.answer(200, subscriptions)
            else:
                self.answer(404)

        def do_POST(self) -> None:
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
    request = urllib.request.Request(
        f"{SIDECAR}/v1.0/publish/pubsub/{topic}",
        json.dumps(event).encode(),
        {"content-type": "application/cloudevents+json"},
    )
    urllib.request.urlopen(request, timeout=15).close()
