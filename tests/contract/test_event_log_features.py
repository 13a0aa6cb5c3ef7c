"""What an `EventLog` may do besides, where it declares so. Each test is a promise of `mesh/ports/events.py`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from math import nan

import pytest

from mesh import addressing
from mesh.errors import BrokerError
from mesh.ports import OLDEST, Backlog, Delivery, EventLog, Feature, Group, Message, Mode, Order, Start, Topic
from tests.contract.implementations import Implementation
from tests.contract.inbox import Inbox
from tests.contract.test_event_log import ORDERS, SHIPPING, ack, keep, raw

MakeInbox = Callable[..., Inbox]
Needs = Callable[[Feature], None]
LOOSE = Order.NONE
NAMED = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t"}


async def numbers(log: EventLog, first: int, last: int, topic: Topic = ORDERS, key: str | None = None) -> list[str]:
    """Publishes these; where they are stored. Those of a key are stored in their order."""
    return [await log.publish(topic, raw(f"{number}", key=key)) for number in range(first, last + 1)]


def payloads(inbox: Inbox) -> list[int]:
    return sorted(int(payload or b"") for payload in inbox.payloads)


# Where and when


async def test_a_position_is_that_of_the_delivery(log: EventLog, inbox: MakeInbox) -> None:
    arrivals = inbox()
    await log.subscribe(SHIPPING, arrivals, concurrency=8, order=LOOSE)
    positions = await numbers(log, 1, 3)
    assert {delivery.position for delivery in await arrivals.reaches(3)} == set(positions)
    assert len(set(positions)) == 3


async def test_a_repeat_has_no_position(log: EventLog, needs: Needs) -> None:
    needs(Feature.DEDUPE)
    assert await log.publish(ORDERS, raw("1", dedupe_id="a"))
    assert await log.publish(ORDERS, raw("1", dedupe_id="a")) == ""


async def test_a_delivery_tells_its_topic_and_time(
    log: EventLog, inbox: MakeInbox, implementation: Implementation
) -> None:
    arrivals = inbox()
    before = implementation.now()
    await log.subscribe(SHIPPING, arrivals, concurrency=8, order=LOOSE)
    await log.publish(ORDERS, raw("1"))
    (delivery,) = await arrivals.reaches(1)
    assert delivery.topic == "orders"
    assert before - 0.01 <= delivery.time <= implementation.now() + 0.01


@pytest.mark.parametrize(
    ("message", "key"),
    [
        (raw("1"), None),
        (raw("1", key="käse 1"), "käse 1"),
        (raw('{"partitionkey": "no event"}'), None),
        (Message(mode=Mode.BINARY, payload=b"", attributes=NAMED), None),
        (Message(mode=Mode.BINARY, payload=b"", attributes=NAMED | {"partitionkey": "a"}, key="a"), "a"),
        (Message(mode=Mode.BINARY, payload=b"", attributes=NAMED | {"partitionkey": "a"}, key="b"), "b"),
        (Message(mode=Mode.STRUCTURED, payload=b'{"specversion": "1.0", "partitionkey": "a"}', key="a"), "a"),
        (Message(mode=Mode.STRUCTURED, payload=b'{"specversion": "1.0", "partitionkey": "a"}', key="b"), "b"),
    ],
)
async def test_a_delivery_tells_its_key(log: EventLog, inbox: MakeInbox, message: Message, key: str | None) -> None:
    arrivals = inbox()
    await log.subscribe(SHIPPING, arrivals, concurrency=8)
    await log.publish(ORDERS, message)
    (delivery,) = await arrivals.reaches(1)
    assert delivery.key == key


# Giving back


async def test_a_release_is_no_attempt(log: EventLog, inbox: MakeInbox) -> None:
    attempts: list[int] = []

    def settle(delivery: Delivery) -> None:
        attempts.append(delivery.attempt)
        if len(attempts) in (1, 3):
            delivery.release()
        elif len(attempts) == 2:
            delivery.retry(0)
        else:
            delivery.ack()

    arrivals = inbox(settle)
    await log.subscribe(SHIPPING, arrivals, concurrency=8, order=LOOSE)
    await log.publish(ORDERS, raw("1"))
    await arrivals.reaches(4)
    assert attempts == [1, 1, 2, 2]


async def test_an_attempt_keeps_its_number(log: EventLog, inbox: MakeInbox) -> None:
    def settle(delivery: Delivery) -> None:
        if len(arrivals.deliveries) == 1:
            delivery.release()
        else:
            delivery.ack()

    arrivals = inbox(settle)
    await log.subscribe(SHIPPING, arrivals, concurrency=8, order=LOOSE)
    await log.publish(ORDERS, raw("1"))
    await arrivals.reaches(2)
    assert [delivery.attempt for delivery in arrivals.deliveries] == [1, 1]


# As many at once as is said


async def test_with_none_at_once_nothing_more_comes(
    log: EventLog, inbox: MakeInbox, implementation: Implementation
) -> None:
    held = inbox(keep)
    member = await log.subscribe(SHIPPING, held, concurrency=4, order=LOOSE)
    await numbers(log, 1, 4)
    await held.reaches(4)
    member.set_concurrency(0)
    await numbers(log, 5, 6)
    for delivery in held.deliveries[:2]:
        delivery.ack()
    await implementation.quiet()
    assert len(held.deliveries) == 4
    member.set_concurrency(4)
    await held.reaches(6)
    assert payloads(held) == [1, 2, 3, 4, 5, 6]


async def test_what_a_member_does_not_take_goes_to_others(log: EventLog, inbox: MakeInbox) -> None:
    first, second = inbox(keep), inbox()
    paused = await log.subscribe(SHIPPING, first, concurrency=2, order=LOOSE)
    await numbers(log, 1, 10)
    await first.reaches(2)
    paused.set_concurrency(0)
    await log.subscribe(SHIPPING, second, concurrency=8, order=LOOSE)
    await second.reaches(8)
    assert len(first.deliveries) == 2


async def test_with_fewer_at_once_fewer_come(
    log: EventLog, inbox: MakeInbox, implementation: Implementation, needs: Needs
) -> None:
    needs(Feature.ANY_MEMBER)
    held = inbox(keep)
    member = await log.subscribe(SHIPPING, held, concurrency=10, order=LOOSE)
    await numbers(log, 1, 4)
    await held.reaches(4)
    member.set_concurrency(3)
    await numbers(log, 5, 12)
    others = inbox()
    await log.subscribe(SHIPPING, others, concurrency=8, order=LOOSE)
    await others.reaches(8)
    held.deliveries[0].ack()
    await numbers(log, 13, 40)
    await others.reaches(30)
    await implementation.quiet()
    assert len(held.deliveries) - 1 <= 3


async def test_to_be_stopped_and_started_in_haste_loses_nothing(log: EventLog, inbox: MakeInbox) -> None:
    arrivals = inbox(lambda delivery: asyncio.get_running_loop().call_soon(delivery.ack))
    member = await log.subscribe(SHIPPING, arrivals, concurrency=16, order=LOOSE)
    for first in range(0, 400, 20):
        member.set_concurrency(0)
        publishes = asyncio.gather(*(log.publish(ORDERS, raw(f"{first + n}", key=f"{n}")) for n in range(20)))
        member.set_concurrency(16)
        await publishes
    await arrivals.reaches(400)
    assert set(payloads(arrivals)) == set(range(400))
    # A broker may count one that it sent when nobody listened any more.
    assert {delivery.attempt for delivery in arrivals.deliveries} <= {1, 2}


async def test_more_at_once_come_at_once(log: EventLog, inbox: MakeInbox) -> None:
    held = inbox(keep)
    member = await log.subscribe(SHIPPING, held, concurrency=1, order=LOOSE)
    await numbers(log, 1, 5)
    await held.reaches(1)
    member.set_concurrency(5)
    await held.reaches(5)


# Where a group begins


@pytest.mark.parametrize("by", ["position", "time", "oldest"])
async def test_a_new_group_may_begin_earlier(
    log: EventLog, inbox: MakeInbox, needs: Needs, implementation: Implementation, by: str
) -> None:
    needs(Feature.READ)
    await numbers(log, 1, 2)
    await implementation.elapse(0.02)
    moment = implementation.now()
    third, _ = await numbers(log, 3, 4, key="k")
    start = {"position": Start(position=third), "time": Start(time=moment), "oldest": OLDEST}[by]
    arrivals = inbox()
    await log.subscribe(SHIPPING, arrivals, concurrency=8, order=LOOSE, start=start)
    await numbers(log, 5, 5)
    wanted = [1, 2, 3, 4, 5] if by == "oldest" else [3, 4, 5]
    await arrivals.reaches(len(wanted))
    await implementation.quiet()
    assert payloads(arrivals) == wanted


async def test_a_group_that_is_there_goes_on_where_it_was(log: EventLog, inbox: MakeInbox) -> None:
    first, second = inbox(), inbox()
    member = await log.subscribe(SHIPPING, first, concurrency=8, order=LOOSE)
    await numbers(log, 1, 2)
    await first.reaches(2)
    await member.close()
    await log.subscribe(SHIPPING, second, concurrency=8, order=LOOSE, start=OLDEST)
    await numbers(log, 3, 3)
    await second.reaches(1)
    assert payloads(second) == [3]


async def test_groups_of_other_names_are_other_groups(log: EventLog, inbox: MakeInbox) -> None:
    inboxes = {name: inbox() for name in ("", "audit", "replay-1")}
    members = [
        await log.subscribe(SHIPPING._replace(name=name), arrivals, concurrency=8, order=LOOSE)
        for name, arrivals in inboxes.items()
    ]
    await numbers(log, 1, 3)
    for arrivals, member in zip(inboxes.values(), members, strict=True):
        await arrivals.reaches(3)
        await member.close()
    assert await log.unsubscribe(SHIPPING._replace(name="audit"))
    assert await log.backlog(SHIPPING) == Backlog(0, 0)
    assert await log.backlog(SHIPPING._replace(name="audit")) is None


async def test_every_replica_has_what_is_for_all(log: EventLog, inbox: MakeInbox, needs: Needs) -> None:
    needs(Feature.BROADCAST)
    replicas = [inbox(), inbox()]
    members = [
        await log.subscribe(
            SHIPPING._replace(name=f"node-{number}"), arrivals, concurrency=8, order=LOOSE, lasting=False
        )
        for number, arrivals in enumerate(replicas)
    ]
    competing = inbox()
    await log.subscribe(SHIPPING, competing, concurrency=8, order=LOOSE)
    await numbers(log, 1, 5)
    for arrivals in (*replicas, competing):
        await arrivals.reaches(5)
    for member in members:
        await member.close()


# Patterns


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("orders.*", {"orders.new", "orders.paid"}),
        ("orders.>", {"orders.new", "orders.paid", "orders.paid.late"}),
        ("*.paid", {"orders.paid", "bills.paid"}),
        (">", {"orders", "orders.new", "orders.paid", "orders.paid.late", "bills.paid", "odd ones.a b", "1"}),
    ],
)
async def test_a_pattern_is_many_topics(
    log: EventLog, inbox: MakeInbox, needs: Needs, implementation: Implementation, pattern: str, wanted: set[str]
) -> None:
    needs(Feature.WILDCARDS)
    arrivals = inbox()
    await log.subscribe(Group("shipping", Topic("pubsub", pattern)), arrivals, concurrency=64, order=LOOSE)
    topics = ["orders", "orders.new", "orders.paid", "orders.paid.late", "bills.paid", "odd ones.a b", "1"]
    for topic in topics:
        await log.publish(Topic("pubsub", topic), raw(topic))
        await log.publish(Topic("pubsub", topic), raw(topic, key="a"))
        await log.publish(Topic("elsewhere", topic), raw("other component"))
    await arrivals.reaches(2 * len(wanted))
    await implementation.quiet()
    found = [(delivery.topic, (delivery.payload or b"").decode()) for delivery in arrivals.deliveries]
    assert sorted(found) == sorted((topic, topic) for topic in wanted for _ in range(2))


async def test_a_pattern_is_read_and_counted_as_it_is_subscribed(log: EventLog, needs: Needs) -> None:
    needs(Feature.WILDCARDS)
    needs(Feature.READ)
    pattern = Topic("pubsub", "orders.>")
    group = Group("shipping", pattern)
    await (await log.subscribe(group, keep, concurrency=1, order=LOOSE)).close()
    for topic in ("orders", "orders.new", "orders.paid.late", "bills.paid"):
        await log.publish(Topic("pubsub", topic), raw(topic))
        await log.publish(Topic("pubsub", topic), raw(topic, key="a"))
    wanted = ["orders.new", "orders.new", "orders.paid.late", "orders.paid.late"]
    assert [record.topic for record in (await log.read(pattern, OLDEST, limit=10)).records] == wanted
    assert await log.backlog(group) == Backlog(4, 0)


@pytest.mark.parametrize("name", ["orders.>.new", ">.>", "orders.>."])
async def test_a_pattern_has_only_its_end_open(log: EventLog, needs: Needs, name: str) -> None:
    needs(Feature.WILDCARDS)
    with pytest.raises(addressing.InvalidTopic):
        await log.subscribe(Group("shipping", Topic("pubsub", name)), keep, concurrency=1, order=LOOSE)


# Reading again


async def test_pages_hold_everything_once_and_in_order(log: EventLog, needs: Needs) -> None:
    needs(Feature.READ)
    await asyncio.gather(*(log.publish(ORDERS, raw(f"{n}", key=f"{n % 5}" if n % 2 else None)) for n in range(250)))
    await log.publish(Topic("pubsub", "others"), raw("other"))
    start, found, pages = OLDEST, [], 0
    while True:
        page = await log.read(ORDERS, start, limit=100)
        pages += 1
        found += [(int(record.position), record.topic, record.payload) for record in page.records]
        if page.next is None:
            break
        start = Start(position=page.next)
    assert pages == 3
    assert found == sorted(found, key=lambda one: one[0])
    assert sorted(int(payload or b"") for _, _, payload in found) == list(range(250))
    assert {topic for _, topic, _ in found} == {"orders"}


async def test_a_page_of_large_messages_is_short(log: EventLog, needs: Needs) -> None:
    needs(Feature.READ)
    for number in range(12):
        await log.publish(ORDERS, raw(bytes([number]) * 1_000_000))
    page, found = await log.read(ORDERS, OLDEST, limit=100), b""
    assert len(page.records) < 12
    while True:
        found += b"".join((record.payload or b"")[:1] for record in page.records)
        if page.next is None:
            break
        page = await log.read(ORDERS, Start(position=page.next), limit=100)
    assert found == bytes(range(12))


async def test_reading_begins_where_it_is_told(log: EventLog, needs: Needs, implementation: Implementation) -> None:
    needs(Feature.READ)
    await numbers(log, 1, 2)
    await implementation.elapse(0.02)
    moment = implementation.now()
    await numbers(log, 3, 3, key="k")
    fourth = (await numbers(log, 4, 4, key="k"))[0]
    by_time = (await log.read(ORDERS, Start(time=moment), limit=10)).records
    assert [record.payload for record in by_time] == [b"3", b"4"]
    assert all(moment - 0.01 <= record.time <= implementation.now() + 0.01 for record in by_time)
    by_position = await log.read(ORDERS, Start(position=fourth), limit=10)
    assert ([record.payload for record in by_position.records], by_position.next) == ([b"4"], None)
    assert await log.read(Topic("pubsub", "nobody"), OLDEST, limit=10) == ([], None)


async def test_reading_begins_with_what_was_stored_at_that_moment(log: EventLog, needs: Needs) -> None:
    needs(Feature.READ)
    await numbers(log, 0, 49)
    for record in (await log.read(ORDERS, OLDEST, limit=50)).records:
        page = await log.read(ORDERS, Start(time=record.time), limit=50)
        assert record.position in [found.position for found in page.records]


@pytest.mark.parametrize(
    "start", [Start(position="x"), Start(position=""), Start(position="-1"), Start(time=nan), Start(position="9" * 30)]
)
async def test_no_place_to_begin_is_refused(log: EventLog, needs: Needs, start: Start) -> None:
    needs(Feature.READ)
    with pytest.raises(BrokerError):
        await log.read(ORDERS, start, limit=1)
    with pytest.raises(BrokerError):
        await log.subscribe(SHIPPING, keep, concurrency=1, order=LOOSE, start=start)


async def test_a_place_that_is_not_reached_yet_is_the_end(
    log: EventLog, inbox: MakeInbox, needs: Needs, implementation: Implementation
) -> None:
    needs(Feature.READ)
    position = (await numbers(log, 1, 1))[0]
    for start in (Start(position=f"{int(position) + 1}"), Start(time=implementation.now() + 3600)):
        assert await log.read(ORDERS, start, limit=10) == ([], None)


async def test_reading_takes_nothing_from_anybody(log: EventLog, inbox: MakeInbox, needs: Needs) -> None:
    needs(Feature.READ)
    arrivals = inbox()
    await numbers(log, 1, 3)
    assert len((await log.read(ORDERS, OLDEST, limit=10)).records) == 3
    await log.subscribe(SHIPPING, arrivals, concurrency=8, order=LOOSE, start=OLDEST)
    await arrivals.reaches(3)


# What is left to do


async def test_the_backlog_counts_what_waits_and_what_is_in_hand(
    log: EventLog, inbox: MakeInbox, implementation: Implementation
) -> None:
    assert await log.backlog(SHIPPING) is None
    held = inbox(keep)
    member = await log.subscribe(SHIPPING, held, concurrency=2, order=LOOSE)
    await numbers(log, 1, 5)
    await held.reaches(2)
    await implementation.quiet()
    backlog = await log.backlog(SHIPPING)
    assert backlog is not None
    assert sum(backlog) == 5
    assert backlog.unsettled >= 2
    for delivery in held.deliveries:
        ack(delivery)
    member.set_concurrency(0)
    await implementation.quiet()


async def test_members_are_of_one_order(log: EventLog, inbox: MakeInbox, needs: Needs) -> None:
    """The order may change when the last member has gone. What was left to do is done in the new one."""
    needs(Feature.KEY_ORDER)
    held = inbox()
    first = await log.subscribe(SHIPPING, held, concurrency=8, order=LOOSE)
    await log.publish(ORDERS, raw("before", key="a"))
    await held.reaches(1)
    with pytest.raises(BrokerError, match="another order than 'key'"):
        await log.subscribe(SHIPPING, keep, concurrency=8, order=Order.KEY)
    await first.close()
    for number in range(10):
        await log.publish(ORDERS, raw(f"{number}", key="a"))
    arrivals = inbox()
    await log.subscribe(SHIPPING, arrivals, concurrency=8, order=Order.KEY)
    await arrivals.reaches(10)
    assert arrivals.payloads == [b"%d" % number for number in range(10)]
    with pytest.raises(BrokerError, match="another order than 'none'"):
        await log.subscribe(SHIPPING, keep, concurrency=8, order=LOOSE)


async def test_what_is_not_declared_is_refused(log: EventLog, implementation: Implementation) -> None:
    for order, feature in ((Order.KEY, Feature.KEY_ORDER), (Order.STRICT, Feature.STRICT_ORDER)):
        if feature not in implementation.features:
            with pytest.raises(BrokerError):
                await log.subscribe(SHIPPING, keep, concurrency=1, order=order)
