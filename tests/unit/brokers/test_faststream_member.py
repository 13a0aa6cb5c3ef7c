"""A member whose start fails half-way."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from brokers.faststream.member import Member, Membership
from brokers.memory import MemoryEventLog, MemorySubscription
from mesh.delivery import Plan
from mesh.errors import BrokerUnavailable
from mesh.ports import Group, Handler, Message, Mode, Topic

TOPIC = Topic("pubsub", "A")


class HalfStarted(MemoryEventLog):
    """Delivers, and then fails to join: as a log whose second lane cannot be had."""

    async def subscribe(self, group: Group, handler: Handler, **options: Any) -> MemorySubscription:
        await super().subscribe(group, handler, **options)
        await self.publish(TOPIC, Message(mode=Mode.STRUCTURED, payload=b"{}"))
        await asyncio.sleep(0)
        raise BrokerUnavailable("no second lane")


async def test_a_member_that_cannot_start_leaves_no_task_behind() -> None:
    log = HalfStarted()
    await log.start()

    async def consume(_message: object) -> None:
        raise AssertionError("FastStream was not ready")

    membership = Membership(group=Group("app", TOPIC), plan=Plan(), concurrency=1)
    member = Member(log, membership, consume)
    with pytest.raises(BrokerUnavailable):
        await member.start()
    assert len(member._tasks) == 1
    await asyncio.wait_for(asyncio.gather(*member._tasks, return_exceptions=True), 1)
    assert not member._tasks
