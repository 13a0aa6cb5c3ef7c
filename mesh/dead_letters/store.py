"""The store of an app's dead letters: a table of its own, so that nothing that attempts gave up is lost.

A letter is one record, `("dead", <pub/sub component>, <topic>, <position>)`, its value the letter in MessagePack. One
that the broker takes for too large is cut into parts, which are stored together with it or not at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import NamedTuple

import msgspec

from mesh import addressing
from mesh.delivery.letters import Letter
from mesh.errors import BrokerError, MessageTooLarge
from mesh.ports.tables import Conflict, Delete, Entry, Key, Put, Table, Tables

KIND = "dead"
PART = "dead-part"
"""Kind of the records that a large letter is continued in: its key, and the number of the part."""
KEPT_FOR = 30 * 24 * 3600.0
"""Seconds for which a letter is kept unless the sidecar is told otherwise."""
WHOLE, IN_PARTS = "application/vnd.meshwire.letter+msgpack", "application/vnd.meshwire.letter-parts"
"""The media types of a record: the letter itself, or how many parts it has."""

_DIGITS = 20
_LONGEST_PLACE = 200
"""Bytes of a position that become part of a key as they are."""
_ENVELOPE = 8 * 1024
"""Bytes that a broker is left for the address and the headers of a part."""
_SMALLEST_PART = 256
_REMOVED_AT_ONCE = 64

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Letter).decode


class Kept(NamedTuple):
    """A letter as it is stored."""

    key: Key
    letter: Letter
    revision: int
    expires: float | None
    """When it will be forgotten; seconds since the epoch."""
    parts: int = 0


def place(position: str) -> str:
    """A position as the last part of a key. Those that are numbers sort as numbers."""
    if position.isascii() and position.isdigit():
        return position.zfill(_DIGITS)
    if "/" not in position and len(position.encode("utf-8", "replace")) <= _LONGEST_PLACE:
        return position
    return blake2b(position.encode("utf-8", "replace"), digest_size=16).hexdigest()


def key_of(letter: Letter) -> Key:
    """One event is one letter of a subscription, however often it dies: in a replay too."""
    # A log that does not tell positions must not make one letter of all.
    position = letter.position or blake2b(_encode(letter.message), digest_size=16).hexdigest()
    return (KIND, *letter.group.topic, place(position))


class LetterStore:
    """The `DeadLetters` of one app."""

    def __init__(self, tables: Tables, app_id: str, *, kept_for: float = KEPT_FOR) -> None:
        """`kept_for` is in seconds, 1 at least."""
        self.table: Table = tables.table(addressing.dead_letters_scope(app_id))
        self._kept_for = kept_for

    async def keep(self, letter: Letter) -> None:
        """One write for all but the largest. Raises `BrokerError`."""
        key, value = key_of(letter), _encode(letter)
        try:
            await self.table.commit([self._put(key, value, WHOLE)])
        except MessageTooLarge as error:
            await self._keep_in_parts(key, value, error.limit)

    async def _keep_in_parts(self, key: Key, value: bytes, limit: int) -> None:
        size = max(_SMALLEST_PART, limit - _ENVELOPE)
        parts = [value[start : start + size] for start in range(0, len(value), size)]
        records = [self._put(part, text, WHOLE) for part, text in zip(_parts(key, len(parts)), parts, strict=True)]
        # The parts live a little longer than the record that counts them.
        records = [msgspec.structs.replace(record, ttl=self._kept_for + 60) for record in records]
        await self.table.commit([*records, self._put(key, b"%d" % len(parts), IN_PARTS)])

    def _put(self, key: Key, value: bytes, content_type: str) -> Put:
        return Put(key=key, value=value, content_type=content_type, ttl=self._kept_for)

    async def get(self, key: Key) -> Kept | None:
        """Raises `BrokerError`, `InvalidKey`."""
        entry = await self.table.get(key)
        return None if entry is None else await self.read(entry)

    async def get_many(self, keys: Sequence[Key]) -> list[Kept | None]:
        entries = await self.table.get_many(keys)
        return [None if entry is None else await self.read(entry) for entry in entries]

    async def read(self, entry: Entry) -> Kept | None:
        """The letter in a record; `None` when it is gone meanwhile, or is something that this version cannot read."""
        value, count = entry.value, 0
        try:
            if entry.content_type == IN_PARTS:
                count = int(value)
                parts = await self.table.get_many(list(_parts(entry.key, count)))
                value = b"".join([part.value for part in parts if part is not None])
            letter = _decode(value)
        except (ValueError, msgspec.DecodeError):
            return None
        return Kept(entry.key, letter, entry.revision, entry.expires, count)

    async def remove(self, kept: Kept) -> bool:
        """False when it has been removed, or has died once more, since it was read. Raises `BrokerError`."""
        removal = [Delete(key=kept.key, expected=kept.revision), *map(_delete, _parts(kept.key, kept.parts))]
        try:
            await self.table.commit(removal)
        except Conflict:
            return False
        return True

    async def remove_many(self, letters: Sequence[Kept]) -> list[Kept]:
        """Those that were removed. Raises `BrokerError` when it stopped halfway."""
        removed: list[Kept] = []
        for start in range(0, len(letters), _REMOVED_AT_ONCE):
            window = letters[start : start + _REMOVED_AT_ONCE]
            outcomes = await asyncio.gather(*map(self.remove, window), return_exceptions=True)
            for kept, outcome in zip(window, outcomes, strict=True):
                if isinstance(outcome, BaseException) and not isinstance(outcome, BrokerError):
                    raise outcome
                if outcome is True:
                    removed.append(kept)
            failed = next((outcome for outcome in outcomes if isinstance(outcome, BrokerError)), None)
            if failed is not None:
                raise failed
        return removed


def _parts(key: Key, count: int) -> Iterator[Key]:
    return ((PART, *key[1:], str(number)) for number in range(count))


def _delete(key: Key) -> Delete:
    return Delete(key=key)
