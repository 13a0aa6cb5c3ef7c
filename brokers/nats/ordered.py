"""Groups in order (docs/adr/0010-order.md): ordered lanes, each worked by one member at a time under a lease.

For order per key the 16 partitions of a topic are spread over the `KEYED_LANES`; for strict order there is one lane
with everything. A lane is a durable consumer.
"""

from __future__ import annotations

import asyncio
import logging
import os
import platform
from collections.abc import Awaitable, Callable, Container, Sequence
from typing import Any

from brokers.nats import jetstream, ordered_progress
from brokers.nats.connection import Connection
from brokers.nats.consumer import TICK
from brokers.nats.ordered_lane import Lane, OrderedDelivery, Surroundings
from brokers.nats.ordered_membership import Membership
from brokers.nats.ordered_progress import Progress
from mesh import addressing
from mesh.fencing import FenceToken
from mesh.ownership import Partitions, records
from mesh.ports import Clock, Group, Order
from mesh.ports.tables import ABSENT, Conflict, Delete, Key, Table, Tables

logger = logging.getLogger("meshwire.nats")

KEYED_LANES = tuple(f"k{number}" for number in range(8))
"""Lanes of a group with order per key: so many members can share its work at most. Stored names: they never change."""
STRICT_LANE = "s"
ACK_WAIT = 24 * 3600.0
"""Seconds. Which member works a lane is decided by its lease and not by the server's timers; what comes again because
of them is known to be in hand."""
MAX_ACK_PENDING = 100_000
"""Messages of a lane that may be unsettled, waiting for a retry, or behind one of their key. Then the lane waits."""
LEASE_TTL = 10.0
"""Seconds after which the lanes of a member that is gone without a word are given to others."""
REVOKE_LIMIT = 30.0
"""Seconds that the app has for what it has in hand when a lane is to go to another member."""
LEAVE_LIMIT = 1.0
"""Seconds that a farewell may take when everything is cut. Without it the leases expire."""


def lanes(topic_root: str, order: Order, *, deep: bool, lasting: bool) -> dict[str, list[str]]:
    """The lanes of a group and their subjects. With `deep` they are all those below the root, at any depth, where no
    filter can tell keys from parts of a topic."""
    everything = [addressing.deep_filter(topic_root)] if deep else [f"{topic_root}*"]
    if order is Order.STRICT:
        return {STRICT_LANE: everything}
    if deep:
        return {KEYED_LANES[0]: everything}
    subjects = addressing.keyed_filter(topic_root)
    if not lasting:  # one member has them all
        return {KEYED_LANES[0]: subjects}
    return {lane: subjects[number :: len(KEYED_LANES)] for number, lane in enumerate(KEYED_LANES)}


class OrderedLanes:
    """The ordered lanes of one member of a group.

    `offer` is given a message that may be handled, `settled` is told when it is not in hand any more; `withdraw` is to
    forget what was offered and not handed over. Without `tables` the group has no other member.
    """

    def __init__(
        self,
        connection: Connection,
        stream: str,
        tables: Tables | None,
        group: Group,
        configs: list[dict[str, Any]],
        *,
        by_key: bool,
        clock: Clock,
        restore_stream: Callable[[], Awaitable[str]],
        topic_of: Callable[[bytes], str],
        offer: Callable[[OrderedDelivery], None],
        settled: Callable[[OrderedDelivery], None],
        withdraw: Callable[[Container[OrderedDelivery]], None],
        concurrency: int,
    ) -> None:
        self._connection = connection
        self._stream = stream
        self._table = None if tables is None else tables.table(group.app_id)
        self._configs = configs
        self._loop = asyncio.get_running_loop()
        self._around = Surroundings(
            connection,
            stream,
            self._table,
            clock,
            restore_stream=restore_stream,
            topic_of=topic_of,
            offer=offer,
            settled=settled,
            withdraw=withdraw,
            concurrency=concurrency,
            by_key=by_key,
            stuck=self._stuck,
        )
        self._membership: Membership | None = None
        if tables is not None:
            name = lease_group(group, by_key)
            self._membership = Membership(
                lambda: Partitions(
                    tables,
                    group.app_id,
                    name,
                    len(configs),
                    self,
                    node=f"{platform.node()}:{os.getpid()}",
                    clock=clock,
                    ttl=LEASE_TTL,
                    revoke_limit=REVOKE_LIMIT,
                ),
                lambda: _has_others(tables.table(group.app_id), name),
                clock,
                concurrency,
            )
        self._begins: list[tuple[str, int]] = []
        self._lanes: dict[int, Lane] = {}
        self._ending: set[Lane] = set()
        """Lanes that are not worked any more, while something of theirs may be in hand."""
        self._timer: asyncio.TimerHandle | None = None
        self._ticked = 0.0
        self._forget_connection: Callable[[], None] = lambda: None
        self._leaving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Make the consumers that are not there, and join. Raises `BrokerError`."""
        made = await self._around.restore_stream()
        keys = [ordered_progress.progress_key(config["durable_name"]) for config in self._configs]
        known = [None for _ in keys] if self._table is None else await self._table.get_many(keys)
        # One that was worked before has its place on record: if it is gone, only its owner may make it again.
        infos = await asyncio.gather(
            *(
                (jetstream.ensure_consumer if record is None else jetstream.update_consumer)(
                    self._connection, self._stream, config
                )
                for config, record in zip(self._configs, known, strict=True)
            )
        )
        floors = [0 if info is None else int(info["ack_floor"]["stream_seq"]) for info in infos]
        self._begins = [(made, floor + 1) for floor in floors]
        await asyncio.gather(
            *(
                self._record_beginning(key, Progress(made, floor))
                for key, floor, record in zip(keys, floors, known, strict=True)
                if record is None
            )
        )
        self._forget_connection = self._connection.on_reconnected(self._reconnected)
        self._ticked = self._loop.time()
        self._timer = self._loop.call_later(TICK, self._tick)
        if self._membership is None:
            for number in range(len(self._configs)):
                self.gained(number, None)
        else:
            self._membership.start()

    async def _record_beginning(self, key: Key, progress: Progress) -> None:
        """Once a group is founded it misses nothing, also when a consumer vanishes before anybody has worked it."""
        if self._table is None:
            return
        put = ordered_progress.record(key, progress, expected=ABSENT)
        try:
            await self._table.commit([put])
        except Conflict:
            logger.debug("%s is on record by another member", "/".join(key))

    def set_limit(self, limit: int) -> None:
        """For the whole group of lanes. With 0 no more messages are taken, and others have the lanes before long."""
        self._around.concurrency = limit
        for lane in self._lanes.values():
            lane.pull()
        if self._membership is not None:
            self._membership.set_limit(limit)

    def _stuck(self) -> None:
        if self._membership is not None:
            self._membership.step_aside()

    async def stop(self) -> None:
        """Leave: others have the lanes once what is in hand is settled, or after a limit. Returns when all of it is."""
        try:
            if self._membership is None:
                await asyncio.gather(*map(self.revoke, list(self._lanes)))
            else:
                await self._membership.close()
            for lane in list(self._ending):
                await lane.settled()
        finally:
            self._end_all()

    def cut(self) -> None:
        """Let go at once. `left` returns when others know of it."""
        if self._end_all() and self._membership is not None:
            self._leaving = self._loop.create_task(self._membership.close(), name="leave ordered lanes")

    def _end_all(self) -> bool:
        """False when that was done before."""
        if self._timer is None:
            return False
        self._timer.cancel()
        self._timer = None
        self._forget_connection()
        for number in list(self._lanes):
            self.lost(number)
        return True

    async def left(self) -> None:
        """Returns when all has ended, after `cut`: soon, also when the server is silent. Never raises."""
        if self._leaving is not None:
            await asyncio.wait([self._leaving], timeout=LEAVE_LIMIT)
            self._leaving.cancel()
            await asyncio.gather(self._leaving, return_exceptions=True)

    # What `Partitions` calls

    def gained(self, partition: int, token: FenceToken | None) -> None:
        def held() -> bool:
            return self._membership is None or self._membership.token(partition) is token

        def lost_stream(lane: Lane) -> None:
            if self._lanes.get(partition) is lane:
                self._end(partition, lane.void)
                self.gained(partition, token)

        lane = self._lanes[partition] = Lane(
            self._around,
            self._configs[partition],
            token,
            begin=self._begins[partition],
            held=held,
            lost_stream=lost_stream,
        )
        lane.start()

    async def revoke(self, partition: int) -> None:
        lane = self._lanes.get(partition)
        if lane is not None:
            await lane.revoke()
            self._lanes.pop(partition, None)

    def lost(self, partition: int) -> None:
        lane = self._lanes.get(partition)
        if lane is not None:
            self._end(partition, lane.lost)

    def _end(self, partition: int, end: Callable[[], None]) -> None:
        lane = self._lanes.pop(partition)
        end()
        self._ending.add(lane)

    def _reconnected(self) -> None:
        """What the server sent on the old connection, and what was acknowledged there, may be lost."""
        for lane in self._lanes.values():
            lane.reopen("")

    def _tick(self) -> None:
        now = self._loop.time()
        self._timer = self._loop.call_later(TICK, self._tick)
        stood_still = now - self._ticked > 2 * TICK
        self._ticked = now
        for lane in self._lanes.values():
            lane.tick(now, stood_still)
        self._ending = {lane for lane in self._ending if lane.in_hand}


def lease_group(group: Group, by_key: bool) -> str:
    """The name under which the members of a group share its lanes."""
    return f"order/{addressing.durable(group, 'k' if by_key else 's')}"


async def _has_others(table: Table, group: str) -> bool:
    """Whether there is more than one. Raises `BrokerError`."""
    page = await table.scan((*records.group_key(group), records.MEMBER), limit=2)
    return len(page.entries) > 1


async def forget_progress(tables: Tables, group: Group, durables: Sequence[str]) -> None:
    """Remove what is on record of these lanes. Raises `BrokerError`."""
    table = tables.table(group.app_id)
    keys = [ordered_progress.progress_key(durable) for durable in durables]
    known = await table.get_many(keys)
    if gone := [Delete(key=key) for key, entry in zip(keys, known, strict=True) if entry is not None]:
        await table.commit(gone)
