from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brokers.nats import codec
from mesh.ports import Message, Mode

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@given(texts)
def test_a_key_is_stored_and_found_in_every_mode(key: str) -> None:
    event: dict[str, str | int | bool] = {"specversion": "1.0", "id": "1", "source": "/", "type": "t"}
    for message in (
        Message(mode=Mode.RAW, payload=b"any", key=key),
        Message(mode=Mode.STRUCTURED, payload=b"{}", key=key),
        Message(mode=Mode.BINARY, payload=None, attributes=event, key=key),
        Message(mode=Mode.BINARY, payload=None, attributes=event | {"partitionkey": key}, key=key),
    ):
        assert codec.key(codec.encode(message, "1"), b"") == key


def test_the_key_that_the_publisher_gave_goes_before_the_attribute() -> None:
    attributes: dict[str, str | int | bool] = {
        "specversion": "1.0", "id": "1", "source": "/", "type": "t", "partitionkey": "attribute",
    }  # fmt: skip
    block = codec.encode(Message(mode=Mode.BINARY, payload=b"", attributes=attributes, key="given"), "1")
    assert codec.key(block, b"") == "given"


@pytest.mark.parametrize(
    ("block", "payload", "key"),
    [
        (b"NATS/1.0\r\nCE-PartitionKey:a%20b\r\n\r\n", b"", "a b"),
        (b'NATS/1.0\r\nce-partitionkey: "quoted"\r\n\r\n', b"", "quoted"),
        (b"NATS/1.0\r\nce-partitionkey: 100%\r\n\r\n", b"", "100%"),
        (b"NATS/1.0\r\n\r\n", b'{"specversion":"1.0","partitionkey":"inside"}', "inside"),
        (b"", b'{"partitionkey":7}', "7"),
        (b"", b'{"partitionkey":["no key"]}', None),
        (b"", b'{"partitionkey":null}', None),
        (b"", b"\xff\xfe", None),
        (b"", b"", None),
    ],
)
def test_keys_of_foreign_publishers(block: bytes, payload: bytes, key: str | None) -> None:
    assert codec.key(block, payload) == key
