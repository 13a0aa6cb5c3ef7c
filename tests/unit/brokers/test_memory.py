"""What the memory log promises beyond the contract: its bounds, and its time."""

from __future__ import annotations

import asyncio

import pytest

from brokers.memory import DEDUPE_WINDOW, MemoryEventLog
from mesh.errors import BrokerUnavailable, MessageTooLarge
from mesh.ports import OLDEST, Delivery, Group, Message, Mode, Topic
from tests.virtual_clock import VirtualClock

ORDERS = Topic("pubsub", "orders")
SHIPPING = Group("shipping", ORDERS)


def raw(payload: bytes, **options: object) -> Message:
    return Message(mode=Mode.RAW, payload=payload, **options)  # type: ignore[arg-type]


def keep(delivery: Delivery) -> None:
    """Leave it unsettled."""


async def started(**options: int) -> tuple[MemoryEventLog, VirtualClock]:
    clock = VirtualClock()
    log = MemoryEventLog(clock, **options)
    await log.start()
    return log, clock


async def test_it_refuses_work_until_it_is_started() -> None:
    log = MemoryEventLog()
    assert log.problem == "the log is not started"
    with pytest.raises(BrokerUnavailable, match="not started"):
        await log.publish(ORDERS, raw(b"1"))
    await log.start()
    await log.publish(ORDERS, raw(b"1"))
    await log.close()
    with pytest.raises(BrokerUnavailable, match="closed"):
        await log.publish(ORDERS, raw(b"1"))


async def test_a_callers_id_is_forgotten_after_the_window() -> None:
    log, clock = await started()
    arrivals: list[Delivery] = []
    await log.subscribe(SHIPPING, arrivals.append, concurrency=8)
    for wait in (0.0, DEDUPE_WINDOW - 0.001, 0.001):
        await clock.advance(wait)
        await log.publish(ORDERS, raw(f"{clock.now()}".encode(), dedupe_id="1"))
    await clock.settle()
    assert len(arrivals) == 2


async def test_a_group_keeps_the_newest_messages_up_to_its_bound() -> None:
    log, clock = await started(max_messages=3)
    await (await log.subscribe(SHIPPING, keep, concurrency=1)).close()
    for number in range(10):
        await log.publish(ORDERS, raw(b"%d" % number))
    arrivals: list[Delivery] = []
    await log.subscribe(SHIPPING, arrivals.append, concurrency=8)
    await clock.settle()
    assert [delivery.payload for delivery in arrivals] == [b"7", b"8", b"9"]


async def test_the_bound_counts_what_is_in_hand_and_what_waits_for_its_retry() -> None:
    log, clock = await started(max_messages=3)
    arrivals: list[Delivery] = []
    await log.subscribe(SHIPPING, arrivals.append, concurrency=2)
    for number in range(2):
        await log.publish(ORDERS, raw(b"%d" % number))
    await clock.settle()
    arrivals[0].retry(10.0)
    for number in range(2, 5):
        await log.publish(ORDERS, raw(b"%d" % number))
    await clock.advance(10.0)
    arrivals[1].retry(0.0)  # its message was dropped meanwhile
    await clock.settle()
    for delivery in arrivals[2:]:
        delivery.ack()
    await clock.advance(60.0)
    assert [delivery.payload for delivery in arrivals] == [b"0", b"1", b"2", b"3", b"4"]


async def test_ids_are_bounded_too() -> None:
    log, _ = await started(max_messages=100)
    for number in range(1000):
        await log.publish(ORDERS, raw(b"", dedupe_id=f"{number}"))
    assert len(log._seen) == 100


async def test_what_is_kept_for_reading_is_bounded() -> None:
    log, _ = await started(max_messages=3)
    for number in range(5):
        await log.publish(ORDERS, raw(f"{number}".encode()))
    page = await log.read(ORDERS, OLDEST, limit=10)
    assert [record.payload for record in page.records] == [b"2", b"3", b"4"]


async def test_expiry_is_checked_at_every_attempt() -> None:
    log, clock = await started()
    arrivals: list[Delivery] = []
    await log.subscribe(SHIPPING, arrivals.append, concurrency=8)
    await log.publish(ORDERS, raw(b"1", ttl=5.0))
    await clock.settle()
    arrivals[0].retry(4.9)
    await clock.advance(4.9)
    assert len(arrivals) == 2
    arrivals[1].retry(0.1)
    await clock.advance(60.0)
    assert len(arrivals) == 2


async def test_members_take_turns() -> None:
    log, clock = await started()
    members: list[list[Delivery]] = [[], [], []]
    for member in members:
        await log.subscribe(SHIPPING, member.append, concurrency=100)
    for number in range(9):
        await log.publish(ORDERS, raw(b"%d" % number))
    await clock.settle()
    assert [len(member) for member in members] == [3, 3, 3]


async def test_a_long_queue_is_handled_without_recursion() -> None:
    log, clock = await started()
    handled: list[bytes | None] = []

    def handler(delivery: Delivery) -> None:
        handled.append(delivery.payload)
        delivery.ack()

    await (await log.subscribe(SHIPPING, keep, concurrency=1)).close()
    for number in range(5000):
        await log.publish(ORDERS, raw(b"%d" % number))
    await log.subscribe(SHIPPING, handler, concurrency=1)
    async with asyncio.timeout(30):
        while len(handled) < 5000:
            await clock.settle()
    assert handled == [b"%d" % number for number in range(5000)]


async def test_a_cancelled_close_hands_over_what_is_not_settled() -> None:
    log, clock = await started()
    leaving: list[Delivery] = []
    staying: list[Delivery] = []
    member = await log.subscribe(SHIPPING, leaving.append, concurrency=1)
    await log.publish(ORDERS, raw(b"1"))
    await clock.settle()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(member.close(), 0.01)
    leaving[0].ack()  # too late: the delivery is not this member's any more
    await log.subscribe(SHIPPING, staying.append, concurrency=1)
    await clock.settle()
    assert [delivery.attempt for delivery in staying] == [2]


async def test_a_forgotten_group_gets_nothing_more() -> None:
    log, clock = await started()
    arrivals: list[Delivery] = []
    await log.subscribe(SHIPPING, arrivals.append, concurrency=1)
    await log.publish(ORDERS, raw(b"1"))
    await log.publish(ORDERS, raw(b"2"))
    await clock.settle()
    await log.unsubscribe(SHIPPING)
    arrivals[0].ack()
    await clock.settle()
    assert [delivery.payload for delivery in arrivals] == [b"1"]


async def test_close_leaves_nothing_behind() -> None:
    log, clock = await started()
    arrivals: list[Delivery] = []
    await log.subscribe(SHIPPING, arrivals.append, concurrency=8)
    await log.publish(ORDERS, raw(b"1", dedupe_id="1"))
    await clock.settle()
    arrivals[0].retry(1.0)
    await log.close()
    await clock.advance(2.0)
    assert len(arrivals) == 1
    assert not log._queues
    assert not log._seen


async def test_size_counts_payload_attributes_and_headers() -> None:
    log, _ = await started(max_message_size=20)
    await log.publish(ORDERS, raw(b"x" * 20))
    for message in (
        raw(b"x" * 21),
        raw(b"x" * 15, content_type="a/bcde"),
        raw(b"x" * 15, headers={"name": "ž"}),
        Message(mode=Mode.BINARY, payload=None, attributes={"name": "x" * 17}),
    ):
        with pytest.raises(MessageTooLarge, match="has 21 bytes"):
            await log.publish(ORDERS, message)
