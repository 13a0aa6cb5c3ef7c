"""Dead letters over the reference tables and log, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import msgspec

from brokers.memory import MemoryEventLog
from brokers.memory_tables import MemoryTables
from mesh.dead_letters.inbox import Inbox
from mesh.dead_letters.redrive import Redrive, Redrives
from mesh.dead_letters.store import LetterStore
from mesh.delivery import Letter, Reason
from mesh.delivery.letters import letter_id
from mesh.ports import Group, Message, Mode, Topic
from mesh.pubsub import Component, PubSub
from mesh.runs import Crew
from mesh.scopes import TopicScopes
from tests.virtual_clock import VirtualClock

ORDERS = Topic("pubsub", "orders")
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def event(number: int, **more: object) -> bytes:
    named = {"specversion": "1.0", "id": str(number), "source": "/shop", "type": "placed", "traceparent": TRACE}
    return msgspec.json.encode({**named, **more, "data": {"number": number}})


def letter(number: int, *, topic: Topic = ORDERS, died: float = 0.0, message: Message | None = None, **more) -> Letter:
    group = Group("app1", topic)
    made = message or Message(mode=Mode.STRUCTURED, payload=event(number), headers={"traceparent": TRACE})
    values = {"reason": Reason.ATTEMPTS, "text": "the app answered 500", "status": 500, "attempts": 3} | more
    return Letter(
        group=group,
        topic=topic,
        position=str(number),
        stored=died,
        message=msgspec.structs.replace(made, dedupe_id=letter_id(group, str(number))),
        first_failure=died,
        last_failure=died,
        **values,
    )


class Bench:
    """The sidecars of `app1`, as many as `join` is called, with what they share."""

    def __init__(self, *, max_message_size: int = 1 << 20, scopes: Mapping[str, str] = {}) -> None:
        self.clock = VirtualClock()
        self.tables = MemoryTables(self.clock, max_message_size=max_message_size)
        self.log = MemoryEventLog(self.clock)
        component = Component(name="pubsub", log=self.log, scopes=TopicScopes.from_metadata(scopes))
        self.components = {"pubsub": component, "other": Component(name="other", log=self.log, topic_prefix="ns-")}
        self.pubsub = PubSub("app1", self.components, self.clock)
        self.store = LetterStore(self.tables, "app1")
        self.inbox = Inbox(self.store, self.components, self.clock)
        self.redrives = Redrives(self.pubsub, self.inbox, self.tables, self.clock)
        self.published: list[tuple[Topic, Message]] = []
        self.times: list[float] = []
        self.crews: list[Crew] = []
        self.refuse = None
        publish = self.log.publish

        async def note(topic: Topic, message: Message) -> str:
            if self.refuse is not None and (error := self.refuse(topic, message)) is not None:
                raise error
            self.published.append((topic, message))
            self.times.append(self.clock.now())
            return await publish(topic, message) or ""

        self.log.publish = note

    async def __aenter__(self):
        await self.log.start()
        return self

    async def __aexit__(self, *_):
        for crew in self.crews:
            await crew.close()
        await self.inbox.close()
        await self.tables.close()

    def join(self) -> Crew:
        crew = Crew(self.tables, "app1", self.clock)
        crew.works_on(self.redrives.runs, self.redrives.work)
        crew.start()
        self.crews.append(crew)
        return crew

    async def keep(self, *letters: Letter) -> None:
        for one in letters:
            await self.store.keep(one)

    async def run(self, run: Redrive, seconds: float) -> Redrive:
        await self.clock.advance(seconds)
        found = await self.redrives.runs.get("app1", run.id)
        assert found is not None
        return found

    async def ids(self, wanted, **how):
        page = await self.inbox.page(wanted, limit=1000, **how)
        return [shown.row.id for shown in page.letters]


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)
