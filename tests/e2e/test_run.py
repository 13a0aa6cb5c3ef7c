"""`meshwire run` as a user starts it: real supervisor, sidecar, keeper, nats-server and app."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from tests.ports import free_port

MESHWIRE = [sys.executable, "-P", "-c", "import sys; from sidecar.cli import main; sys.exit(main())"]

SUBSCRIBER = """
import json, os
from http.server import BaseHTTPRequestHandler, HTTPServer

class App(BaseHTTPRequestHandler):
    def do_GET(self):
        found = self.path == "/dapr/subscribe"
        self.answer(200 if found else 404, [{"pubsubname": "pubsub", "topic": "A", "route": "/a"}] if found else {})

    def do_POST(self):
        event = json.loads(self.rfile.read(int(self.headers["content-length"])))
        print("got", event["data"]["n"])
        self.answer(200, {"status": "SUCCESS"})

    def answer(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass

HTTPServer(("127.0.0.1", int(os.environ["APP_PORT"])), App).serve_forever()
"""

PUBLISHER = """
import os, sys, time, urllib.request
address = f"http://127.0.0.1:{os.environ['DAPR_HTTP_PORT']}/v1.0/publish/pubsub/A"
request = urllib.request.Request(address, b'{"n": 1}', {"content-type": "application/json"})
print(urllib.request.urlopen(request).status, time.time() - float(sys.argv[1]))
"""


class Run:
    """One `meshwire run`, its output collected as it comes."""

    def __init__(self, home, app_id, flags, command, broker=None):
        self.port = free_port()
        environment = {name: value for name, value in os.environ.items() if name != "MESHWIRE_BROKER"}
        environment |= {"MESHWIRE_HOME": str(home)} | ({"MESHWIRE_BROKER": broker} if broker else {})
        words = ["run", "--app-id", app_id, "--dapr-http-port", str(self.port), *flags]
        self.process = subprocess.Popen(
            [*MESHWIRE, *words, *(["--", *command] if command else [])],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines = []
        self.reading = threading.Thread(target=self._read)
        self.reading.start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.append(line)

    @property
    def output(self):
        return "".join(self.lines)

    def until(self, pattern, limit=60.0):
        deadline = time.monotonic() + limit
        while not (match := re.search(pattern, self.output)):
            assert time.monotonic() < deadline and (self.process.poll() is None or self.reading.is_alive()), (
                f"no {pattern!r} in {self.output}"
            )
            time.sleep(0.01)
        return match

    def ready(self):
        self.until("You're up and running!")
        return self

    def end(self, limit=60.0):
        """The exit code and all output."""
        code = self.process.wait(limit)
        self.reading.join(limit)
        assert not self.reading.is_alive()
        return code, self.output

    def publish(self, number, limit=30.0):
        """Publish until it is accepted; how often that took."""
        deadline = time.monotonic() + limit
        address = f"http://127.0.0.1:{self.port}/v1.0/publish/pubsub/A"
        body = json.dumps({"n": number}).encode()
        for attempt in range(1, 1000):
            request = urllib.request.Request(address, body, {"content-type": "application/json"})
            try:
                with urllib.request.urlopen(request, timeout=limit) as answer:  # noqa: S310
                    assert answer.status == 204
                    return attempt
            except OSError as error:
                assert time.monotonic() < deadline, f"{error} in {self.output}"
                time.sleep(0.05)
        raise AssertionError


def processes(home):
    """Whatever runs for the meshes in `home`: process id and command."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command, environment = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
        except OSError:
            continue
        if os.fsencode(home) in command + environment:
            found[int(entry.name)] = command.replace(b"\0", b" ").decode(errors="replace")
    return found


def process(home, part, limit=30.0):
    """Its process id, once it runs."""
    deadline = time.monotonic() + limit
    while not (found := [pid for pid, command in processes(home).items() if part in command]):
        assert time.monotonic() < deadline, f"no {part}"
        time.sleep(0.02)
    return found[0]


def wait_until_nothing_runs(home, limit=30.0):
    deadline = time.monotonic() + limit
    while left := processes(home):
        assert time.monotonic() < deadline, left
        time.sleep(0.02)


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


@pytest.fixture
def run(home):
    started = []

    def run(app_id, *flags, command=None, **options):
        started.append(Run(home, app_id, flags, command, **options))
        return started[-1]

    yield run
    for each in started:
        if each.process.poll() is None:
            each.process.send_signal(signal.SIGTERM)
    for each in started:
        each.process.wait(60)
        each.reading.join(60)
        each.process.stdout.close()
    wait_until_nothing_runs(home)


def subscriber(run, app_id="sub"):
    port = free_port()
    return run(app_id, "--app-port", str(port), command=[sys.executable, "-c", SUBSCRIBER])


def received(run, number, limit=60.0):
    run.until(rf"== APP == got {number}\n", limit)


def test_event_travels_from_one_app_to_another(run):
    sub = subscriber(run).ready()
    sub.until("app is subscribed")
    pub = run("pub").ready()
    assert pub.publish(7) == 1
    received(sub, 7)


@pytest.mark.quiet
def test_first_publish_of_an_app_is_accepted_soon_after_its_start(run):
    code, output = run("pub", command=[sys.executable, "-c", PUBLISHER, str(time.time())]).end()
    assert code == 0
    seconds = float(re.search(r"== APP == 204 ([\d.]+)", output)[1])
    assert seconds < 5  # the benchmark has the promise


@pytest.mark.parametrize("victim", ["nats-server -c", "keeper.py"])
def test_killed_broker_is_back_within_seconds_and_has_lost_nothing(run, home, victim):
    sub = subscriber(run).ready()
    sub.until("app is subscribed")
    pub = run("pub").ready()
    pub.publish(1)
    received(sub, 1)
    killed = process(home, victim)
    os.kill(killed, signal.SIGKILL)
    pub.publish(2)
    received(sub, 2)
    assert process(home, victim) != killed


def test_others_go_on_when_the_first_run_is_killed_and_nothing_is_left_when_they_end(run, home):
    first = subscriber(run, "first").ready()
    sub = subscriber(run).ready()
    sub.until("app is subscribed")
    pub = run("pub").ready()
    first.process.kill()
    pub.publish(1)
    received(sub, 1)
    for each in (pub, sub):
        each.process.send_signal(signal.SIGINT)
    assert pub.end()[0] == 0
    assert sub.end()[0] == 0
    wait_until_nothing_runs(home)


@pytest.mark.parametrize("victims", [["-m sidecar"], ["-m sidecar", "cli import main"], ["cli import main"]])
def test_nothing_survives_a_kill(run, home, victims):
    subscriber(run).ready()
    for part in victims:
        os.kill(process(home, part), signal.SIGKILL)
    wait_until_nothing_runs(home)


def test_exit_code_is_that_of_the_app(run):
    code, output = run("app", command=["sh", "-c", "echo $APP_ID at $DAPR_HTTP_PORT; exit 9"]).end()
    assert code == 9
    assert re.search(r"== APP == app at \d+\n", output)


def test_shutdown_through_the_api_ends_the_app(run):
    alone = run("alone").ready()
    request = urllib.request.Request(f"http://127.0.0.1:{alone.port}/v1.0/shutdown", method="POST")
    urllib.request.urlopen(request, timeout=30).close()  # noqa: S310
    assert alone.end()[0] == 0


def test_metadata_tells_who_runs(run):
    app = run("app", command=["sleep", "60"]).ready()
    with urllib.request.urlopen(f"http://127.0.0.1:{app.port}/v1.0/metadata", timeout=30) as answer:
        extended = json.load(answer)["extended"]
    assert extended["cliPID"] == str(app.process.pid)
    assert extended["appCommand"] == "sleep 60"
    assert Path(f"/proc/{extended['appPID']}/cmdline").read_bytes() == b"sleep\x0060\0"


def test_broker_that_cannot_start_ends_the_run_with_the_reason(run, home):
    folder = home / "mesh" / "default"
    for path in (home, folder.parent, folder):
        path.mkdir(mode=0o700)
    (folder / "jetstream").touch()
    code, output = run("app", command=["sleep", "60"]).end()
    assert code == 1
    assert "the embedded broker cannot run: " in output
    assert "storage directory is not a directory" in output


def test_given_broker_is_used_and_none_is_embedded(run, home):
    run("app", broker="memory").ready()
    assert not (home / "mesh" / "default" / "users.lock").exists()


def test_error_before_the_start_is_one_line(run):
    code, output = run("a.b").end()
    assert code == 2
    assert output.count("\n") == 1
    assert "--app-id 'a.b' is no app id" in output
