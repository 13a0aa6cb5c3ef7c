"""How far a group has come in a partition: what is committed, and what is told beside it."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brokers.kafka.offsets import MAX_METADATA, Attempt, Progress, decode, encode


class Model:
    """What `Progress` promises, in sets."""

    def __init__(self, low: int) -> None:
        self.low = low
        self.open: set[int] = set()
        self.next = low

    @property
    def committed(self) -> int:
        return min(self.open, default=self.next)


def offsets_of(runs: list[tuple[int, int]]) -> set[int]:
    return {offset for beginning, end in runs for offset in range(beginning, end)}


@given(
    low=st.integers(0, 50),
    gaps=st.lists(st.integers(0, 3), max_size=60),
    finishes=st.lists(st.integers(0, 10**6), max_size=80),
)
def test_what_is_committed_never_passes_what_is_not_done(low: int, gaps: list[int], finishes: list[int]) -> None:
    progress, model = Progress(low), Model(low)
    steps = iter(finishes)
    for gap in gaps:
        offset = model.next + gap
        assert progress.take(offset)
        model.open.add(offset)
        model.next = offset + 1
        for number in (next(steps, None), next(steps, None)):
            if number is not None and model.open:
                done = sorted(model.open)[number % len(model.open)]
                model.open.remove(done)
                progress.finish(done)
            assert progress.low == model.committed
            assert progress.next == model.next
            assert progress.window == model.next - model.committed
            runs = progress.done()
            assert offsets_of(runs) == set(range(progress.low, progress.next)) - model.open
            assert all(end < after for (_, end), (after, _) in pairwise(runs)), "runs that touch"
    for offset in list(model.open):
        progress.finish(offset)
    assert (progress.low, progress.done()) == (model.next, [])


@given(low=st.integers(0, 10**12), numbers=st.sets(st.integers(1, 300), max_size=120), upto=st.integers(0, 300))
def test_a_successor_takes_what_is_not_done_and_nothing_else(low: int, numbers: set[int], upto: int) -> None:
    first = Progress(low)
    for number in range(301):
        assert first.take(low + number)
    for number in numbers:
        first.finish(low + number)
    runs, _ = decode(low, encode(low, first.done(), {}))
    assert runs == first.done()
    second = Progress(low, runs)
    taken = {number for number in range(upto) if second.take(low + number)}
    assert taken == set(range(upto)) - numbers
    assert offsets_of(second.done()) == {low + number for number in numbers}, "what it has yet to take is told on"
    for number in taken:
        second.finish(low + number)
    assert second.low > low + upto - 1


def test_what_was_taken_is_not_taken_again() -> None:
    progress = Progress(5)
    assert progress.take(5)
    assert not progress.take(5)
    assert not progress.take(3)


def test_nothing_stored_between_two_messages_is_nothing_to_wait_for() -> None:
    progress = Progress(0)
    progress.take(10)
    assert progress.low == 10
    progress.take(20)
    progress.finish(10)
    assert progress.low == 20


def test_a_window_of_a_hundred_thousand_is_as_large_as_its_gaps() -> None:
    progress = Progress(0)
    for offset in range(100_001):
        progress.take(offset)
        if offset:
            progress.finish(offset)
    assert (progress.low, progress.window) == (0, 100_001)
    assert progress.done() == [(1, 100_001)]
    assert len(encode(0, progress.done(), {})) < 20


@given(
    low=st.integers(0, 2**40),
    attempts=st.dictionaries(
        st.integers(0, 10**6), st.tuples(st.integers(1, 1000), st.integers(0, 2**43)), max_size=600
    ),
    gaps=st.lists(st.tuples(st.integers(1, 5000), st.integers(1, 5000)), max_size=900),
)
def test_the_text_fits_and_tells_the_nearest(
    low: int, attempts: dict[int, tuple[int, int]], gaps: list[tuple[int, int]]
) -> None:
    runs, last = [], low
    for gap, length in gaps:
        runs.append((last + gap, last + gap + length))
        last += gap + length
    tried = {low + offset: Attempt(made, due / 1000) for offset, (made, due) in attempts.items()}
    text = encode(low, runs, tried)
    assert len(text) <= MAX_METADATA
    told_runs, told = decode(low, text)
    assert told_runs == runs[: len(told_runs)]
    assert told == {offset: tried[offset] for offset in sorted(tried)[: len(told)]}
    if len(tried) < 80:
        assert len(told) == len(tried)
    if len(runs) < 150:
        assert told_runs == runs


@pytest.mark.parametrize(
    "text",
    [
        "",
        None,
        "x",
        "1;",
        "2;1.1;",
        "1;1;",
        "1;1.g;",
        "1;-1.1;",
        "1;1.1",
        "1;;1.1",
        "1;1.12.3;",
        "1;1.1,;",
        "1;;1.1.1.1",
        "1;" + "9" * 99 + ".1;",
        "1;" + "1.1" * 1300,
    ],
)
def test_what_another_program_wrote_beside_an_offset_tells_nothing(text: str | None) -> None:
    assert decode(7, text) == ([], {})
