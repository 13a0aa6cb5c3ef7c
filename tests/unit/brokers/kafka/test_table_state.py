"""The state machine of a table on Kafka, and what it is kept in."""

from __future__ import annotations

import random

import msgspec
import pytest

from brokers.kafka import table_records
from brokers.kafka.revision_log import RevisionLog, Stored
from brokers.kafka.sorted_paths import SortedPaths
from brokers.kafka.table_records import Message, Operation, Write
from brokers.kafka.table_snapshot import Part, _parts
from brokers.kafka.table_state import GONE_KEPT, MAX_EXPIRED, REPEATS_KNOWN, STRIDE, State
from mesh.ports.tables import Check, Delete, InvalidKey, Put

SOURCE = b"/mesh/default/state/shop"


def put(path: str, value: bytes | None = b"v", **more: object) -> Operation:
    return Operation("", [Write(path, value, **more)])  # type: ignore[arg-type]


class Log:
    """Applies one operation after the other; each has an id of its own unless it is given one."""

    def __init__(self, state: State | None = None) -> None:
        self.state = state or State()

    def write(self, operation: Operation | None, time: float, id: str = "") -> list[int] | str | None:
        offset = self.state.position
        if operation is not None:
            operation = msgspec.structs.replace(operation, id=id or f"id{offset}")
        outcome = self.state.apply(offset, time, operation)
        return None if outcome is None else outcome.conflict or outcome.revisions


def shown(state: State) -> object:
    """All that can be told of a state."""
    return (
        state.position,
        state.time,
        list(state.log.after(0)),
        sorted(state.newest),
        list(state.paths.between("", "\x7f")),
        state.kept,
        {path: list(records) for path, records in state.histories.items()},
        state.cut,
        state.operations,
        state.next_expiry,
        state.size,
    )


def test_revisions_grow_and_belong_to_the_offset() -> None:
    log = Log()
    first = log.write(put("a"), 1.0)
    second = log.write(Operation("", [Write("a", None), Write("b", b"")]), 1.0)
    assert isinstance(first, list) and isinstance(second, list)
    revisions = [*first, *second]
    assert revisions == sorted(set(revisions))
    assert [revision // STRIDE for revision in revisions] == [1, 2, 2]
    assert revisions[-1] < log.state.revision


def test_an_operation_that_comes_again_does_nothing() -> None:
    log = Log()
    assert isinstance(log.write(put("a", b"1"), 1.0, id="one"), list)
    assert isinstance(log.write(put("a", b"2"), 2.0), list)
    assert log.write(put("a", b"1"), 3.0, id="one") is None
    assert log.state.newest["a"].value == b"2"
    # nor does one that has lost
    assert log.write(put("b", expected=7), 3.0, id="lost") == "b"
    log.write(put("b"), 3.0)
    revision = log.state.newest["b"].revision
    assert log.write(put("b", b"late", expected=revision), 4.0, id="lost") is None
    assert log.state.newest["b"].value == b"v"


def test_ids_are_remembered_for_a_time_only() -> None:
    log = Log()
    for number in range(100):
        log.write(put("a"), float(number))
    assert len(log.state.operations) <= REPEATS_KNOWN + 1


def test_one_precondition_that_does_not_hold_is_enough() -> None:
    log = Log()
    log.write(put("a"), 1.0)
    revision = log.state.newest["a"].revision
    writes = [Write("b", b"1"), Write("c", b"1", expected=0)]
    assert log.write(Operation("", writes, [("a", revision + 1)]), 1.0) == "a"
    assert log.write(Operation("", [*writes, Write("d", None, expected=5)], [("a", revision)]), 1.0) == "d"
    assert list(log.state.newest) == ["a"]
    assert isinstance(log.write(Operation("", writes, [("a", revision), ("x", 0)]), 1.0), list)


def test_the_time_never_goes_back() -> None:
    log = Log()
    log.write(put("a", ttl=1.0), 10.0)
    log.write(put("b"), 12.0)
    assert log.state.get("a") is None
    log.write(put("c"), 5.0)
    assert log.state.time == 12.0
    assert log.state.get("a") is None
    assert log.state.newest["c"].time == 12.0


def test_what_has_expired_is_marked_by_the_next_record_whatever_it_is() -> None:
    log = Log()
    log.write(put("a", ttl=1.0), 10.0)
    revision = log.state.newest["a"].revision
    assert log.state.next_expiry == 11.0
    assert log.write(put("b", expected=1), 11.0) == "b"
    gone = log.state.newest["a"]
    assert (gone.value, gone.time) == (None, 11.0)
    assert gone.revision > revision
    assert log.write(put("a", expected=0), 11.0) is not None


def test_more_than_one_record_can_mark_expires_all_the_same() -> None:
    log = Log()
    many = MAX_EXPIRED + 100
    for number in range(many):
        log.write(put(f"k{number}", ttl=5.0), 1.0)
    log.write(None, 10.0)
    assert len(log.state.paths) == 100
    assert log.state.next_expiry <= log.state.time
    assert [log.state.get(f"k{number}") for number in range(many)] == [None] * many
    assert log.write(put(f"k{many - 1}", expected=0), 10.0) is not None
    assert log.state.next_expiry > log.state.time
    revisions = [record.revision for record in log.state.log.after(0)]
    assert revisions == sorted(set(revisions))


def test_deletions_are_forgotten_after_a_while() -> None:
    log = Log()
    log.write(put("a"), 1.0)
    log.write(put("a", None), 2.0)
    assert [record.value for record in log.state.log.after(0)] == [None]
    log.write(put("b"), 2.0 + GONE_KEPT)
    assert list(log.state.newest) == ["b"]
    assert [record.path for record in log.state.log.after(0)] == ["b"]


def random_operation(choice: random.Random, known: list[int]) -> Operation | None:
    if choice.random() < 0.05:
        return None
    if choice.random() < 0.02:
        return Operation(history=table_records.History(choice.choice(["", "p1"]), choice.randint(1, 3)))
    expected = lambda: choice.choice([None, None, 0, choice.choice(known)])  # noqa: E731
    paths = choice.sample([f"p{n % 3}.k{n}" for n in range(12)], choice.choice([1, 1, 2]))
    writes = [
        Write(path, None, expected=expected())
        if choice.random() < 0.3
        else Write(path, b"%d" % choice.randrange(100), ttl=choice.choice([None, 1.0, 30.0]), expected=expected())
        for path in paths
    ]
    return Operation("", writes, [("p0.k0", choice.choice(known))] if choice.random() < 0.1 else [])


@pytest.mark.parametrize("seed", range(20))
def test_a_snapshot_and_the_log_behind_it_make_the_same_state(seed: int) -> None:
    choice = random.Random(seed)
    log, known, time = Log(), [0], 1000.0
    operations: list[tuple[Operation | None, float, str]] = []
    copies: list[Log] = []
    for number in range(400):
        time += choice.choice([-0.5, 0.0, 0.1, 0.1, 3.0])
        id = f"id{number - 1}" if number and choice.random() < 0.1 else f"id{number}"
        operation = random_operation(choice, known)
        outcome = log.write(operation, time, id)
        if isinstance(outcome, list):
            known = [0, *known[-5:], *outcome]
        for copy in copies:
            copy.write(operation, time, id)
        operations.append((operation, time, id))
        if choice.random() < 0.05:
            copies.append(Log(restored(log.state)))
            assert shown(copies[-1].state) == shown(log.state)
    replayed = Log()
    for operation, when, id in operations:
        replayed.write(operation, when, id)
    assert len(copies) > 5
    for copy in [replayed, *copies]:
        assert shown(copy.state) == shown(log.state)


def restored(state: State) -> State:
    new = State()
    new.position, new.time = state.position, state.time
    for part in _parts(state, "s", -1):
        part = msgspec.msgpack.decode(msgspec.msgpack.encode(part), type=Part)
        new.restore(part.records)
        new.restore_history(part.earlier)
        new.kept |= part.kept
        new.cut.update(part.cut)
        new.operations |= part.operations
    return new


# Records


def read(message: Message) -> Operation | None:
    return table_records.read(message.key, message.value, message.headers)


@pytest.mark.parametrize(
    "changes",
    [
        [Put(key=("state", "a.b"), value=b"")],
        [Put(key=("state", "ü"), value=b"\x00", content_type='text/x; charset="ü"', ttl=1.25, expected=0)],
        [Delete(key=("state", "a"))],
        [Delete(key=("state", "a"), expected=77)],
        [Put(key=("a",), value=b"1", ttl=3), Delete(key=("b",), expected=2), Put(key=("c",), value=b"", expected=0)],
    ],
)
def test_a_record_is_read_as_it_was_written(changes: list[Put | Delete]) -> None:
    for checks in ([], [Check(("lease", "x"), 5)]):
        message = table_records.commit(SOURCE, changes, checks)
        operation = read(message)
        assert operation is not None
        assert operation.id == message.operation.id
        assert list(operation.writes) == list(message.operation.writes)
        assert [tuple(check) for check in operation.checks] == list(message.operation.checks)
    assert read(table_records.tick(SOURCE)) is not None
    history = read(table_records.keep_history(SOURCE, "state.shop", 5))
    assert history is not None
    assert history.history == table_records.History("state.shop", 5)


def test_one_change_is_a_cloudevent_whose_data_is_the_value() -> None:
    message = table_records.commit(SOURCE, [Put(key=("state", "a"), value=b"{}", content_type="application/json")])
    told = dict(message.headers)
    assert (message.key, message.value) == (b"state.a", b"{}")
    assert told["ce_type"] == b"io.meshwire.state.set.v1"
    assert told["content-type"] == b"application/json"
    assert told["ce_specversion"] == b"1.0"
    assert told["ce_source"] == SOURCE
    assert told["ce_id"].decode() == message.operation.id


@pytest.mark.parametrize(
    ("key", "value", "headers"),
    [
        (None, None, {}),
        (b"state.a", b"x", {}),
        (b"state.a", b"x", {"ce_type": b"io.meshwire.state.set.v1"}),
        (None, b"x", {"ce_type": b"io.meshwire.state.set.v1", "ce_id": b"1"}),
        (b"\xff", b"x", {"ce_type": b"io.meshwire.state.set.v1", "ce_id": b"1"}),
        (b"a", b"x", {"ce_type": b"io.meshwire.state.set.v1", "ce_id": b"1", "expected": b"x"}),
        (b"a", b"x", {"ce_type": b"io.meshwire.state.set.v1", "ce_id": b"1", "ttl": b"nan"}),
        (b"a", b"x", {"ce_type": b"io.meshwire.state.set.v1", "ce_id": b"1", "ttl": b"-1"}),
        (None, b"x", {"ce_type": b"io.meshwire.state.changed.v1", "ce_id": b"1"}),
        (None, None, {"ce_type": b"io.meshwire.state.changed.v1", "ce_id": b"1"}),
        (None, msgspec.msgpack.encode({"changes": []}), {"ce_type": b"io.meshwire.state.changed.v1", "ce_id": b"1"}),
        (
            None,
            msgspec.msgpack.encode({"changes": [["a", b"", "", None, None]] * 501}),
            {"ce_type": b"io.meshwire.state.changed.v1", "ce_id": b"1"},
        ),
        (
            None,
            msgspec.msgpack.encode({"path": "", "revisions": 65}),
            {"ce_type": b"io.meshwire.state.history.v1", "ce_id": b"1"},
        ),
        (b"a", b"x", {"ce_type": b"com.example.other", "ce_id": b"1"}),
    ],
)
def test_what_strangers_write_is_nothing(key: bytes | None, value: bytes | None, headers: dict[str, bytes]) -> None:
    assert table_records.read(key, value, list(headers.items())) is None


def test_kinds_that_are_kept_for_others_are_no_keys() -> None:
    with pytest.raises(InvalidKey):
        table_records.commit(SOURCE, [Put(key=("check", "snapshot"), value=b"")])


# What it is kept in


def test_paths_stay_in_order() -> None:
    choice = random.Random(1)
    paths, model = SortedPaths(), set()
    for _ in range(20_000):
        path = f"p{choice.randrange(6000)}"
        if path in model:
            paths.remove(path)
            model.remove(path)
        else:
            paths.add(path)
            model.add(path)
    assert len(paths) == len(model)
    assert list(paths.between("", "\x7f")) == sorted(model)
    assert list(paths.between("p2", "p3")) == sorted(path for path in model if "p2" <= path < "p3")
    assert list(paths.between("q", "r")) == []
    for path in sorted(model):
        paths.remove(path)
    assert list(paths.between("", "\x7f")) == []


def test_records_stay_in_the_order_of_their_revisions() -> None:
    choice = random.Random(2)
    log, model = RevisionLog(), {}
    for revision in range(1, 20_000):
        path = f"p{int(choice.random() ** 3 * 3000)}"
        if path in model:
            log.remove(model.pop(path).revision)
        record = Stored(path, revision, 0.0, b"")
        log.append(record)
        model[path] = record
    expected = sorted(model.values(), key=lambda record: record.revision)
    assert list(log.after(0)) == expected
    for start in (1, 17, 5000, 19_998, 19_999, 30_000):
        assert list(log.after(start)) == [record for record in expected if record.revision > start]
    copy = log.copy()
    log.append(Stored("later", 30_000, 0.0, b""))
    log.remove(expected[0].revision)
    assert list(copy) == expected
    slots = sum(len(segment.records) for segment in log._segments)
    assert slots < 5 * len(model) + 2048, "what was replaced is let go of"
