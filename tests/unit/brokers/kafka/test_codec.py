"""Events as records of Kafka (CloudEvents Kafka protocol binding), and positions."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brokers.kafka import codec
from mesh import addressing
from mesh.errors import BrokerError, InvalidEvent
from mesh.ports import Message, Mode


class Stored(NamedTuple):
    """As aiokafka has it."""

    value: bytes | None
    key: bytes | None = None
    headers: tuple[tuple[str, bytes], ...] = ()
    timestamp: int = 1_700_000_000_123
    partition: int = 3
    offset: int = 42


EVENT = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t"}


def record(value: bytes | None, *headers: tuple[str, bytes], key: bytes | None = None) -> codec.KafkaRecord:
    return codec.KafkaRecord(Stored(value, key, headers), "orders")


def foreign(**attributes: str) -> tuple[tuple[str, bytes], ...]:
    return tuple((f"ce_{name}", value.encode()) for name, value in (EVENT | attributes).items())


def test_a_binary_event_is_headers_in_plain_utf8() -> None:
    attributes = EVENT | {"subject": 'ž %41 "q"', "datacontenttype": "text/plain", "yes": True, "n": -7}
    key, value, headers = codec.encode(
        Message(mode=Mode.BINARY, payload=b"x", attributes=attributes, key="k", headers={"traceparent": "00"})
    )
    assert (key, value) == (b"k", b"x")
    assert dict(headers) == {
        "ce_specversion": b"1.0",
        "ce_id": b"1",
        "ce_source": b"/s",
        "ce_type": b"t",
        "ce_subject": 'ž %41 "q"'.encode(),
        "content-type": b"text/plain",
        "ce_yes": b"true",
        "ce_n": b"-7",
        "traceparent": b"00",
    }


def test_what_another_producer_wrote_is_read() -> None:
    found = record(b"{}", *foreign(subject="ž"), ("Content-Type", b"application/json"), ("x-mine", b"yes"))
    assert found.mode is Mode.BINARY
    assert found.attributes == EVENT | {"subject": "ž", "datacontenttype": "application/json"}
    assert found.headers == {"x-mine": "yes"}
    assert found.content_type == "application/json"
    structured = record(b"{}", ("content-type", b"Application/CloudEvents+JSON; charset=utf-8"))
    assert (structured.mode, structured.attributes) == (Mode.STRUCTURED, {})
    plain = record(b'{"specversion":"1.0"}')
    assert (plain.mode, plain.content_type, plain.key) == (Mode.RAW, None, None)
    assert record(None).payload == b"", "a tombstone is no event; it is read as nothing"


@pytest.mark.parametrize(
    "headers",
    [
        (("ce_id", b"1"),),
        (*foreign(), ("ce_id", b"2")),
        (*foreign(), ("CE_ID", b"1")),
        (*foreign(), ("ce_subject", b"\xff\xfe")),
        (*foreign(), ("ce_my-name", b"x")),
        (*foreign(), ("ce_data", b"x")),
        foreign(specversion="0.3"),
        foreign(time="yesterday"),
        tuple(pair for pair in foreign() if pair[0] != "ce_type"),
    ],
)
def test_headers_that_are_no_event_are_refused_when_they_are_looked_at(headers: tuple[tuple[str, bytes], ...]) -> None:
    found = record(b"{}", *headers)
    assert found.payload == b"{}"
    with pytest.raises(InvalidEvent):
        _ = found.attributes


@pytest.mark.parametrize("name", ["ce_id", "CE_x", "content-type", "Meshwire-TTL"])
def test_a_header_that_would_be_read_as_the_events_is_refused(name: str) -> None:
    with pytest.raises(BrokerError, match="cannot be stored"):
        codec.encode(Message(mode=Mode.RAW, payload=b"", headers={name: "x"}))


def test_headers_by_which_the_mesh_says_whom_an_event_is_for_go_along() -> None:
    given = {addressing.ONLY_FOR: "billing", addressing.REDRIVEN: "run"}
    _, value, headers = codec.encode(Message(mode=Mode.RAW, payload=b"", headers=given))
    assert record(value, *headers).headers == given


def test_the_key_is_the_records_or_else_the_partitionkey() -> None:
    assert record(b"", key="ключ".encode()).key == "ключ"
    assert record(b"", key=b"").key == ""
    assert record(b"", key=b"\xff").key == "\ufffd"
    assert record(b"{}", *foreign(partitionkey="p")).key == "p"
    json = ("content-type", b"application/cloudevents+json")
    assert record(b'{"partitionkey":7}', json).key == "7"
    assert record(b"{", json).key is None


@given(
    times=st.tuples(st.integers(0, 10**13 - 1), st.integers(0, 10**13 - 1)),
    partitions=st.tuples(st.integers(0, 10**5 - 1), st.integers(0, 10**5 - 1)),
    offset=st.integers(0, 2**62),
)
def test_a_position_orders_by_time_and_then_by_partition(
    times: tuple[int, int], partitions: tuple[int, int], offset: int
) -> None:
    one, other = (codec.position(*place, offset) for place in zip(times, partitions, strict=True))
    assert one.isdigit()
    assert len(one) <= codec.MAX_DIGITS
    assert (int(one) < int(other)) == ((times[0], partitions[0]) < (times[1], partitions[1]))
    assert codec.place(one) == (times[0], partitions[0], offset % 10**codec.OFFSET_DIGITS)


@pytest.mark.parametrize(("ttl", "late"), [(b"1.5", 1.6), (b"0", 0.0)])
def test_what_has_expired_is_told_by_the_servers_time(ttl: bytes, late: float) -> None:
    stored = record(b"", (codec.TTL, ttl)).stored
    assert codec.is_expired(stored, stored.timestamp / 1000 + late)
    assert not codec.is_expired(stored, stored.timestamp / 1000 - 0.1)


@pytest.mark.parametrize("ttl", [b"", b"soon", b"\xff", b"nan"])
def test_a_lifetime_that_is_no_number_is_none(ttl: bytes) -> None:
    assert not codec.is_expired(record(b"", (codec.TTL, ttl)).stored, 1e12)
