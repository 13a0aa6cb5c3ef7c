"""How a command finds a running sidecar and calls its HTTP API."""

from __future__ import annotations

import http.client
import os
import socket
import threading
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from mesh.errors import MeshError, clip
from sidecar.registry import Entry

LONGEST_ANSWER = 256 << 20
"""Bytes of an answer that are read; of a longer one nothing is shown."""


class Address(NamedTuple):
    """Where an API listens: a loopback port, or a Unix socket instead."""

    port: int | None
    socket: str | None = None

    def __str__(self) -> str:
        return self.socket or f"127.0.0.1:{self.port}"


class Answer(NamedTuple):
    status: int
    body: bytes

    @property
    def problem(self) -> str:
        """The error that the body tells, in Dapr's shape or as plain text, with its code."""
        try:
            told = msgspec.json.decode(self.body, type=_Problem)
        except msgspec.DecodeError:
            told = _Problem(message=clip(self.body.decode(errors="replace").strip()))
        text = told.message or http.client.responses.get(self.status, "no reason given")
        hint = "; set DAPR_API_TOKEN to the token of the sidecar" if self.status == 401 else ""
        return f"{text} ({' '.join(filter(None, (str(self.status), told.error_code)))}){hint}"


class _Problem(msgspec.Struct, rename="camel"):
    error_code: str = ""
    message: str = ""


def address_of(entry: Entry) -> Address:
    return Address(None if entry.socket else entry.http_port, entry.socket)


def choose(running: list[Entry], app_id: str | None, mesh: str, flag: str = "--publish-app-id") -> Entry:
    """The newest sidecar of `app_id`, or of the only app that runs when that is `None`. `flag` is how a user names it.

    Raises `MeshError` when there is no such sidecar, or no telling which one is meant.
    """
    ids = sorted({entry.app_id for entry in running})
    if app_id is None and len(ids) > 1:
        raise MeshError(f"several apps run here ({', '.join(ids)}); name one with {flag}")
    for entry in reversed(running):
        if app_id in (None, entry.app_id):
            return entry
    wanted = "no sidecar" if app_id is None else f"no sidecar of app id '{clip(app_id)}'"
    others = f" (running: {', '.join(ids)})" if ids else ""
    raise MeshError(
        f"{wanted} runs in mesh '{clip(mesh)}'{others}; start one with: meshwire run --app-id {clip(app_id or 'shell')}"
    )


def call(
    address: Address,
    method: str,
    path: str,
    *,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    timeout: float,
) -> Answer:
    """Call an API and read the whole answer within `timeout` seconds, connecting included.

    `path` must be encoded already. Sends `DAPR_API_TOKEN` if it is set. Raises `MeshError` when there is no
    complete answer; the request may have had its effect all the same.
    """
    connection = _Connection(address, timeout)
    sent = dict(headers or {})
    if token := os.environ.get("DAPR_API_TOKEN"):
        sent["dapr-api-token"] = token
    try:
        connection.connect()
    except OSError as error:
        connection.close()
        raise MeshError(f"nothing answers at {address}: {error.strerror or error}; does the sidecar run?") from None
    # A timeout of the socket starts anew at every byte; this one does not.
    alarm = threading.Timer(timeout, connection.hang_up)
    alarm.daemon = True
    alarm.start()
    try:
        connection.request(method, path, body, sent)
        response = connection.getresponse()
        answer = Answer(response.status, response.read(LONGEST_ANSWER + 1))
    except TimeoutError:
        connection.hung_up = True
    except (OSError, http.client.HTTPException) as error:
        if not connection.hung_up:
            told = error or type(error).__name__
            raise MeshError(f"the answer of the sidecar at {address} broke off ({told})") from None
    finally:
        alarm.cancel()
        connection.close()
    if connection.hung_up:  # also when http.client took the end for that of the head
        raise MeshError(f"no answer within {timeout:g} s from the sidecar at {address}")
    if len(answer.body) > LONGEST_ANSWER:
        raise MeshError(
            f"the answer of the sidecar at {address} is longer than {LONGEST_ANSWER >> 20} MiB; ask for less"
        )
    return answer


class _Connection(http.client.HTTPConnection):
    def __init__(self, address: Address, timeout: float) -> None:
        super().__init__("127.0.0.1" if address.socket is None else "localhost", address.port, timeout=timeout)
        self._path = address.socket
        self.hung_up = False

    def connect(self) -> None:
        if self._path is None:
            super().connect()
            return
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)

    def hang_up(self) -> None:
        self.hung_up = True
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except (OSError, AttributeError):
            pass  # ended by itself meanwhile
