from __future__ import annotations

import json

import pytest

from mesh.errors import ApiError, Code
from sidecar.http.body import BodyTooLarge, ClientGone, read_body
from sidecar.http.responses import CatchErrors, ResponseAborted, error_response, send_response


def test_a_legacy_error_has_no_details() -> None:
    status, headers, body = error_response(ApiError(Code.DIRECT_INVOKE, "no app"))
    assert status == 404
    assert body == b'{"errorCode":"ERR_DIRECT_INVOKE","message":"no app"}'
    assert headers == [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]


@pytest.mark.parametrize("metadata", [None, {"topic": "t"}])
def test_a_standardised_error_has_resource_then_error_info(metadata) -> None:
    error = ApiError(Code.PUBSUB_FORBIDDEN, "not you", resource=("pubsub", "ps"), metadata=metadata, status=418)
    status, _, body = error_response(error)
    assert status == 418
    prefix = "type.googleapis.com/google.rpc."
    assert json.loads(body) == {
        "errorCode": "ERR_PUBSUB_FORBIDDEN",
        "message": "not you",
        "details": [
            {
                "@type": prefix + "ResourceInfo",
                "resource_type": "pubsub",
                "resource_name": "ps",
                "owner": "",
                "description": "not you",
            },
            {
                "@type": prefix + "ErrorInfo",
                "reason": "DAPR_PUBSUB_FORBIDDEN",
                "domain": "dapr.io",
                "metadata": metadata,
            },
        ],
    }


def test_without_a_resource_only_the_error_info_is_there() -> None:
    error = ApiError(Code.PUBSUB_NOT_FOUND, "none", extra={"failedEntries": []})
    content = json.loads(error_response(error)[2])
    assert [detail["@type"].rpartition(".")[2] for detail in content["details"]] == ["ErrorInfo"]
    assert content["failedEntries"] == []


def test_markup_is_escaped_as_go_does() -> None:
    body = error_response(ApiError(Code.INTERNAL, "<a>&\u2028\u2029“ä"))[2]
    assert rb'"message":"\u003ca\u003e\u0026\u2028\u2029' + "“ä".encode() in body
    assert json.loads(body)["message"] == "<a>&\u2028\u2029“ä"


async def caught(app):
    sent = []

    async def send(message):
        sent.append(message)

    await CatchErrors(app)({"type": "http", "method": "GET", "path": "/a"}, None, send)
    return sent[0]["status"], sent[1]["body"]


def raising(error: Exception):
    async def app(scope, receive, send):
        raise error

    return app


async def test_an_api_error_becomes_its_response(caplog) -> None:
    error = ApiError(Code.DIRECT_INVOKE, "no app")
    assert await caught(raising(error)) == (404, error_response(error)[2])
    assert not caplog.records


async def test_a_body_too_large_is_an_error_of_reading_with_daprs_words() -> None:
    status, body = await caught(raising(BodyTooLarge(7)))
    assert status == 400
    assert json.loads(body)["errorCode"] == "ERR_BODY_READ"
    assert b"stream too large" in body


async def test_anything_else_is_logged_once_and_tells_no_internals(caplog) -> None:
    status, body = await caught(raising(KeyError("s3cret")))
    assert status == 500
    assert json.loads(body)["errorCode"] == "ERROR"
    assert b"s3cret" not in body
    assert [record.exc_info[0] for record in caplog.records] == [KeyError]


@pytest.mark.parametrize("error", [KeyError("x"), ApiError(Code.INTERNAL, "x")])
async def test_after_the_start_of_a_response_it_is_aborted(error) -> None:
    async def app(scope, receive, send):
        await send_response(send, 204, [], b"")
        raise error

    with pytest.raises(ResponseAborted):
        await caught(app)


async def test_a_client_that_is_gone_gets_nothing(caplog) -> None:
    with pytest.raises(ResponseAborted):
        await caught(raising(ClientGone()))
    assert not caplog.records


# The body


def receiver(*pieces: bytes | None):
    """`None` is a hang-up. Fails when it is asked for more than there is."""
    left = list(pieces)

    async def receive():
        piece = left.pop(0)
        if piece is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": piece, "more_body": bool(left)}

    return receive


def scope(length: int | None = None):
    return {"headers": [(b"host", b"a")] + ([(b"content-length", b"%d" % length)] if length is not None else [])}


async def test_a_body_in_one_piece_is_not_copied() -> None:
    piece = bytes(1000)
    assert await read_body(receiver(piece), 1000, scope()) is piece


async def test_a_body_in_pieces_is_joined() -> None:
    assert await read_body(receiver(b"ab", b"", b"c"), 3, scope(3)) == b"abc"
    assert await read_body(receiver(b"ab", b"c"), 0, scope(3)) == b"abc"


@pytest.mark.parametrize(
    ("pieces", "length"),
    [((), 4), ((b"abcd",), None), ((b"ab", b"cd"), None)],  # a declared length is refused before anything is read
)
async def test_a_body_too_large_is_refused_at_once(pieces, length) -> None:
    with pytest.raises(BodyTooLarge, match="stream too large") as caught:
        await read_body(receiver(*pieces), 3, scope(length))
    assert caught.value.limit == 3


@pytest.mark.parametrize("pieces", [(None,), (b"ab", None)])
async def test_a_hang_up_in_the_body(pieces) -> None:
    with pytest.raises(ClientGone):
        await read_body(receiver(*pieces), 3, scope())
