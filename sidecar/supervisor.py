"""The supervisor of `meshwire run`: sidecars and apps as children; either of a pair ending ends both.

No event loop and no heavy import: it is the first thing that runs, and every app waits for it. One thread
watches, the others only copy what the children print.

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

from mesh.errors import MeshError
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
_one_writer = threading.Lock()

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


class Output(NamedTuple):
    """Where the lines go that a process prints."""

    prefix: bytes = PREFIX
    """What stands before each line on the console."""
    console: bool = True
    file: BinaryIO | None = None
    """Gets the lines as they are."""


class App(NamedTuple):
    command: Sequence[str]
    environment: Mapping[str, str]
    """In full."""
    waits: bool
    """Start it only when the sidecar answers: it has no port at which the sidecar could wait for it."""
    folder: str | None = None
    """Where it runs; `None` is here."""
    output: Output = Output()


class Plan(NamedTuple):
    """One sidecar, with or without an app."""

    sidecar: Sequence[str]
    app: App | None
    api: Api
    environment: Mapping[str, str]
    """The sidecar's, in full."""
    output: Output | None = None
    """The sidecar's; `None`: it writes where we do."""
    title: str = ""
    """What our own lines about it begin with, such as `orders: `."""
    metadata: Mapping[str, str] = {}
    """What the sidecar shall tell beside process ids."""


def supervise(plans: Sequence[Plan], *, tend: Callable[[], None] = lambda: None) -> int:
    """Run all until each has ended or a signal comes; return the exit code of `meshwire run`.

    An app that ends, ends its own sidecar, and the other way round; the others go on. The code of a single plan is
    the app's (128 + n when signal n killed it), or 1 when the sidecar failed; of several it is 1 unless all did
    well. `tend` is called twice a second; when it raises a `MeshError`, the run has failed. SIGINT, SIGTERM and
    SIGHUP stop all children, a second one kills them.
    """
    return _Supervisor(plans, tend).run()


class _Supervisor:
    def __init__(self, plans: Sequence[Plan], tend: Callable[[], None]) -> None:
        self.plans = plans
        self.tend = tend
        self.signals: list[int] = []
        self.pairs: list[_Pair] = []
        self.next_tend = time.monotonic() + TEND
        self.wake = self._catch_signals()

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
            for plan in self.plans:
                self.pairs.append(_Pair(plan, self.broker_does_well))
            for pair in self.pairs:
                if pair.plan.app and not pair.plan.app.waits:
                    pair.start_app()
            while True:
                over = [pair for pair in self.pairs if pair.over()]
                for pair in over:
                    pair.kill()
                if len(over) == len(self.pairs):
                    break
                self.step()
                self.sleep()
        finally:
            for pair in self.pairs:
                pair.kill()
        return self.result()

    def step(self) -> None:
        now = time.monotonic()
        for pair in self.pairs:
            if len(self.signals) > 1:
                pair.kill()
            elif self.signals and pair.kill_at is None:
                pair.stop()
            else:
                pair.step(now)
        if now >= self.next_tend and any(pair.kill_at is None for pair in self.pairs):
            self.next_tend = now + TEND
            self.broker_does_well()

    def broker_does_well(self) -> bool:
        """Whether it does. If not, that is told once, and all have failed."""
        try:
            self.tend()
        except MeshError as error:
            if not all(pair.failed for pair in self.pairs):
                complain(str(error))
            for pair in self.pairs:
                pair.failed = True
                pair.stop()
            return False
        return True

    def sleep(self) -> None:
        """Until a child ends, a signal comes, or there is something to do."""
        now = time.monotonic()
        pause = max(0.0, self.next_tend - now)
        if any(pair.is_watched(now) for pair in self.pairs):
            pause = PROBE
        if select.select([self.wake], [], [], pause)[0]:
            os.read(self.wake, 4096)

    def result(self) -> int:
        if len(self.pairs) > 1:
            return int(any(pair.code or pair.failed for pair in self.pairs))
        (pair,) = self.pairs
        if pair.plan.app and not pair.app and not pair.failed and self.signals:
            return 128 + self.signals[0]
        return pair.code


class _Pair:
    """A sidecar and its app, if it has one: either ending ends both."""

    def __init__(self, plan: Plan, broker_does_well: Callable[[], bool]) -> None:
        self.plan = plan
        self.broker_does_well = broker_does_well
        self.app: subprocess.Popen[bytes] | None = None
        self.guard: subprocess.Popen[bytes] | None = None
        self.copying: threading.Thread | None = None
        self.sidecar_copying: threading.Thread | None = None
        self.ready = False
        self.failed = False
        self.kill_at: float | None = None
        """When the grace ends; `None` while nobody stops."""
        self.asked_app = False
        """Whether the app ran when we asked it to stop."""
        self.killed = False
        self.code = 0
        """What `outcome` told, once all is over."""
        self.started = time.monotonic()
        output = plan.output
        copied = output is not None and output.console
        with new_lifeline() as end:
            self.sidecar = subprocess.Popen(  # noqa: S603
                plan.sidecar,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if copied else output and output.file,
                stderr=subprocess.STDOUT if output else None,
                env={**plan.environment, lifeline.DESCRIPTOR: str(end.fileno())},
                pass_fds=(end.fileno(),),
                process_group=0,  # Ctrl-C is ours to pass on: two signals would end a sidecar without a drain
            )
        if output is not None and copied:
            self.sidecar_copying = copy_in_background(self.sidecar, output)

    def step(self, now: float) -> None:
        if self.killed:
            return
        if self.kill_at is not None:
            if now > self.kill_at:
                self.kill()
        elif (status := self.sidecar.poll()) is not None:
            if status and self.broker_does_well():
                self.failed = True
                self.complain(f"The sidecar exited with {ending(status)}")
            self.stop()
        elif self.app and self.app.poll() is not None:
            self.stop()
        elif not self.ready:
            self.look_for_sidecar(now)

    def is_watched(self, now: float) -> bool:
        """Whether something may happen to it that wakes nobody."""
        if self.kill_at is not None:
            return not self.killed
        return not self.ready and now - self.started < START_LIMIT

    def look_for_sidecar(self, now: float) -> None:
        late = now - self.started > START_LIMIT
        self.ready = self.plan.api.call("GET", "/v1.0/healthz/outbound") == 204
        if (self.ready or late) and self.plan.app and not self.app:
            if not self.ready:
                self.say(f"⚠️  The sidecar does not answer after {START_LIMIT:.0f} s; starting the app all the same")
            self.start_app()
        if self.ready and not self.failed:
            self.tell_metadata()
            what = "Both the sidecar's and your app's" if self.app else "The sidecar's"
            where = f" {what} logs will appear here." if self.plan.output is None else ""
            self.say(f"✅  You're up and running!{where}")

    def tell_metadata(self) -> None:
        facts = {"cliPID": str(os.getpid()), **self.plan.metadata}
        if self.app and self.plan.app:
            facts |= {"appPID": str(self.app.pid), "appCommand": " ".join(self.plan.app.command)}
        for key, value in facts.items():
            if self.plan.api.call("PUT", f"/v1.0/metadata/{key}", value) != 204:
                self.say(f"⚠️  The sidecar did not take note of {key}")

    def start_app(self) -> None:
        plan = self.plan.app
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
                cwd=plan.folder,
                env=plan.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                process_group=self.guard.pid,
            )
        except (OSError, ValueError) as error:
            self.complain(f"'{plan.command[0]}' cannot be started: {error}")
            self.failed = True
            self.stop()
            return
        self.copying = copy_in_background(self.app, plan.output)

    def stop(self) -> None:
        if self.kill_at is None:
            self.kill_at = time.monotonic() + GRACE
            self.asked_app = self.app is not None and self.app.poll() is None
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
        """End what still runs, now. Further calls do nothing."""
        if self.killed:
            return
        self.killed = True
        self.signal_app(signal.SIGKILL)
        self.sidecar.kill()
        for child in filter(None, (self.app, self.guard, self.sidecar)):
            try:
                child.wait(KILL_LIMIT)
            except subprocess.TimeoutExpired:
                self.complain(f"Process {child.pid} cannot be ended")
        if self.sidecar_copying:
            self.sidecar_copying.join(KILL_LIMIT)  # its last words
        self.code = self.outcome()

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

    def outcome(self) -> int:
        sidecar, app = self.sidecar.returncode or 0, self.app.returncode or 0 if self.app else 0
        if self.asked_app and app == -signal.SIGTERM:
            app = 0  # we asked for it
        if app:
            self.complain(f"The app exited with {ending(app)}")
        if sidecar > 0 and not self.failed:
            self.complain(f"The sidecar exited with {ending(sidecar)}")
        if self.failed:
            return 1
        return exit_code(app) or int(sidecar > 0)

    def say(self, line: str) -> None:
        say(self.plan.title + line)

    def complain(self, line: str) -> None:
        complain(self.plan.title + line)


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


def copy_in_background(process: subprocess.Popen[bytes], output: Output) -> threading.Thread:
    """Copy what `process` prints to its `Output`, in a thread that ends with it."""
    assert process.stdout is not None  # noqa: S101
    sinks = [(output.file.fileno(), b"")] if output.file else []
    if output.console:
        sys.stdout.flush()
        sinks.append((sys.stdout.fileno(), output.prefix))
    arguments = process.stdout.fileno(), sinks
    thread = threading.Thread(target=copy_lines, args=arguments, name=f"output of {process.pid}", daemon=True)
    thread.start()
    return thread


def copy_lines(source: int, sinks: Sequence[tuple[int, bytes]]) -> None:
    """Copy `source` until its end to each sink, a descriptor, every line behind the sink's prefix; a line that does
    not end becomes several.

    Goes on reading when nobody reads a sink any more, so that the app never hangs in a write.
    """
    rest = b""
    while received := _read(source):
        *lines, rest = (rest + received).split(b"\n")
        if len(rest) > LONGEST_LINE:
            lines.append(rest)
            rest = b""
        _write_lines(lines, sinks)
    _write_lines([rest] if rest else [], sinks)


def _write_lines(lines: Sequence[bytes], sinks: Sequence[tuple[int, bytes]]) -> None:
    for sink, prefix in sinks:
        data = b"".join(b"%b%b\n" % (prefix, line) for line in lines)
        with _one_writer:  # longer than what a pipe takes at once, it would mix with another app's
            _write(sink, data)


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
