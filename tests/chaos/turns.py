"""What must be true of a log of turns: the judge of tests that disturb actors."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path


@dataclass
class Turn:
    """A turn as the app saw it: it read a number, and wrote the next one with its own name beside it."""

    turn: str
    actor: str
    fence: int
    call: str
    begun: float
    ended: float | None = None
    """`None` when the app died meanwhile."""
    read: int | None = None
    before: str = ""
    """The turn that had written what was read."""
    saved: bool = False
    """Whether the write was acknowledged."""


@dataclass
class Verdict:
    wrong: list[str] = field(default_factory=list)
    overlaps: int = 0
    """Pairs of turns of one actor under two leases that overlap in time."""
    older_refused: int = 0
    """Those of which the older one wanted to write and was refused."""
    older_first: int = 0
    """Those of which the older one had written before the newer one read."""


def read(files: Iterable[Path]) -> dict[str, Turn]:
    turns: dict[str, Turn] = {}
    for file in files:
        for line in file.read_text().splitlines():
            told = json.loads(line)
            if "actor" in told:
                turns[told["turn"]] = Turn(**told)
            else:
                vars(turns[told["turn"]]).update(told)
    return turns


def judge(turns: Mapping[str, Turn], acknowledged: Mapping[str, str], kept: Mapping[str, tuple[int, str]]) -> Verdict:
    """`acknowledged`: the turn that answered each call whose caller was told of success; `kept`: what each actor has at
    the end, and which turn wrote it.

    The sum of an actor only grows, by one for each write, and each number was written by one turn: so two writes that
    do not know of each other, or one that is gone, would both be seen.
    """
    verdict = Verdict()
    actors: dict[str, list[Turn]] = defaultdict(list)
    for turn in turns.values():
        actors[turn.actor].append(turn)
    for call, name in acknowledged.items():
        turn = turns.get(name)
        if turn is None or turn.call != call or not turn.saved:
            verdict.wrong.append(f"call {call} was acknowledged without its turn: {turn}")
    answered = set(acknowledged.values())
    for actor, own in actors.items():
        verdict.wrong += _sums(actor, own, kept.get(actor, (0, "")))
        for older, newer in _overlaps(own):
            if older.fence == newer.fence:
                verdict.wrong.append(f"two turns at once under one lease: {older} {newer}")
                continue
            verdict.overlaps += 1
            verdict.older_refused += not older.saved and older.read is not None
            if older.turn in answered:
                verdict.wrong.append(f"the answer of the older turn was accepted: {older} {newer}")
            if older.saved and newer.read is not None:
                verdict.older_first += 1
                if newer.read <= (older.read or 0):
                    verdict.wrong.append(f"the older turn wrote after the newer one had read: {older} {newer}")
    return verdict


def _sums(actor: str, turns: list[Turn], kept: tuple[int, str]) -> Iterator[str]:
    """What is wrong with the numbers that the turns of an actor read and wrote."""
    writers: dict[int, str] = {}
    saved = sorted((turn for turn in turns if turn.saved), key=lambda turn: turn.read or 0)
    told = [((turn.read or 0) + 1, turn.turn) for turn in saved]
    told += [(turn.read, turn.before) for turn in turns if turn.read]
    for number, writer in [*told, kept]:
        if number and writers.setdefault(number, writer) != writer:
            yield f"{actor}: {number} was written by {writers[number]} and by {writer}"
    if saved and kept[0] <= (saved[-1].read or 0):
        yield f"{actor} has {kept} at the end, but {saved[-1]} was acknowledged"
    for first, second in pairwise(saved):
        if second.fence < first.fence:
            yield f"{actor}: an older lease wrote after a newer one: {first} {second}"


def _overlaps(turns: list[Turn]) -> Iterator[tuple[Turn, Turn]]:
    """Pairs that overlap in time, the one with the older lease first. One that has no end is taken to be short."""
    open_turns: list[Turn] = []
    for turn in sorted(turns, key=lambda turn: turn.begun):
        open_turns = [other for other in open_turns if (other.ended or other.begun) > turn.begun]
        for other in open_turns:
            yield (other, turn) if other.fence <= turn.fence else (turn, other)
        open_turns.append(turn)
