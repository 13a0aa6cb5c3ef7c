"""What the building block does around a store: policies, bounds, and components that are exchanged."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import pytest

from bindings.state.in_memory import MemoryStateStore
from brokers.memory import MemoryEventLog
from mesh import resources
from mesh.errors import ApiError
from mesh.ports.stores import StateChange, StateItem, StoreError, StoreUnavailable
from mesh.pubsub import Component, PubSub
from mesh.resiliency.targets import Resiliency
from mesh.state.block import KEYS_AT_ONCE, State
from mesh.state.component import OutboxSettings, StateComponent
from mesh.state.requests import Options, Write
from tests.virtual_clock import VirtualClock

POLICY = """
apiVersion: dapr.io/v1alpha1
kind: Resiliency
metadata: {name: patience}
spec:
  policies:
    timeouts: {short: 2s}
    retries: {again: {policy: constant, duration: 1ms, maxRetries: 3}}
  targets: {components: {store: {outbound: {timeout: short, retry: again}}}}
"""


class Forgetful(MemoryStateStore):
    """Does what it is told, and the first time does not say so: it fails, or it never answers."""

    def __init__(self, clock: VirtualClock, end: Callable[[], Awaitable[None]]) -> None:
        super().__init__(clock)
        self._end: Callable[[], Awaitable[None]] | None = end

    async def transact(self, changes: Sequence[StateChange], metadata: Mapping[str, str] = {}) -> None:
        await super().transact(changes, metadata)
        end, self._end = self._end, None
        if end is not None:
            await end()


async def fail() -> None:
    raise StoreUnavailable("the connection was lost")


async def hang() -> None:
    await asyncio.Event().wait()


def block(clock: VirtualClock, component: StateComponent, folder: Path | None = None) -> State:
    manifests = [] if folder is None else resources.load([folder], app_id="app", namespace="", environ={}).resiliency
    return State(
        "app",
        {component.name: component},
        resiliency=Resiliency(manifests, clock=clock),
        pubsub=PubSub("app", {"pubsub": Component(name="pubsub", log=MemoryEventLog(clock))}, clock),
        clock=clock,
        namespace="default",
    )


FIRST = Options(concurrency="first-write")


@pytest.mark.parametrize("end", [fail, hang])
@pytest.mark.parametrize("way", ["save", "transact"])
async def test_what_may_have_happened_is_no_conflict(
    tmp_path: Path, end: Callable[[], Awaitable[None]], way: str
) -> None:
    """Whoever is told of a conflict reads again, and does again what was done."""
    (tmp_path / "policy.yaml").write_text(POLICY)
    clock = VirtualClock()
    component = StateComponent(name="store", store=Forgetful(clock, end))
    state = block(clock, component, tmp_path)

    async def create() -> ApiError:
        make = state.save if way == "save" else state.transact
        with pytest.raises(ApiError) as caught:
            await make(component, [Write(key="a", value=b"1", options=FIRST)])
        return caught.value

    creating = asyncio.create_task(create())
    await clock.advance(10)
    error = await creating
    assert error.status == 500
    assert "may have happened" in error.message
    assert "etag mismatch" not in error.message
    second = await create()  # nothing in doubt here
    assert "etag mismatch" in second.message
    assert second.status == (409 if way == "save" else 500)


async def test_no_request_says_how_many_keys_a_store_is_asked_at_once() -> None:
    asked: list[int] = []

    class Counting(MemoryStateStore):
        async def get_many(
            self, keys: Sequence[str], *, strong: bool = False, metadata: Mapping[str, str] = {}
        ) -> list[StateItem | StoreError | None]:
            asked.append(len(keys))
            return await super().get_many(keys)

    clock = VirtualClock()
    component = StateComponent(name="store", store=Counting(clock))
    answers = await block(clock, component).get_many(component, ["a"] * (KEYS_AT_ONCE + 1), parallelism=10**9)
    assert asked == [KEYS_AT_ONCE, 1]
    assert len(answers) == KEYS_AT_ONCE + 1


async def test_no_transaction_goes_past_the_outbox_of_a_component_that_was_exchanged() -> None:
    clock = VirtualClock()
    store = MemoryStateStore(clock)
    settings = OutboxSettings(pubsub="pubsub", topic="orders", internal_pubsub="pubsub")
    component = StateComponent(name="store", store=store, outbox=settings)
    state = block(clock, component)
    state.attach(component)
    await clock.settle()
    await state.detach(component)
    with pytest.raises(ApiError) as caught:
        await state.transact(component, [Write(key="a", value=b"1")])
    assert caught.value.code.error_code == "ERR_PUBLISH_OUTBOX"
    assert await store.get("a") is None
