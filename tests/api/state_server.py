"""The state API alone, on a real HTTP server, over stores that a test brings."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Self

from bindings.state.in_memory import MemoryStateStore
from brokers.memory_tables import MemoryTables
from mesh.clock import SystemClock
from mesh.ports import Clock
from mesh.ports.stores import StateChange, StateFeature, StateItem, StateStore, StoreError
from mesh.pubsub import PubSub
from mesh.resiliency.manifest import ResiliencyManifest
from mesh.resiliency.targets import Resiliency
from mesh.state.backbone import MeshStateStore
from mesh.state.block import State
from mesh.state.component import StateComponent
from sidecar.api.state import StateApi
from sidecar.api.state_extras import StateExtrasApi
from sidecar.http.responses import CatchErrors
from sidecar.http.routing import Router
from sidecar.http.server import HttpServer
from tests.e2e.mesh import Answer, Headers, call


class StateServer:
    """`app1`, with the components that a test gives; by default `statestore` on the backbone and `memory`."""

    def __init__(
        self,
        *components: StateComponent,
        clock: Clock | None = None,
        max_body_size: int = 4 << 20,
        pubsub: PubSub | None = None,
        resiliency: Sequence[ResiliencyManifest] = (),
        tables: MemoryTables | None = None,
    ) -> None:
        self.clock = clock or SystemClock()
        self.tables = tables or MemoryTables(self.clock)
        self.components = {component.name: component for component in components or self.defaults()}
        self.state = State(
            "app1",
            self.components,
            resiliency=Resiliency(resiliency, clock=self.clock),
            pubsub=pubsub or PubSub("app1", {}, self.clock),
            clock=self.clock,
            namespace="default",
        )
        self.extras = StateExtrasApi(self.state, self.clock)
        router = Router()
        StateApi(self.state, max_body_size).add_to(router)
        self.extras.add_to(router)
        self.server = HttpServer(CatchErrors(router))

    def mesh_store(self, name: str = "statestore", history: int | None = 5) -> StateComponent:
        store = MeshStateStore(self.tables, name, self.clock, key_prefix="app1||", history=history)
        return StateComponent(name=name, store=store, key_prefix="app1||")

    def defaults(self) -> list[StateComponent]:
        memory = StateComponent(
            name="memory", store=MemoryStateStore(self.clock), type="state.in-memory", key_prefix="app1||"
        )
        return [self.mesh_store(), memory]

    async def __aenter__(self) -> Self:
        for component in self.components.values():
            await component.store.start()
            self.state.attach(component)
        await self.server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.extras.close()
        async with asyncio.timeout(30):
            await self.server.stop(5)
            for component in self.components.values():
                await self.state.detach(component)
                await component.store.close()

    @property
    def port(self) -> int:
        assert self.server.port
        return self.server.port

    async def call(self, method: str, target: str, body: bytes = b"", *headers: tuple[str, str]) -> Answer:
        return await call(self.port, method, target, self._headers(headers), body)

    def _headers(self, headers: Headers) -> Headers:
        return [("content-type", "application/json"), *headers]


class BrokenStore:
    """Fails with whatever a test puts into `error`."""

    max_transaction = 3

    def __init__(self, *features: StateFeature) -> None:
        self.features = frozenset(features)
        self.error: Exception | None = None
        self.calls = 0

    async def start(self) -> None: ...

    async def ping(self) -> None: ...

    async def close(self) -> None: ...

    def _fail(self) -> None:
        self.calls += 1
        if self.error is not None:
            raise self.error

    async def get(self, key: str, *, strong: bool = False, metadata: Mapping[str, str] = {}) -> StateItem | None:
        self._fail()
        return None

    async def get_many(
        self, keys: Sequence[str], *, strong: bool = False, metadata: Mapping[str, str] = {}
    ) -> list[StateItem | StoreError | None]:
        self._fail()
        return [None] * len(keys)

    async def change(self, change: StateChange) -> None:
        self._fail()

    async def transact(self, changes: Sequence[StateChange], metadata: Mapping[str, str] = {}) -> None:
        self._fail()


def broken(*features: StateFeature) -> tuple[BrokenStore, StateComponent]:
    store: BrokenStore = BrokenStore(*features)
    checked: StateStore = store
    return store, StateComponent(name="broken", store=checked, type="state.broken")
