"""Which input bindings run, one after another and never two of a name at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from brokers.memory import MemoryEventLog
from brokers.memory_tables import MemoryTables
from mesh.bindings.component import BindingComponent
from mesh.bindings.input import Inputs
from mesh.bindings.reply import Reply
from mesh.bindings.running import Surroundings
from mesh.clock import SystemClock
from mesh.ports.bindings import Accept
from mesh.resiliency.targets import Resiliency


class Binding:
    """A source that needs `leaving` to be set before it lets go."""

    exclusive = False

    def __init__(self, story: list[str], name: str) -> None:
        self._story = story
        self._name = name
        self.leaving = asyncio.Event()

    async def start(self) -> None: ...

    async def ping(self) -> None: ...

    async def close(self) -> None: ...

    async def forget(self) -> None:
        self._story.append(f"{self._name} is forgotten")

    async def run(self, accept: Accept) -> None:
        self._story.append(f"{self._name} runs")
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await self.leaving.wait()
            self._story.append(f"{self._name} has ended")


async def settled(condition: Callable[[], bool] = lambda: False) -> None:
    """Returns once it is so, or nothing more happens by itself."""
    for _ in range(50):
        if condition():
            return
        await asyncio.sleep(0)


class Scene:
    def __init__(self) -> None:
        self.story: list[str] = []
        self.components: dict[str, BindingComponent] = {}
        clock = SystemClock()

        async def follow(_reply: Reply) -> None: ...

        self.inputs = Inputs(
            self.components,
            Surroundings(
                app_id="app1",
                log=MemoryEventLog(),
                tables=MemoryTables(clock),
                clock=clock,
                channel=None,
                resiliency=Resiliency(clock=clock),
                follow=follow,
            ),
        )

    def use(self, name: str) -> tuple[BindingComponent, Binding]:
        binding = Binding(self.story, name)
        component = BindingComponent(name="b", input=binding, output=None, route="/b", ask=False)
        self.components["b"] = component
        self.inputs.attach(component)
        return component, binding


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    yield Scene()


async def test_a_successor_begins_when_the_source_before_has_ended(scene: Scene) -> None:
    _, first = scene.use("first")
    await settled(lambda: len(scene.story) == 1)
    _, second = scene.use("second")
    _, third = scene.use("third")
    await settled()
    assert scene.story == ["first runs"]
    for binding in (first, second, third):
        binding.leaving.set()
    await settled(lambda: "third runs" in scene.story)
    assert scene.story == ["first runs", "first has ended", "third runs"]
    await scene.inputs.stop(1)
    assert scene.story[-1] == "third has ended"


async def test_what_is_detached_has_ended(scene: Scene) -> None:
    component, binding = scene.use("first")
    await settled(lambda: len(scene.story) == 1)
    detaching = asyncio.create_task(scene.inputs.detach(component))
    await settled()
    assert not detaching.done()
    binding.leaving.set()
    await detaching
    assert scene.story == ["first runs", "first has ended"], "it is forgotten only when it is gone for good"
    await scene.inputs.detach(component)


async def test_what_is_taken_out_is_forgotten(scene: Scene) -> None:
    component, binding = scene.use("first")
    binding.leaving.set()
    await settled(lambda: len(scene.story) == 1)
    del scene.components["b"]
    scene.inputs.refresh()
    await scene.inputs.detach(component)
    assert scene.story == ["first runs", "first has ended", "first is forgotten"]
    assert scene.inputs.statuses() == []


async def test_the_end_forgets_nothing_and_begins_nothing(scene: Scene) -> None:
    _, binding = scene.use("first")
    binding.leaving.set()
    await settled(lambda: len(scene.story) == 1)
    await scene.inputs.stop(1)
    scene.use("second")
    await settled()
    assert scene.story == ["first runs", "first has ended"]


async def test_a_source_that_does_not_let_go_holds_up_the_end_for_its_grace_alone(scene: Scene) -> None:
    _, binding = scene.use("first")
    await settled(lambda: len(scene.story) == 1)
    async with asyncio.timeout(30):
        await scene.inputs.stop(0.05)
    binding.leaving.set()
    await settled(lambda: len(scene.story) == 2)
