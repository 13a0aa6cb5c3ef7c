"""Packs each order as soon as its row is there, and says so in the row."""

import json
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.request import Request, urlopen

BINDING = f"http://127.0.0.1:{os.environ['DAPR_HTTP_PORT']}/v1.0/bindings/new-orders"


def execute(sql: str, *params: object) -> None:
    body = {"operation": "exec", "metadata": {"sql": sql, "params": json.dumps(params)}}
    request = Request(BINDING, json.dumps(body).encode(), {"content-type": "application/json"})
    urlopen(request, timeout=10).close()


class Packer(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        order = json.loads(self.rfile.read(int(self.headers["content-length"])))["new"]
        execute("UPDATE orders SET state = 'packed' WHERE id = $1", order["id"])
        print(f"order {order['id']}: {order['item']} is packed\n", end="", flush=True)
        self.send_response(200)
        self.end_headers()

    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, *_: object) -> None:
        pass


ThreadingHTTPServer(("127.0.0.1", int(os.environ["APP_PORT"])), Packer).serve_forever()
