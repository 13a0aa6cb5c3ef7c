"""The warehouse reserves what was ordered. Standard library only."""

import hmac
import json
import os
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = os.environ.get("APP_API_TOKEN", "")
SUBSCRIPTIONS = [{"pubsubname": "pubsub", "topic": "orders", "route": "/ordered"}]

reserved: Counter[str] = Counter()
seen: set[tuple[str, str]] = set()
"""Events come at least once. What identifies one is its source and its id; a real shop keeps them in its database."""
lock = threading.Lock()


class Inventory(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        pages = {"/healthz": {}, "/stock": {"reserved": reserved}, "/dapr/subscribe": SUBSCRIPTIONS}
        self.answer(200 if self.path in pages else 404, pages.get(self.path, {}))

    def do_POST(self) -> None:
        event = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if hmac.compare_digest(self.headers.get("dapr-api-token", ""), TOKEN):
            self.answer(200, {"status": reserve(event)})
        else:
            self.answer(401, {"error": "only our sidecar may deliver events"})

    def answer(self, status: int, content: object) -> None:
        body = json.dumps(content).encode() + b"\n"
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def reserve(event: dict[str, Any]) -> str:
    """SUCCESS: handled. RETRY would bring the event again later; what can never be handled is to be dropped."""
    match event.get("data"):
        case {"item": str(item), "quantity": int(quantity)}:
            with lock:
                if (event["source"], event["id"]) not in seen:
                    seen.add((event["source"], event["id"]))
                    reserved[item] += quantity
                    print(f"reserved {quantity} {item}\n", end="", flush=True)
            return "SUCCESS"
        case _:
            print(f"no order: {event.get('data')}\n", end="", flush=True)
            return "DROP"


address = os.environ.get("APP_HOST", "127.0.0.1"), int(os.environ.get("APP_PORT", 8082))
ThreadingHTTPServer(address, Inventory).serve_forever()
