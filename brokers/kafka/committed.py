"""Where a group has come to: its coordinator knows."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import aiokafka.errors as errors
from aiokafka import TopicPartition
from aiokafka.protocol.commit import OffsetFetchRequest
from aiokafka.structs import OffsetAndMetadata

PAUSE = 0.1
"""Seconds until a coordinator that is not ready is asked again."""
_NOT_OURS = (errors.UnknownMemberIdError, errors.IllegalGenerationError, errors.RebalanceInProgressError)


async def committed(coordinator: Any, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, OffsetAndMetadata]:
    """The offsets that the group of aiokafka's `coordinator` has committed, without the partitions that have none.

    aiokafka's own passes over an error that is about the whole answer: a coordinator that is still loading, after a
    restart say, would be taken for one that knows nothing of the group, and the group would begin anew. Asks until it
    is told; to be bounded by the caller. Raises `KafkaError` for what waiting does not mend.
    """
    by_topic = defaultdict(list)
    for topic, partition in partitions:
        by_topic[topic].append(partition)
    while True:
        await coordinator.ensure_coordinator_known()
        answer = await coordinator._send_req(OffsetFetchRequest(coordinator.group_id, list(by_topic.items())))
        codes = {answer.error_code} | {row[3] for _, rows in answer.topics for row in rows}
        failures = [errors.for_code(code) for code in codes if code]
        if not failures:
            break
        if final := next((failure for failure in failures if not failure.retriable), None):
            raise final(coordinator.group_id)
        if errors.NotCoordinatorForGroupError in failures:
            coordinator.coordinator_dead()
        await asyncio.sleep(PAUSE)
    return {
        TopicPartition(topic, partition): OffsetAndMetadata(offset, text)
        for topic, rows in answer.topics
        for partition, offset, text, _ in rows
        if offset >= 0
    }


async def commit(coordinator: Any, places: Mapping[TopicPartition, OffsetAndMetadata]) -> None:
    """Commit `places` for the group of aiokafka's `coordinator`. Tries until it is told; to be bounded by the caller.

    When aiokafka's own is cancelled, it leaves a task behind, and nobody hears of its error but the log.

    Raises `CommitFailedError` when the partitions are not ours any more, `KafkaError` for what waiting does not mend.
    """
    while True:
        await coordinator.ensure_coordinator_known()
        try:
            async with coordinator._commit_lock:
                await coordinator._do_commit_offsets(None, places)
                return
        except _NOT_OURS as error:
            raise errors.CommitFailedError from error
        except errors.KafkaError as error:
            if not error.retriable:
                raise
        await asyncio.sleep(PAUSE)
