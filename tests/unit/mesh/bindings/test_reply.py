"""What an app's answer asks for, and when it is done."""

from __future__ import annotations

import asyncio
from typing import cast

import msgspec
import pytest

from mesh.bindings import reply as replies
from mesh.bindings.output import OutputFailed, Outputs
from mesh.bindings.reply import ObeyedRoute, Replies, Reply, read
from mesh.errors import AppError, AppUnreachable, MeshError
from mesh.ports import AppResponse, HeaderLines
from mesh.ports.bindings import Invocation, Result
from mesh.state.block import State


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"ok",
        b'{"status": "SUCCESS"}',
        b'{"to": []}',
        b'{"to": "a@example.com"}',
        b'{"to": [1]}',
        b'{"state": "ok"}',
        b'{"state": [{"key": "a"}]}',
        b'{"state": [], "storeName": "s"}',
        b'{"state": [{"value": 1}], "storeName": "s"}',
        b'["to"]',
        b'{"to": ["a"]',
        b'{"to": ["\xff"]}',
    ],
)
def test_most_answers_ask_for_nothing(body: bytes) -> None:
    assert read(body) is None


def test_what_is_asked_for() -> None:
    found = read(b'{"to": ["a", "b"], "data": {"n": 1}, "concurrency": "sequential", "more": 1}')
    assert found is not None
    assert (found.to, bytes(found.data), found.concurrency) == (["a", "b"], b'{"n": 1}', "sequential")
    found = read(b'{"storeName": "s", "state": [{"key": "k", "value": [1]}]}')
    assert found is not None and found.state is not None
    assert (found.storeName, found.state[0].key, bytes(found.state[0].value)) == ("s", "k", b"[1]")


class Route:
    """A route whose call the test answers."""

    def __init__(self) -> None:
        self.call: asyncio.Future[AppResponse] = asyncio.get_running_loop().create_future()

    def send(
        self, body: bytes = b"", extra_headers: HeaderLines | None = None, *, timeout: float
    ) -> asyncio.Future[AppResponse]:
        return self.call


ASKS = AppResponse(200, [], b'{"to": ["a"]}')


async def test_a_call_ends_when_its_answer_is_obeyed() -> None:
    route, done = Route(), asyncio.Event()

    async def follow(_reply: Reply) -> None:
        await done.wait()

    call = ObeyedRoute(route, follow).send(timeout=1)
    route.call.set_result(ASKS)
    await asyncio.sleep(0.01)
    assert not call.done()
    done.set()
    assert await call is ASKS


@pytest.mark.parametrize("response", [AppResponse(200, [], b"{}"), AppResponse(500, [], ASKS.body)])
async def test_an_answer_that_asks_for_nothing(response: AppResponse) -> None:
    route = Route()

    async def follow(_reply: Reply) -> None:
        raise AssertionError("it asks for nothing")

    call = ObeyedRoute(route, follow).send(timeout=1)
    route.call.set_result(response)
    assert await call is response


async def test_what_cannot_be_done_is_a_failed_call() -> None:
    route = Route()

    async def follow(_reply: Reply) -> None:
        raise MeshError("there is no a")

    call = ObeyedRoute(route, follow).send(timeout=1)
    route.call.set_result(ASKS)
    with pytest.raises(AppError, match="was not done: there is no a"):
        await call


async def test_what_takes_too_long_is_a_failed_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replies, "LIMIT", 0.01)
    route = Route()

    async def follow(_reply: Reply) -> None:
        await asyncio.get_running_loop().create_future()

    call = ObeyedRoute(route, follow).send(timeout=1)
    route.call.set_result(ASKS)
    with pytest.raises(AppError, match=r"took longer than 0\.01 s"):
        await call


async def test_errors_and_cancellation_pass_through() -> None:
    async def follow(_reply: Reply) -> None: ...

    route = Route()
    call = ObeyedRoute(route, follow).send(timeout=1)
    route.call.set_exception(AppUnreachable("gone"))
    with pytest.raises(AppUnreachable):
        await call
    route = Route()
    call = ObeyedRoute(route, follow).send(timeout=1)
    call.cancel()
    await asyncio.sleep(0)
    assert route.call.cancelled()


class Refusing:
    """Outputs of which `b` fails."""

    def __init__(self) -> None:
        self.called: list[tuple[str, bytes]] = []

    async def invoke(self, name: str, invocation: Invocation) -> Result:
        self.called.append((name, invocation.data))
        if name == "b":
            raise OutputFailed("b is down")
        return Result()


@pytest.mark.parametrize(("concurrency", "called"), [("sequential", "ab"), ("parallel", "abc"), ("", "abc")])
async def test_bindings_in_turn_or_side_by_side(concurrency: str, called: str) -> None:
    outputs = Refusing()
    obeys = Replies(cast(Outputs, outputs), cast(State, None))
    with pytest.raises(MeshError, match="b is down"):
        await obeys.follow(Reply(to=["a", "b", "c"], concurrency=concurrency, data=msgspec.Raw(b'{ "n": 1 }')))
    assert outputs.called == [(name, b'{"n":1}') for name in called]


async def test_an_answer_that_asks_for_too_much() -> None:
    outputs = Refusing()
    with pytest.raises(MeshError, match="at most 100"):
        await Replies(cast(Outputs, outputs), cast(State, None)).follow(Reply(to=["a"] * 101))
    assert outputs.called == []
