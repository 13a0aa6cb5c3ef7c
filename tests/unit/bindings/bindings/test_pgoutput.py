from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bindings.bindings import pgoutput
from bindings.bindings.pgoutput import UNCHANGED, Begin, Change, Column, Commit, ProtocolError, Relation, Truncate

ORDERS = struct.pack("!cI", b"R", 16385) + b"public\0orders\0d" + struct.pack("!H", 2)
ORDERS += b"\1id\0" + struct.pack("!Ii", 23, -1) + b"\0text\0" + struct.pack("!Ii", 25, -1)


def row(kind: bytes, values: Sequence[object]) -> bytes:
    parts = [kind, struct.pack("!H", len(values))]
    for value in values:
        if value is None:
            parts.append(b"n")
        elif value is UNCHANGED:
            parts.append(b"u")
        else:
            assert isinstance(value, str)
            parts.append(b"t" + struct.pack("!I", len(value.encode())) + value.encode())
    return b"".join(parts)


def test_a_transaction() -> None:
    begin = pgoutput.decode(struct.pack("!cQqI", b"B", 0x1_0172D8E0, 1_000_000, 755))
    assert begin == Begin(0x1_0172D8E0, 946_684_801.0, 755)
    assert pgoutput.lsn_text(0x1_0172D8E0) == "1/172D8E0"
    assert pgoutput.lsn_number("1/172D8E0") == 0x1_0172D8E0
    assert pgoutput.decode(struct.pack("!cBQQq", b"C", 0, 5, 7, 0)) == Commit(7)


def test_a_table() -> None:
    columns = [Column("id", 23, True), Column("text", 25, False)]
    assert pgoutput.decode(ORDERS) == Relation(16385, "public", "orders", "d", columns)


def test_changes() -> None:
    oid = struct.pack("!I", 7)
    new, old = ["1", "grün"], ["2", None]
    assert pgoutput.decode(b"I" + oid + row(b"N", new)) == Change("insert", 7, new, None, False)
    assert pgoutput.decode(b"U" + oid + row(b"N", ["1", UNCHANGED])) == Change(
        "update", 7, ["1", UNCHANGED], None, False
    )
    assert pgoutput.decode(b"U" + oid + row(b"K", old) + row(b"N", new)) == Change("update", 7, new, old, False)
    assert pgoutput.decode(b"U" + oid + row(b"O", old) + row(b"N", new)) == Change("update", 7, new, old, True)
    assert pgoutput.decode(b"D" + oid + row(b"K", old)) == Change("delete", 7, None, old, False)
    assert pgoutput.decode(struct.pack("!cIBII", b"T", 2, 0, 7, 8)) == Truncate((7, 8))
    assert pgoutput.decode(b"O" + bytes(20)) is None


@pytest.mark.parametrize("cut", range(1, len(ORDERS)))
def test_a_table_that_is_cut_off(cut: int) -> None:
    with pytest.raises(ProtocolError):
        pgoutput.decode(ORDERS[:cut])


@given(st.binary(max_size=200))
@example(b"")
@example(b"I\0\0\0\1N\0\1t\xff\xff\xff\xff")
def test_whatever_is_sent_there_is_one_error(data: bytes) -> None:
    try:
        pgoutput.decode(data)
    except ProtocolError as error:
        assert len(str(error)) < 200
