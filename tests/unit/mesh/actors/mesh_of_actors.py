"""Hosts of actors and a caller in one process, on virtual time: everything is real but the app behind each host."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from brokers.memory_requests import MemoryExchange, MemoryRequests
from brokers.memory_tables import MemoryTables
from mesh import addressing
from mesh.actors.callbacks import Call, Callbacks
from mesh.actors.calls import Actors
from mesh.actors.configuration import Settings
from mesh.actors.directory import Directory
from mesh.actors.hosting import Hosting
from mesh.actors.names import ActorName
from mesh.ownership.partitions import PartitionHandler, Partitions
from mesh.ports import AppResponse, AppRoute, HeaderLines, Peer, Request, Response
from mesh.resiliency.targets import Resiliency
from mesh.telemetry import NO_METER
from tests.virtual_clock import VirtualClock

LEASE = 10.0
TYPE = "Cart"
Answer = Callable[[Request], Awaitable[Response]]


async def ok(_request: Request) -> Response:
    return Response(status=200)


class AppInProcess:
    """The part of an `AppChannel` that actors need."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.calls: list[Request] = []
        self.deactivated: list[str] = []

    def call(
        self, request: Request, own_headers: Sequence[tuple[str, str]] = (), *, once: bool = False
    ) -> asyncio.Future[Response]:
        assert once  # a turn is no more than one call of the app
        headers = [(name.encode(), value.encode()) for name, value in own_headers]
        self.calls.append(Request(method=request.method, path=request.path, headers=headers, body=request.body))
        return asyncio.ensure_future(self.answer(self.calls[-1]))

    def request(
        self,
        method: str,
        path: str,
        headers: Sequence[tuple[str, str]] = (),
        body: bytes = b"",
        *,
        timeout: float,
    ) -> asyncio.Future[AppResponse]:
        done: asyncio.Future[AppResponse] = asyncio.get_running_loop().create_future()
        self.deactivated.append(path)
        done.set_result(AppResponse(200, (), b""))
        return done

    def prepare(self, method: str, path: str, fixed_headers: Sequence[tuple[str, str]] = ()) -> AppRoute:
        raise AssertionError(path)

    def header_lines(self, headers: Sequence[tuple[str, str]]) -> HeaderLines:
        raise AssertionError(headers)

    async def probe(self, path: str, *, timeout: float) -> bool:
        return True

    async def wait_until_listening(self) -> None: ...

    async def close(self) -> None: ...


class Node:
    """One sidecar."""

    def __init__(self, world: World, name: str, answer: Answer, settings: Settings | None) -> None:
        self.world = world
        self.name = name
        self.app = AppInProcess(answer)
        self.elapsed = world.clock.now
        me = Peer("default", "shop")
        self.requests = MemoryRequests(world.exchange, me)
        self.directory = Directory(world.tables.table(addressing.ACTORS_SCOPE), me.app_id, name, world.clock)
        resiliency = Resiliency(clock=world.clock)
        self.actors = Actors(me, name, self.directory, self.requests, world.clock, lease=LEASE, resiliency=resiliency)
        if settings is not None:
            self.hosting = Hosting(
                TYPE,
                settings,
                Callbacks(me, self.app),
                self._join,
                world.clock,
                tell=partial(self.directory.tell, TYPE),
                work=NO_METER.actors(TYPE),
            )

    def _join(self, handler: PartitionHandler, *, revoke_limit: float) -> Partitions:
        self.partitions = Partitions(
            self.world.tables,
            addressing.actors_scope(TYPE),
            "actors",
            addressing.ACTOR_PARTITIONS,
            handler,
            node=self.name,
            clock=self.world.clock,
            ttl=LEASE,
            revoke_limit=revoke_limit,
            elapsed=lambda: self.elapsed(),
        )
        return self.partitions

    async def start(self) -> None:
        self.directory.start()
        if hasattr(self, "hosting"):
            host = addressing.actors_host(Peer("default", "shop"))
            await self.requests.serve(host.app_id, self.actors.answer, concurrency=1000, instance=self.name)
            self.actors.hostings[TYPE] = self.hosting
            self.directory.tell(TYPE, {})
            self.hosting.start()

    async def close(self) -> None:
        if hasattr(self, "hosting"):
            await self.hosting.close()
        await self.directory.close()
        await self.requests.close()

    def call(self, actor: str, method: str = "m", *, chain: str = "", body: bytes = b"") -> asyncio.Future[Response]:
        return asyncio.ensure_future(self.actors.call(Call(ActorName(TYPE, actor), method, body=body, chain=chain)))


class World:
    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.exchange = MemoryExchange()
        self.tables = MemoryTables(self.clock)
        self.nodes: list[Node] = []

    async def node(self, answer: Answer = ok, settings: Settings | None = Settings()) -> Node:  # noqa: B008 - frozen
        node = Node(self, f"node{len(self.nodes)}", answer, settings)
        self.nodes.append(node)
        await node.start()
        await self.clock.advance(1)
        return node

    async def close(self) -> None:
        closing = asyncio.gather(*(node.close() for node in self.nodes))
        while not closing.done():
            await self.clock.advance(1)
        await closing
        await self.tables.close()
