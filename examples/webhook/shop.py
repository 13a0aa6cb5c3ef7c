"""Makes an order of each issue that is opened with the label `order`."""

import json
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.request import Request, urlopen

PUBLISH = f"http://127.0.0.1:{os.environ['DAPR_HTTP_PORT']}/v1.0/publish/pubsub/orders"
SUBSCRIPTIONS = [{"pubsubname": "pubsub", "topic": "orders", "route": "/orders"}]


class Shop(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        """`GET /dapr/subscribe`: which topics the app wants."""
        self.answer(200, SUBSCRIPTIONS) if self.path == "/dapr/subscribe" else self.answer(404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/github":
            self.hear(body)
        else:
            print(f"order {body['data']['number']}: {body['data']['item']}\n", end="", flush=True)
        self.answer(200)  # anything but 2xx, an exception too, and it comes again

    def hear(self, happened: dict) -> None:
        """What GitHub tells: its headers are there, its signature was checked."""
        if self.headers["X-GitHub-Event"] != "issues" or happened["action"] != "opened":
            return
        issue = happened["issue"]
        if "order" not in [label["name"] for label in issue["labels"]]:
            return
        # Named after the issue: if the webhook comes again, it is the same event, and is stored once.
        publish(f"issue-{issue['id']}", {"number": issue["number"], "item": issue["title"]})

    def answer(self, status: int, content: object = None) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def publish(name: str, order: dict) -> None:
    event = {"specversion": "1.0", "id": name, "source": "github", "type": "order.placed", "data": order}
    request = Request(PUBLISH, json.dumps(event).encode(), {"content-type": "application/cloudevents+json"})
    urlopen(request, timeout=10).close()


ThreadingHTTPServer(("127.0.0.1", int(os.environ["APP_PORT"])), Shop).serve_forever()
