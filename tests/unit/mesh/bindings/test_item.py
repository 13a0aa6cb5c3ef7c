"""Items as events, and back."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from mesh.bindings import item as items
from mesh.bindings.headers import safe
from mesh.bindings.item import METADATA, OCTETS, Trigger
from mesh.codec.attributes import check_all
from mesh.errors import InvalidEvent, MessageTooLarge
from mesh.event import Attributes
from mesh.ports import Message, Mode
from mesh.ports.bindings import Item


class Stored:
    """A message as a broker gives it back."""

    position, topic, time = "1", "t", 0.0
    headers: Mapping[str, str] = {}

    def __init__(self, message: Message) -> None:
        self.mode = message.mode
        self.attributes: Attributes = {name: str(value) for name, value in message.attributes.items()}
        self.payload = message.payload
        self.content_type = message.content_type


def stored(item: Item, binding: str = "b") -> Message:
    message = items.message(binding, item, 1_700_000_000.0)
    check_all(message.attributes)
    return message


def test_an_item_becomes_an_event() -> None:
    message = stored(Item(data=b"1", metadata={"A": "ü"}, id="7", key="k", content_type="text/plain", time=0.0))
    assert message.attributes == {
        "specversion": "1.0",
        "id": "7",
        "source": "/bindings/b",
        "type": "io.meshwire.binding.triggered.v1",
        "time": "1970-01-01T00:00:00Z",
        "datacontenttype": "text/plain",
        METADATA: '{"A":"\\u00fc"}',
        "partitionkey": "k",
    }
    assert (message.mode, message.payload, message.key) == (Mode.BINARY, b"1", "k")
    assert message.dedupe_id == "11:/bindings/b7"


def test_an_item_without_a_name() -> None:
    first, second = stored(Item(data=b"")), stored(Item(data=b""))
    assert first.attributes["id"] != second.attributes["id"]
    assert first.attributes["time"] == "2023-11-14T22:13:20Z"
    assert first.dedupe_id is first.key is None


@pytest.mark.parametrize("text", ["", "\x00", "a\r\nb: c", "\x7f", "\ud800", "\u2028", "ü", "%", '"\\'])
def test_whatever_a_source_says_survives(text: str) -> None:
    metadata = {text: text, "plain": text}
    message = stored(
        Item(data=b"\xff\x00", metadata=metadata, id=text, key=text, content_type=text), binding=text or "b"
    )
    whole = {name.replace("\ud800", "?"): value.replace("\ud800", "?") for name, value in metadata.items()}
    assert items.trigger(Stored(message)) == Trigger(b"\xff\x00", whole)
    assert message.attributes["datacontenttype"] == OCTETS


def test_metadata_that_no_app_would_take() -> None:
    items.check(stored(Item(data=b"", metadata={"a": "ü" * 5_000})))
    with pytest.raises(MessageTooLarge, match="32768 can be sent"):
        items.check(stored(Item(data=b"", metadata={"a": "ü" * 10_000})))


@pytest.mark.parametrize("moment", [1e300, -1e300, float("nan"), float("inf"), 253_402_300_800.0])
def test_a_time_that_no_calendar_has_is_now(moment: float) -> None:
    assert stored(Item(data=b"", time=moment)).attributes["time"] == "2023-11-14T22:13:20Z"


def test_what_somebody_else_publishes() -> None:
    structured = Message(
        mode=Mode.STRUCTURED,
        payload=b'{"specversion":"1.0","id":"1","source":"/","type":"t","bindingmetadata":"{\\"a\\":\\"b\\"}","data":{"n":1}}',
    )
    assert items.trigger(Stored(structured)) == Trigger(b'{"n":1}', {"a": "b"})
    assert items.trigger(Stored(Message(mode=Mode.RAW, payload=b"\xff"))) == Trigger(b"\xff", {})


@pytest.mark.parametrize(
    "message",
    [
        Message(mode=Mode.STRUCTURED, payload=b"{}"),
        Message(mode=Mode.BINARY, payload=b"", attributes={METADATA: "[]"}),
        Message(mode=Mode.BINARY, payload=b"", attributes={METADATA: '{"a": 1}'}),
    ],
)
def test_what_is_no_event(message: Message) -> None:
    with pytest.raises(InvalidEvent):
        items.trigger(Stored(message))


def test_metadata_as_headers() -> None:
    metadata = {"a": "1\r\nhost: evil", "b c": "2", "": "3", "d:": "4", "e": "ü\ud800", "f": "\t"}
    assert safe(metadata) == [("a", "1%0D%0Ahost: evil"), ("e", "ü%ED%A0%80"), ("f", "%09")]
