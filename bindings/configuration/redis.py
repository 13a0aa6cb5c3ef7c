"""`configuration.redis`: items that are strings in Redis, in Dapr's layout: `value`, or `value||version`."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from typing import Any

from bindings.configuration.following import SILENCE, check_number, follow
from bindings.redis import Server, fields, translated
from mesh.components import ComponentSpec, Setup
from mesh.errors import clip
from mesh.ports import Clock
from mesh.ports.stores import ConfigurationFeature, ConfigurationItem, InvalidStoreKey, StoreError, StoreUnavailable

log = logging.getLogger("meshwire.configuration")

SEPARATOR = "||"
AT_ONCE = 500
"""Keys that are read by one command."""
NEEDED_EVENTS = "K$gxe"
"""Notifications that a server must send: keyspace events of strings, deletions, expiries and evictions."""


class RedisConfigurationStore:
    """A `ConfigurationStore`. Changes are Redis' keyspace notifications."""

    features: frozenset[ConfigurationFeature] = frozenset()

    def __init__(self, server: Server, clock: Clock) -> None:
        self._server = server
        self._clock = clock
        self._channels = f"__keyspace@{server.settings['redisDB']}__:"
        self._closed = False

    async def start(self) -> None:
        await self._server.start()

    async def ping(self) -> None:
        await self._server.start()

    async def close(self) -> None:
        self._closed = True
        await self._server.close()

    async def get(self, keys: Sequence[str], metadata: Mapping[str, str] = {}) -> dict[str, ConfigurationItem]:
        """What is no string is no item. Raises `StoreError` when all are asked for and there are too many."""
        names = _encoded(keys) if keys else await self._all()
        items: dict[str, ConfigurationItem] = {}
        async with translated():
            for start in range(0, len(names), AT_ONCE):
                part = names[start : start + AT_ONCE]
                for name, value in zip(part, await self._server.client.mget(part), strict=True):
                    if value is not None:
                        try:
                            items[name.decode()] = _item(value.decode())
                        except UnicodeDecodeError:
                            log.warning("a configuration item of Redis is left out: its key or value is no UTF-8")
        return items

    async def _all(self) -> list[bytes]:
        names: set[bytes] = set()
        async with translated():
            async for name in self._server.client.scan_iter(count=AT_ONCE):
                names.add(name)
                check_number(len(names))
        return sorted(names)

    def watch(
        self, keys: Sequence[str], metadata: Mapping[str, str] = {}
    ) -> AsyncGenerator[Mapping[str, ConfigurationItem], None]:
        return follow(
            keys,
            listen=lambda: self._listen(keys),
            read=self.get,
            is_closed=lambda: self._closed,
            clock=self._clock,
            store="Redis",
        )

    async def _listen(self, keys: Sequence[str]) -> AsyncGenerator[str | None, None]:
        await self._have_notifications()
        channels = [self._channels.encode() + name for name in _encoded(keys)]
        async with translated(), self._server.client.pubsub() as listener:
            if channels:
                await listener.subscribe(*channels)
            else:
                await listener.psubscribe(f"{self._channels}*")
            asked = False
            while not self._closed:
                message = await listener.get_message(timeout=SILENCE)
                if message is None:
                    if asked:
                        raise StoreUnavailable("Redis does not answer")
                    asked = True
                    await listener.ping()
                    continue
                asked = False
                match message["type"]:
                    case "message" | "pmessage":
                        name: bytes = message["channel"][len(self._channels) :]
                        yield name.decode(errors="replace")  # which is then no key, and has no item
                    case "subscribe" | "psubscribe" if message["data"] == max(len(channels), 1):
                        yield None  # also when the library has connected again by itself

    async def _have_notifications(self) -> None:
        """Have the server send what it must, beside what it does already. Where that cannot be told, say so."""
        import redis.exceptions as errors

        client = self._server.client
        try:
            async with translated():
                found = await client.config_get("notify-keyspace-events")
                flags = _text(next(iter(found.values()), ""))
                missing = _missing(flags)
                if missing:
                    await client.config_set("notify-keyspace-events", flags + missing)
        except StoreUnavailable:
            raise
        except StoreError as error:
            if not isinstance(error.__cause__, errors.ResponseError):
                raise
            log.warning(
                "Redis does not say whether it sends notifications, or takes no order to (%s): without "
                "'notify-keyspace-events KEA' in its configuration no change is seen",
                error,
            )


def _missing(flags: str) -> str:
    """`A` is all kinds of event."""
    return "".join(flag for flag in NEEDED_EVENTS if flag not in flags and not ("A" in flags and flag != "K"))


def _encoded(keys: Iterable[str]) -> list[bytes]:
    try:
        return [key.encode() for key in keys]
    except UnicodeEncodeError as error:
        raise InvalidStoreKey(f"the key '{clip(error.object)}' is no valid Unicode text") from None


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _item(text: str) -> ConfigurationItem:
    """The last separator counts (Dapr: the first, so that a value cannot contain one)."""
    value, separator, version = text.rpartition(SEPARATOR)
    return ConfigurationItem(value=value, version=version) if separator else ConfigurationItem(value=text)


def _open(setup: Setup) -> RedisConfigurationStore:
    server = Server(setup.settings)
    if server.is_cluster:
        raise setup.settings.fault("redisType", "changes cannot be followed in a cluster: use a node, or failover")
    return RedisConfigurationStore(server, setup.clock)


SPEC = ComponentSpec(
    type="configuration.redis",
    title="Redis",
    about=(
        "Strings in Redis: `SET <key> <value>`, or `<value>||<version>`. All strings of the database are items. "
        "Changes are seen by keyspace notifications, which are switched on where the server allows it (else set "
        "`notify-keyspace-events KEA` there)."
    ),
    open=_open,
    fields=fields(max_retry_interval=2.0),
    needs="redis",
    example="""\
apiVersion: dapr.io/v1alpha1
kind: Component
metadata:
  name: settings
spec:
  type: configuration.redis
  version: v1
  metadata:
    - name: redisHost
      value: localhost:6379
""",
)
