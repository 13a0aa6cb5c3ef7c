"""The two halves of an invocation, over the broker in memory."""

import asyncio

import pytest

from brokers.memory_requests import MemoryExchange, MemoryRequests
from mesh.errors import AppError, MeshError
from mesh.invocation import Callee, Caller
from mesh.ports import NoResponder, Peer, PeerLost, Request, Response
from tests.virtual_clock import VirtualClock

A, B = Peer("ns", "a"), Peer("ns", "b")
GET = Request(method="GET", path="/x?q")


class Channel:
    """An app that answers what it is told to; notes what it was asked."""

    def __init__(self, answer=None):
        self.answer = answer or Response(status=200, body=b"ok")
        self.calls = []

    def call(self, request, own_headers=()):
        self.calls.append((request, dict(own_headers)))
        future = asyncio.get_running_loop().create_future()
        if isinstance(self.answer, Exception):
            future.set_exception(self.answer)
        else:
            future.set_result(self.answer)
        return future


class World:
    def __init__(self):
        self.clock = VirtualClock()
        self.exchange = MemoryExchange()
        self.requests = MemoryRequests(self.exchange, A)
        self.own = Channel(Response(status=201, body=b"own"))
        self.caller = self.make_caller()

    def make_caller(self, **more):
        return Caller(A, self.requests, Callee(A, self.own), self.clock, **more)

    async def serve(self, handler, peer=B):
        return await MemoryRequests(self.exchange, peer).serve(peer.app_id, handler, concurrency=4)


@pytest.fixture
async def world():
    return World()


async def error_of(call):
    with pytest.raises(MeshError) as raised:
        await call
    return str(raised.value)


# The caller


async def test_another_app_is_called_through_the_broker(world):
    channel = Channel(Response(status=404, headers=[(b"x", b"1"), (b"Connection", b"x")], body=b"no"))
    await world.serve(Callee(B, channel).answer)
    response = await world.caller.invoke("b", GET)
    assert (response.status, list(response.headers), response.body) == (404, [], b"no")
    ((request, own),) = channel.calls
    assert (request.method, request.path) == ("GET", "/x?q")
    assert own == {"dapr-caller-app-id": "a", "dapr-callee-app-id": "b", "dapr-caller-namespace": "ns"}


async def test_the_own_app_is_called_directly(world):
    for target in ("a", "a.ns"):
        assert (await world.caller.invoke(target, GET)).body == b"own"
    assert world.own.calls[0][1]["dapr-caller-app-id"] == "a"


async def test_an_app_that_was_never_seen_fails_at_once(world):
    assert "failed to resolve address for 'b'" in await error_of(world.caller.invoke("b", GET))
    assert world.clock.pending == 0


async def test_an_app_that_is_restarted_is_called_again(world):
    server = await world.serve(Callee(B, Channel()).answer)
    await world.caller.invoke("b", GET)
    await server.close()
    call = asyncio.create_task(world.caller.invoke("b", GET))
    await world.clock.advance(1.5)
    assert not call.done()
    await world.serve(Callee(B, Channel()).answer)
    await world.clock.advance(0.5)
    assert (await call).status == 200


async def test_an_app_that_does_not_come_back_is_given_up(world):
    server = await world.serve(Callee(B, Channel()).answer)
    await world.caller.invoke("b", GET)
    await server.close()
    call = asyncio.create_task(world.caller.invoke("b", GET))
    await world.clock.advance(2.9)
    assert not call.done()
    await world.clock.advance(0.2)
    assert "failed to invoke target b after 3 retries" in await error_of(call)
    assert "failed to resolve" in await error_of(world.caller.invoke("b", GET))  # at once, from now on


async def test_an_app_that_was_seen_long_ago_fails_at_once(world):
    server = await world.serve(Callee(B, Channel()).answer)
    await world.caller.invoke("b", GET)
    await server.close()
    await world.clock.advance(31)
    assert "failed to resolve" in await error_of(world.caller.invoke("b", GET))


async def test_a_streamed_request_is_never_repeated(world):
    async def body():
        yield b"x"

    server = await world.serve(Callee(B, Channel()).answer)
    await world.caller.invoke("b", GET)
    await server.close()
    call = world.caller.invoke("b", Request(method="POST", path="/", body=body()))
    assert "failed to resolve" in await error_of(call)


async def test_a_call_that_an_instance_took_is_not_repeated(world):
    calls = 0

    async def handler(request):
        nonlocal calls
        calls += 1
        raise PeerLost("gone")

    await world.serve(handler)
    assert "gone" in await error_of(world.caller.invoke("b", GET))
    assert calls == 1


async def test_other_namespaces(world):
    await world.serve(Callee(Peer("other", "b"), Channel()).answer, Peer("other", "b"))
    assert (await world.caller.invoke("b.other", GET)).status == 200
    with pytest.raises(NoResponder):
        await world.caller.invoke("b", GET)


async def test_names_of_endpoints_go_before_app_ids_and_urls_go_outside(world):
    class Outside:
        def has(self, target):
            return target == "b"

        async def call(self, target, request):
            return Response(status=200, body=target.encode())

    await world.serve(Callee(B, Channel()).answer)
    caller = world.make_caller(external=Outside())
    assert (await caller.invoke("b", GET)).body == b"b"
    assert (await caller.invoke("http:/h:1", GET)).body == b"http://h:1"
    assert "outside" in await error_of(world.caller.invoke("http://h", GET))


# The callee


@pytest.mark.parametrize(
    ("channel", "healthy", "denied", "status", "cause"),
    [
        (None, True, None, 500, "app channel is not initialized"),
        (Channel(), False, None, 500, "app is not in a healthy state"),
        (Channel(AppError("GET /x: broken")), True, None, 500, "error invoking app channel: GET /x: broken"),
        (Channel(Response(status=200, headers=[(b"x", b"\n")])), True, None, 500, "control character"),
        (Channel(), True, "access control policy has denied", 403, "access control policy has denied"),
    ],
)
async def test_what_keeps_the_app_from_answering(world, channel, healthy, denied, status, cause):
    callee = Callee(B, channel, is_healthy=lambda: healthy, permits=lambda *_: denied)
    await world.serve(callee.answer)
    response = await world.caller.invoke("b", GET)
    assert response.status == status
    assert b'"errorCode":"ERR_DIRECT_INVOKE","message":"failed to invoke, id: b, err: ' in response.body
    assert cause.encode() in response.body
    if denied:
        assert channel.calls == []


async def test_an_app_without_a_port_cannot_call_itself(world):
    caller = Caller(A, world.requests, Callee(A, None), world.clock)
    assert await error_of(caller.invoke("a", GET)) == "cannot invoke local endpoint: app channel not initialized"


async def test_the_policy_is_asked_about_the_caller_of_the_address(world):
    asked = []

    def permits(caller, path, verb):
        asked.append((caller, path, verb))

    await world.serve(Callee(B, Channel(), permits=permits).answer)
    await world.caller.invoke("b", Request(method="PUT", path="/x?q", headers=[(b"dapr-caller-app-id", b"evil")]))
    assert asked == [(A, "/x?q", "PUT")]
