"""Messages off the wire, however the network cuts them."""

import asyncio

import pytest

from brokers.nats import reader
from brokers.nats.reader import MessageReader

HEADERS = b"NATS/1.0\r\nA: b\r\n\r\n"
WIRE = (
    b"INFO {}\r\n"
    b"MSG a.b 1 5\r\nhello\r\n"
    b"MSG a.b 2 _INBOX.x 0\r\n\r\n"
    b"PING\r\n"
    b"HMSG a.b 3 18 23\r\n%bfive\n\r\n"
    % HEADERS
    + b"HMSG a.b 4 _INBOX.y 18 20\r\n%b\r\n\r\n" % HEADERS  # its payload is an end of line
    + b"HMSG a.b 5 18 18\r\n%b\r\n" % HEADERS
    + b"-ERR 'Permissions Violation for Subscription to \"x\"'\r\n"
    b"+OK\r\n"
    b"MSG\ta.b  6\t14\r\nMSG a.b 7 1\r\nx\r\n"
    b"PONG\r\n"
)
MESSAGES = [
    (1, b"a.b", b"", b"", b"hello"),
    (2, b"a.b", b"_INBOX.x", b"", b""),
    (3, b"a.b", b"", HEADERS, b"five\n"),
    (4, b"a.b", b"_INBOX.y", HEADERS, b"\r\n"),
    (5, b"a.b", b"", HEADERS, b""),
    (6, b"a.b", b"", b"", b"MSG a.b 7 1\r\nx"),
]
OTHERS = b"INFO {}\r\nPING\r\n-ERR 'Permissions Violation for Subscription to \"x\"'\r\n+OK\r\nPONG\r\n"


class Wire:
    """A reader, and what came out of it."""

    def __init__(self) -> None:
        self.messages: list[tuple[int, bytes, bytes, bytes, bytes]] = []
        self.broken: list[str] = []
        self.calls: list[object] = []
        self.rest = b""
        wire = self

        class Rest(asyncio.Protocol):
            def data_received(self, data: bytes) -> None:
                wire.rest += data

            def eof_received(self) -> bool:
                wire.calls.append("eof")
                return True

            def connection_lost(self, exc: Exception | None) -> None:
                wire.calls.append(exc)

            def pause_writing(self) -> None:
                wire.calls.append("pause")

            def resume_writing(self) -> None:
                wire.calls.append("resume")

        self.reader = MessageReader(Rest(), lambda *message: self.messages.append(message), self.broken.append)


@pytest.mark.parametrize("size", [*range(1, 60), len(WIRE)])
def test_messages_and_lines_are_told_apart_however_they_are_cut(size):
    wire = Wire()
    for start in range(0, len(WIRE), size):
        wire.reader.data_received(WIRE[start : start + size])
    assert wire.messages == MESSAGES
    assert wire.rest == OTHERS
    assert not wire.broken


def test_a_message_waits_for_its_last_byte():
    wire = Wire()
    payload = bytes(range(256)) * 1024
    whole = b"MSG a 1 %d\r\n%b\r\n" % (len(payload), payload)
    for start in range(0, len(whole) - 1, 50_000):
        wire.reader.data_received(whole[start : min(start + 50_000, len(whole) - 1)])
    assert not wire.messages
    wire.reader.data_received(b"\nPING\r\n")
    assert wire.messages == [(1, b"a", b"", b"", payload)]
    assert wire.rest == b"PING\r\n"


@pytest.mark.parametrize(
    "line",
    [
        b"MSG a one 5",
        b"MSG a 1 -5",
        b"HMSG a 1 -1 5",
        b"HMSG a 1 6 5",
        b"HMSG a 1 x 5",
        b"MSG a 1 %d" % (reader.MAX_MESSAGE + 1),
        b"INFO " + b"x" * reader.MAX_LINE,
    ],
)
def test_what_is_no_nats_breaks_the_connection(line):
    wire = Wire()
    wire.reader.data_received(line if line.startswith(b"INFO") else line + b"\r\nhello\r\n")
    assert len(wire.broken) == 1
    assert wire.broken[0].startswith("the server sent what is no NATS")
    assert not wire.messages


def test_what_becomes_of_the_connection_is_passed_on():
    wire = Wire()
    reset = ConnectionResetError()
    wire.reader.pause_writing()
    wire.reader.resume_writing()
    assert wire.reader.eof_received()
    wire.reader.connection_lost(reset)
    assert wire.calls == ["pause", "resume", "eof", reset]
