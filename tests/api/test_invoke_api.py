"""Service invocation at the API: what a request becomes, and what comes back."""

import asyncio
import contextlib
import json

import pytest

from brokers.memory_requests import MemoryRequests
from mesh.clock import SystemClock
from mesh.errors import ApiError, BrokerError
from mesh.invocation import Callee, Caller
from mesh.ports import Peer, PeerLost, Request, Response
from sidecar.api.invoke import PATIENCE, InvokeApi
from sidecar.http.body import BodyTooLarge, ClientGone
from tests.e2e.mesh import App, exchange

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
ME = Peer("default", "app1")


class Requests:
    """Answers calls of any app with `answer`; keeps what was asked."""

    def __init__(self, answer):
        self.answer = answer
        self.asked: list[Request] = []

    async def request(self, target, request):
        self.asked.append(request)
        return self.answer(request) if callable(self.answer) else self.answer


class Client:
    """An ASGI server's end of one request."""

    def __init__(self, answer, *, limit=0):
        self.requests = Requests(answer)
        self.sent = []
        self.incoming = asyncio.Queue()
        self.api = InvokeApi(Caller(ME, self.requests, Callee(ME, None), SystemClock()), limit)

    async def call(self, method="GET", path="/v1.0/invoke/b/method/x", headers=(), query=b""):
        scope = {
            "type": "http",
            "method": method,
            "raw_path": path.encode(),
            "query_string": query,
            "headers": [(name.encode(), value.encode()) for name, value in headers],
        }
        await self.api(scope, self.incoming.get, self.send)

    async def send(self, message):
        self.sent.append(message)

    def feed(self, body, *, more=False):
        self.incoming.put_nowait({"type": "http.request", "body": body, "more_body": more})

    def hang_up(self):
        self.incoming.put_nowait({"type": "http.disconnect"})

    @property
    def headers(self):
        return dict(self.sent[0]["headers"])


def text_of(error):
    return str(error.value)


async def test_a_body_of_known_length_is_read_whole():
    client = Client(Response(status=200, body=b"ok"))
    client.feed(b"hel", more=True)
    client.feed(b"lo")
    await client.call("POST", headers=[("content-length", "5"), ("x", "1")], query=b"a=%20")
    (asked,) = client.requests.asked
    assert (asked.method, asked.path, asked.headers, asked.body) == ("POST", "/x?a=%20", [(b"x", b"1")], b"hello")
    assert client.sent[0] == {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]}
    assert client.sent[1]["body"] == b"ok"


async def test_a_body_that_comes_slowly_is_read_by_one_reader_only():
    client = Client(Response(status=200))
    client.feed(b"hel", more=True)
    call = asyncio.create_task(client.call("POST", headers=[("content-length", "5")]))
    await asyncio.sleep(2 * PATIENCE)
    client.feed(b"l", more=True)
    await asyncio.sleep(0.01)
    client.feed(b"o")
    await asyncio.wait_for(call, 30)
    assert client.requests.asked[0].body == b"hello"


@pytest.mark.parametrize(
    ("headers", "kept"),
    [
        ([("transfer-encoding", "chunked")], []),
        ([("content-length", "200000")], [(b"content-length", b"200000")]),
    ],
)
async def test_other_bodies_are_streamed(headers, kept):
    client = Client(Response(status=200))
    await client.call("POST", headers=headers)  # without a byte of the body
    (asked,) = client.requests.asked
    assert asked.headers == kept
    client.feed(b"x" * 200_000)
    assert [len(piece) async for piece in asked.body] == [200_000]


async def test_a_streamed_body_that_breaks_off():
    client = Client(Response(status=200))
    await client.call("POST", headers=[("transfer-encoding", "chunked")])
    client.feed(b"x", more=True)
    client.hang_up()
    with pytest.raises(ClientGone):
        async for _ in client.requests.asked[0].body:
            pass


async def test_the_limit_of_the_body():
    client = Client(Response(status=200), limit=10)
    with pytest.raises(ApiError) as error:
        await client.call("POST", headers=[("content-length", "11")])
    assert error.value.status == 500
    assert (
        text_of(error)
        == "failed to invoke, id: b, err: stream too large: the body is longer than 10 bytes (--max-body-size)"
    )
    assert client.requests.asked == []


async def test_the_limit_of_a_streamed_body():
    client = Client(Response(status=200), limit=10)
    await client.call("POST", headers=[("transfer-encoding", "chunked")])
    client.feed(b"x" * 10, more=True)
    client.feed(b"x", more=True)
    body = client.requests.asked[0].body
    assert await anext(body) == b"x" * 10
    for _ in range(2):
        with pytest.raises(BodyTooLarge):
            await anext(body)


class Body:
    """A body of two pieces that notes when it is closed."""

    def __init__(self):
        self.left = 2
        self.closed = False

    def __aiter__(self):
        return self

    async def __anext__(self):
        if not self.left:
            raise StopAsyncIteration
        self.left -= 1
        return b"x"

    async def aclose(self):
        self.closed = True


@pytest.mark.parametrize(
    ("method", "status", "left"), [("GET", 200, 0), ("HEAD", 200, 2), ("GET", 304, 2), ("GET", 700, 2)]
)
async def test_a_streamed_answer_is_closed_whether_it_is_read_or_not(method, status, left):
    body = Body()
    client = Client(Response(status=status, body=body))
    with contextlib.suppress(ApiError):
        await client.call(method)
    assert (body.left, body.closed) == (left, True)


async def test_a_streamed_answer_is_closed_when_the_client_does_not_take_it():
    body = Body()
    client = Client(Response(status=200, body=body))

    async def send(message):
        if message.get("body"):
            await asyncio.Event().wait()

    client.send = send
    call = asyncio.create_task(client.call())
    await asyncio.sleep(0.01)
    client.hang_up()
    await asyncio.wait({call}, timeout=30)
    assert isinstance(call.exception(), ClientGone)
    assert body.closed


async def test_a_streamed_answer():
    closed = False

    async def body():
        nonlocal closed
        try:
            yield b"a"
            yield b""
            yield b"b"
        finally:
            closed = True

    client = Client(Response(status=200, body=body()))
    await client.call()
    assert [message.get("body") for message in client.sent[1:]] == [b"a", b"b", b""]
    assert b"content-length" not in client.headers
    assert closed


async def test_a_streamed_answer_that_breaks_off():
    async def body():
        yield b"a"
        raise PeerLost("gone")

    client = Client(Response(status=200, body=body()))
    with pytest.raises(ApiError):
        await client.call()
    assert client.sent[-1] == {"type": "http.response.body", "body": b"a", "more_body": True}


async def test_hanging_up_closes_a_streamed_answer():
    closed = asyncio.Event()

    async def body():
        try:
            yield b"a"
            await asyncio.Event().wait()
        finally:
            closed.set()

    client = Client(Response(status=200, body=body()))
    call = asyncio.create_task(client.call())
    await asyncio.sleep(0.01)
    client.hang_up()
    await asyncio.wait({call}, timeout=30)
    assert isinstance(call.exception(), ClientGone)
    assert closed.is_set()


async def test_hanging_up_cancels_a_call_that_waits():
    cancelled = asyncio.Event()

    class Waiting:
        async def request(self, target, request):
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

    client = Client(None)
    client.api = InvokeApi(Caller(ME, Waiting(), Callee(ME, None), SystemClock()), 0)
    client.feed(b"")
    client.hang_up()
    call = asyncio.create_task(client.call())
    await asyncio.wait({call}, timeout=30)
    assert isinstance(call.exception(), ClientGone)
    assert cancelled.is_set()


async def test_cancelling_from_outside_is_no_hanging_up():
    client = Client(None)

    class Waiting:
        async def request(self, target, request):
            await asyncio.Event().wait()

    client.api = InvokeApi(Caller(ME, Waiting(), Callee(ME, None), SystemClock()), 0)
    call = asyncio.create_task(client.call())
    await asyncio.sleep(0.01)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


@pytest.mark.parametrize(
    ("response", "cause"),
    [
        (Response(status=99), "the status 99"),
        (Response(status=101), "the status 101"),
        (Response(status=600), "the status 600"),
        (Response(status=200, headers=[(b"x", b"a\r\nb: c")]), "control character"),
        (Response(status=200, headers=[(b"x\r\ny", b"a")]), "no header name"),
    ],
)
async def test_answers_that_no_client_may_get(response, cause):
    client = Client(response)
    with pytest.raises(ApiError) as error:
        await client.call()
    assert text_of(error).startswith("failed to invoke, id: b, err: ")
    assert cause in text_of(error)
    assert client.sent == []


@pytest.mark.parametrize(
    ("method", "status", "headers", "body", "length", "sent"),
    [
        ("GET", 200, [(b"Content-Length", b"99")], b"ok", b"2", b"ok"),
        ("GET", 200, [(b"content-length", b"x"), (b"content-length", b"1")], b"ok", b"2", b"ok"),
        ("GET", 200, [], b"", b"0", b""),
        ("GET", 204, [(b"content-length", b"0")], b"", None, b""),
        ("GET", 204, [], b"none", None, b""),
        ("GET", 304, [(b"content-length", b"99")], b"", b"99", b""),
        ("HEAD", 200, [(b"content-length", b"99")], b"", b"99", b""),
        ("HEAD", 200, [], b"", None, b""),
    ],
)
async def test_the_length_of_an_answer(method, status, headers, body, length, sent):
    client = Client(Response(status=status, headers=headers, body=body))
    await client.call(method)
    assert client.headers.get(b"content-length") == length
    assert client.sent[1]["body"] == sent


@pytest.mark.parametrize(
    ("status", "given", "type_"),
    [(200, [], None), (404, [], b"application/json"), (500, [(b"content-type", b"a/b")], b"a/b")],
)
async def test_an_error_without_a_content_type_is_json(status, given, type_):
    client = Client(Response(status=status, headers=given))
    await client.call()
    assert client.headers.get(b"content-type") == type_


@pytest.mark.parametrize(
    ("given", "forwarded"),
    [
        ([("traceparent", TRACEPARENT)], TRACEPARENT),
        ([("traceparent", "cc" + TRACEPARENT[2:] + "-what-the-future-will-be-like")], TRACEPARENT),
        ([("traceparent", TRACEPARENT)] * 2, None),
        ([("traceparent", TRACEPARENT + "-x")], None),
        ([("traceparent", "garbage"), ("tracestate", "a=1")], None),
    ],
)
async def test_the_trace_goes_on_in_canonical_form(given, forwarded):
    client = Client(Response(status=200))
    await client.call(headers=[*given, ("baggage", "a=1"), ("baggage", "b=2")])
    asked = [(name.decode(), value.decode()) for name, value in client.requests.asked[0].headers]
    assert [value for name, value in asked if name == "traceparent"] == ([forwarded] if forwarded else [])
    assert "tracestate" not in dict(asked)
    assert [value for name, value in asked if name == "baggage"] == ["a=1,b=2"]
    assert client.headers.get(b"traceparent") == (forwarded.encode() if forwarded else None)
    assert client.headers[b"baggage"] == b"a=1,b=2"


async def test_an_apps_own_traceparent_stays():
    client = Client(Response(status=200, headers=[(b"traceparent", b"own")]))
    await client.call(headers=[("traceparent", TRACEPARENT)])
    assert [value for name, value in client.sent[0]["headers"] if name == b"traceparent"] == [b"own"]


async def test_invalid_baggage():
    client = Client(Response(status=200))
    await client.call(headers=[("baggage", "=")])
    assert client.sent[0]["status"] == 400
    assert b"invalid baggage header" in client.sent[1]["body"]


# In a whole sidecar


async def test_an_app_calls_itself(start):
    async with App(answer=lambda request: (207, request.body + b"!")) as app:
        api = await start(app=app)
        answer = await api.call("POST", "/v1.0/invoke/app1/method/a%2Fb", [("dapr-caller-app-id", "evil")], b"hi")
        assert (answer.status, answer.body) == (207, b"hi!")
        (request,) = app.events
        assert (request.path, request.headers["dapr-caller-app-id"]) == ("/a/b", "app1")


async def test_a_broker_that_does_not_let_us_serve_at_first(start, monkeypatch, caplog):
    serve, refusals = MemoryRequests.serve, iter([BrokerError("no permission")])

    async def refuse_once(requests, *arguments, **options):
        for refusal in refusals:
            raise refusal
        return await serve(requests, *arguments, **options)

    monkeypatch.setattr(MemoryRequests, "serve", refuse_once)
    async with App() as app:
        api = await start(app=app)
        assert (await api.call("GET", "/v1.0/invoke/app1/method/x")).status == 200
    assert "other apps cannot call this one, again in 0.5 s: no permission" in caplog.messages


async def test_nobody_is_named(start):
    api = await start()
    for method, path in (("GET", "/"), ("DELETE", "/v1.0/publish/pubsub/A"), ("POST", "/v1.0/invoke/b")):
        answer = await api.call(method, path)
        assert answer.status == 404
        assert answer.json == {
            "errorCode": "ERR_DIRECT_INVOKE",
            "message": "failed getting app id either from the URL path or the header dapr-app-id",
        }


async def test_invocation_can_be_denied(start, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(
        "apiVersion: dapr.io/v1alpha1\nkind: Configuration\nmetadata: {name: c}\n"
        "spec: {api: {denied: [{name: invoke, version: v1, protocol: http}]}}\n"
    )
    api = await start(f"--config={config}")
    answer = await api.call("GET", "/v1.0/invoke/b/method/x")
    assert (answer.status, answer.body) == (404, b"404 page not found\n")
    assert (await api.call("DELETE", "/v1.0/healthz")).status == 405


async def test_a_client_that_hangs_up_leaves_no_trace_in_the_log(start, caplog):
    async def answer(request):
        await asyncio.sleep(10)

    async with App(answer=answer) as app:
        api = await start(app=app)
        _, writer = await asyncio.open_connection("127.0.0.1", api.port)
        writer.write(b"GET /v1.0/invoke/app1/method/x HTTP/1.1\r\nhost: localhost\r\n\r\n")
        await asyncio.sleep(0.1)
        writer.transport.abort()
        await asyncio.sleep(0.2)
        raw = await exchange(api.port, b"GET /v1.0/healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        assert raw.startswith(b"HTTP/1.1 204")
    assert not [record for record in caplog.records if record.exc_info]


async def test_urls_need_no_configuration(start):
    async with App(answer=lambda request: (203, b"")) as server:
        api = await start()
        path = f"/v1.0/invoke/http://127.0.0.1:{server.port}/method/a/b?c"
        assert (await api.call("POST", path, body=b"x")).status == 203
        assert server.events[0].path == "/a/b?c"
        assert not [name for name in server.events[0].headers if name.startswith("dapr-")]
        answer = await api.call("GET", "/v1.0/invoke/http%3A%2F%2F169.254.169.254/method/latest")
        assert answer.status == 500
        assert "may not be called" in json.loads(answer.body)["message"]


@pytest.mark.parametrize(
    ("version", "te", "end"),
    [
        ("1.1", "te: trailers\r\n", b"2\r\nok\r\n0\r\nx-sum: 1\r\n\r\n"),
        ("1.1", "", b"content-length: 2\r\nconnection: close\r\n\r\nok"),
        ("1.0", "te: trailers\r\n", b"ok"),
    ],
)
async def test_trailers_of_a_whole_answer(start, version, te, end):
    async def serve(reader, writer):
        asked = await reader.readline()
        while (await reader.readline()).strip():
            pass
        if b"/dapr/" in asked:
            writer.write(b"HTTP/1.1 404 No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        else:
            head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n"
            writer.write(head + b"X-Sum: 1\r\nSet-Cookie: a\r\nConnection: x\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        api = await start(f"--app-port={server.sockets[0].getsockname()[1]}")
        request = f"GET /v1.0/invoke/app1/method/x HTTP/{version}\r\nhost: localhost\r\n{te}connection: close\r\n\r\n"
        raw = await exchange(api.port, request.encode())
    finally:
        server.close()
    assert raw.startswith(b"HTTP/1.1 200")
    assert raw.endswith(end)
