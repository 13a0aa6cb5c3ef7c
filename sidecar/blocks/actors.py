"""Actors: those that the app hosts, and the way to all others of the namespace."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import Any

from mesh import addressing, ids
from mesh.actors import configuration
from mesh.actors.callbacks import Callbacks
from mesh.actors.calls import Actors as Calls
from mesh.actors.configuration import Settings
from mesh.actors.directory import Directory
from mesh.actors.hosting import Hosting
from mesh.actors.reminders import Reminders
from mesh.actors.state import ActorState
from mesh.actors.timers import Timers
from mesh.actors.topics import WithActors
from mesh.ownership.partitions import PartitionHandler, Partitions
from mesh.ownership.waits import end
from mesh.persistence import persist
from mesh.ports import AppChannel, Server
from mesh.state.backbone import MeshStateStore
from mesh.state.component import StateComponent
from sidecar.api.actors import ActorsApi
from sidecar.blocks.common import Api, Common
from sidecar.runtime import Runtime

logger = logging.getLogger("meshwire.runtime")

GROUP = "actors"
"""The group of those that share the partitions of a type, in the scope of the type."""
STORE = "actors"
"""The name of the state store that is there without any file, in the keys of its records."""
AT_ONCE = 16_384
"""Calls of actors from elsewhere that are in hand at once: most of them wait for their turn."""


class Actors:
    """A `Companion` and a `Follower`: actors of others can be called without an app, those of the app come and go with
    it."""

    def __init__(self, common: Common) -> None:
        settings, clock, backbone = common.settings, common.clock, common.backbone
        self._common = common
        self._instance = ids.random_id()
        self._directory = Directory(
            backbone.tables.table(addressing.ACTORS_SCOPE),
            common.app_id,
            self._instance,
            clock,
            active=lambda name: self._calls.active().get(name, 0),
        )
        self._calls = Calls(
            common.me,
            self._instance,
            self._directory,
            backbone.requests,
            clock,
            lease=settings.actor_lease,
            resiliency=common.resiliency,
        )
        self._store = MeshStateStore(backbone.tables, STORE, clock)
        default = StateComponent(name=STORE, store=self._store)
        self._state = ActorState(self._calls, common.components.of("state"), default)
        self._timers = Timers(self._calls, clock, common.telemetry.meter)
        self._reminders = Reminders(backbone.alarms, self._calls, clock, common.telemetry.meter)
        self._types: dict[str, Settings] = {}
        self._server: Server | None = None
        self._moving: asyncio.Task[None] | None = None
        self._closed = False

    # What the app says, and how it is

    def configured(self, answer: bytes) -> None:
        """The answer to `GET /dapr/config`."""
        try:
            self._types = configuration.read(answer)
            self._calls.own = self._types.keys()
        except configuration.InvalidHosting as error:
            logger.error("GET /dapr/config: %s; the app hosts no actors", error)

    def app_is_healthy(self) -> None:
        """Host its actors, in the background: the broker may be away for as long as it likes."""
        if self._types:
            before, self._moving = self._moving, None
            self._moving = asyncio.get_running_loop().create_task(self._host(before), name="host actors")

    async def stop(self, grace: float) -> None:
        """As `app_is_unhealthy`, for good."""
        self._types = {}
        await self.app_is_unhealthy(grace)

    async def app_is_unhealthy(self, grace: float) -> None:
        """Others get its actors. Returns after `grace` seconds at the latest."""
        try:
            async with asyncio.timeout(grace):
                await self._end_hosting()
        except TimeoutError:
            logger.warning("actors were given up while they had work in hand")

    async def _end_hosting(self) -> None:
        moving, self._moving = self._moving, None
        if moving is not None:
            await end(moving)
        await self._unhost()

    async def _host(self, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await end(before)
        await self._serve()
        for name, settings in self._types.items():
            if name not in self._calls.hostings:
                hosting = self._calls.hostings[name] = self._hosting(name, settings)
                self._directory.tell(name, {})
                hosting.start()
                self._reminders.host(name)
                logger.info("hosting actors of type %s", name)

    async def _serve(self) -> None:
        if self._server is not None:
            return
        serve = partial(
            self._common.backbone.requests.serve,
            addressing.actors_host(self._common.me).app_id,
            self._calls.answer,
            concurrency=AT_ONCE,
            instance=self._instance,
        )
        complaint = "other apps cannot call the actors of this one"
        self._server = await persist(serve, self._common.clock, complaint, logger)

    def _hosting(self, name: str, settings: Settings) -> Hosting:
        common = self._common
        assert common.channel is not None  # noqa: S101 - it was the app that asked for it

        def join(handler: PartitionHandler, *, revoke_limit: float) -> Partitions:
            return Partitions(
                common.backbone.tables,
                addressing.actors_scope(name),
                GROUP,
                addressing.ACTOR_PARTITIONS,
                handler,
                node=f"{common.app_id}-{self._instance[:8]}",
                clock=common.clock,
                ttl=common.settings.actor_lease,
                revoke_limit=revoke_limit,
            )

        return Hosting(
            name,
            settings,
            Callbacks(common.me, common.channel),
            join,
            common.clock,
            tell=partial(self._directory.tell, name),
            limit=common.resiliency.for_turn(name),
            work=common.telemetry.meter.actors(name),
        )

    async def _unhost(self) -> None:
        """Turns end, actors are deactivated, others have the partitions."""
        await asyncio.gather(*map(self._reminders.unhost, list(self._calls.hostings)))
        await asyncio.gather(*(hosting.close() for hosting in self._calls.hostings.values()))
        for name in list(self._calls.hostings):
            del self._calls.hostings[name]
            self._directory.tell(name, None)
        server, self._server = self._server, None
        if server is not None:
            await server.close()

    # Companion

    def start(self) -> None:
        self._directory.start()

    async def close(self) -> None:
        """Nothing more begins by itself. Actors can be called until requests are answered."""
        await self._timers.close()

    async def _close(self) -> None:
        self._closed = True
        await self._reminders.close()
        await self._directory.close()
        await self._store.close()

    # What others make of it

    @property
    def channel(self) -> AppChannel | None:
        """That of the app; events that are routed to actors go there."""
        own = self._common.channel
        return None if own is None else WithActors(own, self._calls.call)

    def describe(self) -> dict[str, Any]:
        """Members of the metadata object (Dapr)."""
        hosting = self._calls.hostings
        ready = self._directory.current and all(name in hosting for name in self._types)
        active = [{"type": name, **({"count": count} if count else {})} for name, count in self._calls.active().items()]
        runtime: dict[str, Any] = {
            "runtimeStatus": "RUNNING" if ready else "INITIALIZING",
            "hostReady": ready and bool(hosting),
            "placement": f"placement: {'connected' if self._directory.current else 'disconnected'}",
        }
        if active:
            runtime["activeActors"] = active
        return {"actorRuntime": runtime, **({"actors": active} if active else {})}

    def apis(self) -> list[Api]:
        return [
            ActorsApi(
                self._calls,
                self._directory,
                self._state,
                self._timers,
                self._reminders,
                self._common.body_limit,
                is_closed=lambda: self._closed,
            )
        ]

    def join(self, runtime: Runtime) -> None:
        """Begin and end with the sidecar."""
        runtime.configured.append(self.configured)
        runtime.companions.append(self)
        runtime.followers.append(self)
        runtime.closing.append(self._close)
