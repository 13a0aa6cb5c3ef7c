"""The supervisor of `meshwire run`: a sidecar and an app as children; either ending ends both.

No event loop and no heavy import: it is the first thing that runs, and every app waits for it. One thread
watches, another one only copies the app's output.

Nothing may outlive a supervisor that was killed, and sidecar and app may be killed with it. So the app's process
group is led by a third child, a shell that does nothing but wait for the supervisor's end: `GUARD`.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import BinaryIO, NamedTuple

from mesh.errors import ConfigurationError, MeshError
from sidecar import lifeline

TEND = 0.5
"""Seconds between two looks at the broker."""
PROBE = 0.02
"""Seconds between two looks at a sidecar that starts."""
START_LIMIT = 60.0
"""Seconds that an app without a port waits for its sidecar (as `dapr run`)."""
GRACE = 5.0 + 5.0
"""Seconds between SIGTERM and SIGKILL: those the sidecar takes to drain, and some to spare."""
LEFT_BEHIND = 2.0
"""Seconds that processes have to end which an app has started and left behind."""
KILL_LIMIT = 2.0
"""Seconds in which a killed process is gone."""
ANSWER_LIMIT = 0.5
"""Seconds in which the sidecar's API answers one of our calls."""
LONGEST_LINE = 16 * 1024
"""Bytes of the app's output that are held back while the line does not end."""
PREFIX = b"== APP == "

ORPHANED = 5
"""Seconds between SIGTERM and SIGKILL for an app whose supervisor was killed."""
GUARD = f"trap '' HUP INT QUIT TERM; read -r end; kill -TERM 0; sleep {ORPHANED}; kill -KILL 0"
"""Its input is a lifeline. It ends the process group that it leads, itself last: whatever the app has started,
and however early the supervisor died. That the group has a living leader keeps its number from being reused."""


class Api(NamedTuple):
    """Where the sidecar's HTTP API listens: a TCP port, or a Unix socket instead."""

    host: str
    port: int
    socket: str | None = None

    def call(self, method: str, path: str, body: str = "") -> int:
        """The status of the answer; 0 when there is none in time."""
        data = body.encode()
        token = os.environ.get("DAPR_API_TOKEN")
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\nConnection: close\r\n"
            f"Content-Type: text/plain\r\nContent-Length: {len(data)}\r\n"
            + (f"dapr-api-token: {token}\r\n" if token else "")
        )
        try:
            with socket.socket(socket.AF_UNIX if self.socket else socket.AF_INET) as connection:
                connection.settimeout(ANSWER_LIMIT)
                connection.connect(self.socket or (self.host, self.port))
                connection.sendall(f"{head}\r\n".encode() + data)
                answer = b""
                while len(answer) < len("HTTP/1.1 204") and (more := connection.recv(1024)):
                    answer += more
                return int(answer[9:12] or 0)
        except (OSError, ValueError):
            return 0


class App(NamedTuple):
    command: Sequence[str]
    environment: Mapping[str, str]
    """In full."""
    waits: bool
    """Start it only when the sidecar answers: it has no port at which the sidecar could wait for it."""


def supervise(
    sidecar_command: Sequence[str],
    app: App | None,
    api: Api,
    *,
    environment: Mapping[str, str],
    tend: Callable[[], None] = lambda: None,
) -> int:
    """Run both until one ends or a signal comes; return the exit code of `meshwire run`.

    That is the app's (128 + n when signal n killed it), or 1 when the sidecar failed. `environment` is the
    sidecar's, in full. `tend` is called twice a second; when it raises a `MeshError`, the run has failed.
    SIGINT, SIGTERM and SIGHUP stop both children, a second one kills them.
    """
    return _Supervisor(sidecar_command, app, api, environment, tend).run()


class _Supervisor:
    def __init__(
        self,
        sidecar_command: Sequence[str],
        app: App | None,
        api: Api,
        environment: Mapping[str, str],
        tend: Callable[[], None],
    ) -> None:
        self.app_plan = app
        self.api = api
        self.tend = tend
        self.signals: list[int] = []
        self.app: subprocess.Popen[bytes] | None = None
        self.guard: subprocess.Popen[bytes] | None = None
        self.copying: threading.Thread | None = None
        self.ready = False
        self.failed = False
        self.kill_at: float | None = None
        """When the grace ends; `None` while nobody stops."""
        self.dismissed = False
        """Whether the sidecar knows that there is no app to end any more."""
        self.killed = False
        self.started = time.monotonic()
        self.next_tend = self.started + TEND
        self.wake = self._catch_signals()
        with new_lifeline() as end:
            self.sidecar = subprocess.Popen(  # noqa: S603
                sidecar_command,
                stdin=subprocess.DEVNULL,
                env={**environment, lifeline.DESCRIPTOR: str(end.fileno())},
                pass_fds=(end.fileno(),),
                process_group=0,  # Ctrl-C is ours to pass on: two signals would end a sidecar without a drain
            )

    def _catch_signals(self) -> int:
        ours, wake = os.pipe()
        os.set_blocking(ours, False)
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                signal.signal(number, lambda number, _: self.signals.append(number))
        return ours

    def run(self) -> int:
        try:
            if self.app_plan and not self.app_plan.waits:
                self.attempt(self.start_app)
            while not self.over():
                self.attempt(self.step)
                self.sleep()
        finally:
            self.kill()
        return self.result()

    def attempt(self, action: Callable[[], None]) -> None:
        try:
            action()
        except MeshError as error:
            complain(str(error))
            self.failed = True
            self.stop()

    def step(self) -> None:
        now = time.monotonic()
        if self.kill_at is not None:
            if len(self.signals) > 1 or now > self.kill_at:
                self.kill()
            return
        if self.signals:
            self.stop()
        elif (status := self.sidecar.poll()) is not None:
            if status:
                self.tend()  # raises the reason when it is the broker's
                self.failed = True
                complain(f"The sidecar exited with {ending(status)}")
            self.stop()
        elif self.app and self.app.poll() is not None:
            self.stop()
        else:
            if now >= self.next_tend:
                self.next_tend = now + TEND
                self.tend()
            if not self.ready:
                self.look_for_sidecar(now)

    def look_for_sidecar(self, now: float) -> None:
        late = now - self.started > START_LIMIT
        self.ready = self.api.call("GET", "/v1.0/healthz/outbound") == 204
        if (self.ready or late) and self.app_plan and not self.app:
            if not self.ready:
                say(f"⚠️  The sidecar does not answer after {START_LIMIT:.0f} s; starting the app all the same")
            self.start_app()
        if self.ready:
            self.tell_metadata()
            what = "Both the sidecar's and your app's" if self.app else "The sidecar's"
            say(f"✅  You're up and running! {what} logs will appear here.")

    def tell_metadata(self) -> None:
        facts = {"cliPID": str(os.getpid())}
        if self.app and self.app_plan:
            facts |= {"appPID": str(self.app.pid), "appCommand": " ".join(self.app_plan.command)}
        for key, value in facts.items():
            if self.api.call("PUT", f"/v1.0/metadata/{key}", value) != 204:
                say(f"⚠️  The sidecar did not take note of {key}")

    def start_app(self) -> None:
        plan = self.app_plan
        assert plan is not None  # noqa: S101
        with new_lifeline() as end:
            self.guard = subprocess.Popen(  # noqa: S603
                ["/bin/sh", "-c", GUARD],
                stdin=end,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                process_group=0,
            )
        try:
            self.app = subprocess.Popen(  # noqa: S603
                plan.command,
                env=plan.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                process_group=self.guard.pid,
            )
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"'{plan.command[0]}' cannot be started: {error}") from None
        assert self.app.stdout is not None  # noqa: S101
        sys.stdout.flush()
        streams = self.app.stdout.fileno(), sys.stdout.fileno()
        self.copying = threading.Thread(target=copy_lines, args=streams, name="app-output", daemon=True)
        self.copying.start()

    def stop(self) -> None:
        if self.kill_at is None:
            self.kill_at = time.monotonic() + GRACE
        self.signal_app(signal.SIGTERM)
        self.sidecar.terminate()

    def over(self) -> bool:
        """Whether all has ended: the app, those that it left behind and that hold its output, the sidecar."""
        if self.kill_at is None or self.killed:
            return self.killed
        if self.app and self.app.poll() is None:
            return False
        if self.copying and self.copying.is_alive():
            self.kill_at = min(self.kill_at, time.monotonic() + LEFT_BEHIND)
            return False
        return self.sidecar.poll() is not None

    def kill(self) -> None:
        """End what still runs, now."""
        self.killed = True
        self.signal_app(signal.SIGKILL)
        self.sidecar.kill()
        for child in filter(None, (self.app, self.guard, self.sidecar)):
            try:
                child.wait(KILL_LIMIT)
            except subprocess.TimeoutExpired:
                complain(f"Process {child.pid} cannot be ended")

    def signal_app(self, number: int) -> None:
        """Signal the app and all that is in its process group."""
        if self.guard is None:
            return
        try:
            os.killpg(self.guard.pid, number)
            if self.app and self.app.poll() is None and os.getpgid(self.app.pid) != self.guard.pid:
                self.app.send_signal(number)
        except (ProcessLookupError, PermissionError):
            pass  # gone meanwhile, or it runs as somebody else now

    def sleep(self) -> None:
        """Until a child ends, a signal comes, or there is something to do."""
        now = time.monotonic()
        pause = max(0.0, self.next_tend - now)
        if self.kill_at is not None or (not self.ready and now - self.started < START_LIMIT):
            pause = PROBE
        if select.select([self.wake], [], [], pause)[0]:
            os.read(self.wake, 4096)

    def result(self) -> int:
        sidecar, app = self.sidecar.returncode or 0, self.app.returncode or 0 if self.app else 0
        if self.signals and app == -signal.SIGTERM:
            app = 0  # the user asked for it, and so did we
        if app:
            complain(f"The app exited with {ending(app)}")
        if sidecar > 0 and not self.failed:
            complain(f"The sidecar exited with {ending(sidecar)}")
        if self.failed:
            return 1
        if self.app_plan and not self.app and self.signals:
            return 128 + self.signals[0]
        return exit_code(app) or int(sidecar > 0)


def new_lifeline() -> BinaryIO:
    """The end of a new pipe that is for a child. Ours stays open for as long as this process lives.

    Each child has one of its own: an event loop makes its end non-blocking, for everybody who shares it.
    """
    theirs, _ours = os.pipe()
    return os.fdopen(theirs, "rb", buffering=0)


def exit_code(status: int) -> int:
    """As a shell tells it: 128 + n for a process that signal n has ended."""
    return status if status >= 0 else 128 - status


def ending(status: int) -> str:
    return f"exit status {status}" if status >= 0 else f"signal {signal.Signals(-status).name}"


def copy_lines(source: int, sink: int) -> None:
    """Copy `source` to `sink` until its end, each line behind `PREFIX`; one that does not end becomes several.

    Goes on reading when nobody reads `sink` any more, so that the app never hangs in a write.
    """
    rest = b""
    while received := _read(source):
        *lines, rest = (rest + received).split(b"\n")
        if len(rest) > LONGEST_LINE:
            lines.append(rest)
            rest = b""
        _write(sink, b"".join(b"%b%b\n" % (PREFIX, line) for line in lines))
    if rest:
        _write(sink, b"%b%b\n" % (PREFIX, rest))


def _read(source: int) -> bytes:
    try:
        return os.read(source, 65536)
    except OSError:
        return b""


def _write(sink: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(sink, view) :]
        except BlockingIOError:
            select.select([], [sink], [])
        except OSError:
            return


def say(line: str) -> None:
    """Tell the user, unless nobody takes what we write: the supervisor must not hang in a write."""
    _tell(sys.stdout.fileno(), line, sys.stdout.encoding)


def complain(line: str) -> None:
    _tell(sys.stderr.fileno(), f"❌  {line}", sys.stderr.encoding)


def _tell(sink: int, line: str, encoding: str) -> None:
    if select.select([], [sink], [], 0)[1]:
        _write(sink, f"{line}\n".encode(encoding, "backslashreplace"))
