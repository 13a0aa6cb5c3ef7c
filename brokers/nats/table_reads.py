"""Reading the stream of a scope: the newest message of a subject, or the next one of several from a sequence on.

A direct get is answered by any replica, which may lag; where there are several, or a stream of earlier values (it
answers direct gets too, NATS sees to that), the leader is asked instead (docs/adr/0006-state-on-nats.md).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from math import inf
from typing import Any, Protocol

import msgspec

from brokers.nats import jetstream
from brokers.nats.connection import Connection, Reply
from brokers.nats.retry import ATTEMPT_TIMEOUT, Retry
from brokers.nats.scopes import Standing
from brokers.nats.table_records import Stored, from_direct, from_leader
from mesh.errors import BrokerError, BrokerUnavailable

MESSAGE_NOT_FOUND = 10037

WIDEST = 64
"""Requests under way at once for the messages of one page."""
FIRST_WIDTH = 8
LARGE = 64 * 1024
"""Bytes of a value from which on no more than `FIRST_WIDTH` are asked for at once."""


class NoStream(BrokerUnavailable):
    """The stream did not answer: it is gone, it has no leader right now, or it may not be read this way any more."""


class Source(Protocol):
    """A stream that can be read: that of a scope, or one of its earlier values."""

    name: str
    root: str
    standing: Standing | None
    closed: bool

    async def ensure(self) -> Standing: ...

    async def restore(self) -> Standing: ...


class Reader:
    """Every method raises `BrokerError`, and `BrokerUnavailable` when there is no answer in time."""

    def __init__(self, connection: Connection, stream: Source) -> None:
        self._connection = connection
        self._stream = stream
        self._root = stream.root
        self._direct = f"$JS.API.DIRECT.GET.{stream.name}"
        self._direct_last = f"{self._direct}.{stream.root}"
        self._leader = f"STREAM.MSG.GET.{stream.name}"

    async def last(self, path: str) -> Stored | None:
        """The newest message of a subject, as of now."""
        standing = self._stream.standing
        if standing is None or not standing.direct:
            return await self._get({"last_by_subj": self._root + path})
        try:
            return self._read(await self._connection.call(self._direct_last + path, b"", b"", ATTEMPT_TIMEOUT), path)
        except BrokerUnavailable as error:
            return await self._get({"last_by_subj": self._root + path}, error)

    async def last_of_each(self, paths: Sequence[str]) -> list[Stored | None]:
        return await asyncio.gather(*map(self.last, paths))

    async def following(
        self, sequence: int, pattern: str, count: int, max_bytes: float = inf
    ) -> tuple[list[Stored], bool]:
        """The next messages from `sequence` on whose subject, without the root, matches `pattern`: up to `count`, in
        order, and fewer once they have `max_bytes` in all. The second says whether there are no more.

        Asks for the first match after each of several sequences at once, fewer the further apart the matches are.
        A batch in one request (`DIRECT.GET` with `batch`) would have the server count all the matches that are left.
        """
        found: list[Stored] = []
        width = FIRST_WIDTH
        size = 0
        while len(found) < count and size < max_bytes:
            asked = range(sequence, sequence + min(width, count - len(found)))
            answers = await asyncio.gather(
                *(self._get_quickly({"seq": start, "next_by_subj": self._root + pattern}) for start in asked)
            )
            fresh: dict[int, Stored] = {answer.sequence: answer for answer in answers if answer is not None}
            found += [fresh[number] for number in sorted(fresh)]
            if answers[-1] is None:
                return found, True
            sequence = answers[-1].sequence + 1
            size += sum(len(message.payload) for message in fresh.values())
            widest = WIDEST if size < LARGE * len(found) else FIRST_WIDTH
            width = min(2 * width, widest) if len(fresh) == len(asked) else max(1, len(fresh))
        return found, False

    async def _get_quickly(self, request: dict[str, Any]) -> Stored | None:
        """As `_get`, without the cost of its care as long as all goes well."""
        standing = self._stream.standing
        if standing is None or not standing.direct:
            return await self._get(request)
        try:
            body = msgspec.json.encode(request)
            return self._read(await self._connection.call(self._direct, b"", body, ATTEMPT_TIMEOUT))
        except BrokerUnavailable as error:
            return await self._get(request, error)

    async def _get(self, request: dict[str, Any], error: BrokerUnavailable | None = None) -> Stored | None:
        """Ask until there is an answer. `error` is what became of a first attempt."""
        retry = Retry(self._connection, closed=lambda: self._stream.closed)
        while True:
            if error is not None:
                await retry.after(error)
            try:
                standing = await (self._stream.restore() if isinstance(error, NoStream) else self._stream.ensure())
                if not standing.direct:
                    return await self._ask_leader(request)
                body = msgspec.json.encode(request)
                return self._read(await self._connection.call(self._direct, b"", body, ATTEMPT_TIMEOUT))
            except BrokerUnavailable as again:
                error = again

    async def ask_leader(self, path: str, retry: Retry) -> Stored | None:
        """As `last`, from the leader whatever the stream is like; patient as `retry` is."""
        while True:
            try:
                return await self._ask_leader({"last_by_subj": self._root + path})
            except NoStream as error:
                await retry.after(error)
                await self._stream.restore()
            except BrokerUnavailable as error:
                await retry.after(error)

    async def _ask_leader(self, request: dict[str, Any]) -> Stored | None:
        try:
            answer = await jetstream.call(self._connection, self._leader, request, ATTEMPT_TIMEOUT)
        except jetstream.Refused as refusal:
            if refusal.code == MESSAGE_NOT_FOUND:
                return None
            if refusal.code == jetstream.STREAM_NOT_FOUND:
                raise NoStream(str(refusal)) from None
            raise
        return from_leader(self._root, answer["message"])

    def _read(self, reply: Reply, path: str = "") -> Stored | None:
        block = reply.headers
        if block.startswith(b"NATS/1.0\r\n"):
            return from_direct(self._root, block, reply.payload, path)
        status = block[9:12]
        if status == b"404":
            return None
        if status == b"503":
            raise NoStream(f"nobody answers for the stream {self._stream.name}: it was removed, or has no leader now")
        reason = block[9:].split(b"\r\n", 1)[0].decode("ascii", "replace")
        raise BrokerError(f"NATS refused to read the stream {self._stream.name}: {reason}")
