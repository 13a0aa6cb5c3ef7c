from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest

from sidecar.registry import Entry, Registration, register


class Request(NamedTuple):
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Api:
    """A real HTTP server on a free port: keeps what it is asked, answers what it is told to."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.status, self.body = 204, b""
        self.dribble = threading.Event()
        """While set, the head of an answer grows line by line and does not end."""
        api = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                api.requests.append(Request(self.command, self.path, headers, body))
                self.send_response(api.status)
                self.send_header("content-length", str(len(api.body)))
                self.flush_headers()
                try:
                    while api.dribble.is_set():
                        self.wfile.write(b"x-more: 1\r\n")
                        time.sleep(0.05)
                    self.end_headers()
                    self.wfile.write(api.body)
                except OSError:
                    self.close_connection = True  # the client gave up

            do_GET = do_POST = do_DELETE = answer

            def log_message(self, format: str, *args: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        self.dribble.clear()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def api() -> Iterator[Api]:
    api = Api()
    yield api
    api.close()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the mesh `default`, in a home of this test's own."""
    monkeypatch.setenv("MESHWIRE_HOME", str(tmp_path))
    for name in ("DAPR_HTTP_PORT", "DAPR_API_TOKEN", "MESHWIRE_DEBUG", "MESHWIRE_BROKER", "NAMESPACE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "mesh" / "default"


@pytest.fixture
def running(folder: Path) -> Iterator[Callable[..., Entry]]:
    """Registers a sidecar: `running(app_id, http_port=…, …)`."""
    kept: list[Registration] = []

    def start(app_id: str, **told: object) -> Entry:
        defaults = {"http_port": 1, "daprd_pid": 1_000_000 + len(kept), "created": float(len(kept))}
        entry = Entry(app_id=app_id, **{**defaults, **told})
        kept.append(register(folder, entry))
        return entry

    yield start
    for registration in kept:
        registration.close()
