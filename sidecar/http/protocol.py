"""HTTP/1.1 on uvicorn and httptools, with a limit on everything that a client can send or withhold.

Stock uvicorn reads a header of any size, waits for its end for ever, appends trailers to the headers, and takes
the body behind an `Upgrade` for the next request. `protocol_class` closes these holes. It costs nothing while
requests come whole: a connection has a deadline, and one timer looks at all of them.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Collection
from math import inf
from typing import Any, ClassVar, cast
from urllib.parse import unquote

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from sidecar.http.exchange import Exchange
from sidecar.http.limits import Limits, Sweeper, Watched
from sidecar.http.target import InvalidTarget, parse_absolute

log = logging.getLogger("meshwire.http")


def protocol_class(limits: Limits) -> type[BoundedProtocol]:
    """The protocol class of one listener, for uvicorn's `Config(http=...)`. Call it once per listener."""
    return type("LimitedProtocol", (BoundedProtocol,), {"limits": limits, "sweeper": Sweeper(limits)})


class _Refused(Exception):
    """Ends the parsing of a request that is not to be served."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


_ASGI = {"version": "3.0", "spec_version": "2.3"}


class BoundedProtocol(HttpToolsProtocol):
    """One connection. Use it through `protocol_class`."""

    limits: ClassVar[Limits]
    sweeper: ClassVar[Sweeper]

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.incoming: Exchange | None = None
        """The request whose body is being received, or was last."""
        self.current: Exchange | None = None
        """The request that is being answered."""
        self.waiting: deque[Exchange] = deque()
        """Pipelined requests behind it, oldest first."""
        self.deadline = inf
        self.write_deadline = inf
        self.closing = False
        self._last_word: bytes | None = None
        """What is said when all requests before a refused one are answered; nothing is read any more."""
        self._unsent = 0
        self._in_head = False
        self._in_body = False
        self._passive = False
        self._unaccounted = 0
        """Upper bound of the bytes of an unfinished head; in a body, of those since the last byte of content."""
        self._settled = False
        """The piece of input at hand has ended a head or brought content."""
        self._mixed = False
        """The piece of input at hand has the end of an earlier message in it."""

    # The connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.sweeper.watch(self.loop, cast("Collection[Watched]", self.connections))
        self.deadline = self.loop.time() + self.limits.head_time
        if len(self.connections) > self.limits.connections:
            self.refuse(503, "too many open connections")

    def connection_lost(self, exc: Exception | None) -> None:
        self.connections.discard(self)
        self.closing = True
        self._disconnect()
        self.incoming = None
        self.flow.resume_writing()
        self.parser = None  # type: ignore[assignment]

    def shutdown(self) -> None:
        """Close now, or as soon as the request in progress is answered."""
        if self.current is None:
            self.close()
        else:
            (self.waiting or (self.current,))[-1].keep_alive = False

    def close(self) -> None:
        """Close when everything written is sent, or the client takes no more of it."""
        if self.closing:
            return
        self.closing = True
        self.deadline = self.loop.time() + self.limits.linger
        self.transport.close()

    def abort(self) -> None:
        """Close at once, whatever is unsent."""
        self.transport.abort()

    def _disconnect(self) -> None:
        for exchange in self.waiting:
            exchange.disconnect()
        self.waiting.clear()
        if self.current is not None:
            self.current.disconnect()

    def pause_writing(self) -> None:
        self.flow.pause_writing()
        self.write_deadline = self.loop.time() + self.limits.write_idle

    def resume_writing(self) -> None:
        self.flow.resume_writing()
        self.write_deadline = inf

    def expire(self, now: float) -> None:
        """Called by the sweeper when a deadline has passed."""
        if self.closing or self.write_deadline <= now:
            self._expire_writing(now)
        elif self._in_head:
            self.refuse(408, "the request's headers did not arrive in time")
        elif not self._in_body:
            self.close()
        elif self.flow.read_paused:
            self.deadline = now + self.limits.body_idle  # it is we who do not read
        else:
            self.refuse(408, "the request's body did not arrive in time")

    def _expire_writing(self, now: float) -> None:
        unsent = self.transport.get_write_buffer_size()
        if unsent in (0, self._unsent):
            self.transport.abort()
            return
        self._unsent = unsent
        if self.closing:
            self.deadline = now + self.limits.write_idle
        if self.write_deadline < inf:
            self.write_deadline = now + self.limits.write_idle

    def refuse(self, status: int, text: str) -> None:
        """Answer the request that is coming in, after those before it, and close. What an answer that is under way
        lacks is not sent: the client must see that it is cut short."""
        log.debug("refused a request from %s: %d %s", self.client, status, text)
        body = text.encode() + b"\n"
        self._last_word = (
            b"%bcontent-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
            % (STATUS_LINE[status], len(body), body)
        )
        self.deadline = inf  # those before it take their time
        if self._in_body and self.incoming is not None:
            self._break_off(self.incoming)
        if self.current is None:
            self._say_last_word()

    def _break_off(self, exchange: Exchange) -> None:
        """The body of `exchange`, which is the last request, is broken or did not come."""
        if exchange.response_started:
            self._last_word = b""
        exchange.disconnect()
        if exchange is self.current:
            self.current = None
        elif self.waiting and self.waiting[-1] is exchange:
            self.waiting.pop()

    def _say_last_word(self) -> None:
        if self._last_word:
            self.transport.write(self._last_word)
        self.linger()

    def linger(self) -> None:
        """Close without cutting off our own last answer: a socket that is closed with unread input sends a reset,
        and the client loses what it has not read."""
        self.closing = True
        self.deadline = self.loop.time() + self.limits.linger
        if not self.transport.is_closing():
            self.flow.resume_reading()
            if self.transport.can_write_eof():
                self.transport.write_eof()

    # Bytes in

    def data_received(self, data: bytes) -> None:
        if self.closing or self._last_word is not None:
            return
        head_begun = self._in_head
        self._mixed = self._in_body
        self._settled = False
        self._unaccounted += len(data)
        try:
            self._feed(data)
        except httptools.HttpParserError as error:
            refused = error.__context__
            if isinstance(refused, _Refused):
                self.refuse(refused.status, refused.text)
            elif data.startswith(b"PRI * HTTP/2"):
                self.refuse(505, "HTTP/2 is not served here, use HTTP/1.1")
            else:
                self.refuse(400, "invalid HTTP request")
            return
        if self._in_head:
            if not head_begun or self._mixed:
                self.deadline = self.loop.time() + self.limits.head_time
            self._bound_unfinished(self._visible_head() if self._mixed else self._unaccounted)
        elif self._in_body:
            self.deadline = self.loop.time() + self.limits.body_idle
            self._bound_unfinished(0 if self._settled else self._unaccounted)
        else:
            self._unaccounted = 0

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._decline_upgrade()
            if rest := data[upgrade.args[0] :]:
                self._feed(rest)

    def _decline_upgrade(self) -> None:
        """Go on in HTTP/1.1 after a request with `Upgrade`, such as the h2c offer of Java's HttpClient.

        llhttp takes whatever follows for the other protocol. A new parser, told how the body is framed, does not.
        """
        framing = [
            b"%b: %b\r\n" % header for header in self.headers if header[0] in (b"content-length", b"transfer-encoding")
        ]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._passive = True
        self.parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n" % b"".join(framing))

    def _bound_unfinished(self, size: int) -> None:
        self._unaccounted = size
        if size > self.limits.head:
            self.refuse(431, f"the request's headers or trailers are longer than {self.limits.head} bytes")

    def _visible_head(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    # The parser's callbacks

    def on_message_begin(self) -> None:
        if not self._passive:
            self.url = b""
            self.headers = []
            self._in_head = True

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # else a trailer: it may not pass for a header (RFC 9110, 6.5.1), and nobody reads it
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self._passive:
            self._passive = False
            return
        headers = self.headers
        if len(headers) > self.limits.headers:
            raise _Refused(431, f"the request has more than {self.limits.headers} headers")
        if self._unaccounted > self.limits.head and self._visible_head() > self.limits.head:
            raise _Refused(431, f"the request's headers are longer than {self.limits.head} bytes")
        hosts = 0
        expects_continue = False
        codings: list[bytes] = []
        for name, value in headers:
            if name == b"host":
                hosts += 1
            elif name == b"transfer-encoding":
                codings.append(value.lower())
            elif name == b"expect":
                expects_continue = value.lower() == b"100-continue"
        parser = self.parser
        version = parser.get_http_version()
        if version != "1.1":
            if version != "1.0":
                raise _Refused(505, "only HTTP/1.1 and HTTP/1.0 are served here")
            if codings:
                raise _Refused(400, "Transfer-Encoding is not part of HTTP/1.0")  # RFC 9112, 6.1
        if codings and codings != [b"chunked"]:
            raise _Refused(501, "no transfer coding but chunked is understood")  # RFC 9112, 6.1
        if hosts != 1 and (hosts or version == "1.1"):
            raise _Refused(400, "exactly one Host header is required")  # RFC 9112, 3.2
        target = self.url.partition(b"#")[0]
        if target[:1] != b"/":
            target, headers = self._absolute(target)
        raw_path, _, query = target.partition(b"?")
        path = raw_path.decode("latin-1")  # llhttp lets ASCII through only
        exchange = Exchange(
            self,
            {
                "type": "http",
                "asgi": _ASGI,
                "http_version": version,
                "server": self.server,
                "client": self.client,
                "scheme": self.scheme,
                "root_path": "",
                "method": parser.get_method().decode(),
                "path": unquote(path) if "%" in path else path,
                "raw_path": raw_path,
                "query_string": query,
                "headers": headers,
            },
            keep_alive=version == "1.1" and parser.should_keep_alive(),
            expects_continue=expects_continue and version == "1.1",
            discard=self.limits.discard,
        )
        if self.current is None:
            self._start(exchange)
        elif len(self.waiting) < self.limits.pipeline:
            self.flow.pause_reading()
            self.waiting.append(exchange)
        else:
            raise _Refused(503, "too many pipelined requests")
        self.incoming = exchange
        self._in_head = False
        self._in_body = True
        self._settled = True

    def _absolute(self, target: bytes) -> tuple[bytes, list[tuple[bytes, bytes]]]:
        """A target in absolute form, in origin form, and the headers with its authority for a `Host`, whatever the
        client wrote there (RFC 9112, 3.2.2): nobody who checks the one can be told the other."""
        try:
            scheme, authority, path = parse_absolute(target)
        except InvalidTarget as error:
            raise _Refused(400, str(error)) from None
        if scheme != self.scheme:  # RFC 9110, 7.4
            raise _Refused(421, f"{scheme}:// is not served here, use {self.scheme}://")
        return path, [(b"host", authority), *(header for header in self.headers if header[0] != b"host")]

    def on_body(self, body: bytes) -> None:
        self._settled = True
        if self.incoming is not None:
            self.incoming.feed(body)

    def on_message_complete(self) -> None:
        exchange = self.incoming
        if exchange is None or self.parser.should_upgrade():
            return  # the body of a request with `Upgrade` is still to come: see _decline_upgrade
        self._in_body = False
        self._mixed = True
        exchange.feed_end()
        self.deadline = self.loop.time() + self.limits.keep_alive if exchange.response_complete else inf

    # The exchange's callbacks

    def _start(self, exchange: Exchange) -> None:
        self.current = exchange
        task = self.loop.create_task(exchange.run(self.config.loaded_app))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def on_exchange_complete(self, exchange: Exchange) -> None:
        """The answer to `exchange` is written."""
        self.current = None
        if self.closing:
            return
        if not exchange.keep_alive:
            if exchange.more_body:
                self.linger()
            else:
                self.close()
        elif self.waiting:
            self._start(self.waiting.popleft())
        elif self._last_word is not None:
            self._say_last_word()
        else:
            self.flow.resume_reading()
            if not (self._in_head or self._in_body):
                self.deadline = self.loop.time() + self.limits.keep_alive
