import json
from typing import Any

import pytest

from mesh.ports.stores import StateQuery
from mesh.state.query import (
    MAX_DEPTH,
    MAX_SORT,
    MAX_TERMS,
    Comparator,
    Comparison,
    Every,
    InvalidQuery,
    Membership,
    Some,
    parse,
)


def query(**members: Any) -> StateQuery:
    return parse(json.dumps(members).encode())


def test_nothing_asked_is_every_item() -> None:
    assert query() == query(filter={}, sort=[], page={}) == query(filter=None, page={"limit": 0, "token": ""})
    assert query() == StateQuery()


def test_a_tree_of_all_operators() -> None:
    given = {
        "OR": [
            {"EQ": {"person.org": "Dev Ops"}},
            {"AND": [{"GT": {"n": 1}}, {"LTE": {"n": 2.5}}, {"IN": {"state": ["CA", None, True]}}]},
            {"NEQ": {"a": None}},
        ]
    }
    asked = query(filter=given, sort=[{"key": "a.b", "order": "DESC"}, {"key": "c"}], page={"limit": 3, "token": "t"})
    assert asked.filter == Some(
        (
            Comparison(Comparator.EQ, ("person", "org"), "Dev Ops"),
            Every(
                (
                    Comparison(Comparator.GT, ("n",), 1),
                    Comparison(Comparator.LTE, ("n",), 2.5),
                    Membership(("state",), ("CA", None, True)),
                )
            ),
            Comparison(Comparator.NEQ, ("a",), None),
        )
    )
    assert (asked.sort, asked.limit, asked.token) == (((("a", "b"), True), (("c",), False)), 3, "t")


def nested(depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {"EQ": {"a": 1}}
    for _ in range(depth):
        found = {"AND": [found, {"EQ": {"b": 1}}]}
    return found


def test_it_may_be_as_deep_and_as_long_as_it_says() -> None:
    assert query(filter=nested(MAX_DEPTH)).filter
    assert query(filter={"IN": {"a": list(range(MAX_TERMS))}}).filter


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"filter": []}, "filter must be an object (got [])"),
        ({"filter": [1]}, "filter must be an object (got [1])"),
        ({"filter": {"EQ": {"a": 1}, "GT": {"a": 1}}}, "filter must have exactly one member, an operator (got 2)"),
        ({"filter": {"eq": {"a": 1}}}, "filter.eq: there is no such operator"),
        ({"filter": {"EQ": 1}}, "filter.EQ must be an object with one member, the path into the value"),
        ({"filter": {"EQ": {}}}, "filter.EQ must be an object with one member"),
        ({"filter": {"EQ": {"a": [1]}}}, "filter.EQ.a must be a string, a number, a boolean or null (got [1])"),
        ({"filter": {"EQ": {"a..b": 1}}}, "filter.EQ: 'a..b' is no path"),
        ({"filter": {"IN": {"a": 1}}}, "filter.IN.a must be a list of values, not empty (got 1)"),
        ({"filter": {"IN": {"a": []}}}, "filter.IN.a must be a list of values, not empty (got [])"),
        ({"filter": {"AND": [{"EQ": {"a": 1}}]}}, "filter.AND must be a list of two filters or more"),
        ({"filter": {"OR": [{"EQ": {"a": 1}}, {}]}}, "filter.OR[1] must have exactly one member"),
        ({"filter": nested(MAX_DEPTH + 1)}, f"lies more than {MAX_DEPTH} levels deep"),
        ({"filter": {"IN": {"a": [0] * (MAX_TERMS + 1)}}}, f"at most {MAX_TERMS} values"),
        ({"filters": {}}, "the query has no member 'filters', did you mean 'filter'?"),
        ({"sort": {"key": "a"}}, 'sort must be a list (got {"key":"a"})'),
        ({"sort": [{"key": "a", "order": "asc"}]}, "sort[0].order must be ASC or DESC (got 'asc')"),
        ({"sort": [{"key": "a"}] * (MAX_SORT + 1)}, f"at most {MAX_SORT} members (got {MAX_SORT + 1})"),
        ({"sort": [{"order": "ASC"}]}, "sort[0].key: '' is no path"),
        ({"page": {"limit": -1}}, "page.limit must be a positive integer (got -1)"),
        ({"page": {"limit": True}}, "page.limit must be a positive integer (got true)"),
        ({"page": {"token": 1}}, "page.token must be a string (got 1)"),
    ],
)
def test_what_cannot_be_asked(members: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidQuery) as caught:
        query(**members)
    assert message in str(caught.value)


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 100_000, b"\xff", b'{"filter":\xff}'])
def test_no_json(body: bytes) -> None:
    with pytest.raises(InvalidQuery, match="the query is no JSON"):
        parse(body)


def test_no_object() -> None:
    with pytest.raises(InvalidQuery, match=r"the query must be an object \(got \[\]\)"):
        parse(b"[]")
