"""Where records without a key go: much as by the sticky partitioner of Kafka's clients (KIP-480); aiokafka has none.

With a partition of its own for each record, every request has a batch for each of many partitions, and a batch costs
both ends more than the few records in it. So what is published while a record is on its way goes with it: to the same
partition, until the first of them is acknowledged, or there are enough of them for a batch.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from aiokafka.cluster import ClusterMetadata

LONGEST = 0.01
"""Seconds after which another partition is taken all the same: the leader of this one may be gone."""
ENOUGH = 16
"""Records after which another one is taken, too: replicas of a subscriber share what comes all at once."""


class StickyPartitions:
    def __init__(self, now: Callable[[], float]) -> None:
        """`now` gives seconds, as the event loop counts them."""
        self._now = now
        self._places: dict[str, _Place] = {}

    def choose(self, topic: str, cluster: ClusterMetadata) -> int:
        """A partition of a topic that `cluster` knows."""
        now = self._now()
        place = self._places.get(topic)
        if place is None or place.until < now or not place.left:
            partitions = cluster.available_partitions_for_topic(topic) or cluster.partitions_for_topic(topic)
            partition = random.choice(tuple(partitions))  # noqa: S311 - no secret
            place = self._places[topic] = _Place(partition, now + LONGEST)
        place.left -= 1
        return place.partition

    def acknowledged(self, topic: str, partition: int) -> None:
        """What comes next may go elsewhere."""
        place = self._places.get(topic)
        if place is not None and place.partition == partition:
            del self._places[topic]


class _Place:
    __slots__ = ("left", "partition", "until")

    def __init__(self, partition: int, until: float) -> None:
        self.partition = partition
        self.until = until
        self.left = ENOUGH
