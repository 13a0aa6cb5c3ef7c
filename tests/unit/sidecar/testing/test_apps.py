"""What the fixture `meshwire` keeps of the requests that an app got."""

import pytest
from starlette.responses import Response

from sidecar.testing.apps import Recorder

SCOPE = {"type": "http", "method": "POST", "path": "/orders", "headers": [(b"A", b"1")]}


async def receive():
    return {"type": "http.request", "body": b"asked", "more_body": False}


async def test_a_request_is_seen_before_anybody_has_its_answer():
    recorder = Recorder(Response(b"answered", 202))
    seen_by_then = []

    async def send(message):
        seen_by_then.append((message["type"], len(recorder.seen)))

    await recorder(SCOPE, receive, send)
    assert seen_by_then == [("http.response.start", 0), ("http.response.body", 1)]
    assert recorder.seen == [("POST", "/orders", {"a": "1"}, b"", 202, b"answered")]


async def test_a_request_without_an_answer_is_seen_once():
    async def fail(_scope, receive, _send):
        await receive()
        raise ValueError

    recorder = Recorder(fail)
    with pytest.raises(ValueError):
        await recorder(SCOPE, receive, receive)
    assert recorder.seen == [("POST", "/orders", {"a": "1"}, b"asked", 500, b"")]
