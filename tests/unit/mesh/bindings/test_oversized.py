"""What becomes of items that the broker will never take."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Self

import pytest

from brokers.memory import MemoryEventLog
from brokers.memory_tables import MemoryTables
from mesh import addressing
from mesh.bindings.component import BindingComponent
from mesh.bindings.item import MAX_METADATA
from mesh.bindings.reply import Reply
from mesh.bindings.running import RunningInput, Surroundings
from mesh.clock import SystemClock
from mesh.dead_letters.store import Kept, LetterStore
from mesh.delivery.letters import Reason
from mesh.errors import MessageTooLarge
from mesh.ports import OLDEST
from mesh.ports.bindings import Accept, Item
from mesh.resiliency.targets import Resiliency

LARGEST = 100_000
LARGE = Item(data=b"x" * (LARGEST + 1), id="large", key="k", metadata={"a": "b"})
LOADED = Item(data=b"", id="loaded", metadata={"a": "x" * MAX_METADATA})
SMALL = Item(data=b"1", id="small")


class Queue:
    """A source that offers its items in turn, again from the first that was not accepted."""

    exclusive = False

    def __init__(self, *items: Item) -> None:
        self.items = list(items)
        self.refused: list[Item] = []

    async def start(self) -> None: ...

    async def ping(self) -> None: ...

    async def close(self) -> None: ...

    async def run(self, accept: Accept) -> None:
        while self.items:
            await accept(self.items[0])
            del self.items[0]
        await asyncio.get_running_loop().create_future()


class Sender(Queue):
    """A source that tells whoever sends."""

    refuses = True

    async def run(self, accept: Accept) -> None:
        while self.items:
            item = self.items.pop(0)
            try:
                await accept(item)
            except MessageTooLarge:
                self.refused.append(item)
        await asyncio.get_running_loop().create_future()


class Scene:
    def __init__(self, source: Queue) -> None:
        clock = SystemClock()
        self.log = MemoryEventLog(max_message_size=LARGEST)
        tables = MemoryTables(clock, max_message_size=LARGEST)
        self.letters = LetterStore(tables, "app1")

        async def follow(_reply: Reply) -> None: ...

        around = Surroundings(
            app_id="app1",
            log=self.log,
            tables=tables,
            clock=clock,
            channel=None,
            resiliency=Resiliency(clock=clock),
            follow=follow,
            dead_letters=self.letters,
        )
        component = BindingComponent(name="b", input=source, output=None, route="/b", ask=False)
        self.input = RunningInput(component, source, around)

    async def __aenter__(self) -> Self:
        await self.log.start()
        self.input.begin()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.input.end()
        await self.log.close()

    async def stored(self) -> list[bytes | None]:
        page = await self.log.read(addressing.binding_topic("app1", "b"), OLDEST, limit=10)
        return [record.payload for record in page.records]

    async def dead(self) -> list[Kept]:
        found = []
        for entry in (await self.letters.table.scan(("dead",), limit=10)).entries:
            kept = await self.letters.read(entry)
            assert kept is not None
            found.append(kept)
        return found


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0)


@pytest.mark.parametrize("item", [LARGE, LOADED], ids=["data", "metadata"])
async def test_a_source_goes_on_behind_an_item_that_is_kept_as_a_dead_letter(item: Item) -> None:
    source = Queue(item, item, SMALL)
    async with Scene(source) as scene:
        await until(lambda: not source.items)
        assert await scene.stored() == [b"1"]
        [kept] = await scene.dead()  # the same item is the same letter
        assert kept.letter.reason is Reason.OVERSIZED
        assert kept.letter.message.payload == item.data
        assert kept.letter.message.attributes["id"] == item.id
        assert "at most" in kept.letter.text


async def test_items_without_a_name_are_letters_of_their_own() -> None:
    nameless = Item(data=LARGE.data)
    source = Queue(nameless, nameless)
    async with Scene(source) as scene:
        await until(lambda: not source.items)
        assert len(await scene.dead()) == 2


async def test_a_source_that_can_refuse_an_item_is_told() -> None:
    source = Sender(LARGE, LOADED, SMALL)
    async with Scene(source) as scene:
        await until(lambda: len(source.refused) == 2 and not source.items)
        assert source.refused == [LARGE, LOADED]
        assert await scene.dead() == []
        assert await scene.stored() == [b"1"]


async def test_whoever_fires_by_hand_is_told() -> None:
    async with Scene(Queue()) as scene:
        with pytest.raises(MessageTooLarge):
            await scene.input.store(LARGE)
        assert await scene.dead() == []
