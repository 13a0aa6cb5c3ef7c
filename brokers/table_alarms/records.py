"""Alarms as entries of a table: stored data, which docs/protocol.md explains to outsiders."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import msgspec

from mesh.errors import BrokerError
from mesh.ports.alarms import Alarm
from mesh.ports.tables import Entry, Key

KIND = "at"
"""The first part of the keys of these entries; the alarm's own key follows."""
CONTENT_TYPE = "application/msgpack"
PARTITIONS = 16
"""Parts that the alarms of a kind are cut into. All members must agree: it never changes."""


class When(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The beginning of a record: what has to be known until it is due."""

    at: float
    """When it fires next: when it is due, or is tried again. Seconds since the epoch."""


class Record(When, frozen=True, array_like=True, gc=False):
    """The value of an entry, an array in MessagePack. Fields are only ever added, at the end."""

    due: float
    attempts: int
    """How often it was handed out before, as far as that is known."""
    headers: Mapping[str, str]
    payload: bytes

    def encode(self) -> bytes:
        return _encode(self)

    def alarm(self, key: Key) -> Alarm:
        """`key` is that of the entry."""
        return Alarm(key=key[1:], due=self.due, payload=self.payload, headers=self.headers)


def record_of(alarm: Alarm, *, at: float | None = None, attempts: int = 0) -> Record:
    return Record(alarm.due if at is None else at, alarm.due, attempts, alarm.headers, alarm.payload)


def entry_key(key: Key) -> Key:
    """The key of the entry of an alarm, or the beginning of those of many."""
    return (KIND, *key)


def partition_of(key: Key) -> int:
    """The partition of the alarm whose entry has this key."""
    return zlib.crc32("\0".join(key[1:]).encode()) % PARTITIONS


def read_when(entry: Entry) -> float:
    """Raises `BrokerError` for what no version before this one wrote."""
    try:
        return _decode_when(entry.value).at
    except msgspec.DecodeError as error:
        raise _unreadable(entry, error) from None


def read_record(entry: Entry) -> Record:
    """Raises `BrokerError` for what no version before this one wrote."""
    try:
        return _decode(entry.value)
    except msgspec.DecodeError as error:
        raise _unreadable(entry, error) from None


def _unreadable(entry: Entry, error: msgspec.DecodeError) -> BrokerError:
    return BrokerError(f"the alarm {'/'.join(entry.key[1:])} cannot be read: {error}")


_encode = msgspec.msgpack.Encoder().encode
_decode_when = msgspec.msgpack.Decoder(When).decode
_decode = msgspec.msgpack.Decoder(Record).decode
