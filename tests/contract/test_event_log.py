"""What every `EventLog` does. Each test is a promise of `mesh/ports/events.py`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import pairwise

import pytest

from mesh.errors import BrokerUnavailable, MessageTooLarge
from mesh.ports import Delivery, EventLog, Feature, Group, Message, Mode, Topic
from tests.contract.implementations import Implementation
from tests.contract.inbox import Inbox

ORDERS = Topic("pubsub", "orders")
SHIPPING = Group("shipping", ORDERS)
BILLING = Group("billing", ORDERS)

MakeInbox = Callable[..., Inbox]


def raw(payload: str | bytes, **options: object) -> Message:
    data = payload.encode() if isinstance(payload, str) else payload
    return Message(mode=Mode.RAW, payload=data, **options)  # type: ignore[arg-type]


def keep(delivery: Delivery) -> None:
    """Leave it unsettled."""


def ack(delivery: Delivery) -> None:
    delivery.ack()


def event(**attributes: str | int | bool) -> dict[str, str | int | bool]:
    return {"specversion": "1.0", "id": "1", "source": "/orders", "type": "order.placed", **attributes}


# What is published is what is delivered


async def test_a_started_log_has_no_problem(log: EventLog, implementation: Implementation) -> None:
    assert log.problem is None
    assert log.features == implementation.features


async def test_publish_returns_after_storing(log: EventLog, inbox: MakeInbox) -> None:
    await (await log.subscribe(SHIPPING, inbox(), concurrency=8)).close()
    await log.publish(ORDERS, raw("placed while nobody was there"))
    arrivals = inbox()
    await log.subscribe(SHIPPING, arrivals, concurrency=8)
    await arrivals.reaches(1)
    assert arrivals.payloads == [b"placed while nobody was there"]


@pytest.mark.parametrize(
    "message",
    [
        Message(mode=Mode.STRUCTURED, payload='{"specversion":"1.0","id":"ž","data":"☃"}'.encode()),
        Message(mode=Mode.BINARY, payload=bytes(range(256)), attributes=event()),
        Message(mode=Mode.BINARY, payload=b"", attributes=event(datacontenttype="text/plain; charset=utf-8")),
        Message(mode=Mode.BINARY, payload=None, attributes=event()),
        Message(mode=Mode.BINARY, payload=b"{}", attributes=event(id="€ 😀 \"quoted\" 100% %41 a%20b \\ :;,=")),
        Message(mode=Mode.BINARY, payload=b"{}", attributes=event(source="/%20/ž", subject=" blanks around ")),
        Message(mode=Mode.BINARY, payload=b"{}", attributes=event(time="2024-02-29T23:59:59.123456789+01:00")),
        Message(mode=Mode.RAW, payload=bytes(range(256)), content_type="image/png"),
        Message(mode=Mode.RAW, payload=b"", content_type="application/x-empty"),
        Message(mode=Mode.RAW, payload=b"no type"),
    ],
    ids=[
        "structured", "all-bytes", "empty-data", "no-data", "unicode-attributes", "blanks", "time",
        "raw", "raw-empty", "raw-untyped",
    ],
)  # fmt: skip
async def test_payload_and_attributes_survive(log: EventLog, inbox: MakeInbox, message: Message) -> None:
    arrivals = inbox()
    await log.subscribe(SHIPPING, arrivals, concurrency=8)
    await log.publish(ORDERS, message)
    (delivery,) = await arrivals.reaches(1)
    assert delivery.mode is message.mode
    assert delivery.payload == message.payload
    assert delivery.attributes == message.attributes
    if message.mode is Mode.RAW:
        assert delivery.content_type == message.content_type


async def test_attributes_of_a_binary_event_come_back_as_text(log: EventLog, inbox: MakeInbox) -> None:
    """As from any header binding. Whoever needs the types publishes in structured mode."""
    arrivals = inbox()
    await log.subscribe(SHIPPING, arrivals, concurrency=8)
    typed = event(low=-(2**31), high=2**31 - 1, yes=True, no=False)
    await log.publish(ORDERS, Message(mode=Mode.BINARY, payload=b"{}", attributes=typed))
    (delivery,) = await arrivals.reaches(1)
    assert delivery.attributes == event(low="-2147483648", high="2147483647", yes="true", no="false")


@pytest.mark.parametrize("mode", Mode)
async def test_headers_survive_beside_the_event(log: EventLog, inbox: MakeInbox, mode: Mode) -> None:
    headers = {
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "tracestate": "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE",
        "baggage": "userId=am%C3%A9lie,serverNode=DF%2028;prop=1",
    }
    attributes = event(traceparent="00-" + "1" * 32 + "-" + "2" * 16 + "-00") if mode is Mode.BINARY else {}
    message = Message(mode=mode, payload=b"{}", attributes=attributes, headers=headers)
    arrivals = inbox()
    await log.subscribe(SHIPPING, arrivals, concurrency=8)
    await log.publish(ORDERS, message)
    (delivery,) = await arrivals.reaches(1)
    assert delivery.headers == headers
    assert delivery.attributes == attributes


async def test_keyed_and_unkeyed_messages_arrive(log: EventLog, inbox: MakeInbox) -> None:
    keys = [None, "", "customer-7", "a.b *>", "ключ ☃", *map(str, range(40))]
    arrivals = inbox()
    await log.subscribe(SHIPPING, arrivals, concurrency=100)
    for key in keys:
        await log.publish(ORDERS, raw(repr(key), key=key))
    await arrivals.reaches(len(keys))
    assert sorted(arrivals.payloads) == sorted(repr(key).encode() for key in keys)  # type: ignore[type-var]


async def test_a_thousand_concurrent_publishes_all_arrive(log: EventLog, inbox: MakeInbox) -> None:
    arrivals = inbox()
    await log.subscribe(SHIPPING, arrivals, concurrency=64)
    await asyncio.gather(*(log.publish(ORDERS, raw(f"{number}")) for number in range(1000)))
    await arrivals.reaches(1000)
    assert {int(payload or b"") for payload in arrivals.payloads} == set(range(1000))
    assert len({delivery.position for delivery in arrivals.deliveries}) == 1000


async def test_many_large_events_arrive(log: EventLog, inbox: MakeInbox) -> None:
    arrivals = inbox()
    await log.subscribe(SHIPPING, arrivals, concurrency=64)
    await asyncio.gather(*(log.publish(ORDERS, raw(b"%03d" % number + b"x" * 1_000_000)) for number in range(40)))
    await arrivals.reaches(40)
    assert {(payload or b"")[:3] for payload in arrivals.payloads} == {b"%03d" % number for number in range(40)}


ODD_NAMES = [
    "orders", "Orders", "orders.eu", "orders.eu.north", "orders eu", " orders", "orders/eu", "orders*", "**", ">>",
    "orders.>eu", ".", "..", "orders.", ".orders", "a%2Eb", "a%b", "%", "%%", "a=b", "a_b", "a-b", "a~b", "a:b", "a\\b",
    "a#b", "a?b", "$JS", "$JS.API.x", "_INBOX.x", "u", "0", "orders.u", "orders.0", "заказы", "注文", "😀", "e\u0301",
    "\u00e9", "x" * 250, "x" * 251,
]  # fmt: skip


async def test_topics_with_odd_names_do_not_mix(log: EventLog, inbox: MakeInbox) -> None:
    topics = [Topic("pubsub", name) for name in ODD_NAMES]
    topics += [Topic("a", "b.c"), Topic("a.b", "c"), Topic("a/b", "c"), Topic("a", "b/c"), Topic("ab", "c")]
    inboxes = {topic: inbox() for topic in topics}
    for topic in topics:
        await log.subscribe(Group("shipping", topic), inboxes[topic], concurrency=8)
    for topic in topics:
        await log.publish(topic, raw(repr(topic)))
    for topic in topics:
        await inboxes[topic].reaches(1)
    await log.publish(ORDERS, raw("last"))
    await inboxes[ORDERS].reaches(2)
    del inboxes[ORDERS].deliveries[1]
    assert {topic: inboxes[topic].payloads for topic in topics} == {topic: [repr(topic).encode()] for topic in topics}


async def test_groups_with_odd_names_do_not_mix(log: EventLog, inbox: MakeInbox) -> None:
    groups = [Group(app_id, ORDERS) for app_id in ODD_NAMES]
    inboxes = {group: inbox() for group in groups}
    for group in groups:
        await log.subscribe(group, inboxes[group], concurrency=8)
    await log.publish(ORDERS, raw("one"))
    for group in groups:
        await inboxes[group].reaches(1)
    assert all(inboxes[group].payloads == [b"one"] for group in groups)


# Settling


async def test_what_is_acked_never_comes_again(log: EventLog, inbox: MakeInbox, implementation: Implementation) -> None:
    first, second = inbox(), inbox()
    member = await log.subscribe(SHIPPING, first, concurrency=8)
    await log.publish(ORDERS, raw("one"))
    await first.reaches(1)
    await member.close()
    await log.subscribe(SHIPPING, second, concurrency=8)
    await implementation.quiet()
    await log.publish(ORDERS, raw("two"))
    await second.reaches(1)
    assert (first.payloads, second.payloads) == ([b"one"], [b"two"])


async def test_retry_delivers_again_after_the_delay(
    log: EventLog, inbox: MakeInbox, implementation: Implementation
) -> None:
    delays = [0.3, 0.6]

    def retry_twice(delivery: Delivery) -> None:
        if delivery.attempt <= len(delays):
            delivery.retry(delays[delivery.attempt - 1])
        else:
            delivery.ack()

    arrivals = inbox(retry_twice)
    await log.subscribe(SHIPPING, arrivals, concurrency=8)
    await log.publish(ORDERS, raw("one"))
    await arrivals.reaches(1)
    await implementation.elapse(sum(delays))
    await arrivals.reaches(3)
    await implementation.quiet()
    assert [delivery.attempt for delivery in arrivals.deliveries] == [1, 2, 3]
    assert len({delivery.position for delivery in arrivals.deliveries}) == 1
    waits = [later - earlier for earlier, later in pairwise(arrivals.times)]
    assert all(wait >= delay - 0.005 for wait, delay in zip(waits, delays, strict=True)), (
        waits
    )  # clocks of two processes


async def test_retry_without_delay_delivers_at_once(log: EventLog, inbox: MakeInbox) -> None:
    arrivals = inbox(lambda delivery: delivery.retry(0.0) if delivery.attempt == 1 else delivery.ack())
    await log.subscribe(SHIPPING, arrivals, concurrency=1)
    await log.publish(ORDERS, raw("one"))
    await arrivals.reaches(2, within=10)


async def test_a_retried_event_may_go_to_another_member(
    log: EventLog, inbox: MakeInbox, implementation: Implementation
) -> None:
    first, second = inbox(lambda delivery: delivery.retry(0.3)), inbox()
    member = await log.subscribe(SHIPPING, first, concurrency=8)
    await log.publish(ORDERS, raw("one"))
    await first.reaches(1)
    await member.close()
    await log.subscribe(SHIPPING, second, concurrency=8)
    await implementation.elapse(0.3)
    (delivery,) = await second.reaches(1)
    assert delivery.attempt == 2


async def test_the_first_settlement_counts(log: EventLog, inbox: MakeInbox, implementation: Implementation) -> None:
    def ack_then_retry(delivery: Delivery) -> None:
        delivery.ack()
        delivery.retry(0.0)
        delivery.ack()

    def retry_then_ack(delivery: Delivery) -> None:
        if delivery.attempt == 1:
            delivery.retry(0.0)
        delivery.ack()

    def retry_later_then_now(delivery: Delivery) -> None:
        delivery.retry(60.0)
        delivery.retry(0.0)

    acked, retried, delayed = inbox(ack_then_retry), inbox(retry_then_ack), inbox(retry_later_then_now)
    await log.subscribe(SHIPPING, acked, concurrency=8)
    await log.subscribe(BILLING, retried, concurrency=8)
    await log.subscribe(Group("archive", ORDERS), delayed, concurrency=8)
    await log.publish(ORDERS, raw("one"))
    await retried.reaches(2)
    await implementation.elapse(0.3)
    assert (len(acked.deliveries), len(retried.deliveries), len(delayed.deliveries)) == (1, 2, 1)


async def test_an_unsettled_event_is_kept_from_the_other_members(
    log: EventLog, inbox: MakeInbox, implementation: Implementation
) -> None:
    slow, other = inbox(keep), inbox()
    await log.subscribe(SHIPPING, slow, concurrency=1)
    await log.publish(ORDERS, raw("one"))
    (delivery,) = await slow.reaches(1)
    await log.subscribe(SHIPPING, other, concurrency=1)
    await implementation.quiet()
    assert other.payloads == []
    delivery.ack()


async def test_no_more_than_concurrency_are_unsettled(
    log: EventLog, inbox: MakeInbox, implementation: Implementation
) -> None:
    arrivals = inbox(keep)
    await log.subscribe(SHIPPING, arrivals, concurrency=3)
    for number in range(10):
        await log.publish(ORDERS, raw(f"{number}"))
    await arrivals.reaches(3)
    await implementation.quiet()
    assert len(arrivals.deliveries) == 3
    arrivals.deliveries[1].ack()
    await arrivals.reaches(4)
    arrivals.deliveries[0].retry(60.0)
    await arrivals.reaches(5)
    await implementation.elapse(0.1)
    assert len(arrivals.deliveries) == 5
    for settled in range(1, 10):
        (await arrivals.reaches(settled + 1))[settled].ack()
    assert len(set(arrivals.payloads)) == 10


# Groups


async def test_many_deliveries_that_wait_may_be_settled_in_one_go(log: EventLog, inbox: MakeInbox) -> None:
    settle = keep
    arrivals = inbox(lambda delivery: settle(delivery))
    await log.subscribe(SHIPPING, arrivals, concurrency=500)
    for number in range(1000):  # of each kind 500, so that half of them wait
        await log.publish(ORDERS, raw(f"{number}", key=f"{number}" if number % 2 else None))
    held = list(await arrivals.reaches(500))
    settle = ack
    held[0].ack()
    await arrivals.reaches(501)
    for delivery in held:
        delivery.ack()
    await arrivals.reaches(1000)


async def test_a_group_starts_at_its_first_subscribe(log: EventLog, inbox: MakeInbox) -> None:
    arrivals = inbox()
    await log.publish(ORDERS, raw("before"))
    await log.subscribe(SHIPPING, arrivals, concurrency=8)
    await log.publish(ORDERS, raw("after"))
    await arrivals.reaches(1)
    assert arrivals.payloads == [b"after"]


async def test_a_group_misses_nothing_while_it_has_no_member(log: EventLog, inbox: MakeInbox) -> None:
    first, second = inbox(), inbox()
    member = await log.subscribe(SHIPPING, first, concurrency=8)
    await log.publish(ORDERS, raw("0"))
    await first.reaches(1)
    await member.close()
    for number in range(1, 101):
        await log.publish(ORDERS, raw(f"{number}"))
    await log.subscribe(SHIPPING, second, concurrency=8)
    await second.reaches(100)
    assert first.payloads == [b"0"]
    assert {int(payload or b"") for payload in second.payloads} == set(range(1, 101))


async def test_every_group_gets_every_event(log: EventLog, inbox: MakeInbox) -> None:
    shipping, billing = inbox(), inbox()
    await log.subscribe(SHIPPING, shipping, concurrency=8)
    await log.subscribe(BILLING, billing, concurrency=8)
    for number in range(50):
        await log.publish(ORDERS, raw(f"{number}"))
    await shipping.reaches(50)
    await billing.reaches(50)
    assert set(shipping.payloads) == set(billing.payloads) == {f"{number}".encode() for number in range(50)}
    assert {delivery.position: delivery.payload for delivery in shipping.deliveries} == {
        delivery.position: delivery.payload for delivery in billing.deliveries
    }


async def test_members_share_the_events_of_their_group(
    log: EventLog, inbox: MakeInbox, implementation: Implementation, needs: MakeInbox
) -> None:
    needs(Feature.ANY_MEMBER)
    members = [inbox(keep), inbox(keep)]
    for member in members:
        await log.subscribe(SHIPPING, member, concurrency=10)
    for number in range(20):
        await log.publish(ORDERS, raw(f"{number}"))
    for member in members:  # each can hold ten, so both must take their part
        await member.reaches(10)
    await implementation.quiet()
    payloads = [payload for member in members for payload in member.payloads]
    assert sorted(payloads) == sorted(f"{number}".encode() for number in range(20))  # type: ignore[type-var]
    for member in members:
        for delivery in member.deliveries:
            delivery.ack()


async def test_close_waits_for_the_deliveries_in_hand(log: EventLog, inbox: MakeInbox) -> None:
    arrivals = inbox(keep)
    member = await log.subscribe(SHIPPING, arrivals, concurrency=2)
    for number in range(4):
        await log.publish(ORDERS, raw(f"{number}"))
    one, two = await arrivals.reaches(2)
    closing = asyncio.create_task(member.close())
    await asyncio.sleep(0.05)
    one.ack()
    await asyncio.sleep(0.05)
    assert not closing.done()
    two.ack()
    await asyncio.wait_for(closing, 30)
    others = inbox()
    await log.subscribe(SHIPPING, others, concurrency=8)
    await others.reaches(2)
    assert len(arrivals.deliveries) == 2
    assert not set(others.payloads) & set(arrivals.payloads)


async def test_what_a_member_leaves_unsettled_goes_to_another(log: EventLog, inbox: MakeInbox) -> None:
    leaving, staying = inbox(keep), inbox()
    member = await log.subscribe(SHIPPING, leaving, concurrency=8)
    await log.publish(ORDERS, raw("one"))
    (abandoned,) = await leaving.reaches(1)
    closing = asyncio.create_task(member.close())
    await asyncio.sleep(0.05)
    closing.cancel()
    await asyncio.gather(closing, return_exceptions=True)
    await log.subscribe(SHIPPING, staying, concurrency=8)
    (delivery,) = await staying.reaches(1)
    assert (delivery.position, delivery.payload) == (abandoned.position, b"one")
    assert delivery.attempt == 2
    assert len(leaving.deliveries) == 1


async def test_members_may_come_and_go_under_load(log: EventLog, inbox: MakeInbox) -> None:
    arrivals = inbox()
    await log.subscribe(SHIPPING, arrivals, concurrency=8)
    publishes = [asyncio.create_task(log.publish(ORDERS, raw(f"{number}"))) for number in range(3000)]
    while len(arrivals.deliveries) < 2000:
        member = await log.subscribe(SHIPPING, arrivals, concurrency=8)
        await arrivals.reaches(min(len(arrivals.deliveries) + 20, 3000))
        await asyncio.wait_for(member.close(), 10)
    await asyncio.gather(*publishes)
    await arrivals.reaches(3000)
    assert len(set(arrivals.payloads)) == 3000


async def test_members_may_found_a_group_together(log: EventLog, inbox: MakeInbox) -> None:
    arrivals = inbox()
    await asyncio.gather(*(log.subscribe(SHIPPING, arrivals, concurrency=8) for _ in range(10)))
    for number in range(100):
        await log.publish(ORDERS, raw(f"{number}"))
    await arrivals.reaches(100)
    assert len(set(arrivals.payloads)) == len(arrivals.payloads)


async def test_unsubscribe_forgets_the_group(log: EventLog, inbox: MakeInbox) -> None:
    await (await log.subscribe(SHIPPING, inbox(), concurrency=8)).close()
    others = inbox()
    await log.subscribe(BILLING, others, concurrency=8)
    await log.publish(ORDERS, raw("before"))
    assert await log.unsubscribe(SHIPPING) is True
    assert await log.unsubscribe(SHIPPING) is False
    arrivals = inbox()
    await log.subscribe(SHIPPING, arrivals, concurrency=8)
    await log.publish(ORDERS, raw("after"))
    await others.reaches(2)
    await arrivals.reaches(1)
    assert arrivals.payloads == [b"after"]
    assert set(others.payloads) == {b"before", b"after"}


# Repeats and expiry


async def test_a_callers_id_is_stored_once_in_a_topic(log: EventLog, inbox: MakeInbox, needs: MakeInbox) -> None:
    needs(Feature.DEDUPE)
    arrivals = inbox()
    await log.subscribe(SHIPPING, arrivals, concurrency=8)
    await log.publish(ORDERS, raw("first", dedupe_id="id-1"))
    await log.publish(ORDERS, raw("repeat", dedupe_id="id-1"))
    await log.publish(ORDERS, raw("keyed repeat", dedupe_id="id-1", key="customer-7"))
    await log.publish(ORDERS, raw("other", dedupe_id="ID-1"))
    await log.publish(ORDERS, raw("odd", dedupe_id="ž\r\n☃" * 100))
    await arrivals.reaches(3)
    await log.publish(ORDERS, raw("last"))
    await arrivals.reaches(4)
    assert set(arrivals.payloads) == {b"first", b"other", b"odd", b"last"}
    assert len(arrivals.payloads) == 4


async def test_a_callers_id_counts_in_its_own_topic_only(log: EventLog, inbox: MakeInbox, needs: MakeInbox) -> None:
    needs(Feature.DEDUPE)
    topics = [Topic("a", "b.c"), Topic("a.b", "c"), Topic("a/b", "c"), Topic("a", "b/c"), Topic("ab", "c")]
    arrivals = inbox()
    for topic in topics:
        await log.subscribe(Group("shipping", topic), arrivals, concurrency=8)
    for topic in topics:
        await log.publish(topic, raw(repr(topic), dedupe_id="id-1"))
    await arrivals.reaches(len(topics))
    assert set(arrivals.payloads) == {repr(topic).encode() for topic in topics}


async def test_a_callers_id_does_not_run_into_the_topic(log: EventLog, inbox: MakeInbox, needs: MakeInbox) -> None:
    needs(Feature.DEDUPE)
    published = [(Topic("p", "x"), "y z"), (Topic("p", "x y"), "z"), (Topic("p", "xy"), "z"), (Topic("p", "x"), "yz")]
    arrivals = inbox()
    for topic in {topic for topic, _ in published}:
        await log.subscribe(Group("shipping", topic), arrivals, concurrency=8)
    for topic, dedupe_id in published:
        await log.publish(topic, raw(f"{topic.name}|{dedupe_id}", dedupe_id=dedupe_id))
    await arrivals.reaches(len(published))


async def test_messages_without_an_id_are_never_taken_for_repeats(log: EventLog, inbox: MakeInbox) -> None:
    arrivals = inbox()
    await log.subscribe(SHIPPING, arrivals, concurrency=8)
    same = Message(mode=Mode.BINARY, payload=b"{}", attributes=event())
    for _ in range(3):
        await log.publish(ORDERS, same)
    await arrivals.reaches(3)


async def test_an_expired_event_is_not_delivered(
    log: EventLog, inbox: MakeInbox, implementation: Implementation, needs: MakeInbox
) -> None:
    needs(Feature.TTL)
    await (await log.subscribe(SHIPPING, inbox(), concurrency=8)).close()
    await log.publish(ORDERS, raw("short", ttl=1.0))
    await log.publish(ORDERS, raw("long", ttl=3600.0))
    await log.publish(ORDERS, raw("ages", ttl=252_000_000_000.0))  # about what is left until the year 9999
    await implementation.elapse(1.5)
    arrivals = inbox()
    await log.subscribe(SHIPPING, arrivals, concurrency=8)
    await arrivals.reaches(2)
    await log.publish(ORDERS, raw("last", ttl=1.0))
    await arrivals.reaches(3)
    assert sorted(arrivals.payloads) == [b"ages", b"last", b"long"]  # type: ignore[type-var]


# Limits and ends


@pytest.mark.parametrize(
    "options",
    [{}, {"headers": {"baggage": "a=b"}}, {"mode": Mode.BINARY, "attributes": event(subject="ž" * 100)}],
    ids=["raw", "headers", "binary"],
)
async def test_a_message_fits_to_the_byte(log: EventLog, inbox: MakeInbox, options: dict[str, object]) -> None:
    def message(size: int) -> Message:
        return Message(**{"mode": Mode.RAW, "payload": b"x" * size, **options})  # type: ignore[arg-type]

    arrivals = inbox()
    await log.subscribe(SHIPPING, arrivals, concurrency=8)
    probe = 64 << 20
    with pytest.raises(MessageTooLarge) as refused:
        await log.publish(ORDERS, message(probe))
    fits = refused.value.limit - (refused.value.size - probe)
    with pytest.raises(MessageTooLarge) as refused:
        await log.publish(ORDERS, message(fits + 1))
    assert refused.value.size == refused.value.limit + 1
    await log.publish(ORDERS, message(fits))
    await log.publish(ORDERS, raw("still alive"))
    await arrivals.reaches(2)
    assert {len(payload or b"") for payload in arrivals.payloads} == {fits, 11}
    assert log.problem is None


async def test_close_fails_the_publishes_that_wait(log: EventLog) -> None:
    publishes = [asyncio.create_task(log.publish(ORDERS, raw(f"{number}"))) for number in range(100)]
    await asyncio.sleep(0)
    await asyncio.wait_for(log.close(), 10)
    outcomes = await asyncio.wait_for(asyncio.gather(*publishes, return_exceptions=True), 30)
    assert all(isinstance(outcome, str | BrokerUnavailable) for outcome in outcomes)
    assert log.problem
    with pytest.raises(BrokerUnavailable):
        await log.publish(ORDERS, raw("late"))
    with pytest.raises(BrokerUnavailable):
        await log.subscribe(SHIPPING, keep, concurrency=1)


async def test_cancelling_a_publish_harms_nothing(log: EventLog, inbox: MakeInbox) -> None:
    arrivals = inbox()
    await log.subscribe(SHIPPING, arrivals, concurrency=64)
    publishes = [asyncio.create_task(log.publish(ORDERS, raw(f"{number}"))) for number in range(200)]
    await asyncio.sleep(0)
    for publish in publishes[::2]:
        publish.cancel()
    await asyncio.gather(*publishes, return_exceptions=True)
    await log.publish(ORDERS, raw("last"))
    await arrivals.reaches(101)
    while b"last" not in arrivals.payloads:
        await arrivals.reaches(len(arrivals.payloads) + 1)
    assert {f"{number}".encode() for number in range(1, 200, 2)} <= set(arrivals.payloads)
    assert len(set(arrivals.payloads)) == len(arrivals.payloads)
