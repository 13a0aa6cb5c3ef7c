"""The checker itself: it must accept what a table can do, and nothing else."""

from __future__ import annotations

import random
from math import inf

import pytest

from mesh.ports.tables import ABSENT, Key
from tests.contract.linearizability import Action, Change, Commit, NotLinearizable, Operation, Read, check_table

A: Key = ("a",)
B: Key = ("b",)
NEVER = inf


def get(start: float, end: float, key: Key, value: bytes | None, revision: int = ABSENT) -> Operation[Action]:
    return Operation(Read(key, value, revision), start, end)


def put(
    start: float, end: float, key: Key, value: bytes | None, revision: int | None, expected: int | None = None
) -> Operation[Action]:
    """Without a revision it is a conflict, or unknown when it has no end."""
    revisions = None if revision is None else (revision,)
    return Operation(
        Commit((Change(key, value, expected),), (), revisions, revision is None and end != NEVER), start, end
    )


def batch(
    start: float, end: float, changes: list[Change], revisions: tuple[int, ...] | None, *checks: tuple[Key, int]
) -> Operation[Action]:
    return Operation(Commit(tuple(changes), checks, revisions, revisions is None and end != NEVER), start, end)


GOOD: dict[str, list[Operation[Action]]] = {
    "nothing": [],
    "one after the other": [
        get(0, 1, A, None),
        put(2, 3, A, b"1", 1),
        get(4, 5, A, b"1", 1),
        put(6, 7, A, None, 2),
        get(8, 9, A, None),
    ],
    "a read beside a write sees either": [
        put(0, 1, A, b"1", 1),
        put(2, 9, A, b"2", 2),
        get(3, 4, A, b"1", 1),
        get(5, 6, A, b"2", 2),
    ],
    "concurrent writes in the order of their revisions": [
        put(0, 9, A, b"1", 2),
        put(0, 9, A, b"2", 1),
        get(10, 11, A, b"1", 2),
    ],
    "one of two wins": [
        put(0, 9, A, b"1", 1, ABSENT),
        put(0, 9, A, b"2", None, ABSENT),
        get(10, 11, A, b"1", 1),
    ],
    "an unknown write that happened late": [
        put(0, 1, A, b"1", 1),
        put(2, NEVER, A, b"2", None),
        get(3, 4, A, b"1", 1),
        get(5, 6, A, b"2", 2),
        get(7, 8, A, b"2", 2),
    ],
    "an unknown write that never happened": [
        put(0, 1, A, b"1", 1),
        put(2, NEVER, A, b"2", None),
        get(3, 4, A, b"1", 1),
    ],
    "an unknown write that nobody saw explains a conflict": [
        put(0, 1, A, b"1", 1),
        put(2, NEVER, A, b"2", None),
        put(3, 4, A, b"3", None, 1),
        put(5, 6, A, b"4", 9),
        get(7, 8, A, b"4", 9),
    ],
    "an unknown batch happens whole": [
        batch(0, NEVER, [Change(A, b"1"), Change(B, b"2")], None),
        get(1, 2, A, None),
        get(3, 4, A, b"1", 1),
        get(5, 6, B, b"2", 2),
    ],
    "a batch with a check": [
        put(0, 1, A, b"1", 1),
        batch(2, 3, [Change(B, b"2", ABSENT)], (2,), (A, 1)),
        put(4, 5, A, b"3", 3),
        batch(6, 7, [Change(B, b"4")], None, (A, 1)),
        get(8, 9, B, b"2", 2),
    ],
    "a deleted key is absent": [
        put(0, 1, A, b"1", 1),
        put(2, 3, A, None, 2),
        put(4, 5, A, b"2", None, 1),
        put(6, 7, A, b"3", 3, ABSENT),
    ],
}

BAD: dict[str, list[Operation[Action]]] = {
    "a stale read": [
        put(0, 1, A, b"1", 1),
        put(2, 3, A, b"2", 2),
        get(4, 5, A, b"1", 1),
    ],
    "reads that go back": [
        put(0, 1, A, b"1", 1),
        put(2, 9, A, b"2", 2),
        get(3, 4, A, b"2", 2),
        get(5, 6, A, b"1", 1),
    ],
    "a value from nowhere": [get(0, 1, A, b"1", 1)],
    "a value from the future": [get(0, 1, A, b"1", 1), put(2, 3, A, b"1", 1)],
    "a lost update": [
        put(0, 1, A, b"1", 1),
        get(2, 3, A, None),
    ],
    "a lost update, overwritten": [
        put(0, 1, A, b"1", 1),
        put(2, 3, A, b"2", 2, 1),
        put(4, 5, A, b"3", 3, 1),
    ],
    "compare-and-set won twice": [
        put(0, 9, A, b"1", 1, ABSENT),
        put(0, 9, A, b"2", 2, ABSENT),
    ],
    "a conflict without a cause": [
        put(0, 1, A, b"1", 1),
        put(2, 3, A, b"2", None, 1),
    ],
    "half a batch": [
        put(0, 1, A, b"0", 1),
        batch(2, 9, [Change(A, b"1"), Change(B, b"2")], (2, 3)),
        get(3, 4, A, b"1", 2),
        get(5, 6, B, None),
    ],
    "half an unknown batch": [
        batch(0, NEVER, [Change(A, b"1"), Change(B, b"2")], None),
        get(1, 2, A, b"1", 1),
        get(3, 4, B, None),
    ],
    "a check that did not hold": [
        put(0, 1, A, b"1", 1),
        put(2, 3, A, b"2", 2),
        batch(4, 5, [Change(B, b"3")], (3,), (A, 1)),
    ],
    "write skew": [
        batch(0, 1, [Change(A, b"1"), Change(B, b"2")], (1, 2)),
        batch(2, 9, [Change(A, b"3")], (3,), (B, 2)),
        batch(2, 9, [Change(B, b"4")], (4,), (A, 1)),
    ],
    "an unknown write that happened twice": [
        put(0, NEVER, A, b"1", None),
        get(1, 2, A, b"1", 1),
        put(3, 4, A, b"2", 2),
        get(5, 6, A, b"1", 1),
    ],
    "one value with two revisions": [
        put(0, 1, A, b"1", 1),
        get(2, 3, A, b"1", 2),
    ],
    "one revision for two values": [
        put(0, 1, A, b"1", 1),
        put(2, 3, B, b"2", 1),
    ],
    "revisions against the order of commits": [
        put(0, 1, A, b"1", 2),
        put(2, 3, A, b"2", 1),
    ],
    "an absent key that exists": [
        put(0, 1, A, b"1", 1),
        put(2, 3, A, b"2", 2, ABSENT),
    ],
}


@pytest.mark.parametrize("name", GOOD)
def test_what_a_table_can_do_is_accepted(name: str) -> None:
    check_table(GOOD[name])


@pytest.mark.parametrize("name", BAD)
def test_what_no_table_can_do_is_found(name: str) -> None:
    with pytest.raises(NotLinearizable):
        check_table(BAD[name])


def random_history(choice: random.Random, clients: int, count: int) -> list[Operation[Action]]:
    """Of a table that works: each operation takes effect at a moment between its beginning and its end."""
    values: dict[Key, tuple[bytes, int]] = {}
    free_at = [0.0] * clients
    spans = []
    for _ in range(count):
        client = choice.randrange(clients)
        start = free_at[client] + choice.random()
        end = start + choice.random() * 4
        spans.append((start + choice.random() * (end - start), start, end))
        free_at[client] = end
    history: list[Operation[Action]] = []
    seen = {ABSENT}  # revisions that a client can know
    revision = 0
    for number, (_, start, end) in enumerate(sorted(spans)):
        keys = choice.sample([A, B, ("c",)], choice.choice([1, 1, 1, 2]))
        entry = values.get(keys[0])
        right = ABSENT if entry is None else entry[1]
        if choice.random() < 0.4:
            history.append(get(start, end, keys[0], *(entry or (None, ABSENT))))
            seen.add(right)
            continue
        expected = choice.choice([None, right, right, max(revision - 2, 0)])
        changes = [Change(key, None if choice.random() < 0.2 else b"%d %s" % (number, key[0].encode())) for key in keys]
        if expected not in seen:
            expected = None
        changes[0] = changes[0]._replace(expected=expected)
        is_lost = choice.random() < 0.01
        happens = expected in (None, right) and not (is_lost and choice.random() < 0.5)
        revisions = None
        if happens:
            revisions = tuple(range(revision + 1, revision + 1 + len(keys)))
            for change, given in zip(changes, revisions, strict=True):
                revision = given
                values.pop(change.key, None)
                if change.value is not None:
                    values[change.key] = (change.value, given)
        if not is_lost:
            seen |= set(revisions or ())
        history.append(batch(start, NEVER if is_lost else end, changes, None if is_lost else revisions))
    return history


@pytest.mark.parametrize("seed", range(5))
def test_long_histories_are_judged(seed: int) -> None:
    history = random_history(random.Random(seed), clients=10, count=3000)
    check_table(history)


@pytest.mark.parametrize("seed", range(20))
def test_one_wrong_read_among_many_is_found(seed: int) -> None:
    choice = random.Random(seed)
    history = random_history(choice, clients=8, count=600)
    reads = [
        index
        for index, op in enumerate(history)
        if isinstance(op.action, Read) and op.action.value is not None and op.start > 20
    ]
    index = choice.choice(reads)
    read = history[index].action
    assert isinstance(read, Read)
    old = next(
        op.action
        for op in history
        if isinstance(op.action, Read) and op.action.key == read.key and 0 < op.action.revision < read.revision
    )
    history[index] = Operation(old, history[index].start, history[index].end)
    with pytest.raises(NotLinearizable):
        check_table(history)
