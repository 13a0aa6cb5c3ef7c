"""Addresses of one process, each for one call, that nobody can guess.

A callee learns the one address on which it is to answer and nothing about the others, so that it can neither answer
another callee's call nor touch what the event log gets.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from brokers.nats.client import DirectCallback
from brokers.nats.connection import Connection
from mesh.ids import random_id

logger = logging.getLogger("meshwire.nats")

INBOX = b"_INBOX."


def is_inbox(subject: bytes) -> bool:
    """Whether a message may be answered there: a reply subject of another kind would have us do what its sender may
    not do itself, such as to publish an event."""
    return subject.startswith(INBOX)


class Mailbox:
    """The addresses on one connection, as one subscription. `on_unknown` gets the reply subject and the header block
    of a message that is for nobody (any more) and wants an answer."""

    def __init__(
        self, connection: Connection, on_unknown: Callable[[bytes, bytes], None] = lambda reply, block: None
    ) -> None:
        prefix = connection.new_inbox()
        self._prefix = f"{prefix}.".encode()
        self._callbacks: dict[bytes, DirectCallback] = {}
        self._on_unknown = on_unknown
        self.stop = connection.listen(f"{prefix}.*", self._on_message)

    def open(self, callback: DirectCallback) -> bytes:
        """A new address, for `callback`."""
        address = self._prefix + random_id().encode()
        self._callbacks[address] = callback
        return address

    def close(self, address: bytes) -> None:
        self._callbacks.pop(address, None)

    def _on_message(self, subject: bytes, reply: bytes, headers: bytes, payload: bytes) -> None:
        callback = self._callbacks.get(subject)
        if callback is not None:
            callback(subject, reply, headers, payload)
        elif reply and is_inbox(reply):
            self._on_unknown(reply, headers)
