"""The judge of turns sees what it is there for."""

from __future__ import annotations

import pytest

from tests.chaos.turns import Turn, judge

FIRST = Turn("t1", "a", fence=1, call="c1", begun=1.0, ended=2.0, read=0, saved=True)


def second(**what: object) -> Turn:
    usual = {"fence": 1, "call": "c2", "begun": 3.0, "ended": 4.0, "read": 1, "before": "t1", "saved": True}
    return Turn("t2", "a", **usual | what)  # type: ignore[arg-type]


def told(turn: Turn, kept: tuple[int, str] = (2, "t2"), **acknowledged: str) -> list[str]:
    return judge({"t1": FIRST, turn.turn: turn}, {"c1": "t1"} | acknowledged, {"a": kept}).wrong


def test_turns_that_follow_each_other_are_right() -> None:
    assert told(second(), c2="t2") == []
    assert told(second(fence=2), c2="t2") == []


def test_of_two_that_overlap_the_older_one_may_have_written_before_the_newer_one_read() -> None:
    verdict = judge({"t1": FIRST, "t2": second(fence=2, begun=1.5)}, {"c2": "t2"}, {"a": (2, "t2")})
    assert (verdict.wrong, verdict.overlaps, verdict.older_first) == ([], 1, 1)


@pytest.mark.parametrize(
    ("turn", "kept", "wrong"),
    [
        (second(begun=1.5), (2, "t2"), "under one lease"),
        (second(fence=2, begun=1.5), (2, "t2"), "answer of the older turn"),
        (second(fence=2, begun=1.5, read=0, before=""), (1, "t2"), "wrote after the newer one had read"),
        (second(read=0, before=""), (1, "t2"), "was written by t1 and by t2"),
        (second(before="t3"), (2, "t2"), "was written by t1 and by t3"),
        (second(fence=0), (2, "t2"), "an older lease wrote"),
        (second(), (1, "t1"), "was acknowledged"),
        (second(saved=False), (0, ""), "was acknowledged"),
    ],
)
def test_what_is_wrong_is_seen(turn: Turn, kept: tuple[int, str], wrong: str) -> None:
    assert any(wrong in text for text in told(turn, kept))


def test_an_answer_needs_its_turn() -> None:
    for acknowledged in ({"c2": "t3"}, {"c3": "t2"}):
        assert any("without its turn" in text for text in told(second(), **acknowledged))
    assert any("without its turn" in text for text in told(second(saved=False), (1, "t1"), c2="t2"))
