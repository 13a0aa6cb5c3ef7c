"""The configuration store on the broker itself: `configuration.meshwire`.

The component's name is the scope, so that all apps of a namespace share what is in it. An item is the record
`("configuration", <key>)`: plain text, so that anybody can write one, or a JSON object where there is metadata too.
Its version is the revision.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing

import msgspec

from mesh.clock import SystemClock
from mesh.components import ComponentSpec, Setup
from mesh.errors import BrokerUnavailable, MeshError, MessageTooLarge, clip
from mesh.ports import Clock
from mesh.ports.stores import (
    ConfigurationFeature,
    ConfigurationItem,
    Expired,
    InvalidStoreKey,
    StoreError,
    StoreUnavailable,
    ValueTooLarge,
)
from mesh.ports.tables import Current, Delete, Entry, Gone, InvalidKey, Put, Tables

log = logging.getLogger("meshwire.configuration")

DEFAULT_COMPONENT = "configstore"
"""The component that is there without any file."""

KIND = "configuration"
TEXT = "text/plain;charset=utf-8"
WITH_METADATA = "application/vnd.meshwire.configuration+json"
"""Content type of a record that is `{"value": "…", "metadata": {"…": "…"}}`. One of any other type is the value."""

MAX_ITEMS = 10_000
"""Items of a store that are read at once."""
PAGE = 1000
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds until a watch that the broker has refused is tried again; doubling."""
DELETED = ConfigurationItem(value="")
_CLOCK = SystemClock()


class _Record(msgspec.Struct):
    value: str
    metadata: dict[str, str] = {}


_decode = msgspec.json.Decoder(_Record).decode
_encode = msgspec.json.Encoder().encode


class MeshConfigurationStore:
    """A `WritableConfigurationStore` over the tables of the backbone, which somebody else opens and closes."""

    features = frozenset({ConfigurationFeature.WRITE})

    def __init__(self, tables: Tables, component: str, clock: Clock = _CLOCK) -> None:
        self._table = tables.table(component)
        self._clock = clock

    async def start(self) -> None:
        pass

    async def ping(self) -> None:
        await self.get(["ping"])

    async def close(self) -> None:
        pass

    async def get(self, keys: Sequence[str], metadata: Mapping[str, str] = {}) -> dict[str, ConfigurationItem]:
        """Raises `StoreError` when all are asked for and there are more than `MAX_ITEMS`."""
        if not keys:
            return await self._all()
        try:
            entries = await self._table.get_many([(KIND, key) for key in keys])
        except MeshError as error:
            raise _translated(error) from error
        return _items(entry for entry in entries if entry is not None)

    async def _all(self) -> dict[str, ConfigurationItem]:
        items: dict[str, ConfigurationItem] = {}
        cursor: str | None = None
        while True:
            page, cursor = await self.list_items("", limit=PAGE, cursor=cursor)
            items |= page
            if len(items) > MAX_ITEMS:
                raise StoreError(f"there are more than {MAX_ITEMS} items: ask for those that you need by their keys")
            if cursor is None:
                return items

    async def watch(
        self, keys: Sequence[str], metadata: Mapping[str, str] = {}
    ) -> AsyncGenerator[Mapping[str, ConfigurationItem], None]:
        wanted = frozenset(keys)
        prefix = (KIND, *wanted) if len(wanted) == 1 else (KIND,)
        shown: int | None = None  # up to which revision
        stands = False
        pause = FIRST_PAUSE
        while True:
            try:
                if wanted and not stands:
                    await self._table.get_many([(KIND, key) for key in wanted])  # refuses what can be no key
                async with aclosing(self._table.watch(prefix, after=shown)) as changes:
                    async for change in changes:
                        pause = FIRST_PAUSE
                        if isinstance(change, Current):
                            if not stands:
                                stands = True
                                yield {}
                        elif len(change.key) == 2 and (not wanted or change.key[1] in wanted):
                            item = _item(change)
                            if item is not None:
                                yield {change.key[1]: item}
                        shown = change.revision
                return
            except MeshError as error:
                if not stands:
                    raise _translated(error) from error
                log.warning("configuration cannot be followed, again in %.1f s: %s", pause, error)
            await self._clock.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def put(self, key: str, value: str, metadata: Mapping[str, str] = {}) -> str:
        if metadata:
            record, content_type = _encode(_Record(value, dict(metadata))), WITH_METADATA
        else:
            record, content_type = value.encode(), TEXT
        try:
            [revision] = await self._table.commit([Put(key=(KIND, key), value=record, content_type=content_type)])
        except MeshError as error:
            raise _translated(error) from error
        return str(revision)

    async def delete(self, key: str) -> None:
        try:
            await self._table.commit([Delete(key=(KIND, key))])
        except MeshError as error:
            raise _translated(error) from error

    async def list_items(
        self, key_prefix: str, *, limit: int, cursor: str | None = None
    ) -> tuple[dict[str, ConfigurationItem], str | None]:
        try:
            page = await self._table.scan((KIND,), starts_with=key_prefix, limit=limit, cursor=cursor)
        except ValueError as error:
            raise Expired(f"{error}; begin without a cursor") from None
        except MeshError as error:
            raise _translated(error) from error
        return _items(page.entries), page.cursor


def _items(entries: Iterable[Entry]) -> dict[str, ConfigurationItem]:
    found = ((entry.key, _item(entry)) for entry in entries)
    return {key[1]: item for key, item in found if item is not None and len(key) == 2}


def _item(change: Entry | Gone) -> ConfigurationItem | None:
    """`None` for what is no item: anybody may write to a broker."""
    if isinstance(change, Gone):
        return DELETED
    try:
        if change.content_type == WITH_METADATA:
            record = _decode(change.value)
            return ConfigurationItem(value=record.value, version=str(change.revision), metadata=record.metadata)
        return ConfigurationItem(value=change.value.decode(), version=str(change.revision))
    except (UnicodeDecodeError, msgspec.DecodeError):
        log.warning("the configuration item %s is left out: it is no text in UTF-8", clip("/".join(change.key[1:])))
        return None


def _translated(error: MeshError) -> StoreError:
    """An error of the tables in the words of stores."""
    match error:
        case StoreError():
            return error
        case InvalidKey():
            return InvalidStoreKey(str(error))
        case MessageTooLarge():
            return ValueTooLarge(str(error))
        case BrokerUnavailable():
            return StoreUnavailable(str(error))
    return StoreError(str(error))


def _open(setup: Setup) -> MeshConfigurationStore:
    return MeshConfigurationStore(setup.tables, setup.name, setup.clock)


SPEC = ComponentSpec(
    type="configuration.meshwire",
    title="Meshwire",
    about=(
        "Items on the broker of the mesh, with nothing to install, shared by all apps of the namespace that have a "
        "component of this name. They are written through the sidecar (`PUT /mesh/v1/configuration/<store>/<key>`) or "
        "with the broker's own tools. Without a file there is one under the name `configstore`."
    ),
    open=_open,
    features=(ConfigurationFeature.WRITE.value,),
    example="""\
apiVersion: dapr.io/v1alpha1
kind: Component
metadata:
  name: configstore
spec:
  type: configuration.meshwire
  version: v1
""",
)
