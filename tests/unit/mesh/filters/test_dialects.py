"""The filter dialects of the Subscriptions API."""

from __future__ import annotations

from typing import Any

import pytest

from mesh.filters.dialects import MAX_FILTERS, Filter, InvalidFilter, parse_filters

EVENT: dict[str, Any] = {
    "specversion": "1.0",
    "id": "1",
    "source": "/shop/eu",
    "type": "order.placed",
    "number": 7,
    "flag": True,
}


def parsed(*filters: object) -> Filter:
    found = parse_filters(list(filters))
    assert found is not None
    return found


YES, NO = {"exact": {"id": "1"}}, {"exact": {"id": "2"}}


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        ({"exact": {"type": "order.placed"}}, True),
        ({"exact": {"type": "order.PLACED"}}, False),
        ({"exact": {"type": "order.placed", "id": "1"}}, True),
        ({"exact": {"type": "order.placed", "id": "2"}}, False),
        ({"exact": {"subject": "x"}}, False),
        ({"exact": {"number": "7"}}, True),
        ({"exact": {"flag": "true"}}, True),
        ({"exact": {"flag": "True"}}, False),
        ({"prefix": {"type": "order."}}, True),
        ({"prefix": {"type": "placed"}}, False),
        ({"prefix": {"subject": "o"}}, False),
        ({"suffix": {"type": ".placed", "source": "/eu"}}, True),
        ({"suffix": {"type": "order"}}, False),
        ({"all": [YES, YES]}, True),
        ({"all": [YES, NO]}, False),
        ({"any": [NO, YES]}, True),
        ({"any": [NO, NO]}, False),
        ({"not": NO}, True),
        ({"not": {"exact": {"subject": "x"}}}, True),
        ({"sql": "type LIKE 'order.%' AND number = 7"}, True),
        ({"cesql": "number > 7"}, False),
        ({"sql": "subject = 'x'"}, False),
        ({"not": {"sql": "subject = 'x'"}}, True),
        ({"sql": "number"}, False),
        ({**YES, "prefix": {"type": "order"}}, True),
        ({**YES, "not": YES}, False),
        ({"any": [NO, {"all": [YES, {"not": {"any": [NO]}}]}]}, True),
    ],
)
def test_what_matches(one: dict[str, Any], expected: bool) -> None:
    found = parsed(one)
    assert found.matches(EVENT) is expected
    explained = found.explain(EVENT)
    assert explained.step.value is expected or "sql" in one
    assert parsed(found.canonical).matches(EVENT) is expected


def test_all_filters_of_the_list_must_hold() -> None:
    assert parsed(YES, {"prefix": {"type": "order"}}).matches(EVENT)
    assert not parsed(YES, NO).matches(EVENT)


def test_no_filters_let_everything_pass() -> None:
    assert parse_filters([]) is None
    assert parse_filters(None) is None


def test_several_dialects_become_all() -> None:
    found = parsed({**YES, "cesql": "TRUE"})
    assert found.canonical == {"all": [YES, {"sql": "TRUE"}]}


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"exact": {"id": "1"}}, "filters: must be a list of filters, not an object"),
        ("type = 'x'", "filters: must be a list of filters, not a text"),
        ([7], "filters[0]: must be an object with a dialect, not a number"),
        ([YES, {}], "filters[1]: must be an object with a dialect, not an empty object"),
        ([{"like": {"id": "1"}}], "filters[0].like: 'like' is no dialect"),
        ([{"exact": {}}], "filters[0].exact: must be an object with at least one attribute, not an empty object"),
        ([{"exact": {"type": ""}}], "filters[0].exact.type: must not be empty"),
        ([{"exact": {"type": 5}}], "filters[0].exact.type: must be a text, not a number: write it in quotes"),
        ([{"prefix": {"myAttr": "x"}}], "filters[0].prefix.myAttr: the name of an attribute"),
        ([{"prefix": {"my_attr": "x"}}], "filters[0].prefix.my_attr: the name of an attribute"),
        ([{"prefix": {"é": "x"}}], "filters[0].prefix.é: the name of an attribute"),
        ([{"exact": {"data": "x"}}], "filters[0].exact.data: the name of an attribute"),
        ([{"all": []}], "filters[0].all: must be a list of at least one filter, not an empty list"),
        ([{"any": YES}], "filters[0].any: must be a list of at least one filter, not an object"),
        ([{"not": [YES]}], "filters[0].not: must be an object with a dialect, not a list"),
        ([{"not": {"any": [YES, {"all": [NO, {"x": 1}]}]}}], "filters[0].not.any[1].all[1].x: 'x' is no dialect"),
        ([{"sql": 1}], "filters[0].sql: must be a text, not a number"),
        ([{"sql": "type = "}], "filters[0].sql: column 8: expected a value, found the end in 'type = '"),
    ],
)
def test_faults_are_refused_with_their_path(filters: object, message: str) -> None:
    with pytest.raises(InvalidFilter) as raised:
        parse_filters(filters)
    assert str(raised.value).startswith(message)


def test_limits() -> None:
    deep: dict[str, Any] = YES
    for _ in range(64):
        deep = {"not": deep}
    with pytest.raises(InvalidFilter, match="nested deeper than 64"):
        parse_filters([deep])
    assert parse_filters([YES] * MAX_FILTERS)
    with pytest.raises(InvalidFilter, match="more than 500"):
        parse_filters([YES] * (MAX_FILTERS + 1))


def test_warnings_come_with_their_path() -> None:
    (warning,) = parsed({"any": [YES, {"not": {"sql": "TRUE AND TRUE OR TRUE"}}]}).warnings
    assert warning.startswith("filters[0].any[1].not.sql: column 15: OR after AND")


@pytest.mark.parametrize(
    ("one", "decided_by"),
    [
        ({"all": [YES, NO]}, '{"exact":{"id":"2"}}'),
        ({"any": [NO, {"not": NO}]}, '{"exact":{"id":"2"}}'),
        ({"any": [NO, NO]}, '{"any":[{"exact":{"id":"2"}},{"exact":{"id":"2"}}]}'),
        ({"all": [YES, {"sql": "flag AND subject = 'x'"}]}, "subject"),
        ({"exact": {"id": "1", "type": "other"}}, '{"exact":{"type":"other"}}'),
    ],
)
def test_what_decided(one: dict[str, Any], decided_by: str) -> None:
    assert parsed(one).explain(EVENT).decided_by.expression == decided_by


def test_the_value_that_was_met_is_told() -> None:
    step = parsed({"prefix": {"source": "/bank"}}).explain(EVENT).step
    assert [(inner.expression, inner.value) for inner in step.steps] == [("source", "/shop/eu")]
