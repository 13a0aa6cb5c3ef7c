"""The life of one sidecar: start in Dapr's order, run until told to stop, stop in the reverse order."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from enum import Enum
from functools import partial
from typing import NamedTuple, Protocol

import msgspec

from mesh import subscriptions
from mesh.bindings.input import Inputs
from mesh.errors import AppError, ConfigurationError
from mesh.invocation import Callee
from mesh.persistence import persist
from mesh.ports import AppChannel, Clock, Server
from mesh.pubsub import DEFAULT_COMPONENT
from mesh.resiliency.policy import Policy
from mesh.resiliency.retry import Failure
from mesh.resources import Resources
from mesh.subscriber import Subscriber
from mesh.subscriptions import SubscriptionSpec
from sidecar.app_health import AppHealth
from sidecar.backbone import Backbone
from sidecar.channel import OutsideWorld
from sidecar.components import Components
from sidecar.folder_watch import FolderWatch
from sidecar.health import Health
from sidecar.http.server import HttpServer
from sidecar.telemetry import Observers

logger = logging.getLogger("meshwire.runtime")

INIT_TIMEOUT = 10.0
"""Seconds in which the app must answer `GET /dapr/config` and `GET /dapr/subscribe`."""
DRAIN_LIMIT = 30.0
"""Seconds that what is under way gets to be finished when no other limit is set."""
DRAIN_SHARE = 0.7
"""The part of the whole grace that they get."""
REQUEST_GRACE = 10.0
"""Seconds that open API requests get to be answered."""
REQUEST_SHARE = 0.2
"""The part of the whole grace that they get at most."""
SERVE_LIMIT = 5.0
"""Seconds that the start waits until others can call the app."""
CALLS = 1024
"""Invocations of the app that are worked on at once; further ones wait."""


class End(Enum):
    """Why a run ended."""

    STOPPED = "stopped"
    RELOAD = "reload"
    """SIGHUP: start again, with the files read anew."""
    OVERDUE = "overdue"
    """The shutdown took longer than its grace."""


class ReadAgain(NamedTuple):
    """How manifests that are changed while the sidecar runs take effect."""

    folders: FolderWatch
    load: Callable[[], Resources]
    """Read them all. Raises `ConfigurationError`. Called in a thread."""
    check: Callable[[Resources], None]
    """Whether a sidecar could start with them, as far as can be told. Raises `ConfigurationError`."""


class Companion(Protocol):
    """What works beside the subscriptions, for as long as the broker is there."""

    def start(self) -> None:
        """Begin, in the background."""
        ...

    async def close(self) -> None:
        """Returns when nothing is under way any more."""
        ...


class Follower(Protocol):
    """What works only while the app is there, beside subscriptions and input bindings. Times in seconds."""

    def app_is_healthy(self) -> None:
        """Begin, in the background; may be called again."""
        ...

    async def app_is_unhealthy(self, grace: float) -> None:
        """Returns when nothing is in the app's hands any more, or given up."""
        ...

    async def stop(self, grace: float) -> None:
        """As `app_is_unhealthy`, for good."""
        ...


class App(msgspec.Struct, frozen=True, kw_only=True):
    """The app beside this sidecar, and what to ask it."""

    channel: AppChannel
    port: int
    health: AppHealth
    ask_config: bool
    ask_subscriptions: bool


class Runtime:
    """One start and stop of a sidecar. `sidecar.assembly` puts it together."""

    def __init__(
        self,
        *,
        app_id: str,
        backbone: Backbone,
        outside: OutsideWorld,
        callee: Callee,
        clock: Clock,
        init_retries: Policy,
        components: Components,
        manifests: Resources,
        read_again: ReadAgain | None,
        health: Health,
        servers: Sequence[HttpServer],
        observers: Observers,
        app: App | None,
        subscriber: Subscriber | None,
        inputs: Inputs,
        grace: float,
        block_shutdown: float | None,
    ) -> None:
        self._app_id = app_id
        self._backbone = backbone
        self._outside = outside
        self._callee = callee
        self._clock = clock
        self._serving: asyncio.Task[None] | None = None
        self._service: Server | None = None
        self._init_retries = init_retries
        self._components = components
        self._manifests = manifests
        self._read_again = read_again
        self._watching: asyncio.Task[None] | None = None
        self.ending: list[Callable[[], None]] = []
        """Called when the sidecar begins to stop, before it waits for requests."""
        self.closing: list[Callable[[], Awaitable[None]]] = []
        """Awaited one after another when requests are answered, and tables are still open."""
        self.companions: list[Companion] = []
        self.followers: list[Follower] = []
        self.configured: list[Callable[[bytes], None]] = []
        """Each called with what the app answers to `GET /dapr/config`, before it is first taken for healthy."""
        self._health = health
        self._servers = servers
        self._observers = observers
        self._app = app
        self._grace = grace
        self._block_shutdown = block_shutdown
        self._subscriber = subscriber
        self._inputs = inputs
        components.settled = self._settled
        components.changed.append(self._component_changed)
        self._asked: list[SubscriptionSpec] = []
        self._specs: list[SubscriptionSpec] | None = None
        self._end: asyncio.Future[End] = asyncio.get_running_loop().create_future()
        self._unhealthy = asyncio.Event()
        self.on_ready: Callable[[], None] = lambda: None
        """Called once the API listens."""

    @property
    def subscriptions(self) -> Sequence[SubscriptionSpec]:
        """What the app asked for and the manifests declare, once the app was asked."""
        return self._specs or ()

    @property
    def taking_events(self) -> Sequence[SubscriptionSpec] | None:
        """The subscriptions of an app that is there and takes events; `None` while it is not or does not."""
        return self._specs if self._app is not None and self._app.health.healthy else None

    @property
    def channel(self) -> AppChannel | None:
        return None if self._app is None else self._app.channel

    @property
    def subscribed(self) -> bool:
        """Whether the app was asked, and the broker has taken each of its subscriptions that can be."""
        return self._specs is not None and (self._subscriber is None or self._subscriber.stands)

    def stop(self, end: End = End.STOPPED) -> None:
        """Begin to stop. A second call does nothing."""
        if not self._end.done():
            self._end.set_result(end)

    async def run(self) -> End:
        """Returns when the sidecar has stopped. Raises `ConfigurationError` when it cannot start."""
        started = time.monotonic()
        work = asyncio.get_running_loop().create_task(self._start(started), name="start")
        work.add_done_callback(self._note)
        try:
            await self._end
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            in_time = await self._shut_down()
        end = self._end.result()
        return end if in_time else End.OVERDUE

    def _note(self, start: asyncio.Task[None]) -> None:
        """A start that failed ends the run, with what went wrong."""
        error = None if start.cancelled() else start.exception()
        if error is not None and not self._end.done():
            self._end.set_exception(error)

    async def _start(self, started: float) -> None:
        for server in self._servers:
            await server.start()
        await self._observers.start()
        self.on_ready()
        await self._backbone.start()
        await self._components.load(self._manifests.components)
        await self._complete_endpoints()
        self._health.reached("runtime")
        for companion in self.companions:
            companion.start()
        if self._read_again is not None:
            watch = self._watch(self._read_again)
            self._watching = asyncio.get_running_loop().create_task(watch, name="watch manifests")
        if self._app is not None:
            await self._app.channel.wait_until_listening()
        await self._serve_calls()
        if self._app is not None:
            await self._app.health.start(self._app_is_healthy, self._app_is_unhealthy)
        self._health.reached("app")
        logger.info("dapr initialized. Status: Running. Init Elapsed %.0fms", 1000 * (time.monotonic() - started))

    async def _complete_endpoints(self) -> None:
        for endpoint in self._manifests.endpoints_to_complete:
            self._outside.add([endpoint.complete(await self._components.fetch(endpoint.references))])

    async def _watch(self, again: ReadAgain) -> None:
        while True:
            await again.folders.changed()
            try:
                found = await asyncio.to_thread(again.load)
                again.check(found)
                await self._apply(found)
            except ConfigurationError as error:
                logger.error("the changed manifests are not used: %s", error)
            except Exception:  # else no later change would be seen
                logger.exception("the changed manifests could not be used")

    async def _apply(self, found: Resources) -> None:
        """Manifests that have changed: live where that can be, else by a new start (Dapr)."""
        earlier, self._manifests = self._manifests, found
        for warning in found.warnings:
            if warning not in earlier.warnings:
                logger.warning("%s", warning)
        if found.restart_fingerprint != earlier.restart_fingerprint:
            logger.info("manifests that cannot be changed while the sidecar runs have changed: starting anew")
            self.stop(End.RELOAD)
            return
        await self._components.apply(found.components)
        if found.subscriptions != earlier.subscriptions:
            for refusal in subscriptions.from_manifests(found.subscriptions).refused:
                logger.error("%s", refusal)
            if self._specs is not None:
                self._specs = self._merged()
                if self._app is not None and self._app.health.healthy and self._subscriber is not None:
                    self._subscriber.start(self._specs)

    async def _settled(self, limit: float) -> None:
        await asyncio.gather(*(server.settled(limit) for server in self._servers))

    def _component_changed(self, category: str, _name: str) -> None:
        if category == "pubsub" and self._subscriber is not None:
            self._subscriber.refresh()
        if category == "bindings":
            self._inputs.refresh()

    async def _serve_calls(self) -> None:
        """Other apps can call this one from now on, or as soon as the broker lets them. Without a port, they are told
        so."""

        async def serve() -> None:
            attempt = partial(self._backbone.requests.serve, self._app_id, self._callee.answer, concurrency=CALLS)
            self._service = await persist(attempt, self._clock, "other apps cannot call this one", logger)

        self._serving = asyncio.get_running_loop().create_task(serve(), name="serve calls")
        self._serving.add_done_callback(self._note)
        await asyncio.wait([self._serving], timeout=SERVE_LIMIT)

    async def _app_is_healthy(self) -> None:
        """Ask the app what it wants, at the first time; then subscribe."""
        self._unhealthy.clear()
        if self._app is None or self._subscriber is None or self._end.done():
            return
        if self._specs is None:
            if self._app.ask_config:
                await self._ask_config(self._app.channel)
            if self._app.ask_subscriptions and self._components.of("pubsub"):
                self._asked = await self._ask_subscriptions(self._app.channel)
            self._specs = self._merged()
        self._subscriber.start(self._specs)
        self._inputs.app_is_healthy()
        for follower in self.followers:
            follower.app_is_healthy()

    def _merged(self) -> list[SubscriptionSpec]:
        """What the app asked for, and what the manifests declare."""
        return subscriptions.merge(self._asked, subscriptions.from_manifests(self._manifests.subscriptions).specs)

    async def _app_is_unhealthy(self) -> None:
        self._unhealthy.set()
        if self._subscriber is not None:
            await self._subscriber.stop(self._grace or DRAIN_LIMIT)
        await self._inputs.app_is_unhealthy(self._grace or DRAIN_LIMIT)
        await asyncio.gather(*(follower.app_is_unhealthy(self._grace or DRAIN_LIMIT) for follower in self.followers))

    async def _ask(self, channel: AppChannel, path: str) -> tuple[int, bytes] | None:
        """Status and body of a `GET` to the app; `None` when it cannot be reached."""
        route = channel.prepare("GET", path, [("dapr-app-id", self._app_id)])
        try:
            response = await self._init_retries.run(lambda: route.send(timeout=INIT_TIMEOUT), failed=_unreachable)
        except AppError as error:
            logger.warning("GET %s: %s", path, error)
            return None
        return response.status, response.body

    async def _ask_config(self, channel: AppChannel) -> None:
        """`GET /dapr/config`: which actors it hosts. Anything but a 200 is none (Dapr)."""
        answer = await self._ask(channel, "/dapr/config")
        if answer is not None and answer[0] == 200:
            for configured in self.configured:
                configured(answer[1])

    async def _ask_subscriptions(self, channel: AppChannel) -> list[SubscriptionSpec]:
        """`GET /dapr/subscribe`. What is wrong with the answer is logged; the declared subscriptions start anyway."""
        answer = await self._ask(channel, "/dapr/subscribe")
        if answer is None:
            logger.error("the app's subscriptions are not known: it does not answer GET /dapr/subscribe")
            return []
        try:
            parsed = subscriptions.parse_programmatic(*answer, default_pubsub=DEFAULT_COMPONENT)
        except subscriptions.InvalidSubscriptions as error:
            logger.error("%s; the app gets none of its subscriptions", error)
            return []
        for problem in parsed.refused:
            logger.error("%s", problem)
        for warning in parsed.warnings:
            logger.warning("%s", warning)
        return parsed.specs

    async def _shut_down(self) -> bool:
        """False when the grace was not enough."""
        grace = self._grace if self._grace > 0 else None
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        end = self._end
        if end.done() and not end.cancelled() and end.exception() is None:  # else there is nothing to go on with
            logger.info("dapr shutting down")
            if self._block_shutdown is not None and self._app is not None:
                await self._block(self._block_shutdown)
        for end_now in self.ending:
            end_now()
        try:
            async with asyncio.timeout(grace):
                await self._drain(DRAIN_LIMIT if grace is None else DRAIN_SHARE * grace)
                for server in self._servers:
                    await server.stop(REQUEST_GRACE if grace is None else min(REQUEST_GRACE, REQUEST_SHARE * grace))
                for close in self.closing:
                    await close()
                await self._components.close()
                await self._backbone.close()
                await self._outside.close()
                if self._app is not None:
                    await self._app.channel.close()
                await self._observers.close()
        except TimeoutError:
            logger.error("shutting down took longer than %.0f s; giving up", self._grace)
            return False
        return True

    async def _block(self, seconds: float) -> None:
        """Dapr: take no more events, but serve the API until the time is over or the app is unhealthy."""
        logger.info("blocking the shutdown for %.0f s, or until the app is unhealthy", seconds)
        await self._stop_deliveries(seconds)
        try:
            async with asyncio.timeout(seconds):
                await self._unhealthy.wait()
        except TimeoutError:
            pass

    async def _drain(self, within: float) -> None:
        """Take nothing new from anybody, all at once: whoever has much to finish must not let others begin more."""
        if self._app is not None:
            await self._app.health.stop()
        await asyncio.gather(
            self._stop_deliveries(within),
            _within(within, self._close_service(), "calls that other apps make and the app has not answered"),
            _within(within, self._close_companions(), "what this sidecar does by itself, which takes too long"),
        )

    async def _stop_deliveries(self, within: float) -> None:
        stopping = [self._inputs.stop(within), *(follower.stop(within) for follower in self.followers)]
        if self._subscriber is not None:
            stopping.append(self._subscriber.stop(within))
        await asyncio.gather(*stopping)

    async def _close_service(self) -> None:
        """Take no more calls; those under way may be answered."""
        if self._serving is not None:
            self._serving.cancel()
            await asyncio.gather(self._serving, return_exceptions=True)
        if self._service is not None:
            await self._service.close()

    async def _close_companions(self) -> None:
        await asyncio.gather(*(companion.close() for companion in self.companions))


async def _within(seconds: float, work: Awaitable[None], what: str) -> None:
    try:
        async with asyncio.timeout(seconds):
            await work
    except TimeoutError:
        logger.warning("cutting off %s", what)


def _unreachable(outcome: object) -> Failure | None:
    return Failure() if isinstance(outcome, AppError) else None
