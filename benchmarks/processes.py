"""The servers that a benchmark starts, and what they cost: CPU and memory as the kernel counts them (Linux)."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import msgspec

START_LIMIT = 20.0
STOP_LIMIT = 15.0
"""Seconds until a server must accept connections, or be gone."""

SCRIPTS = Path(sysconfig.get_path("scripts"))
_TICKS = os.sysconf("SC_CLK_TCK")
_FOREIGN = ("MESHWIRE_", "DAPR_", "APP_", "NAMESPACE", "NATS_")
"""Beginnings of variables that would change what is measured."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Memory(NamedTuple):
    """Bytes. `proportional` counts pages shared with other processes in part only."""

    resident: int
    proportional: int


class Process:
    """A child process with its output in a file, ended with the `with` block."""

    def __init__(self, arguments: Sequence[str | Path], log: Path, environ: Mapping[str, str] | None = None) -> None:
        self._log = log
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
        self.started = time.monotonic()
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=inherited | dict(environ or {}),
                start_new_session=True,
            )
        self.pid = self._process.pid

    def cpu(self) -> float:
        """Seconds of CPU that it used until now, in all its threads, as user and in the kernel."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def memory(self) -> Memory:
        sizes = {}
        for line in Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines()[1:]:
            name, size = line.split()[:2]
            sizes[name] = int(size) * 1024
        return Memory(sizes["Rss:"], sizes["Pss:"])

    def peak(self) -> int:
        """Most bytes that were ever resident (RSS)."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        raise RuntimeError(f"{self._log.stem} has ended")

    def check(self) -> None:
        """Raise `RuntimeError` with the end of its output unless it runs."""
        if self._process.poll() is not None:
            said = self._log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"{self._log.stem} ended with status {self._process.returncode}:\n{said}")

    def wait_until_listening(self, port: int) -> None:
        deadline = time.monotonic() + START_LIMIT
        while True:
            self.check()
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
            except OSError:
                if time.monotonic() > deadline:
                    raise RuntimeError(f"{self._log.stem} does not listen on port {port}") from None
                time.sleep(0.005)
            else:
                return

    def stop(self) -> None:
        """SIGTERM, then after `STOP_LIMIT` SIGKILL."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.stop()


class NatsServer(Process):
    """A nats-server with JetStream, on a port and in a folder of its own; listens once it is made."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"nats://127.0.0.1:{self.port}"
        arguments = ["--addr", "127.0.0.1", "--port", str(self.port), "--jetstream", "--store_dir", str(folder)]
        super().__init__([SCRIPTS / "nats-server", *arguments], folder.with_suffix(".log"))
        self.wait_until_listening(self.port)


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """A program with the command line of daprd."""

    name: str
    command: tuple[str, ...]
    pubsub: str = "pubsub"
    environ: dict[str, str] = {}


def meshwire(broker: str, name: str = "meshwire") -> Kind:
    """`broker` is its URL."""
    return Kind(name=name, command=(sys.executable, "-P", "-m", "sidecar"), environ={"MESHWIRE_BROKER": broker})


def peer(path: Path, resources: Path | None, pubsub: str) -> Kind:
    """Another implementation. Which broker it uses is said by the files in `resources`."""
    flags = () if resources is None else ("--resources-path", str(resources))
    return Kind(name=path.name, command=(str(path), *flags), pubsub=pubsub)


class Sidecar(Process):
    """A sidecar of some `Kind`, alone or beside an app on `app_port`. Returns before it is ready."""

    def __init__(
        self, kind: Kind, log: Path, *, app_id: str = "bench", app_port: int | None = None, flags: Sequence[str] = ()
    ) -> None:
        self.kind = kind
        self.port = free_port()
        arguments = [*kind.command, "--app-id", app_id, "--dapr-http-port", str(self.port)]
        # What daprd would else open on fixed ports, which a second one could not.
        for flag in ("--dapr-grpc-port", "--dapr-internal-grpc-port", "--metrics-port"):
            arguments += [flag, str(free_port())]
        if app_port is not None:
            arguments += ["--app-port", str(app_port), "--app-protocol", "http"]
        super().__init__([*arguments, *flags], log, kind.environ)

    def publish_path(self, topic: str) -> str:
        return f"/v1.0/publish/{self.kind.pubsub}/{topic}"

    def wait_until_accepting(self) -> float:
        """Returns the seconds from exec to the first accepted publish."""
        self.wait_until_listening(self.port)
        deadline = time.monotonic() + START_LIMIT
        while True:
            self.check()
            if publish(self.port, self.publish_path("first")):
                return time.monotonic() - self.started
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self._log.stem} accepts no publish")
            time.sleep(0.005)


def publish(port: int, path: str, payload: bytes = b"{}") -> bool:
    """Publish one payload. Whether it was accepted; False also when nobody listens."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=START_LIMIT)
    try:
        connection.request("POST", path, payload, {"Content-Type": "application/json"})
        return 200 <= connection.getresponse().status < 300
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
