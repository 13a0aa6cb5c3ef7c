"""The configuration store on the broker, over watches that the broker refuses for a while."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable

from brokers.memory_tables import MemoryTable, MemoryTables
from mesh.appconfig.backbone import FIRST_PAUSE, MeshConfigurationStore
from mesh.errors import BrokerError
from mesh.ports.tables import Current, Entry, Gone, Key
from tests.virtual_clock import VirtualClock


class RefusingTables(MemoryTables):
    refused = False

    def table(self, scope: str) -> MemoryTable:
        table = super().table(scope)
        watch = table.watch

        async def refusing(
            prefix: Key, *, after: int | None = None, lost: Callable[[], None] | None = None
        ) -> AsyncGenerator[Entry | Gone | Current, None]:
            if not self.refused:
                async for change in watch(prefix, after=after, lost=lost):
                    if self.refused:
                        break
                    yield change
            raise BrokerError("insufficient resources")

        table.watch = refusing  # type: ignore[method-assign]
        return table


async def test_what_changes_while_a_watch_is_refused_is_shown_afterwards() -> None:
    clock = VirtualClock()
    tables = RefusingTables(clock)
    store = MeshConfigurationStore(tables, "configstore", clock)
    await store.put("gone", "0")
    changes = store.watch(["a", "b", "gone"])
    shown: dict[str, str] = {}

    async def read() -> None:
        async for items in changes:
            shown.update({key: item.value for key, item in items.items()})

    reading = asyncio.create_task(read())
    await clock.settle()
    await store.put("a", "1")
    await clock.settle()
    assert shown == {"a": "1"}
    tables.refused = True
    await store.put("b", "2")
    await clock.advance(FIRST_PAUSE)
    await store.put("a", "3")
    await store.delete("gone")
    tables.refused = False
    await clock.advance(4 * FIRST_PAUSE)
    assert not reading.done()
    assert shown == {"a": "3", "b": "2", "gone": ""}
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    await changes.aclose()
    await tables.close()
    assert clock.pending == 0
