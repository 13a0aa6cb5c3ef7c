"""One long body over one connection, up or down, in a process of its own."""

from __future__ import annotations

import socket
import time

import msgspec

from benchmarks import worker
from benchmarks.app import DOWNLOAD, PIECE, UPLOAD

PATIENCE = 60.0
"""Seconds without a byte in either direction after which a transfer has failed."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Move `size` bytes to or from the app that answers under `prefix`, a path, on `port`."""

    port: int
    prefix: str
    size: int
    up: bool


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds, from the first byte of the request to the last one of the answer."""

    elapsed: float
    cpu: float


async def _main(plan: Plan) -> Result:
    cpu, start = time.process_time(), time.perf_counter()
    with socket.create_connection(("127.0.0.1", plan.port), PATIENCE) as connection:
        if plan.up:
            _send(connection, f"POST {plan.prefix}{UPLOAD} HTTP/1.1", plan.size)
            length, body = _head(connection)
            while len(body) < length:
                body += _received(connection)
            if body != b"%d" % plan.size:
                raise RuntimeError(f"of {plan.size} bytes the app got {body!r}")
        else:
            _send(connection, f"GET {plan.prefix}{DOWNLOAD}/{plan.size} HTTP/1.1", 0)
            length, body = _head(connection)
            left = length - len(body)
            while left:
                left -= len(_received(connection))
            if length != plan.size:
                raise RuntimeError(f"asked for {plan.size} bytes, got {length}")
    return Result(elapsed=time.perf_counter() - start, cpu=time.process_time() - cpu)


def _send(connection: socket.socket, request: str, size: int) -> None:
    connection.sendall(f"{request}\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n".encode())
    while size:
        piece = PIECE[:size]
        connection.sendall(piece)
        size -= len(piece)


def _head(connection: socket.socket) -> tuple[int, bytes]:
    """The length of the answer's body, and the beginning of it."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += _received(connection)
    head, _, body = received.partition(b"\r\n\r\n")
    status, *lines = head.split(b"\r\n")
    if not status.startswith(b"HTTP/1.1 200 "):
        raise RuntimeError(f"the answer was {status!r}")
    for line in lines:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value), body
    raise RuntimeError(f"the answer has no length: {head!r}")


def _received(connection: socket.socket) -> bytes:
    data = connection.recv(len(PIECE))
    if not data:
        raise RuntimeError("the connection was closed in the middle of the answer")
    return data


def start(plan: Plan) -> worker.Worker[Result]:
    return worker.Worker("benchmarks.transfer", plan, Result)


if __name__ == "__main__":
    worker.serve(_main, Plan)
