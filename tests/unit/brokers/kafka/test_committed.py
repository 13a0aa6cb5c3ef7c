"""What a coordinator answers while it cannot tell is not taken for a group that has no place yet."""

from __future__ import annotations

import asyncio
from typing import Any

import aiokafka.errors as errors
import pytest
from aiokafka import TopicPartition
from aiokafka.protocol.commit import OffsetFetchResponse_v3
from aiokafka.structs import OffsetAndMetadata

from brokers.kafka import committed as module
from brokers.kafka.committed import commit, committed

ORDERS = [TopicPartition("orders", 0), TopicPartition("orders", 1)]
KNOWN = OffsetFetchResponse_v3(0, [("orders", [(0, 7, "done", 0), (1, -1, "", 0)])], 0)
"""As Apache Kafka answers from version 2 of the request on: an error of the group comes without any partition."""


class Coordinator:
    group_id = "mesh.default.shop.pubsub.orders"

    def __init__(self, *answers: OffsetFetchResponse_v3) -> None:
        self._answers = list(answers)
        self.lost = 0

    async def ensure_coordinator_known(self) -> None: ...

    def coordinator_dead(self) -> None:
        self.lost += 1

    async def _send_req(self, request: Any) -> OffsetFetchResponse_v3:
        return self._answers.pop(0)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE", 0.0)


async def test_those_with_a_place_are_told() -> None:
    assert await committed(Coordinator(KNOWN), ORDERS) == {ORDERS[0]: OffsetAndMetadata(7, "done")}


@pytest.mark.parametrize(
    ("error", "lost"), [(errors.GroupLoadInProgressError, 0), (errors.NotCoordinatorForGroupError, 1)]
)
async def test_a_coordinator_that_cannot_tell_is_asked_again(
    error: type[errors.BrokerResponseError], lost: int
) -> None:
    coordinator = Coordinator(OffsetFetchResponse_v3(0, [], error.errno), KNOWN)
    assert await committed(coordinator, ORDERS) == {ORDERS[0]: OffsetAndMetadata(7, "done")}
    assert coordinator.lost == lost


async def test_a_partition_that_is_not_known_yet_is_asked_for_again() -> None:
    unknown = OffsetFetchResponse_v3(0, [("orders", [(0, -1, "", 3), (1, -1, "", 0)])], 0)
    assert await committed(Coordinator(unknown, KNOWN), ORDERS) == {ORDERS[0]: OffsetAndMetadata(7, "done")}


async def test_what_is_refused_is_told() -> None:
    refused = OffsetFetchResponse_v3(0, [], errors.GroupAuthorizationFailedError.errno)
    with pytest.raises(errors.GroupAuthorizationFailedError):
        await committed(Coordinator(refused), ORDERS)


class Commits(Coordinator):
    """Answers each commit with the next of `outcomes`; without one, never."""

    def __init__(self, *outcomes: type[errors.KafkaError] | None) -> None:
        super().__init__()
        self._commit_lock = asyncio.Lock()
        self._outcomes = list(outcomes)
        self.asked = 0

    async def _do_commit_offsets(self, _assignment: None, _places: object) -> None:
        self.asked += 1
        if not self._outcomes:
            await asyncio.Event().wait()
        if error := self._outcomes.pop(0):
            raise error


PLACES = {ORDERS[0]: OffsetAndMetadata(7, "")}


async def test_a_commit_is_tried_until_the_coordinator_takes_it() -> None:
    coordinator = Commits(errors.GroupLoadInProgressError, errors.RequestTimedOutError, None)
    await commit(coordinator, PLACES)
    assert coordinator.asked == 3


@pytest.mark.parametrize("error", [errors.UnknownMemberIdError, errors.RebalanceInProgressError])
async def test_a_commit_for_what_others_have_now_fails(error: type[errors.KafkaError]) -> None:
    with pytest.raises(errors.CommitFailedError):
        await commit(Commits(error), PLACES)


async def test_a_commit_that_is_given_up_leaves_nothing_behind() -> None:
    coordinator = Commits()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(commit(coordinator, PLACES), 0.01)
    assert not coordinator._commit_lock.locked()
    assert asyncio.all_tasks() == {asyncio.current_task()}
