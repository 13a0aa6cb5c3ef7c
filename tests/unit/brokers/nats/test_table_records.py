"""Entries as messages, and what is made of messages that others have written."""

from __future__ import annotations

import math

import pytest

from brokers.nats import table_records
from brokers.nats.table_records import Stored
from mesh.ports.tables import Entry, Gone, Put

ROOT = "mesh.default.state.shop."
SOURCE = table_records.source("mesh", "default", "shop")


def stored(block: bytes, payload: bytes = b"v", path: str = "state.a") -> Stored:
    return Stored(path, 7, 100.0, block, payload)


def entry_of(put: Put) -> Entry:
    written = table_records.put("state.a", SOURCE, put)
    found = table_records.record(stored(f"{written.head}\r\n".encode(), written.payload))
    assert isinstance(found, Entry)
    return found


@pytest.mark.parametrize(
    "content_type", ["", "application/json", 'text/x; charset="a b"', "x\r\nNats-Rollup: all", "é"]
)
def test_a_put_is_read_back(content_type: str) -> None:
    entry = entry_of(Put(key=("state", "a"), value=b"\x00", content_type=content_type))
    assert entry == Entry(key=("state", "a"), value=b"\x00", revision=7, time=100.0, content_type=content_type)


def test_a_content_type_adds_no_header() -> None:
    written = table_records.put(
        "state.a", SOURCE, Put(key=("state", "a"), value=b"", content_type="x\r\nNats-Rollup: all")
    )
    assert "Nats-Rollup" not in [line.split(":")[0] for line in written.head.split("\r\n")]


@pytest.mark.parametrize(("ttl", "seconds"), [(1, 1), (1.001, 2), (59.5, 60), (1e30, table_records.MAX_TTL)])
def test_a_lifetime_is_rounded_up_to_what_the_server_counts(ttl: float, seconds: int) -> None:
    entry = entry_of(Put(key=("state", "a"), value=b"", ttl=ttl))
    assert entry.expires == 100.0 + seconds


def test_a_deletion_is_read_back_and_is_forgotten_after_an_hour() -> None:
    written = table_records.deletion("state.a", SOURCE)
    assert "\r\nNats-TTL: 3600\r\n" in written.head
    found = table_records.record(stored(f"{written.head}\r\n".encode(), b""))
    assert found == Gone(key=("state", "a"), revision=7, time=100.0)


def test_the_mark_of_an_expiry_is_no_value() -> None:
    block = b"NATS/1.0\r\nNats-Marker-Reason: MaxAge\r\nNats-TTL: 3600s\r\nNats-Rollup: sub\r\n\r\n"
    assert isinstance(table_records.record(stored(block, b"")), Gone)


def test_a_message_that_somebody_else_wrote_is_a_value() -> None:
    assert table_records.record(stored(b"")) == Entry(key=("state", "a"), value=b"v", revision=7, time=100.0)
    odd = b"NATS/1.0\r\nNats-TTL: 5m\r\nce-datacontenttype: %zz\r\n\r\n"
    assert table_records.record(stored(odd)) == Entry(key=("state", "a"), value=b"v", revision=7, time=100.0)


@pytest.mark.parametrize("path", ["alarm.job.1", "due.job.1", "check"])
def test_other_records_of_the_stream_are_no_entries(path: str) -> None:
    assert table_records.record(stored(b"", path=path)) is None


def test_what_the_server_says_counts_and_not_what_the_writer_claims() -> None:
    block = (
        b"NATS/1.0\r\nNats-Sequence: 1\r\nNats-Subject: mesh.default.state.shop.state.b\r\n"
        b"Nats-Time-Stamp: 1999-01-01T00:00:00Z\r\nNats-Stream: s\r\nNats-Subject: mesh.default.state.shop.state.a\r\n"
        b"Nats-Sequence: 42\r\nNats-Time-Stamp: 2026-11-22T20:05:23.905995342Z\r\n\r\n"
    )
    found = table_records.from_direct(ROOT, block, b"v")
    assert (found.path, found.sequence) == ("state.a", 42)
    assert found.time == 1795377923.905995342


@pytest.mark.parametrize(
    ("text", "time"),
    [
        (b"2026-11-22T20:05:23Z", 1795377923.0),
        (b"2026-11-22T20:05:23.5Z", 1795377923.5),
        (b"2026-11-22T20:05:23.000000001Z", 1795377923.000000001),
        (b"1970-01-01T00:00:00.25Z", 0.25),
    ],
)
def test_times_are_read_to_the_nanosecond(text: bytes, time: float) -> None:
    assert math.isclose(table_records.parse_time(text), time, rel_tol=0, abs_tol=1e-9)


def test_a_message_is_a_cloud_event() -> None:
    written = table_records.put("state.a%2Eb", SOURCE, Put(key=("state", "a.b"), value=b"1"))
    lines = written.head.split("\r\n")
    assert "ce-specversion: 1.0" in lines
    assert f"ce-id: {written.id}" in lines
    assert "ce-source: /mesh/default/state/shop" in lines
    assert "ce-type: io.meshwire.state.set.v1" in lines
    assert "ce-subject: state.a%252Eb" in lines
