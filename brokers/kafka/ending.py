"""How clients of aiokafka end: by themselves, or by force when their servers do not answer."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable
from typing import Any

from aiokafka import errors

END_LIMIT = 5.0
"""Seconds that a client has for each step of its end."""
_TASKS = {
    "_coordinator": ("_coordination_task", "_heartbeat_task", "_commit_refresh_task", "_reset_committed_task"),
    "_fetcher": ("_fetch_task",),
    "_sender": ("_sender_task",),
}


async def stop(client: Any) -> None:
    """End a client of aiokafka, whatever it says, connections and tasks included: a producer would try to send what is
    left as long as its process lives, and a member of a group keep its partitions."""
    connections = client.client if hasattr(client, "client") else client._client
    await _within_limit(client.stop() if hasattr(client, "stop") else client.close())
    await _within_limit(connections.close())
    tasks = [getattr(getattr(client, owner, None), name, None) for owner, names in _TASKS.items() for name in names]
    if left := [task for task in tasks if task is not None and not task.done()]:
        for task in left:
            task.cancel()
        await _within_limit(asyncio.gather(*left, return_exceptions=True))
        await _within_limit(connections.close())  # which they may have opened anew
    if (unsent := getattr(client, "_message_accumulator", None)) is not None:
        for batch in (*itertools.chain(*unsent._batches.values()), *unsent._pending_batches):
            batch.failure(errors.KafkaConnectionError("the connection to Kafka is closed"))
            batch._drain_waiter.exception()  # which nobody waits for


async def _within_limit(work: Awaitable[object]) -> None:
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task}, timeout=END_LIMIT)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
