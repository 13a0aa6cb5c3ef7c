from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from mesh.ownership.shares import shares

NAMES = [*"abcdefgh"]
some_members = st.sets(st.sampled_from(NAMES), min_size=1)
counts = st.integers(1, 40)


@st.composite
def situations(draw: st.DrawFn) -> tuple[int, set[str], dict[int, str]]:
    count = draw(counts)
    owners = draw(st.dictionaries(st.integers(0, count - 1), st.sampled_from([*NAMES, ""])))
    return count, draw(some_members), owners


@given(situations())
def test_everything_is_owned_and_nobody_has_two_more_than_another(
    situation: tuple[int, set[str], dict[int, str]],
) -> None:
    count, members, owners = situation
    plan = shares(count, members, owners)
    assert set(plan) == set(range(count))
    sizes = [Counter(plan.values())[member] for member in members]
    assert sum(sizes) == count
    assert max(sizes) - min(sizes) <= 1


@given(situations())
def test_no_more_moves_than_must(situation: tuple[int, set[str], dict[int, str]]) -> None:
    """What a member has beyond its fair number moves, at most `count % members` of them excepted, and nothing else."""
    count, members, owners = situation
    plan = shares(count, members, owners)
    fair, rest = divmod(count, len(members))
    held = Counter(owner for owner in owners.values() if owner in members)
    kept = sum(plan[partition] == owner for partition, owner in owners.items() if owner in members)
    most = sum(min(number, fair) for number in held.values())
    most += min(rest, sum(number > fair for number in held.values()))
    assert kept == most


@given(situations(), st.randoms())
def test_the_plan_stays_the_same_while_it_is_carried_out(
    situation: tuple[int, set[str], dict[int, str]], random: object
) -> None:
    count, members, owners = situation
    plan = shares(count, members, owners)
    steps = [partition for partition in range(count) if owners.get(partition) != plan[partition]]
    random.shuffle(steps)  # type: ignore[attr-defined]
    for partition in steps:
        for owner in ("", plan[partition]):  # given up, then claimed
            owners = {**owners, partition: owner}
            assert shares(count, members, owners) == plan


def test_nobody_is_there() -> None:
    assert shares(4, [], {0: "a"}) == {}
