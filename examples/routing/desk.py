"""Says which orders came to which path."""

import json
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Desk(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        event = json.loads(self.rfile.read(int(self.headers["content-length"])))
        print(f"{self.path}: order {event['id']} of {event['data']['amount']}\n", end="", flush=True)
        self.send_response(200)
        self.end_headers()

    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, *_: object) -> None:
        pass


ThreadingHTTPServer(("127.0.0.1", int(os.environ["APP_PORT"])), Desk).serve_forever()
