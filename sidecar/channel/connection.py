"""One call at a time over one socket: HTTP/1.1 as the client speaks it (RFC 9112)."""

from __future__ import annotations

import asyncio
from typing import Protocol, cast

import httptools
import msgspec

from mesh.errors import AppError
from sidecar.channel.call import Call
from sidecar.channel.streaming import AnswerBody

_WRITTEN_AT_ONCE = 64 * 1024
"""Bodies up to this size, in bytes, are copied behind their head, so that both leave in one packet."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What the channel grants its callers and accepts from the app. Sizes in bytes, times in seconds."""

    connections: int = 256
    """Calls under way at once, over as many connections."""
    dials: int = 4
    """Connections being made at once. What an app has not accepted yet waits in a queue of the kernel, where an app
    of Python's http.server has room for five; what finds it full is dropped without a word."""
    waiting: int = 4096
    """Calls that wait for one of them; further ones fail at once."""
    header_bytes: int = 64 * 1024
    header_count: int = 256
    body_bytes: int = 16 * 1024 * 1024
    idle: float = 60.0
    """How long an unused connection is kept."""


class ConnectionOwner(Protocol):
    """Who shares the connections out: the pool."""

    @property
    def app(self) -> str:
        """The app as error messages name it."""
        ...

    def settled(self, connection: Connection, *, reusable: bool) -> None:
        """The call under way has its outcome. Unless `reusable`, the connection is finished too."""
        ...

    def try_again(self, call: Call) -> None:
        """A kept connection, now finished, was dead: send the call on a fresh one."""
        ...

    def finished(self, connection: Connection) -> None:
        """The connection, which carries no call, must not be used any more. Called once or more."""
        ...

    def gone(self, connection: Connection) -> None:
        """The socket is closed."""
        ...


class _Refused(Exception):
    """Raised through the parser, to stop it."""


class Connection(asyncio.Protocol):
    """A connection to the app, made by `ConnectionOwner`; `CallHolder` of the call under way.

    It must cope with any app: one that breaks off, answers early, never, twice, without end, or no HTTP at all.
    Guarded by benchmarks/app_channel.py.
    """

    # Set for each call.
    _received: int
    """Bytes of the answer so far."""
    _stray_bytes: int
    """Bytes that came in pieces without a byte of the body."""
    _body_size: int
    _status: int
    """0 until the headers of the final answer are there."""
    _fields: list[tuple[bytes, bytes]]
    """The header section, or trailers, being read."""
    _headers: list[tuple[bytes, bytes]]
    _body: bytes | bytearray
    _stream: AnswerBody | None
    """Where the body goes instead, piece by piece."""
    _complete: bool
    _keep_alive: bool
    _without_body: bool

    # Set when the socket is open.
    _transport: asyncio.Transport
    _parser: httptools.HttpResponseParser

    def __init__(self, owner: ConnectionOwner, limits: Limits) -> None:
        self.call: Call | None = None
        self.idle_since = 0.0
        self._owner = owner
        self._limits = limits
        self._reused = False

    # What the owner does with it.

    @property
    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def carry(self, call: Call) -> None:
        """Send a call. The connection is open and carries none."""
        self.call = call
        call.holder = self
        self._send(call)

    def call_off(self, call: Call) -> None:
        self._give_up()
        self._owner.settled(self, reusable=False)

    def close(self) -> None:
        """Close the socket of a connection that carries no call."""
        self._transport.abort()

    def fail(self, what: str, error: type[AppError] = AppError) -> None:
        """End the call under way, if any, with an error, and the connection with it."""
        call = self._give_up()
        if call is None:
            self._owner.finished(self)
            return
        call.fail(what, error)
        self._owner.settled(self, reusable=False)

    def expire(self) -> None:
        """The time of the call under way is over."""
        did = "began its answer but did not end it" if self._received else "did not answer"
        self.fail(f"{self._owner.app} {did} in time")

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Both event loops set TCP_NODELAY themselves.
        self._transport = cast(asyncio.Transport, transport)
        self._parser = httptools.HttpResponseParser(self)

    def data_received(self, data: bytes) -> None:
        if self.call is None:
            # Said without being asked: the next call must not take it for its answer.
            self.close()
            self._owner.finished(self)
            return
        self._received += len(data)
        body_size = self._body_size
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as exc:
            self._keep_alive = False
            if not self._complete:
                self.fail(self._no_answer(exc))
                return
        if self._complete:
            self._succeed(self.call)
            return
        if self._status and self._stream is None and self.call.takes_head(self._announced()):
            self._stream = self.call.begin(self._transport, self._status, self._headers, bytes(self._body))
        if self._body_size == body_size:
            # Headers, trailers, chunk extensions, 1xx answers: none of them may go on for ever.
            self._stray_bytes += len(data)
            if self._stray_bytes > self._limits.header_bytes:
                self.fail(self._too_many_headers())

    def eof_received(self) -> None:
        self._ended(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended(exc)
        del self._parser  # it holds the connection: a cycle
        self._owner.gone(self)

    # Callbacks of the parser

    def on_message_begin(self) -> None:
        if self._complete:
            raise _Refused  # a second answer

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        fields, self._fields = self._fields, []  # what follows are trailers, or the answer after a 1xx
        status = self._parser.get_status_code()
        if status < 200:
            return
        limits = self._limits
        if len(fields) > limits.header_count or (
            self._received > limits.header_bytes
            and sum(len(name) + len(value) + 4 for name, value in fields) > limits.header_bytes
        ):
            raise _Refused(self._too_many_headers())
        self._status = status
        self._headers = fields
        if self._without_body:
            # The parser cannot be told; it would wait for the body that Content-Length announces.
            self._complete = True
            raise _Refused

    def on_body(self, data: bytes) -> None:
        self._body_size += len(data)
        if self._stream is not None:
            self._stream.feed(data)
            return
        if self._body_size > self._limits.body_bytes:
            raise _Refused(
                f"{self._owner.app} sent an answer of more than {self._limits.body_bytes} bytes, "
                "which is the limit; let the app answer in smaller pieces"
            )
        if not self._body:
            self._body = data
        elif isinstance(self._body, bytes):
            self._body = bytearray(self._body + data)
        else:
            self._body += data

    def on_message_complete(self) -> None:
        if self._status:
            self._complete = True
            self._keep_alive = self._parser.should_keep_alive()

    def pause_writing(self) -> None:
        if self.call is not None and self.call.upload is not None:
            self.call.upload.pause()

    def resume_writing(self) -> None:
        if self.call is not None and self.call.upload is not None:
            self.call.upload.resume()

    # The rest

    def _give_up(self) -> Call | None:
        """Close the socket at once. Returns the call that was under way, which is the caller's to settle."""
        call, self.call = self.call, None
        if call is not None and call.upload is not None:
            call.upload.stop()
        self._transport.abort()
        return call

    def _send(self, call: Call) -> None:
        self._received = self._stray_bytes = self._body_size = self._status = 0
        self._fields = []
        self._headers = []
        self._body = b""
        self._stream = None
        self._complete = self._keep_alive = False
        self._without_body = call.without_body
        if call.upload is not None:
            self._transport.write(call.head)
            call.upload.start(self._transport, self.fail)
        elif len(call.body) <= _WRITTEN_AT_ONCE:
            self._transport.write(call.head + call.body)
        else:
            self._transport.write(call.head)
            self._transport.write(call.body)

    def _succeed(self, call: Call) -> None:
        transport = self._transport
        self.call = None
        self._reused = True
        # An app may answer before it has read the request; what is left of that would be the next request.
        reusable = self._keep_alive and transport.get_write_buffer_size() == 0 and not transport.is_closing()
        if call.upload is not None:
            reusable = reusable and call.upload.complete
        if not reusable:
            transport.abort()
        elif self._stream is not None:
            transport.resume_reading()
        call.succeed(self._status, self._headers, bytes(self._body), self._fields)
        self._owner.settled(self, reusable=reusable)

    def _ended(self, exc: Exception | None) -> None:
        """The app has closed its side, or the connection broke."""
        call = self.call
        if call is None:
            self._owner.finished(self)
        elif exc is None and self._status and not self._is_framed():
            self._succeed(call)
        elif self._reused and not self._received and call.replay:
            self._give_up()
            self._owner.try_again(call)
        else:
            how = f"broke the connection ({exc})" if exc else "closed the connection"
            when = "in the middle of its answer" if self._received else "without an answer"
            self.fail(f"{self._owner.app} {how} {when}; see the app's own log")

    def _is_framed(self) -> bool:
        """Whether the answer says where it ends; otherwise the end of the connection is its end."""
        for name, value in self._headers:
            if name == b"content-length" or (name == b"transfer-encoding" and b"chunked" in value.lower()):
                return True
        return False

    def _announced(self) -> int | None:
        """The length of the body by the answer's head."""
        for name, value in self._headers:
            if name == b"content-length":
                return int(value)
        return None

    def _no_answer(self, exc: Exception) -> str:
        if isinstance(exc.__context__, _Refused):
            return str(exc.__context__)
        if isinstance(exc, httptools.HttpParserUpgrade):
            return f"{self._owner.app} switched to another protocol without being asked to"
        return (
            f"{self._owner.app} answered with something that is no HTTP/1.1 ({exc}); "
            "does another program, or another protocol (TLS, gRPC), use this port?"
        )

    def _too_many_headers(self) -> str:
        return (
            f"{self._owner.app} sent more than {self._limits.header_bytes} bytes or "
            f"{self._limits.header_count} lines of headers, which are the limits"
        )
