"""The event log on a server of Kafka that lacks much: no idempotence, no messages by time, nothing beside an offset.

It makes up its mind about a group's members in three seconds each time, so one test goes through all of it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from mesh.errors import BrokerError
from mesh.ports import OLDEST, Delivery, Feature, Group, Message, Mode, Order, Start, Topic
from tests.contract.implementations import kafka_event_log
from tests.contract.inbox import Inbox
from tests.servers.kafka import BINARY, KafkaServer

ORDERS = Topic("pubsub", "orders")
SHIPPING = Group("shipping", ORDERS)
LIMIT = 60.0
"""Seconds for anything that should happen."""


@pytest.fixture
def server() -> Iterator[KafkaServer]:
    if BINARY is None:
        pytest.skip("tansu is not installed")
    server = KafkaServer()
    server.start()
    yield server
    server.remove()


def event(number: int, **options: object) -> Message:
    attributes = {"specversion": "1.0", "id": f"{number}", "source": "/orders", "type": "placed"}
    return Message(mode=Mode.BINARY, payload=None, attributes=attributes, **options)  # type: ignore[arg-type]


async def test_the_log_does_what_such_a_server_can(server: KafkaServer) -> None:
    log = kafka_event_log([server.address], "lesser")
    await asyncio.wait_for(log.start(), LIMIT)
    try:
        assert log.features == {Feature.DURABLE, Feature.TTL, Feature.KEY_ORDER, Feature.BROADCAST}
        with pytest.raises(BrokerError, match="by time"):
            await log.read(ORDERS, OLDEST, limit=1)
        with pytest.raises(BrokerError, match="by time"):
            await log.subscribe(SHIPPING, lambda delivery: None, concurrency=1, start=Start(time=1.0))
        await log.publish(ORDERS, event(0, key="a"))

        def settle(delivery: Delivery) -> None:
            if delivery.attributes["id"] == "1" and delivery.attempt == 1:
                delivery.retry(0.2)
            else:
                delivery.ack()

        every, competing = Inbox(lambda delivery: delivery.ack(), time.time), Inbox(settle, time.time)
        everybody = await log.subscribe(SHIPPING, every, concurrency=8, order=Order.NONE, start=OLDEST, lasting=False)
        members = [await log.subscribe(SHIPPING, competing, concurrency=8)]
        for number in range(1, 20):
            await log.publish(ORDERS, event(number, key="a"))
        await log.publish(ORDERS, event(20, ttl=0.0))
        await log.publish(ORDERS, event(21))
        await every.reaches(21, within=LIMIT)
        await competing.reaches(21, within=LIMIT)
        keyed = [number for number in map(_number, competing.deliveries) if number < 20]
        assert keyed == [1, *range(1, 20)]
        assert {_number(delivery) for delivery in every.deliveries} == {*range(20), 21}
        for subscription in (everybody, *members):
            await asyncio.wait_for(subscription.close(), LIMIT)
        backlog = await log.backlog(SHIPPING)
        assert backlog is not None
        assert sum(backlog) == 0
    finally:
        await asyncio.wait_for(log.close(), LIMIT)


def _number(delivery: Delivery) -> int:
    return int(delivery.attributes["id"])
