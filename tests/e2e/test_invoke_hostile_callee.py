"""Callees that answer nonsense, without end, or never: what the caller's client sees of it."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import asynccontextmanager

import pytest

from tests.e2e.mesh import Mesh, exchange
from tests.ports import free_port

OK = b"HTTP/1.1 200 OK\r\n"
LIMITS = "sent more than 65536 bytes or 256 lines of headers"
NO_HTTP = "answered with something that is no HTTP/1.1"
CUT = "closed the connection in the middle of its answer"
ANSWERS = {
    "no-http": (b"\x16\x03\x01\x02\x00nonsense\r\n\r\n", NO_HTTP),
    "half-a-head": (OK + b"x: ", CUT),
    "half-a-body": (OK + b"content-length: 100\r\n\r\nabc", CUT),
    "two-lengths": (OK + b"content-length: 3\r\ncontent-length: 5\r\n\r\nabcde", NO_HTTP),
    "two-framings": (OK + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", NO_HTTP),
    "bare-cr": (OK + b"x: a\rset-cookie: b\r\ncontent-length: 0\r\n\r\n", NO_HTTP),
    "switches": (
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        "switched to another protocol",
    ),
    "many-headers": (OK + b"x: y\r\n" * 300 + b"content-length: 0\r\n\r\n", LIMITS),
    "long-header": (OK + b"x: " + b"y" * 100_000 + b"\r\ncontent-length: 0\r\n\r\n", LIMITS),
}


class Callee:
    """An app that answers bytes: those of `ANSWERS`, by path, and then hangs up."""

    def __init__(self) -> None:
        self.port = free_port()
        self.hung_up = asyncio.Event()

    @asynccontextmanager
    async def up(self):
        async with await asyncio.start_server(self._serve, "127.0.0.1", self.port):
            yield self

    async def _serve(self, reader, writer):
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            path = head.split(b" ")[1].decode().strip("/")
            if path == "never":
                await reader.read()
                self.hung_up.set()
            elif path == "endless":
                writer.write(OK + b"\r\n")
                while True:
                    writer.write(bytes(1 << 16))
                    await writer.drain()
            else:
                writer.write(ANSWERS[path][0] if path in ANSWERS else OK + b"content-length: 4\r\n\r\nfine")
                await writer.drain()
        except asyncio.IncompleteReadError:
            pass
        except OSError:
            self.hung_up.set()
        finally:
            writer.close()


@pytest.fixture
async def mesh(tmp_path):
    async with Mesh(tmp_path) as mesh:
        yield mesh


def request(path):
    return f"GET /v1.0/invoke/b/method/{path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode()


async def call(port, path):
    head, _, body = (await exchange(port, request(path))).partition(b"\r\n\r\n")
    return head, body


async def test_nonsense_is_an_error_that_names_it_and_costs_no_other_call(mesh):
    async with Callee().up() as app:
        await mesh.sidecar("b", app=app.port)
        port = (await mesh.sidecar("a")).port
        for path, (_, named) in ANSWERS.items():
            head, body = await call(port, path)
            assert head.startswith(b"HTTP/1.1 500 "), path
            error = json.loads(body)
            assert error["errorCode"] == "ERR_DIRECT_INVOKE"
            assert error["message"].startswith("failed to invoke, id: b, err: ")
            assert named in error["message"], path
            head, body = await call(port, "fine")
            assert (head.split(b"\r\n")[0], body) == (b"HTTP/1.1 200 OK", b"fine")


async def test_no_answer_is_an_error_where_a_policy_says_how_long_to_wait(mesh):
    (mesh.folder / "resources").mkdir()
    (mesh.folder / "resources" / "r.yaml").write_text(
        "apiVersion: dapr.io/v1alpha1\nkind: Resiliency\nmetadata: {name: r}\nspec:\n"
        "  policies: {timeouts: {soon: 300ms}}\n  targets: {apps: {b: {timeout: soon}}}\n"
    )
    async with Callee().up() as app:
        await mesh.sidecar("b", app=app.port)
        port = (await mesh.sidecar("a", f"--resources-path={mesh.folder / 'resources'}")).port
        begun = time.monotonic()
        head, body = await call(port, "never")
        assert 0.3 <= time.monotonic() - begun < 10
        assert head.startswith(b"HTTP/1.1 500 ")
        assert "context deadline exceeded" in json.loads(body)["message"]
        await asyncio.wait_for(app.hung_up.wait(), 10)


async def test_an_answer_without_end_ends_with_its_reader(mesh):
    async with Callee().up() as app:
        await mesh.sidecar("b", app=app.port)
        port = (await mesh.sidecar("a")).port
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request("endless"))
        await reader.readexactly(16 << 20)
        assert not app.hung_up.is_set()
        writer.transport.abort()
        await asyncio.wait_for(app.hung_up.wait(), 10)
