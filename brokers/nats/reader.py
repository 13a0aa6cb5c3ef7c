"""Messages off the wire of a NATS connection, with as few copies and turns of the loop as can be.

nats-py reads 32 KiB at a time, copies them into a buffer and out of it again, matches each line with up to seven
patterns and awaits each message. Guarded by `benchmarks/`: `invoke-stream`, `deliver`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

MAX_LINE = 64 * 1024
"""Bytes of one line. Servers of a large cluster list all of them in one."""
MAX_MESSAGE = 64 * 1024 * 1024
"""Bytes of one message, headers included: the most that a server lets `max_payload` be."""

Deliver = Callable[[int, bytes, bytes, bytes, bytes], None]
"""Called with subscription, subject, reply subject, header block and payload. It must not raise."""


class MessageReader(asyncio.Protocol):
    """Stands between the transport and the protocol `rest`: messages go to `deliver`, in their order; all other lines,
    and whatever else becomes of the connection, go to `rest`.

    `broken` is called, with the reason, when the server sends what is no NATS; it is to cut the connection.
    """

    def __init__(self, rest: asyncio.Protocol, deliver: Deliver, broken: Callable[[str], None]) -> None:
        self._rest = rest
        self._deliver = deliver
        self._broken = broken
        self._parts: list[bytes | memoryview] = []
        """What has come of a line or message that is not complete."""
        self._size = 0
        self._wanted = 0
        """Bytes of `_parts` from which on it is worth another look."""

    def data_received(self, data: bytes) -> None:
        if self._parts:
            self._parts.append(data)
            self._size += len(data)
            if self._size < self._wanted:
                return
            data = b"".join(self._parts)
            self._parts.clear()
        try:
            self._read(data)
        except ValueError as error:
            self._broken(f"the server sent what is no NATS: {error}")

    def _read(self, data: bytes) -> None:
        """Raises `ValueError`."""
        start, end = 0, len(data)
        while start < end:
            line_end = data.find(b"\r\n", start)
            if line_end < 0:
                if end - start > MAX_LINE:
                    raise ValueError("a line without an end")
                self._keep(data, start, end - start + 1)
                return
            match data[start:line_end].split():
                case [b"HMSG", subject, sid, headers, size]:
                    reply = b""
                case [b"HMSG", subject, sid, reply, headers, size]:
                    pass
                case [b"MSG", subject, sid, size]:
                    reply, headers = b"", b"0"
                case [b"MSG", subject, sid, reply, size]:
                    headers = b"0"
                case _:
                    self._rest.data_received(data[start : line_end + 2])
                    start = line_end + 2
                    continue
            body = line_end + 2
            payload = body + int(headers)
            message_end = body + int(size)
            if not body <= payload <= message_end <= body + MAX_MESSAGE:
                raise ValueError(f"a message of {int(headers)} + {int(size)} bytes")
            if message_end + 2 > end:
                self._keep(data, start, message_end + 2 - start)
                return
            self._deliver(int(sid), subject, reply, data[body:payload], data[payload:message_end])
            start = message_end + 2

    def _keep(self, data: bytes, start: int, wanted: int) -> None:
        self._parts.append(memoryview(data)[start:])
        self._size = len(data) - start
        self._wanted = wanted

    def eof_received(self) -> bool | None:
        return self._rest.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._rest.connection_lost(exc)

    def pause_writing(self) -> None:
        self._rest.pause_writing()

    def resume_writing(self) -> None:
        self._rest.resume_writing()
