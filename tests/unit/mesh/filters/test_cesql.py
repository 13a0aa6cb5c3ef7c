"""CESQL 1.0: every operator, function, cast and error, in both ways of evaluation."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.filters.cesql import (
    BUILT_IN,
    ErrorKind,
    EvaluationError,
    Expression,
    Function,
    Functions,
    InvalidExpression,
    InvalidFunction,
)

EVENT: dict[str, Any] = {
    "specversion": "1.0",
    "id": "1",
    "source": "/shop/eu",
    "type": "order.placed",
    "hop": "5",
    "number": 7,
    "flag": True,
    "text": "abc",
}

CAST, MATH = ErrorKind.CAST, ErrorKind.MATH
ATTRIBUTE, CALL, FUNCTION = ErrorKind.MISSING_ATTRIBUTE, ErrorKind.MISSING_FUNCTION, ErrorKind.FUNCTION


def check(text: str, value: object, *errors: ErrorKind, functions: Functions = BUILT_IN) -> None:
    """Both evaluations agree: on the value where there is no error, on the first error where there is one."""
    expression = Expression(text, functions)
    result = expression.explain(EVENT)
    assert (result.value, type(result.value)) == (value, type(value)), text
    assert [error.kind for error in result.errors] == [error.value for error in errors], text
    if not errors:
        assert expression.evaluate(EVENT) == value
        assert type(expression.evaluate(EVENT)) is type(value)
        assert expression.matches(EVENT) is (value is True)
    else:
        with pytest.raises(EvaluationError) as raised:
            expression.evaluate(EVENT)
        assert raised.value.kind is errors[0]
        assert not expression.matches(EVENT)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("TRUE", True),
        ("fAlSe", False),
        ("0", 0),
        ("+12", 12),
        ("-12", -12),
        ("2147483647", 2147483647),
        ("-2147483648", -2147483648),
        ("007", 7),
        ("'a'", "a"),
        ('"a"', "a"),
        ("''", ""),
        (r"'it\'s'", "it's"),
        (r'"say \"x\""', 'say "x"'),
        (r"'a\"b'", r"a\"b"),
        (r"'a\nb'", r"a\nb"),
        (r"'a\\'", r"a\\"),
        ("'it''s'", "it's"),
        ('"a""b"', 'a"b'),
        ("'é\n𝄞'", "é\n𝄞"),
        (" \t\r\n1\n", 1),
        ("TYPE", "order.placed"),
        ("number", 7),
        ("flag", True),
        ("((flag))", True),
    ],
)
def test_literals_and_attributes(text: str, value: object) -> None:
    check(text, value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2 + 3 * 4", 14),
        ("(2 + 3) * 4", 20),
        ("4-1", 3),
        ("4 -1", 3),
        ("4 - -1", 5),
        ("4+1", 5),
        ("8 - 2 - 1", 5),
        ("16 / 4 / 2", 2),
        ("7 / 2", 3),
        ("-7 / 2", -3),
        ("7 / -2", -3),
        ("-7 % 3", -1),
        ("7 % -3", 1),
        ("--10", 10),
        ("-(-10)", 10),
        ("-'10'", -10),
        ("-flag", -1),
        ("'2' * TRUE", 2),
        ("hop + 1", 6),
    ],
)
def test_arithmetic(text: str, value: object) -> None:
    check(text, value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1 / 0", 0),
        ("1 % 0", 0),
        ("2147483647 + 1", 0),
        ("-2147483648 - 1", 0),
        ("65536 * 65536", 0),
        ("-2147483648 / -1", 0),
        ("-(-2147483648)", 0),
    ],
)
def test_arithmetic_that_fails(text: str, value: object) -> None:
    check(text, value, MATH)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1 = 1", True),
        ("1 != 1", False),
        ("1 <> 2", True),
        ("2 >= 2", True),
        ("2 <= 1", False),
        ("2 > 1", True),
        ("2 < 1", False),
        ("'9' < '10'", True),
        ("flag > FALSE", True),
        ("'a' = 'A'", False),
        ("hop = 5", True),
        ("hop = '05'", False),
        ("number = '7'", True),
        ("5 = hop", True),
        ("'TRUE' = TRUE", True),
        ("TRUE = 'TRUE'", False),
        ("TRUE = 'true' AND FALSE = 'false'", True),
        ("2 = TRUE", True),
        ("TRUE = 1", True),
        ("TRUE = 2", False),
        ("1 = 1 = TRUE", True),
        ("type = source", False),
    ],
)
def test_comparison(text: str, value: object) -> None:
    check(text, value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("TRUE AND TRUE", True),
        ("TRUE AND FALSE", False),
        ("FALSE OR TRUE", True),
        ("FALSE OR FALSE", False),
        ("TRUE XOR FALSE", True),
        ("TRUE XOR TRUE", False),
        ("TRUE XOR TRUE XOR TRUE", True),
        ("1 AND 'true'", True),
        ("0 OR 'FALSE'", False),
        ("NOT TRUE", False),
        ("not 'false'", True),
        ("NOT 10", False),
        ("NOT NOT flag", True),
        ("NOT flag = FALSE", True),
        ("FALSE AND 1 / 0 = 1", False),
        ("TRUE OR missing = 1", True),
        ("TRUE AND TRUE AND FALSE AND missing", False),
        ("FALSE OR FALSE OR TRUE OR missing", True),
        # Unlike operators group to the right.
        ("FALSE AND TRUE OR TRUE", False),
        ("TRUE OR FALSE AND FALSE", True),
        ("TRUE XOR TRUE AND FALSE", True),
        ("TRUE XOR FALSE OR TRUE XOR TRUE", True),
    ],
)
def test_logic(text: str, value: object) -> None:
    check(text, value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("EXISTS id", True),
        ("EXISTS HOP", True),
        ("EXISTS nothing", False),
        ("NOT EXISTS nothing", True),
        ("text IN ('x', 'abc')", True),
        ("text NOT IN ('x', 'abc')", False),
        ("number IN ('6', '7')", True),
        ("hop IN (5)", True),
        ("flag IN ('TRUE')", True),
        ("1 IN (TRUE)", True),
        ("text IN ('abc', missing)", True),
        ("1 + flag IN (1)", 2),
        ("type LIKE 'order.%'", True),
        ("type NOT LIKE 'order.%'", False),
        ("type like '%.shipped'", False),
        ("number LIKE '7'", True),
        ("flag LIKE 'tr_e'", True),
        ("NOT flag LIKE 'false'", True),
        ("flag = 'abc' LIKE 'abc'", True),
    ],
)
def test_exists_in_and_like(text: str, value: object) -> None:
    check(text, value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("INT('-12')", -12),
        ("INT('+12')", 12),
        ("INT('0000000000000012')", 12),
        ("INT(TRUE)", 1),
        ("INT(FALSE)", 0),
        ("BOOL('TrUe')", True),
        ("BOOL(-1)", True),
        ("BOOL(0)", False),
        ("STRING(-7)", "-7"),
        ("STRING(TRUE)", "true"),
        ("string(FALSE)", "false"),
        ("LENGTH('é𝄞')", 2),
        ("LENGTH(12)", 2),
        ("CONCAT()", ""),
        ("CONCAT('a', 1, TRUE)", "a1true"),
        ("CONCAT_WS(',')", ""),
        ("CONCAT_WS(',', 'a', 1)", "a,1"),
        ("LOWER('ÄB')", "äb"),
        ("UPPER('äb')", "ÄB"),
        ("TRIM('  a\u2003')", "a"),
        ("TRIM('\u001c a')", "\u001c a"),
        ("LEFT('abc', 2)", "ab"),
        ("LEFT('abc', 9)", "abc"),
        ("RIGHT('abc', 2)", "bc"),
        ("RIGHT('abc', 0)", ""),
        ("RIGHT('abc', 9)", "abc"),
        ("SUBSTRING('abcdef', 2)", "bcdef"),
        ("SUBSTRING('abcdef', -2)", "ef"),
        ("SUBSTRING('abcdef', 0)", ""),
        ("SUBSTRING('abcdef', 6)", "f"),
        ("SUBSTRING('abcdef', -6, 2)", "ab"),
        ("SUBSTRING('abcdef', 2, 3)", "bcd"),
        ("SUBSTRING('abcdef', 2, 99)", "bcdef"),
        ("SUBSTRING('abcdef', 2, 0)", ""),
        ("ABS(-2147483647)", 2147483647),
        ("ABS('-3')", 3),
    ],
)
def test_functions(text: str, value: object) -> None:
    check(text, value)


@pytest.mark.parametrize(
    ("text", "value", "error"),
    [
        ("INT('abc')", 0, CAST),
        ("INT('1.0')", 0, CAST),
        ("INT(' 1')", 0, CAST),
        ("INT('٣')", 0, CAST),
        ("INT('2147483648')", 0, CAST),
        (f"INT('{'9' * 4000}')", 0, CAST),
        ("BOOL('yes')", False, CAST),
        ("'abc' = 1", False, CAST),
        ("'abc' != 1", False, CAST),
        ("'abc' AND TRUE", False, CAST),
        ("NOT text IN ('abc')", False, CAST),
        ("TRUE OR FALSE AND 'x'", True, None),
        ("number IN ('x', '7')", False, CAST),
        ("LEFT('abc', -1)", "abc", FUNCTION),
        ("RIGHT('abc', -1)", "abc", FUNCTION),
        ("SUBSTRING('abc', 4)", "", FUNCTION),
        ("SUBSTRING('abc', -4)", "", FUNCTION),
        ("SUBSTRING('abc', 1, -1)", "", FUNCTION),
        ("SUBSTRING('', 1)", "", FUNCTION),
        ("ABS(-2147483648)", 2147483647, MATH),
        ("NOPE()", False, CALL),
        ("ABS(1, 2)", False, CALL),
        ("CONCAT_WS()", False, CALL),
        ("NOPE(1 / 0)", False, CALL),
        ("missing", False, ATTRIBUTE),
        ("missing = 1", False, ATTRIBUTE),
        ("missing != 1", False, ATTRIBUTE),
        ("missing < 1", False, ATTRIBUTE),
        ("1 / missing", 0, ATTRIBUTE),
        ("missing * 5", 0, ATTRIBUTE),
        ("-missing", 0, ATTRIBUTE),
        ("NOT missing", False, ATTRIBUTE),
        ("missing LIKE '%'", False, ATTRIBUTE),
        ("missing NOT LIKE '%'", False, ATTRIBUTE),
        ("missing IN (1)", False, ATTRIBUTE),
        ("missing NOT IN (1)", False, ATTRIBUTE),
        ("number IN (missing, 7)", False, ATTRIBUTE),
        ("missing XOR TRUE", False, ATTRIBUTE),
        ("missing AND TRUE", False, ATTRIBUTE),
        ("TRUE AND missing", False, ATTRIBUTE),
        ("FALSE OR missing = 1", False, ATTRIBUTE),
        ("LENGTH(missing)", 0, ATTRIBUTE),
        ("CONCAT(missing, 'a')", "", ATTRIBUTE),
        ("LENGTH(LEFT('abc', -1))", 0, FUNCTION),
        ("TRUE AND (1 != 1 / 0)", False, MATH),
    ],
)
def test_errors(text: str, value: object, error: ErrorKind | None) -> None:
    check(text, value, *([error] if error else []))


def test_a_complete_evaluation_collects_the_errors_of_all_operands() -> None:
    check("1 / 0 + INT('x') + missing", 0, MATH, CAST, ATTRIBUTE)
    check("missing < 1 / 0", False, ATTRIBUTE, MATH)


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("", 0),
        ("   ", 3),
        ("ABC(", 4),
        ("(TRUE", 5),
        ("TRUE)", 4),
        ("1 2", 2),
        ("a b", 2),
        ("'abc", 0),
        ("type = 'a", 7),
        ("a = ", 4),
        ("= 1", 0),
        ("2147483648", 0),
        ("-2147483649", 0),
        ("-(2147483648)", 2),
        ("9" * 3000, 0),
        ("a LIKE b", 7),
        ("a LIKE 1", 7),
        ("a NOT 'x'", 2),
        ("a LIKE 'x' 'y'", 11),
        ("a IN ()", 6),
        ("a IN (1,)", 8),
        ("a IN 1", 5),
        ("EXISTS 'a'", 7),
        ("EXISTS TRUE", 7),
        ("my_attribute = 1", 0),
        ("FOO1(1)", 0),
        ("a AND", 5),
        ("AND a", 0),
        ("a.b = 1", 1),
        ("data['x']", 4),
        ("a == 1", 3),
        ("a ; b", 2),
        ("+ 1", 0),
        ("é = 1", 0),
    ],
)
def test_what_is_no_expression_is_refused_with_its_position(text: str, position: int) -> None:
    with pytest.raises(InvalidExpression) as raised:
        Expression(text)
    assert raised.value.position == position


def test_the_message_tells_line_and_column() -> None:
    with pytest.raises(InvalidExpression, match=r"^line 2, column 5: expected a value, found '\)'$"):
        Expression("type = 'a'\nAND )")


def test_limits() -> None:
    Expression(f"type = '{'x' * 4087}'")
    with pytest.raises(InvalidExpression, match="at most 4096 bytes"):
        Expression(f"type = '{'é' * 2048}'")
    Expression("(" * 63 + "flag" + ")" * 63)
    for deep in ("(" * 64 + "flag" + ")" * 64, "NOT " * 64 + "flag", "-" * 64 + "number", "+".join(["1"] * 65)):
        with pytest.raises(InvalidExpression, match="nested deeper than 64 levels"):
            Expression(deep)


def test_a_long_run_of_one_operator_is_no_nesting() -> None:
    assert Expression(" OR ".join([f"number = {one}" for one in range(200)])).matches({"number": 199})


def test_mixed_operators_and_unknown_functions_are_warned_of() -> None:
    assert Expression("(flag AND flag) OR flag").warnings == ()
    assert Expression("flag AND flag AND flag").warnings == ()
    (warning,) = Expression("flag AND flag OR flag").warnings
    assert warning.startswith("column 15: OR after AND")
    assert Expression("flag OR F_G(1)").warnings == ("column 9: there is no function F_G with 1 arguments",)


def test_what_is_no_boolean_does_not_match() -> None:
    assert Expression("1").evaluate(EVENT) == 1
    assert not Expression("1").matches(EVENT)
    assert not Expression("'true'").matches(EVENT)


def test_explanation() -> None:
    result = Expression("type = 'x' OR (hop > 1 AND LENGTH(subject) = 3)").explain(EVENT)
    assert result.step.value is False
    assert [(step.expression, step.value, step.position) for step in result.step.steps] == [
        ("type = 'x'", False, 0),
        ("hop > 1 AND LENGTH(subject) = 3", False, 15),
    ]
    assert (result.decided_by.expression, result.decided_by.position) == ("subject", 34)
    assert result.decided_by.error is not None
    assert result.decided_by.error.kind == "MissingAttributeError"


@pytest.mark.parametrize(
    ("text", "decided_by"),
    [
        ("flag AND number = 8 AND text = 'y'", "number = 8"),
        ("number = 8 OR text = 'abc'", "text = 'abc'"),
        ("NOT (flag AND number = 7)", "flag AND number = 7"),
        ("NOT (number = 8 OR flag)", "flag"),
        ("number = 8 OR text = 'x'", "number = 8 OR text = 'x'"),
        ("flag AND 1 / 0 = 1", "1 / 0"),
        ("flag", "flag"),
    ],
)
def test_what_decided(text: str, decided_by: str) -> None:
    assert Expression(text).explain(EVENT).decided_by.expression == decided_by


def fail(_text: str) -> str:
    raise ValueError("broken")


def test_own_functions() -> None:
    functions = BUILT_IN.extended(
        Function("IS_EU", (str,), bool, lambda text: text.endswith("/eu")),
        Function("ABS", (int, int), int, lambda left, right: abs(left - right)),
        Function("JOIN", (str, str), str, lambda *parts: "-".join(map(str, parts)), rest=int),
        Function("BREAKS", (str,), str, fail),
        Function("LIES", (str,), int, lambda text: text),
    )
    check("is_eu(source)", True, functions=functions)
    check("ABS(-1)", 1, functions=functions)
    check("ABS(1, 3)", 2, functions=functions)
    check("JOIN('a', 'b', '03')", "a-b-3", functions=functions)
    check("JOIN('a')", False, CALL, functions=functions)
    check("BREAKS('a')", "", FUNCTION, functions=functions)
    check("LIES('a')", 0, FUNCTION, functions=functions)
    check("IS_EU(source)", False, CALL)


@pytest.mark.parametrize(
    "function",
    [
        Function("INT", (str,), int, len),
        Function("ABS", (), int, lambda: 0, rest=int),
        Function("CONCAT", (str, str), str, lambda a, b: a),
        Function("CONCAT", (str,), str, lambda *a: "", rest=str),
        Function("F1", (str,), str, str),
        Function("_F", (str,), str, str),
    ],
)
def test_functions_that_clash_are_refused(function: Function) -> None:
    with pytest.raises(InvalidFunction):
        BUILT_IN.extended(function)


OPERANDS = st.sampled_from(
    ["flag", "number", "text", "hop", "missing", "1", "0", "-3", "'true'", "'x'", "TRUE", "FALSE"]
)


def combined(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    operators = st.sampled_from(["+", "-", "*", "/", "%", "=", "!=", "<", ">=", "AND", "OR", "XOR"])
    return st.one_of(
        st.tuples(inner, operators, inner).map(lambda parts: f"({' '.join(parts)})"),
        inner.map(lambda one: f"NOT {one}"),
        inner.map(lambda one: f"LENGTH({one})"),
        inner.map(lambda one: f"({one} LIKE '%e')"),
        st.tuples(inner, inner).map(lambda parts: f"({parts[0]} NOT IN ({parts[1]}, 1))"),
    )


@given(st.recursive(OPERANDS, combined, max_leaves=12))
def test_both_evaluations_agree(text: str) -> None:
    """The first error of one is among those of the other, and without an error the values are the same."""
    expression = Expression(text)
    result = expression.explain(EVENT)
    try:
        value = expression.evaluate(EVENT)
    except EvaluationError as error:
        assert error.kind.value in [one.kind for one in result.errors]
    else:
        assert not result.errors
        assert (value, type(value)) == (result.value, type(result.value))


@given(st.text(alphabet="aA1'\"\\ ()=<>!+-*/%,_.\nNOTINLIKE", max_size=40))
def test_any_text_compiles_or_is_refused(text: str) -> None:
    try:
        expression = Expression(text)
    except InvalidExpression as error:
        assert 0 <= error.position <= len(text)
    else:
        expression.explain(EVENT)
