"""What is done of a lane: of whatever is handed over, nothing that is not done is taken for done."""

from __future__ import annotations

import random

import msgspec
import pytest

from brokers.nats import ordered_progress
from brokers.nats.ordered_progress import MAX_OPEN, Arrival, Progress, Work


def stored(progress: Progress) -> Progress:
    """As it comes back from the table."""
    return msgspec.json.decode(msgspec.json.encode(progress), type=Progress)


def test_a_successor_skips_what_is_done_and_goes_on_counting() -> None:
    work = Work("made", 0, None)
    for sequence in (1, 4, 5, 9):
        assert work.take(sequence) is Arrival.NEW
    work.finish(4)
    work.finish(9)
    work.fail(5, 10.0)
    work.fail(5, 20.0)
    assert work.first == 1
    successor = Work("made", 0, stored(work.progress()))
    assert [successor.take(sequence) for sequence in (1, 4, 5, 9, 12)] == [
        Arrival.NEW, Arrival.DONE, Arrival.NEW, Arrival.DONE, Arrival.NEW,
    ]  # fmt: skip
    assert successor.attempts == {5: 2}
    assert successor.due == {5: 20.0}


def test_messages_that_come_again_are_told_apart() -> None:
    work = Work("made", 0, None)
    work.take(1)
    work.take(2)
    work.finish(2)
    assert work.take(1) is Arrival.HELD
    assert work.take(2) is Arrival.DONE
    assert work.take(3) is Arrival.NEW


def test_the_record_of_another_stream_says_nothing() -> None:
    earlier = Progress("lost", 100, [3], {3: 7})
    work = Work("made", 0, earlier)
    assert work.take(50) is Arrival.NEW
    assert not work.attempts


def test_a_server_that_forgot_acknowledgements_brings_nothing_twice() -> None:
    work = Work("made", 2, Progress("made", 10, [7]))
    assert [work.take(sequence) for sequence in (3, 7, 10, 11)] == [
        Arrival.DONE, Arrival.NEW, Arrival.DONE, Arrival.NEW,
    ]  # fmt: skip


def test_messages_that_never_come_do_not_hold_up_the_floor() -> None:
    work = Work("made", 0, Progress("made", 10, [3, 7]))
    assert work.first == 3
    work.take(7)
    work.take(11)
    work.finish(7)
    work.finish(11)
    assert work.first == 12


def test_a_record_is_wanted_only_where_a_message_holds_up_the_floor() -> None:
    work = Work("made", 0, None)
    for sequence in range(1, 10):
        work.take(sequence)
        work.finish(sequence)
        assert not work.is_held_up(), "the server knows all that there is to know"
    assert not work.is_held_up(), "nothing waits"
    work.progress()
    work.take(10)
    assert not work.is_held_up(), "it has just come"
    assert not work.is_held_up(), "nothing was done behind it"
    work.take(11)
    work.finish(11)
    assert work.is_held_up()
    work.progress()
    assert not work.is_held_up(), "nothing new"


def test_a_record_is_bounded() -> None:
    work = Work("made", 0, None)
    for sequence in range(1, 3 * MAX_OPEN):
        work.take(sequence)
        if sequence % 2 == 0:
            work.finish(sequence)
    progress = work.progress()
    assert len(progress.open) == MAX_OPEN
    successor = Work("made", 0, stored(progress))
    for sequence in range(1, 3 * MAX_OPEN):
        undone = successor.take(sequence) is Arrival.NEW
        assert undone or sequence % 2 == 0, "lost"
        assert not undone or sequence % 2 or sequence > 2 * MAX_OPEN, "repeated though it was recorded"


def test_what_is_no_record_is_refused() -> None:
    from mesh.errors import BrokerError
    from mesh.ports.tables import Entry

    with pytest.raises(BrokerError, match="order/lane cannot be read"):
        ordered_progress.read(Entry(key=("order", "lane"), value=b"[]", revision=1, time=0.0))


@pytest.mark.parametrize("seed", range(30))
def test_over_any_number_of_owners_nothing_is_lost(seed: int) -> None:
    """Owners come and go; each begins at the server's floor, with a record that may be old."""
    chance = random.Random(seed)
    acknowledged: set[int] = set()
    handled: set[int] = set()
    record: Progress | None = None
    last = 200
    for owner in range(40):
        floor = next(n for n in range(1, last + 2) if n not in acknowledged) - 1
        if chance.random() < 0.2:
            floor = chance.randrange(floor + 1)  # a server that crashed
        work = Work("made", floor, record)
        held: list[int] = []
        sequence = floor
        for _ in range(chance.randrange(60) if owner < 39 else 100_000):
            if sequence < last and chance.random() < 0.6:
                sequence += 1
                arrival = work.take(sequence)
                if arrival is Arrival.NEW:
                    held.append(sequence)
                elif arrival is Arrival.DONE:
                    assert sequence in handled, f"{sequence} was never handled"
            elif held:
                done = held.pop(chance.randrange(len(held)))
                handled.add(done)
                if chance.random() < 0.8:
                    acknowledged.add(done)
                work.finish(done)
            if chance.random() < 0.1:
                record = stored(work.progress())
    assert handled == set(range(1, last + 1))
