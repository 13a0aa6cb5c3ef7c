"""What the apps of the shop share: a server of calls, events and actors, and ways to call. Standard library only."""

import json
import os
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SIDECAR = f"http://127.0.0.1:{os.environ.get('DAPR_HTTP_PORT', 3500)}"
JSON = "application/json"

current = threading.local()
"""The request that this thread works on: its `traceparent` goes on with whatever we send."""


class Refused(Exception):
    """An answer other than 2xx: to raise in a handler, and raised when another app, or the sidecar, gives it."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Actor:
    """One actor, wherever it lives."""

    def __init__(self, kind: str, id: str) -> None:
        self.kind, self.id = kind, id
        self._path = f"/v1.0/actors/{kind}/{urllib.parse.quote(id, safe='')}"

    def call(self, method: str, body: Any = None) -> Any:
        return send("PUT", f"{self._path}/method/{method}", body)

    # Within its own turns:

    def load(self) -> Any:
        """What was saved last; `None` if nothing was."""
        return send("GET", f"{self._path}/state/self")

    def save(self, value: Any) -> None:
        send("POST", f"{self._path}/state", [{"operation": "upsert", "request": {"key": "self", "value": value}}])


def invoke(app_id: str, method: str, body: Any) -> Any:
    """Call a method of a service, wherever it runs."""
    return send("POST", f"/v1.0/invoke/{app_id}/method/{method}", body)


def publish(topic: str, kind: str, id: str, data: Any) -> None:
    """Publish an event; returns when the broker has stored it. Published again it has the same id."""
    event = {"specversion": "1.0", "id": id, "source": os.environ["APP_ID"], "type": kind, "data": data}
    send("POST", f"/v1.0/publish/pubsub/{topic}", event, "application/cloudevents+json")


def send(method: str, path: str, body: Any = None, content_type: str = JSON) -> Any:
    headers = {"content-type": content_type}
    if getattr(current, "traceparent", None):
        headers["traceparent"] = current.traceparent
    content = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(SIDECAR + path, content, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as error:
        with error:
            raise Refused(error.code, error.read().decode()) from None


def serve(
    methods: Mapping[str, Callable[[Any], Any]] = {},
    actors: Mapping[str, Mapping[str, Callable[[Actor, Any], Any]]] = {},
    topics: Mapping[str, str] = {},
) -> None:
    """Serve methods by name, types of actors, and `topics`, each with the method that gets its events."""

    class App(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            match self.path:
                case "/dapr/config":
                    self.answer(200, {"entities": list(actors)})
                case "/dapr/subscribe":
                    self.answer(200, [{"pubsubname": "pubsub", "topic": t, "route": topics[t]} for t in topics])
                case _:
                    self.answer(404)

        def do_POST(self) -> None:
            self.handle_call()

        def do_PUT(self) -> None:
            self.handle_call()

        def do_DELETE(self) -> None:
            self.answer(200)  # an actor is deactivated: ours hold nothing but their state

        def handle_call(self) -> None:
            current.traceparent = self.headers.get("traceparent")
            body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or b"null")
            try:
                match self.path.split("/")[1:]:
                    case ["actors", kind, id, "method", method] if method in actors.get(kind, {}):
                        self.answer(200, actors[kind][method](Actor(kind, urllib.parse.unquote(id)), body))
                    case [method] if method in methods:
                        self.answer(200, methods[method](body))
                    case _:
                        self.answer(404)
            except Refused as refusal:
                self.answer(refusal.status, {"reason": str(refusal)})

        def answer(self, status: int, content: Any = None) -> None:
            body = b"" if content is None else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("content-type", JSON)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    ThreadingHTTPServer(("127.0.0.1", int(os.environ["APP_PORT"])), App).serve_forever()


def tell(line: str) -> None:
    """Print a line, and let none of another request's get into it."""
    print(line + "\n", end="")
