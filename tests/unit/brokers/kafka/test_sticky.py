"""The partitioner of records without a key."""

from __future__ import annotations

from aiokafka.cluster import ClusterMetadata
from aiokafka.protocol.metadata import MetadataResponse_v1 as MetadataResponse

from brokers.kafka.sticky import ENOUGH, LONGEST, StickyPartitions

TOPIC = "orders"


class Clock:
    time = 100.0

    def __call__(self) -> float:
        return self.time


def cluster(partitions: int, led: int | None = None) -> ClusterMetadata:
    """Of one server, which leads the first `led` partitions of the topic."""
    led = partitions if led is None else led
    known = ClusterMetadata()
    rows = [(0 if number < led else 5, number, 1 if number < led else -1, [1], [1]) for number in range(partitions)]
    known.update_metadata(MetadataResponse([(1, "localhost", 9092, None)], 1, [(0, TOPIC, False, rows)]))
    return known


def test_what_is_published_while_a_record_is_on_its_way_goes_with_it_until_there_are_enough() -> None:
    sticky, many = StickyPartitions(Clock()), cluster(1000)
    places = [sticky.choose(TOPIC, many) for _ in range(10 * ENOUGH)]
    batches = [set(places[first : first + ENOUGH]) for first in range(0, len(places), ENOUGH)]
    assert all(len(batch) == 1 for batch in batches)
    assert len(set.union(*batches)) > 1


def test_acknowledged_records_are_spread_over_all_partitions() -> None:
    sticky, few = StickyPartitions(Clock()), cluster(4)
    places = []
    for _ in range(200):
        places.append(sticky.choose(TOPIC, few))
        sticky.acknowledged(TOPIC, places[-1])
    assert set(places) == {0, 1, 2, 3}


def test_an_acknowledgement_from_an_earlier_partition_moves_nothing() -> None:
    sticky, many = StickyPartitions(Clock()), cluster(1000)
    place = sticky.choose(TOPIC, many)
    sticky.acknowledged(TOPIC, place + 1)
    sticky.acknowledged("another topic", place)
    assert sticky.choose(TOPIC, many) == place


def test_a_partition_that_does_not_acknowledge_is_left() -> None:
    clock = Clock()
    sticky, many = StickyPartitions(clock), cluster(1000)
    place = sticky.choose(TOPIC, many)
    clock.time += LONGEST
    assert sticky.choose(TOPIC, many) == place
    left = set()
    for _ in range(10):
        clock.time += LONGEST + 0.001
        left.add(sticky.choose(TOPIC, many))
    assert len(left) > 1


def test_partitions_without_a_leader_are_taken_only_when_there_is_no_other() -> None:
    sticky = StickyPartitions(Clock())
    for _ in range(50):
        assert sticky.choose(TOPIC, cluster(20, led=1)) == 0
        sticky.acknowledged(TOPIC, 0)
    assert sticky.choose(TOPIC, cluster(20, led=0)) in range(20)
