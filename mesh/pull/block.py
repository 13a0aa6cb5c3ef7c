"""The building block behind the pull API: the groups that clients of one sidecar pull from."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from mesh.control.setting import Name
from mesh.delivery.compile import plan_of
from mesh.delivery.letters import DeadLetters
from mesh.delivery.live import Live
from mesh.delivery.target import NO_LINES
from mesh.delivery.watch import DeliveryWatch
from mesh.errors import ApiError, Code, MeshError
from mesh.ports import Clock, Group, HeaderLines
from mesh.pubsub import Component
from mesh.pull.group import DEMAND, IDLE_LIMIT, Clients
from mesh.pull.locks import EndedLock, ForeignToken, Lock, Locks, UnknownToken
from mesh.pull.request import Pull
from mesh.resiliency.targets import Resiliency
from mesh.routing import Route
from mesh.subscriptions import SubscriptionSpec
from mesh.telemetry import SILENCE, Telemetry

MAX_GROUPS = 256
"""From which clients of one sidecar pull at once."""
MAX_LOCKS = 10_000
"""Events in the hands of all its clients."""
MAX_WAITING = 1_000
"""Clients that wait."""
PLACE_LIMIT = 10.0
"""Seconds that the broker has to give a group its place, beyond the wait that a client asked for."""

NOWHERE = Route("", "/")
"""Where events that are pulled are pushed to."""


class _NoHeaders:
    """Answers have none for each event."""

    def header_lines(self, headers: Sequence[tuple[str, str]]) -> HeaderLines:
        return NO_LINES


_NO_HEADERS = _NoHeaders()


class _Group(NamedTuple):
    component: Component
    clients: Clients
    live: Live


class Failed(NamedTuple):
    """Of one token of several."""

    token: str
    error: ApiError


class Pulls:
    """Hands events to clients that ask, by the plan of the component."""

    def __init__(
        self,
        app_id: str,
        sidecar: str,
        components: Mapping[str, Component],
        clock: Clock,
        *,
        resiliency: Resiliency,
        is_pushed: Callable[[Name], bool] = lambda _name: False,
        dead_letters: DeadLetters | None = None,
        watch: Callable[[Group], DeliveryWatch] | None = None,
        telemetry: Telemetry = SILENCE,
    ) -> None:
        """`components` by their names; they may change while this runs. `is_pushed` says whether the app itself gets
        the events of a group."""
        self._app_id = app_id
        self._components = components
        self._clock = clock
        self._resiliency = resiliency
        self._is_pushed = is_pushed
        self._dead_letters = dead_letters
        self._watch = watch
        self._telemetry = telemetry
        self._groups: dict[Name, _Group] = {}
        self._ending: dict[Name, asyncio.Task[None]] = {}
        self._waiting = 0
        self._promised = 0
        """Events that those who wait may get."""
        self._closed = False
        self.locks = Locks(sidecar, clock)
        self.began: list[Callable[[Name, Live], None]] = []
        """Each called before a group asks the broker for events."""
        self.ended: list[Callable[[Name, Live], None]] = []

    async def pull(self, pubsub: str, topic: str, asked: Pull) -> Sequence[Lock]:
        """The events that there are; none after the wait, once the group has its place. Raises `ApiError`."""
        name = Name(pubsub, topic, asked.group)
        self._check_limits(asked.max_messages)
        group = self._group(name, asked)
        self._waiting += 1
        self._promised += asked.max_messages
        try:
            locks = await group.clients.pull(asked.max_messages, asked.wait_seconds, asked.lock_seconds)
            if not await group.live.stands(PLACE_LIMIT) and not self._closed:
                raise ApiError(
                    Code.PULL, f"the broker has not taken the subscription to topic {topic} yet: pull again later"
                )
            return locks
        finally:
            self._waiting -= 1
            self._promised -= asked.max_messages

    def settle(self, tokens: Iterable[str], how: Callable[[str], object]) -> list[Failed]:
        """Do `how` (`Locks.ack` and the like) to each. Returns what could not be done."""
        failed: list[Failed] = []
        for token in dict.fromkeys(tokens):
            try:
                how(token)
            except ForeignToken as error:
                failed.append(Failed(token, ApiError(Code.PULL_TOKEN_FOREIGN, str(error))))
            except UnknownToken as error:
                failed.append(Failed(token, ApiError(Code.PULL_TOKEN_UNKNOWN, str(error))))
            except EndedLock as error:
                failed.append(Failed(token, ApiError(Code.PULL_TOKEN_EXPIRED, str(error))))
        return failed

    def running(self) -> dict[Name, Live]:
        return {name: group.live for name, group in self._groups.items()}

    def turn_away(self) -> None:
        """The sidecar begins to stop: clients that wait are answered, others refused."""
        self._closed = True
        for group in self._groups.values():
            group.clients.turn_away()
            group.live.give_up()

    async def close(self) -> None:
        """Give back what clients have in hand, to whoever pulls elsewhere."""
        self.turn_away()
        for name in list(self._groups):
            self._end(name)
        self.locks.give_back_all()
        await asyncio.gather(*self._ending.values(), return_exceptions=True)

    def _check_limits(self, wanted: int) -> None:
        if self._closed:
            raise ApiError(Code.PULL, "the sidecar ends")
        if len(self.locks) + self._promised + wanted > MAX_LOCKS:
            raise ApiError(
                Code.PULL_LIMIT,
                f"clients of this sidecar have {len(self.locks)} events in hand and wait for {self._promised} more, of "
                f"at most {MAX_LOCKS}: settle some",
            )
        if self._waiting >= MAX_WAITING:
            raise ApiError(Code.PULL_LIMIT, f"{MAX_WAITING} clients wait already: pull again later")

    def _group(self, name: Name, asked: Pull) -> _Group:
        component = self._component(name)
        group = self._groups.get(name)
        if group is not None and group.component is not component:  # it was configured anew
            self._end(name)
            group = None
        if group is None:
            if len(self._groups) >= MAX_GROUPS:
                raise ApiError(
                    Code.PULL_LIMIT, f"clients pull from {MAX_GROUPS} groups already; one is left {IDLE_LIMIT:g} s idle"
                )
            group = self._groups[name] = self._begin(name, component, asked)
        return group

    def _component(self, name: Name) -> Component:
        component = self._components.get(name.pubsub)
        if component is None:
            raise ApiError(Code.PUBSUB_NOT_FOUND, f"pubsub {name.pubsub} is not found", metadata={})
        resource = ("pubsub", name.pubsub)
        if not component.scopes.may_subscribe(self._app_id, name.topic):
            message = f"topic {name.topic} is not allowed for app id {self._app_id}"
            raise ApiError(Code.PUBSUB_FORBIDDEN, message, resource=resource, metadata={"appID": self._app_id})
        if self._is_pushed(name):
            raise ApiError(
                Code.SUBSCRIPTION_PUSHED,
                f"the app is subscribed to topic {name.topic} itself: give your pull a group of its own",
                resource=resource,
            )
        return component

    def _begin(self, name: Name, component: Component, asked: Pull) -> _Group:
        spec = SubscriptionSpec(
            pubsub=name.pubsub, topic=name.topic, routes=(NOWHERE,), type="PROGRAMMATIC", origin="pull"
        )
        policies = self._resiliency.inbound(component.name, "pubsub")
        try:
            plan = plan_of(spec, component, policies, self._app_id, component.log.features).plan
        except MeshError as error:
            resource = ("pubsub", name.pubsub)
            raise ApiError(Code.TOPIC_INVALID, str(error), resource=resource, metadata={"topic": name.topic}) from None
        clients = Clients(self._app_id, self.locks, self._clock, lambda: self._leave(name, clients))
        address = Group(self._app_id, component.address(name.topic), name.group)
        live = Live(
            group=address,
            target=clients,
            plan=msgspec.structs.replace(plan, concurrency=MAX_LOCKS, breaker=None, broadcast=False),
            log=component.log,
            channel=_NO_HEADERS,
            clock=self._clock,
            dead_letters=self._dead_letters,
            watch=None if self._watch is None else self._watch(address),
            telemetry=self._telemetry,
            start=asked.beginning,
            lasting=True,
        )
        clients.gate = live.gate
        live.gate.wish(DEMAND, asked.max_messages)
        for tell in self.began:
            tell(name, live)
        live.begin(self._ending.get(name))
        return _Group(component, clients, live)

    def _leave(self, name: Name, clients: Clients) -> None:
        group = self._groups.get(name)
        if group is not None and group.clients is clients:
            self._end(name)

    def _end(self, name: Name) -> None:
        group = self._groups.pop(name)
        group.clients.turn_away()
        for tell in self.ended:
            tell(name, group.live)
        task = asyncio.get_running_loop().create_task(self._finish(group, self._ending.get(name)))
        self._ending[name] = task

        def forget(done: asyncio.Task[None]) -> None:
            if self._ending.get(name) is done:
                del self._ending[name]

        task.add_done_callback(forget)

    async def _finish(self, group: _Group, earlier: asyncio.Task[None] | None) -> None:
        if earlier is not None:
            await asyncio.wait((earlier,))
        await group.live.end()
