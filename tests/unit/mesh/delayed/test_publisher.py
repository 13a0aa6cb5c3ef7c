"""Delayed events in virtual time: due, refused by their topic, in series."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import pairwise

import msgspec
import pytest

from brokers.memory_alarms import MemoryAlarmClocks
from mesh.delayed.events import DelayedEvents
from mesh.delayed.publisher import DelayedPublisher
from mesh.delayed.timing import InvalidTiming, Timing, timing
from mesh.errors import BrokerUnavailable
from mesh.ids import utc_time
from mesh.ports import Message, Mode, Topic
from tests.virtual_clock import VirtualClock

TOPIC = Topic("pubsub", "A")
EVENT = {"specversion": "1.0", "id": "7", "source": "/s", "type": "t"}
DAY = 86_400.0


class Bench:
    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.clocks = MemoryAlarmClocks(self.clock)
        self.events = DelayedEvents("shop", self.clocks, self.clock)
        self.publisher = DelayedPublisher(self.events, self.publish, self.clock)
        self.published: list[tuple[float, Message]] = []
        self.refusals = 0
        self.began = self.clock.now()

    async def publish(self, topic: Topic, message: Message) -> None:
        assert topic == TOPIC
        self.published.append((self.clock.now() - self.began, message))
        if self.refusals:
            self.refusals -= 1
            raise BrokerUnavailable("not now")

    def timing(self, **asked: str) -> Timing:
        found = timing(asked, self.clock.now())
        assert found is not None
        return found


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    bench.publisher.start()
    await bench.clock.advance(0)
    yield bench
    await bench.publisher.close()
    await bench.clocks.close()


def structured(**attributes: str) -> Message:
    return Message(mode=Mode.STRUCTURED, payload=msgspec.json.encode({**EVENT, **attributes}), key="k")


async def test_as_it_was_with_an_id_for_the_broker_of_its_own(bench: Bench) -> None:
    message = structured()
    await bench.events.hold(TOPIC, message, bench.timing(deliverAfter="1h"))
    await bench.clock.advance(3599)
    assert bench.published == []
    await bench.clock.advance(2)
    ((_, got),) = bench.published
    assert got == msgspec.structs.replace(message, dedupe_id=got.dedupe_id)
    assert got.dedupe_id is not None
    assert got.dedupe_id.endswith(f"\0{bench.began + 3600:.3f}")


async def test_what_its_topic_refuses_is_tried_again_with_one_id(bench: Bench) -> None:
    bench.refusals = 9
    await bench.events.hold(TOPIC, structured(), bench.timing(deliverAfter="0s"))
    for _ in range(60):
        await bench.clock.advance(5)
    times = [moment for moment, _ in bench.published]
    pauses = [later - earlier for earlier, later in pairwise(times)]
    assert pauses == pytest.approx([0.5, 1, 2, 4, 8, 16, 32, 60, 60], abs=0.1)
    assert len({message.dedupe_id for _, message in bench.published}) == 1
    assert (await bench.events.scan(limit=10)).events == []


async def test_a_series_in_binary_mode(bench: Bench) -> None:
    message = Message(mode=Mode.BINARY, payload=b"1", attributes={**EVENT})
    when = bench.timing(deliverEvery="@every 24h")
    await bench.events.hold(TOPIC, message, when, ttl=60)
    for _ in range(3):
        await bench.clock.advance(DAY)
    await bench.clock.advance(1)
    assert [round(moment / DAY, 3) for moment, _ in bench.published] == [1, 2, 3]
    ids = [message.attributes["id"] for _, message in bench.published]
    times = [message.attributes["time"] for _, message in bench.published]
    assert ids == [f"7@{time}" for time in times]
    assert len(set(ids)) == 3


async def test_an_event_that_expires_ends_its_series_and_one_that_has_expired_has_none(bench: Bench) -> None:
    when = bench.timing(deliverEvery="@every 24h")
    ends = utc_time(bench.began + 2.5 * DAY)
    await bench.events.hold(TOPIC, structured(expirytime=ends), when)
    for _ in range(5):
        await bench.clock.advance(DAY)
    assert [round(moment / DAY, 3) for moment, _ in bench.published] == [1, 2]
    assert (await bench.events.scan(limit=10)).events == []
    with pytest.raises(InvalidTiming, match="expired before"):
        bench.events.check(structured(expirytime=utc_time(bench.began)), when)


async def test_cancelled_while_it_is_tried_again(bench: Bench) -> None:
    bench.refusals = 100
    await bench.events.hold(TOPIC, structured(), bench.timing(deliverAfter="0s"))
    await bench.clock.advance(3)
    assert await bench.events.cancel(TOPIC, "7") == 1
    assert await bench.events.cancel(TOPIC, "7") == 0
    before = len(bench.published)
    await bench.clock.advance(600)
    assert len(bench.published) == before


def test_nothing_is_asked() -> None:
    assert timing({"ttlInSeconds": "3", "deliverAt": ""}, 0.0) is None
