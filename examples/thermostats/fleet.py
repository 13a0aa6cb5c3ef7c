"""Hosts thermostats. Each is an actor that is reminded to look after its room; they may live on any host."""

import json
import os
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

SIDECAR = f"http://127.0.0.1:{os.environ.get('DAPR_HTTP_PORT', '3500')}"
EVERY = os.environ.get("EVERY", "1s")

current = threading.local()
"""The call that this thread works on: its `traceparent` goes on with whatever we send."""


def ask(method: str, path: str, body: object = None) -> Any:
    sent = None if body is None else json.dumps(body).encode()
    headers = {"content-type": "application/json"}
    if current.traceparent:
        headers["traceparent"] = current.traceparent
    request = urllib.request.Request(f"{SIDECAR}/v1.0/actors/Thermostat/{path}", sent, headers, method=method)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read() or b"null")


def set_target(room: str, target: float) -> None:
    """From now on the room is looked after, also after a restart of everything."""
    save(room, (load(room) or {"measured": 15.0}) | {"target": target})
    ask("PUT", f"{room}/reminders/look", {"dueTime": "0s", "period": EVERY, "data": {"step": 0.5}})
    tell(f"{unquote(room)}: to {target}")


def look(room: str, step: float) -> None:
    """The reminder. The heater of this model warms a room by `step` degrees from one look to the next."""
    seen = load(room)
    heats = seen["measured"] < seen["target"]
    tell(f"{unquote(room)}: {seen['measured']}, {'heats' if heats else 'rests'}")
    save(room, seen | {"measured": seen["measured"] + (step if heats else -step)})


def forget(room: str) -> None:
    ask("DELETE", f"{room}/reminders/look")
    tell(f"{unquote(room)}: off")


def load(room: str) -> Any:
    return ask("GET", f"{room}/state/room")


def save(room: str, value: Any) -> None:
    ask("POST", f"{room}/state", [{"operation": "upsert", "request": {"key": "room", "value": value}}])


def tell(line: str) -> None:
    """Print a line, and let none of another call's get into it."""
    print(line + "\n", end="", flush=True)


class Fleet(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/dapr/config":
            self.answer(200, {"entities": ["Thermostat"]})
        else:
            self.answer(404)

    def do_PUT(self) -> None:
        current.traceparent = self.headers.get("traceparent")
        body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or b"null")
        status = 200
        match self.path.split("/")[1:]:
            case ["actors", "Thermostat", room, "method", "set"]:
                set_target(room, body["target"])
            case ["actors", "Thermostat", room, "method", "off"]:
                forget(room)
            case ["actors", "Thermostat", room, "method", "remind", "look"]:
                look(room, body["data"]["step"])
            case _:
                status = 404
        self.answer(status)

    def do_DELETE(self) -> None:
        """A thermostat is deactivated: it idled, or moves to another host. Ours hold nothing but their state."""
        self.answer(200)

    def answer(self, status: int, content: object = None) -> None:
        body = b"" if content is None else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


ThreadingHTTPServer(("127.0.0.1", int(os.environ["APP_PORT"])), Fleet).serve_forever()
