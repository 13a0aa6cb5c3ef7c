import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mesh.resources import SubscriptionManifest
from mesh.routing import RoutingError, Skipped
from mesh.subscriptions import (
    InvalidSubscriptions,
    Route,
    SubscriptionSpec,
    Unsupported,
    delivery_path,
    from_manifest,
    from_manifests,
    merge,
    parse_programmatic,
)


def parse(answer: Any, status: int = 200) -> Any:
    body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    return parse_programmatic(status, body, default_pubsub="default")


def only(answer: Any) -> SubscriptionSpec:
    parsed = parse(answer)
    assert not parsed.refused
    assert not parsed.warnings
    [spec] = parsed.specs
    return spec


def test_a_modern_entry() -> None:
    spec = only(
        [
            {
                "pubsubname": "bus",
                "topic": "orders",
                "route": "orders/new",
                "deadLetterTopic": "poison",
                "metadata": {"rawPayload": "true", "queueGroup": "q"},
                "bulkSubscribe": {"enabled": False, "maxMessagesCount": 5},
                "futureField": [1],
            }
        ]
    )
    assert spec == SubscriptionSpec(
        pubsub="bus",
        topic="orders",
        routes=(Route("", "/orders/new"),),
        dead_letter_topic="poison",
        metadata={"rawPayload": "true", "queueGroup": "q"},
        raw_payload=True,
        type="PROGRAMMATIC",
        origin="GET /dapr/subscribe: entry 0",
    )


@pytest.mark.parametrize(
    ("entry", "pubsub", "paths"),
    [
        ({"pubsubName": "b", "Topic": "t", "ROUTE": "/r"}, "b", ["/r"]),
        ({"pubsubname": "b", "topic": "t", "routes": {"default": "/d"}, "route": "/r"}, "b", ["/d"]),
        ({"pubsubname": "b", "topic": "t", "routes": {"rules": [{"path": "x"}], "Default": "d"}}, "b", ["/x", "/d"]),
        ({"pubsubname": "b", "topic": "t", "routes": {"rules": [{"match": "", "path": "x"}]}}, "b", ["/x"]),
        ({"pubsubname": "b", "topic": "t", "route": "/r", "routes": None, "metadata": None}, "b", ["/r"]),
        # 2020 and 2019
        ({"topic": "t", "route": "/r"}, "default", ["/r"]),
        ({"topic": "t"}, "default", ["/t"]),
        ("t", "default", ["/t"]),
    ],
)
def test_shapes(entry: Any, pubsub: str, paths: list[str]) -> None:
    spec = only([entry])
    assert (spec.pubsub, spec.topic, [route.path for route in spec.routes]) == (pubsub, "t", paths)
    assert spec.dead_letter_topic is None


def test_old_and_new_entries_mix() -> None:
    parsed = parse(["a", {"topic": "b"}, {"pubsubname": "p", "topic": "c", "route": "c"}])
    assert [(spec.pubsub, spec.topic) for spec in parsed.specs] == [("default", "a"), ("default", "b"), ("p", "c")]


@pytest.mark.parametrize("body", [b"", b"  \n", b"[]", b"null", b"[] trailing {"])
def test_nothing_asked_for(body: bytes) -> None:
    assert parse(body) == ([], [], [])


def test_only_the_first_value_counts() -> None:
    assert only(b'["a"] garbage').topic == "a"


@pytest.mark.parametrize(("status", "warned"), [(404, False), (204, True), (500, True), (301, True), (403, True)])
def test_other_statuses_are_no_subscriptions(status: int, warned: bool) -> None:
    parsed = parse([{"pubsubname": "b", "topic": "t", "route": "/r"}], status)
    assert not parsed.specs
    assert [str(status) in warning for warning in parsed.warnings] == [True] * warned


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "no JSON"),
        (b"\xff[]", "no JSON"),
        (b"\xef\xbb\xbf[]", "no JSON"),
        (b"[NaN]", "NaN is not a JSON value"),
        (b"[" * 100_000, "nested too deeply|no JSON"),
        (b"[" + b"9" * 5000 + b"]", "no JSON"),
        (b"{}", "must be an array, not an object"),
        (b'"a"', "must be an array, not a string"),
        (b"[5]", r"entry 0 must be an object, not a number"),
        (b'["a",["b"]]', r"entry 1 must be an object, not an array"),
        (b'[{"topic":5}]', "entry 0: topic must be a string, not a number"),
        (b'[{"pubsubname":true,"topic":"t"}]', "entry 0: pubsubname must be a string, not a boolean"),
        (
            b'["a",{"topic":"t","metadata":{"rawPayload":true}}]',
            "entry 1: metadata.rawPayload must be a string, not a boolean",
        ),
        (b'[{"topic":"t","metadata":["a"]}]', "entry 0: metadata must be an object, not an array"),
        (b'[{"topic":"t","routes":"/r"}]', "entry 0: routes must be an object, not a string"),
        (b'[{"topic":"t","routes":{"rules":{}}}]', "entry 0: routes: rules must be an array, not an object"),
        (b'[{"topic":"t","routes":{"rules":[1]}}]', r"entry 0: routes: rules\[0\] must be an object"),
        (
            b'[{"topic":"t","bulkSubscribe":{"enabled":"true"}}]',
            "bulkSubscribe: enabled must be true or false, not a string",
        ),
        (b'[{"topic":"t","bulkSubscribe":{"maxMessagesCount":1.5}}]', "maxMessagesCount must be a whole number"),
        # a skipped entry is still decoded
        (b'[{"pubsubname":"p","metadata":{"a":1}}]', "metadata.a must be a string"),
        (json.dumps(["t"] * 1001).encode(), "1001 entries"),
        (b" " * (1 << 20) + b"[]", "at most 1048576"),
    ],
)
def test_an_undecodable_answer_names_entry_and_field(body: bytes, message: str) -> None:
    with pytest.raises(InvalidSubscriptions, match=message):
        parse(body)


@pytest.mark.parametrize(
    ("entry", "missing"),
    [
        ({"pubsubname": "b", "topic": "t"}, "route"),
        ({"pubsubname": "b", "topic": "t", "routes": {}}, "route"),
        ({"pubsubname": "b", "route": "/r"}, "topic"),
        ({"pubsubname": "", "topic": "t", "route": "/r"}, "pubsubname"),
        ({}, "topic"),
        (None, "topic"),
        ("", "topic"),
    ],
)
def test_incomplete_entries_are_skipped_with_a_warning(entry: Any, missing: str) -> None:
    parsed = parse([entry, "good"])
    assert [spec.topic for spec in parsed.specs] == ["good"]
    assert parsed.warnings == [f"GET /dapr/subscribe: entry 0 has no {missing}, skipped"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"routes": {"rules": [{"match": "true", "path": "/x"}, {"match": "event.type ==", "path": "/y"}]}},
            "rules[1].match: column 14: expected a value, found the end in 'event.type =='",
        ),
        (
            {"routes": {"rules": [{"match": "now() > 1", "path": "/x"}]}},
            "rules[0].match: column 1: there is no function",
        ),
        ({"filters": {"exact": {"type": "x"}}}, "filters: must be a list of filters, not an object"),
        ({"filters": {}}, "filters: must be a list of filters, not an empty object"),
        ({"filters": [{"any": [{"exact": {"Type": "x"}}]}]}, "filters[0].any[0].exact.Type: the name"),
        ({"filters": [{"sql": "type ="}]}, "filters[0].sql: column 7: expected a value"),
        ({"metadata": {"filters": "type = 'x'"}}, "metadata.filters: must be JSON, a list of filters"),
        ({"metadata": {"filters": "[" * 100_000}}, "metadata.filters: must be JSON, a list of filters"),
        ({"metadata": {"filters": '[{"exact":{}}]'}}, "metadata.filters[0].exact: must be an object"),
        ({"metadata": {"Filters": "[]"}}, "metadata.Filters: write it 'filters'"),
        (
            {"metadata": {"filters": '[{"sql":"TRUE"}]'}, "filters": [{"sql": "TRUE"}]},
            "metadata.filters: there are filters beside the metadata too",
        ),
        (
            {"bulkSubscribe": {"enabled": True, "maxMessagesCount": -1}},
            "bulkSubscribe.maxMessagesCount: must be from 1 to 1000 (got -1)",
        ),
        ({"deadLetterTopic": "a.>"}, "a dead letter topic has no wildcards"),
        ({"metadata": {"maxAttempts": "0"}}, "metadata.maxAttempts: must be -1 or at least 1"),
        ({"metadata": {"maxattempts": "2"}}, "metadata.maxattempts: write it 'maxAttempts'"),
        ({"metadata": {"concurrency": "none"}}, "metadata.concurrency: "),
        ({"route": "/a b"}, "no blanks"),
        ({"route": "/a\r\nHost: evil"}, "no blanks"),
        ({"route": "/a#b"}, "no blanks"),
        ({"route": "/" + "é" * 1024}, "at most 2048 bytes"),
        ({"metadata": {"rawPayload": "maybe"}}, "metadata.rawPayload: must be true or false"),
        ({"metadata": {"rawpayload": "true"}}, "write it 'rawPayload'"),
    ],
)
def test_what_is_not_there_is_refused_alone(change: dict[str, Any], message: str) -> None:
    entry = {"pubsubname": "b", "topic": "t", "route": "/r"} | change
    parsed = parse([entry, "good"])
    assert [spec.topic for spec in parsed.specs] == ["good"]
    [refusal] = parsed.refused
    assert message in refusal
    assert refusal.startswith("GET /dapr/subscribe: entry 0: topic '")


@pytest.mark.parametrize("topic", ["a*", "a.b>", "orders", "a.*b", "prices>5"])
def test_only_whole_tokens_are_wildcards(topic: str) -> None:
    assert only([{"pubsubname": "b", "topic": topic, "route": "/r"}]).topic == topic


@pytest.mark.parametrize(
    ("path", "sent"),
    [("a", "/a"), ("/a", "/a"), ("//a", "//a"), ("a%20b", "/a%20b"), ("a?b=c&d", "/a?b=c&d"), ("ü", "/%C3%BC")],
)
def test_delivery_path(path: str, sent: str) -> None:
    assert delivery_path(path) == sent


def test_lone_surrogates_cannot_get_through() -> None:
    spec = only(rb'[{"pubsubname":"b","topic":"t\ud800","route":"/r","metadata":{"k\udc00":"v"}}]')
    assert spec.topic == "t�"
    assert list(spec.metadata) == ["k�"]
    assert only([{"pubsubname": "b", "topic": "😀", "route": "/r"}]).topic == "😀"


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
_names = [
    "pubsubname",
    "topic",
    "route",
    "Routes",
    "rules",
    "default",
    "match",
    "path",
    "metadata",
    "bulkSubscribe",
    "enabled",
]
_entry = st.text() | st.dictionaries(
    st.sampled_from(_names),
    _json | st.dictionaries(st.sampled_from(_names), _json | st.lists(st.dictionaries(st.sampled_from(_names), _json))),
)


@given(st.binary() | st.lists(_entry | _json).map(lambda answer: json.dumps(answer).encode()))
@example(b'[{"topic":"\\ud800","route":"\\ud800"}]')
def test_any_answer_parses_or_is_invalid(body: bytes) -> None:
    try:
        parsed = parse(body)
    except InvalidSubscriptions as error:
        assert str(error).startswith("GET /dapr/subscribe: ")
        return
    for spec in parsed.specs:
        assert spec.pubsub
        assert spec.topic
        assert spec.routes
        for route in spec.routes:
            assert route.path.startswith("/")
            assert route.path.isascii()
            assert route.path.isprintable()
            assert " " not in route.path


def manifest(**changes: Any) -> SubscriptionManifest:
    return SubscriptionManifest(
        **({"name": "s", "pubsub": "b", "topic": "t", "default": "d", "origin": "/r/s.yaml:1"} | changes)
    )


def test_a_manifest_becomes_a_spec() -> None:
    spec = from_manifest(manifest(rules=(("", "x"),), dead_letter_topic="dead", metadata={"rawPayload": "1"}))
    assert spec.routes == (Route("", "/x"), Route("", "/d"))
    assert (spec.type, spec.dead_letter_topic, spec.raw_payload) == ("DECLARATIVE", "dead", True)


def test_a_manifest_with_a_bad_rule_is_refused_alone() -> None:
    bad = manifest(rules=(("event.type = 'x'", "/x"),))
    with pytest.raises(Unsupported, match=r"^/r/s\.yaml:1: topic 't' of 'b' is not subscribed: rules\[0\]\.match: col"):
        from_manifest(bad)
    parsed = from_manifests([bad, manifest(topic="u")])
    assert [spec.topic for spec in parsed.specs] == ["u"]
    assert len(parsed.refused) == 1


def placed(type_: str) -> bytes:
    return json.dumps({"specversion": "1.0", "id": "1", "source": "/s", "type": type_, "data": {"amount": 12}}).encode()


def test_one_route_for_everything_needs_no_routing() -> None:
    assert only([{"pubsubname": "b", "topic": "t", "route": "/r"}]).routing is None
    assert from_manifest(manifest()).routing is None
    assert from_manifest(manifest(rules=(("  ", "x"), ("true", "y")))).routing is None


RULES = [{"match": "event.type == 'a'", "path": "a"}, {"match": " event.data.amount > 10 ", "path": "/big"}]


def test_rules_are_tried_in_order_and_then_the_default() -> None:
    spec = only([{"pubsubname": "b", "topic": "t", "routes": {"rules": RULES, "default": "/d"}}])
    assert spec.routes == (Route("event.type == 'a'", "/a"), Route("event.data.amount > 10", "/big"), Route("", "/d"))
    assert spec.routing is not None
    assert spec.routing.paths == {"/a", "/big", "/d"}
    assert spec.routing.choose(placed("a")) == "/a"
    assert spec.routing.choose(placed("b")) == "/big"
    assert spec.routing.choose(placed("b").replace(b"12", b"1")) == "/d"


def test_without_a_default_an_event_may_go_nowhere() -> None:
    spec = from_manifest(manifest(default="", rules=(("event.type == 'a'", "/a"),)))
    assert spec.routing is not None
    assert spec.routing.choose(placed("a")) == "/a"
    assert spec.routing.choose(placed("b")) is Skipped.RULES


def test_a_rule_without_a_value_fails_the_event() -> None:
    spec = from_manifest(manifest(rules=(("event.data.name == 'a'", "/a"),)))
    assert spec.routing is not None
    with pytest.raises(RoutingError, match=r"'event\.data\.name == 'a'' cannot be evaluated: no such key: name"):
        spec.routing.choose(placed("a"))


FILTERS = [{"prefix": {"type": "order."}, "not": {"exact": {"source": "/x"}}}]
CANONICAL = {"all": [{"prefix": {"type": "order."}}, {"not": {"exact": {"source": "/x"}}}]}


@pytest.mark.parametrize("where", ["entry", "metadata", "manifest"])
def test_filters(where: str) -> None:
    entry: dict[str, Any] = {"pubsubname": "b", "topic": "t", "route": "/r"}
    if where == "entry":
        spec = only([entry | {"filters": FILTERS}])
    elif where == "metadata":
        spec = only([entry | {"metadata": {"filters": json.dumps(FILTERS)}}])
    else:
        spec = from_manifest(manifest(filters=FILTERS, default="/r"))
    assert spec.filters == CANONICAL
    assert spec.routing is not None
    assert spec.routing.choose(placed("order.a")) == "/r"
    assert spec.routing.choose(placed("bill.a")) is Skipped.FILTER


def test_a_changed_filter_or_rule_is_another_subscription() -> None:
    def spec(**changes: Any) -> SubscriptionSpec:
        return from_manifest(manifest(**changes))

    assert spec(filters=FILTERS) == spec(filters=FILTERS)
    assert spec(filters=FILTERS) != spec(filters=[{"prefix": {"type": "order."}}])
    assert spec(rules=(("true", "/a"),)) == spec(rules=(("true", "/a"),))
    assert spec(rules=(("true", "/a"),)) != spec(rules=(("false", "/a"),))


def test_what_is_hardly_meant_is_warned_of() -> None:
    parsed = from_manifests([manifest(filters=[{"sql": "TRUE AND TRUE OR FALSE"}])])
    [warning] = parsed.warnings
    assert warning.startswith("/r/s.yaml:1: topic 't' of 'b': filters[0].sql: column 15: OR after AND")


def test_explanation() -> None:
    spec = from_manifest(
        manifest(filters=[{"sql": "type LIKE 'order.%'"}], rules=(("event.type == 'order.a'", "/a"),), default="")
    )
    assert spec.routing is not None
    found = spec.routing.explain(placed("bill"))
    assert (found.matches, found.skipped, found.rules) == (False, Skipped.FILTER, ())
    assert found.decided_by is not None
    assert found.decided_by.expression == "type LIKE 'order.%'"
    found = spec.routing.explain(placed("order.a"))
    assert (found.matches, found.path, found.skipped) == (True, "/a", None)
    found = spec.routing.explain(placed("order.b"))
    assert (found.matches, found.path, found.skipped) == (False, None, Skipped.RULES)
    assert [(rule.match, rule.matches) for rule in found.rules] == [("event.type == 'order.a'", False)]
    found = from_manifest(manifest(rules=(("event.nope", "/a"),))).routing.explain(placed("order.b"))  # type: ignore[union-attr]
    assert not found.matches
    assert found.error == "the routing rule 'event.nope' cannot be evaluated: no such key: nope"


def test_merge_precedence() -> None:
    def spec(topic: str, path: str, **changes: Any) -> SubscriptionSpec:
        return from_manifest(manifest(topic=topic, default=path, **changes))

    merged = merge(
        [spec("a", "/p1"), spec("a", "/p2"), spec("a", "/other", pubsub="c")],
        [spec("a", "/d1"), spec("b", "/d2"), spec("b", "/d3")],
    )
    assert {(s.pubsub, s.topic): s.routes[0].path for s in merged} == {
        ("b", "a"): "/p2",
        ("c", "a"): "/other",
        ("b", "b"): "/d2",
    }
