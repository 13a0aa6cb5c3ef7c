"""What follows from the log of presence."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brokers.kafka import presence
from brokers.kafka.presence import FORGOTTEN, LATE, MISSED_BEATS, Beat, Offer, Place, Presence

STOCK = (Offer("stock"),)
INVOKE = presence.invoke_place("stock")
PARTITIONS = 3


class Instance:
    """One that reads the log at its own pace, and does what a station does with its place."""

    def __init__(self, log: list[tuple[str, Beat]], id: str, start: int = 0, partitions: int = PARTITIONS) -> None:
        self.log, self.id, self.read, self.partitions = log, id, start, partitions
        self.presence = Presence()
        self.place: Place | None = None
        self.claimed_at = -1

    def advance(self, records: int, now: float) -> None:
        for _ in range(min(records, len(self.log) - self.read)):
            id, beat = self.log[self.read]
            if id == self.id:
                self.presence.pulse += 1
            self.presence.apply(self.read, id, beat, now)
            self.read += 1

    def beat(self) -> None:
        places = {} if self.place is None else {INVOKE: self.place}
        self.log.append((self.id, Beat("stock", places=places)))

    def claim(self, now: float) -> None:
        self.place = self.presence.claim(INVOKE, self.partitions, now)
        self.beat()
        self.claimed_at = len(self.log) - 1

    def settle(self) -> None:
        """Once the claim was read back: keep the place, or give it up."""
        if self.place is None or self.read <= self.claimed_at or not self.place.term:
            return
        if self.presence.holder(INVOKE, self.place.partition) != self.id:
            self.place = None
        elif self.place.since < 0:
            since = self.presence.members[self.id].since[INVOKE]
            self.place = Place(self.place.partition, self.place.term, since)

    @property
    def held(self) -> int | None:
        """The partition that it takes for its own."""
        return None if self.place is None or self.place.since < 0 else self.place.partition


steps = st.lists(
    st.tuples(st.integers(0, 4), st.sampled_from(["beat", "claim", "read", "read one", "join"])), max_size=80
)


@settings(max_examples=300)
@given(steps)
def test_no_two_instances_that_live_hold_the_same_place(steps: list[tuple[int, str]]) -> None:
    """However their reads and writes interleave, and however late they join. Nobody is silent here."""
    log: list[tuple[str, Beat]] = []
    instances: dict[int, Instance] = {}
    for number, step in steps:
        if number not in instances:
            instances[number] = Instance(log, f"i{number}")
            instances[number].beat()
        one = instances[number]
        if step == "beat":
            one.beat()
        elif step == "claim" and one.place is None:
            one.claim(now=0.0)
        elif step.startswith("read"):
            one.advance(1 if step == "read one" else len(log), now=0.0)
            one.settle()
        held = [each.held for each in instances.values() if each.held is not None]
        assert len(held) == len(set(held)), (step, held)
    for one in instances.values():
        one.advance(len(log), now=0.0)
        one.settle()
    views = [[one.presence.holder(INVOKE, partition) for partition in range(PARTITIONS)] for one in instances.values()]
    assert all(view == views[0] for view in views)


def test_a_beat_between_a_claim_and_its_reading_back_does_not_make_it_later() -> None:
    log: list[tuple[str, Beat]] = []
    first, second = Instance(log, "first", partitions=1), Instance(log, "second", partitions=1)
    first.claim(now=0.0)
    second.claim(now=0.0)
    assert first.place is not None
    log.append(("first", Beat("stock", places={INVOKE: first.place, "replies/stock": Place(1, 1)})))
    first.advance(1, now=0.0)
    first.settle()
    second.advance(9, now=0.0)
    second.settle()
    assert (first.held, second.held) == (0, None)


@settings(max_examples=200)
@given(steps, st.integers(0, 30))
def test_who_reads_only_the_end_of_the_log_agrees_after_one_beat_of_each(
    steps: list[tuple[int, str]], skipped: int
) -> None:
    log: list[tuple[str, Beat]] = []
    instances = [Instance(log, f"i{number}") for number in range(5)]
    for number, step in steps:
        one = instances[number]
        one.advance(len(log), now=0.0)
        one.settle()
        if step == "claim" and one.place is None:
            one.claim(now=0.0)
        elif step == "beat":
            one.beat()
    late = Instance(log, "late", start=min(skipped, len(log)))
    for one in instances:
        one.advance(len(log), now=0.0)
        one.settle()
        one.beat()
    for one in (*instances, late):
        one.advance(len(log), now=0.0)
    for partition in range(PARTITIONS):
        assert late.presence.holder(INVOKE, partition) == instances[0].presence.holder(INVOKE, partition)


def silence(presence: Presence, *, pulses: int = 2) -> float:
    """Time after which whoever said nothing meanwhile is silent."""
    presence.pulse += pulses
    return 2.0 * MISSED_BEATS + 0.01


def test_the_place_of_a_silent_instance_is_free_and_stays_with_who_took_it() -> None:
    log: list[tuple[str, Beat]] = []
    first, second = Instance(log, "first", partitions=1), Instance(log, "second", partitions=1)
    first.claim(now=0.0)
    first.advance(9, now=0.0)
    first.settle()
    second.advance(9, now=0.0)
    later = silence(second.presence)
    second.claim(now=later)
    first.beat()  # it was only slow, and does not know yet
    for one in (first, second):
        one.advance(9, now=later)
        one.settle()
    assert (first.held, second.held) == (None, 0)


def test_when_all_places_are_taken_one_is_shared() -> None:
    log: list[tuple[str, Beat]] = []
    for number in range(PARTITIONS):
        one = Instance(log, f"i{number}")
        one.advance(99, now=0.0)
        one.claim(now=0.0)
        assert one.place is not None
        assert one.place.term == 1
    last = Instance(log, "last")
    last.advance(99, now=0.0)
    last.claim(now=0.0)
    assert last.place is not None
    assert last.place.term == 0
    last.advance(99, now=0.0)
    assert "last" not in {last.presence.holder(INVOKE, partition) for partition in range(PARTITIONS)}


def member(known: Presence, id: str, offset: int, now: float = 0.0, **beat: object) -> None:
    known.apply(offset, id, Beat("stock", **{"serves": STOCK} | beat), now)  # type: ignore[arg-type]


def test_those_who_serve_take_turns() -> None:
    known = Presence()
    for offset, id in enumerate("abc"):
        member(known, id, offset)
    taken = [known.take("stock", "", 0.0) for _ in range(6)]
    assert [each and each.id for each in taken] == [*"abcabc"]
    assert known.take("stock", "", 0.0, but=["a", "b", "c"]) is None
    assert known.take("stock", "named", 0.0) is None
    assert known.take("other", "", 0.0) is None


def test_who_is_silent_is_not_asked_until_it_is_heard_again() -> None:
    known = Presence()
    member(known, "a", 0)
    later = silence(known)
    assert known.take("stock", "", later) is None
    member(known, "a", 1, later)
    assert known.take("stock", "", later) is not None


def test_nobody_is_silent_while_nothing_is_read() -> None:
    """The servers were away, or we were: nothing of our own has come back either."""
    known = Presence()
    member(known, "a", 0)
    assert known.take("stock", "", silence(known, pulses=1)) is not None


def test_silence_by_the_servers_clock_counts_at_once() -> None:
    known = Presence()
    member(known, "a", 0, now=100.0)
    known.members["a"].was_heard(90.0)
    assert known.take("stock", "", 100.0) is None
    member(known, "a", 1, now=100.0)
    known.members["a"].was_heard(97.0)
    assert known.take("stock", "", 100.0) is not None


def test_who_was_silent_on_a_call_is_not_asked_until_its_next_beat() -> None:
    known = Presence()
    member(known, "a", 0)
    known.members["a"].suspect = True
    assert known.take("stock", "", 0.0) is None
    member(known, "a", 1)
    assert known.take("stock", "", 0.0) is not None


def test_who_leaves_is_gone_at_once_and_so_is_who_stops_serving() -> None:
    known = Presence()
    for offset, id in enumerate("ab"):
        member(known, id, offset)
    member(known, "a", 2, serves=())
    member(known, "b", 3, left={"calls": {0: 7}})
    assert known.take("stock", "", 0.0) is None
    assert set(known.members) == {"a"}


def test_who_is_silent_for_long_is_forgotten() -> None:
    known = Presence()
    member(known, "a", 0)
    known.pulse += 2
    known.purge(2.0 * MISSED_BEATS + 0.01)
    assert known.members
    known.purge(2.0 * FORGOTTEN + 0.01)
    assert not known.members
    assert not known._serving


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"app":1}',
        b'{"app":"a","every":0}',
        b'{"app":"a","every":61}',
        b'{"app":"a","places":{"invoke/a":{"partition":-1}}}',
        b'{"app":"a","serves":"a"}',
        b"\xff",
    ],
)
def test_what_is_no_record_of_presence_is_refused(value: bytes) -> None:
    with pytest.raises((ValueError, msgspec.MsgspecError)):
        presence.decode(value)


def test_a_program_without_a_sidecar_says_little() -> None:
    beat = presence.decode(b'{"app":"greeter","serves":[{"app":"greeter"}],"more":1}')
    assert beat == Beat("greeter", serves=(Offer("greeter"),))
    assert presence.decode(presence.encode(beat)) == beat


def test_one_whose_beat_is_late_is_asked_where_there_is_nobody_else() -> None:
    seen = Presence()
    seen.apply(0, "dead", Beat("stock", serves=STOCK), heard=0.0)
    seen.apply(1, "live", Beat("stock", serves=STOCK), heard=1.0)

    def taken(now: float) -> set[str]:
        found = [seen.take("stock", "", now) for _ in range(4)]
        return {"" if member is None else member.id for member in found}

    late = 2 * LATE + 0.01
    assert taken(late) == {"dead", "live"}, "we may be the ones who are late"
    seen.pulse += 1
    assert taken(late) == {"live"}
    assert taken(1 + late) == {"dead", "live"}
    seen.pulse += 1
    assert taken(2 * MISSED_BEATS + 0.01) == {"live"}
    assert taken(1 + 2 * MISSED_BEATS + 0.01) == {""}
