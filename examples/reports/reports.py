"""Writes the day's orders to a bucket whenever `nightly` fires."""

import json
import os
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BINDING = f"http://127.0.0.1:{os.environ.get('DAPR_HTTP_PORT', '3500')}/v1.0/bindings/reports"
ORDERS = [("1001", "anvil", 3), ("1002", "rope", 1)]  # stands for a database


class App(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        """`POST /nightly`: the sidecar says that it is time. Any answer but 2xx, and it comes again."""
        self.rfile.read(int(self.headers.get("content-length", 0)))
        day = self.headers["scheduledTime"][:10]
        # Named after the moment, not after now: if it comes again, it is the same report.
        write(f"orders/{day}.csv", "".join(f"{number},{what},{pieces}\n" for number, what, pieces in ORDERS))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def write(key: str, text: str) -> None:
    asked = {"operation": "create", "data": text, "metadata": {"key": key, "Content-Type": "text/csv"}}
    request = urllib.request.Request(BINDING, json.dumps(asked).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        print(f"written to {json.load(answer)['location']}\n", end="", flush=True)


ThreadingHTTPServer(("127.0.0.1", int(os.environ["APP_PORT"])), App).serve_forever()
