from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brokers.nats import codec, request_codec
from mesh.errors import MessageTooLarge
from mesh.ports import Peer, Request, Response

SHOP = Peer("default", "shop")

headers = st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=60)), max_size=8)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


def lines(block: bytes) -> list[bytes]:
    """Of a block that a server takes: it begins and ends as it must, with no line break but between headers."""
    assert block.startswith(b"NATS/1.0\r\n")
    assert block.endswith(b"\r\n\r\n")
    found = block[:-4].split(b"\r\n")[1:]
    assert not any(b"\r" in line or b"\n" in line for line in found)
    return found


@given(texts, texts, headers)
def test_calls_come_back_as_they_were_and_stay_on_their_line(
    method: str, path: str, pairs: list[tuple[bytes, bytes]]
) -> None:
    request = Request(method=method, path=path, headers=pairs)
    block = request_codec.encode_request(request, SHOP, streamed=False)
    assert not request_codec.is_streamed(block)
    assert block.isascii()
    names = [line.partition(b":")[0] for line in lines(block)]
    assert names[:5] == [b"Meshwire-Request", b"ce-specversion", b"ce-type", b"ce-source", b"ce-id"]
    assert set(names[5:]) <= {b"ce-datacontenttype"}
    decoded = request_codec.decode_request(block, b"body", SHOP)
    assert (decoded.method, decoded.path, decoded.caller) == (method, path, SHOP)
    assert [*decoded.headers] == pairs
    assert decoded.body == b"body"


@given(st.integers(100, 999), headers, headers)
def test_answers_come_back_as_they_were(
    status: int, pairs: list[tuple[bytes, bytes]], trailers: list[tuple[bytes, bytes]]
) -> None:
    response = Response(status=status, headers=pairs, trailers=trailers)
    block = request_codec.encode_response(response, SHOP, streamed=True)
    assert request_codec.is_streamed(block)
    lines(block)
    decoded = request_codec.decode_response(block, b"")
    assert (decoded.status, [*decoded.headers], [*decoded.trailers]) == (status, pairs, trailers)


@given(st.binary(max_size=200))
def test_whatever_comes_is_read_or_refused(value: bytes) -> None:
    for name in (b"Meshwire-Request", b"Meshwire-Response", b"ce-datacontenttype", b"Meshwire-Frame"):
        block = b"NATS/1.0\r\n%b: %b\r\n\r\n" % (name, value)
        for decode in (
            lambda block: request_codec.decode_request(block, b"", SHOP),
            lambda block: request_codec.decode_response(block, b""),
        ):
            try:
                decode(block)
            except request_codec.Malformed as refusal:
                assert "cannot be read" in str(refusal) or "no CloudEvent" in str(refusal)
        frame = request_codec.parse_frame(block)
        if frame is not None:
            request_codec.error_text(frame)


@pytest.mark.parametrize("content_type", [b'text/plain; x="a b"', b"odd \xfc", b"a/b\r\nNats-TTL: 1"])
def test_the_attributes_of_a_call_are_those_of_a_cloudevent(content_type: bytes) -> None:
    request = Request(method="GET", path="/", headers=[(b"Content-Type", content_type)])
    block = request_codec.encode_request(request, Peer("default", "zoë"), streamed=False)
    lines(block)
    attributes = codec.decode_attributes(codec.parse_block(block))
    assert attributes.pop("id")
    stated = {"datacontenttype": content_type.decode()} if content_type.startswith(b"text") else {}
    assert attributes == stated | {
        "specversion": "1.0",
        "type": "io.meshwire.invocation.request.v1",
        "source": "zoë",
    }


@pytest.mark.parametrize("text", ["", "plain", "ü % \r\n\x00", "x" * 5000])
def test_an_error_frame_says_what_went_wrong_in_one_line(text: str) -> None:
    block = request_codec.error(text)
    assert len(lines(block)) == 1
    frame = request_codec.parse_frame(block)
    assert frame is not None
    assert frame.kind == b"error"
    assert request_codec.error_text(frame) == text[: request_codec.MAX_ERROR_TEXT]


def test_a_header_block_has_a_limit() -> None:
    request = Request(method="GET", path="/", headers=[(b"x", bytes(request_codec.MAX_HEADER_BLOCK))])
    with pytest.raises(MessageTooLarge):
        request_codec.encode_request(request, SHOP, streamed=False)


@pytest.mark.parametrize(
    ("target", "kind"), [("stock", "invocation"), ("bindings", "invocation"), ("$bindings.stock", "binding")]
)
def test_what_kind_of_event_a_call_is(target: str, kind: str) -> None:
    request = request_codec.encode_request(Request(method="POST", path="/"), SHOP, streamed=False, target=target)
    assert f"\r\nce-type: io.meshwire.{kind}.request.v1\r\n".encode() in request
    response = request_codec.encode_response(Response(status=200), Peer("default", target), streamed=False)
    assert f"\r\nce-type: io.meshwire.{kind}.response.v1\r\n".encode() in response
