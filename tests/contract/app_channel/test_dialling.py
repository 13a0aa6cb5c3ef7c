"""Connections are made a few at a time, each in a time of its own: an app that accepts slowly drops what it cannot
queue, and its system says nothing about it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from mesh.errors import AppError, AppUnreachable
from sidecar.channel import Limits, pool
from tests.contract.app_channel.apps import OK, is_silent, running
from tests.ports import free_port


@contextlib.contextmanager
def listening(backlog: int) -> Iterator[socket.socket]:
    """A socket whose connections are accepted by nobody, or by hand."""
    with socket.create_server(("127.0.0.1", 0), backlog=backlog) as listener:
        yield listener


@contextlib.contextmanager
def full() -> Iterator[tuple[socket.socket, int]]:
    """A listener whose queue is full, and its port: what dials it waits."""
    with listening(0) as listener, contextlib.ExitStack() as held:
        port = listener.getsockname()[1]
        while True:
            client = held.enter_context(socket.socket())
            client.settimeout(0.2)
            try:
                client.connect(("127.0.0.1", port))
            except TimeoutError:
                break
        yield listener, port


@contextlib.contextmanager
def one_thread(handling: float = 0.001) -> Iterator[tuple[int, list[str]]]:
    """An app of Python's http.server that takes one connection at a time: port, paths in their order."""
    paths: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            time.sleep(handling)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    class Server(HTTPServer):
        request_queue_size = 1

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_port, paths
        finally:
            server.shutdown()
            thread.join()


async def test_an_app_that_can_queue_two_connections_is_called_by_64_at_once(open_channel):
    with one_thread() as (port, paths):
        channel = open_channel(port)
        began = time.monotonic()
        calls = [channel.request("GET", f"/{number}", timeout=10) for number in range(64)]
        answers = await asyncio.gather(*calls)
        took = time.monotonic() - began
    assert {answer.status for answer in answers} == {200}
    assert sorted(paths) == sorted(f"/{number}" for number in range(64))
    assert took < 8  # 64 dials at once: 15 s and more


async def test_what_waits_for_a_connection_is_served_in_order(open_channel):
    async with running() as app:
        channel = open_channel(app.port, limits=Limits(dials=1))
        await asyncio.gather(*[channel.request("GET", f"/{number}", timeout=5) for number in range(50)])
    assert [request.line for request in app.requests] == [f"GET /{number} HTTP/1.1" for number in range(50)]


async def test_a_call_takes_the_connection_that_is_idle_before_its_own_is_made(open_channel):
    async with running() as app:
        channel = open_channel(app.port, limits=Limits(dials=1))
        await asyncio.gather(*[channel.request("GET", "/", timeout=5) for _ in range(100)])
        assert len(app.peers) < 50


async def test_no_more_dials_than_allowed_are_under_way(open_channel):
    with full() as (_, port):
        channel = open_channel(port)
        calls = [channel.request("GET", "/", timeout=10) for _ in range(20)]
        await asyncio.sleep(0.02)
        assert len(channel._pool._dials) == 4
        for call in calls[:18]:
            call.cancel()
        await asyncio.sleep(0.02)
        assert len(channel._pool._dials) == 2  # cancelled calls release theirs
        for call in calls[18:]:
            call.cancel()


async def test_dials_do_not_exceed_max_concurrency(open_channel):
    with full() as (_, port):
        channel = open_channel(port, max_concurrency=2)
        calls = [channel.request("GET", "/", timeout=10) for _ in range(20)]
        await asyncio.sleep(0.02)
        assert len(channel._pool._dials) == 2
        for call in calls:
            call.cancel()


async def test_a_dial_that_was_dropped_is_made_anew(open_channel, monkeypatch):
    monkeypatch.setattr(pool, "_LONGEST_DIAL", 0.1)
    loop, dials = asyncio.get_running_loop(), 0
    dial = loop.create_connection

    def counted(*given):
        nonlocal dials
        dials += 1
        return dial(*given)

    monkeypatch.setattr(loop, "create_connection", counted)
    with full() as (listener, port):
        call = open_channel(port).request("GET", "/", timeout=10)
        while dials < 2:
            assert not call.done()
            await asyncio.sleep(0.01)
        served = asyncio.create_task(asyncio.to_thread(answer_all, listener))
        assert (await call).status == 200
        await served


def answer_all(listener: socket.socket) -> None:
    """Accept until somebody sends a request, and answer it."""
    while True:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(0.01)
            with contextlib.suppress(TimeoutError):
                if connection.recv(1000):
                    connection.sendall(OK)
                    return


async def test_calls_that_get_no_connection_fail_in_their_time_and_leave_no_dial(open_channel):
    with full() as (_, port):
        channel = open_channel(port)
        calls = [channel.request("GET", "/", timeout=limit) for limit in (0.05, 0.05, 10)]
        for call in calls[:2]:
            with pytest.raises(AppUnreachable, match=r"no connection to the app at .* could be made in time"):
                await call
        assert not calls[2].done()
        await asyncio.sleep(0.02)
        assert len(channel._pool._dials) == 1
        calls[2].cancel()


async def test_an_app_that_never_even_refuses_is_given_up(open_channel, monkeypatch):
    monkeypatch.setattr(pool, "_LONGEST_DIAL", 0.02)
    monkeypatch.setattr(pool, "_DIALLED_IN_VAIN", 0.1)
    error = r"cannot connect to the app at .* \(Connection timed out\)"
    with full() as (_, port), pytest.raises(AppUnreachable, match=error):
        await open_channel(port).request("GET", "/", timeout=10)


async def test_all_that_wait_fail_at_once_when_the_app_is_down(open_channel):
    channel = open_channel(free_port())
    began = time.monotonic()
    calls = [channel.request("GET", "/", timeout=30) for _ in range(1000)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(result) for result in results} == {AppUnreachable}
    assert all("cannot connect" in str(result) for result in results)
    assert time.monotonic() - began < 10  # one after another, or at the limit of the calls: 30 s and more


async def test_calls_on_dead_connections_go_before_those_that_came_later(open_channel):
    """And only on fresh connections: an idle one may be as dead."""
    async with running(is_silent) as app:
        channel = open_channel(app.port, max_concurrency=1)
        app.answer = lambda peer, request: peer.send(OK)
        await channel.request("GET", "/warm", timeout=5)
        app.answer = lambda peer, request: peer.close() if len(app.requests) == 2 else peer.send(OK)
        await asyncio.gather(*[channel.request("GET", f"/{number}", timeout=5) for number in range(3)])
    assert [request.line.split()[1] for request in app.requests] == ["/warm", "/0", "/0", "/1", "/2"]


async def test_an_app_that_closes_what_it_accepts_fails_one_call_each_time(open_channel):
    async with running() as app:
        app.on_connect = lambda peer: peer.reset() if len(app.peers) <= 3 else None
        channel = open_channel(app.port, limits=Limits(dials=1))
        calls = [channel.request("GET", f"/{number}", timeout=5) for number in range(10)]
        results = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 30)
    assert all(isinstance(result, AppError) for result in results[:3])
    assert all(result.status == 200 for result in results[3:])


async def test_closing_ends_dials(open_channel):
    with full() as (_, port):
        channel = open_channel(port)
        call = channel.request("GET", "/", timeout=10)
        probe = asyncio.create_task(channel.probe("/", timeout=10))
        await asyncio.sleep(0.02)
        await asyncio.wait_for(channel.close(), 5)
        with pytest.raises(AppError, match="shutting down"):
            await call
        assert await probe is False
