"""`GET /mesh/v1/subscriptions`: how those of the app stand, over all its replicas; `POST
/mesh/v1/subscriptions/{pubsub}/{topic}`: pause, resume, drain and limit them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from starlette.types import Receive, Scope, Send

from mesh.control import setting as settings
from mesh.control.control import Control, Replicas
from mesh.control.setting import InvalidAction, Name, Setting
from mesh.delivery.live import Live
from mesh.delivery.plan import Plan
from mesh.errors import ApiError, BrokerError, Code
from mesh.inquiry import TooManyQuestions
from mesh.ports import Backlog, Group
from mesh.pubsub import Component
from sidecar.api.state import send_json
from sidecar.api.strict import invalid
from sidecar.http.body import BodyTooLarge, read_body
from sidecar.http.routing import Router

MAX_BODY = 64 * 1024
"""Bytes of a request."""
BACKLOG_LIMIT = 2.0
"""Seconds that the broker has to say what waits in the groups; without that they are told without."""


class SubscriptionsApi:
    def __init__(
        self,
        app_id: str,
        control: Control,
        components: Mapping[str, Component],
        running: Callable[[], Mapping[Name, Live]],
    ) -> None:
        """`running` are the subscriptions of this sidecar."""
        self._app_id = app_id
        self._control = control
        self._components = components
        self._running = running

    def add_to(self, router: Router) -> None:
        group = "mesh/subscriptions"
        router.add(("GET",), "/mesh/v1/subscriptions", self.list_all, group=group)
        router.add(("POST",), "/mesh/v1/subscriptions/{pubsub}/{topic:path}", self.act, group=group)

    async def list_all(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        """Those that run in any replica, and those for which something is set."""
        with _translated():
            await self._control.current()
            replicas = await self._control.replicas()
        elsewhere = {one.name for there in replicas.there.values() for one in there}
        names = sorted(self._running().keys() | elsewhere | self._control.named())
        told = await asyncio.gather(*(self._tell(name, replicas) for name in names))
        await send_json(send, {"subscriptions": told, **_silent(replicas)})

    async def act(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers with how the subscription stands once all replicas obey."""
        try:
            action = settings.parse(await read_body(receive, MAX_BODY, scope))
        except InvalidAction as error:
            raise invalid(str(error)) from None
        except BodyTooLarge:
            raise invalid(f"the body is longer than {MAX_BODY} bytes") from None
        name = Name(scope["path_params"]["pubsub"], scope["path_params"]["topic"], action.group)
        with _translated():
            await self._control.current()
            await self._check(name)
            replicas = await self._control.act(name, action)
        await send_json(send, {**await self._tell(name, replicas), **_silent(replicas)})

    async def _check(self, name: Name) -> None:
        """Whether there is such a subscription: here, elsewhere, or at the broker, while nobody runs it."""
        component = self._components.get(name.pubsub)
        if component is None:
            raise ApiError(Code.PUBSUB_NOT_FOUND, f"pubsub {name.pubsub} is not found", metadata={})
        if name in self._running() or name in self._control.named():
            return
        if await component.log.backlog(self._group(name)) is None and not (await self._control.replicas()).of(name):
            of_group = f", group {name.group}," if name.group else ""
            raise ApiError(
                Code.SUBSCRIPTION_NOT_FOUND,
                f"app {self._app_id} has no subscription to topic {name.topic}{of_group} of {name.pubsub}",
            )

    async def _tell(self, name: Name, replicas: Replicas) -> dict[str, Any]:
        there = replicas.of(name)
        setting = self._control.setting(name)
        in_hand = sum(one.in_hand for one in there.values())
        live = self._running().get(name)
        return {
            "pubsubname": name.pubsub,
            "topic": name.topic,
            **({"group": name.group} if name.group else {}),
            "state": _state(setting, in_hand, is_there=bool(there), all_said=not replicas.silent),
            **({} if setting.rate is None else {"rate": setting.rate}),
            **({} if setting.concurrency is None else {"concurrency": setting.concurrency}),
            **({} if live is None else {"plan": _summary(live.plan)}),
            "inHand": in_hand,
            **_waiting(await self._backlog(name)),
            "replicas": [
                {"sidecar": sidecar, "inHand": one.in_hand, "concurrency": one.concurrency}
                for sidecar, one in sorted(there.items())
            ],
        }

    async def _backlog(self, name: Name) -> Backlog | None:
        component = self._components.get(name.pubsub)
        if component is None:
            return None
        try:
            async with asyncio.timeout(BACKLOG_LIMIT):
                return await component.log.backlog(self._group(name))
        except (BrokerError, TimeoutError):
            return None

    def _group(self, name: Name) -> Group:
        live = self._running().get(name)  # a broadcast has a group of its own in each replica
        if live is not None:
            return live.group
        return Group(self._app_id, self._components[name.pubsub].address(name.topic), name.group)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (BrokerError, TooManyQuestions) as error:
        raise ApiError(Code.SUBSCRIPTION_CONTROL, f"the replicas cannot be reached: {error}") from error


def _state(setting: Setting, in_hand: int, *, is_there: bool, all_said: bool) -> str:
    if setting.draining:
        return "draining" if in_hand or not all_said else "drained"
    if setting.paused:
        return "paused"
    return "running" if is_there else "absent"


def _summary(plan: Plan) -> dict[str, Any]:
    """The plan in brief; `GET /mesh/v1/plans` has all of it."""
    return {
        "attempts": plan.attempts,
        "timeoutSeconds": plan.timeout,
        "concurrency": plan.concurrency,
        "order": plan.order.value,
        **({} if plan.dead_letter is None else {"deadLetterTopic": plan.dead_letter.name}),
        **({"broadcast": True} if plan.broadcast else {}),
    }


def _waiting(backlog: Backlog | None) -> dict[str, Any]:
    return {} if backlog is None else {"backlog": {"waiting": backlog.waiting, "unsettled": backlog.unsettled}}


def _silent(replicas: Replicas) -> dict[str, Any]:
    return {"silent": replicas.silent} if replicas.silent else {}
