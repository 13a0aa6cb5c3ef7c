"""Who of a group has which partitions: balanced, with few moves, and never two at once."""

from __future__ import annotations

from aiokafka.structs import TopicPartition
from hypothesis import given
from hypothesis import strategies as st

from brokers.kafka.assignor import Claim, assignment

Given = dict[str, tuple[list[TopicPartition], list[TopicPartition]]]


def partitions(number: int) -> list[TopicPartition]:
    return [TopicPartition("t", partition) for partition in range(number)]


def claims_after(given: Given, generation: int, takes: dict[str, bool]) -> dict[str, Claim]:
    """What members claim that have released what they were told to."""
    return {
        name: Claim(
            generation=generation,
            owned=[tuple(one) for one in assigned if one not in released],
            takes=takes.get(name, True),
        )
        for name, (assigned, released) in given.items()
    }


@given(
    number=st.integers(1, 40),
    names=st.sets(st.sampled_from("abcdefgh"), min_size=1),
    claimed=st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 39), st.integers(1, 3)), max_size=60),
    idle=st.sets(st.sampled_from("abcdefgh")),
)
def test_every_partition_has_one_member_and_two_rounds_settle_it(
    number: int, names: set[str], claimed: list[tuple[str, int, int]], idle: set[str]
) -> None:
    takes = {name: name not in idle for name in names}
    generations = {name: 1 + "abcdefgh".index(name) % 3 for name in names}
    claims = {
        name: Claim(
            generation=generations[name],
            owned=[("t", partition) for owner, partition, _ in claimed if owner == name],
            takes=takes[name],
        )
        for name in names
    }
    first = assignment(partitions(number), claims)
    assert sorted(one for assigned, _ in first.values() for one in assigned) == partitions(number)
    assert all(set(released) <= set(assigned) for assigned, released in first.values())
    for name, (assigned, released) in first.items():
        for one in set(assigned) - set(released):
            later = [other for other in names if generations[other] > generations[name]]
            assert not any(tuple(one) in claims[other].owned for other in later), "a later claim counts more"
    second = assignment(partitions(number), claims_after(first, 4, takes))
    assert not any(released for _, released in second.values())
    takers = [name for name in names if takes[name]] or list(names)
    sizes = [len(second[name][0]) for name in takers]
    assert max(sizes) - min(sizes) <= 1
    assert sum(sizes) == number


def test_a_new_member_gets_its_part_and_nothing_else_moves() -> None:
    owned = [(topic, partition) for topic, partition in partitions(16)]
    given = assignment(partitions(16), {"a": Claim(generation=1, owned=owned), "b": Claim()})
    assert given["b"] == ([], []), "not before it is released"
    assert len(given["a"][1]) == 8
    given = assignment(partitions(16), claims_after(given, 2, {}))
    assert [len(given[name][0]) for name in "ab"] == [8, 8]
    again = assignment(partitions(16), claims_after(given, 3, {}))
    assert {name: set(one) for name, (one, _) in again.items()} == {name: set(one) for name, (one, _) in given.items()}


def test_what_a_dead_member_had_goes_to_the_others() -> None:
    three = assignment(partitions(6), {name: Claim() for name in "abc"})
    left = {name: claim for name, claim in claims_after(three, 1, {}).items() if name != "c"}
    given = assignment(partitions(6), left)
    assert {name: len(assigned) for name, (assigned, _) in given.items()} == {"a": 3, "b": 3}
    assert not any(released for _, released in given.values())


def test_one_that_takes_nothing_keeps_all_while_it_is_alone() -> None:
    owned = [(topic, partition) for topic, partition in partitions(4)]
    alone = assignment(partitions(4), {"a": Claim(generation=1, owned=owned, takes=False)})
    assert (len(alone["a"][0]), alone["a"][1]) == (4, [])
    given = assignment(partitions(4), {"a": Claim(generation=1, owned=owned, takes=False), "b": Claim()})
    assert len(given["a"][1]) == 4
