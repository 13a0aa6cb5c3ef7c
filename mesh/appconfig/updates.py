"""Telling the app what has changed: its subscriptions to configuration items, and the calls that they lead to.

Dapr: one `POST /configuration/<store>/<key>` for each key that has changed; 200 means that the app has taken it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any
from urllib.parse import quote

import msgspec

from mesh.errors import AppError, MeshError, clip
from mesh.ports import AppChannel, AppResponse, Clock
from mesh.ports.stores import ConfigurationItem, ConfigurationStore, StoreError
from mesh.resiliency.policy import TimedOut
from mesh.resiliency.retry import Failure
from mesh.resiliency.targets import Direction, Resiliency

log = logging.getLogger("meshwire.configuration")

BEGIN_LIMIT = 10.0
"""Seconds in which a store must have begun to watch."""
CALL_LIMIT = 60.0
"""Seconds that the app may take for one change, unless a policy says less."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds until a watch that the store has refused is tried again; doubling."""

Items = Mapping[str, ConfigurationItem]
_encode = msgspec.json.Encoder().encode
_HEADERS = (("content-type", "application/json"),)


class Teller:
    """Tells the app of changes, one call after the other for each subscription."""

    def __init__(self, channel: AppChannel, resiliency: Resiliency) -> None:
        self._channel = channel
        self._resiliency = resiliency

    async def tell(self, subscription: str, store: str, items: Items) -> None:
        """One call for each key, each with all of `items` (Dapr). What the app does not take is logged."""
        body = _encode({"id": subscription, "items": {key: _shown(item) for key, item in items.items()}})
        policy = self._resiliency.for_component(store, Direction.INBOUND, "configuration")
        for key in items:
            path = f"/configuration/{_segment(store)}/{_segment(key)}"

            async def call(path: str = path) -> AppResponse:
                return await self._channel.request("POST", path, _HEADERS, body, timeout=CALL_LIMIT)

            try:
                answer = await (call() if policy is None else policy.run(call, failed=_judge))
            except MeshError as error:
                self._complain(store, key, str(error))
            else:
                if answer.status != 200:
                    self._complain(store, key, f"it answered {answer.status}, and not 200")

    @staticmethod
    def _complain(store: str, key: str, why: str) -> None:
        log.error("the app was not told that %s of the configuration store %s has changed: %s", clip(key), store, why)


def _segment(name: str) -> str:
    """One segment of a path that stays one."""
    return name.replace(".", "%2E") if name in (".", "..") else quote(name, safe="")


def _shown(item: ConfigurationItem) -> dict[str, Any]:
    """The value is there even when it is empty, since a deleted item comes so."""
    return {"value": item.value, **shown(item)}


def shown(item: ConfigurationItem) -> dict[str, Any]:
    """As Dapr shows an item: members that would be empty are left out."""
    members = {"value": item.value, "version": item.version, "metadata": dict(item.metadata)}
    return {name: member for name, member in members.items() if member}


def _judge(outcome: object) -> Failure | None:
    if isinstance(outcome, AppResponse):
        return None if outcome.status == 200 else Failure()
    return Failure() if isinstance(outcome, AppError | TimedOut) else None


class Subscription:
    """What an app follows in one store. While the component is exchanged it follows the new one and the old one."""

    def __init__(
        self,
        name: str,
        keys: Sequence[str],
        metadata: Mapping[str, str],
        clock: Clock,
        tell: Callable[[Items], Awaitable[None]],
    ) -> None:
        """`name` is that of the component."""
        self.name = name
        self._keys = keys
        self._metadata = metadata
        self._clock = clock
        self._tell = tell
        self._following: dict[int, asyncio.Task[None]] = {}
        """By the identity of the store."""

    async def begin(self, store: ConfigurationStore) -> None:
        """Returns once every change from then on will be told. Raises `StoreError`, and `TimedOut`."""
        changes = store.watch(self._keys, self._metadata)
        try:
            async with asyncio.timeout(BEGIN_LIMIT):
                await anext(changes, None)
        except TimeoutError:
            await changes.aclose()
            raise TimedOut from None
        except BaseException:
            await changes.aclose()
            raise
        self._follow(store, changes)

    def move(self, store: ConfigurationStore) -> None:
        """Follow `store` in place of what was followed, which goes on until the new one stands."""
        if id(store) not in self._following:
            earlier = list(self._following.values())
            self._follow(store, store.watch(self._keys, self._metadata), earlier)

    async def leave(self, store: ConfigurationStore) -> bool:
        """The store is about to be closed. Returns whether nothing is followed any more because of it."""
        return id(store) in self._following and not await self._end([id(store)])

    async def end(self) -> None:
        await self._end(list(self._following))

    def _follow(
        self,
        store: ConfigurationStore,
        changes: AsyncGenerator[Items, None],
        earlier: Sequence[asyncio.Task[None]] = (),
    ) -> None:
        work = self._run(store, changes, earlier)
        self._following[id(store)] = asyncio.get_running_loop().create_task(work, name=f"configuration {self.name}")

    async def _end(self, stores: Sequence[int]) -> bool:
        """Whether others are followed still."""
        tasks = [task for store in stores if (task := self._following.pop(store, None)) is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return bool(self._following)

    async def _run(
        self,
        store: ConfigurationStore,
        changes: AsyncGenerator[Items, None],
        earlier: Sequence[asyncio.Task[None]],
    ) -> None:
        """Until the store is closed. Once its watch stands the earlier ones end."""
        pause = FIRST_PAUSE
        while True:
            try:
                async with aclosing(changes):
                    async for items in changes:
                        pause = FIRST_PAUSE
                        for task in earlier:
                            task.cancel()
                        await self._tell(items)
                return
            except StoreError as error:
                log.warning("cannot watch the configuration store %s, again in %.1f s: %s", self.name, pause, error)
            except Exception as error:  # the app relies on it, and nobody waits for this task
                log.error("configuration store %s, again in %.1f s: %s", self.name, pause, error, exc_info=error)
            await self._clock.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
            changes = store.watch(self._keys, self._metadata)
