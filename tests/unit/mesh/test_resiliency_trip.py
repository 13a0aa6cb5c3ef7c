import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.resiliency.trip import MAX_DEPTH, Counts, InvalidTrip, parse_trip

COUNTS = Counts(
    requests=10, total_successes=3, total_failures=7, consecutive_successes=0, consecutive_failures=5
)  # fmt: skip


@pytest.mark.parametrize(
    ("condition", "opens"),
    [
        ("consecutiveFailures > 5", False),
        ("consecutiveFailures >= 5", True),
        ("consecutiveFailures>=5&&requests<11", True),
        ("consecutiveFailures == 5 && totalFailures != 7", False),
        ("requests > 100 || totalFailures * 10 >= requests * 6", True),
        ("true", True),
        ("!(true)", False),
        ("!!true", True),
        ("false || true && false", False),
        ("(false || true) && true == true", True),
        ("1 + 2 * 3 == 7", True),
        ("(1 + 2) * 3 == 9", True),
        ("10 - 2 - 3 == 5", True),
        ("-7 / 2 == -3 && -7 % 2 == -1 && 7 % -2 == 1 && -8 / -3 == 2", True),
        ("--1 == 1", True),
        ("requests - totalSuccesses - totalFailures == consecutiveSuccesses", True),
        # What fails does not open, unless the other side decides.
        ("requests / consecutiveSuccesses > 0", False),
        ("!(requests / consecutiveSuccesses > 0)", False),
        ("requests / consecutiveSuccesses > 0 || true", True),
        ("true || requests / consecutiveSuccesses > 0", True),
        ("requests % 0 == 0 && true", False),
        ("!(requests % 0 == 0 && false)", True),
        ("9223372036854775807 + 1 > 0", False),
        ("9223372036854775807 > 0", True),
        ("-9223372036854775807 - 1 < 0", True),
        ("(-9223372036854775807 - 1) / -1 > 0", False),
        (" \n consecutiveFailures\t> 4 ", True),
        ("(" * (MAX_DEPTH - 1) + "true" + ")" * (MAX_DEPTH - 1), True),
        ("+".join("1" * 100) + " == 100", True),
    ],
)
def test_conditions(condition: str, opens: bool) -> None:
    assert parse_trip(condition)(COUNTS) is opens


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("", r"at character 1: the condition ends too early"),
        ("consecutiveFailures >", r"at character 22: the condition ends too early"),
        ("consecutiveFailure > 5", r"at character 1: no such counter 'consecutiveFailure' \(known: requests, "),
        ("requests", r"at character 1: must be true or false"),
        ("requests > 1 && totalFailures", r"at character 17: must be true or false"),
        ("requests > true", r"at character 12: must be a number"),
        ("requests == true", r"at character 13: must be a number"),
        ("true == 1", r"at character 9: must be true or false"),
        ("true < false", r"at character 8: must be a number"),
        ("1 < 2 < 3", r"at character 1: must be a number"),
        ("!requests", r"at character 2: must be true or false"),
        ("-true == 1", r"at character 2: must be a number"),
        ("true + 1 > 0", r"at character 1: must be a number"),
        ("requests > 0.5", r"at character 12: '0.5' is not understood"),
        ("requests > 5u", r"at character 12: '5u' is not understood"),
        ("requests = 5", r"at character 10: '= 5' is not understood"),
        ("requests & 5", r"at character 10: '& 5' is not understood"),
        ("double(requests) > 5", r"at character 1: 'double\(requests\) > 5' is not understood"),
        ("requests.size > 5", r"at character 1: 'requests\.size > 5' is not understood"),
        ("requests > 5 ? true : false", r"at character 14: '\? true : false' is not understood"),
        ("requests > 'a'", r"at character 12: ''a'' is not understood"),
        ("(requests > 5", r"at character 14: '\)' is missing"),
        ("requests > 5)", r"at character 13: unexpected '\)'"),
        ("requests > 5 6", r"at character 14: unexpected '6'"),
        ("> 5", r"at character 1: unexpected '>'"),
        ("requests > 9223372036854775808", r"at character 12: a number must fit in 64 bits"),
        ("(" * (MAX_DEPTH + 1) + "true", r"at character 33: nested deeper than 32"),
        ("!" * 200 + "true", r"nested deeper than 32"),
        ("true" + " " * 300, r"at most 256 characters"),
    ],
)
def test_everything_else_is_refused_with_its_position(condition: str, message: str) -> None:
    with pytest.raises(InvalidTrip, match=message):
        parse_trip(condition)


numbers = st.recursive(
    st.sampled_from(["requests", "totalFailures", "0", "1", "2", "30"]),
    lambda inner: st.tuples(inner, st.sampled_from("+-*"), inner).map(lambda parts: f"({' '.join(parts)})"),
    max_leaves=4,
)
truths = st.recursive(
    st.tuples(numbers, st.sampled_from(["<", "<=", ">", ">=", "==", "!="]), numbers).map(" ".join),
    lambda inner: (
        st.tuples(inner, st.sampled_from(["&&", "||"]), inner).map(" ".join) | inner.map(lambda text: f"!({text})")
    ),
    max_leaves=4,
)


@given(truths.filter(lambda text: len(text) <= 256), st.integers(0, 40), st.integers(0, 40))
def test_it_means_what_python_means(condition: str, requests: int, failures: int) -> None:
    python = condition.replace("&&", " and ").replace("||", " or ").replace("!(", " not (")
    expected = eval(python, {"requests": requests, "totalFailures": failures})  # noqa: S307
    assert parse_trip(condition)(Counts(requests=requests, total_failures=failures)) is expected


@given(st.text(alphabet="requests tolFailu0123456789<>=!&|+-*/%()", max_size=40) | st.text(max_size=20))
def test_any_text_is_a_condition_or_refused(text: str) -> None:
    try:
        trip = parse_trip(text)
    except InvalidTrip:
        return
    assert trip(COUNTS) in (True, False)
