"""The other side: an app with a sidecar that hears of shipments and of refused orders. Standard library only."""

import json
import os
from http.server import BaseHTTPRequestHandler, HTTPServer

TOPICS = ["shipments", "orders-refused"]


class Shop(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        wanted = [{"pubsubname": "pubsub", "topic": topic, "route": f"/{topic}"} for topic in TOPICS]
        self.answer(wanted if self.path == "/dapr/subscribe" else {})

    def do_POST(self) -> None:
        event = json.loads(self.rfile.read(int(self.headers["content-length"])))
        print(f"{self.path[1:]}: {json.dumps(event['data'])} from {event['source']}")
        self.answer({})

    def answer(self, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


HTTPServer(("127.0.0.1", int(os.environ["APP_PORT"])), Shop).serve_forever()
