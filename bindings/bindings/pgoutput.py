"""The messages of PostgreSQL's `pgoutput`, protocol version 1: the rows that a transaction changed, as they were
committed.

Rule: PostgreSQL's manual, "Logical Replication Message Formats". Values come as text, as the session that reads has it
(`DateStyle`, `TimeZone`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

POSTGRES_EPOCH = 946_684_800
"""2000-01-01, in seconds since the epoch."""


class ProtocolError(ValueError):
    """A message is not what the protocol says."""


class Column(NamedTuple):
    name: str
    type: int
    """The OID of its type."""
    is_identity: bool
    """Part of what identifies a row in updates and deletes: the primary key, unless the table was altered."""


class Relation(NamedTuple):
    """A table, told before the first of its rows in a session and whenever it has changed."""

    oid: int
    schema: str
    table: str
    identity: str
    """`d` primary key, `n` nothing, `f` the whole row, `i` an index."""
    columns: Sequence[Column]


class Begin(NamedTuple):
    lsn: int
    """Of the commit: that of every row of the transaction."""
    time: float
    """Of the commit, in seconds since the epoch."""
    xid: int


class Commit(NamedTuple):
    end: int
    """LSN behind the transaction, from which on the next ones come."""


UNCHANGED = object()
"""A large value that an update left as it was: the server does not tell it."""

Row = Sequence[object]
"""A text for each column, `None` for NULL, or `UNCHANGED`. Where only the key of an old row is told, other columns are
`None`."""


class Change(NamedTuple):
    operation: str
    """`insert`, `update` or `delete`."""
    oid: int
    new: Row | None
    old: Row | None
    """All columns where the table's replica identity is full, else those of the key, if an update changed them."""
    whole: bool
    """Whether `old` has all columns."""


class Truncate(NamedTuple):
    oids: Sequence[int]


Message = Relation | Begin | Commit | Change | Truncate


def decode(data: bytes) -> Message | None:
    """`None` for what is no change of a row (types, origins). Raises `ProtocolError`."""
    try:
        return _decode(data)
    except (struct.error, IndexError, ValueError) as error:
        raise ProtocolError(f"a message of pgoutput cannot be read: {error}") from None


def _decode(data: bytes) -> Message | None:
    kind = data[:1]
    match kind:
        case b"I" | b"U" | b"D":
            return _change(data)
        case b"B":
            lsn, microseconds, xid = struct.unpack_from("!QqI", data, 1)
            return Begin(lsn, POSTGRES_EPOCH + microseconds / 1e6, xid)
        case b"C":
            return Commit(struct.unpack_from("!xQQ", data, 1)[1])
        case b"R":
            return _relation(data)
        case b"T":
            number, _options = struct.unpack_from("!IB", data, 1)
            return Truncate(struct.unpack_from(f"!{number}I", data, 6))
        case b"O" | b"Y" | b"M":
            return None
    raise ProtocolError(f"there is no message of kind {kind!r}")


def _change(data: bytes) -> Change:
    (oid,) = struct.unpack_from("!I", data, 1)
    new: Row | None = None
    old: Row | None = None
    whole = False
    at = 5
    while at < len(data):
        part = data[at : at + 1]
        row, at = _row(data, at + 1)
        if part == b"N":
            new = row
        elif part in (b"K", b"O"):
            old, whole = row, part == b"O"
        else:
            raise ProtocolError(f"a row of kind {part!r}")
    return Change({b"I": "insert", b"U": "update", b"D": "delete"}[data[:1]], oid, new, old, whole)


def _row(data: bytes, at: int) -> tuple[Row, int]:
    (number,) = struct.unpack_from("!H", data, at)
    at += 2
    row: list[object] = []
    for _ in range(number):
        kind = data[at]
        at += 1
        if kind == 0x74:  # t
            (size,) = struct.unpack_from("!I", data, at)
            at += 4
            if at + size > len(data):
                raise ProtocolError("a value is cut off")
            row.append(data[at : at + size].decode())
            at += size
        elif kind == 0x6E:  # n
            row.append(None)
        elif kind == 0x75:  # u
            row.append(UNCHANGED)
        else:
            raise ProtocolError(f"a value of kind {chr(kind)!r}")
    return row, at


def _relation(data: bytes) -> Relation:
    (oid,) = struct.unpack_from("!I", data, 1)
    schema, at = _text(data, 5)
    table, at = _text(data, at)
    identity, number = struct.unpack_from("!cH", data, at)
    return Relation(oid, schema or "pg_catalog", table, identity.decode(), list(_columns(data, at + 3, number)))


def _columns(data: bytes, at: int, number: int) -> Iterator[Column]:
    for _ in range(number):
        flags = data[at]
        name, at = _text(data, at + 1)
        (type_,) = struct.unpack_from("!I4x", data, at)
        at += 8
        yield Column(name, type_, bool(flags & 1))


def _text(data: bytes, at: int) -> tuple[str, int]:
    end = data.index(0, at)
    return data[at:end].decode(), end + 1


def lsn_text(lsn: int) -> str:
    """As PostgreSQL writes it."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def lsn_number(text: str) -> int:
    high, _, low = text.partition("/")
    return int(high, 16) << 32 | int(low, 16)
