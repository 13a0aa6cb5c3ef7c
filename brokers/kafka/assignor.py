"""Who of a group's members has which partitions.

Kafka's classic protocol takes all partitions from everybody at each change. So that nothing stands still for it, a
member claims what it has, and keeps it: of a partition that is to move it is told, hands it over in good order, and
joins again without it. Only then another one gets it. (Kafka's own cooperative protocol does the same by two kinds of
rebalance; here the leader's answer says what is to be released.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec
from aiokafka.coordinator.assignors.abstract import AbstractPartitionAssignor
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment, ConsumerProtocolMemberMetadata
from aiokafka.structs import TopicPartition

from mesh.ports import Order


class Claim(msgspec.Struct, kw_only=True, array_like=True, gc=False):
    """What a member says when it joins."""

    generation: int = -1
    """Of the group, when it was given these partitions: of two who claim one, the later one has it."""
    owned: list[tuple[str, int]] = []
    takes: bool = True
    """Whether it takes anything at the moment."""


_decode_claim = msgspec.json.Decoder(Claim).decode
_decode_released = msgspec.json.Decoder(list[tuple[str, int]]).decode


class Assignor(AbstractPartitionAssignor):  # type: ignore[misc]
    """One member's end. Its name tells the order that the member asks for: the servers let nobody in who shares no name
    with the others."""

    version = 0

    def __init__(self, order: Order, claim: Callable[[], Claim]) -> None:
        self._name = f"meshwire-{order.value}"
        self._claim = claim
        self.released: set[TopicPartition] = set()
        """Of the partitions that were assigned last, those that are to be handed over."""

    @property
    def name(self) -> str:
        return self._name

    def metadata(self, topics: Iterable[str]) -> ConsumerProtocolMemberMetadata:
        return ConsumerProtocolMemberMetadata(self.version, sorted(topics), msgspec.json.encode(self._claim()))

    def assign(
        self, cluster: Any, members: Mapping[str, ConsumerProtocolMemberMetadata]
    ) -> dict[str, ConsumerProtocolMemberAssignment]:
        topics = sorted({topic for member in members.values() for topic in member.subscription})
        partitions = [
            TopicPartition(topic, number)
            for topic in topics
            for number in sorted(cluster.partitions_for_topic(topic) or ())
        ]
        given = assignment(partitions, {name: _claimed(member.user_data) for name, member in members.items()})
        return {name: self._answer(*given[name]) for name in members}

    def _answer(self, assigned: list[TopicPartition], released: list[TopicPartition]) -> Any:
        by_topic: dict[str, list[int]] = {}
        for topic, number in assigned:
            by_topic.setdefault(topic, []).append(number)
        return ConsumerProtocolMemberAssignment(
            self.version, sorted(by_topic.items()), msgspec.json.encode([tuple(partition) for partition in released])
        )

    def on_assignment(self, assignment: ConsumerProtocolMemberAssignment) -> None:
        try:
            self.released = {TopicPartition(*one) for one in _decode_released(assignment.user_data or b"[]")}
        except msgspec.DecodeError:
            self.released = set()


def _claimed(text: bytes) -> Claim:
    try:
        return _decode_claim(text)
    except (msgspec.DecodeError, TypeError):
        return Claim()


def assignment(
    partitions: list[TopicPartition], claims: Mapping[str, Claim]
) -> dict[str, tuple[list[TopicPartition], list[TopicPartition]]]:
    """What each member has from now on, and what of it it is to release. As many for each as for the others, give or
    take one; as few moves as that takes; nothing for those who take nothing, if there is anybody else."""
    owners: dict[TopicPartition, str] = {}
    for name in sorted(claims, key=lambda name: (claims[name].generation, name)):
        owners |= {TopicPartition(*one): name for one in claims[name].owned}
    takers = sorted(name for name in claims if claims[name].takes) or sorted(claims)
    wanted: dict[str, list[TopicPartition]] = {name: [] for name in takers}
    for partition in partitions:
        if owners.get(partition) in wanted:
            wanted[owners[partition]].append(partition)
    for partition in partitions:
        if owners.get(partition) not in wanted:
            min(wanted.values(), key=len).append(partition)
    while len(most := max(wanted.values(), key=len)) > len(least := min(wanted.values(), key=len)) + 1:
        least.append(most.pop())
    given: dict[str, tuple[list[TopicPartition], list[TopicPartition]]] = {name: ([], []) for name in claims}
    for name, theirs in wanted.items():
        for partition in theirs:
            owner = owners.get(partition, name)
            given[owner][0].append(partition)
            if owner != name:
                given[owner][1].append(partition)
    return given
