"""Accepting many items at once, those of a key one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from mesh.ports.bindings import Accept, Item

LANES = 32
"""Items of a batch that are under way at once."""


async def accept_all(accept: Accept, items: Sequence[Item]) -> None:
    """Returns when all are stored: items of one key in the order given, others in any.

    Raises what `accept` does; then any of the items may have been stored, but none before an earlier one of its key.
    """
    if len(items) == 1:
        await accept(items[0])
        return
    lanes: dict[int, list[Item]] = {}
    for number, item in enumerate(items):
        lanes.setdefault((number if item.key is None else hash(item.key)) % LANES, []).append(item)
    try:
        async with asyncio.TaskGroup() as group:
            for lane in lanes.values():
                group.create_task(_accept_in_turn(accept, lane))
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None


async def _accept_in_turn(accept: Accept, items: Sequence[Item]) -> None:
    for item in items:
        await accept(item)
