"""Routing rules in CEL."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import InvalidEvent
from mesh.filters.cel import InvalidExpression, Rule, RuleError
from mesh.filters.event_view import EventView

EVENT: dict[str, Any] = {
    "specversion": "1.0",
    "id": "1",
    "source": "/shop/eu",
    "type": "order.placed",
    "time": "2024-02-29T23:30:15.25Z",
    "my-ext": "x",
    "number": 7,
    "data": {
        "amount": 12,
        "price": 1.5,
        "paid": True,
        "note": None,
        "name": "Ünal",
        "big": 9007199254740993,
        "items": [{"sku": "a", "count": 1}, {"sku": "b", "count": 5}, {"sku": "c"}],
        "tags": ["new", "eu"],
        "nested": {"deep": {"er": "yes"}},
    },
}


def view(event: object = EVENT) -> EventView:
    return EventView(json.dumps(event).encode())


def matches(text: str) -> bool:
    """As it is delivered; the explanation must agree."""
    rule, event = Rule(text), view()
    value = rule.matches(event)
    assert rule.explain(event).matches is value
    return value


@pytest.mark.parametrize(
    "text",
    [
        "true",
        "event.type == 'order.placed'",
        'event["my-ext"] == "x"',
        "event.type != 'x'",
        "!(event.type == 'x')",
        "event.data.amount > 10",
        "event.data.amount == 12 && event.data.amount == 12.0",
        "event.data.amount >= 12 && event.data.amount <= 12 && 13 > event.data.amount",
        "event.data.amount < 12.5",
        "event.number == 7",
        "event.data.big == 9007199254740993",
        "event.data.paid",
        "event.data.paid == true",
        "event.data.note == null",
        "event.data.nested.deep.er == 'yes'",
        "event.data['nested'].deep['er'] == 'yes'",
        "event.data.items[1].sku == 'b'",
        "event.data.items[1.0].sku == 'b'",
        "event.data.tags == ['new', 'eu']",
        "event.data.nested == {'deep': {'er': 'yes'}}",
        "event == event",
        # has
        "has(event.data.note)",
        "!has(event.data.nothing) && !has(event.subject)",
        "has(event.data) && !has(event.data_base64)",
        "has(event.data.nested.deep)",
        # arithmetic
        "1 + 2 * 3 == 7 && (1 + 2) * 3 == 9",
        "7 / 2 == 3 && -7 / 2 == -3 && -7 % 3 == -1 && 7 % -3 == 1",
        "event.data.price * 2.0 == 3.0",
        "event.data.amount / 5.0 == 2.4",
        "1.0 / 0.0 > 1e300 && -1.0 / 0.0 < -1e300",
        "0.0 / 0.0 != 0.0 / 0.0",
        "-event.data.price == -1.5",
        "0x1F == 31 && 1e3 == 1000 && .5 == 0.5",
        "-9223372036854775808 < 9223372036854775807",
        "'a' + 'b' == 'ab' && [1] + [2] == [1, 2]",
        # no types are mixed up
        "1 == 1.0 && !(dyn(true) == 1) && 'a' != dyn(1) && [true] != [1] && null != false",
        "1 in [1.0] && !(1 in [true]) && 'b' in ['a', 'b'] && 'new' in event.data.tags",
        "'amount' in event.data && !('x' in event.data)",
        "'a' < 'b' && false < true",
        # errors that do not count
        "event.nothing == 1 || true",
        "true || event.nothing == 1",
        "!(event.nothing == 1 && false)",
        "true ? true : event.nothing",
        "event.data.amount > 10 ? event.type == 'order.placed' : event.nothing",
        "[1, 'a'].exists(x, x > 0) && !['a', 1].all(x, x > 1)",
        # texts
        "event.type.startsWith('order') && event.type.endsWith('placed') && event.type.contains('r.p')",
        "event.type.matches('^order[.]') && matches(event.type, r'\\.placed$') && !event.type.matches('x')",
        "size(event.data.name) == 4 && event.data.tags.size() == 2 && size(event.data.nested) == 1 && size('') == 0",
        "'\\u00dcnal' == event.data.name && '\\x41\\101\\U00000041' == 'AAA' && \"\\\"\" == '\"'",
        "r'\\n' == '\\\\n' && '''it's''' == \"it's\" && R\"\"\"a\"b\"\"\" == 'a\"b'",
        "'a\\n\\t\\\\' != 'b' // a comment",
        # macros
        "event.data.items.exists(i, i.sku == 'b')",
        "event.data.items.all(i, has(i.sku))",
        "event.data.items.exists_one(i, i.sku == 'a')",
        "event.data.items.filter(i, has(i.count)).map(i, i.count) == [1, 5]",
        "event.data.items.map(i, has(i.count), i.count * 2.0) == [2, 10]",
        "event.data.tags.all(a, event.data.tags.exists(b, a == b))",
        "event.data.nested.all(key, key == 'deep')",
        "[].all(x, false) && ![].exists(x, true)",
        "[1, 2].exists(event, event == 2)",
        # conversions
        "int('12') == 12 && int(3.9) == 3 && int(-3.9) == -3 && int(event.data.amount) % 5 == 2",
        "double('1.5') == 1.5 && double(2) / 4.0 == 0.5",
        "string(1) == '1' && string(event.data.amount) == '12' && string(1.5) == '1.5' && string(true) == 'true'",
        "string(1000000.0) == '1e+06' && string(123456.0) == '123456' && string(0.00001) == '1e-05'",
        "string(1234567.5) == '1.2345675e+06' && string(0.0) == '0' && string(-0.5) == '-0.5'",
        "bool('TRUE') && !bool('f') && dyn(1) == 1",
        # times
        "timestamp(event.time) < timestamp('2024-03-01T00:00:00Z')",
        "timestamp('2024-03-01T01:00:00+01:00') == timestamp('2024-03-01T00:00:00Z')",
        "timestamp('2024-03-01T00:00:00Z') - timestamp(event.time) < duration('30m')",
        "timestamp(event.time) + duration('29m44.75s') == timestamp('2024-03-01T00:00:00Z')",
        "timestamp(event.time).getFullYear() == 2024 && timestamp(event.time).getMonth() == 1",
        "timestamp(event.time).getDate() == 29 && timestamp(event.time).getDayOfMonth() == 28",
        "timestamp(event.time).getDayOfWeek() == 4 && timestamp(event.time).getDayOfYear() == 59",
        "timestamp(event.time).getHours() == 23 && timestamp(event.time).getHours('+02:00') == 1",
        "timestamp(event.time).getHours('Europe/Berlin') == 0 && timestamp(event.time).getMinutes() == 30",
        "timestamp(event.time).getSeconds() == 15 && timestamp(event.time).getMilliseconds() == 250",
        "duration('90m').getHours() == 1 && duration('-90m').getMinutes() == -90",
        "duration('1500ms').getSeconds() == 1 && duration('1500ms').getMilliseconds() == 500",
        "string(duration('90s')) == '90s' && string(timestamp(0)) == '1970-01-01T00:00:00Z' && int(timestamp(5)) == 5",
    ],
)
def test_what_is_true(text: str) -> None:
    assert matches(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("event.nothing == 1", "no such key: nothing"),
        ("event.data.nothing.more == 1", "no such key: nothing"),
        ("has(event.data.nothing.more)", "no such key: nothing"),
        ("event.type.more == 1", "no such overload: a string has no field more"),
        ("event.data.items[3].sku == 'a'", "index 3 is out of range"),
        ("event.data.items[-1].sku == 'a'", "index -1 is out of range"),
        ("event.data.items[event.type] == 1", "no such overload: an index of list and string"),
        ("nothing == 1", "no such attribute: nothing (a rule sees 'event')"),
        ("[1].all(x, true) && x == 1", "no such attribute: x"),
        ("event.data.amount > 'a'", "no such overload: > of double and string"),
        ("event.data.amount + 1 > 2", "no such overload: + of double and int; numbers of an event are doubles"),
        ("dyn(true) < 1", "no such overload: < of bool and int"),
        ("1 / 0 == 1", "division by zero"),
        ("1 % 0 == 1", "modulus by zero"),
        ("9223372036854775807 + 1 > 0", "integer overflow"),
        ("-(-9223372036854775808 + 0) > 0", "integer overflow"),
        ("event.type && true", "no such overload: && of string"),
        ("!event.type", "no such overload: ! of string"),
        ("event.type ? true : false", "no such overload: ?: of string"),
        ("event.type", "a rule must be true or false, this one is a string"),
        ("event.data.nested", "a rule must be true or false, this one is a map"),
        ("1 in event.type", "no such overload: in of int and string"),
        ("event.data.items.all(i, i.count > 0)", "no such key: count"),
        ("event.data.items.exists(i, i.count > 9)", "no such key: count"),
        ("event.data.items.exists_one(i, i.count > 0)", "no such key: count"),
        ("event.type.all(c, true)", "no such overload: all of string"),
        ("[1].filter(x, x).size() == 1", "no such overload: filter of int"),
        ("size(1) == 1", "no such overload: size() of int"),
        ("event.type.contains(1)", "no such overload: contains() of string and int"),
        ("event.data.amount.matches('1')", "no such overload: matches() of double"),
        ("int('x') == 1", "no int can be made of the string 'x'"),
        ("int(1e30) == 1", "1e+30 does not fit into an int"),
        ("int(true) == 1", "no int can be made of the bool"),
        ("double('x') == 1.0", "no double can be made of the string 'x'"),
        ("bool('yes')", "no bool can be made of the string 'yes'"),
        ("timestamp('yesterday') == timestamp(0)", "no timestamp can be made of the string 'yesterday'"),
        ("timestamp(9223372036854775807) == timestamp(0)", "no timestamp can be made of the int"),
        ("duration('1') == duration('1s')", "no duration can be made of the string '1'"),
        ("timestamp(event.time).getHours('Nowhere/Land') == 0", "there is no time zone 'Nowhere/Land'"),
        ("timestamp('9999-12-31T23:59:59Z') + duration('1h') > timestamp(0)", "the time is out of range"),
        ("string([1]) == ''", "no string can be made of the list"),
    ],
)
def test_errors_of_evaluation(text: str, message: str) -> None:
    rule = Rule(text)
    with pytest.raises(RuleError) as raised:
        rule.matches(view())
    assert str(raised.value).startswith(message)
    explained = rule.explain(view())
    assert explained.matches is None


@pytest.mark.parametrize(
    ("text", "position", "rule"),
    [
        ("", 0, "expected a value, found the end"),
        ("event.type ==", 13, "expected a value, found the end"),
        ("event.type = 'x'", 11, "'=' means nothing here"),
        ("event.type == 'x", 14, "this string does not end"),
        ("event.type == 'x' && ", 21, "expected a value"),
        ("event.type == 'x' and true", 18, "expected an operator or the end, found 'and'"),
        ("(true", 5, "expected ')'"),
        ("true ? false", 12, "expected ':'"),
        ("event.", 6, "expected the name of a field"),
        ("event['type'", 12, "expected ']'"),
        ("[1, , 2] == []", 4, "expected a value"),
        ("{1: 2} == {}", 1, "expected a key in quotes"),
        ("{'a': 1, 'a': 2} == {}", 0, "a key is given twice"),
        ("nope(event.type)", 0, "there is no function nope by itself with 1 argument"),
        ("event.type.lowerAscii() == 'x'", 11, "there is no function lowerAscii on a value with 0 arguments"),
        ("contains(event.type, 'x')", 0, "there is no function contains by itself with 2 arguments"),
        ("event.type.startsWith()", 11, "there is no function startsWith on a value with 0 arguments"),
        ("has(event)", 4, "has() takes a field"),
        ("has(event['type'])", 4, "has() takes a field"),
        ("event.data.all(x)", 16, "expected ','"),
        ("event.data.all(1, true)", 15, "expected the name of a variable"),
        ("event.data.all(x, true, true)", 11, "all takes 2 arguments"),
        ("event.type.matches('(')", 19, "this is no regular expression of RE2: missing ): ("),
        ("event.type.matches(event.source)", 19, "the pattern of matches() must be a text in quotes"),
        (r"'\q' == 'q'", 1, "this escape is no character"),
        (r"'\ud800' == 'q'", 1, "this escape is no character"),
        ("9223372036854775808 == 1", 0, "an int has 64 bits"),
        ("1u == 1", 0, "'1' means nothing here"),
        ("for == 1", 0, "'for' is a reserved word"),
        ("'x'", 0, "a rule must be true or false"),
        ("1 + 2", 0, "a rule must be true or false"),
        ("event", 0, "a rule must be true or false"),
        ("size(event.type)", 0, "a rule must be true or false"),
        ("true ? 'a' : 'b'", 0, "a rule must be true or false"),
        ("event.type == 'a' || 1", 0, "no such overload: || of bool and int"),
        ("true && event.type.size()", 0, "no such overload: && of bool and int"),
        ("true && !'a'", 8, "no such overload: ! of string"),
        ("event.type.size() == '3'", 0, "no such overload: == of int and string"),
        ("true || true == 1", 8, "no such overload: == of bool and int"),
        ("timestamp(0) < 5", 0, "no such overload: < of timestamp and int"),
        ("[1] < [2]", 0, "no such overload: < of list and list"),
        ("1 + 'a' == event.type", 0, "no such overload: + of int and string"),
        ("1 + 1.0 > 1", 0, "no such overload: + of int and double"),
        ("-'a' == event.type", 0, "no such overload: - of string"),
        ("1 ? true : false", 0, "no such overload: ?: of int"),
        ("[true]", 0, "a rule must be true or false"),
        ("true; false", 4, "';' means nothing here"),
    ],
)
def test_what_is_no_rule_is_refused_with_its_position(text: str, position: int, rule: str) -> None:
    with pytest.raises(InvalidExpression) as raised:
        Rule(text)
    assert (raised.value.position, raised.value.rule[: len(rule)]) == (position, rule)


def test_matches_needs_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "re2", None)
    with pytest.raises(InvalidExpression, match=r"matches\(\) needs RE2: pip install 'meshwire\[cel\]'"):
        Rule("event.type.matches('x')")


def test_limits() -> None:
    for deep in ("(" * 64 + "true" + ")" * 64, "!" * 65 + "true", "event" + ".a" * 64 + " == 1"):
        with pytest.raises(InvalidExpression, match="nested deeper than 64"):
            Rule(deep)
    with pytest.raises(InvalidExpression, match="at most 4096 bytes"):
        Rule("true || " + " " * 4096 + "true")
    assert Rule(" || ".join([f"event.number == {number}" for number in range(150)])).matches(view())


def test_a_rule_does_not_run_for_ever() -> None:
    event = view({"data": list(range(400))})
    with pytest.raises(RuleError, match="no more than 100000 members"):
        Rule("event.data.all(a, event.data.all(b, event.data.all(c, true)))").matches(event)
    with pytest.raises(RuleError, match="no more than 100000 members"):
        Rule("event.data.exists(a, event.data.all(b, event.data.all(c, true)))").matches(event)
    assert Rule("event.data.all(a, true)").matches(event)  # each rule counts anew


def test_a_rule_does_not_fill_the_memory() -> None:
    doubled = "(event.data + event.data)"
    for _ in range(5):
        doubled = f"({doubled} + {doubled})"
    with pytest.raises(RuleError, match="puts together at most"):
        Rule(f"{doubled} == ''").matches(view({"data": "x" * 1_000_000}))


def test_data_is_read_only_where_a_rule_looks_at_it_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[bytes] = []
    decode = __import__("mesh.filters.event_view", fromlist=["_decode"])._decode
    monkeypatch.setattr("mesh.filters.event_view._decode", lambda raw: read.append(bytes(raw)) or decode(raw))
    event = view({"type": "t", "data": {"a": 1}})
    assert Rule("event.type == 't' && has(event.data)").matches(event)
    assert read == [b'"t"']
    for _ in range(2):
        assert Rule("event.data.a == 1 && event.data.a < 2").matches(event)
    assert read == [b'"t"', b'{"a": 1}']


@pytest.mark.parametrize("depth", [100, 300, 450, 700, 900, 990, 5000])
def test_data_that_is_nested_deeply(depth: int) -> None:
    """Whatever the depth: a value, a rule's error, or no event at all."""
    body = b'{"data":' + b"[" * depth + b"]" * depth + b"}"
    try:
        event = EventView(body)
        rule = Rule("event.data == [event.data][0] || size(event) == 0")
        assert rule.matches(event)
    except InvalidEvent:
        assert depth > 900
    except RuleError as error:
        assert "nested too deeply" in str(error)
        assert rule.explain(event).matches is None
    else:
        assert rule.explain(event).matches


def test_numbers_beyond_all_bounds() -> None:
    event = EventView(b'{"data":{"huge":1e999,"long":' + b"9" * 400 + b',"text":"\\ud83d\\ude00"}}')
    assert Rule("event.data.huge > 1.0 && event.data.text == '😀' && has(event.data.long)").matches(event)
    for place in ("1.0 / 0.0", "0.0 / 0.0", "event.data.huge"):
        with pytest.raises(RuleError, match="no such overload: an index of list and double"):
            Rule(f"[1][{place}] == 1").matches(event)
    with pytest.raises(RuleError, match="does not fit into an int"):
        Rule("int(event.data.huge) == 1").matches(event)


@pytest.mark.parametrize(
    ("text", "decided_by", "value"),
    [
        ("event.type == 'x' && event.data.amount > 1", "event.type == 'x'", False),
        ("event.type == 'x' || event.data.amount > 1", "event.data.amount > 1", True),
        ("event.data.amount > 1 && !(event.data.paid)", "event.data.paid", True),
        ("event.nope || event.data.amount > 1", "event.data.amount > 1", True),
        ("event.type == 'x' || event.data.nope > 1", "event.data.nope", None),
        ("event.data.items.all(i, has(i.count))", "event.data.items.all(i, has(i.count))", False),
    ],
)
def test_what_decided(text: str, decided_by: str, value: object) -> None:
    step = Rule(text).explain(view()).decided_by
    assert (step.expression, step.value) == (decided_by, value)


def test_explanation_shows_values_in_short() -> None:
    step = Rule("event.data.name == 'x' || size(event.data) > 99").explain(view()).step
    name, size = step.steps
    assert [(inner.expression, inner.value, inner.position) for inner in name.steps] == [("event.data.name", "Ünal", 0)]
    (data,) = size.steps[0].steps
    assert isinstance(data.value, str)
    assert data.value.startswith('{"amount": 12.0')
    assert len(data.value) == 200


@given(st.text(alphabet="event.data=!<>&|?:()[]{}'\"\\ 01xinall,+-", max_size=40))
def test_any_text_compiles_or_is_refused(text: str) -> None:
    try:
        rule = Rule(text)
    except InvalidExpression as error:
        assert 0 <= error.position <= len(text)
    else:
        rule.explain(view())
