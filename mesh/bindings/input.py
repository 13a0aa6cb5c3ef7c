"""Input bindings: sources whose items are stored on the backbone and then delivered, by the plan, to one replica.

A source is told that it is done with an item once that is stored. So a trigger fires once for each app, survives an app
that is down, and is retried and given up as any event is (docs/bindings.md).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from mesh import addressing
from mesh.bindings.component import BindingComponent
from mesh.bindings.running import RunningInput, Surroundings, plan_of
from mesh.bindings.target import BindingTarget
from mesh.control.setting import Name
from mesh.delivery.live import Live
from mesh.delivery.plan import Plan
from mesh.errors import ApiError, BrokerError, BrokerUnavailable, Code, MeshError, MessageTooLarge, clip
from mesh.ports.bindings import Item

logger = logging.getLogger("meshwire.bindings")


class Status(NamedTuple):
    """What becomes of one input binding, in words."""

    name: str
    route: str
    source: str
    delivery: str


class Inputs:
    """The input bindings of one app's sidecar."""

    def __init__(self, components: Mapping[str, BindingComponent], around: Surroundings) -> None:
        """`components` by name; call `refresh` when they have changed."""
        self._components = components
        self._around = around
        self._running: dict[str, RunningInput] = {}
        self._ending: dict[str, asyncio.Task[None]] = {}
        """By name; of several under one name the last, which waits for those before."""
        self._beginning: set[asyncio.Task[None]] = set()
        self._app_is_there = False
        self._stopped = False

    def attach(self, component: BindingComponent) -> None:
        """A component has started. Its source runs from now on if it is wanted, once an earlier one of its name has
        ended: they may need the same port, or file."""
        if component.input is None or self._stopped:
            return
        earlier = self._running.pop(component.name, None)
        if earlier is not None:
            self._end(earlier)
        try:
            running = RunningInput(component, component.input, self._around)
        except MeshError as error:
            logger.error("binding %s cannot be an input: %s", clip(component.name), error)
            return
        self._running[component.name] = running
        task = asyncio.get_running_loop().create_task(self._begin(running), name=f"begin {component.name}")
        self._beginning.add(task)
        task.add_done_callback(self._beginning.discard)

    async def detach(self, component: BindingComponent) -> None:
        """Returns when the component can be closed. Safe for one that was never attached."""
        running = self._running.get(component.name)
        if running is not None and running.component is component:
            del self._running[component.name]
            self._end(running)
        ending = self._ending.get(component.name)
        if ending is not None:
            await asyncio.wait([ending])

    def refresh(self) -> None:
        """End what is no longer among the components, for good."""
        for name in self._running.keys() - self._components.keys():
            self._end(self._running.pop(name), for_good=True)

    async def fire(self, name: str, item: Item) -> None:
        """Accept an item by hand. Raises `ApiError`."""
        running = self._running.get(name)
        if running is None:
            raise ApiError(Code.BINDING_NOT_FOUND, f"there is no input binding {clip(name)}")
        try:
            await running.store(item)
        except BrokerError as error:
            status = 413 if isinstance(error, MessageTooLarge) else 503 if isinstance(error, BrokerUnavailable) else 502
            text = f"the trigger of binding {clip(name)} was not stored: {error}"
            raise ApiError(Code.BINDING_TRIGGER, text, status=status) from error

    def deliveries(self) -> dict[Name, Live]:
        """Those that run, by the names under which subscriptions are known."""
        found = (running.live for running in self._running.values())
        return {Name(*live.group.topic): live for live in found if live is not None}

    def to_play(self, topic: str, route: str | None, headers: Sequence[tuple[str, str]]) -> tuple[BindingTarget, Plan]:
        """How the items of a topic are delivered, to their binding's route or to another path, with `headers` beside
        those of each item. Raises `MeshError`."""
        around = self._around
        name = topic.removeprefix(addressing.bindings_prefix(around.app_id))
        running = self._running.get(name)
        if running is not None:
            component = running.component
        elif route is not None:
            component = BindingComponent(name=name, input=None, output=None, route=route, ask=False)
        else:
            raise MeshError(f"the app has no input binding {clip(name)}: name a route for the items to go to")
        if around.channel is None:
            raise MeshError("there is no app")
        if route is not None:
            component = msgspec.structs.replace(component, route=route)
        target = BindingTarget(component, around.channel, around.app_id, around.follow, headers=headers)
        return target, plan_of(component, around.resiliency, around.log.features)

    def statuses(self) -> list[Status]:
        return [Status(name, one.component.route, one.source, one.delivery) for name, one in self._running.items()]

    def app_is_healthy(self) -> None:
        """Ask it for what it wants, where nothing says so, and deliver to it, in the background."""
        if not self._stopped:
            self._app_is_there = True
            for running in self._running.values():
                running.begin_delivery()

    async def app_is_unhealthy(self, grace: float) -> None:
        """Deliver nothing more. Sources go on, unlike Dapr's, since what they accept is stored."""
        self._app_is_there = False
        await _within(grace, (running.end_delivery() for running in self._running.values()))

    async def stop(self, grace: float) -> None:
        """End all sources, then the deliveries; those in the app's hands get `grace` seconds to be settled. What is
        not by then comes again."""
        self._stopped, self._app_is_there = True, False
        for running in self._running.values():
            self._end(running)
        self._running.clear()
        for task in self._beginning:
            task.cancel()
        await _within(grace, self._ending.values())

    async def _begin(self, running: RunningInput) -> None:
        ending = self._ending.get(running.component.name)
        if ending is not None:
            await asyncio.wait([ending])
        if self._running.get(running.component.name) is running:
            running.begin()
            if self._app_is_there:
                running.begin_delivery()

    def _end(self, running: RunningInput, *, for_good: bool = False) -> None:
        name = running.component.name
        earlier = self._ending.get(name)

        async def end() -> None:
            if earlier is not None:
                await asyncio.wait([earlier])
            await running.end()
            if for_good:
                await running.forget()

        task = self._ending[name] = asyncio.get_running_loop().create_task(end(), name=f"end {name}")
        task.add_done_callback(lambda done: self._ending.pop(name) if self._ending.get(name) is done else None)


async def _within(grace: float, work: Iterable[Awaitable[None]]) -> None:
    tasks = [asyncio.ensure_future(one) for one in work]
    if not tasks:
        return
    _, late = await asyncio.wait(tasks, timeout=grace)
    for task in late:
        task.cancel()
    if late:
        await asyncio.wait(late)
        logger.warning("some items were still in the app's hands after %.0f s; they will be delivered again", grace)
