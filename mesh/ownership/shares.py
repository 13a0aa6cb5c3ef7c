"""Who should own which partition: the same answer for everybody who sees the same members and owners."""

from __future__ import annotations

from collections.abc import Collection, Mapping


def shares(count: int, members: Collection[str], owners: Mapping[int, str]) -> dict[int, str]:
    """The member that should own each of the partitions 0 to `count` - 1, given those that own some now.

    The numbers of any two members differ by one at most. Only what must move does: what nobody, or no member, owns,
    and what a member has too much. The answer stays the same while partitions move towards it.
    """
    if not members:
        return {}
    ranked = sorted(members)
    owned: dict[str, list[int]] = {member: [] for member in ranked}
    unowned: list[int] = []
    for partition in range(count):
        mine = owned.get(owners.get(partition, ""))
        (unowned if mine is None else mine).append(partition)
    fair, rest = divmod(count, len(ranked))
    # One more than the others have those that have more already, so that it does not move; then the first in rank.
    richest = sorted(ranked, key=lambda member: len(owned[member]) <= fair)
    quotas = {member: fair + (place < rest) for place, member in enumerate(richest)}
    surplus = [partition for member in ranked for partition in owned[member][quotas[member] :]]
    moving = sorted(unowned + surplus)
    plan: dict[int, str] = {}
    for member in ranked:
        kept = owned[member][: quotas[member]]
        needed = quotas[member] - len(kept)
        for partition in kept + moving[:needed]:
            plan[partition] = member
        del moving[:needed]
    return plan
