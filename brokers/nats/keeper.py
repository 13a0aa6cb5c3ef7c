"""The keeper: a process that owns the embedded nats-server of one mesh folder.

    python -I -S keeper.py FOLDER NATS_SERVER [LOCK_FD]

Started by `embedded.ensure_keeper`, by path and without site-packages: it imports the standard library only.
Two locks (flock, so that any death releases them) rule its life; docs/adr/0003-embedded-server.md has the races.

- `keeper.lock`, exclusive: there is one keeper per folder. `LOCK_FD` is a descriptor that holds it already.
- `users.lock`: shared by every user of the server. A keeper that wins it exclusively is not needed any more; it
  keeps the lock until its server is gone, so that no user meets a server that is on its way out.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

KEEPER_LOCK = "keeper.lock"
USERS_LOCK = "users.lock"
ENDPOINT = "server.json"
FAILURE = "keeper.error"
LOG = "server.log"
STORE = "jetstream"  # nats-server chooses this name
CONFIG = "server.conf"
PID = "server.pid"

HOST = "127.0.0.1"
MAX_PAYLOAD = 1 << 20
"""Bytes of one message, headers included (the default of nats-server)."""
TICK = 0.2
"""Seconds between two looks at `users.lock`. The death of the server is noticed at once."""
READY_LIMIT = 30.0
"""Seconds that a server may take to recover its store and answer."""
STOP_LIMIT = 5.0
"""Seconds that a server may take to stop before it is killed."""
QUICK = 2.0
"""A server that ends by itself sooner than this, in seconds, has failed to start."""
BACK_OFF = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8)
"""Pauses in seconds before each attempt. When all have failed, the keeper gives up."""
LOG_LIMIT = 4 << 20
LITTLE_ROOM = 2 * MAX_PAYLOAD
"""Free bytes of the disk below which a server may have failed to write."""
SPARED = 0.3
"""A little more than the part of what is free at its start that a server leaves unused."""

CONFIGURATION = """\
server_name: {name}
listen: {listen}
max_payload: {max_payload}
authorization {{ token: {token} }}
jetstream {{ store_dir: {folder}, sync_interval: {sync} }}
pid_file: {pid}
"""


SYNC = "MESHWIRE_SYNC"
"""The environment variable that, as `always`, has the server sync each event to disk before it acknowledges it.
Otherwise it has written the event, and syncs every two minutes: a crash of the process loses nothing, one of the
machine may."""


class Address(NamedTuple):
    port: int
    token: str


class Failed(Exception):
    """The server cannot be kept running; the text is for the users who wait for it."""


class Keeper:
    def __init__(self, folder: Path, binary: str) -> None:
        self.folder = folder
        self.binary = binary
        self.users = os.open(folder / USERS_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.server: subprocess.Popen[bytes] | None = None
        self.stopping = False
        self.log_start = 0
        self.wake, wake = os.pipe()
        os.set_blocking(self.wake, False)
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_stop)

    def run(self) -> None:
        """Keep the server running until nobody uses it or a signal asks to stop.

        Raises `Failed`, or `OSError` when the folder or the machine is in no state to work.
        """
        end_stale_server(self.folder)
        failures = 0
        try:
            while self.needed():
                if failures == len(BACK_OFF):
                    raise Failed(f"nats-server failed {failures} times to start; {self.last_words()}")
                self.pause(BACK_OFF[failures])
                started = time.monotonic()
                ready = self.start() and self.watch()
                status = self.stop()
                # A server that was killed by somebody else is simply started again.
                failed = not ready or (status > 0 and time.monotonic() - started < QUICK)
                failures = failures + 1 if failed else 0
        finally:
            self.stop()

    def needed(self) -> bool:
        if not self.stopping:
            try:
                fcntl.flock(self.users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self.stopping = True
            except BlockingIOError:
                pass
        return not self.stopping

    def start(self) -> bool:
        """Start a server; true when it answers and its endpoint is published."""
        address = choose_address(remembered(self.folder))
        name = f"meshwire-{os.urandom(8).hex()}"
        write(self.folder / CONFIG, self.configuration(name, address))
        self.log_start = os.fstat(2).st_size
        me = os.getpid()
        self.server = subprocess.Popen(
            [self.binary, "-c", str(self.folder / CONFIG)],
            stdin=subprocess.DEVNULL,
            stdout=2,
            process_group=0,
            preexec_fn=lambda: die_with(me, signal.SIGKILL),
        )
        if not self.answers(name, address.port):
            return False
        endpoint = {"url": f"nats://{HOST}:{address.port}", "token": address.token, "pid": self.server.pid}
        write(self.folder / ENDPOINT, json.dumps(endpoint))
        return True

    def configuration(self, name: str, address: Address) -> str:
        quoted = {
            "name": name,
            "listen": f"{HOST}:{address.port}",
            "token": address.token,
            "folder": str(self.folder),  # nats-server adds the name of STORE
            "pid": str(self.folder / PID),
            "sync": "always" if os.environ.get(SYNC) == "always" else "2m",
        }
        return CONFIGURATION.format(max_payload=MAX_PAYLOAD, **{name: quote(text) for name, text in quoted.items()})

    def answers(self, name: str, port: int) -> bool:
        """Wait for the greeting of the server called `name`; false when it ended, or nobody needs it."""
        deadline = time.monotonic() + READY_LIMIT
        while self.alive() and self.needed() and time.monotonic() < deadline:
            if f'"{name}"' in greeting(port):
                return True
            self.pause(0.005)
        return False

    def watch(self) -> bool:
        """Returns true when the server has ended, nobody needs it, or a disk that was full has room again.

        A server (2.15) that failed to write once takes nothing more for that stream, and answers nothing, until it is
        started again; and it will never use more than three quarters of what was free when it started.
        """
        least = room = free_bytes(self.users)
        while self.alive() and self.needed():
            self.pause(TICK)
            free = free_bytes(self.users)
            least = min(least, free)
            if least < max(LITTLE_ROOM, SPARED * room) and free > 2 * least + LITTLE_ROOM:
                return True
            if os.fstat(2).st_size > LOG_LIMIT:
                os.ftruncate(2, 0)
        return True

    def alive(self) -> bool:
        return self.server is not None and self.server.poll() is None

    def stop(self) -> int:
        """End the server, if it runs, and return its exit status, negative for a signal."""
        if self.server is None:
            return 0
        if self.alive():
            self.server.terminate()
        try:
            return self.server.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            self.server.kill()
            return self.server.wait()

    def pause(self, seconds: float) -> None:
        """Sleep, but no longer than until a signal comes."""
        if select.select([self.wake], [], [], seconds)[0]:
            os.read(self.wake, 4096)

    def last_words(self) -> str:
        """What the server wrote last that says why it ended."""
        with (self.folder / LOG).open("rb") as log:
            log.seek(self.log_start)
            lines = log.read(LOG_LIMIT).decode(errors="replace").splitlines()
        fatal = [line for line in lines if "[FTL]" in line or "[ERR]" in line or "panic:" in line] or lines
        status = self.server.returncode if self.server else None
        return (
            f"exit status {status}: {fatal[-1].partition('] ')[2] or fatal[-1]}" if fatal else f"exit status {status}"
        )

    def _on_stop(self, *_: object) -> None:
        self.stopping = True


def choose_address(last: Address | None) -> Address:
    """The last address, so that clients find the server again; a new one, with a token of its own, when
    somebody else has taken the port meanwhile."""
    if last is not None:
        try:
            return Address(free_port(last.port), last.token)
        except OSError:
            pass
    return Address(free_port(0), os.urandom(24).hex())


def free_port(port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((HOST, port))
        return int(probe.getsockname()[1])


def free_bytes(descriptor: int) -> int:
    """Room for this user's files on the disk of an open file, which may have lost its name meanwhile."""
    disk = os.fstatvfs(descriptor)
    return disk.f_bavail * disk.f_frsize


def greeting(port: int) -> str:
    """What listens at `port` says first; empty when nothing does."""
    try:
        with socket.create_connection((HOST, port), timeout=0.5) as connection:
            return connection.recv(4096).decode(errors="replace")
    except OSError:
        return ""


def remembered(folder: Path) -> Address | None:
    try:
        known = json.loads((folder / ENDPOINT).read_text())
        return Address(int(known["url"].rpartition(":")[2]), str(known["token"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def end_stale_server(folder: Path) -> None:
    """End the server of a keeper that was killed, if it still runs, and wait until it is gone: two servers on
    one store would destroy it. On Linux the server dies with its keeper, but not before its lock is released."""
    try:
        pid = int((folder / PID).read_text())
    except (OSError, ValueError):
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        if is_server_of(folder, pid):
            os.kill(pid, number)
        deadline = time.monotonic() + STOP_LIMIT
        while is_server_of(folder, pid) and time.monotonic() < deadline:
            time.sleep(0.01)
    if not is_server_of(folder, pid):
        return
    raise Failed(f"a nats-server left over from an earlier run does not end (process {pid})")


def is_server_of(folder: Path, pid: int) -> bool:
    """Whether process `pid` runs with our configuration file. False for a process that is dead but not reaped."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
    except OSError:
        if Path("/proc/self").exists():
            return False
        command = subprocess.run(["ps", "-o", "command=", "-p", str(pid)], capture_output=True).stdout  # noqa: S607
    return os.fsencode(folder / CONFIG) in command


def quote(text: str) -> str:
    """A string of the NATS configuration language."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def write(path: Path, text: str) -> None:
    """Replace the file at once and as a whole."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.write_text(text)
    fresh.replace(path)


def _load_prctl() -> Callable[[int, int], int] | None:
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl.argtypes = (ctypes.c_int, ctypes.c_ulong)
    return prctl


_prctl = _load_prctl()
_PR_SET_PDEATHSIG = 1


def die_with(parent: int, number: int) -> None:
    """In a child before exec: have the kernel send signal `number` when the thread that forked it ends (Linux)."""
    if _prctl is not None:
        _prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:
            os.kill(os.getpid(), number)


def main(folder: Path, binary: str, lock: int | None = None) -> int:
    os.umask(0o077)
    if lock is None:
        lock = os.open(folder / KEEPER_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return 0
    try:
        Keeper(folder, binary).run()
    except Exception as error:
        try:
            write(folder / FAILURE, str(error))
        except OSError as unwritable:
            return unwritable.errno or 1
        if isinstance(error, Failed | OSError):
            return 1
        raise
    os.close(lock)  # before users.lock, which ends with the process: whoever gets that one finds this one free
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:4])))
