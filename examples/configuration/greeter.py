"""Greets once a second, in the words and at the pace that the configuration says at that moment."""

import json
import os
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.error import URLError

STORE = f"http://127.0.0.1:{os.environ.get('DAPR_HTTP_PORT', '3500')}/v1.0/configuration/configstore"
KEYS = "key=greeting&key=pause"

settings = {"greeting": "Hello", "pause": "1"}
changed = threading.Event()


class App(BaseHTTPRequestHandler):
    """`POST /configuration/configstore/<key>`: the sidecar tells us what has changed."""

    def do_POST(self) -> None:
        update = json.loads(self.rfile.read(int(self.headers["content-length"])))
        take({key: item["value"] for key, item in update["items"].items()})
        self.send_response(200)
        self.end_headers()

    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, *_: object) -> None:
        pass


def take(values: dict[str, str]) -> None:
    settings.update(values)
    for key, value in values.items():
        print(f"{key} is {value!r}\n", end="", flush=True)
    changed.set()


def ask(target: str) -> dict:
    with urllib.request.urlopen(target, timeout=10) as answer:
        return json.load(answer) if answer.status == 200 else {}


def follow() -> None:
    """First subscribe, then read: so nothing that happens in between is missed."""
    while True:
        try:
            ask(f"{STORE}/subscribe?{KEYS}")
            break
        except URLError:  # the sidecar is not up yet
            time.sleep(0.1)
    take({key: item.get("value", "") for key, item in ask(f"{STORE}?{KEYS}").items()})
    print("following", flush=True)


server = ThreadingHTTPServer(("127.0.0.1", int(os.environ["APP_PORT"])), App)
threading.Thread(target=server.serve_forever, daemon=True).start()
follow()
while True:
    changed.clear()
    print(f"{settings['greeting'] or '…'}, world", flush=True)
    changed.wait(float(settings["pause"] or "1"))
