"""Moto, which answers as AWS does, in a process of its own. All its services keep what they have in memory."""

from __future__ import annotations

import atexit
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from functools import cache
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from tests.ports import free_port

START_LIMIT = 60.0
"""Seconds until it must answer."""
REGION = "eu-central-1"
KEYS = {"accessKey": "AKIAEXAMPLE", "secretKey": "open-sesame"}
_PROGRAM = """
import sys
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple
run_simple(
    "127.0.0.1", int(sys.argv[1]), DomainDispatcherApplication(create_backend_app), threaded=sys.argv[2] == "threaded"
)
"""


class MotoServer:
    def __init__(self, *, threaded: bool = False) -> None:
        """One request at a time, unless `threaded`, as those need it that wait in the server: moto takes no care of two
        that change an item at once."""
        self.port = free_port()
        self._threads = "threaded" if threaded else "one"
        self.log = Path(tempfile.mkdtemp(prefix="meshwire-moto-")) / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def settings(self) -> dict[str, str]:
        """Of a component."""
        return {"endpoint": f"http://127.0.0.1:{self.port}", "region": REGION, **KEYS}

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _PROGRAM, str(self.port), self._threads],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        limit = time.monotonic() + START_LIMIT
        while time.monotonic() < limit and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/moto-api/", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.05)
        raise AssertionError(f"moto does not start:\n{self.log.read_text()}")

    def client(self, service: str) -> Any:
        """Of the library that is not ours, for the test's own end."""
        return boto3.client(
            service,
            region_name=REGION,
            endpoint_url=f"http://127.0.0.1:{self.port}",
            aws_access_key_id=KEYS["accessKey"],
            aws_secret_access_key=KEYS["secretKey"],
            config=Config(retries={"total_max_attempts": 1}, connect_timeout=5, read_timeout=20),
        )

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait(10)
            self._process = None


@cache
def moto() -> MotoServer:
    """The server that the tests of this process share; nobody stops it. Each test has tables, buckets, queues of its
    own."""
    server = MotoServer()
    atexit.register(server.stop)
    server.start()
    return server
