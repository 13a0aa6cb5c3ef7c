"""Turns, mailboxes, and actors that move, on virtual time."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections.abc import AsyncIterator

import pytest

from mesh.actors.callbacks import Call
from mesh.actors.calls import NoOwner
from mesh.actors.configuration import Settings
from mesh.actors.names import ActorName
from mesh.actors.turns import MAX_WAITING, Actor, NotMine, TooDeep
from mesh.addressing import ACTORS_SCOPE, actor_partition
from mesh.errors import BrokerError
from mesh.ports import Request, Response
from tests.unit.mesh.actors.mesh_of_actors import LEASE, World

ACTORS = [f"a{number}" for number in range(64)]


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    yield world
    await world.close()


class Held:
    """An app whose calls wait until they are let go."""

    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.begun: list[bytes | object] = []
        self.cancelled = 0

    async def __call__(self, request: Request) -> Response:
        self.begun.append(request.body)
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return Response(status=200, body=b"done")


async def test_turns_of_an_actor_follow_each_other_in_the_order_of_calls(world: World) -> None:
    app = Held()
    node = await world.node(app)
    calls = [node.call("x", body=b"%d" % number) for number in range(3)]
    await world.clock.settle()
    assert app.begun == [b"0"]
    other = node.call("y")
    await world.clock.settle()
    assert len(app.begun) == 2
    app.release.set()
    await asyncio.gather(*calls, other)
    assert app.begun == [b"0", b"", b"1", b"2"]


async def test_a_call_that_is_given_up_while_it_waits_has_no_turn(world: World) -> None:
    app = Held()
    node = await world.node(app)
    calls = [node.call("x", body=b"%d" % number) for number in range(3)]
    await world.clock.settle()
    calls[1].cancel()
    await world.clock.settle()
    app.release.set()
    await asyncio.gather(calls[0], calls[2])
    assert app.begun == [b"0", b"2"]


async def test_a_turn_goes_on_when_its_caller_gives_up(world: World) -> None:
    app = Held()
    node = await world.node(app)
    first, second = node.call("x", body=b"0"), node.call("x", body=b"1")
    await world.clock.settle()
    first.cancel()
    await world.clock.settle()
    assert first.cancelled()
    assert (app.begun, app.cancelled) == ([b"0"], 0)
    app.release.set()
    await second
    assert app.begun == [b"0", b"1"]


async def test_a_turn_that_nobody_waits_for_has_a_limit(world: World) -> None:
    app = Held()
    node = await world.node(app)
    first, second = node.call("x", body=b"0"), node.call("x", body=b"1")
    await world.clock.settle()
    first.cancel()
    await world.clock.advance(59)
    assert app.begun == [b"0"]
    await world.clock.advance(2)
    assert (app.begun, app.cancelled) == ([b"0", b"1"], 1)
    app.release.set()
    await second


async def test_a_turn_that_nobody_waits_for_may_fail_without_a_word(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    app = Held()
    node = await world.node(app)
    call = node.call("x")
    await world.clock.settle()
    call.cancel()
    await world.clock.settle()
    closing = asyncio.ensure_future(node.hosting.close())  # the actor moves
    while not closing.done():
        await world.clock.advance(1)
    assert app.cancelled == 1
    gc.collect()
    assert not [record for record in caplog.records if record.name == "asyncio"]


async def test_a_mailbox_has_a_bound(world: World) -> None:
    app = Held()
    node = await world.node(app)
    calls = [node.call("x") for _ in range(MAX_WAITING + 2)]
    await world.clock.settle()
    assert calls[-1].done()
    assert calls[-1].result().status == 503
    assert b"ERR_ACTOR_BUSY" in calls[-1].result().body  # type: ignore[operator]
    app.release.set()
    assert {call.status for call in await asyncio.gather(*calls[:-1], node.call("y"))} == {200}


async def test_an_actor_is_deactivated_when_it_was_idle_and_not_before(world: World) -> None:
    node = await world.node(settings=Settings(idle_timeout=60))
    await node.call("x")
    await world.clock.advance(50)
    await node.call("x")
    await world.clock.advance(59)
    assert node.app.deactivated == []
    assert node.hosting.active == 1
    await world.clock.advance(10)
    assert node.app.deactivated == ["/actors/Cart/x"]
    assert node.hosting.active == 0


async def test_a_turn_that_takes_longer_than_the_idle_timeout_is_not_disturbed(world: World) -> None:
    app = Held()
    node = await world.node(app, Settings(idle_timeout=10))
    call = node.call("x")
    await world.clock.advance(100)
    assert not call.done()
    assert node.app.deactivated == []
    app.release.set()
    assert (await call).body == b"done"
    await world.clock.advance(20)
    assert node.app.deactivated == ["/actors/Cart/x"]


async def test_any_sidecar_calls_any_actor(world: World) -> None:
    first, second = await world.node(), await world.node()
    caller = await world.node(settings=None)
    for actor in ACTORS:
        for node in world.nodes:
            assert (await node.call(actor)).status == 200
    assert first.hosting.active + second.hosting.active == len(ACTORS)
    assert 0 < first.hosting.active < len(ACTORS)
    assert not caller.app.calls


async def test_an_actor_moves_after_its_turn_when_a_host_joins(world: World) -> None:
    app = Held()
    first = await world.node(app, Settings(drain_timeout=5))
    calls = {actor: first.call(actor) for actor in ACTORS}
    await world.clock.settle()
    second = await world.node()
    assert second.partitions.owned == []
    app.release.set()
    for _ in range(5):
        await world.clock.advance(1)
    assert [(await call).body for call in calls.values()] == [b"done"] * len(ACTORS)
    moved = [actor for actor in ACTORS if actor_partition(actor) in second.partitions.owned]
    assert len(second.partitions.owned) == 32
    assert sorted(first.app.deactivated) == sorted(f"/actors/Cart/{actor}" for actor in moved)
    assert app.cancelled == 0


async def test_a_turn_that_does_not_end_is_broken_off_and_taken_again_by_the_next_owner(world: World) -> None:
    app = Held()
    first = await world.node(app, Settings(drain_timeout=2))
    calls = {actor: first.call(actor) for actor in ACTORS}
    waiting = {actor: first.call(actor) for actor in ACTORS}
    await world.clock.settle()
    second = await world.node()
    for _ in range(10):
        await world.clock.advance(1)
    moved = [actor for actor in ACTORS if actor_partition(actor) in second.partitions.owned]
    assert moved
    for actor in ACTORS:
        assert (calls[actor].done(), waiting[actor].done()) == (actor in moved, actor in moved)
    assert app.cancelled == 0
    assert [call.path for call in second.app.calls].count(f"/actors/Cart/{moved[0]}/method/m") == 2
    app.release.set()
    await asyncio.gather(*calls.values(), *waiting.values())


async def test_a_turn_that_is_to_end_gets_the_calls_that_it_waits_for(world: World) -> None:
    """Another actor calls back, by the same chain, while the partition of the first one is given up."""
    settings = Settings(drain_timeout=20, reentrant=True, max_stack_depth=3)
    entered, go = asyncio.Event(), asyncio.Event()

    async def app(request: Request) -> Response:
        if request.path.endswith("/inner"):
            return Response(status=200, body=b"inner")
        entered.set()
        await go.wait()
        chain = dict(request.headers)[b"dapr-reentrancy-id"].decode()
        return await caller.call(request.path.split("/")[3], "inner", chain=chain)

    first = await world.node(app, settings)
    caller = await world.node(settings=None)
    calls = {actor: first.call(actor) for actor in ACTORS}
    await entered.wait()
    await world.clock.settle()
    second = await world.node(settings=settings)
    await world.clock.advance(1)
    assert not {actor_partition(actor) for actor in ACTORS} & set(second.partitions.owned)  # all have a turn
    stranger = caller.call(ACTORS[0], "m", chain="another")
    go.set()
    for _ in range(3):
        await world.clock.advance(1)
    assert {call.done() and call.result().body for call in calls.values()} == {b"inner"}
    assert len(second.partitions.owned) == 32
    assert (await stranger).status == 200


async def test_an_actor_that_comes_back_waits_for_its_last_turn_here(world: World) -> None:
    """The app could not tell whose writes are whose, nor could we."""
    app = Held()
    node = await world.node(app)
    actor, partition = "x", actor_partition("x")
    first = node.call(actor, body=b"0")
    await world.clock.settle()
    token = node.hosting.fence(actor)
    assert token is not None
    node.hosting.lost(partition)
    await world.clock.advance(10)
    assert node.hosting.fence(actor) is None
    node.hosting.gained(partition, token)
    for _ in range(5):
        await world.clock.advance(1)
    assert app.begun == [b"0"]
    assert not first.done()  # it was asked for again
    app.release.set()
    for _ in range(3):
        await world.clock.advance(1)
    await first
    assert app.begun == [b"0", b"0"]
    assert node.app.deactivated == ["/actors/Cart/x"]


async def test_an_owner_that_slept_past_its_lease_starts_no_turn_and_its_answer_is_not_passed_on(world: World) -> None:
    app = Held()
    first, second = await world.node(app), await world.node()
    actor = next(actor for actor in ACTORS if actor_partition(actor) in first.partitions.owned)
    asleep = first.call(actor)
    await world.clock.settle()
    token = first.hosting.fence(actor)
    assert token is not None
    first.elapsed = lambda: world.clock.now() + LEASE  # the process was stopped, and nothing of it has run since
    assert first.hosting.partitions
    with pytest.raises(NotMine):
        await first.hosting.turn(_call(actor), first.actors._me)
    app.release.set()
    for _ in range(25):
        await world.clock.advance(1)
    assert (await asleep).body == b""
    assert second.app.calls
    fence = second.hosting.fence(actor)
    assert fence is not None
    assert fence.revision > token.revision


async def test_a_host_that_dies_is_replaced_and_others_notice_nothing(world: World) -> None:
    first, second = await world.node(), await world.node()
    caller = await world.node(settings=None)
    theirs = [actor for actor in ACTORS if actor_partition(actor) in first.partitions.owned]
    first.hosting._tell = lambda _: None  # it does not say goodbye
    await first.requests.close()
    for task in [*first.partitions._running, *first.directory._tasks, *first.partitions._beat._tasks]:  # type: ignore[union-attr]
        task.cancel()
    died = world.clock.now()
    calls = [caller.call(actor) for actor in theirs]
    for actor in ACTORS:
        if actor not in theirs:
            assert (await caller.call(actor)).status == 200
    assert world.clock.now() == died
    while not all(call.done() for call in calls):
        await world.clock.advance(0.25)
    assert world.clock.now() - died <= LEASE + 1
    assert {call.result().status for call in calls} == {200}
    assert len(second.partitions.owned) == 64
    first.partitions._tokens.clear()


async def test_a_call_that_is_lost_with_the_connection_is_not_made_again_while_its_owner_lives(world: World) -> None:
    app = Held()
    await world.node(app)
    caller = await world.node(settings=None)
    call = caller.call("x")
    await world.clock.settle()
    await caller.requests.close()  # as when the broker goes away: calls under way fail
    await world.clock.advance(LEASE)
    assert not call.done()
    for _ in range(5):
        await world.clock.advance(1)
    answer = await call
    assert answer.status == 500
    assert b"ERR_ACTOR_INVOKE_METHOD" in answer.body  # type: ignore[operator]
    assert len(app.begun) == 1
    app.release.set()


async def test_an_actor_that_nobody_hosts(world: World) -> None:
    caller = await world.node(settings=None)
    call = caller.call("x")
    await world.clock.advance(4)
    assert not call.done()
    await world.clock.advance(3)
    with pytest.raises(NoOwner, match="did not find address for actor 'Cart/x'"):
        await call


async def test_why_owners_are_not_known_is_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def watch(*_: object, **__: object) -> None:
        raise BrokerError("refused")

    table = world.tables.table(ACTORS_SCOPE)
    with monkeypatch.context() as patched:
        patched.setattr(type(table), "watch", watch)
        caller = await world.node(settings=None)
        call = caller.call("x")
        await world.clock.advance(40)
    with pytest.raises(NoOwner, match=r"did not find address for actor 'Cart/x': the owners .* refused"):
        await call
    await world.clock.advance(1)
    assert caller.directory.current
    assert not caller.directory.problem


async def test_reentrant_calls_enter_the_turn_of_their_chain_and_of_no_other() -> None:
    actor = Actor("x")
    turn = await actor.enter("chain", 3)
    assert await actor.enter("chain", 3) is turn
    assert await actor.enter("chain", 3) is turn
    with pytest.raises(TooDeep):
        await actor.enter("chain", 3)
    waiting = asyncio.ensure_future(actor.enter("other", 3))
    await asyncio.sleep(0)
    for _ in range(3):
        assert not waiting.done()
        actor.leave(turn)
    assert (await waiting).chain == "other"
    actor.leave(await waiting)
    assert actor.turn is None


async def test_a_call_that_gives_up_at_the_very_moment_of_its_turn_hands_it_on() -> None:
    actor = Actor("x")
    turn = await actor.enter("", 1)
    first, second = (asyncio.ensure_future(actor.enter("", 1)) for _ in range(2))
    await asyncio.sleep(0)
    actor.leave(turn)
    first.cancel()
    await asyncio.wait([first])
    assert first.cancelled()
    actor.leave(await asyncio.wait_for(second, 1))
    assert actor.turn is None


async def test_an_idle_actor_takes_no_more_than_500_bytes(world: World) -> None:
    node = await world.node()
    count = 10_000
    await node.call("warm")
    node.app.calls.clear()
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(count):
            await node.hosting.turn(_call(f"actor-{number:08}"), node.actors._me)
            node.app.calls.clear()
        gc.collect()
        used = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert node.hosting.active == count + 1
    assert used / count < 350, used / count


def _call(actor: str) -> Call:
    return Call(ActorName("Cart", actor), "m")
