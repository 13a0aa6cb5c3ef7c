"""A checker of linearizability (Wing and Gong's search, with Lowe's memory of what was tried), and tables as its model.

A history is linearizable when each operation can be given one moment, between its beginning and its end, such that
all results are those of a single copy of the data. An operation whose outcome is unknown has its moment at any time
after its beginning, or never.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from math import inf
from typing import Generic, NamedTuple, TypeVar

from mesh.ports.tables import ABSENT, Key

MAX_STEPS = 500_000

ActionT = TypeVar("ActionT")
StateT = TypeVar("StateT", bound=Hashable)


class NotLinearizable(AssertionError):
    """No order explains what was seen."""


class Undecided(AssertionError):
    """The search took more than `MAX_STEPS`."""


@dataclass(frozen=True)
class Operation(Generic[ActionT]):
    action: ActionT
    start: float
    end: float
    """Infinite: the outcome is unknown."""


class _Node(NamedTuple, Generic[StateT]):
    """A point of the search: which operations have had their moment, and what is so then."""

    first: int
    """All known operations before this one have had theirs."""
    ahead: frozenset[int]
    """And these beyond it."""
    unknown: frozenset[int]
    """Of the operations with an unknown outcome, those that have taken effect."""
    state: StateT


def linearize(
    history: Sequence[Operation[ActionT]],
    step: Callable[[StateT, ActionT], StateT | None],
    initial: StateT,
    rank: Callable[[ActionT], float] = lambda _: 0.0,
) -> list[Operation[ActionT]]:
    """An order that explains the history.

    `step` is what an action makes of a state, or `None` when it cannot have its result in this state; one whose
    outcome is unknown never returns `None`. Lower `rank`s are tried first. Raises `NotLinearizable`, `Undecided`.
    """
    known = sorted((op for op in history if op.end != inf), key=lambda op: op.start)
    unknown = sorted((op for op in history if op.end == inf), key=lambda op: op.start)

    def moves(node: _Node[StateT]) -> Iterator[tuple[Operation[ActionT], _Node[StateT]]]:
        first, ahead, taken, state = node
        window: list[int] = []
        earliest_end = inf
        index = first
        while index < len(known) and known[index].start <= earliest_end:
            if index not in ahead:
                window.append(index)
                earliest_end = min(earliest_end, known[index].end)
            index += 1
        found: list[tuple[float, int, StateT]] = []
        for index in window:
            if known[index].start > earliest_end:
                break
            following = step(state, known[index].action)
            if following == state:  # it can come now, and nothing depends on when: no other choice need be tried
                yield known[index], node_after(node, index, state)
                return
            if following is not None:
                found.append((rank(known[index].action), index, following))
        for _, index, following in sorted(found, key=lambda move: move[:2]):
            yield known[index], node_after(node, index, following)
        for number, op in enumerate(unknown):
            if op.start > earliest_end:
                break
            if number not in taken:
                following = step(state, op.action)
                if following is not None and following != state:
                    yield op, _Node(first, ahead, taken | {number}, following)

    def node_after(node: _Node[StateT], index: int, state: StateT) -> _Node[StateT]:
        first, ahead = node.first, node.ahead
        if index != first:
            return _Node(first, ahead | {index}, node.unknown, state)
        first += 1
        while first in ahead:
            ahead -= {first}
            first += 1
        return _Node(first, ahead, node.unknown, state)

    root = _Node(0, frozenset[int](), frozenset[int](), initial)
    seen = {root}
    order: list[Operation[ActionT]] = []
    path = [(root, moves(root))]
    furthest = root
    steps = 0
    while path:
        node, following_moves = path[-1]
        if node.first == len(known):
            return order
        furthest = max(furthest, node, key=lambda node: node.first + len(node.ahead))
        move = next(following_moves, None)
        steps += 1
        if steps > MAX_STEPS:
            raise Undecided(f"after {MAX_STEPS} steps, {furthest.first} of {len(known)} operations are explained")
        if move is None:
            path.pop()
            if order:
                order.pop()
        elif move[1] not in seen:
            seen.add(move[1])
            order.append(move[0])
            path.append((move[1], moves(move[1])))
    stuck = [op for index, op in enumerate(known) if index >= furthest.first and index not in furthest.ahead][:12]
    raise NotLinearizable(
        f"{furthest.first} of {len(known)} operations are explained; then, in the state {furthest.state},\n"
        + "\n".join(f"  {op}" for op in stuck)
    )


# Tables


@dataclass(frozen=True)
class Read:
    """`value` and `revision` are `None` and `ABSENT` for an absent key."""

    key: Key
    value: bytes | None
    revision: int


class Change(NamedTuple):
    """`value` is unique in the history, or `None` for a deletion."""

    key: Key
    value: bytes | None
    expected: int | None = None


@dataclass(frozen=True)
class Commit:
    changes: tuple[Change, ...]
    checks: tuple[tuple[Key, int], ...] = ()
    revisions: tuple[int, ...] | None = None
    """`None` with `conflict`, or when the outcome is unknown."""
    conflict: bool = False


Action = Read | Commit
_State = tuple[int, frozenset[tuple[Key, bytes]]]
"""The newest revision that is known to have been given, and the values of the keys that exist."""


def check_table(history: Sequence[Operation[Action]]) -> None:
    """Raises `NotLinearizable` unless a table can have given these results, with revisions in the order of commits."""
    revision_of = _revisions(history)
    for part in _components(history):
        linearize(part, lambda state, action: _step(state, action, revision_of), (0, frozenset()), _rank)


def _revisions(history: Sequence[Operation[Action]]) -> dict[bytes, int]:
    """The revision of each value that was seen, or whose commit was acknowledged."""
    revision_of: dict[bytes, int] = {}
    owner: dict[int, bytes | None] = {}
    for op in history:
        if isinstance(op.action, Read):
            seen = [(op.action.value, op.action.revision)] if op.action.value is not None else []
        else:
            seen = [
                (change.value, revision)
                for change, revision in zip(op.action.changes, op.action.revisions or (), strict=False)
            ]
        for value, revision in seen:
            if value is not None and revision_of.setdefault(value, revision) != revision:
                raise NotLinearizable(f"{value!r} has the revisions {revision_of[value]} and {revision}")
            if owner.setdefault(revision, value) != value:
                raise NotLinearizable(f"{owner[revision]!r} and {value!r} both have the revision {revision}")
    return revision_of


def _step(state: _State, action: Action, revision_of: dict[bytes, int]) -> _State | None:
    last, entries = state
    values = dict(entries)
    if isinstance(action, Read):
        return state if values.get(action.key) == action.value else None
    holds = all(
        expected is None or expected == (revision_of.get(values[key]) if key in values else ABSENT)
        for key, expected in [*((change.key, change.expected) for change in action.changes), *action.checks]
    )
    if action.conflict:
        return None if holds else state
    is_unknown = action.revisions is None
    if not holds:
        return state if is_unknown else None
    revisions = action.revisions or [revision_of.get(change.value or b"") for change in action.changes]
    for revision in revisions:
        if revision is not None:
            if revision <= last:
                return state if is_unknown else None
            last = revision
    for change in action.changes:
        if change.value is None:
            values.pop(change.key, None)
        else:
            values[change.key] = change.value
    return last, frozenset(values.items())


def _rank(action: Action) -> float:
    return action.revisions[0] if isinstance(action, Commit) and action.revisions else 0.0


def _components(history: Sequence[Operation[Action]]) -> list[list[Operation[Action]]]:
    """The history of each set of keys that no commit connects with others: each can be judged for itself."""
    root: dict[Key, Key] = {}

    def find(key: Key) -> Key:
        while root.setdefault(key, key) != key:
            key = root[key]
        return key

    for op in history:
        keys = _keys(op.action)
        for key in keys[1:]:
            root[find(key)] = find(keys[0])
    parts: defaultdict[Key, list[Operation[Action]]] = defaultdict(list)
    for op in history:
        parts[find(_keys(op.action)[0])].append(op)
    return list(parts.values())


def _keys(action: Action) -> list[Key]:
    if isinstance(action, Read):
        return [action.key]
    return [*(change.key for change in action.changes), *(key for key, _ in action.checks)]
