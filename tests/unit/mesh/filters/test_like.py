"""The patterns of LIKE, held to a regular expression."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.filters.cesql.like import matcher


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("abc", ["abc"], ["", "ab", "abcd", "ABC"]),
        ("", [""], ["a"]),
        ("%", ["", "a", "a\nb"], []),
        ("%%", ["", "a"], []),
        ("a%", ["a", "ab"], ["", "ba"]),
        ("%a", ["a", "ba"], ["", "ab"]),
        ("%a%", ["a", "bab"], ["", "b"]),
        ("a%a", ["aa", "aba"], ["a"]),
        ("_", ["a", "\n", "𝄞"], ["", "ab"]),
        ("_b%", ["ab", "abc"], ["b", "acd", "aBc"]),
        ("%_", ["a", "ab"], [""]),
        ("%a_c%", ["abc", "xabcabcx", "aabc"], ["ac", "abbc"]),
        ("%ab%bc", ["abbc", "abxbc"], ["abc"]),
        ("%ab%ba%", ["abba", "xabxbax"], ["aba"]),
        (r"a\%", ["a%"], ["a", "ab"]),
        (r"a\_b", ["a_b"], ["axb"]),
        (r"a\b", [r"a\b"], ["ab"]),
        (r"a\\%", [r"a\%"], ["a%", r"a\\", r"a\x"]),
        ("a.*", ["a.*"], ["abc"]),
    ],
)
def test_patterns(pattern: str, matching: list[str], others: list[str]) -> None:
    matches = matcher(pattern)
    assert [text for text in matching if not matches(text)] == []
    assert [text for text in others if matches(text)] == []


@given(st.text(alphabet="ab%_", max_size=12), st.text(alphabet="ab%", max_size=12))
def test_it_is_what_the_regular_expression_says(pattern: str, text: str) -> None:
    expected = re.fullmatch(re.sub("%", ".*", re.sub("_", ".", pattern)), text, re.DOTALL) is not None
    assert matcher(pattern)(text) is expected


@pytest.mark.timeout(20)
@pytest.mark.parametrize("pattern", ["%a_" * 1000 + "x", "%" + "_a" * 1000 + "x%", "%" + "a" * 2000 + "b%c"])
def test_no_pattern_takes_for_ever(pattern: str) -> None:
    """Where a backtracking matcher needs years."""
    assert not matcher(pattern)("a" * 60_000)
