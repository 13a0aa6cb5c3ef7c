"""`make demo`: what Meshwire does, shown with real processes in a few seconds.

Two apps with a sidecar each, started by `meshwire run`; the broker is the embedded nats-server. Nothing is installed
and nothing stays: all files are in a temporary folder. Exit code 0 means that every event arrived as it was sent.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

MESHWIRE = Path(sys.executable).with_name("meshwire")
LIMIT = 20.0
"""Seconds that anything may take before the demo gives up."""
CROWD = 600
"""Events that are published while the broker is killed."""
WIDTH = 100
"""Longest command, in characters, that is shown on one line."""


def subscriber() -> None:
    """The app that receives: `demo.py subscriber`. An app needs no library, only these two routes."""

    class App(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            wanted = [{"pubsubname": "pubsub", "topic": topic, "route": "/event"} for topic in ("A", "B")]
            self.answer(200, wanted) if self.path == "/dapr/subscribe" else self.answer(404, {})

        def do_POST(self) -> None:
            event = self.rfile.read(int(self.headers["content-length"])).decode()
            print(f"{event}\n", end="", flush=True)  # one write, since other threads print too
            self.answer(200, {"status": "SUCCESS"})

        def answer(self, status: int, content: object) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    ThreadingHTTPServer(("127.0.0.1", int(os.environ["APP_PORT"])), App).serve_forever()


class Failed(Exception):
    pass


class Run:
    """One `meshwire run` and what it prints."""

    def __init__(self, home: str, *words: str) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("DAPR_", "MESHWIRE_"))}
        self.lines: list[str] = []
        self.process = subprocess.Popen(  # noqa: S603
            [MESHWIRE, "run", *words],
            env=clean | {"MESHWIRE_HOME": home},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
        )
        self.reading = threading.Thread(target=self.read, daemon=True)
        self.reading.start()

    def read(self) -> None:
        for line in self.process.stdout or ():
            self.lines.append(line.rstrip())

    def says(self, pattern: str) -> bool:
        if self.process.poll() is not None:
            raise Failed("meshwire run has ended")
        return any(re.search(pattern, line) for line in self.lines.copy())

    def events(self) -> list[str]:
        """What the app has received, oldest first, as it came."""
        return [line.removeprefix("== APP == ") for line in self.lines.copy() if line.startswith("== APP == {")]

    def end(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.reading.join(LIMIT)


class Demo:
    def __init__(self, home: str) -> None:
        self.home = home
        self.runs: list[Run] = []
        self.port = free_port()

    def play(self) -> None:
        started = time.monotonic()
        say("Two apps, a sidecar for each, and a real nats-server between them.")
        self.sub = self.start(
            "sub", f"--app-port={free_port()}", "--", sys.executable, "-P", str(Path(__file__).resolve()), "subscriber"
        )
        self.start("pub", f"--dapr-http-port={self.port}")
        for topic in "AB":
            wait_until(lambda: self.sub.says(rf"is subscribed to the following topics: \[{topic}\]"), f"topic {topic}")  # noqa: B023
        for run in self.runs:
            wait_until(lambda: run.says("You're up and running!"), "the sidecar")  # noqa: B023
        done(f"both are up after {time.monotonic() - started:.1f} s")

        say("Plain JSON becomes a CloudEvent.")
        self.publish(204, "/v1.0/publish/pubsub/A", {"Content-Type": "application/json"}, b'{"status": "completed"}')
        self.receive({"source": "pub", "type": "com.dapr.event.sent", "data": {"status": "completed"}})

        say("A CloudEvent in binary mode: the attributes are headers, the data is the body.")
        attributes = {"ce-specversion": "1.0", "ce-id": "b-1", "ce-source": "/shop", "ce-type": "order.placed"}
        self.publish(204, "/v1.0/publish/pubsub/A", attributes | {"Content-Type": "application/xml"}, b'<order n="7"/>')
        self.receive({"id": "b-1", "source": "/shop", "datacontenttype": "application/xml", "data": '<order n="7"/>'})

        say("Structured mode, through the CloudEvents ingress.")
        self.publish(
            202,
            "/mesh/v1/events/pubsub/A",
            {"Content-Type": "application/cloudevents+json"},
            b'{"specversion":"1.0","id":"s-1","source":"/shop","type":"order.paid","data":{"price":12.50}}',
        )
        self.receive({"id": "s-1", "type": "order.paid", "data": {"price": 12.5}})

        say("A batch: all of it is stored, or the answer says what is not.")
        self.publish(
            202,
            "/mesh/v1/events/pubsub/A",
            {"Content-Type": "application/cloudevents-batch+json"},
            b'[{"specversion":"1.0","id":"m-1","source":"/shop","type":"order.packed","data":1},'
            b'{"specversion":"1.0","id":"m-2","source":"/shop","type":"order.sent"}]',
        )
        self.receive({"id": "m-1", "data": 1}, {"id": "m-2", "type": "order.sent"})

        say(f"{CROWD} events, and in the middle of them: kill -9 of the nats-server.")
        self.kill_the_broker()

    def start(self, app_id: str, *words: str) -> Run:
        shown = [Path(word).name if word.startswith("/") else word for word in words]
        command("meshwire", "run", "--app-id", app_id, *shown)
        self.runs.append(Run(self.home, "--app-id", app_id, *words))
        return self.runs[-1]

    def publish(self, expected: int, path: str, headers: dict[str, str], body: bytes) -> None:
        shown = [word for name, value in headers.items() for word in ("-H", f"{name}: {value}")]
        command("curl", "-X", "POST", f"localhost:{self.port}{path}", *shown, "-d", body.decode())
        status, answer = self.post(
            http.client.HTTPConnection("localhost", self.port, timeout=LIMIT), path, headers, body
        )
        if status != expected:
            raise Failed(f"the sidecar answered {status} {answer.decode(errors='replace')}")
        detail(f"← {status}")

    def post(
        self, connection: http.client.HTTPConnection, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, bytes]:
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()

    def receive(self, *expected: dict[str, Any]) -> None:
        """Wait until the subscriber has events with these members, and show them as they arrived."""

        def find(wanted: dict[str, Any]) -> str | None:
            return next((event for event in self.sub.events() if wanted.items() <= json.loads(event).items()), None)

        wait_until(lambda: all(map(find, expected)), f"an event with {expected}")
        for wanted in expected:
            detail(f"→ sub got {find(wanted)}")
        done("as it was sent")

    def kill_the_broker(self) -> None:
        server = self.server()
        killed_at = back_at = 0.0
        connection = http.client.HTTPConnection("localhost", self.port, timeout=LIMIT)
        accepted: set[int] = set()
        for number in range(CROWD):
            if number == CROWD // 2:
                command("kill", "-9", str(server["pid"]))
                os.kill(server["pid"], signal.SIGKILL)
                killed_at = time.monotonic()
            body = json.dumps({"n": number}).encode()
            status, _ = self.post(connection, "/v1.0/publish/pubsub/B", {"Content-Type": "application/json"}, body)
            if status == 204:
                accepted.add(number)
                if killed_at and not back_at:
                    back_at = time.monotonic()
        connection.close()
        if not back_at or len(accepted) < CROWD // 2:
            raise Failed(f"only {len(accepted)} of {CROWD} events were accepted")
        if self.server()["pid"] == server["pid"]:
            raise Failed("the nats-server was not killed")
        detail(f"the next event was accepted {1000 * (back_at - killed_at):.0f} ms later, by a new server")

        def received() -> Counter[int]:
            events = map(json.loads, self.sub.events())
            return Counter(event["data"]["n"] for event in events if event.get("topic") == "B")

        wait_until(lambda: accepted <= received().keys(), "all events that were accepted")
        repeats = sum(received().values()) - len(received())
        done(f"{len(accepted)} accepted, {len(accepted & received().keys())} received, {repeats} repeats")

    def server(self) -> dict[str, Any]:
        description = Path(self.home, "mesh", "default", "server.json").read_text()
        found: dict[str, Any] = json.loads(description)
        return found

    def clean_up(self) -> None:
        for run in self.runs:
            run.end()
        reset = [str(MESHWIRE), "reset", "--yes"]
        environment = os.environ | {"MESHWIRE_HOME": self.home}
        ended = subprocess.run(reset, env=environment, capture_output=True, text=True, timeout=2 * LIMIT)  # noqa: S603
        if ended.returncode != 0:
            raise Failed(f"meshwire reset: {ended.stdout}{ended.stderr}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], object], what: str) -> None:
    limit = time.monotonic() + LIMIT
    while not condition():
        if time.monotonic() > limit:
            raise Failed(f"waited {LIMIT:.0f} s for {what}, in vain")
        time.sleep(0.01)


BOLD, DIM, GREEN, RED, PLAIN = (
    ("\x1b[1m", "\x1b[2m", "\x1b[32m", "\x1b[31m", "\x1b[0m") if sys.stdout.isatty() else [""] * 5
)


def say(line: str) -> None:
    print(f"\n{BOLD}{line}{PLAIN}", flush=True)


def command(*words: str) -> None:
    line = shlex.join(words)
    if len(line) > WIDTH:
        line = re.sub(r" (?=-[Hd] )", " \\\n      ", line)
    print(f"  $ {line}", flush=True)


def detail(line: str) -> None:
    print(f"  {DIM}{line}{PLAIN}", flush=True)


def done(line: str) -> None:
    print(f"  {GREEN}✓{PLAIN} {line}", flush=True)


def main() -> int:
    started = time.monotonic()
    failure = ""
    with tempfile.TemporaryDirectory(prefix="meshwire-demo-", ignore_cleanup_errors=True) as home:
        demo = Demo(home)
        try:
            demo.play()
        except (Failed, OSError, http.client.HTTPException) as error:
            failure = f"{error}" or type(error).__name__
        finally:
            try:
                demo.clean_up()
            except (Failed, subprocess.TimeoutExpired) as error:
                failure = failure or f"{error}"
        if failure:
            for run in demo.runs:
                print(*run.lines[-40:], sep="\n", file=sys.stderr)
    if failure:
        print(f"\n{RED}✗{PLAIN} {failure}", file=sys.stderr)
        return 1
    print(f"\n{BOLD}Everything arrived.{PLAIN} {time.monotonic() - started:.1f} s; nothing is left running.")
    return 0


if __name__ == "__main__":
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal that is no UTF-8
    if sys.argv[1:] == ["subscriber"]:
        subscriber()
    else:
        sys.exit(main())
