"""Where records without a key go: the sticky partitioner of Kafka's own clients (KIP-480), which aiokafka lacks.

With a partition of its own for each record, every request has a batch for each of many partitions, and a batch costs
both ends more than the few records in it. So what is published while a record is on its way goes with it: to the same
partition, until the first of them is acknowledged. Where little is published each record finds a new partition.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from aiokafka.cluster import ClusterMetadata

LONGEST = 0.01
"""Seconds after which another partition is taken all the same: the leader of this one may be gone."""


class StickyPartitions:
    def __init__(self, now: Callable[[], float]) -> None:
        """`now` gives seconds, as the event loop counts them."""
        self._now = now
        self._places: dict[str, tuple[int, float]] = {}

    def choose(self, topic: str, cluster: ClusterMetadata) -> int:
        """A partition of a topic that `cluster` knows."""
        now = self._now()
        place = self._places.get(topic)
        if place is None or place[1] < now:
            partitions = cluster.available_partitions_for_topic(topic) or cluster.partitions_for_topic(topic)
            place = self._places[topic] = random.choice(tuple(partitions)), now + LONGEST  # noqa: S311 - no secret
        return place[0]

    def acknowledged(self, topic: str, partition: int) -> None:
        """What comes next may go elsewhere."""
        place = self._places.get(topic)
        if place is not None and place[0] == partition:
            del self._places[topic]
